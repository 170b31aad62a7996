//! Gets a script to a host's `/bin/sh -s`: a child process on this machine, or a shell of a keeper's over SSH.
//!
//! SSH is spoken by keepers alone: the one that a host's commands share, or a private one that ends with its command.
//! What is said to a shell is the business of [`crate::remote`].

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

/// What came from a shell.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// That many bytes of its standard output.
    Out(usize),
    /// That many bytes of its standard error.
    Err(usize),
    /// The shell has ended.
    End,
    /// Nothing came in time.
    Nothing,
}

/// The functions that scripts share, which a shell is given while it waits for its first script.
pub struct Primer {
    pub text: Vec<u8>,
    /// Tells these functions from those of another rsig.
    pub mark: u64,
}

/// A live `/bin/sh -s`.
pub trait Shell {
    /// The mark of the primer that it was given.
    fn primed(&self) -> Option<u64> {
        None
    }

    /// Whether it runs behind a program that can hang without a word, which no keepalive notices.
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

    /// Sends all of `bytes` to its standard input.
    fn write(&mut self, bytes: &[u8], until: Instant) -> std::io::Result<()>;

    /// Reads what comes next into `buffer`.
    fn read(&mut self, buffer: &mut [u8], until: Instant) -> std::io::Result<Chunk>;

    /// Whether another command waits for this shell: a stream should go on later.
    fn is_wanted(&self) -> bool {
        false
    }

    /// Gives the shell back to its pool: the whole answer has been read. A shell that is dropped without this is closed.
    fn check_in(&mut self) {}

    /// Asks the pool to keep a channel for a job's relay, which `script` starts.
    fn keep_relay(&mut self, _job: &JobId, _word: String, _script: String) {}

    /// The way into the shell for other threads.
    fn input(&self) -> std::io::Result<ShellInput>;
}

/// How often to look whether another thread still writes.
const WRITER_RECHECK: Duration = Duration::from_millis(5);

type Write = dyn Fn(&[u8]) -> std::io::Result<()> + Send + Sync;

/// The way into a shell for other threads than the one that reads. Each write arrives in one piece.
pub struct ShellInput {
    /// None after the last line: what follows would be taken for commands.
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
            .and_then(|write| write(bytes))
    }

    /// The way, unless another thread is writing: the reader must not wait for a writer that may wait for the reader.
    fn unused(&self) -> Option<MutexGuard<'_, Option<Box<Write>>>> {
        match self.write.try_lock() {
            Ok(write) => Some(write),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Writes, unless another thread is writing, or has written the last line.
    pub fn try_write(&self, bytes: &[u8]) {
        if let Some(write) = self.unused().as_deref().and_then(Option::as_ref) {
            // Who reads will find the connection broken.
            drop(write(bytes));
        }
    }

    /// Writes the last line: nothing comes behind it. False if another thread was writing for as long as `patience`.
    pub fn finish(&self, line: &str, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            if let Some(mut write) = self.unused() {
                if let Some(write) = write.take() {
                    drop(write(line.as_bytes()));
                }
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(WRITER_RECHECK);
        }
    }

    /// Has the pool send the shell an empty line every so often, even while this process is stopped.
    pub fn beat(&self, every: Duration) {
        (self.beat)(every);
    }
}

/// A private connection that is made while a stream goes on over a shared one, without asking anything. Where it can't be
/// made, the stream stays.
pub struct PrivateConnection {
    shared: Arc<Preparation>,
}

#[derive(Default)]
struct Preparation {
    state: Mutex<Prepared>,
    changed: Condvar,
}

#[derive(Default)]
struct Prepared {
    /// The stream carries much.
    hurries: bool,
    over: bool,
    way: Option<Way>,
}

/// How long a stream stays on the shared connection, and how much it carries there.
const SHARED_TIME_MAX: Duration = Duration::from_secs(2);
const SHARED_BYTES_MAX: u64 = 2 << 20;

impl PrivateConnection {
    /// Prepares one for what goes over a line; none where that is private already.
    pub fn prepare(connection: &HostConnection<'_>) -> Option<Self> {
        if !connection.may_be_stale() {
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
            let waits = |state: &mut Prepared| !state.hurries && !state.over;
            let waited = shared
                .changed
                .wait_timeout_while(state, SHARED_TIME_MAX, waits);
            if waited.is_ok_and(|(state, _)| state.over) {
                return;
            }
            // Many streams may begin together: their connections must not all be made at once.
            let permit = permits.as_ref().map(|permits| permits.take());
            let way = Way::private(&destination, &policy).ok();
            drop(permit);
            let mut state = shared.lock();
            if !state.over {
                state.way = way;
            }
        };
        // Without a thread, the stream stays.
        drop(std::thread::Builder::new().spawn(prepare));
        Some(this)
    }

    /// Tells how much the stream has carried.
    pub fn carried(&self, bytes: u64) {
        if bytes >= SHARED_BYTES_MAX {
            self.shared.lock().hurries = true;
            self.shared.changed.notify_all();
        }
    }

    pub fn is_ready(&self) -> bool {
        self.shared.lock().way.is_some()
    }

    /// Has a line go on over the new connection.
    pub fn take_over(&self, connection: &mut HostConnection<'_>) {
        if let Some(way) = self.shared.lock().way.take() {
            connection.way = Some(way);
        }
    }
}

impl Drop for PrivateConnection {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}

impl Preparation {
    fn lock(&self) -> MutexGuard<'_, Prepared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The relays that a keeper holds. Requests may be made one after the other; their answers come in any order.
pub trait Relays {
    /// Whether the relay of a job may be held.
    fn holds(&self, job: &JobId) -> bool;

    /// Ends the conversation and returns the replies that were still to come: what is not among them will not be done.
    fn part(&mut self) -> Vec<Reply>;

    /// Asks for a signal to be sent to a job by its relay.
    fn signal(&mut self, job: &JobId, name: &str) -> std::io::Result<()>;

    /// Asks to be told of a job's end.
    fn watch(&mut self, job: &JobId) -> std::io::Result<()>;

    /// The next reply; `TimedOut` when none has come by then, any other error means that the keeper has gone.
    fn next(&mut self, until: Instant) -> std::io::Result<Reply>;
}

/// The pauses between attempts to connect, each twice as long as the one before, up to a limit.
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

/// How many shells in a row may end without a word before the host counts as having none: on a private connection, and on
/// a shared one.
const SILENT_SHELLS_MAX: (u32, u32) = (2, 4);
/// The pause before another shell is asked for on a shared connection.
const SILENT_SHELL_PAUSE: Duration = Duration::from_millis(100);

/// Connects again and again, the more seldom the longer that lasts, for as long as the host is not reached and there is
/// time left.
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
    way: Option<Way>,
}

#[derive(Clone)]
enum Way {
    /// Each shell is a child process.
    Local,
    Keeper(KeeperConnection),
}

impl Way {
    /// One that no other command uses.
    fn private(destination: &Destination, policy: &Policy) -> Result<Self, Failure> {
        if destination.is_process() {
            return Ok(Self::Local);
        }
        (policy.step)(&format!("{destination}: starting a private keeper"));
        KeeperConnection::private(destination, policy).map(Self::Keeper)
    }

    fn open(destination: &Destination, policy: &Policy) -> Result<Self, Failure> {
        // A shell of this machine is there at once.
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
                    *self = Self::private(destination, policy)?;
                    self.shell(destination, policy)
                }
            },
        }
    }
}

impl<'a> HostConnection<'a> {
    /// Nothing is connected yet.
    pub fn new(destination: &'a Destination, policy: &'a Policy) -> Self {
        Self {
            destination,
            policy,
            permits: None,
            way: None,
        }
    }

    /// Takes a permit for as long as connecting lasts.
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

    /// Where jobs' files go, if not to the home.
    pub fn jobs_dir(&self) -> Option<&'a str> {
        self.destination.connect.jobs_dir.as_deref()
    }

    /// Connects, unless that was done.
    pub fn connect(&mut self) -> Result<(), Failure> {
        self.way().map(drop)
    }

    /// Another user of the same connection, for another thread.
    pub fn share(&self) -> Self {
        Self {
            permits: None,
            way: self.way.clone(),
            ..*self
        }
    }

    /// The same for a thread that may outlive this one.
    pub fn detach(&self) -> DetachedConnection {
        DetachedConnection {
            destination: self.destination.clone(),
            policy: *self.policy,
            way: self.way.clone(),
        }
    }

    /// Leaves a script to a shell of this machine, or to the shared keeper if there is one.
    pub fn leave_script(&self, script: String) {
        match &self.way {
            Some(Way::Local) => local::leave_script(self.destination, &script),
            Some(Way::Keeper(keeper)) => keeper.leave_script(script),
            None => {}
        }
    }

    /// Checks a shell out of the pool.
    pub fn shell(&mut self) -> Result<Box<dyn Shell>, Failure> {
        let (destination, policy) = (self.destination, self.policy);
        self.way()?.shell(destination, policy)
    }

    /// Has a shell do what may be done twice: where an old connection turns out to be broken, it is done again over a new
    /// one; and where a shell ends without a word, by another.
    pub fn ask<T>(
        &mut self,
        mut work: impl FnMut(&mut dyn Shell) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (mut broke, mut silent) = (false, 0);
        loop {
            let result = work(self.shell()?.as_mut());
            match &result {
                Err(failure)
                    if failure.kind.is_worth_another_try() && !broke && self.may_be_stale() =>
                {
                    broke = true;
                    self.hang_up();
                }
                Err(failure) if failure.kind.is_without_shell() && self.may_be_stale() => {
                    silent += 1;
                    if !self.gives_another(silent) {
                        return result;
                    }
                }
                _ => return result,
            }
        }
    }

    /// Whether to ask for another shell after `silent` ones that ended without a word. One may have been killed before it
    /// said anything; and Dropbear before 2024.86 ends a channel that is opened in the moment in which the shell of
    /// another one ends.
    pub fn gives_another(&self, silent: u32) -> bool {
        let another = gives_another(silent, self.may_be_stale());
        if silent > 1 && another {
            std::thread::sleep(SILENT_SHELL_PAUSE);
        }
        another
    }

    /// The relays that the host's keeper may hold.
    pub fn relays(&mut self) -> Option<Box<dyn Relays>> {
        match self.way().ok()? {
            Way::Local => None,
            Way::Keeper(keeper) => keeper.relays(),
        }
    }

    /// How long its host may take to be connected to, once it is; on this machine there is no such time.
    #[cfg(feature = "mcp")]
    pub fn connect_timeout(&mut self) -> Option<Duration> {
        match self.way().ok()? {
            Way::Local => None,
            Way::Keeper(keeper) => keeper.connect_timeout(),
        }
    }

    /// Whether another command made the connection, so that it may be found broken.
    pub fn may_be_stale(&self) -> bool {
        matches!(&self.way, Some(Way::Keeper(keeper)) if keeper.is_shared())
    }

    /// Connects anew after a break, again and again while the host is not reached and the time is not over. The user is
    /// told when it lasts.
    pub fn connect_again(&mut self, why: &Failure, until: Instant) -> Result<(), Failure> {
        self.hang_up();
        let mut failures = 0;
        let left = || until.saturating_duration_since(Instant::now());
        keep_trying(left, || {
            let connected = self.connect();
            failures += u32::from(connected.is_err());
            // What is over with the next attempt is not worth a message.
            if failures == 2 {
                (self.policy.warn)(&format!("{why}; connecting again"));
            }
            connected
        })
    }

    /// Gives the connection up. A private one ends for all that share it.
    pub fn hang_up(&mut self) {
        if let Some(Way::Keeper(keeper)) = self.way.take() {
            keeper.end();
        }
    }

    fn way(&mut self) -> Result<&mut Way, Failure> {
        match &mut self.way {
            Some(way) => Ok(way),
            none => {
                let _permit = self.permits.as_ref().map(|permits| permits.take());
                Ok(none.insert(Way::open(self.destination, self.policy)?))
            }
        }
    }
}

/// See [`HostConnection::detach`].
pub struct DetachedConnection {
    destination: Destination,
    policy: Policy,
    way: Option<Way>,
}

impl DetachedConnection {
    pub fn connection(&self) -> HostConnection<'_> {
        HostConnection {
            destination: &self.destination,
            policy: &self.policy,
            permits: None,
            way: self.way.clone(),
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
    /// Connect by way of the host's keeper, and start one where there is none.
    pub keeper: bool,
    /// Jobs are started, with what this command's environment gives them. Without that, any keeper of the destination will do.
    pub starts: bool,
    /// How many hosts are talked to at once, at most.
    pub parallel: usize,
    /// The steps are wanted.
    pub verbose: bool,
    /// The server's banner is not wanted.
    pub quiet: bool,
    /// Takes a line for each step of connecting, for `-v`.
    pub step: fn(&str),
    /// Takes what the user should hear in any case.
    pub warn: fn(&str),
}

/// Waits until one of the descriptors is ready, or the time is over: then it gives false.
pub(crate) fn wait(fds: &mut [PollFd<'_>], until: Instant) -> std::io::Result<bool> {
    crate::sys::inflow::renew();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that the last millisecond is not spent spinning; a longer wait is taken in parts.
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
        let write = move |bytes: &[u8]| takes.send(bytes.to_vec()).map_err(std::io::Error::other);
        let input = ShellInput::new(Box::new(write), Box::new(|_| ()));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| input.write(b"much"));
            while input.unused().is_some() {
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
        assert!(input.write(b"more").is_err());
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
