//! Shuts a socket at a deadline.
//!
//! libssh2's own time-out counts from the last wait, so a host that keeps sending (endless lines
//! before its banner, packets to be ignored, questions without an end) can hold a call for ever.
//! With the socket shut, every call returns at once. The time that the user takes to answer a
//! question does not count.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

/// A thread that shuts one socket when the armed time is over. Ends when dropped.
pub struct Watchdog {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// None while nothing is timed.
    deadline: Option<Instant>,
    /// What is left of the deadline while the user is asked.
    paused: Option<Duration>,
    fired: bool,
    dropped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a few plain values: right even after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watchdog {
    /// Starts watching `socket`, a descriptor of its own; nothing is timed yet.
    pub(super) fn new(socket: OwnedFd) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("ssh-watchdog".into())
            .spawn(move || watch(&watched, &socket))?;
        Ok(Self { shared })
    }

    /// From now on `limit` may pass until [`Watchdog::disarm`].
    pub(super) fn arm(&self, limit: Duration) {
        let mut state = self.shared.lock();
        state.deadline = Instant::now().checked_add(limit);
        self.shared.changed.notify_one();
    }

    /// Nothing is timed any more.
    pub(super) fn disarm(&self) {
        self.shared.lock().deadline = None;
    }

    /// Runs `call` within `limit`.
    pub(super) fn within<T>(&self, limit: Duration, call: impl FnOnce() -> T) -> T {
        self.arm(limit);
        let result = call();
        self.disarm();
        result
    }

    /// Runs `ask` with the clock stopped.
    pub(super) fn paused<T>(&self, ask: impl FnOnce() -> T) -> T {
        {
            let mut state = self.shared.lock();
            state.paused = state
                .deadline
                .take()
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        }
        let answer = ask();
        let left = self.shared.lock().paused.take();
        if let Some(left) = left {
            self.arm(left);
        }
        answer
    }

    /// Whether a limit was passed and the socket shut.
    pub(super) fn fired(&self) -> bool {
        self.shared.lock().fired
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().dropped = true;
        self.shared.changed.notify_one();
    }
}

fn watch(shared: &Shared, socket: &OwnedFd) {
    let mut state = shared.lock();
    while !state.dropped {
        state = match state.deadline {
            None => shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    state.deadline = None;
                    state.fired = true;
                    // ENOTCONN when the other side was faster: just as well.
                    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
                    continue;
                }
                shared
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn watched() -> (UnixStream, UnixStream, Watchdog) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::new(ours.try_clone().unwrap().into()).unwrap();
        (ours, theirs, watchdog)
    }

    #[test]
    fn a_read_that_lasts_too_long_is_ended() {
        let (mut ours, _theirs, watchdog) = watched();
        let read = watchdog.within(Duration::from_millis(20), || ours.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0);
        assert!(watchdog.fired());
    }

    #[test]
    fn time_spent_asking_does_not_count() {
        let (_ours, _theirs, watchdog) = watched();
        watchdog.arm(Duration::from_millis(50));
        watchdog.paused(|| std::thread::sleep(Duration::from_millis(120)));
        assert!(!watchdog.fired());
        watchdog.disarm();
        std::thread::sleep(Duration::from_millis(80));
        assert!(!watchdog.fired());
    }
}
