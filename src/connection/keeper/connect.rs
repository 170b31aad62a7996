//! Finds the keeper of a destination, or starts it.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::client::KeeperClient;
use super::path::{KeeperPath, KnownConfiguration};
use super::protocol::Request;
use super::shell::KeeperShell;
use crate::connection::ssh;
use crate::connection::{Policy, Relays, Shell};
use crate::error::{Failure, Kind, reason};
use crate::host::Destination;
use crate::sys;

/// How long another command may take to start the keeper that this one needs too.
const STARTING: Duration = Duration::from_secs(30);
/// How often that is looked for.
const LOOK: Duration = Duration::from_millis(10);
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
    // The user is asked once: not by one that could not listen then.
    place.probe()?;
    match start(destination, &place, policy, false, configuration)? {
        Ok(keeper) => reap(keeper),
        Err(failure) => return Ok(Err(failure)),
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
    let mut command = Command::new(own_program()?);
    command
        .arg0("rsig")
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

/// This program, even if its file was replaced meanwhile, as by an upgrade.
fn own_program() -> io::Result<PathBuf> {
    let (path, own) = (std::env::current_exe()?, Path::new("/proc/self/exe"));
    Ok(if path.exists() || !own.exists() {
        path
    } else {
        own.to_owned()
    })
}

/// Has a keeper waited for that nobody here waits for: a server, or a run over many connections, starts one after another.
fn reap(mut keeper: Child) {
    // Without a thread, it stays a zombie until this process ends.
    let _ = std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(move || keeper.wait());
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
    child: Mutex<Option<Child>>,
    _directory: Option<TempDir>,
}

impl PrivateKeeper {
    /// Has it end once what it was told last has been done.
    fn dismiss(&self) -> Option<Child> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = child.take()?;
        drop(child.stdin.take());
        let _ = std::fs::remove_file(&self.place.socket);
        Some(child)
    }

    fn end(&self) {
        if let Some(mut child) = self.dismiss() {
            let _ = child.wait();
        }
    }
}

impl Drop for PrivateKeeper {
    /// Its last words take a round trip, which nobody waits for.
    fn drop(&mut self) {
        if let Some(child) = self.dismiss() {
            reap(child);
        }
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
                child: Mutex::new(Some(child)),
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

    /// How long its host may take to be connected to, as its configuration says.
    #[cfg(feature = "mcp")]
    pub fn connect_timeout(&mut self) -> Option<Duration> {
        self.talk().ok().map(|talk| talk.connect_timeout)
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
