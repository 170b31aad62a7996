//! A socket with a non-blocking SSH session, and the only way to wait for it.

use std::cell::Cell;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{Shutdown, shutdown};
use ssh2::{BlockDirections, Error, ErrorCode, Session};

use super::proxy::ProxyProcess;
use crate::connection::wait;
use crate::sys::socket_callbacks;

const EAGAIN: ErrorCode = ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_EAGAIN);
/// The error of a call that exceeded its deadline.
pub(super) const TIMEOUT: ErrorCode = ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_TIMEOUT);

/// A deadline that is extended while the user is asked.
pub(super) struct Clock(Cell<Instant>);

impl Clock {
    pub(super) fn until(deadline: Instant) -> Self {
        Self(Cell::new(deadline))
    }

    pub(super) fn within(limit: Duration) -> Self {
        Self::until(Instant::now() + limit)
    }

    pub(super) fn deadline(&self) -> Instant {
        self.0.get()
    }

    /// Runs `ask`, and extends the deadline by the time that it takes.
    pub(super) fn paused<T>(&self, ask: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let answer = ask();
        self.0.set(self.0.get() + began.elapsed());
        answer
    }
}

/// A session and its socket. The socket is shut down when this is dropped: a clone of the session that outlives it gets
/// errors.
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) socket: Arc<OwnedFd>,
    pub(super) proxy: Option<ProxyProcess>,
}

/// The reference to the socket that libssh2 holds.
struct Handle(Arc<OwnedFd>);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Link {
    /// Puts `session` on a connected non-blocking socket.
    pub(super) fn new(mut session: Session, socket: OwnedFd, proxy: Option<ProxyProcess>) -> Self {
        let socket = Arc::new(socket);
        session.set_tcp_stream(Handle(Arc::clone(&socket)));
        session.set_blocking(false);
        Self {
            session,
            socket,
            proxy,
        }
    }

    /// Repeats a call of libssh2 until it is done or the deadline has passed.
    pub(super) fn drive<T>(
        &self,
        clock: &Clock,
        mut call: impl FnMut(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut session = self.session.clone();
        loop {
            match call(&mut session) {
                Err(error) if error.code() == EAGAIN => {}
                done => return done,
            }
            let mut flags = match session.block_directions() {
                BlockDirections::Outbound => PollFlags::POLLOUT,
                BlockDirections::Both => PollFlags::POLLIN | PollFlags::POLLOUT,
                _ => PollFlags::POLLIN,
            };
            flags.set(
                PollFlags::POLLOUT,
                flags.contains(PollFlags::POLLOUT) || socket_callbacks::has_queue(),
            );
            self.wait(flags, clock)?;
            // The call reports an error of the socket again.
            drop(socket_callbacks::send_queue(self.socket.as_raw_fd()));
        }
    }

    /// Waits until the socket is ready. The deadline is checked even if it is, as the socket of a server that never
    /// stops sending is always ready.
    pub(super) fn wait(&self, flags: PollFlags, clock: &Clock) -> Result<(), Error> {
        let fds = &mut [PollFd::new(self.socket.as_fd(), flags)];
        match wait(fds, clock.deadline()) {
            Ok(true) if Instant::now() < clock.deadline() => Ok(()),
            Ok(_) => Err(Error::new(TIMEOUT, "timed out")),
            Err(_) => Err(Error::new(ErrorCode::Session(-1), "poll(2) failed")),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Before the session is freed, so that freeing it can't wait for the peer. No SSH disconnect message is sent:
        // closing the socket means the same to every server. ENOTCONN means that the peer was faster.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}
