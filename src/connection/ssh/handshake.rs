//! Turns a connected socket into an encrypted session: the version lines and the key exchange.
//!
//! RFC 4253 4.2 lets a server send lines before its version line. There sshd says why it refuses a client ('Exceeded
//! MaxStartups', 'Not allowed at this time'), and a server that does not speak SSH shows what it is. libssh2 skips any
//! number of such lines, so they are read here.

use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv};
use ssh2::{Error, ErrorCode, MethodType, Session};

use super::key::Fields;
use super::link::{Clock, Link, TIMEOUT};
use crate::escape::printable;
use crate::sys::socket_callbacks;

/// A server that sends more than this before its version line is not an SSH server.
const MAX_PREAMBLE_BYTES: usize = 64 << 10;
/// The longest line that is examined (RFC 4253 4.2 allows 255 for a version).
const MAX_LINE_BYTES: usize = 8 << 10;
/// How much of a server's text is shown.
const SHOWN_MAX: usize = 200;

/// Why there is no encrypted session.
#[derive(Debug)]
pub(super) enum HandshakeError {
    /// The server asks the client to come back later; its message.
    Busy(String),
    /// Something other than SSH listens there; its message.
    NotSsh(String),
    /// End of file, and when.
    Closed(&'static str),
    TimedOut(&'static str),
    /// What the server does, as a sentence without its subject.
    Other(String),
}

impl HandshakeError {
    /// What the server does, as a sentence without its subject.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Busy(said) => format!("is refusing new connections: \"{said}\""),
            Self::NotSsh(said) => format!("answers, but not with SSH: \"{said}\""),
            Self::Closed(when) => format!("closed the connection {when}"),
            Self::TimedOut(when) => format!("timed out {when}"),
            Self::Other(reason) => reason.clone(),
        }
    }
}

const BEFORE_VERSION: &str = "before it said its SSH version";
const IN_KEY_EXCHANGE: &str = "during the key exchange";

/// Runs the handshake until the session is encrypted. `host_keys` are the host key algorithms to request.
pub(super) fn run(link: &Link, clock: &Clock, host_keys: &str) -> Result<(), HandshakeError> {
    socket_callbacks::install(&link.session);
    // Sends our version line at once, as waiting for the server's would cost a round trip. Reads nothing yet.
    socket_callbacks::block_reads();
    let mut session = link.session.clone();
    match session.handshake() {
        Err(error) if error.code() != ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_EAGAIN) => {
            return Err(failed(&error, BEFORE_VERSION));
        }
        _ => {}
    }
    let mut preamble = Preamble::default();
    while !preamble.consume(link)? {
        link.wait(PollFlags::POLLIN, clock)
            .map_err(|error| failed(&error, BEFORE_VERSION))?;
    }
    socket_callbacks::record();
    socket_callbacks::renew();
    let result = link.drive(clock, Session::handshake);
    let recorded = socket_callbacks::recorded();
    result.map_err(|error| match error.code() {
        ErrorCode::Session(
            libssh2_sys::LIBSSH2_ERROR_KEX_FAILURE | libssh2_sys::LIBSSH2_ERROR_METHOD_NONE,
        ) => HandshakeError::Other(
            algorithm_mismatch(&session, &recorded, host_keys).unwrap_or_else(|| {
                "and rsig have no algorithm in common (`ssh -vv` shows its lists)".to_owned()
            }),
        ),
        _ => failed(&error, IN_KEY_EXCHANGE),
    })
}

/// What an error of libssh2's handshake means.
fn failed(error: &Error, when: &'static str) -> HandshakeError {
    match error.code() {
        TIMEOUT => HandshakeError::TimedOut(when),
        ErrorCode::Session(
            libssh2_sys::LIBSSH2_ERROR_SOCKET_DISCONNECT
            | libssh2_sys::LIBSSH2_ERROR_SOCKET_RECV
            | libssh2_sys::LIBSSH2_ERROR_SOCKET_SEND,
        ) => HandshakeError::Closed(when),
        _ => HandshakeError::Other(format!("broke the SSH handshake: {}", error.message())),
    }
}

/// Names the kind of algorithm for which the two lists have no common entry, and what the server offers. `recorded`
/// begins with the server's version line, which is followed by its KEXINIT (RFC 4253 7.1) in the clear.
fn algorithm_mismatch(session: &Session, recorded: &[u8], host_keys: &str) -> Option<String> {
    let line = recorded.iter().position(|byte| *byte == b'\n')?;
    // Packet length, padding length, message number and cookie.
    let mut lists = Fields(recorded.get(line + 1 + 4 + 1 + 1 + 16..)?);
    for (what, method) in [
        ("key exchange method", MethodType::Kex),
        ("host key algorithm", MethodType::HostKey),
        ("cipher", MethodType::CryptCs),
        ("cipher", MethodType::CryptSc),
        ("MAC", MethodType::MacCs),
        ("MAC", MethodType::MacSc),
    ] {
        let theirs = String::from_utf8_lossy(lists.string()?).into_owned();
        let ours = match method {
            MethodType::HostKey => host_keys.split(',').collect(),
            method => session.supported_algs(method).ok()?,
        };
        if !theirs.split(',').any(|name| ours.contains(&name)) {
            let offered = printable(&theirs, 1000);
            return Some(format!(
                "and rsig have no {what} in common: the server offers {offered}"
            ));
        }
    }
    None
}

/// Whether a line before the version line asks the client to come back later: sshd's messages since 6.2 (`MaxStartups`)
/// and since 9.8 (`PerSourcePenalties`).
fn is_busy_message(line: &str) -> bool {
    line.contains("Exceeded MaxStartups") || line.contains("Not allowed at this time")
}

/// Reads and removes everything before the version line.
#[derive(Debug, Default)]
pub(super) struct Preamble {
    /// The current line.
    line: Vec<u8>,
    /// The first line that was not empty.
    first: Option<String>,
    total: usize,
}

impl Preamble {
    /// Processes what has arrived. `Ok(true)` when the version line is next.
    fn consume(&mut self, link: &Link) -> Result<bool, HandshakeError> {
        let socket = link.socket.as_raw_fd();
        let mut buffer = [0; 1024];
        loop {
            let length = match recv(socket, &mut buffer, MsgFlags::MSG_PEEK) {
                Ok(0) | Err(Errno::ECONNRESET | Errno::EPIPE) => return Err(self.closed()),
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
                Err(error) => {
                    return Err(HandshakeError::Other(format!("failed: {}", error.desc())));
                }
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            if self.line.is_empty() {
                if bytes.starts_with(b"SSH-") {
                    return check_version(bytes).map(|()| true);
                }
                if b"SSH-".starts_with(bytes) {
                    // Fewer than four bytes have arrived. They stay in the socket, so poll(2) would return at once:
                    // sleep instead.
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    return Ok(false);
                }
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(bytes.len(), |at| at + 1);
            self.add(bytes.get(..taken).unwrap_or_default())?;
            let taken = buffer.get_mut(..taken).unwrap_or_default();
            recv(socket, taken, MsgFlags::empty())
                .map_err(|error| HandshakeError::Other(format!("failed: {}", error.desc())))?;
        }
    }

    pub(super) fn add(&mut self, text: &[u8]) -> Result<(), HandshakeError> {
        self.total += text.len();
        self.line.extend_from_slice(text);
        let too_long = self.total > MAX_PREAMBLE_BYTES || self.line.len() > MAX_LINE_BYTES;
        // RFC 4253 4.2: no null character before the key exchange.
        if too_long || self.line.contains(&0) {
            let line = printable(self.line.trim_ascii(), SHOWN_MAX);
            return Err(HandshakeError::NotSsh(self.first.take().unwrap_or(line)));
        }
        if self.line.ends_with(b"\n") {
            self.end_line()
        } else {
            Ok(())
        }
    }

    fn end_line(&mut self) -> Result<(), HandshakeError> {
        let line = printable(self.line.trim_ascii(), SHOWN_MAX);
        self.line.clear();
        if is_busy_message(&line) {
            return Err(HandshakeError::Busy(line));
        }
        if self.first.is_none() && !line.is_empty() {
            self.first = Some(line);
        }
        Ok(())
    }

    pub(super) fn closed(&mut self) -> HandshakeError {
        // The last line may lack its newline.
        if let Err(busy) = self.end_line() {
            return busy;
        }
        let first = self.first.take();
        first.map_or(
            HandshakeError::Closed(BEFORE_VERSION),
            HandshakeError::NotSsh,
        )
    }
}

/// Refuses a server that speaks only SSH 1 (RFC 4253 5.1: 1.99 means both).
fn check_version(bytes: &[u8]) -> Result<(), HandshakeError> {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next();
    let line = line.unwrap_or_default();
    // The version line may not be complete yet; then libssh2 checks it.
    if line.len() < b"SSH-1.99".len()
        || line.starts_with(b"SSH-2.")
        || line.starts_with(b"SSH-1.99")
    {
        return Ok(());
    }
    let said = printable(line, SHOWN_MAX);
    Err(HandshakeError::Other(format!(
        "speaks an SSH version that is too old: \"{said}\""
    )))
}
