//! What a keeper's shells run over: channels of an SSH connection, or child processes of the keeper.
//!
//! The keeper never waits for a child process: its pipes do not block, and the keeper polls them. On this machine a
//! pool is useful behind a prefix: `docker exec` takes 90 ms, and an answer of its shell 1 ms. No spare shell is kept
//! ready there, and there are no relays: a signal to `docker exec` does not reach what runs behind it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::poll::{PollFd, PollFlags};

use crate::connection::local::{Launcher, Process};
use crate::connection::ssh::Variable;
use crate::connection::ssh::connect::Connection;
use crate::sys::channel::Channel;

/// The connection to the host.
pub enum Transport {
    Ssh(Box<Connection>),
    Processes(Launcher),
}

/// What one shell runs over.
pub enum ShellTransport {
    Channel(Channel),
    Process(Process),
}

impl Transport {
    pub fn open(&self, window: u32) -> io::Result<ShellTransport> {
        match self {
            Self::Ssh(connection) => {
                Channel::open(connection.session(), window).map(ShellTransport::Channel)
            }
            Self::Processes(launcher) => launcher.start().map(ShellTransport::Process),
        }
    }

    /// The environment variables that each channel sets before it requests its shell.
    pub fn environment(&self) -> &[Variable] {
        self.ssh().map_or(&[], Connection::environment)
    }

    /// Whether a call has sent only part of its packet.
    pub fn has_partial_packet(&self) -> bool {
        self.ssh()
            .is_some_and(|connection| Channel::has_partial_packet(connection.session()))
    }

    /// The SSH connection, if there is one.
    pub fn ssh(&self) -> Option<&Connection> {
        match self {
            Self::Ssh(connection) => Some(connection),
            Self::Processes(_) => None,
        }
    }

    /// The connection's socket, to poll.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.ssh().map(|connection| connection.as_fd())
    }
}

impl ShellTransport {
    /// Requests the shell on a channel, or checks whether a process has become one. `buffer` is scratch space for what
    /// it prints before.
    pub fn begin(&mut self, command: &str, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Channel(channel) => channel.exec(command),
            Self::Process(process) => process.await_shell(buffer),
        }
    }

    pub fn set_env(&mut self, (name, value): &Variable) -> io::Result<()> {
        match self {
            Self::Channel(channel) => channel.set_env(name, value),
            Self::Process(_) => Ok(()),
        }
    }

    pub fn read(&mut self, error_stream: bool, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Channel(channel) => channel.read(error_stream, buffer),
            Self::Process(process) => process.read(error_stream, buffer),
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Channel(channel) => channel.write(bytes),
            Self::Process(process) => process.write(bytes),
        }
    }

    pub fn signal(&mut self, name: &str) -> io::Result<()> {
        match self {
            Self::Channel(channel) => channel.signal(name),
            // A process is never a relay: a signal to it would not reach what runs behind it.
            Self::Process(_) => Ok(()),
        }
    }

    /// Kills a process. Returns false for a channel, which the keepalive covers.
    pub fn kill(&mut self) -> bool {
        match self {
            Self::Channel(_) => false,
            Self::Process(process) => {
                process.kill();
                true
            }
        }
    }

    pub fn has_exited(&mut self) -> bool {
        match self {
            Self::Channel(_) => true,
            Self::Process(process) => process.has_exited(),
        }
    }

    pub fn send_eof(&mut self) -> io::Result<()> {
        match self {
            Self::Channel(channel) => channel.send_eof(),
            Self::Process(process) => {
                process.close_input();
                Ok(())
            }
        }
    }

    pub fn at_end(&self) -> bool {
        match self {
            Self::Channel(channel) => channel.at_end(),
            Self::Process(process) => process.at_end(),
        }
    }

    /// Whether the library has received bytes that were not read yet. For a process, poll reports them.
    pub fn has_bytes(&self) -> bool {
        match self {
            Self::Channel(channel) => channel.has_bytes(),
            Self::Process(_) => false,
        }
    }

    /// Receives what has arrived for all channels of the connection, and continues a key exchange.
    pub fn receive_all(&self) -> io::Result<()> {
        match self {
            Self::Channel(channel) => channel.receive_all(),
            Self::Process(_) => Ok(()),
        }
    }

    /// Frees a channel or reaps a process that has ended.
    pub fn free(&mut self) -> io::Result<()> {
        match self {
            Self::Channel(channel) => channel.free(),
            Self::Process(process) => process.reap(),
        }
    }

    /// What to poll in addition to the connection's socket.
    pub fn fds(&self, reads: bool, writes: bool) -> impl Iterator<Item = PollFd<'_>> {
        let process = match self {
            Self::Channel(_) => None,
            Self::Process(process) => Some(process),
        };
        let fds = process.map_or([None; 3], Process::fds);
        let wanted = [writes, reads, reads];
        let flags = [PollFlags::POLLOUT, PollFlags::POLLIN, PollFlags::POLLIN];
        fds.into_iter()
            .zip(wanted)
            .zip(flags)
            .filter_map(|((fd, wanted), flags)| Some(PollFd::new(fd.filter(|_| wanted)?, flags)))
    }
}
