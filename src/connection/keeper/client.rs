//! The command's side of a connection to a keeper.

use std::io::{self, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::path::is_ours;
use super::protocol::{self, Frame, Reply, Request, Status, VERSION};
use crate::connection::Relays;
use crate::job::JobId;

/// Maximum wait for a keeper's greeting: a keeper does nothing that takes long.
pub(super) const GREETING_MAX: Duration = Duration::from_secs(3);
/// Maximum wait for a shell: a little longer than the keeper lets a command wait for one.
pub(super) const SHELL: Duration = Duration::from_secs(5);
/// Maximum wait for a keeper to end: it gives what it holds a few seconds.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Maximum wait for the keeper to close its side after this command has closed its own.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);

/// A connection to a keeper.
pub struct KeeperClient {
    pub(super) stream: UnixStream,
    input: Vec<u8>,
    /// The jobs whose relays the keeper held when it sent its greeting.
    pub(super) jobs: Vec<String>,
    /// Timeout for connecting to the keeper's host.
    #[cfg_attr(
        not(feature = "mcp"),
        allow(dead_code, reason = "only that server asks")
    )]
    pub(super) connect_timeout: Duration,
}

impl KeeperClient {
    /// Connects and exchanges greetings. `None`: no process is listening there. A keeper of another version is an
    /// error, since its socket must stay.
    pub fn open(place: &std::path::Path) -> io::Result<Option<Self>> {
        let stream = match UnixStream::connect(place) {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if !is_ours(&stream) {
            return Err(io::Error::other(
                "another user's process listens on the keeper's socket",
            ));
        }
        stream.set_write_timeout(Some(GREETING_MAX))?;
        let mut client = Self {
            stream,
            input: Vec::new(),
            jobs: Vec::new(),
            connect_timeout: Duration::ZERO,
        };
        let hello = client.send(&Request::Hello {
            version: VERSION.to_owned(),
        });
        match hello.and_then(|()| client.receive(Instant::now() + GREETING_MAX)) {
            Ok(Frame::Message(Reply::Hello {
                version,
                jobs,
                connect_timeout,
            })) if version == VERSION => {
                client.jobs = jobs;
                client.connect_timeout = Duration::from_secs(connect_timeout);
                Ok(Some(client))
            }
            Ok(_) => Err(io::Error::other(
                "a keeper of another version listens on its socket",
            )),
            // The keeper was about to end.
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Request) -> io::Result<()> {
        self.stream.write_all(&protocol::message(request))
    }

    /// Returns the next frame, or `TimedOut` if none has arrived by `until`.
    pub fn receive(&mut self, until: Instant) -> io::Result<Frame<Reply>> {
        if let Some(frame) = protocol::take(&mut self.input)? {
            return Ok(frame);
        }
        let left = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left))?;
        protocol::read(&mut self.stream, &mut self.input).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

/// Whether the error means that the keeper has ended.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// The status of the keeper at a socket; `None` if no keeper of this version is listening there.
pub fn status(socket: &std::path::Path) -> Option<Status> {
    ask(socket, &Request::Status).ok()
}

/// Ends the keeper at a socket, and waits until it has closed the connection. One that has ended meanwhile is no error.
pub fn stop(socket: &std::path::Path) -> io::Result<()> {
    let Some(mut client) = KeeperClient::open(socket)? else {
        return Ok(());
    };
    match client.send(&Request::Stop) {
        Err(error) if is_gone(&error) => return Ok(()),
        sent => sent?,
    }
    let until = Instant::now() + STOP_MAX;
    loop {
        match client.receive(until) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => return Err(error),
            Err(_) => return Ok(()),
        }
    }
}

fn ask(socket: &std::path::Path, request: &Request) -> io::Result<Status> {
    let mut client = KeeperClient::open(socket)?.ok_or(ErrorKind::NotFound)?;
    client.send(request)?;
    match client.receive(Instant::now() + GREETING_MAX)? {
        Frame::Message(Reply::Status(status)) => Ok(status),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

impl Relays for KeeperClient {
    fn may_hold_relay(&self, job: &JobId) -> bool {
        self.jobs.iter().any(|held| held == job.as_str())
    }

    fn finish(&mut self) -> Vec<Reply> {
        // Once the keeper has closed its side, it sends no more signals for this command.
        drop(self.stream.shutdown(std::net::Shutdown::Write));
        let until = Instant::now() + CLOSE_WAIT_MAX;
        let mut replies = Vec::new();
        while let Ok(frame) = self.receive(until) {
            if let Frame::Message(reply) = frame {
                replies.push(reply);
            }
        }
        replies
    }

    fn signal(&mut self, job: &JobId, name: &str) -> io::Result<()> {
        self.send(&Request::Signal {
            job: job.to_string(),
            name: name.to_owned(),
        })
    }

    fn watch(&mut self, job: &JobId) -> io::Result<()> {
        self.send(&Request::Watch {
            job: job.to_string(),
        })
    }

    fn next(&mut self, until: Instant) -> io::Result<Reply> {
        match self.receive(until)? {
            Frame::Message(reply) => Ok(reply),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}
