//! A shell that a command has checked out of a keeper's pool.

use std::any::Any;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, MsgFlags};

use super::client::{GREETING_MAX, KeeperClient, SHELL};
use super::protocol::{self, Frame, Reply, Request};
use crate::connection::{Chunk, Shell, ShellInput};
use crate::job::JobId;

pub struct KeeperShell {
    client: KeeperClient,
    primed: u64,
    may_hang: bool,
    /// Another command is waiting for a shell.
    wanted: bool,
    /// Held while a frame is written: other threads write too.
    writing: Arc<Mutex<()>>,
    /// Its keeper, if that is private: it ends once nobody holds it.
    pub(super) keeper: Option<Arc<dyn Any + Send + Sync>>,
}

impl KeeperShell {
    /// Checks a shell out of the pool.
    pub fn check_out(mut client: KeeperClient) -> io::Result<Self> {
        client.send(&Request::Shell)?;
        match client.receive(Instant::now() + SHELL)? {
            Frame::Message(Reply::Shell { primed, may_hang }) => Ok(Self {
                client,
                primed,
                may_hang,
                wanted: false,
                writing: Arc::default(),
                keeper: None,
            }),
            Frame::Message(Reply::Busy) => Err(io::Error::other(
                "the server refuses further sessions on the keeper's connection",
            )),
            _ => Err(io::Error::other("the keeper sent an unexpected reply")),
        }
    }
}

impl KeeperShell {
    fn send(&self, frames: &[u8], until: Instant) -> io::Result<()> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.send_locked(&writing, frames, until)
    }

    /// Sends while the caller holds the lock.
    fn send_locked(&self, _: &MutexGuard<'_, ()>, frames: &[u8], until: Instant) -> io::Result<()> {
        let left = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let mut stream = &self.client.stream;
        stream.set_write_timeout(Some(left))?;
        match stream.write_all(frames) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
            written => written,
        }
    }
}

impl Drop for KeeperShell {
    /// Shuts the socket down, since other threads may hold it too.
    fn drop(&mut self) {
        // What was written before still arrives.
        drop(self.client.stream.shutdown(std::net::Shutdown::Both));
    }
}

impl Shell for KeeperShell {
    fn primed(&self) -> Option<u64> {
        Some(self.primed)
    }

    fn may_hang(&self) -> bool {
        self.may_hang
    }

    fn send_script(&mut self, text: &[u8], done: Option<String>, until: Instant) -> io::Result<()> {
        let mut frames = protocol::message(&Request::Script { done });
        frames.extend(protocol::bytes(false, text));
        self.send(&frames, until)
    }

    fn is_wanted(&self) -> bool {
        self.wanted
    }

    fn check_in(&mut self) {
        // If another thread is still writing, the shell is not checked in, and so is closed.
        if let Ok(writing) = self.writing.try_lock() {
            let frame = protocol::message(&Request::CheckIn);
            // If this fails, the keeper is gone, and its pool too.
            drop(self.send_locked(&writing, &frame, Instant::now() + GREETING_MAX));
        }
    }

    fn keep_relay(&mut self, job: &JobId, word: String, script: String) {
        // Without a relay, signals go by pid.
        drop(self.client.send(&Request::Relay {
            job: job.to_string(),
            word,
            script,
        }));
    }

    fn input(&self) -> io::Result<ShellInput> {
        let stream = Arc::new(self.client.stream.try_clone()?);
        let writing = Arc::clone(&self.writing);
        let send = Arc::new(move |frames: &[u8], waits: bool| {
            let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
            if waits {
                stream.set_write_timeout(None)?;
                return (&*stream).write_all(frames);
            }
            // A Unix socket takes all of a short line or nothing.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            socket::send(stream.as_raw_fd(), frames, flags)?;
            Ok(())
        });
        let beat = Arc::clone(&send);
        Ok(ShellInput::new(
            Box::new(move |bytes, waits| send(&protocol::bytes(false, bytes), waits)),
            Box::new(move |every| {
                let seconds = every.as_secs().max(1);
                // If the keeper is gone, the reader notices it.
                drop(beat(&protocol::message(&Request::Beat { seconds }), true));
            }),
        ))
    }

    fn write(&mut self, bytes: &[u8], until: Instant) -> io::Result<()> {
        self.send(&protocol::bytes(false, bytes), until)
    }

    fn read(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<Chunk> {
        let (bytes, chunk): (Vec<u8>, fn(usize) -> Chunk) = match self.client.receive(until) {
            Ok(Frame::Bytes(bytes)) => (bytes, Chunk::Out),
            Ok(Frame::ErrorBytes(bytes)) => (bytes, Chunk::Err),
            Ok(Frame::Message(Reply::Wanted)) => {
                self.wanted = true;
                return Ok(Chunk::Nothing);
            }
            Ok(Frame::Message(Reply::End)) => return Ok(Chunk::End),
            Ok(Frame::Message(Reply::Broken { message })) => return Err(io::Error::other(message)),
            Ok(Frame::Message(_)) => return Err(ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(Chunk::Nothing),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "the keeper has gone",
                ));
            }
            Err(error) => return Err(error),
        };
        // A frame is at most FRAME_MAX long, and every reader's buffer is longer.
        let Some(space) = buffer.get_mut(..bytes.len()) else {
            return Err(ErrorKind::InvalidData.into());
        };
        space.copy_from_slice(&bytes);
        Ok(chunk(bytes.len()))
    }
}
