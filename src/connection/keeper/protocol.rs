//! The protocol between commands and a keeper, over the keeper's socket.
//!
//! A frame is four bytes of length (little-endian), one byte that tells raw bytes from JSON, and the content. A
//! connection begins with a greeting from both sides, and then serves one purpose: a shell, or relays, or the status.

use std::io::{self, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of rsig and of this protocol. A keeper of another version is left alone.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/9");

/// Maximum length of a frame's content, in bytes.
pub const FRAME_MAX: usize = 64 << 10;
/// Minimum size of a read, in bytes.
const READ_MIN: usize = 4 << 10;
/// Length of the header before a frame's content, in bytes.
const HEADER_LEN: usize = 5;

/// A command's message to a keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first message.
    Hello { version: String },
    /// Check a shell out.
    Shell,
    /// The bytes that follow are a script. The shell prints `done` when it is ready for the next one; without `done`,
    /// the script is the shell's last.
    Script { done: Option<String> },
    /// The whole answer was read: the shell returns to the pool once it has printed `done`.
    CheckIn,
    /// Keep a channel for a job's relay. `script` starts the relay, and each of its lines begins with `word`.
    Relay {
        job: String,
        word: String,
        script: String,
    },
    /// Run a script whose answer is not read, to cancel a start that was given up.
    Cancel { script: String },
    /// Send this connection's shell a heartbeat (an empty line) at this interval, even if the command sends nothing.
    Beat { seconds: u64 },
    /// Send a signal through a job's relay.
    Signal { job: String, name: String },
    /// Report the end of a job, as its relay reports it.
    Watch { job: String },
    /// Report the keeper's status.
    Status,
    /// End the keeper.
    Stop,
}

/// A keeper's message to a command.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The first message, with the jobs whose relays are held.
    Hello {
        version: String,
        #[serde(default)]
        jobs: Vec<String>,
        /// Timeout for connecting to the keeper's host, in seconds.
        #[serde(default)]
        connect_timeout: u64,
    },
    /// A shell is checked out. It has been given the shared functions with this mark.
    Shell { primed: u64, may_hang: bool },
    /// Another command waits for a shell: a command that streams should give its own back.
    Wanted,
    /// No shell is available at present; nothing was sent.
    Busy,
    /// The shell has ended.
    End,
    /// The shell is not available, or its connection broke.
    Broken { message: String },
    /// The signal is about to be sent under this number. From now on it may have been sent.
    Numbered { job: String, number: u32 },
    /// The result of a signal.
    Signalled { job: String, relayed: RelayResult },
    /// The job's end will be reported.
    Watching { job: String },
    /// The job has ended.
    Ended { job: String, end: RelayedEnd },
    /// No relay of the job is held, or no longer: its end will not be reported.
    NotWatching { job: String },
    /// The keeper's status.
    Status(Status),
}

/// A job's end, as its relay reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayedEnd {
    /// Its exit status.
    pub status: u8,
    /// When, by the host's clock, in seconds since 1970.
    pub at: i64,
    /// It reached its time limit.
    pub timed_out: bool,
}

/// The result of a signal that was to go by a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayResult {
    /// The relay has sent it.
    Sent,
    /// The relay was not permitted to send it.
    Denied,
    /// No relay of the job is held; nothing was sent.
    NotHeld,
    /// The server did not pass the relay's probe on; nothing was sent.
    NotHonoured,
    /// The relay failed to answer in time before, and is no longer used; nothing was sent.
    Retired,
    /// The relay did not answer in time: the signal may or may not have been sent.
    Unanswered,
}

/// The status of a keeper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The host, as it was typed.
    pub host: String,
    /// The keeper's process id.
    pub pid: u32,
    /// When it was started, in seconds since 1970 by this machine's clock.
    pub since: i64,
    /// The jobs whose relays it holds, and whether each takes signals.
    pub relays: Vec<(String, bool)>,
    /// Number of open channels, including those of relays.
    pub channels: usize,
    /// Number of commands being served, not counting this one.
    pub commands: usize,
    /// How long it has been idle, in seconds.
    pub idle: u64,
}

/// A frame's content.
#[derive(Debug)]
pub enum Frame<T> {
    Message(T),
    /// Input for a shell, or its standard output.
    Bytes(Vec<u8>),
    /// A shell's standard error.
    ErrorBytes(Vec<u8>),
}

const MESSAGE: u8 = 0;
const BYTES: u8 = 1;
const ERROR_BYTES: u8 = 2;

/// Encodes a message as a frame.
pub fn message(content: &impl Serialize) -> Vec<u8> {
    // Serialization can't fail: messages hold no maps, and no values whose serialization fails.
    let content = serde_json::to_vec(content).unwrap_or_default();
    [&header(MESSAGE, &content)[..], &content].concat()
}

/// Encodes bytes, as frames of at most [`FRAME_MAX`].
pub fn bytes(error_stream: bool, content: &[u8]) -> Vec<u8> {
    let mut frames =
        Vec::with_capacity(content.len() + content.len().div_ceil(FRAME_MAX) * HEADER_LEN);
    for chunk in content.chunks(FRAME_MAX) {
        frames.extend_from_slice(&head_of_bytes(error_stream, chunk));
        frames.extend_from_slice(chunk);
    }
    frames
}

/// The header of a frame of a shell's bytes, which are at most [`FRAME_MAX`].
pub fn head_of_bytes(error_stream: bool, content: &[u8]) -> [u8; HEADER_LEN] {
    header(if error_stream { ERROR_BYTES } else { BYTES }, content)
}

fn header(kind: u8, content: &[u8]) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = u32::try_from(content.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    [a, b, c, d, kind]
}

/// Takes the first frame out of `buffer`; `None` while the frame is incomplete.
pub fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> io::Result<Option<Frame<T>>> {
    let Some(header) = buffer.get(..HEADER_LEN) else {
        return Ok(None);
    };
    let length = header
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let kind = header.get(4).copied();
    if length > FRAME_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some(content) = buffer.get(HEADER_LEN..HEADER_LEN + length) else {
        return Ok(None);
    };
    let frame = match kind {
        Some(MESSAGE) => Frame::Message(serde_json::from_slice(content)?),
        Some(BYTES) => Frame::Bytes(content.to_vec()),
        Some(ERROR_BYTES) => Frame::ErrorBytes(content.to_vec()),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    buffer.drain(..HEADER_LEN + length);
    Ok(Some(frame))
}

/// Reads the next frame from a blocking stream.
pub fn read<T: DeserializeOwned>(
    stream: &mut impl Read,
    buffer: &mut Vec<u8>,
) -> io::Result<Frame<T>> {
    loop {
        if let Some(frame) = take(buffer)? {
            return Ok(frame);
        }
        let filled = buffer.len();
        // The first messages are short. When much data follows, the buffer grows, and reads with it.
        buffer.resize((filled + READ_MIN).max(buffer.capacity().min(FRAME_MAX)), 0);
        let result = stream.read(buffer.get_mut(filled..).unwrap_or_default());
        buffer.truncate(filled + result.as_ref().copied().unwrap_or_default());
        match result {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut all = message(&Request::Watch { job: "abc".into() });
        all.extend(bytes(false, &vec![7; FRAME_MAX + 1]));
        all.extend(bytes(true, b"oops"));
        let (mut buffer, mut seen) = (Vec::new(), Vec::new());
        for piece in all.chunks(1000) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = take::<Request>(&mut buffer).unwrap() {
                seen.push(match frame {
                    Frame::Message(Request::Watch { job }) => format!("watch {job}"),
                    Frame::Message(_) => "other".into(),
                    Frame::Bytes(bytes) => format!("bytes {}", bytes.len()),
                    Frame::ErrorBytes(bytes) => format!("error {}", bytes.len()),
                });
            }
        }
        assert_eq!(
            seen,
            [
                "watch abc",
                &format!("bytes {FRAME_MAX}"),
                "bytes 1",
                "error 4"
            ]
        );
        assert!(buffer.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &[255, 255, 255, 255, 0][..],
            &[1, 0, 0, 0, 0, b'x'],
            &[0, 0, 0, 0, 9],
        ] {
            assert!(take::<Request>(&mut bad.to_vec()).is_err(), "{bad:?}");
        }
    }
}
