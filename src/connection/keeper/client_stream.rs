//! The keeper's side of a connection from a command: the socket and its buffers.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::channel::ChannelId;
use super::protocol::{self, FRAME_MAX};

/// A command that is connected to the keeper.
pub struct Client {
    pub(super) stream: UnixStream,
    pub(super) input: Vec<u8>,
    pub(super) output: VecDeque<u8>,
    pub(super) greeted: bool,
    pub(super) connected_at: Instant,
    /// The channel it has checked out.
    pub(super) channel: Option<ChannelId>,
    /// Since when it has been waiting for a channel.
    pub(super) waiting_since: Option<Instant>,
    /// It was told that another command is waiting for a shell.
    pub(super) was_told_wanted: bool,
    /// Interval between its shell's heartbeats (empty lines), and when the next one is due.
    pub(super) heartbeat: Option<(Duration, Instant)>,
    /// No more output follows: it is disconnected once `output` is sent.
    pub(super) is_closing: bool,
}

impl Client {
    /// Whether its requests may be carried out while at most `backlog` bytes wait for it. With a channel, they make no
    /// output.
    pub(super) fn takes_requests(&self, backlog: usize) -> bool {
        self.channel.is_some() || self.output.len() < backlog
    }

    /// Whether its end of the socket is still open, as far as a peek can tell.
    pub(super) fn is_connected(&self) -> bool {
        use nix::sys::socket::{MsgFlags, recv};
        let peeked = recv(
            self.stream.as_raw_fd(),
            &mut [0],
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        );
        matches!(peeked, Ok(1..) | Err(nix::errno::Errno::EAGAIN))
    }

    /// Forwards a shell's output. What the socket takes at once is not copied.
    pub(super) fn forward(&mut self, error_stream: bool, bytes: &[u8]) -> io::Result<()> {
        for content in bytes.chunks(FRAME_MAX) {
            let head = protocol::head_of_bytes(error_stream, content);
            let written = if self.output.is_empty() {
                self.stream
                    .write_vectored(&[IoSlice::new(&head), IoSlice::new(content)])
            } else {
                Ok(0)
            };
            let written = match written {
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    0
                }
                other => other?,
            };
            self.output.extend(head.get(written..).unwrap_or_default());
            self.output.extend(
                content
                    .get(written.saturating_sub(head.len())..)
                    .unwrap_or_default(),
            );
        }
        Ok(())
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(self.output.as_slices().0) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(size) => drop(self.output.drain(..size)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what has arrived, up to about two frames. Returns whether the other side is still open.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        while self.input.len() < FRAME_MAX * 2 {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(size) => self
                    .input
                    .extend_from_slice(chunk.get(..size).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
