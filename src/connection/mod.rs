//! Runs `/bin/sh -s` on a host, as a child process on this machine or as a shell of a keeper, and sends scripts to it.
//!
//! Only keepers speak SSH: the keeper that all commands for a host share, or a private one that ends with its command.
//! [`crate::remote`] decides what is sent to a shell.

pub mod keeper;
mod local;
mod openssh;
mod permits;
pub mod ssh;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollTimeout};

use crate::error::Failure;
use crate::host::Destination;
use crate::job::JobId;
use keeper::connect::KeeperConnection;
use keeper::protocol::Reply;
pub use permits::Permits;

/// The result of reading from a shell.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// This many bytes of standard output.
    Out(usize),
    /// This many bytes of standard error.
    Err(usize),
    /// The shell has ended.
    End,
    /// Nothing arrived before the deadline.
    Nothing,
}

/// The functions that all scripts share. A pooled shell is given them while it waits for its first script.
pub struct Primer {
    pub text: Vec<u8>,
    /// Distinguishes these functions from those of another rsig.
    pub mark: u64,
}

/// A running `/bin/sh -s`.
pub trait Shell {
    /// The mark of the primer that the shell was given.
    fn primed(&self) -> Option<u64> {
        None
    }

    /// Whether the shell runs behind a program that can hang silently, which no keepalive detects.
    fn may_hang(&self) -> bool {
        false
    }

    /// Sends a script. `done` is what the shell prints once it is ready for another one.
    fn send_script(
        &mut self,
        text: &[u8],
        _done: Option<String>,
        until: Instant,
    ) -> std::io::Result<()> {
        self.write(text, until)
    }

    /// Writes all of `bytes` to the shell's standard input.
    fn write(&mut self, bytes: &[u8], until: Instant) -> std::io::Result<()>;

    /// Reads the next bytes into `buffer`.
    fn read(&mut self, buffer: &mut [u8], until: Instant) -> std::io::Result<Chunk>;

    /// Whether another command waits for this shell. A stream should then stop, and continue later.
    fn is_wanted(&self) -> bool {
        false
    }

    /// Returns the shell to its pool. To be called when the whole answer was read; a shell that is dropped without this
    /// is closed.
    fn check_in(&mut self) {}

    /// Asks the pool to keep a channel for a job's relay, which `script` starts.
    fn keep_relay(&mut self, _job: &JobId, _word: String, _script: String) {}

    /// A handle with which other threads write to the shell.
    fn input(&self) -> std::io::Result<ShellInput>;
}

/// Interval between checks whether another thread is still writing.
const WRITER_RECHECK: Duration = Duration::from_millis(5);

/// Writes bytes. If they may not wait, they are one short line, and the write fails with `WouldBlock`.
type Write = dyn Fn(&[u8], bool) -> std::io::Result<()> + Send + Sync;

/// Writes to a shell from threads other than the one that reads from it. Each write arrives in one piece.
pub struct ShellInput {
    /// `None` after the last line: anything after it would be run as commands.
    write: Mutex<Option<Box<Write>>>,
    beat: Box<dyn Fn(Duration) + Send + Sync>,
}

impl ShellInput {
    fn new(write: Box<Write>, beat: Box<dyn Fn(Duration) + Send + Sync>) -> Self {
        Self {
            write: Mutex::new(Some(write)),
            beat,
        }
    }

    /// Fails after [`ShellInput::finish`].
    pub fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let write = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        write
            .as_ref()
            .ok_or(std::io::ErrorKind::BrokenPipe)
            .map_err(std::io::Error::from)
            .and_then(|write| write(bytes, true))
    }

    /// The writer, unless another thread is writing: the reader must not wait for a writer that may wait for the
    /// reader.
    fn try_lock(&self) -> Option<MutexGuard<'_, Option<Box<Write>>>> {
        match self.write.try_lock() {
            Ok(write) => Some(write),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Writes, unless another thread is writing or the last line was written.
    pub fn try_write(&self, bytes: &[u8]) {
        if let Some(write) = self.try_lock().as_deref().and_then(Option::as_ref) {
            // The thread that reads will notice a broken connection.
            drop(write(bytes, false));
        }
    }

    /// Writes the last line; later writes fail. False if another thread kept writing until `timeout`, or there was no
    /// room: the reader, which calls this, must not wait for that.
    pub fn finish(&self, line: &str, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        loop {
            if let Some(mut write) = self.try_lock() {
                let written = write.as_ref().map(|write| write(line.as_bytes(), false));
                let is_full =
                    |error: std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
                if !written.and_then(Result::err).is_some_and(is_full) {
                    *write = None;
                    return true;
                }
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(WRITER_RECHECK);
        }
    }

    /// Makes the pool send the shell an empty line at this interval, even while this process is stopped.
    pub fn start_heartbeat(&self, every: Duration) {
        (self.beat)(every);
    }
}

/// A private connection that is made in the background, without asking the user anything, while a stream uses a shared
/// one. If it can't be made, the stream stays on the shared connection.
pub struct PrivateConnection {
    shared: Arc<Preparation>,
}

#[derive(Default)]
struct Preparation {
    state: Mutex<PreparationState>,
    changed: Condvar,
}

#[derive(Default)]
struct PreparationState {
    /// The stream has carried `SHARED_BYTES_MAX` bytes.
    is_large: bool,
    cancelled: bool,
    backend: Option<Backend>,
}

/// How long a stream stays on the shared connection, and how many bytes it carries there, before a private one is made.
const SHARED_TIME_MAX: Duration = Duration::from_secs(2);
const SHARED_BYTES_MAX: u64 = 2 << 20;

impl PrivateConnection {
    /// Starts to prepare a private connection for a stream over `connection`; `None` if that is private already.
    pub fn prepare(connection: &HostConnection<'_>) -> Option<Self> {
        if !connection.was_shared_before() {
            return None;
        }
        let shared = Arc::new(Preparation::default());
        let this = Self {
            shared: Arc::clone(&shared),
        };
        let destination = connection.destination.clone();
        let permits = connection.permits.clone();
        let policy = Policy {
            batch: true,
            keeper: false,
            verbose: false,
            step: |_| (),
            warn: |_| (),
            ..*connection.policy
        };
        let prepare = move || {
            let state = shared.lock();
            let waits = |state: &mut PreparationState| !state.is_large && !state.cancelled;
            let waited = shared
                .changed
                .wait_timeout_while(state, SHARED_TIME_MAX, waits);
            if waited.is_ok_and(|(state, _)| state.cancelled) {
                return;
            }
            // Many streams may start together, and their connections must not all be made at once.
            let permit = permits.as_ref().map(|permits| permits.take());
            let backend = Backend::private(&destination, &policy).ok();
            drop(permit);
            let mut state = shared.lock();
            if !state.cancelled {
                state.backend = backend;
            }
        };
        // Without a thread, the stream stays on the shared connection.
        drop(std::thread::Builder::new().spawn(prepare));
        Some(this)
    }

    /// Reports how many bytes the stream has carried.
    pub fn count_bytes(&self, bytes: u64) {
        if bytes >= SHARED_BYTES_MAX {
            self.shared.lock().is_large = true;
            self.shared.changed.notify_all();
        }
    }

    pub fn is_ready(&self) -> bool {
        self.shared.lock().backend.is_some()
    }

    /// Makes `connection` use the private connection, once it is ready.
    pub fn take_over(&self, connection: &mut HostConnection<'_>) {
        if let Some(backend) = self.shared.lock().backend.take() {
            connection.backend = Some(backend);
        }
    }
}

impl Drop for PrivateConnection {
    fn drop(&mut self) {
        self.shared.lock().cancelled = true;
        self.shared.changed.notify_all();
    }
}

impl Preparation {
    fn lock(&self) -> MutexGuard<'_, PreparationState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The relays that a keeper holds. Several requests may be sent before their replies are read, which arrive in any
/// order.
pub trait Relays {
    /// Whether the keeper may hold the relay of a job.
    fn may_hold_relay(&self, job: &JobId) -> bool;

    /// Ends the conversation and returns the outstanding replies. A request whose reply is not among them will not be
    /// carried out.
    fn finish(&mut self) -> Vec<Reply>;

    /// Requests that a job's relay send it a signal.
    fn signal(&mut self, job: &JobId, name: &str) -> std::io::Result<()>;

    /// Requests a reply when a job ends.
    fn watch(&mut self, job: &JobId) -> std::io::Result<()>;

    /// The next reply. `TimedOut` if none has arrived by `until`; any other error means that the keeper has gone.
    fn next(&mut self, until: Instant) -> std::io::Result<Reply>;
}

/// The pauses between connection attempts, each twice as long as the previous one, up to a limit.
pub struct Backoff(Duration);

impl Backoff {
    const MAX: Duration = Duration::from_secs(5);

    pub fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::MAX);
        pause
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(200))
    }
}

/// How many shells in a row may end without output before the host is considered to have no shell: on a private
/// connection, and on a shared one.
const SILENT_SHELLS_MAX: (u32, u32) = (2, 4);
/// Pause before another shell is requested on a shared connection.
const SILENT_SHELL_PAUSE: Duration = Duration::from_millis(100);

/// Repeats `connect` with growing pauses while the host is not reached and time is left.
pub fn keep_trying<T>(
    left: impl Fn() -> Duration,
    mut connect: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut backoff = Backoff::default();
    loop {
        match connect() {
            Err(failure) if failure.kind.is_outage() && !left().is_zero() => {}
            other => return other,
        }
        std::thread::sleep(backoff.next().min(left()));
    }
}

/// The connection to one host, made when it is first needed and again after it broke.
pub struct HostConnection<'a> {
    destination: &'a Destination,
    policy: &'a Policy,
    permits: Option<Arc<Permits>>,
    backend: Option<Backend>,
}

#[derive(Clone)]
enum Backend {
    /// Each shell is a child process.
    Local,
    Keeper(KeeperConnection),
}

impl Backend {
    /// A keeper or local shells that no other command uses.
    fn private(destination: &Destination, policy: &Policy) -> Result<Self, Failure> {
        if destination.is_plain_local() {
            return Ok(Self::Local);
        }
        (policy.step)(&format!("{destination}: starting a private keeper"));
        KeeperConnection::private(destination, policy).map(Self::Keeper)
    }

    fn open(destination: &Destination, policy: &Policy) -> Result<Self, Failure> {
        // A local shell starts at once: a keeper would not save time.
        if !destination.is_plain_local()
            && let Some(keeper) = KeeperConnection::shared(destination, policy)?
        {
            return Ok(Self::Keeper(keeper));
        }
        Self::private(destination, policy)
    }

    fn shell(
        &mut self,
        destination: &Destination,
        policy: &Policy,
    ) -> Result<Box<dyn Shell>, Failure> {
        match self {
            Self::Local => local::shell(destination),
            Self::Keeper(keeper) => match keeper.shell(destination, policy)? {
                Some(shell) => Ok(shell),
                None => {
                    *self = if keeper.is_shared() {
                        Self::private(destination, policy)?
                    } else {
                        Self::Local
                    };
                    self.shell(destination, policy)
                }
            },
        }
    }
}

impl<'a> HostConnection<'a> {
    /// Does not connect yet.
    pub fn new(destination: &'a Destination, policy: &'a Policy) -> Self {
        Self {
            destination,
            policy,
            permits: None,
            backend: None,
        }
    }

    /// Holds one of these permits while connecting.
    pub fn with_permits(self, permits: Arc<Permits>) -> Self {
        Self {
            permits: Some(permits),
            ..self
        }
    }

    /// The host as the user named it, for messages.
    pub fn host(&self) -> String {
        self.destination.to_string()
    }

    /// The directory for jobs' files, if not the home directory.
    pub fn jobs_dir(&self) -> Option<&'a str> {
        self.destination.connect.jobs_dir.as_deref()
    }

    /// Connects, unless already connected.
    pub fn connect(&mut self) -> Result<(), Failure> {
        self.backend().map(drop)
    }

    /// Another handle to the same connection, for another thread.
    pub fn share(&self) -> Self {
        Self {
            permits: None,
            backend: self.backend.clone(),
            ..*self
        }
    }

    /// Another handle to the same connection, for a thread that may outlive this one.
    pub fn detach(&self) -> DetachedConnection {
        DetachedConnection {
            destination: self.destination.clone(),
            policy: *self.policy,
            backend: self.backend.clone(),
        }
    }

    /// Hands a script over to a local shell, or to the shared keeper if there is one, without waiting for it to run.
    pub fn queue_script(&self, script: String) {
        match &self.backend {
            Some(Backend::Keeper(keeper)) if keeper.is_shared() => keeper.queue_script(script),
            Some(_) if self.destination.is_process() => {
                local::start_script(self.destination, &script);
            }
            Some(_) | None => {}
        }
    }

    /// Checks a shell out of the pool.
    pub fn shell(&mut self) -> Result<Box<dyn Shell>, Failure> {
        let (destination, policy) = (self.destination, self.policy);
        self.backend()?.shell(destination, policy)
    }

    /// Runs `work`, which must be safe to repeat, with a shell. It is repeated over a new connection if the old one
    /// turns out to be broken, and with another shell if the first ends without output.
    pub fn ask<T>(
        &mut self,
        mut work: impl FnMut(&mut dyn Shell) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (mut broke, mut silent) = (false, 0);
        loop {
            let result = work(self.shell()?.as_mut());
            match &result {
                Err(failure)
                    if failure.kind.is_retryable() && !broke && self.was_shared_before() =>
                {
                    broke = true;
                    self.close();
                }
                Err(failure) if failure.kind.has_no_shell() && self.was_shared_before() => {
                    silent += 1;
                    if !self.may_try_another(silent) {
                        return result;
                    }
                }
                _ => return result,
            }
        }
    }

    /// Whether to request another shell after `silent` ones that ended without output. A shell may have been killed
    /// before it printed anything; and Dropbear before 2024.86 ends a channel that is opened at the moment at which the
    /// shell of another one ends.
    pub fn may_try_another(&self, silent: u32) -> bool {
        let another = gives_another(silent, self.was_shared_before());
        if silent > 1 && another {
            std::thread::sleep(SILENT_SHELL_PAUSE);
        }
        another
    }

    /// The relays that the host's keeper may hold.
    pub fn relays(&mut self) -> Option<Box<dyn Relays>> {
        match self.backend().ok()? {
            Backend::Local => None,
            Backend::Keeper(keeper) => keeper.relays(),
        }
    }

    /// How long connecting to the host may take. Connects first, to find out; `None` for local shells.
    #[cfg(feature = "mcp")]
    pub fn connect_timeout(&mut self) -> Option<Duration> {
        match self.backend().ok()? {
            Backend::Local => None,
            Backend::Keeper(keeper) => keeper.connect_timeout(),
        }
    }

    /// Whether another command may have made the connection, so that it may turn out to be broken.
    pub fn was_shared_before(&self) -> bool {
        matches!(&self.backend, Some(Backend::Keeper(keeper)) if keeper.is_shared())
    }

    /// Reconnects after a break, and retries while the host is not reached, until `until`. The user is told after the
    /// second failure.
    pub fn connect_again(&mut self, why: &Failure, until: Instant) -> Result<(), Failure> {
        self.close();
        let mut failures = 0;
        let left = || until.saturating_duration_since(Instant::now());
        keep_trying(left, || {
            let connected = self.connect();
            failures += u32::from(connected.is_err());
            // A failure that the next attempt repairs is not worth a message.
            if failures == 2 {
                (self.policy.warn)(&format!("{why}; connecting again"));
            }
            connected
        })
    }

    /// Drops the connection. A private one ends for all handles that share it.
    pub fn close(&mut self) {
        if let Some(Backend::Keeper(keeper)) = self.backend.take() {
            keeper.end();
        }
    }

    fn backend(&mut self) -> Result<&mut Backend, Failure> {
        match &mut self.backend {
            Some(backend) => Ok(backend),
            none => {
                let _permit = self.permits.as_ref().map(|permits| permits.take());
                Ok(none.insert(Backend::open(self.destination, self.policy)?))
            }
        }
    }
}

/// See [`HostConnection::detach`].
pub struct DetachedConnection {
    destination: Destination,
    policy: Policy,
    backend: Option<Backend>,
}

impl DetachedConnection {
    pub fn connection(&self) -> HostConnection<'_> {
        HostConnection {
            destination: &self.destination,
            policy: &self.policy,
            permits: None,
            backend: self.backend.clone(),
        }
    }
}

fn gives_another(silent: u32, shared: bool) -> bool {
    silent
        < if shared {
            SILENT_SHELLS_MAX.1
        } else {
            SILENT_SHELLS_MAX.0
        }
}

/// How to connect.
#[derive(Clone, Copy)]
pub struct Policy {
    /// Never ask the user anything.
    pub batch: bool,
    /// Use the host's shared keeper, and start one if there is none.
    pub keeper: bool,
    /// Jobs are started, with variables of this command's environment. Otherwise any keeper of the destination will do.
    pub starts: bool,
    /// Maximum number of hosts to contact at once.
    pub parallel: usize,
    /// The steps of connecting are reported (`-v`).
    pub verbose: bool,
    /// The server's banner is not shown.
    pub quiet: bool,
    /// Called with a line for each step of connecting, for `-v`.
    pub step: fn(&str),
    /// Called with messages that the user should always see.
    pub warn: fn(&str),
}

/// Waits until one of the descriptors is ready. False if the deadline passed first.
pub(crate) fn wait(fds: &mut [PollFd<'_>], until: Instant) -> std::io::Result<bool> {
    crate::sys::socket_callbacks::renew();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that the last millisecond is not spent spinning. A wait that is too long for poll(2) is split.
        let milliseconds = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        match nix::poll::poll(
            fds,
            PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use super::{ShellInput, gives_another};

    #[test]
    fn the_last_line_does_not_wait_for_a_writer_without_end() {
        let (takes, taken) = sync_channel(0);
        let write =
            move |bytes: &[u8], _| takes.send(bytes.to_vec()).map_err(std::io::Error::other);
        let input = ShellInput::new(Box::new(write), Box::new(|_| ()));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| input.write(b"much"));
            while input.try_lock().is_some() {
                std::thread::yield_now();
            }
            input.try_write(b"ping");
            assert!(!input.finish("quit", Duration::from_millis(10)));
            assert_eq!(taken.recv().unwrap(), b"much");
            writer.join().unwrap().unwrap();
            let reader = scope.spawn(move || taken.recv().unwrap());
            assert!(input.finish("quit", Duration::from_secs(60)));
            assert_eq!(reader.join().unwrap(), b"quit");
        });
        input.try_write(b"ping");
        let error = input.write(b"more").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn another_shell_is_asked_for_a_few_times() {
        for (shared, silent, another) in [
            (true, 1, true),
            (true, 3, true),
            (true, 4, false),
            (false, 1, true),
            (false, 2, false),
        ] {
            assert_eq!(gives_another(silent, shared), another, "{silent} {shared}");
        }
    }
}
