//! A shell at the end of an SSH channel, for one thread that talks to one shell at a time.
//!
//! The session does not block: libssh2 is called again whenever the socket is ready, and every wait has an end.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use ssh2::{ErrorCode, Session};

use super::connect::Connection;
use crate::connection::{Chunk, Shell, wait};
use crate::sys::channel::Channel;

/// What every login shell understands, and what then reads the script.
const COMMAND: &str = "exec /bin/sh -s";
/// How much a server may send ahead of what was read. It lets 100 ms of round trip carry 40 MB/s; with more, sshd spends
/// its time growing its buffers (with 16 MB four times as much as on the encryption).
const WINDOW: u32 = 4 << 20;
/// How soon is looked again where something is here that no reading took.
const TAKEN_IN: Duration = Duration::from_millis(2);
/// How long a server may take to open a channel.
const OPENING: Duration = Duration::from_secs(30);

/// How long a server may take to close a channel whose shell has ended.
const CLOSING: Duration = Duration::from_secs(5);
/// The pauses, in milliseconds, after which a server that refuses a channel is asked again where one was closed just
/// before: its slot becomes free a little later.
const FREEING: [u64; 6] = [10, 30, 90, 200, 400, 800];

/// A connection, and what is left of the shells that ran over it.
pub struct Shells {
    connection: Connection,
    /// Channels whose shells are done with. They are closed when the next one is wanted: a command that ends with its
    /// only script need not wait for that.
    used: RefCell<Vec<Channel>>,
}

impl Shells {
    /// Takes a connection over, and makes it one that does not block.
    pub fn new(connection: Connection) -> Self {
        connection.session().set_blocking(false);
        Self {
            connection,
            used: RefCell::default(),
        }
    }

    /// Whether a second shell is better had over a new connection: Dropbear now and then falls over a channel that is
    /// closed while another is opened (its assertion `!channel->sent_close`), and takes the connection with it.
    pub fn is_spent(&self) -> bool {
        let is_dropbear = || {
            self.connection
                .session()
                .banner()
                .is_some_and(|banner| banner.contains("dropbear"))
        };
        !self.used.borrow().is_empty() && is_dropbear()
    }

    /// A new shell.
    pub fn open(&self) -> io::Result<SshShell<'_>> {
        let used = std::mem::take(&mut *self.used.borrow_mut());
        let mut pauses = if used.is_empty() {
            [].iter()
        } else {
            FREEING.iter()
        };
        used.into_iter()
            .try_for_each(|channel| close(&self.connection, channel))?;
        loop {
            match (SshShell::open(self), pauses.next()) {
                (Err(error), Some(pause)) if is_refusal(&error) => {
                    std::thread::sleep(Duration::from_millis(*pause));
                }
                (opened, _) => return opened,
            }
        }
    }
}

/// Whether the server refuses one more channel, on a connection that goes on.
fn is_refusal(error: &io::Error) -> bool {
    let error = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<ssh2::Error>());
    error.is_some_and(|error| {
        error.code() == ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_CHANNEL_FAILURE)
    })
}

/// Ends a shell politely: its end of input, then its end of file, then the channel. A server counts a session until
/// then.
fn close(connection: &Connection, mut channel: Channel) -> io::Result<()> {
    let until = Instant::now() + CLOSING;
    repeat(connection, until, || channel.send_eof())?;
    let mut rest = [0; 4096];
    while !channel.at_end() {
        for error_stream in [false, true] {
            match channel.read(error_stream, &mut rest) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                Ok(size) if size > 0 => break,
                _ => {}
            }
        }
        if !channel.at_end() && !channel.has_bytes() {
            ready(connection, until)?;
        } else if Instant::now() >= until {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    repeat(connection, until, || channel.free())
}

/// A running `/bin/sh -s`.
pub struct SshShell<'a> {
    connection: &'a Connection,
    used: &'a RefCell<Vec<Channel>>,
    /// Always there until it is dropped.
    channel: Option<Channel>,
    /// The request to run the shell is not answered yet. The script goes out behind it all the same: that saves a
    /// round trip.
    starting: bool,
}

impl<'a> SshShell<'a> {
    /// Opens a channel and asks for the shell.
    fn open(shells: &'a Shells) -> io::Result<Self> {
        let connection = &shells.connection;
        let until = Instant::now() + OPENING;
        let session = connection.session();
        let channel = repeat(connection, until, || Channel::open(session, WINDOW))?;
        let mut shell = Self {
            connection,
            used: &shells.used,
            channel: Some(channel),
            starting: true,
        };
        // The request must be on its way before anything else is sent on the channel.
        while shell.start()? && Channel::owes_output(session) {
            ready(connection, until)?;
        }
        Ok(shell)
    }

    /// Goes on with the request for the shell, and says whether its answer is still to come.
    fn start(&mut self) -> io::Result<bool> {
        if self.starting {
            match self.channel()?.exec(COMMAND) {
                Ok(()) => self.starting = false,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.starting)
    }

    fn session(&self) -> &Session {
        self.connection.session()
    }

    fn channel(&mut self) -> io::Result<&mut Channel> {
        self.channel
            .as_mut()
            .ok_or_else(|| ErrorKind::NotConnected.into())
    }
}

impl Drop for SshShell<'_> {
    fn drop(&mut self) {
        self.used.borrow_mut().extend(self.channel.take());
    }
}

impl Shell for SshShell<'_> {
    fn write(&mut self, mut bytes: &[u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            // A packet that is half sent comes first, whatever else is waiting. And the write comes last before the
            // wait, so that it has seen all that was received.
            if !Channel::owes_output(self.session()) {
                self.start()?;
            }
            match self.channel()?.write(bytes) {
                Ok(size) => bytes = bytes.get(size..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready(self.connection, until)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<Chunk> {
        let (mut looked_again, mut over) = (false, false);
        loop {
            self.start()?;
            for error_stream in [false, true] {
                if Channel::owes_output(self.session()) && error_stream {
                    break;
                }
                match self.channel()?.read(error_stream, buffer) {
                    Ok(0) => {}
                    Ok(size) if error_stream => return Ok(Chunk::Err(size)),
                    Ok(size) => return Ok(Chunk::Out(size)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            if self.channel()?.at_end() {
                return Ok(Chunk::End);
            }
            let writing = Channel::owes_output(self.session());
            // Reading one stream may have taken in bytes of the other, of which the socket says nothing. A server may
            // also send on a third, which nobody reads: that must not keep this from waiting altogether.
            let unread = self.channel()?.has_bytes();
            if !writing && unread && !looked_again {
                looked_again = true;
                continue;
            }
            looked_again = false;
            let flags = if writing {
                PollFlags::POLLIN | PollFlags::POLLOUT
            } else {
                PollFlags::POLLIN
            };
            let soon = if unread {
                until.min(Instant::now() + TAKEN_IN)
            } else {
                until
            };
            let ready = wait(&mut [PollFd::new(self.connection.as_fd(), flags)], soon)?;
            if Instant::now() >= until {
                // What is there by then is still taken, and no more: something else may come without an end.
                if !ready || over {
                    return Ok(Chunk::Nothing);
                }
                over = true;
            }
        }
    }
}

/// Calls until it no longer blocks.
fn repeat<T>(
    connection: &Connection,
    until: Instant,
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => ready(connection, until)?,
            done => return done,
        }
    }
}

/// Waits until the socket can take or give what libssh2 is waiting for.
fn ready(connection: &Connection, until: Instant) -> io::Result<()> {
    let writing = Channel::owes_output(connection.session());
    let flags = if writing {
        PollFlags::POLLIN | PollFlags::POLLOUT
    } else {
        PollFlags::POLLIN
    };
    let socket: BorrowedFd<'_> = connection.as_fd();
    let ready = wait(&mut [PollFd::new(socket, flags)], until)?;
    // A server that says something without an end is ready at any time.
    if ready && Instant::now() < until {
        Ok(())
    } else {
        Err(ErrorKind::TimedOut.into())
    }
}
