//! From a connected socket to an encrypted session: the version lines and the key exchange.
//!
//! RFC 4253 4.2 lets a server send lines before its version line. sshd says there why it turns a
//! client away ('Exceeded MaxStartups', 'Not allowed at this time'), and a server that does not
//! speak SSH gives itself away. libssh2 skips such lines without a bound, so they are read here.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use ssh2::{ErrorCode, Session};

use super::proxy::ProxyProcess;
use super::watchdog::Watchdog;
use crate::escape::printable;

/// More than this before the version line is no SSH server.
const PREAMBLE_MAX: usize = 64 << 10;
/// The longest line that is looked at (RFC 4253 4.2 allows 255 for a version).
const LINE_MAX: usize = 8 << 10;
/// How much of a server's words is shown.
const SHOWN_MAX: usize = 200;
/// LIBSSH2_ERROR_EAGAIN.
pub(super) const EAGAIN: ErrorCode = ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_EAGAIN);

/// Why there is no encrypted session.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The server is there and asks to come back later; its words.
    #[error("takes no more connections for the moment: \"{0}\"")]
    Busy(String),
    /// Something else listens there.
    #[error("answers, but not with SSH: \"{0}\"")]
    NotSsh(String),
    /// SSH 1 only.
    #[error("speaks an SSH that is too old: \"{0}\"")]
    TooOld(String),
    /// End of file.
    #[error("closed the connection {0}")]
    Closed(Stage),
    /// Not done within the time.
    #[error("timed out {0}")]
    TimedOut(Stage),
    /// The lists of algorithms have nothing in common.
    #[error(
        "and we have no algorithm in common for the key exchange, host key, cipher or MAC (`ssh -vv` shows its lists)"
    )]
    NoCommonAlgorithm,
    /// The network or the protocol failed.
    #[error("{0}")]
    Failed(String),
}

/// How far a handshake came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The server has not said its version: nothing tells that it is an SSH server.
    Version,
    /// The version is known.
    KeyExchange,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "before it said its SSH version",
            Self::KeyExchange => "during the key exchange",
        })
    }
}

/// Whether a line before the version line asks to come back later: sshd's words since 6.2
/// (`MaxStartups`) and since 9.8 (`PerSourcePenalties`).
fn asks_to_come_back(line: &str) -> bool {
    line.contains("Exceeded MaxStartups") || line.contains("Not allowed at this time")
}

/// What begins the bytes that a server sent so far.
#[derive(Debug, PartialEq, Eq)]
enum Opening<'a> {
    /// A version line: libssh2's from here on.
    Version,
    /// Too little to tell.
    Undecided,
    /// Text that is none; this much of it can be taken away.
    Other(&'a [u8]),
}

fn opening(bytes: &[u8], at_line_start: bool) -> Opening<'_> {
    let compared = bytes.len().min(4);
    if at_line_start && bytes.get(..compared) == b"SSH-".get(..compared) {
        return if compared == 4 {
            Opening::Version
        } else {
            Opening::Undecided
        };
    }
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(bytes.len(), |at| at + 1);
    Opening::Other(bytes.get(..end).unwrap_or_default())
}

/// Reads, and takes away, all that comes before the version line.
#[derive(Debug, Default)]
struct Preamble {
    /// The line at hand.
    line: Vec<u8>,
    /// The first line that said anything.
    first: Option<String>,
    total: usize,
}

impl Preamble {
    /// Looks at what has come in. `Ok(true)` when the version line is next.
    fn take(&mut self, socket: BorrowedFd) -> Result<bool, HandshakeError> {
        let mut buffer = [0; 1024];
        loop {
            let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_PEEK) {
                Ok(0) | Err(Errno::ECONNRESET | Errno::EPIPE) => return Err(self.closed()),
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
                Err(error) => return Err(HandshakeError::Failed(error.desc().to_owned())),
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            match opening(bytes, self.line.is_empty()) {
                Opening::Version => return check_version(bytes).map(|()| true),
                Opening::Undecided => {
                    // The rest of four bytes: not worth more than a short sleep.
                    std::thread::sleep(Duration::from_millis(5));
                    return Ok(false);
                }
                Opening::Other(text) => {
                    let taken = text.len();
                    self.add(text)?;
                    recv(
                        socket.as_raw_fd(),
                        buffer.get_mut(..taken).unwrap_or_default(),
                        MsgFlags::empty(),
                    )
                    .map_err(|error| HandshakeError::Failed(error.desc().to_owned()))?;
                }
            }
        }
    }

    fn add(&mut self, text: &[u8]) -> Result<(), HandshakeError> {
        self.total += text.len();
        self.line.extend_from_slice(text);
        // RFC 4253 4.2: no null character before the key exchange.
        if self.total > PREAMBLE_MAX || self.line.len() > LINE_MAX || self.line.contains(&0) {
            return Err(HandshakeError::NotSsh(self.said().unwrap_or_default()));
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
        if asks_to_come_back(&line) {
            return Err(HandshakeError::Busy(line));
        }
        if self.first.is_none() && !line.is_empty() {
            self.first = Some(line);
        }
        Ok(())
    }

    /// The first words of the server.
    fn said(&self) -> Option<String> {
        let line = self.line.trim_ascii();
        self.first
            .clone()
            .or_else(|| (!line.is_empty()).then(|| printable(line, SHOWN_MAX)))
    }

    fn closed(&mut self) -> HandshakeError {
        // The last line may lack its end.
        if let Err(busy) = self.end_line() {
            return busy;
        }
        self.first.take().map_or(
            HandshakeError::Closed(Stage::Version),
            HandshakeError::NotSsh,
        )
    }
}

/// Refuses a server that speaks SSH 1 alone (RFC 4253 5.1: 1.99 is both).
fn check_version(bytes: &[u8]) -> Result<(), HandshakeError> {
    let end = bytes
        .iter()
        .position(|byte| matches!(byte, b'\r' | b'\n'))
        .unwrap_or(bytes.len());
    let line = bytes.get(..end).unwrap_or_default();
    // A version line may come in pieces; libssh2 reads it then.
    if line.len() < b"SSH-1.99".len()
        || line.starts_with(b"SSH-2.")
        || line.starts_with(b"SSH-1.99")
    {
        return Ok(());
    }
    Err(HandshakeError::TooOld(printable(line, SHOWN_MAX)))
}

/// A descriptor that libssh2 may use and does not own.
struct Borrowed(RawFd);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// Sends our version line over the connected `socket`, before anything is read from it, and gives
/// back the descriptor under which `session` knows the socket from then on.
///
/// Waiting for the server's line first would cost a round trip. libssh2 sends ours and reads theirs
/// in one call, with no bound on what may come before it; so that call is made with a socket pair
/// in place of the connection, which is put in its place afterwards.
#[allow(
    clippy::needless_pass_by_value,
    reason = "this descriptor of the socket is closed: another takes its place"
)]
pub(super) fn say_version(
    session: &mut Session,
    socket: OwnedFd,
) -> Result<OwnedFd, HandshakeError> {
    let io_failed = |error: io::Error| HandshakeError::Failed(error.to_string());
    let (inner, mut outer) = UnixStream::pair().map_err(io_failed)?;
    outer.set_nonblocking(true).map_err(io_failed)?;
    inner.set_nonblocking(true).map_err(io_failed)?;
    let mut inner = OwnedFd::from(inner);
    session.set_blocking(false);
    session.set_tcp_stream(Borrowed(inner.as_raw_fd()));
    match session.handshake() {
        Err(error) if error.code() == EAGAIN => {}
        Err(error) => return Err(HandshakeError::Failed(error.message().to_owned())),
        Ok(()) => {
            return Err(HandshakeError::Failed(
                "the handshake ended before it began".to_owned(),
            ));
        }
    }
    let mut line = [0; LINE_MAX];
    let length = outer.read(&mut line).map_err(io_failed)?;
    // A fresh connection has room for a line. A server that has hung up already has left its reason
    // to be read.
    let _ = nix::unistd::write(&socket, line.get(..length).unwrap_or_default());
    nix::unistd::dup2(&socket, &mut inner).map_err(|error| io_failed(error.into()))?;
    fcntl(&inner, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|error| io_failed(error.into()))?;
    Ok(inner)
}

/// Brings `session`, which has said its version over the non-blocking `socket`, to an encrypted
/// state, and leaves it blocking.
/// The watchdog is armed by the caller; `say` gets the lines of a proxy's standard error.
pub(super) fn handshake(
    session: &mut Session,
    socket: BorrowedFd,
    watchdog: &Watchdog,
    proxy: Option<&mut ProxyProcess>,
    say: &dyn Fn(&[u8]),
) -> Result<(), HandshakeError> {
    let mut stage = Stage::Version;
    exchange(session, socket, watchdog, proxy, say, &mut stage).map_err(|error| match error {
        // With the socket shut, nothing that went wrong after it means anything.
        _ if watchdog.fired() => HandshakeError::TimedOut(stage),
        error => error,
    })
}

fn exchange(
    session: &mut Session,
    socket: BorrowedFd,
    watchdog: &Watchdog,
    mut proxy: Option<&mut ProxyProcess>,
    say: &dyn Fn(&[u8]),
    stage: &mut Stage,
) -> Result<(), HandshakeError> {
    let mut preamble = Preamble::default();
    while !preamble.take(socket)? {
        // Half a word can still be looked at when the socket is shut.
        if watchdog.fired() {
            return Err(HandshakeError::Closed(*stage));
        }
        wait_for(socket, PollFlags::POLLIN, proxy.as_deref_mut(), say)?;
    }
    *stage = Stage::KeyExchange;
    loop {
        match session.handshake() {
            Ok(()) => break,
            Err(error) if error.code() == EAGAIN => {
                let flags = match session.block_directions() {
                    ssh2::BlockDirections::Outbound => PollFlags::POLLOUT,
                    ssh2::BlockDirections::Both => PollFlags::POLLIN | PollFlags::POLLOUT,
                    _ => PollFlags::POLLIN,
                };
                wait_for(socket, flags, proxy.as_deref_mut(), say)?;
            }
            Err(error) => return Err(failed(&error)),
        }
    }
    session.set_blocking(true);
    Ok(())
}

/// Waits until the socket is ready (also: shut by the watchdog) and passes on what a proxy says.
fn wait_for(
    socket: BorrowedFd,
    flags: PollFlags,
    mut proxy: Option<&mut ProxyProcess>,
    say: &dyn Fn(&[u8]),
) -> Result<(), HandshakeError> {
    let slice = if proxy.is_some() {
        PollTimeout::from(50_u8)
    } else {
        PollTimeout::NONE
    };
    loop {
        let ready = poll(&mut [PollFd::new(socket, flags)], slice);
        if let Some(proxy) = proxy.as_deref_mut() {
            proxy.lines().iter().for_each(|line| say(line));
        }
        match ready {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(HandshakeError::Failed(error.desc().to_owned())),
        }
    }
}

/// What an error of libssh2's handshake means.
fn failed(error: &ssh2::Error) -> HandshakeError {
    let ErrorCode::Session(code) = error.code() else {
        return HandshakeError::Failed(error.message().to_owned());
    };
    match code {
        libssh2_sys::LIBSSH2_ERROR_SOCKET_DISCONNECT
        | libssh2_sys::LIBSSH2_ERROR_SOCKET_RECV
        | libssh2_sys::LIBSSH2_ERROR_SOCKET_SEND => HandshakeError::Closed(Stage::KeyExchange),
        libssh2_sys::LIBSSH2_ERROR_KEX_FAILURE | libssh2_sys::LIBSSH2_ERROR_METHOD_NONE => {
            HandshakeError::NoCommonAlgorithm
        }
        _ => HandshakeError::Failed(format!(
            "the SSH handshake failed: {} ({code})",
            error.message()
        )),
    }
}
