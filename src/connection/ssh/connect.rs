//! Connects to a destination and authenticates.
//!
//! The steps, in order: configuration, TCP (or a proxy), version lines and key exchange, check of the host key,
//! authentication. A server that refuses the connection before its version line ('Exceeded MaxStartups') is tried at
//! most [`ATTEMPTS_MAX`] times. Nothing else is retried, except for the `ConnectionAttempts` of the configuration.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ssh2::{MethodType, Session};

use super::config::{self, Proxy, Resolved};
use super::environment::{self, Variable};
use super::handshake::{self, HandshakeError};
use super::hostkey::HostKeys;
use super::link::{Clock, Link};
use super::login_record::LoginRecord;
use super::prompt::Prompter;
use super::sources::Answer;
use super::{auth, proxy, query, tcp};
use crate::connection::Policy;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::host::Destination;

/// Maximum number of attempts to connect to a busy server.
const ATTEMPTS_MAX: u32 = 4;
/// Pause before the second attempt. It is doubled for each further one, and extended at random by up to its length.
const BACKOFF: Duration = Duration::from_millis(250);
/// How long a proxy may take to reach the server if no `ConnectTimeout` is set and the proxy may have to ask the user
/// something: sshd's own LoginGraceTime.
const PROXY_LIMIT: Duration = Duration::from_secs(120);

/// What ssh prints, as a proxy, if it can't resolve a name.
const SSH_UNRESOLVED: &str = "ssh: Could not resolve hostname";

fn unreachable(reason: impl Into<String>) -> Failure {
    Failure::new(Kind::Unreachable, reason)
}

/// An authenticated connection with a non-blocking session.
///
/// When it is dropped, the socket is shut down at once and a proxy's process is reaped. Calls on a clone of the session
/// do not wait for the network then.
pub struct Connection {
    link: Link,
    resolved: Resolved,
    environment: Vec<Variable>,
}

impl Connection {
    pub fn session(&self) -> &Session {
        &self.link.session
    }

    /// The configuration in force, for keepalives among others.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// The environment variables that each shell is given.
    pub fn environment(&self) -> &[Variable] {
        &self.environment
    }
}

impl AsFd for Connection {
    /// The connected socket, to poll.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.socket.as_fd()
    }
}

/// Connects to `destination` and authenticates. `answer`: the answer of ssh about the configuration, if it was queried
/// already. `entry`: the file that records how the last login succeeded.
pub fn connect(
    destination: &Destination,
    answer: Option<Answer>,
    entry: Option<&Path>,
    policy: &Policy,
) -> Result<Connection, Failure> {
    establish(destination, answer, entry, policy).map_err(|failure| {
        Failure::new(failure.kind, format!("{destination}: {}", failure.message))
    })
}

fn establish(
    destination: &Destination,
    answer: Option<Answer>,
    entry: Option<&Path>,
    policy: &Policy,
) -> Result<Connection, Failure> {
    let answer = match answer {
        Some(answer) => answer,
        None => query::ask(destination)?.0,
    };
    let (mut config, warnings) = config::resolve(destination, answer)?;
    config.batch_mode |= policy.batch;
    for warning in &warnings {
        (policy.warn)(warning);
    }
    let mut host_keys = HostKeys::read(&config, policy)?;
    let mut link = reach(&config, &host_keys, policy)?;
    (policy.step)(&format!(
        "{destination}: {} ({}, {})",
        printable(link.session.banner_bytes().unwrap_or_default(), 100),
        link.session.methods(MethodType::Kex).unwrap_or("?"),
        link.session.methods(MethodType::HostKey).unwrap_or("?"),
    ));

    let prompter = Prompter {
        batch: config.batch_mode,
    };
    let key = link.session.host_key().map(|(key, _)| key.to_vec());
    let key = key.ok_or_else(|| unreachable("the server gave no host key"))?;
    host_keys.check(&key, prompter)?;
    let last = entry.and_then(LoginRecord::read);
    let authenticated = auth::authenticate(&link, &config, prompter, policy, last.as_ref());
    let authenticated = authenticated.map_err(|mut failure| {
        let ended = link.proxy.as_mut().and_then(proxy::ProxyProcess::ended);
        if let (Kind::Unreachable, Some(status)) = (failure.kind, ended) {
            let more = format!(" (the proxy ended with {status})");
            failure.message.push_str(&more);
        }
        failure
    })?;
    if let Some(file) = entry {
        authenticated.save(file, last.as_ref());
    }
    drop(host_keys);
    Ok(Connection {
        environment: environment::variables(&config),
        link,
        resolved: config,
    })
}

/// Connects up to the end of the key exchange, and retries while the server is busy.
fn reach(config: &Resolved, host_keys: &HostKeys, policy: &Policy) -> Result<Link, Failure> {
    let proxy = config.proxy()?;
    let behind = proxy
        .as_ref()
        .map(|proxy| format!(" behind {}", proxy.name));
    let address = format!(
        "{} port {}{}",
        config.host_name,
        config.port,
        behind.unwrap_or_default()
    );
    let setup = |error: ssh2::Error| {
        let reason = error.message();
        unreachable(format!("can't set up the SSH session: {reason}"))
    };
    let offered = Session::new().map_err(setup)?;
    let offered = offered.supported_algs(MethodType::HostKey).map_err(setup)?;
    let host_keys = host_keys.preferred(&offered)?;
    let mut pause = BACKOFF;
    let mut attempt = 1;
    loop {
        let session = session(&host_keys).map_err(setup)?;
        (policy.step)(&format!(
            "{}: connecting to {address} as {}",
            config.typed, config.user
        ));
        let mut limit = config.connect_timeout();
        let (mut link, deadline) = match &proxy {
            None => {
                let (socket, deadline) = tcp::connect(config, limit)?;
                (Link::new(session, socket, None), deadline)
            }
            Some(proxy) => {
                if config.connect_timeout_set().is_none() && !config.batch_mode {
                    limit = PROXY_LIMIT;
                }
                let (socket, process) = proxy::start(proxy, !config.batch_mode, policy.warn)
                    .map_err(|error| cannot_start(proxy, &error))?;
                (
                    Link::new(session, socket, Some(process)),
                    Instant::now() + limit,
                )
            }
        };
        let result = handshake::run(&link, &Clock::until(deadline), &host_keys);
        if let Some(process) = &mut link.proxy {
            process.take_terminal_back();
        }
        let stop = match result {
            Ok(()) => return Ok(link),
            Err(stop) => stop,
        };
        if let (HandshakeError::Busy(said), true) = (&stop, attempt < ATTEMPTS_MAX) {
            let wait = pause + pause.mul_f64(jitter());
            (policy.step)(&format!(
                "{}: the server is busy ({said}), trying again in {} ms",
                config.typed,
                wait.as_millis()
            ));
            thread::sleep(wait);
            pause *= 2;
            attempt += 1;
            continue;
        }
        let mut reason = format!("{address} {}", stop.reason());
        if let HandshakeError::TimedOut(_) = stop {
            reason.push_str(&format!(" (ConnectTimeout is {} s)", limit.as_secs()));
        }
        let reason = match proxy {
            Some(proxy) => proxy_failed(&proxy, link, &stop).unwrap_or(reason),
            None => reason,
        };
        let kind = if reason.contains(SSH_UNRESOLVED) {
            Kind::Unresolved
        } else {
            Kind::Unreachable
        };
        return Err(Failure::new(kind, reason));
    }
}

fn cannot_start(proxy: &Proxy, error: &std::io::Error) -> Failure {
    unreachable(match error.kind() {
        ErrorKind::NotFound if proxy.program == "ssh" => format!(
            "{} needs an ssh program, which is not found here (a ProxyCommand needs none)",
            proxy.name
        ),
        _ => format!(
            "can't start {} ({}): {error}",
            proxy.name,
            proxy.program.display()
        ),
    })
}

/// The reason for a failed handshake if the proxy has failed.
fn proxy_failed(proxy: &Proxy, mut link: Link, stop: &HandshakeError) -> Option<String> {
    let process = link.proxy.as_mut()?;
    let (status, said) = match stop {
        HandshakeError::Closed(_) => (process.ended()?, process.last_line()),
        // A proxy may give its reason on standard output.
        HandshakeError::NotSsh(said) => (
            process.ended().filter(|status| !status.success())?,
            said.clone(),
        ),
        _ => return None,
    };
    let how = match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    };
    let colon = if said.is_empty() { "" } else { ": " };
    Some(format!(
        "{} failed before it reached the server ({how}){colon}{said}",
        proxy.name
    ))
}

/// A session with our version line and our preferred algorithms.
fn session(host_keys: &str) -> Result<Session, ssh2::Error> {
    let session = Session::new()?;
    // sshd logs the version line, which says nothing about this machine.
    session.set_banner(concat!("SSH-2.0-rsig_", env!("CARGO_PKG_VERSION")))?;
    session.method_pref(MethodType::HostKey, host_keys)?;
    let offered = session.supported_algs(MethodType::CryptSc)?;
    let ciphers = cipher_preference(&offered, has_aes());
    session.method_pref(MethodType::CryptCs, &ciphers)?;
    session.method_pref(MethodType::CryptSc, &ciphers)?;
    Ok(session)
}

/// A random number from 0 to 1, so that clients do not retry all at once. The standard library's hash keys are random,
/// and differ between processes.
fn jitter() -> f64 {
    let bits = RandomState::new().build_hasher().finish() & 0xFFFF;
    f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(0xFFFF_u32)
}

/// The ciphers by preference: AES-GCM first if the processor has instructions for it, as libssh2's own ChaCha20 is
/// slower.
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
        let all: Vec<f64> = (0..1000).map(|_| jitter()).collect();
        assert!(all.iter().all(|chance| (0.0..=1.0).contains(chance)));
        assert!(all.iter().any(|chance| *chance < 0.5) && all.iter().any(|chance| *chance >= 0.5));
    }
}
