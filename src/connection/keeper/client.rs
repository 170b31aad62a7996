//! A command's side of the keeper: finds it or starts it, and uses it as a way to the host.

use std::io::{self, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::place::{Place, is_ours};
use super::protocol::{self, Frame, RelayFor, Reply, Request, Status, VERSION};
use crate::connection::{Chunk, Policy, RelayToBe, Relays, Shell, Transport, ssh};
use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::job::JobId;
use crate::sys;

/// How long a keeper may take to greet: it has nothing else to do that takes long.
const GREETING: Duration = Duration::from_secs(3);
/// How long it may take to give a shell: a little longer than it lets anybody wait for one.
const SHELL: Duration = Duration::from_secs(5);
/// How long another command may take to start the keeper that this one needs too.
const STARTING: Duration = Duration::from_secs(30);
/// How often that is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// How long a keeper may take to hear that this command has gone.
const PARTING: Duration = Duration::from_secs(1);
/// The word on the command line that makes rsig a keeper.
pub const SERVE: &str = "keeper-serve";

/// What a keeper that is being started says to the command that starts it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Birth {
    /// It listens.
    Ready,
    /// It could not connect.
    Failed { kind: BirthFailure, message: String },
}

/// The kinds of failure that connecting has.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum BirthFailure {
    Unreachable,
    Auth,
    HostKey,
    Failed,
}

impl From<Kind> for BirthFailure {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Unreachable => Self::Unreachable,
            Kind::Auth => Self::Auth,
            Kind::HostKey => Self::HostKey,
            _ => Self::Failed,
        }
    }
}

impl From<BirthFailure> for Kind {
    fn from(failure: BirthFailure) -> Self {
        match failure {
            BirthFailure::Unreachable => Self::Unreachable,
            BirthFailure::Auth => Self::Auth,
            BirthFailure::HostKey => Self::HostKey,
            BirthFailure::Failed => Self::Failed,
        }
    }
}

/// A host by way of its keeper, for as long as that works: else directly.
pub struct Kept<'a> {
    destination: &'a Destination,
    policy: &'a Policy,
    place: Place,
    /// The keeper is this command's own: what becomes of it is the command's to say.
    private: bool,
    /// Greeted, and not used yet.
    ready: Option<Talk>,
    /// What took the keeper's place.
    instead: Option<Box<dyn Transport + 'a>>,
}

/// One connection to a keeper.
pub struct Talk {
    stream: UnixStream,
    input: Vec<u8>,
    /// The jobs whose relays the keeper held at the greeting.
    jobs: Vec<String>,
}

impl Talk {
    /// Connects and greets. `None`: nobody listens there. Another version's keeper is an error: its socket must stay.
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
        stream.set_write_timeout(Some(GREETING))?;
        let mut talk = Self {
            stream,
            input: Vec::new(),
            jobs: Vec::new(),
        };
        talk.say(&Request::Hello {
            version: VERSION.to_owned(),
        })?;
        match talk.hear(Instant::now() + GREETING) {
            Ok(Frame::Message(Reply::Hello { version, jobs })) if version == VERSION => {
                talk.jobs = jobs;
                Ok(Some(talk))
            }
            Ok(_) => Err(io::Error::other(
                "a keeper of another version listens on its socket",
            )),
            // It was about to end.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a request.
    pub fn say(&mut self, request: &Request) -> io::Result<()> {
        self.stream.write_all(&protocol::message(request))
    }

    /// Takes the next frame; `TimedOut` when none has come by then.
    pub fn hear(&mut self, until: Instant) -> io::Result<Frame<Reply>> {
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

/// How the keeper at a socket stands; none where nobody of this version listens.
pub fn status(socket: &std::path::Path) -> Option<Status> {
    ask(socket, &Request::Status).ok()
}

/// Ends the keeper at a socket, and waits until it has gone.
pub fn stop(socket: &std::path::Path) -> io::Result<()> {
    let mut talk = Talk::open(socket)?.ok_or(ErrorKind::NotFound)?;
    talk.say(&Request::Stop)?;
    let until = Instant::now() + GREETING;
    loop {
        match talk.hear(until) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => return Err(error),
            Err(_) => return Ok(()),
        }
    }
}

fn ask(socket: &std::path::Path, request: &Request) -> io::Result<Status> {
    let mut talk = Talk::open(socket)?.ok_or(ErrorKind::NotFound)?;
    talk.say(request)?;
    match talk.hear(Instant::now() + GREETING)? {
        Frame::Message(Reply::Status(status)) => Ok(status),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// Finds the keeper of a destination, or starts one.
pub fn open<'a>(
    destination: &'a Destination,
    policy: &'a Policy,
) -> io::Result<Result<Kept<'a>, Failure>> {
    let place = Place::of(destination)?;
    let kept = |ready, place| {
        Ok(Ok(Kept {
            destination,
            policy,
            place,
            private: false,
            ready: Some(ready),
            instead: None,
        }))
    };
    if let Some(ready) = Talk::open(&place.socket)? {
        return kept(ready, place);
    }
    let until = Instant::now() + STARTING;
    let mut waited = false;
    let lock = loop {
        if let Some(lock) = place.lock()? {
            break lock;
        }
        waited = true;
        if Instant::now() >= until {
            return Err(io::Error::other("another command takes long to start it"));
        }
        std::thread::sleep(LOOK);
    };
    if let Some(ready) = Talk::open(&place.socket)? {
        return kept(ready, place);
    }
    if waited {
        // Not one after the other: where one has failed, all others would wait for each other to fail.
        return Err(io::Error::other("another command could not start it"));
    }
    if let Err(failure) = start(destination, &place, policy)? {
        return Ok(Err(failure));
    }
    drop(lock);
    match Talk::open(&place.socket)? {
        Some(ready) => kept(ready, place),
        None => Err(io::Error::other(
            "the keeper that was just started does not answer",
        )),
    }
}

/// Starts a keeper, and waits until it listens. It asks what it has to ask on this command's terminal.
fn start(
    destination: &Destination,
    place: &Place,
    policy: &Policy,
) -> io::Result<Result<(), Failure>> {
    Ok(birth(destination, place, policy, false)?.map(drop))
}

/// Starts a keeper's process, and waits for its word on how it went.
fn birth(
    destination: &Destination,
    place: &Place,
    policy: &Policy,
    private: bool,
) -> io::Result<Result<Child, Failure>> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(SERVE)
        .arg(&place.socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    sys::process::start_clean(&mut command);
    let mut child = command.spawn()?;
    let order = Order {
        destination: destination.clone(),
        batch: policy.batch,
        verbose: policy.verbose,
        private,
    };
    // Held open until the keeper has said how it went: it must not go on asking the user once this command has gone.
    let mut input = child.stdin.take();
    if let Some(input) = &mut input {
        let mut order = serde_json::to_vec(&order)?;
        order.push(b'\n');
        // A child that is gone already says why below.
        drop(input.write_all(&order));
    }
    let answer = child
        .stdout
        .take()
        .map(io::read_to_string)
        .transpose()?
        .unwrap_or_default();
    match serde_json::from_str(&answer) {
        Ok(Birth::Ready) => {
            child.stdin = input.filter(|_| private);
            Ok(Ok(child))
        }
        Ok(Birth::Failed { kind, message }) => {
            child.wait()?;
            Ok(Err(Failure::new(kind.into(), message)))
        }
        Err(_) => {
            let status = child.wait()?;
            Err(io::Error::other(format!(
                "the keeper ended before it was ready ({status})"
            )))
        }
    }
}

/// What a keeper is told on its standard input: nothing of it shows in a list of processes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Where to connect.
    pub destination: Destination,
    /// Ask nobody.
    pub batch: bool,
    /// Say the steps of connecting.
    pub verbose: bool,
    /// Be one command's own: end when the standard input does, and carry much.
    pub private: bool,
}

/// A shell of a keeper's, and what its channel will be, if a relay.
fn shell_by(mut talk: Talk, relay: Option<RelayFor>) -> io::Result<(KeptShell, Option<RelayToBe>)> {
    let word = relay.as_ref().map(|relay| relay.word.clone());
    talk.say(&Request::Shell { relay })?;
    match talk.hear(Instant::now() + SHELL)? {
        Frame::Message(Reply::Shell {
            relay,
            proven,
            primed,
        }) => Ok((
            KeptShell { talk, primed },
            word.filter(|_| relay)
                .map(|word| RelayToBe { word, proven }),
        )),
        Frame::Message(Reply::Busy) => Err(io::Error::other(
            "the server gives the keeper no more channels",
        )),
        _ => Err(io::Error::other(
            "the keeper gave an answer that makes no sense",
        )),
    }
}

/// A keeper of one command's own: it ends with this.
pub struct Private {
    host: String,
    place: Place,
    child: Child,
}

impl Private {
    /// Starts one.
    pub fn start(destination: &Destination, policy: &Policy) -> io::Result<Result<Self, Failure>> {
        let (host, place) = (destination.to_string(), Place::private()?);
        Ok(birth(destination, &place, policy, true)?.map(|child| Self { host, place, child }))
    }

    /// A way to the host by it.
    pub fn way(&self) -> PrivateWay {
        PrivateWay {
            host: self.host.clone(),
            place: self.place.clone(),
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // The end of its input is its end.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.place.socket);
    }
}

/// A host by way of a command's own keeper. Once that has gone, there is no other way: whoever holds it makes a new one.
pub struct PrivateWay {
    host: String,
    place: Place,
}

impl PrivateWay {
    /// A shell that outlives this.
    pub fn own_shell(&self) -> Result<Box<dyn Shell>, Failure> {
        self.open(None)
            .map(|shell| Box::new(shell) as Box<dyn Shell>)
    }

    fn open(&self, beat: Option<Duration>) -> Result<KeptShell, Failure> {
        let open = || {
            let talk = Talk::open(&self.place.socket)?
                .ok_or_else(|| io::Error::other("the connection is gone"))?;
            let (mut shell, _) = shell_by(talk, None)?;
            if let Some(every) = beat {
                shell.talk.say(&Request::Beat {
                    seconds: every.as_secs().max(1),
                })?;
            }
            Ok(shell)
        };
        open().map_err(|error: io::Error| {
            Failure::new(Kind::Unreachable, format!("{}: {error}", self.host))
        })
    }
}

impl Transport for PrivateWay {
    fn shell(&mut self) -> Result<Box<dyn Shell + '_>, Failure> {
        self.own_shell().map(|shell| shell as Box<dyn Shell>)
    }

    fn beating_shell(&mut self, every: Duration) -> Option<Result<Box<dyn Shell + '_>, Failure>> {
        Some(
            self.open(Some(every))
                .map(|shell| Box::new(shell) as Box<dyn Shell>),
        )
    }
}

impl<'a> Kept<'a> {
    fn talk(&mut self) -> io::Result<Talk> {
        match self.ready.take() {
            Some(talk) => Ok(talk),
            None => Talk::open(&self.place.socket)?
                .ok_or_else(|| io::Error::other("the keeper has gone")),
        }
    }

    fn shell_for(&mut self, relay: Option<RelayFor>) -> io::Result<(KeptShell, Option<RelayToBe>)> {
        shell_by(self.talk()?, relay)
    }

    /// A shell of the keeper's. None: it can't give one, and another way was found. Nothing was sent by then.
    fn kept_shell(
        &mut self,
        relay: Option<&RelayFor>,
    ) -> Result<Option<(KeptShell, Option<RelayToBe>)>, Failure> {
        if self.instead.is_some() {
            return Ok(None);
        }
        if self.private {
            let shell = self.shell_for(relay.cloned());
            return shell.map(Some).map_err(|error| self.unreachable(&error));
        }
        let mut what = String::new();
        // One whose connection was found broken has gone: then there is another by now, or will be.
        for _ in 0..2 {
            match self.shell_for(relay.cloned()) {
                Ok(shell) => return Ok(Some(shell)),
                Err(error) => what = error.to_string(),
            }
            if matches!(Talk::open(&self.place.socket), Ok(None)) {
                match open(self.destination, self.policy) {
                    Ok(Ok(kept)) => *self = kept,
                    Ok(Err(failure)) => return Err(failure),
                    Err(error) => what = error.to_string(),
                }
            } else {
                break;
            }
        }
        (self.policy.step)(&format!(
            "{}: the keeper can't be used ({what}); connecting directly",
            self.destination
        ));
        self.instead = Some(ssh::open(self.destination, self.policy)?);
        Ok(None)
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        Failure::new(Kind::Unreachable, format!("{}: {error}", self.destination))
    }

    /// What took the keeper's place; [`Kept::kept_shell`] has seen to it.
    fn instead(&mut self) -> Result<&mut Box<dyn Transport + 'a>, Failure> {
        self.instead
            .as_mut()
            .ok_or_else(|| Failure::new(Kind::Failed, "there is no connection"))
    }
}

impl Transport for Kept<'_> {
    fn shell(&mut self) -> Result<Box<dyn Shell + '_>, Failure> {
        match self.kept_shell(None)? {
            Some((shell, _)) => Ok(Box::new(shell)),
            None => self.instead()?.shell(),
        }
    }

    fn shell_with_relay(
        &mut self,
        job: &JobId,
    ) -> Result<(Box<dyn Shell + '_>, Option<RelayToBe>), Failure> {
        let word = format!("relay-{}", crate::job::random_hex::<8>()?);
        match self.kept_shell(Some(&RelayFor {
            job: job.to_string(),
            word,
        }))? {
            Some((shell, relay)) => Ok((Box::new(shell), relay)),
            None => self.instead()?.shell().map(|shell| (shell, None)),
        }
    }

    fn may_be_stale(&self) -> bool {
        self.instead.is_none() && !self.private
    }

    fn relays(&mut self) -> Option<Box<dyn Relays>> {
        // Without them there is always the pid.
        let talk = self.talk().ok().filter(|_| self.instead.is_none())?;
        if talk.jobs.is_empty() {
            self.ready = Some(talk);
            return None;
        }
        Some(Box::new(talk))
    }
}

impl Relays for Talk {
    fn holds(&self, job: &JobId) -> bool {
        self.jobs.iter().any(|held| held == job.as_str())
    }

    fn part(&mut self) -> Vec<Reply> {
        // Once it has closed its side, it will send nothing more in this command's name.
        drop(self.stream.shutdown(std::net::Shutdown::Write));
        let until = Instant::now() + PARTING;
        let mut last = Vec::new();
        while let Ok(frame) = self.hear(until) {
            if let Frame::Message(reply) = frame {
                last.push(reply);
            }
        }
        last
    }

    fn signal(&mut self, job: &JobId, name: &str) -> io::Result<()> {
        self.say(&Request::Signal {
            job: job.to_string(),
            name: name.to_owned(),
        })
    }

    fn watch(&mut self, job: &JobId) -> io::Result<()> {
        self.say(&Request::Watch {
            job: job.to_string(),
        })
    }

    fn next(&mut self, until: Instant) -> io::Result<Reply> {
        match self.hear(until)? {
            Frame::Message(reply) => Ok(reply),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}

/// A shell of the keeper's.
struct KeptShell {
    talk: Talk,
    primed: u64,
}

impl Shell for KeptShell {
    fn primed(&self) -> Option<u64> {
        Some(self.primed)
    }

    fn write(&mut self, bytes: &[u8], until: Instant) -> io::Result<()> {
        let left = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        self.talk.stream.set_write_timeout(Some(left))?;
        match self.talk.stream.write_all(&protocol::bytes(false, bytes)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
            written => written,
        }
    }

    fn read(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<Chunk> {
        let (bytes, chunk): (Vec<u8>, fn(usize) -> Chunk) = match self.talk.hear(until) {
            Ok(Frame::Bytes(bytes)) => (bytes, Chunk::Out),
            Ok(Frame::ErrorBytes(bytes)) => (bytes, Chunk::Err),
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
