//! Numbers (ports, user ids) that no other test on this machine uses at the same time.

use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicU32, Ordering};

/// A number that is reserved as long as this lives.
///
/// The claim is a socket in Linux's abstract namespace. The kernel closes it when the process ends, however it ends, so
/// no claim becomes stale.
pub struct Claim {
    number: u16,
    _socket: UnixDatagram,
}

impl Claim {
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// Counts the claims of this process.
static CLAIMS: AtomicU32 = AtomicU32::new(0);

/// Claims the first number of `range` that is free and that `usable` accepts. The search starts at a number that
/// depends on the process id, and further on each time: what still uses a number that was released is left alone.
pub fn claim(kind: &str, range: Range<u16>, usable: impl Fn(u16) -> bool) -> Claim {
    let size = range.end - range.start;
    let start = std::process::id()
        .wrapping_mul(97)
        .wrapping_add(CLAIMS.fetch_add(1, Ordering::Relaxed));
    let offset = u16::try_from(start % u32::from(size)).unwrap_or(0);
    range
        .clone()
        .cycle()
        .skip(usize::from(offset))
        .take(usize::from(size))
        .find_map(|number| {
            let address =
                SocketAddr::from_abstract_name(format!("rsig-test-{kind}-{number}")).ok()?;
            let socket = UnixDatagram::bind_addr(&address).ok()?;
            usable(number).then_some(Claim {
                number,
                _socket: socket,
            })
        })
        .unwrap_or_else(|| {
            panic!(
                "no {kind} is free between {} and {}",
                range.start, range.end
            )
        })
}
