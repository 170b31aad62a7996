//! Finds the keeper of a destination, or starts it.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::client::{KeeperClient, is_gone};
use super::path::{KeeperPath, KnownConfiguration};
use super::protocol::Request;
use super::shell::KeeperShell;
use crate::connection::ssh;
use crate::connection::{Policy, Relays, Shell};
use crate::error::{Failure, Kind, reason};
use crate::host::Destination;
use crate::sys;

/// Maximum wait for another command that is starting the same keeper.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(30);
/// Interval between attempts to take the lock.
const LOCK_RECHECK: Duration = Duration::from_millis(10);
/// Maximum number of keepers of one destination, for commands with different directories, environments or limits.
const SIBLINGS_MAX: usize = 8;
/// The command-line word that makes rsig a keeper.
pub const SERVE: &str = "keeper-serve";

/// What a new keeper reports to the command that started it.
#[derive(Debug, Serialize, Deserialize)]
pub enum StartupReport {
    /// It is listening.
    Ready,
    /// It could not connect.
    Failed { kind: Kind, message: String },
}

/// Finds the shared keeper of a destination, or starts one.
fn find_or_start(
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
                (
                    known.record_configuration(answer.digest(), send, sources),
                    Some(answer),
                )
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
    if siblings(&place)?.count() >= SIBLINGS_MAX {
        return Err(io::Error::other(
            "there are too many for other environments",
        ));
    }
    let until = Instant::now() + LOCK_WAIT_MAX;
    let mut waited = false;
    let lock = loop {
        if let Some(lock) = place.lock()? {
            break lock;
        }
        waited = true;
        if Instant::now() >= until {
            return Err(io::Error::other("another command is still starting it"));
        }
        std::thread::sleep(LOCK_RECHECK);
    };
    if let Some(ready) = KeeperClient::open(&place.socket)? {
        return connection(ready, place);
    }
    // The lock file is empty if the last start succeeded.
    if waited && lock.metadata()?.len() > 0 {
        // Trying again here would make all waiting commands fail one after the other.
        return Err(io::Error::other("another command failed to start it"));
    }
    lock.set_len(1)?;
    // Checked first, so that the user is not prompted by a keeper that then can't listen.
    place.probe()?;
    match start(destination, &place, policy, false, configuration)? {
        Ok(keeper) => reap(keeper),
        Err(failure) => return Ok(Err(failure)),
    }
    lock.set_len(0)?;
    drop(lock);
    match KeeperClient::open(&place.socket)? {
        Some(ready) => connection(ready, place),
        None => Err(io::Error::other("the new keeper does not respond")),
    }
}

/// Finds a keeper that is listening: the one at `place` or, if no job is to be started, any of the same destination.
fn find(place: KeeperPath, policy: &Policy) -> io::Result<Option<(KeeperClient, KeeperPath)>> {
    if let Some(ready) = KeeperClient::open(&place.socket)? {
        return Ok(Some((ready, place)));
    }
    if policy.starts {
        return Ok(None);
    }
    Ok(siblings(&place)?.next())
}

/// The other listening keepers of the same destination: their shells have a different environment.
fn siblings(place: &KeeperPath) -> io::Result<impl Iterator<Item = (KeeperClient, KeeperPath)>> {
    let open = |place: KeeperPath| Some((KeeperClient::open(&place.socket).ok()??, place));
    Ok(place.siblings()?.into_iter().filter_map(open))
}

/// Starts a keeper, and waits until it is listening. The keeper prompts on this command's terminal.
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
    let settings = KeeperSettings {
        destination: destination.clone(),
        batch: policy.batch,
        verbose: policy.verbose,
        quiet: policy.quiet,
        private,
        configuration,
    };
    // Held open until the keeper has reported. When it closes, the keeper stops prompting, since this command is gone.
    let mut input = child.stdin.take();
    if let Some(input) = &mut input {
        let mut settings = serde_json::to_vec(&settings)?;
        settings.push(b'\n');
        // If the child has already exited, the reason is reported below.
        drop(input.write_all(&settings));
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

/// The path of this program, even if its file was replaced since the start, as by an upgrade.
fn own_program() -> io::Result<PathBuf> {
    let (path, own) = (std::env::current_exe()?, Path::new("/proc/self/exe"));
    Ok(if path.exists() || !own.exists() {
        path
    } else {
        own.to_owned()
    })
}

/// Waits in the background for a keeper to exit: a server, or a run over many connections, starts many of them.
fn reap(mut keeper: Child) {
    // If no thread can be started, the keeper stays a zombie until this process ends.
    let _ = std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(move || keeper.wait());
}

/// The settings that a keeper gets on its standard input, so that they do not show in process lists.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeeperSettings {
    /// Where to connect.
    pub destination: Destination,
    /// Do not prompt.
    pub batch: bool,
    /// Report the steps of connecting.
    pub verbose: bool,
    /// Do not show the server's banner.
    pub quiet: bool,
    /// Serve one command only: end at end of file on standard input, and use large windows and buffers.
    pub private: bool,
    /// What ssh reported about the destination, if it was already queried.
    pub configuration: Option<ssh::Answer>,
}

/// A private keeper's process, which ends at end of file on its standard input.
struct PrivateKeeper {
    place: KeeperPath,
    child: Mutex<Option<Child>>,
    _directory: Option<TempDir>,
}

impl PrivateKeeper {
    /// Tells the keeper to end after it has carried out the last requests.
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
    /// Shutting the keeper down takes a round trip, which is not waited for.
    fn drop(&mut self) {
        if let Some(child) = self.dismiss() {
            reap(child);
        }
    }
}

/// A host's keeper: the one that all commands share, or a private one, which ends when it is no longer used.
pub struct KeeperConnection {
    place: KeeperPath,
    private: Option<Arc<PrivateKeeper>>,
    /// A connection that has exchanged greetings and was not used yet.
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
    /// Finds the shared keeper or starts one. `None` if the policy wants none or it can't be used.
    pub fn shared(destination: &Destination, policy: &Policy) -> Result<Option<Self>, Failure> {
        if !policy.keeper {
            return Ok(None);
        }
        match find_or_start(destination, policy) {
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

    /// Ends a private keeper, even if others use it.
    pub fn end(&self) {
        if let Some(private) = &self.private {
            private.end();
        }
    }

    /// Timeout for connecting to the keeper's host, from its configuration.
    #[cfg(feature = "mcp")]
    pub fn connect_timeout(&mut self) -> Option<Duration> {
        self.open_client().ok().map(|client| client.connect_timeout)
    }

    pub fn is_shared(&self) -> bool {
        self.private.is_none()
    }

    fn open_client(&mut self) -> io::Result<KeeperClient> {
        match self.ready.take() {
            Some(client) => Ok(client),
            None => KeeperClient::open(&self.place.socket)?
                .ok_or_else(|| io::Error::other("the connection is gone")),
        }
    }

    /// Checks a shell out. `None` if the caller is to start one without this keeper; nothing was sent then.
    pub fn shell(
        &mut self,
        destination: &Destination,
        policy: &Policy,
    ) -> Result<Option<Box<dyn Shell>>, Failure> {
        let mut why = String::new();
        // A keeper ends when it finds its connection broken. Then the second round finds or starts another one.
        for _ in 0..2 {
            let gone = match self.open_client().and_then(KeeperShell::check_out) {
                Ok(mut shell) => {
                    shell.keeper = self.private.clone().map(|keeper| keeper as _);
                    return Ok(Some(Box::new(shell)));
                }
                Err(error) => {
                    why = error.to_string();
                    is_gone(&error)
                }
            };
            // Another shared keeper would do no better, but a private one may. If that can't start the process either,
            // the caller starts it itself, to learn why it fails.
            if destination.is_process() {
                break;
            }
            if self.private.is_some() {
                return Err(Failure::new(
                    Kind::Unreachable,
                    format!("{destination}: {why}"),
                ));
            }
            if !gone && !matches!(KeeperClient::open(&self.place.socket), Ok(None)) {
                break;
            }
            match find_or_start(destination, policy) {
                Ok(connection) => *self = connection?,
                Err(error) => why = error.to_string(),
            }
        }
        (policy.step)(&format!("{destination}: the keeper can't be used ({why})"));
        Ok(None)
    }

    /// Leaves a script with a shared keeper, which runs it when it can, even if this command has ended by then.
    pub fn queue_script(&self, script: String) {
        if let Ok(Some(mut client)) = KeeperClient::open(&self.place.socket) {
            // If this fails, the keeper is gone and can't run the script.
            drop(client.send(&Request::Cancel { script }));
        }
    }

    /// The relays that the keeper holds; `None` if it holds none, and signals go by pid.
    pub fn relays(&mut self) -> Option<Box<dyn Relays>> {
        let client = self.open_client().ok()?;
        if client.jobs.is_empty() {
            self.ready = Some(client);
            return None;
        }
        Some(Box::new(client))
    }
}
