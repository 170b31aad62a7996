//! A socket with an SSH session on it that never blocks, and the one way to wait for it.

use std::cell::Cell;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{Shutdown, shutdown};
use ssh2::{BlockDirections, Error, ErrorCode, Session};

use super::proxy::ProxyProcess;
use crate::connection::wait;
use crate::sys::inflow;

const EAGAIN: ErrorCode = ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_EAGAIN);
/// The error of a call whose time was over.
pub(super) const TIMEOUT: ErrorCode = ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_TIMEOUT);

/// A deadline that moves on while the user is asked.
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

    /// Runs `ask` without its time being counted.
    pub(super) fn paused<T>(&self, ask: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let answer = ask();
        self.0.set(self.0.get() + began.elapsed());
        answer
    }
}

/// The socket is shut when this is dropped: a clone of the session that outlives it gets errors.
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) socket: Arc<OwnedFd>,
    pub(super) proxy: Option<ProxyProcess>,
}

/// What libssh2 holds on to.
struct Handle(Arc<OwnedFd>);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Link {
    /// Puts `session` on a connected socket that does not block.
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

    /// Calls libssh2 until it is done or the time is over.
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
                flags.contains(PollFlags::POLLOUT) || inflow::has_queue(),
            );
            self.wait(flags, clock)?;
            // An error of the socket comes again with the call.
            drop(inflow::send_queue(self.socket.as_raw_fd()));
        }
    }

    /// Waits until the socket is ready. A server that never stops sending is ready at any time.
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
        // First, so that freeing the session can't wait for the other side. An SSH disconnect message is not sent:
        // the end of the socket says the same to every server. ENOTCONN when the other side was faster.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}
