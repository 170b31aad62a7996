//! How a script reaches a host: by a child process on this machine, or over SSH.
//!
//! Whatever the way, what stands at its other end is `/bin/sh -s`, and what is said to it is the business of
//! [`crate::remote`].

pub mod keeper;
pub mod local;
mod slots;
pub mod ssh;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollTimeout};

use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::job::JobId;
use keeper::protocol::Reply;
pub use slots::Slots;

/// What came from a shell.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// That many bytes of its standard output.
    Out(usize),
    /// That many bytes of its standard error.
    Err(usize),
    /// It will say no more.
    End,
    /// Nothing until the time was over.
    Nothing,
}

/// What a shell is given while it waits for its script.
pub struct Primer {
    /// A command for it, which says nothing.
    pub text: Vec<u8>,
    /// Tells this from every other one.
    pub mark: u64,
}

/// A live `/bin/sh -s`.
pub trait Shell {
    /// The mark of what it was given already, if it was given something.
    fn primed(&self) -> Option<u64> {
        None
    }

    /// Sends all of `bytes` to its standard input.
    fn write(&mut self, bytes: &[u8], until: Instant) -> std::io::Result<()>;

    /// Takes what it says next, into `buffer`.
    fn read(&mut self, buffer: &mut [u8], until: Instant) -> std::io::Result<Chunk>;
}

/// A host that can be given scripts, one after the other.
pub trait Transport {
    /// A new shell there.
    fn shell(&mut self) -> Result<Box<dyn Shell + '_>, Failure>;

    /// A new shell for the script that starts `job`, and the word for its relay if its channel will be kept as one.
    fn shell_with_relay(
        &mut self,
        _job: &JobId,
    ) -> Result<(Box<dyn Shell + '_>, Option<RelayToBe>), Failure> {
        self.shell().map(|shell| (shell, None))
    }

    /// A new shell that is sent an empty line every so often for as long as this process lives, however it is held up;
    /// `None` where nobody does that.
    fn beating_shell(&mut self, _every: Duration) -> Option<Result<Box<dyn Shell + '_>, Failure>> {
        None
    }

    /// Whether no further shell should be asked of this connection.
    fn is_spent(&self) -> bool {
        false
    }

    /// Whether its connection was made long ago, by another command, and may be found broken.
    fn may_be_stale(&self) -> bool {
        false
    }

    /// The relays of jobs on this host, where somebody may hold some.
    fn relays(&mut self) -> Option<Box<dyn Relays>> {
        None
    }
}

/// The relays that a keeper holds. Requests may be made one after the other; their answers come in any order.
pub trait Relays {
    /// Whether the relay of a job may be held.
    fn holds(&self, job: &JobId) -> bool;

    /// Ends the talk, and gives what was still said: what is not among that will not be done any more.
    fn part(&mut self) -> Vec<Reply>;

    /// Asks for a signal to be sent to a job by its relay.
    fn signal(&mut self, job: &JobId, name: &str) -> std::io::Result<()>;

    /// Asks to be told of a job's end.
    fn watch(&mut self, job: &JobId) -> std::io::Result<()>;

    /// The next answer.
    fn next(&mut self, until: Instant) -> std::io::Result<Reply>;
}

/// A channel that is to be kept as a job's relay.
#[derive(Clone, Debug)]
pub struct RelayToBe {
    /// What each of its lines begins with.
    pub word: String,
    /// Its server is known to pass signals on: it is sent no probe.
    pub proven: bool,
}

/// The time between two tries to connect again: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How many shells are asked for where each ends without a word: of a connection of one's own, and of one for many.
const WORDLESS: (u32, u32) = (2, 4);
/// How long the others of such a connection are given to end.
const MOMENT: Duration = Duration::from_millis(100);

/// Connects again and again, the more seldom the longer that lasts, for as long as the host is not reached and there is
/// time left.
pub fn keep_trying<T>(
    left: impl Fn() -> Duration,
    mut connect: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut pause = BACKOFF.0;
    loop {
        match connect() {
            Err(failure) if failure.kind == Kind::Unreachable && !left().is_zero() => {}
            other => return other,
        }
        std::thread::sleep(pause.min(left()));
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// The way to one host, connected when it is first needed and again after it broke.
pub struct Line<'a> {
    destination: &'a Destination,
    policy: &'a Policy,
    slots: Option<Arc<Slots>>,
    transport: Option<Box<dyn Transport + 'a>>,
}

impl<'a> Line<'a> {
    /// The way to a host; nothing is connected yet.
    pub fn new(destination: &'a Destination, policy: &'a Policy) -> Self {
        Self {
            destination,
            policy,
            slots: None,
            transport: None,
        }
    }

    /// Takes one of these slots for as long as connecting lasts.
    pub fn among(self, slots: Arc<Slots>) -> Self {
        Self {
            slots: Some(slots),
            ..self
        }
    }

    /// The host as the user named it, for messages.
    pub fn host(&self) -> String {
        self.destination.to_string()
    }

    /// Connects, unless that was done.
    pub fn connect(&mut self) -> Result<(), Failure> {
        self.shell_source().map(drop)
    }

    /// A new shell on the host.
    pub fn shell(&mut self) -> Result<Box<dyn Shell + '_>, Failure> {
        self.shell_source()?.shell()
    }

    /// Has a shell work on what may be done twice: where an old connection turns out to be broken, it is done again over
    /// a new one; and where a shell ends without a word, by another.
    pub fn ask<T>(
        &mut self,
        mut work: impl FnMut(&mut dyn Shell) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (mut broke, mut wordless) = (false, 0);
        loop {
            let result = work(self.shell()?.as_mut());
            match &result {
                Err(failure)
                    if failure.kind == Kind::Unreachable && !broke && self.may_be_stale() =>
                {
                    broke = true;
                    self.hang_up();
                }
                Err(failure) if failure.kind == Kind::NoShell && self.may_be_stale() => {
                    wordless += 1;
                    if !self.gives_another(wordless) {
                        return result;
                    }
                }
                _ => return result,
            }
        }
    }

    /// Whether to ask for another shell after so many that ended without a word, which is given a moment first. One may
    /// have been killed before it said anything; and of a connection that others use too, Dropbear before 2024.86 ends a
    /// channel that is opened in the moment in which another one's shell ends.
    pub fn gives_another(&self, wordless: u32) -> bool {
        let most = if self.may_be_stale() {
            WORDLESS.1
        } else {
            WORDLESS.0
        };
        if wordless > 1 && wordless < most {
            std::thread::sleep(MOMENT);
        }
        wordless < most
    }

    /// A new shell for the script that starts `job`; see [`Transport::shell_with_relay`].
    pub fn shell_with_relay(
        &mut self,
        job: &JobId,
    ) -> Result<(Box<dyn Shell + '_>, Option<RelayToBe>), Failure> {
        self.shell_source()?.shell_with_relay(job)
    }

    /// A shell that is sent a sign of life; see [`Transport::beating_shell`].
    pub fn beating_shell(
        &mut self,
        every: Duration,
    ) -> Option<Result<Box<dyn Shell + '_>, Failure>> {
        match self.shell_source() {
            Ok(transport) => transport.beating_shell(every),
            Err(failure) => Some(Err(failure)),
        }
    }

    /// The relays that may be held for the host's jobs.
    pub fn relays(&mut self) -> Option<Box<dyn Relays>> {
        self.shell_source().ok()?.relays()
    }

    /// See [`Transport::may_be_stale`].
    pub fn may_be_stale(&self) -> bool {
        self.transport
            .as_ref()
            .is_some_and(|transport| transport.may_be_stale())
    }

    /// Connects anew after a break, and tries that again and again for as long as the host is not reached and the time
    /// is not over. The user is told when it lasts.
    pub fn connect_again(&mut self, why: &Failure, until: Instant) -> Result<(), Failure> {
        self.hang_up();
        let mut failures = 0;
        let left = || until.saturating_duration_since(Instant::now());
        keep_trying(left, || {
            let connected = self.connect();
            failures += u32::from(connected.is_err());
            // What is over with the next try is not worth a word.
            if failures == 2 {
                (self.policy.warn)(&format!("{why}; connecting again"));
            }
            connected
        })
    }

    /// Gives the connection up.
    pub fn hang_up(&mut self) {
        self.transport = None;
    }

    fn shell_source(&mut self) -> Result<&mut Box<dyn Transport + 'a>, Failure> {
        if self
            .transport
            .as_ref()
            .is_some_and(|transport| transport.is_spent())
        {
            self.transport = None;
        }
        match &mut self.transport {
            Some(transport) => Ok(transport),
            empty => {
                let _slot = self.slots.as_ref().map(|slots| slots.take());
                Ok(empty.insert(open(self.destination, self.policy)?))
            }
        }
    }
}

/// A command's own connection to a host, for as much and as long as it takes. Several lines may use it at once.
pub struct Gate<'a> {
    destination: &'a Destination,
    policy: &'a Policy,
    keeper: Option<keeper::client::Private>,
}

impl<'a> Gate<'a> {
    /// Connects.
    pub fn open(destination: &'a Destination, policy: &'a Policy) -> Result<Self, Failure> {
        if destination.is_local() {
            return Ok(Self {
                destination,
                policy,
                keeper: None,
            });
        }
        let keeper = keeper::client::Private::start(destination, policy).map_err(|error| {
            Failure::new(
                Kind::Failed,
                format!("{destination}: no process can hold the connection: {error}"),
            )
        })??;
        Ok(Self {
            destination,
            policy,
            keeper: Some(keeper),
        })
    }

    /// A shell by this connection, which may be kept.
    pub fn shell(&self) -> Result<Box<dyn Shell>, Failure> {
        match &self.keeper {
            Some(keeper) => keeper.way().own_shell(),
            None => local::Local::own_shell(),
        }
    }

    /// A line by this connection.
    pub fn line(&self) -> Line<'a> {
        let mut line = Line::new(self.destination, self.policy);
        if let Some(keeper) = &self.keeper {
            line.transport = Some(Box::new(keeper.way()));
        }
        line
    }
}

/// How to connect.
#[derive(Clone, Copy)]
pub struct Policy {
    /// Never ask the user anything.
    pub batch: bool,
    /// Connect by way of the host's keeper, and start one where there is none.
    pub keeper: bool,
    /// How many hosts are talked to at once, at most.
    pub parallel: usize,
    /// The steps are wanted.
    pub verbose: bool,
    /// Takes a line for each step of connecting, for `-v`.
    pub step: fn(&str),
    /// Takes what the user should hear in any case.
    pub warn: fn(&str),
}

/// Connects to a host.
pub fn open<'a>(
    destination: &'a Destination,
    policy: &'a Policy,
) -> Result<Box<dyn Transport + 'a>, Failure> {
    if destination.is_local() {
        return Ok(Box::new(local::Local));
    }
    if policy.keeper {
        match keeper::client::open(destination, policy) {
            Ok(kept) => return kept.map(|kept| Box::new(kept) as Box<dyn Transport + 'a>),
            Err(error) => (policy.step)(&format!(
                "{destination}: no keeper ({error}); connecting directly"
            )),
        }
    }
    ssh::open(destination, policy)
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
    use super::*;

    /// A host whose shells say nothing, and whether its connection is shared.
    struct Silent {
        shared: bool,
    }

    impl Shell for Silent {
        fn write(&mut self, _bytes: &[u8], _until: Instant) -> std::io::Result<()> {
            Ok(())
        }

        fn read(&mut self, _buffer: &mut [u8], _until: Instant) -> std::io::Result<Chunk> {
            Ok(Chunk::End)
        }
    }

    impl Transport for Silent {
        fn shell(&mut self) -> Result<Box<dyn Shell + '_>, Failure> {
            Ok(Box::new(Self {
                shared: self.shared,
            }))
        }

        fn may_be_stale(&self) -> bool {
            self.shared
        }
    }

    #[test]
    fn a_shell_that_says_nothing_is_asked_for_again_where_others_share_its_connection() {
        let destination = Destination {
            host: "local".parse().unwrap(),
            connect: crate::host::Connect::default(),
        };
        let policy = Policy {
            batch: true,
            keeper: false,
            parallel: 1,
            verbose: false,
            step: |_| (),
            warn: |_| (),
        };
        // How many shells say nothing, how many are asked for, and whether that is enough.
        for (shared, wordless, asked, answered) in [
            (true, 0, 1, true),
            (true, 1, 2, true),
            (true, 3, 4, true),
            (true, 4, 4, false),
            (false, 1, 1, false),
        ] {
            let mut line = Line::new(&destination, &policy);
            line.transport = Some(Box::new(Silent { shared }));
            let mut shells = 0;
            let answer = line.ask(|_| {
                shells += 1;
                if shells > wordless {
                    Ok(())
                } else {
                    Err(Failure::new(Kind::NoShell, ""))
                }
            });
            assert_eq!(
                (shells, answer.is_ok()),
                (asked, answered),
                "{wordless} of {shared}"
            );
        }
    }
}
