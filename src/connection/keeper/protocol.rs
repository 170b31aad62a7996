//! What a command and a keeper say to each other over the keeper's socket.
//!
//! Frames: four bytes of length (little-endian), one byte that tells raw bytes from JSON, and the content. A connection
//! begins with a greeting from both sides and then serves one purpose: one shell, or the relays, or the status.

use std::io::{self, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of this protocol and of rsig: a keeper of another one is left alone.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/9");

/// The longest content of a frame.
pub const FRAME_MAX: usize = 64 << 10;
/// How much is read at once at first.
const READ: usize = 4 << 10;
/// The bytes before a frame's content.
const HEAD: usize = 5;

/// What a command asks of a keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first message.
    Hello { version: String },
    /// Check a shell out.
    Shell,
    /// The bytes that follow are a script. The shell prints `done` when it is ready for the next one; without it, the
    /// script is its last.
    Script { done: Option<String> },
    /// The whole answer has been read: the shell goes back to the pool once it has printed `done`.
    CheckIn,
    /// Keep a channel for the relay of a job. Each line of the relay begins with `word`, and `script` starts it.
    Relay {
        job: String,
        word: String,
        script: String,
    },
    /// Run a script whose answer nobody reads: it cancels a start that was given up.
    Cancel { script: String },
    /// Send this connection's shell an empty line every so many seconds, whether the command says anything or not.
    Beat { seconds: u64 },
    /// Send a signal by a job's relay.
    Signal { job: String, name: String },
    /// Say when a job ends, by its relay.
    Watch { job: String },
    /// Say how it stands.
    Status,
    /// End it.
    Stop,
}

/// What a keeper says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The first message, and the jobs whose relays are held.
    Hello {
        version: String,
        #[serde(default)]
        jobs: Vec<String>,
        /// How long its host may take to be connected to, in seconds.
        #[serde(default)]
        connect_timeout: u64,
    },
    /// The shell that was checked out has been given the shared functions with this mark.
    Shell { primed: u64, may_hang: bool },
    /// Another command waits for a shell: one that streams should give its own back.
    Wanted,
    /// No shell can be had for now, and nothing was sent.
    Busy,
    /// The shell has ended.
    End,
    /// The shell can't be had, or its connection broke.
    Broken { message: String },
    /// The signal is about to be sent under this number: from now on it may have been.
    Numbered { job: String, number: u32 },
    /// What became of the signal.
    Signalled { job: String, relayed: Relayed },
    /// The job's end will be told.
    Watching { job: String },
    /// The job has ended.
    Ended { job: String, end: End },
    /// No relay of the job is held (any more): its end will not be told.
    NotWatching { job: String },
    /// How the keeper stands.
    Status(Status),
}

/// A job's end, as its relay read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its exit status.
    pub status: u8,
    /// When, by the host's clock, in seconds since 1970.
    pub at: i64,
    /// It ran into its time limit.
    pub timed_out: bool,
}

/// What became of a signal that was to go by a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relayed {
    /// The relay has sent it.
    Sent,
    /// The relay was not permitted to.
    Denied,
    /// No relay of the job is held; nothing was sent.
    NotHeld,
    /// The server did not pass the relay's probe on; nothing was sent.
    NotHonoured,
    /// The relay has missed an answer before, and is not used any more; nothing was sent.
    Retired,
    /// The relay did not answer in time: it may or may not have sent it.
    Unanswered,
}

/// How a keeper stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The host as it was typed.
    pub host: String,
    /// The keeper's process.
    pub pid: u32,
    /// Since when it runs, in seconds since 1970 by this machine's clock.
    pub since: i64,
    /// The jobs whose relays it holds, and whether each takes signals.
    pub relays: Vec<(String, bool)>,
    /// The channels that are open, the relays' among them.
    pub channels: usize,
    /// The commands that it serves at the moment, this one not counted.
    pub commands: usize,
    /// How long it has had nothing to do, in seconds.
    pub idle: u64,
}

/// A frame's content.
#[derive(Debug)]
pub enum Frame<T> {
    /// A message.
    Message(T),
    /// Bytes for a shell, or of its standard output.
    Bytes(Vec<u8>),
    /// Bytes of a shell's standard error.
    ErrorBytes(Vec<u8>),
}

const MESSAGE: u8 = 0;
const BYTES: u8 = 1;
const ERROR_BYTES: u8 = 2;

/// A message as a frame.
pub fn message(content: &impl Serialize) -> Vec<u8> {
    // None of the messages can fail: they hold neither maps nor values that refuse.
    let content = serde_json::to_vec(content).unwrap_or_default();
    [&head(MESSAGE, &content)[..], &content].concat()
}

/// Bytes as frames, as many as it takes.
pub fn bytes(error_stream: bool, content: &[u8]) -> Vec<u8> {
    let mut frames = Vec::with_capacity(content.len() + content.len().div_ceil(FRAME_MAX) * HEAD);
    for chunk in content.chunks(FRAME_MAX) {
        frames.extend_from_slice(&head_of_bytes(error_stream, chunk));
        frames.extend_from_slice(chunk);
    }
    frames
}

/// What stands before bytes of a shell's, which are at most [`FRAME_MAX`].
pub fn head_of_bytes(error_stream: bool, content: &[u8]) -> [u8; HEAD] {
    head(if error_stream { ERROR_BYTES } else { BYTES }, content)
}

fn head(kind: u8, content: &[u8]) -> [u8; HEAD] {
    let [a, b, c, d] = u32::try_from(content.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    [a, b, c, d, kind]
}

/// Takes the first whole frame out of `buffer`; none while it is not whole.
pub fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> io::Result<Option<Frame<T>>> {
    let Some(head) = buffer.get(..HEAD) else {
        return Ok(None);
    };
    let length = head
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let kind = head.get(4).copied();
    if length > FRAME_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some(content) = buffer.get(HEAD..HEAD + length) else {
        return Ok(None);
    };
    let frame = match kind {
        Some(MESSAGE) => Frame::Message(serde_json::from_slice(content)?),
        Some(BYTES) => Frame::Bytes(content.to_vec()),
        Some(ERROR_BYTES) => Frame::ErrorBytes(content.to_vec()),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    buffer.drain(..HEAD + length);
    Ok(Some(frame))
}

/// Reads the next frame from a stream that blocks.
pub fn read<T: DeserializeOwned>(
    stream: &mut impl Read,
    buffer: &mut Vec<u8>,
) -> io::Result<Frame<T>> {
    loop {
        if let Some(frame) = take(buffer)? {
            return Ok(frame);
        }
        let filled = buffer.len();
        // Short messages come first; whoever gets much has a buffer that has grown.
        buffer.resize((filled + READ).max(buffer.capacity().min(FRAME_MAX)), 0);
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
