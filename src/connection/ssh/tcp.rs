//! A TCP connection to any of a name's addresses within one deadline, according to `AddressFamily`, `BindAddress`,
//! `BindInterface`, `ConnectionAttempts` and `TCPKeepAlive`.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use super::config::Resolved;
use crate::connection::wait;
use crate::error::{Failure, Kind, no_thread};

/// The head start of one address over the next (RFC 8305 8).
const STAGGER: Duration = Duration::from_millis(250);
const MAX_ADDRESSES: usize = 16;
/// Pause between two `ConnectionAttempts`, as in ssh.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

fn unreachable(why: impl Into<String>) -> Failure {
    Failure::new(Kind::Unreachable, why)
}

fn unresolved(why: String) -> Failure {
    Failure::new(Kind::Unresolved, why)
}

/// Connects to the first address that answers. Returns the non-blocking socket and the deadline by which the server
/// must be ready. An error is a sentence about the address that was tried last.
pub(super) fn connect(config: &Resolved, limit: Duration) -> Result<(OwnedFd, Instant), Failure> {
    let mut attempts = config.number("connectionattempts", 1).max(1);
    loop {
        let deadline = Instant::now() + limit;
        attempts -= 1;
        match attempt(config, deadline) {
            Err(_) if attempts > 0 => thread::sleep(RETRY_PAUSE),
            result => return result.map(|socket| (socket, deadline)),
        }
    }
}

fn attempt(config: &Resolved, deadline: Instant) -> Result<OwnedFd, Failure> {
    let (wanted, missing): (fn(&SocketAddr) -> bool, _) = match config.text("addressfamily") {
        Some("inet") => (SocketAddr::is_ipv4, "IPv4 address"),
        Some("inet6") => (SocketAddr::is_ipv6, "IPv6 address"),
        _ => (|_| true, "address"),
    };
    let mut addresses = look_up(&config.host_name, config.port, deadline)?;
    addresses.retain(wanted);
    if addresses.is_empty() {
        return Err(unresolved(format!("the name has no {missing}")));
    }
    let sources = sources(config, deadline)?;
    if let Some(sources) = &sources {
        addresses.retain(|to| sources.iter().any(|from| from.is_ipv4() == to.is_ipv4()));
        if addresses.is_empty() {
            let why = "no address of the host fits BindAddress or BindInterface";
            return Err(unreachable(why));
        }
    }
    let sources = sources.as_deref().unwrap_or_default();
    let socket = race(&addresses, sources, deadline).map_err(unreachable)?;
    let keep_alive = config.is_on("tcpkeepalive", true);
    socket::setsockopt(&socket, sockopt::TcpNoDelay, &true)
        .and_then(|()| socket::setsockopt(&socket, sockopt::KeepAlive, &keep_alive))
        .map_err(|error| unreachable(format!("can't set up the socket: {}", error.desc())))?;
    Ok(socket)
}

/// The name's addresses. getaddrinfo(3) has no timeout, so it runs in a thread that is left behind if it takes too
/// long.
fn look_up(name: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = name.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = mpsc::channel();
    let target = (name.to_owned(), port);
    let look_up = move || {
        let found = target.to_socket_addrs();
        // The receiver is dropped at a timeout, so a failed send is harmless.
        drop(sender.send(found.map(|found| found.take(MAX_ADDRESSES).collect())));
    };
    thread::Builder::new()
        .spawn(look_up)
        .map_err(|error| unreachable(no_thread(&error).message))?;
    receiver
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .map_err(|_| unreachable("resolving the name took too long"))?
        .map_err(|error| unresolved(format!("the name can't be resolved: {error}")))
}

/// The addresses to connect from: `BindAddress`, else those of `BindInterface`.
fn sources(config: &Resolved, deadline: Instant) -> Result<Option<Vec<SocketAddr>>, Failure> {
    if let Some(address) = config.text("bindaddress") {
        let found = look_up(address, 0, deadline);
        return found
            .map(Some)
            .map_err(|reason| unreachable(format!("BindAddress {address}: {reason}")));
    }
    let Some(interface) = config.text("bindinterface") else {
        return Ok(None);
    };
    let ip = |address: SockaddrStorage| -> Option<SocketAddr> {
        if let Some(v4) = address.as_sockaddr_in() {
            return Some(SocketAddrV4::new(v4.ip(), 0).into());
        }
        let v6 = address.as_sockaddr_in6()?;
        Some(SocketAddrV6::new(v6.ip(), 0, 0, v6.scope_id()).into())
    };
    let all = nix::ifaddrs::getifaddrs().map_err(|error| {
        unreachable(format!(
            "can't list the network interfaces: {}",
            error.desc()
        ))
    })?;
    let found: Vec<SocketAddr> = all
        .filter(|one| one.interface_name == interface)
        .filter_map(|one| ip(one.address?))
        .collect();
    if found.is_empty() {
        return Err(unreachable(format!(
            "BindInterface {interface} has no address"
        )));
    }
    Ok(Some(found))
}

fn race(
    addresses: &[SocketAddr],
    sources: &[SocketAddr],
    deadline: Instant,
) -> Result<OwnedFd, String> {
    let mut waiting = addresses.iter();
    let mut open: Vec<(SocketAddr, OwnedFd)> = Vec::new();
    let mut last_error = None;
    loop {
        let mut until = deadline;
        if let Some(address) = waiting.next() {
            match start(*address, sources) {
                Ok(socket) => open.push((*address, socket)),
                Err(error) => {
                    last_error = Some(describe(*address, error));
                    continue;
                }
            }
            if waiting.len() > 0 {
                until = deadline.min(Instant::now() + STAGGER);
            }
        } else if open.is_empty() {
            return Err(last_error.unwrap_or_else(|| "the name has no address".to_owned()));
        }
        let mut polled: Vec<PollFd> = open
            .iter()
            .map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLOUT))
            .collect();
        wait(&mut polled, until).map_err(|error| format!("can't wait for an answer: {error}"))?;
        let ready: Vec<bool> = polled.iter().map(|fd| fd.any() == Some(true)).collect();
        let mut ready = ready.into_iter();
        for (address, socket) in std::mem::take(&mut open) {
            if ready.next() != Some(true) {
                open.push((address, socket));
                continue;
            }
            match socket::getsockopt(&socket, sockopt::SocketError) {
                Ok(0) => return Ok(socket),
                Ok(error) => last_error = Some(describe(address, Errno::from_raw(error))),
                Err(error) => last_error = Some(describe(address, error)),
            }
        }
        if Instant::now() >= deadline {
            let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let silent = format!("no answer from {} in time", names.join(", "));
            return Err(last_error.unwrap_or(silent));
        }
    }
}

/// Starts to connect. The socket becomes writable when that has succeeded or failed.
fn start(address: SocketAddr, sources: &[SocketAddr]) -> Result<OwnedFd, Errno> {
    let family = match address.ip() {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::empty(), None)?;
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let of_family = |source: &&SocketAddr| source.is_ipv4() == address.is_ipv4();
    if let Some(source) = sources.iter().find(of_family) {
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(*source))?;
    }
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Describes a failed connect, without the system's "(os error 111)".
fn describe(address: SocketAddr, error: Errno) -> String {
    let reason = match error {
        Errno::ECONNREFUSED => "connection refused (nothing listens there)".to_owned(),
        Errno::EHOSTUNREACH => "no route to the host".to_owned(),
        Errno::ENETUNREACH => "the network is unreachable".to_owned(),
        Errno::ETIMEDOUT => "no answer in time".to_owned(),
        Errno::EADDRNOTAVAIL => "the address to connect from is not one of this machine".to_owned(),
        error => io::Error::from(error).to_string(),
    };
    format!("{address}: {reason}")
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::plain;
    use super::*;
    use std::net::TcpListener;

    fn connect(options: &str) -> Result<SocketAddr, String> {
        let (socket, _) = super::connect(&plain(options), Duration::from_secs(60))
            .map_err(|failure| failure.message)?;
        Ok(std::net::TcpStream::from(socket).local_addr().unwrap())
    }

    #[test]
    fn the_address_that_answers_wins() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let closed = SocketAddr::from(([127, 0, 0, 2], good.port()));
        let soon = Instant::now() + Duration::from_secs(60);
        let socket = race(&[closed, good], &[], soon).unwrap();
        let stream = std::net::TcpStream::from(socket);
        assert_eq!(stream.peer_addr().unwrap(), good);
        for addresses in [&[closed][..], &[closed, closed]] {
            let error = race(addresses, &[], soon).unwrap_err();
            assert!(error.contains("connection refused"), "{error}");
        }
    }

    #[test]
    fn the_family_and_the_source_are_those_of_the_configuration() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = |more: &str| connect(&format!("hostname 127.0.0.1\nport {port}\n{more}"));
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        assert_eq!(to("addressfamily inet").unwrap().ip(), ip("127.0.0.1"));
        assert!(to("addressfamily inet6").unwrap_err().contains("IPv6"));
        assert_eq!(to("bindaddress 127.0.0.9").unwrap().ip(), ip("127.0.0.9"));
        assert_eq!(to("bindinterface lo").unwrap().ip(), ip("127.0.0.1"));
        for (option, said) in [
            ("bindaddress ::1", "no address of the host fits"),
            ("bindaddress 192.0.2.1", "not one of this machine"),
            ("bindinterface nope0", "BindInterface nope0 has no address"),
        ] {
            let error = to(option).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn several_attempts_are_made() {
        // A bound socket that does not listen refuses connections, and keeps its port.
        let stream = (SockType::Stream, SockFlag::empty());
        let socket = socket::socket(AddressFamily::Inet, stream.0, stream.1, None).unwrap();
        let any = SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], 0)));
        socket::bind(socket.as_raw_fd(), &any).unwrap();
        let listener = TcpListener::from(socket);
        let port = listener.local_addr().unwrap().port();
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            socket::listen(&listener, socket::Backlog::MAXCONN).unwrap();
            listener
        });
        let options = format!("hostname 127.0.0.1\nport {port}\nconnectionattempts 60");
        assert!(connect(&options).is_ok());
        drop(late.join().unwrap());
    }
}
