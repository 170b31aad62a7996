//! A command's side of the keeper: finds it or starts it, and uses it as a way to the host.

use std::io::{self, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::path::{KeeperPath, KnownConfiguration, is_ours};
use super::protocol::{self, Frame, Reply, Request, Status, VERSION};
use crate::connection::ssh;
use crate::connection::{Chunk, Policy, Relays, Shell, ShellInput};
use crate::error::{Failure, Kind, reason};
use crate::host::Destination;
use crate::job::JobId;
use crate::sys;

/// How long a keeper may take to greet: it has nothing else to do that takes long.
const GREETING_MAX: Duration = Duration::from_secs(3);
/// How long it may take to give a shell: a little longer than it lets anybody wait for one.
const SHELL: Duration = Duration::from_secs(5);
/// How long another command may take to start the keeper that this one needs too.
const STARTING: Duration = Duration::from_secs(30);
/// How often that is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// How long a keeper may take to hear that this command has gone.
const PARTING: Duration = Duration::from_secs(1);
/// How many keepers one destination has for commands with different directories, environments or limits.
const SIBLINGS_MAX: usize = 8;
/// The word on the command line that makes rsig a keeper.
pub const SERVE: &str = "keeper-serve";

/// What a keeper that is being started says to the command that starts it.
#[derive(Debug, Serialize, Deserialize)]
pub enum StartupReport {
    /// It listens.
    Ready,
    /// It could not connect.
    Failed { kind: Kind, message: String },
}

/// One connection to a keeper.
pub struct KeeperClient {
    stream: UnixStream,
    input: Vec<u8>,
    /// The jobs whose relays the keeper held at the greeting.
    jobs: Vec<String>,
}

impl KeeperClient {
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
        stream.set_write_timeout(Some(GREETING_MAX))?;
        let mut talk = Self {
            stream,
            input: Vec::new(),
            jobs: Vec::new(),
        };
        talk.say(&Request::Hello {
            version: VERSION.to_owned(),
        })?;
        match talk.hear(Instant::now() + GREETING_MAX) {
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
    let mut talk = KeeperClient::open(socket)?.ok_or(ErrorKind::NotFound)?;
    talk.say(&Request::Stop)?;
    let until = Instant::now() + GREETING_MAX;
    loop {
        match talk.hear(until) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => return Err(error),
            Err(_) => return Ok(()),
        }
    }
}

fn ask(socket: &std::path::Path, request: &Request) -> io::Result<Status> {
    let mut talk = KeeperClient::open(socket)?.ok_or(ErrorKind::NotFound)?;
    talk.say(request)?;
    match talk.hear(Instant::now() + GREETING_MAX)? {
        Frame::Message(Reply::Status(status)) => Ok(status),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// Finds the shared keeper of a destination, or starts one.
fn shared(
    destination: &Destination,
    policy: &Policy,
) -> io::Result<Result<KeeperConnection, Failure>> {
    let connection = |ready, place| {
        Ok(Ok(KeeperConnection {
            place,
            private: None,
            ready: Some(ready),
        }))
    };
    let (place, configuration) = if destination.host.remote().is_none() {
        (KeeperPath::of(destination)?, None)
    } else {
        let known = KnownConfiguration::of(destination)?;
        if let Some(place) = known.keeper()
            && let Some((ready, place)) = find(place, policy)?
        {
            return connection(ready, place);
        }
        match ssh::ask(destination) {
            Ok((answer, sources)) => {
                let send = ssh::send_patterns(destination, &answer);
                (known.learn(answer.digest(), send, sources), Some(answer))
            }
            Err(failure) => {
                let message = format!("{destination}: {}", failure.message);
                return Ok(Err(Failure::new(failure.kind, message)));
            }
        }
    };
    if let Some((ready, place)) = find(place.clone(), policy)? {
        return connection(ready, place);
    }
    let others = siblings(&place)?.count();
    if others >= SIBLINGS_MAX {
        return Err(io::Error::other("there are many for other environments"));
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
    if let Some(ready) = KeeperClient::open(&place.socket)? {
        return connection(ready, place);
    }
    if waited && siblings(&place)?.count() <= others {
        // Not one after the other: where one has failed, all others would wait for each other to fail.
        return Err(io::Error::other("another command could not start it"));
    }
    if let Err(failure) = start(destination, &place, policy, false, configuration)? {
        return Ok(Err(failure));
    }
    drop(lock);
    match KeeperClient::open(&place.socket)? {
        Some(ready) => connection(ready, place),
        None => Err(io::Error::other(
            "the keeper that was just started does not answer",
        )),
    }
}

/// A keeper that listens: the one at a place, or any of the same destination where no job is started.
fn find(place: KeeperPath, policy: &Policy) -> io::Result<Option<(KeeperClient, KeeperPath)>> {
    if let Some(ready) = KeeperClient::open(&place.socket)? {
        return Ok(Some((ready, place)));
    }
    if policy.starts {
        return Ok(None);
    }
    Ok(siblings(&place)?.next())
}

/// The keepers of the same destination whose shells were given something else.
fn siblings(place: &KeeperPath) -> io::Result<impl Iterator<Item = (KeeperClient, KeeperPath)>> {
    let open = |place: KeeperPath| Some((KeeperClient::open(&place.socket).ok()??, place));
    Ok(place.siblings()?.into_iter().filter_map(open))
}

/// Starts a keeper, and waits until it listens. It asks what it has to ask on this command's terminal.
fn start(
    destination: &Destination,
    place: &KeeperPath,
    policy: &Policy,
    private: bool,
    configuration: Option<ssh::Answer>,
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
    let order = KeeperSettings {
        destination: destination.clone(),
        batch: policy.batch,
        verbose: policy.verbose,
        quiet: policy.quiet,
        private,
        configuration,
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
        Ok(StartupReport::Ready) => {
            child.stdin = input.filter(|_| private);
            Ok(Ok(child))
        }
        Ok(StartupReport::Failed { kind, message }) => {
            child.wait()?;
            Ok(Err(Failure::new(kind, message)))
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
pub struct KeeperSettings {
    /// Where to connect.
    pub destination: Destination,
    /// Ask nobody.
    pub batch: bool,
    /// Say the steps of connecting.
    pub verbose: bool,
    /// Leave out the server's banner.
    pub quiet: bool,
    /// Be one command's own: end when the standard input does, and carry much.
    pub private: bool,
    /// What ssh says of the destination, where it was asked already.
    pub configuration: Option<ssh::Answer>,
}

/// A private keeper's process: it ends when its standard input does.
struct PrivateKeeper {
    place: KeeperPath,
    child: Mutex<Child>,
    _directory: Option<TempDir>,
}

impl PrivateKeeper {
    fn end(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        drop(child.stdin.take());
        let _ = child.wait();
        let _ = std::fs::remove_file(&self.place.socket);
    }
}

impl Drop for PrivateKeeper {
    fn drop(&mut self) {
        self.end();
    }
}

/// A host's keeper: the one that its commands share, or a private one, which ends when nobody uses it any more.
pub struct KeeperConnection {
    place: KeeperPath,
    private: Option<Arc<PrivateKeeper>>,
    /// Greeted, and not used yet.
    ready: Option<KeeperClient>,
}

impl Clone for KeeperConnection {
    fn clone(&self) -> Self {
        Self {
            place: self.place.clone(),
            private: self.private.clone(),
            ready: None,
        }
    }
}

impl KeeperConnection {
    /// Finds the shared keeper or starts one, where the policy wants one and it can be used.
    pub fn shared(destination: &Destination, policy: &Policy) -> Result<Option<Self>, Failure> {
        if !policy.keeper {
            return Ok(None);
        }
        match shared(destination, policy) {
            Ok(connection) => connection.map(Some),
            Err(error) => {
                (policy.step)(&format!("{destination}: no shared keeper ({error})"));
                Ok(None)
            }
        }
    }

    /// Starts a private keeper.
    pub fn private(destination: &Destination, policy: &Policy) -> Result<Self, Failure> {
        let started = KeeperPath::private().and_then(|(place, directory)| {
            let keeper = start(destination, &place, policy, true, None)?;
            Ok(keeper.map(|child| PrivateKeeper {
                place,
                child: Mutex::new(child),
                _directory: directory,
            }))
        });
        let keeper = started.map_err(|error| {
            let message = format!(
                "{destination}: no process can be started for the connection: {}",
                reason(&error)
            );
            Failure::new(Kind::Failed, message)
        })??;
        Ok(Self {
            place: keeper.place.clone(),
            private: Some(Arc::new(keeper)),
            ready: None,
        })
    }

    /// Ends a private keeper, whoever else uses it.
    pub fn end(&self) {
        if let Some(private) = &self.private {
            private.end();
        }
    }

    pub fn is_shared(&self) -> bool {
        self.private.is_none()
    }

    fn talk(&mut self) -> io::Result<KeeperClient> {
        match self.ready.take() {
            Some(talk) => Ok(talk),
            None => KeeperClient::open(&self.place.socket)?
                .ok_or_else(|| io::Error::other("the connection is gone")),
        }
    }

    /// Checks a shell out; `None` where the shared keeper gives none. Nothing was sent by then.
    pub fn shell(
        &mut self,
        destination: &Destination,
        policy: &Policy,
    ) -> Result<Option<Box<dyn Shell>>, Failure> {
        let mut why = String::new();
        // A keeper whose connection was found broken has gone: then there is another one by now, or will be.
        for _ in 0..2 {
            match self.talk().and_then(KeeperShell::check_out) {
                Ok(shell) => return Ok(Some(Box::new(shell))),
                Err(error) => why = error.to_string(),
            }
            if self.private.is_some() {
                return Err(Failure::new(
                    Kind::Unreachable,
                    format!("{destination}: {why}"),
                ));
            }
            // What another one would start fails as well, and is to be started here to find out why.
            if destination.is_process()
                || !matches!(KeeperClient::open(&self.place.socket), Ok(None))
            {
                break;
            }
            match shared(destination, policy) {
                Ok(connection) => *self = connection?,
                Err(error) => why = error.to_string(),
            }
        }
        (policy.step)(&format!(
            "{destination}: the shared keeper can't be used ({why})"
        ));
        Ok(None)
    }

    /// Leaves a script with the shared keeper, which runs it when it can, whatever becomes of this command.
    pub fn leave_script(&self, script: String) {
        if self.is_shared()
            && let Ok(Some(mut talk)) = KeeperClient::open(&self.place.socket)
        {
            // A keeper that is gone can run nothing.
            drop(talk.say(&Request::Cancel { script }));
        }
    }

    /// The relays that the keeper holds, if any: without them, signals go by pid.
    pub fn relays(&mut self) -> Option<Box<dyn Relays>> {
        let talk = self.talk().ok()?;
        if talk.jobs.is_empty() {
            self.ready = Some(talk);
            return None;
        }
        Some(Box::new(talk))
    }
}

impl Relays for KeeperClient {
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

/// A shell of a keeper's pool.
struct KeeperShell {
    talk: KeeperClient,
    primed: u64,
    /// Another command waits for a shell.
    wanted: bool,
    /// Held while a frame is written: other threads write too.
    writing: Arc<Mutex<()>>,
}

impl KeeperShell {
    fn check_out(mut talk: KeeperClient) -> io::Result<Self> {
        talk.say(&Request::Shell)?;
        match talk.hear(Instant::now() + SHELL)? {
            Frame::Message(Reply::Shell { primed }) => Ok(Self {
                talk,
                primed,
                wanted: false,
                writing: Arc::default(),
            }),
            Frame::Message(Reply::Busy) => Err(io::Error::other(
                "the server gives the keeper no more channels",
            )),
            _ => Err(io::Error::other("the keeper sent an unexpected reply")),
        }
    }
}

impl KeeperShell {
    fn send(&mut self, frames: &[u8], until: Instant) -> io::Result<()> {
        let left = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.talk.stream.set_write_timeout(Some(left))?;
        match self.talk.stream.write_all(frames) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
            written => written,
        }
    }
}

impl Drop for KeeperShell {
    /// Other threads may hold the socket too.
    fn drop(&mut self) {
        // What was written before still arrives.
        drop(self.talk.stream.shutdown(std::net::Shutdown::Both));
    }
}

impl Shell for KeeperShell {
    fn primed(&self) -> Option<u64> {
        Some(self.primed)
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
        // A keeper that is gone has no pool either.
        let frame = protocol::message(&Request::CheckIn);
        drop(self.send(&frame, Instant::now() + GREETING_MAX));
    }

    fn keep_relay(&mut self, job: &JobId, word: String, script: String) {
        // Without a relay, signals go by pid.
        drop(self.talk.say(&Request::Relay {
            job: job.to_string(),
            word,
            script,
        }));
    }

    fn input(&self) -> io::Result<ShellInput> {
        let stream = Arc::new(self.talk.stream.try_clone()?);
        let writing = Arc::clone(&self.writing);
        let send = Arc::new(move |frames: &[u8]| {
            let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
            (&*stream).write_all(frames)
        });
        let beat = Arc::clone(&send);
        Ok(ShellInput::new(
            Box::new(move |bytes| send(&protocol::bytes(false, bytes))),
            Box::new(move |every| {
                let seconds = every.as_secs().max(1);
                // A keeper that is gone is noticed by who reads.
                drop(beat(&protocol::message(&Request::Beat { seconds })));
            }),
        ))
    }

    fn write(&mut self, bytes: &[u8], until: Instant) -> io::Result<()> {
        self.send(&protocol::bytes(false, bytes), until)
    }

    fn read(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<Chunk> {
        let (bytes, chunk): (Vec<u8>, fn(usize) -> Chunk) = match self.talk.hear(until) {
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
