//! A TCP connection to any of a name's addresses within one deadline.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::config::AddressFamily;

/// The head start of one address over the next (RFC 8305 8).
const STAGGER: Duration = Duration::from_millis(250);
/// More addresses than this are not tried.
const ADDRESSES_MAX: usize = 16;

/// Why there is no TCP connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum TcpError {
    #[error("the name can't be resolved: {0}")]
    Name(io::Error),
    #[error("resolving the name took too long")]
    NameTimedOut,
    #[error("the name has no {0} address")]
    NoAddress(&'static str),
    #[error("{address}: {}", words(.error))]
    Refused {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("no answer from {0} in time")]
    TimedOut(String),
    #[error("can't set up the socket: {0}")]
    Socket(io::Error),
}

/// What a failed connect means, without the system's "(os error 111)".
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused (nothing listens there)".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to the host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "the network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// Connects to the first address that answers; `TCP_NODELAY` is on.
pub(super) fn connect(
    name: &str,
    port: u16,
    family: AddressFamily,
    deadline: Instant,
) -> Result<TcpStream, TcpError> {
    let addresses = order(look_up(name, port, deadline)?, family)?;
    let stream = first_to_answer(&addresses, deadline)?;
    stream.set_nodelay(true).map_err(TcpError::Socket)?;
    Ok(stream)
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The name's addresses. getaddrinfo(3) has no time-out, so it runs in a thread that is left
/// behind when it takes too long.
fn look_up(name: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, TcpError> {
    if let Ok(address) = name.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = mpsc::channel();
    let target = (name.to_owned(), port);
    thread::spawn(move || {
        let found = target
            .to_socket_addrs()
            .map(|found| found.take(ADDRESSES_MAX).collect());
        // Nobody listens any more after a time-out.
        drop(sender.send(found));
    });
    receiver
        .recv_timeout(left(deadline))
        .map_err(|_| TcpError::NameTimedOut)?
        .map_err(TcpError::Name)
}

fn order(
    mut addresses: Vec<SocketAddr>,
    family: AddressFamily,
) -> Result<Vec<SocketAddr>, TcpError> {
    let (wanted, missing): (fn(&SocketAddr) -> bool, _) = match family {
        AddressFamily::Any => (|_| true, "known"),
        AddressFamily::Inet => (SocketAddr::is_ipv4, "IPv4"),
        AddressFamily::Inet6 => (SocketAddr::is_ipv6, "IPv6"),
    };
    addresses.retain(wanted);
    if addresses.is_empty() {
        Err(TcpError::NoAddress(missing))
    } else {
        Ok(addresses)
    }
}

fn first_to_answer(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, TcpError> {
    if let [address] = addresses {
        return try_one(*address, deadline);
    }
    let (sender, receiver) = mpsc::channel();
    let mut waiting = addresses.iter();
    let mut open = 0;
    let mut last_error = None;
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            let (sender, address) = (sender.clone(), *address);
            // The winner ends the wait; the others end with their own connect.
            thread::spawn(move || drop(sender.send(try_one(address, deadline))));
            open += 1;
        } else if open == 0 {
            break;
        }
        let patience = if next.is_some() {
            STAGGER.min(left(deadline))
        } else {
            left(deadline)
        };
        match receiver.recv_timeout(patience) {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => {
                open -= 1;
                last_error = Some(error);
            }
            Err(RecvTimeoutError::Timeout) if !left(deadline).is_zero() => {}
            Err(_) => break,
        }
    }
    Err(last_error.unwrap_or_else(|| {
        let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        TcpError::TimedOut(names.join(", "))
    }))
}

fn try_one(address: SocketAddr, deadline: Instant) -> Result<TcpStream, TcpError> {
    let left = left(deadline);
    if left.is_zero() {
        return Err(TcpError::TimedOut(address.to_string()));
    }
    TcpStream::connect_timeout(&address, left).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => TcpError::TimedOut(address.to_string()),
        _ => TcpError::Refused { address, error },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn the_address_that_answers_wins() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let closed = SocketAddr::from(([127, 0, 0, 2], good.port()));
        let stream = first_to_answer(&[closed, good], soon()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(matches!(
            first_to_answer(&[closed], soon()),
            Err(TcpError::Refused { .. })
        ));
        assert!(matches!(
            first_to_answer(&[closed, closed], soon()),
            Err(TcpError::Refused { .. })
        ));
    }

    #[test]
    fn the_family_is_a_filter() {
        let both: Vec<SocketAddr> =
            vec!["[::1]:1".parse().unwrap(), "127.0.0.1:1".parse().unwrap()];
        assert_eq!(order(both.clone(), AddressFamily::Any).unwrap(), both);
        assert_eq!(order(both.clone(), AddressFamily::Inet).unwrap(), both[1..]);
        assert_eq!(
            order(both.clone(), AddressFamily::Inet6).unwrap(),
            both[..1]
        );
        assert!(matches!(
            order(both[1..].to_vec(), AddressFamily::Inet6),
            Err(TcpError::NoAddress("IPv6"))
        ));
    }
}
