//! From a destination to an authenticated connection.
//!
//! The steps, in order: configuration, TCP (or a proxy), version lines and key exchange, the check
//! of the host key, authentication. A server that turns us away before its version line ('Exceeded
//! MaxStartups') is asked again, at most [`ATTEMPTS`] times in all; nothing else is tried twice.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use ssh2::{MethodType, Session};

use super::auth::{self, AuthError};
use super::config::{self, Proxy, Resolved};
use super::handshake::{self, HandshakeError};
use super::hostkey::HostKeys;
use super::prompt::{PromptError, Prompter, Secret};
use super::proxy::{self, ProxyProcess};
use super::tcp;
use super::watchdog::Watchdog;
use crate::connection::Policy;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::host::Destination;

/// How often a busy server is asked: the first time and three more.
const ATTEMPTS: u32 = 4;
/// The wait before the second attempt; doubled for each further one, and up to as much again by chance.
const BACKOFF: Duration = Duration::from_millis(250);
/// How long a proxy may take to reach the server where no `ConnectTimeout` is set and the proxy
/// may have to ask the user something: sshd's own LoginGraceTime.
const PROXY_PATIENCE: Duration = Duration::from_secs(120);

/// An authenticated connection. The session is blocking and has no time-out of its own.
///
/// Ended when dropped: the socket is shut at once and a proxy's process is reaped. A clone of the
/// session that outlives it gets errors, and no call on it waits for the network.
pub struct Connection {
    session: Session,
    socket: Arc<Socket>,
    proxy: Option<ProxyProcess>,
    resolved: Resolved,
}

impl Connection {
    /// The session; authenticated and blocking.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The configuration in force, for keepalives among others.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }
}

/// Ends the connection without waiting for the network. An SSH disconnect message is not sent: the end of the socket says
/// the same to every server.
impl Drop for Connection {
    fn drop(&mut self) {
        // First, so that freeing the session can't wait for the other side.
        self.socket.shut();
        if let Some(mut proxy) = self.proxy.take() {
            proxy.end();
        }
    }
}

impl AsFd for Connection {
    /// The connected socket, to poll.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.0.as_fd()
    }
}

/// The socket, shared by the session and its [`Connection`].
struct Socket(OwnedFd);

impl Socket {
    fn shut(&self) {
        // ENOTCONN when the other side was first.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

/// What libssh2 holds on to.
struct SocketHandle(Arc<Socket>);

impl AsRawFd for SocketHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// Connects to `destination` and authenticates.
pub fn connect(destination: &Destination, policy: &Policy) -> Result<Connection, Failure> {
    let name = destination.to_string();
    let failed =
        |kind, reason: &dyn std::fmt::Display| Failure::new(kind, format!("{name}: {reason}"));
    let unreachable = |reason: &dyn std::fmt::Display| failed(Kind::Unreachable, reason);
    let mut resolved = config::resolve(destination).map_err(|error| unreachable(&error))?;
    if policy.batch {
        resolved.set_batch();
    }
    for warning in &resolved.warnings {
        (policy.warn)(warning);
    }
    let refused = |failure: Failure| failed(failure.kind, &failure.message);
    let host_keys = HostKeys::read(&resolved, policy).map_err(refused)?;
    let mut raw = reach(&resolved, &host_keys, policy).map_err(|error| unreachable(&error))?;
    (policy.step)(&format!(
        "{name}: {} ({}, {})",
        printable(raw.session.banner_bytes().unwrap_or_default(), 100),
        raw.session.methods(MethodType::Kex).unwrap_or("?"),
        raw.session.methods(MethodType::HostKey).unwrap_or("?"),
    ));

    let (mut nobody, mut user) = (super::prompt::Nobody, super::prompt::User);
    let asked: &mut dyn Prompter = if resolved.batch_mode {
        &mut nobody
    } else {
        &mut user
    };
    let Some(key) = raw.session.host_key().map(|(key, _)| key.to_vec()) else {
        return Err(unreachable(&"the server gave no host key"));
    };
    host_keys.check(&key, asked).map_err(refused)?;
    drop(host_keys);

    let mut asked = ClockStopped {
        prompter: asked,
        watchdog: &raw.watchdog,
    };
    match auth::authenticate(&raw.session, &raw.watchdog, &resolved, &mut asked, policy) {
        Ok(()) => {}
        Err(AuthError::Refused(reason)) => {
            return Err(failed(Kind::Auth, &reason));
        }
        Err(AuthError::Lost(reason)) => {
            let ended = raw.proxy.as_mut().and_then(ProxyProcess::ended);
            let reason = match ended {
                Some(status) => format!("{reason} (the proxy ended with {status})"),
                None => reason,
            };
            return Err(unreachable(&reason));
        }
    }
    let Raw {
        session,
        socket,
        proxy,
        watchdog,
    } = raw;
    drop(watchdog);
    // Whoever uses it does so without blocking, and looks at the time between two calls.
    crate::sys::inflow::bound(&session);
    Ok(Connection {
        session,
        socket,
        proxy,
        resolved,
    })
}

/// A prompter during whose questions no limit runs out.
struct ClockStopped<'a> {
    prompter: &'a mut dyn Prompter,
    watchdog: &'a Watchdog,
}

impl Prompter for ClockStopped<'_> {
    fn available(&self) -> Result<(), PromptError> {
        self.prompter.available()
    }

    fn secret(&mut self, question: &str) -> Result<Secret, PromptError> {
        self.watchdog.paused(|| self.prompter.secret(question))
    }

    fn line(&mut self, question: &str) -> Result<String, PromptError> {
        self.watchdog.paused(|| self.prompter.line(question))
    }
}

/// An encrypted connection whose other side is not known yet. Field order: the session goes first.
struct Raw {
    session: Session,
    watchdog: Watchdog,
    socket: Arc<Socket>,
    proxy: Option<ProxyProcess>,
}

/// Why no encrypted connection came about.
#[derive(Debug, thiserror::Error)]
enum ReachError {
    #[error("{0}")]
    Tcp(#[from] tcp::TcpError),
    #[error("{address} {error}")]
    Handshake {
        address: String,
        error: HandshakeError,
    },
    #[error("{address} {error} (ConnectTimeout is {} s)", .limit.as_secs())]
    TimedOut {
        address: String,
        error: HandshakeError,
        limit: Duration,
    },
    #[error("{what} {how}{}", .said.as_ref().map(|said| format!(": {said}")).unwrap_or_default())]
    Proxy {
        what: String,
        how: String,
        said: Option<String>,
    },
    #[error("there is no ssh program here, and ProxyJump {0} needs one (or a ProxyCommand)")]
    NoSshForJump(String),
    #[error("can't set up the connection: {0}")]
    Setup(#[from] io::Error),
    #[error("can't set up the SSH session: {0}")]
    Session(#[from] ssh2::Error),
}

/// Connects up to the end of the key exchange, with patience for a server that is busy.
fn reach(resolved: &Resolved, host_keys: &HostKeys, policy: &Policy) -> Result<Raw, ReachError> {
    let mut wait = BACKOFF;
    let mut attempt = 1;
    loop {
        match reach_once(resolved, host_keys, policy) {
            Err(ReachError::Handshake {
                error: HandshakeError::Busy(said),
                ..
            }) if attempt < ATTEMPTS => {
                let pause = wait + wait.mul_f64(chance());
                (policy.step)(&format!(
                    "{}: the server is busy ({said}), trying again in {} ms",
                    resolved.typed,
                    pause.as_millis()
                ));
                thread::sleep(pause);
                wait *= 2;
                attempt += 1;
            }
            other => return other,
        }
    }
}

/// A number from 0 to 1 that differs between processes. (The standard library's hash keys are
/// random; that is enough to keep clients from coming back all at once.)
fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish() & 0xFFFF;
    f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(0xFFFF_u32)
}

fn reach_once(
    resolved: &Resolved,
    host_keys: &HostKeys,
    policy: &Policy,
) -> Result<Raw, ReachError> {
    let address = address(resolved);
    let mut limit = resolved.connect_timeout();
    if resolved.proxy.is_some() && resolved.connect_timeout_set.is_none() && !resolved.batch_mode {
        limit = PROXY_PATIENCE;
    }
    let deadline = Instant::now() + limit;
    (policy.step)(&format!(
        "{}: connecting to {address} as {}",
        resolved.typed, resolved.user
    ));
    let (socket, mut proxy) = open(resolved, deadline)?;
    let mut session = Session::new()?;
    // sshd logs it, and it says nothing about the machine.
    session.set_banner(concat!("SSH-2.0-rsig_", env!("CARGO_PKG_VERSION")))?;
    let offered = session.supported_algs(MethodType::HostKey)?;
    session.method_pref(MethodType::HostKey, &host_keys.preferred(&offered))?;
    let offered = session.supported_algs(MethodType::CryptSc)?;
    let ciphers = cipher_preference(&offered, has_aes());
    session.method_pref(MethodType::CryptCs, &ciphers)?;
    session.method_pref(MethodType::CryptSc, &ciphers)?;
    let failed = |error| ReachError::Handshake {
        address: address.clone(),
        error,
    };
    let socket = Arc::new(Socket(
        handshake::say_version(&mut session, socket).map_err(failed)?,
    ));
    session.set_tcp_stream(SocketHandle(Arc::clone(&socket)));
    let watchdog = Watchdog::new(socket.0.try_clone()?)?;
    watchdog.arm(deadline.saturating_duration_since(Instant::now()));

    let say = |line: &[u8]| (policy.warn)(&printable(line, 300));
    let result = handshake::handshake(
        &mut session,
        socket.0.as_fd(),
        &watchdog,
        proxy.as_mut(),
        &say,
    );
    watchdog.disarm();
    if let Err(error) = result {
        socket.shut();
        return Err(match proxy.take() {
            _ if matches!(error, HandshakeError::TimedOut(_)) => ReachError::TimedOut {
                address,
                error,
                limit,
            },
            Some(proxy) => proxy_error(resolved, proxy, error),
            None => ReachError::Handshake { address, error },
        });
    }
    Ok(Raw {
        session,
        watchdog,
        socket,
        proxy,
    })
}

fn proxy_name(resolved: &Resolved) -> Option<String> {
    resolved.proxy.as_ref().map(|proxy| match proxy {
        Proxy::Jump { jump, .. } => format!("the jump host {jump}"),
        Proxy::Command(_) => "the ProxyCommand".to_owned(),
    })
}

/// Where the connection goes, for messages.
fn address(resolved: &Resolved) -> String {
    let behind = proxy_name(resolved)
        .map(|proxy| format!(" behind {proxy}"))
        .unwrap_or_default();
    format!("{} port {}{behind}", resolved.host_name, resolved.port)
}

/// The socket, not blocking, and the process behind it if there is one.
fn open(
    resolved: &Resolved,
    deadline: Instant,
) -> Result<(OwnedFd, Option<ProxyProcess>), ReachError> {
    let Some(proxy) = &resolved.proxy else {
        let stream = tcp::connect(
            &resolved.host_name,
            resolved.port,
            resolved.address_family,
            deadline,
        )?;
        return Ok((tcp_socket(stream, resolved)?, None));
    };
    let (stream, process) =
        proxy::start(proxy, resolved.batch_mode).map_err(|error| match proxy {
            Proxy::Jump { jump, .. } if error.kind() == io::ErrorKind::NotFound => {
                ReachError::NoSshForJump(jump.clone())
            }
            _ => ReachError::Setup(error),
        })?;
    Ok((unix_socket(stream)?, Some(process)))
}

fn tcp_socket(stream: TcpStream, resolved: &Resolved) -> io::Result<OwnedFd> {
    stream.set_nonblocking(true)?;
    setsockopt(&stream, sockopt::KeepAlive, &resolved.tcp_keep_alive)?;
    Ok(stream.into())
}

fn unix_socket(stream: UnixStream) -> io::Result<OwnedFd> {
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

/// What a failed handshake means behind a proxy: whether the proxy itself has failed.
fn proxy_error(resolved: &Resolved, mut proxy: ProxyProcess, error: HandshakeError) -> ReachError {
    let address = address(resolved);
    let ended = match error {
        HandshakeError::Closed(_) => proxy.ended(),
        // A proxy may give its reason on standard output.
        HandshakeError::NotSsh(_) => proxy.ended().filter(|status| !status.success()),
        _ => None,
    };
    let Some(status) = ended else {
        return ReachError::Handshake { address, error };
    };
    let what = proxy_name(resolved).unwrap_or_default();
    let said = match error {
        HandshakeError::NotSsh(said) => Some(said),
        _ => proxy.last_line().map(|line| printable(line, 300)),
    };
    let how = match status.code() {
        Some(code) => format!("failed before it reached the server (exit status {code})"),
        None => format!("failed before it reached the server ({status})"),
    };
    ReachError::Proxy { what, how, said }
}

/// The ciphers to ask for: AES-GCM first where the processor computes it itself, as libssh2's own ChaCha20 is slower.
fn cipher_preference(offered: &[&str], aes: bool) -> String {
    let (first, rest): (Vec<&str>, Vec<&str>) = offered
        .iter()
        .partition(|name| aes && name.contains("-gcm@"));
    [first, rest].concat().join(",")
}

/// Whether the processor has instructions for AES-GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gcm_comes_first_where_the_processor_has_aes() {
        let offered = [
            "chacha20-poly1305@openssh.com",
            "aes256-gcm@openssh.com",
            "aes128-gcm@openssh.com",
            "aes256-ctr",
        ];
        let gcm_first = "aes256-gcm@openssh.com,aes128-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr";
        assert_eq!(cipher_preference(&offered, true), gcm_first);
        assert_eq!(cipher_preference(&offered, false), offered.join(","));
    }

    #[test]
    fn chance_is_between_0_and_1() {
        assert!((0..1000).all(|_| (0.0..=1.0).contains(&chance())));
    }
}
