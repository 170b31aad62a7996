//! `run`: a job in the foreground. Its output comes as it is written, its input and the user's signals go to it, and it
//! ends when whoever holds it does, unless it is to run on.
//!
//! A connection that breaks is made anew, and goes on at the right byte both ways: what a job has written waits on its
//! host until it is delivered, and what it is to read is kept here until it is there.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::ephemeral::forget_read;
use super::spawn::Flow;
use super::{Context, spawn};
use crate::connection::{Line, Policy, Shell, keep_trying};
use crate::delivery::{self, Order, Outcome, Ways};
use crate::error::{Failure, Kind, exit};
use crate::host::Destination;
use crate::job::{Record, State, Target, now};
use crate::remote::foreground::{self, End, Positions, Source};
use crate::remote::look::Streams;
use crate::remote::start::{Spool, Tether};
use crate::signal::{Os, Signal, SignalWord};
use crate::state::{Signalled, Store};

/// A job to run.
pub struct Request {
    /// What to start, and where.
    pub spawn: spawn::Request,
    /// How long it may take to end after INT, TERM or HUP.
    pub grace: Duration,
    /// How long it may be without whoever runs it; `None`: for as long as it likes.
    pub tether: Option<Duration>,
    /// How much of its output may wait on the host, in bytes.
    pub backlog: u64,
}

/// What comes from outside while a job runs.
pub struct Outside {
    /// Its input; none is /dev/null.
    pub input: Option<Box<dyn Read + Send>>,
    /// Signals for it, as they come.
    pub signals: Receiver<Pass>,
    /// Stops this process, once the job is stopped.
    pub stop: fn(),
    /// Tells the user something.
    pub note: fn(&str),
}

/// A signal that is passed on.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// The signal.
    pub signal: SignalWord,
    /// It asks the job to end: KILL follows after the grace, or at the next one.
    pub ends: bool,
    /// The user stops the run, and with it this process.
    pub stops: bool,
}

/// How a job that was run has ended.
pub struct Ran {
    /// Its record.
    pub record: Record,
    /// The host's disk was full, and some of its output is lost.
    pub disk_full: bool,
}

/// The most of the input that is kept until the host has it.
const KEPT: usize = 4 << 20;
/// The size of a piece of the input.
const PIECE: usize = 64 << 10;
/// How long the input's thread waits for the next piece before it looks around.
const PAUSE: Duration = Duration::from_millis(20);
/// How often the host hears that the job is still held, at most.
const BEAT: Duration = Duration::from_secs(3);
/// How long a job that runs on by itself is looked for when its host is gone.
const UNTETHERED: Duration = Duration::from_secs(3600);
/// How long this process waits for the tether to be held by its keeper before it stops itself.
const HELD: Duration = Duration::from_secs(10);
/// How long a job may take to end whose output nobody takes any more.
const ENDING: Duration = Duration::from_secs(10);

/// Runs a job to its end.
pub fn run(
    context: &mut Context,
    request: Request,
    outside: Outside,
    sink: &mut foreground::Sink<'_>,
) -> Result<Ran> {
    let destination = request.spawn.destination.clone();
    // A connection of its own, which carries much and dies with this process.
    let policy = Policy {
        keeper: false,
        ..context.policy
    };
    let mut connection = Line::new(&destination, &policy);
    connection.connect()?;
    let tether = request
        .tether
        .map(|patience| tether(&destination, patience))
        .transpose()?;
    let spool = Spool {
        input: outside.input.is_some(),
        limit: request.backlog,
    };
    let order = spawn::Request {
        foreground: Some(spawn::Foreground {
            spool,
            tether: tether.clone(),
        }),
        ..request.spawn
    };
    let (spawned, flow) = spawn::in_foreground(context, &connection, &order)?;
    if let Some(warning) = &spawned.warning {
        (outside.note)(warning);
    }
    let mut record = spawned.record;
    let place = record.dir.clone().unwrap_or_else(|| record.id.to_string());
    let held = Held {
        destination: &destination,
        policy: &policy,
        place,
        beat: tether
            .filter(|_| !destination.is_local())
            .map(|tether| (tether.patience / 4).min(BEAT)),
        patience: request.tether.unwrap_or(UNTETHERED) + Duration::from_secs(60),
        note: outside.note,
        stop: outside.stop,
        shared: Mutex::new(Shared {
            connection: Some(connection),
            number: 0,
            is_held: false,
            over: false,
        }),
        changed: Condvar::new(),
    };
    let result = std::thread::scope(|scope| {
        let (held, record, grace, signals) = (&held, &record, request.grace, outside.signals);
        if let Some(every) = held.beat {
            scope.spawn(move || held.keep_tether(every));
        }
        if let Some(input) = outside.input {
            let pieces = read_ahead(input);
            scope.spawn(move || held.send_input(pieces));
        }
        scope.spawn(move || held.pass_signals(record, &signals, grace));
        let result = held.stream(flow, sink);
        if matches!(&result, Err(failure) if failure.kind == Kind::Failed) {
            held.end_job(record);
        }
        // By the connection that is there, and not by another one.
        let forgotten = record.ephemeral
            && result.as_ref().is_ok_and(|end| end.state.is_finished())
            && held.forget(record);
        held.finish();
        result.map(|end| (end, forgotten))
    });
    let (end, forgotten) = result?;
    record.state = end.state;
    record.exit_status = end.exit_status;
    record.finished_at = end.finished_at;
    record.timed_out = end.timed_out;
    record.checked_at = Some(now());
    context.store.update([&record]);
    if forgotten {
        context.store.remove(&record);
    }
    Ok(Ran {
        record,
        disk_full: end.disk_full,
    })
}

/// What ends the job when this process is gone: on this machine the process itself, elsewhere the beats that it sends.
fn tether(destination: &Destination, patience: Duration) -> Result<Tether> {
    let holder = destination.is_local().then(|| -> Result<_> {
        let pid = std::process::id();
        Ok((pid, birth(pid)?))
    });
    Ok(Tether {
        patience,
        holder: holder.transpose()?,
    })
}

/// When a process started, as the scripts read it: field 22 of proc(5)'s stat, else what ps says.
fn birth(pid: u32) -> Result<String> {
    if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        && let Some((_, fields)) = stat.rsplit_once(") ")
        && let Some(birth) = fields.split(' ').nth(19)
    {
        return Ok(birth.to_owned());
    }
    let output = std::process::Command::new("ps")
        .args(["-o", "lstart=", "-p", &pid.to_string()])
        .env("LC_ALL", "C")
        .env("TZ", "UTC0")
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join("_"))
}

/// A job that is held, and the connection that all of the run's threads share.
struct Held<'a> {
    destination: &'a Destination,
    policy: &'a Policy,
    place: String,
    beat: Option<Duration>,
    /// How long a host may be gone before the run gives up.
    patience: Duration,
    note: fn(&str),
    stop: fn(),
    shared: Mutex<Shared<'a>>,
    changed: Condvar,
}

struct Shared<'a> {
    /// None while it is being made anew.
    connection: Option<Line<'a>>,
    /// How often it was made anew.
    number: u64,
    /// The host hears beats, whatever becomes of this process's threads.
    is_held: bool,
    over: bool,
}

impl<'a> Held<'a> {
    fn shared(&self) -> MutexGuard<'_, Shared<'a>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.shared().over
    }

    /// A line by the connection of the moment, and that one's number; waits while there is none. `None`: all is over.
    fn line(&self) -> Option<(Line<'a>, u64)> {
        let mut shared = self.shared();
        loop {
            if shared.over {
                return None;
            }
            match shared.connection.as_ref().map(Line::share) {
                Some(line) => return Some((line, shared.number)),
                None => {
                    shared = self
                        .changed
                        .wait_timeout(shared, PAUSE * 10)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
    }

    /// Waits until there is another connection than that of a number.
    fn await_change(&self, number: u64) {
        let shared = self.shared();
        let same = |shared: &mut Shared<'a>| shared.number == number && !shared.over;
        drop(self.changed.wait_timeout_while(shared, PAUSE * 50, same));
    }

    fn finish(&self) {
        let mut shared = self.shared();
        shared.over = true;
        let connection = shared.connection.take();
        drop(shared);
        // Its end wakes whoever waits for something to come by it.
        if let Some(mut connection) = connection {
            connection.hang_up();
        }
        self.changed.notify_all();
    }

    /// Makes the connection anew.
    fn reconnect(&self, why: &Failure) -> Result<(), Failure> {
        let broken = self.shared().connection.take();
        if let Some(mut broken) = broken {
            broken.hang_up();
        }
        (self.note)(&format!("{why}; connecting again"));
        let begun = Instant::now();
        let left = || self.patience.saturating_sub(begun.elapsed());
        let mut connection = Line::new(self.destination, self.policy);
        keep_trying(left, || connection.connect())?;
        let mut shared = self.shared();
        shared.connection = Some(connection);
        shared.number += 1;
        self.changed.notify_all();
        (self.note)(&format!("{}: connected again", self.destination));
        Ok(())
    }

    /// Passes the output on until the job has ended, over as many connections as it takes.
    fn stream(
        &self,
        mut flow: Option<Flow>,
        sink: &mut foreground::Sink<'_>,
    ) -> Result<End, Failure> {
        let mut positions = Positions::default();
        loop {
            let Some((mut line, _)) = self.line() else {
                return Err(Failure::new(
                    Kind::Failed,
                    "the run was over before its job",
                ));
            };
            let host = line.host();
            let result = if let Some(Flow {
                mut shell,
                mut hearing,
            }) = flow.take()
            {
                foreground::go_on(&host, shell.as_mut(), &mut hearing, &mut positions, sink)
            } else {
                let mut stream = |shell: &mut dyn Shell| {
                    foreground::stream(&host, shell, &self.place, &mut positions, sink)
                };
                line.shell().and_then(|mut shell| stream(shell.as_mut()))
            };
            match result {
                Err(failure) if failure.kind == Kind::Unreachable => self.reconnect(&failure)?,
                other => return other,
            }
        }
    }

    /// Has the host forget the job, all of whose output has been passed on, and says whether it has. One that can't be
    /// asked is asked by the next command that looks.
    fn forget(&self, record: &Record) -> bool {
        let Some((mut line, _)) = self.line() else {
            return false;
        };
        let gone = forget_read(
            &mut line,
            &mut [record.clone()],
            Streams {
                out: true,
                err: true,
            },
        );
        gone.is_ok_and(|gone| gone == [true])
    }

    /// Keeps the host's watchdog quiet for as long as this process lives.
    fn keep_tether(&self, every: Duration) {
        while let Some((mut line, number)) = self.line() {
            let host = line.host();
            if let Ok(mut shell) = line.shell() {
                shell.beat(every);
                let mut held = || {
                    self.shared().is_held = true;
                    self.changed.notify_all();
                };
                // However that ends: over another connection, then.
                drop(foreground::hold(
                    &host,
                    shell.as_mut(),
                    &self.place,
                    &mut held,
                ));
                self.shared().is_held = false;
            }
            // Without it the job would be ended: a server that gave no channel is asked again before long.
            self.await_change(number);
        }
    }

    /// Stops this process, which sees to the job's tether no more then.
    fn stop(&self) {
        if self.beat.is_some() {
            let unheld = |shared: &mut Shared<'a>| !shared.is_held && !shared.over;
            drop(self.changed.wait_timeout_while(self.shared(), HELD, unheld));
        }
        (self.stop)();
    }

    /// Sends the input until the host has all of it.
    fn send_input(&self, pieces: Receiver<Vec<u8>>) {
        let mut input = Input {
            held: self,
            pieces,
            kept: VecDeque::new(),
            has: 0,
            sent: None,
            whole: false,
            done: false,
        };
        while !input.done {
            let Some((mut line, number)) = self.line() else {
                return;
            };
            let host = line.host();
            input.sent = None;
            let sent = line.shell().and_then(|mut shell| {
                foreground::receive(&host, shell.as_mut(), &self.place, &mut input)
            });
            if sent.is_err() && !self.is_over() && !input.done {
                self.await_change(number);
            }
        }
    }

    /// Passes the user's signals on to the job, and sees to it that it ends when it is told to.
    fn pass_signals(&self, record: &Record, signals: &Receiver<Pass>, grace: Duration) {
        let mut kill_at: Option<Instant> = None;
        while !self.is_over() {
            let wait = kill_at.map_or(PAUSE * 5, |at| {
                at.saturating_duration_since(Instant::now()).min(PAUSE * 5)
            });
            match signals.recv_timeout(wait) {
                Ok(Pass { ends: true, .. }) if kill_at.is_some() => {
                    kill_at = None;
                    self.send(record, SignalWord::KILL);
                }
                Ok(Pass {
                    signal,
                    ends,
                    stops,
                }) => {
                    self.send(record, signal);
                    if stops {
                        self.stop();
                    }
                    kill_at = kill_at.or(ends.then(|| Instant::now() + grace));
                }
                Err(RecvTimeoutError::Timeout)
                    if kill_at.is_some_and(|at| Instant::now() >= at) =>
                {
                    kill_at = None;
                    self.send(record, SignalWord::KILL);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody sends any more.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
            }
        }
    }

    fn send(&self, record: &Record, signal: SignalWord) {
        self.deliver(record, signal, None, None);
    }

    /// TERM, and after a while KILL: nobody takes the output any more.
    fn end_job(&self, record: &Record) {
        self.deliver(
            record,
            SignalWord::TERM,
            Some(SignalWord::KILL),
            Some(ENDING),
        );
    }

    fn deliver(
        &self,
        record: &Record,
        signal: SignalWord,
        then: Option<SignalWord>,
        wait: Option<Duration>,
    ) {
        let os = record.system().unwrap_or(Os::Other);
        let signals = signal
            .on(os)
            .and_then(|signal| Ok((signal, then.map(|then| then.on(os)).transpose()?)));
        let Ok((signal, then)) = signals else { return };
        let Some((mut line, _)) = self.line() else {
            return;
        };
        let (target, wake) = (Target::Group, then.is_some());
        let order = Order {
            record: record.clone(),
            signal: Some(signal),
            then,
            target,
            wake,
            ways: Ways::Pid,
        };
        delivery::deliver(&mut line, vec![order], wait, &mut |outcome| {
            self.write_down(&outcome, signal, then);
            if let Some(failure) = outcome
                .error
                .filter(|failure| failure.kind != Kind::NotRunning)
            {
                (self.note)(&failure.message);
            }
        });
    }

    /// The thread that passes signals on has no other use for the state file.
    fn write_down(&self, outcome: &Outcome, signal: Signal, then: Option<Signal>) {
        let first = Signalled {
            signal,
            sent: outcome.sent,
        };
        let second = then
            .zip(outcome.then)
            .map(|(signal, sent)| Signalled { signal, sent });
        match Store::open(self.note) {
            Ok(mut store) => {
                store.signalled(
                    &outcome.record,
                    Target::Group,
                    [&first].into_iter().chain(&second),
                );
            }
            Err(failure) => (self.note)(&failure.message),
        }
    }
}

/// Reads input in a thread of its own, which nobody waits for: a read can't be called off.
fn read_ahead(mut input: Box<dyn Read + Send>) -> Receiver<Vec<u8>> {
    let (sender, receiver): (SyncSender<Vec<u8>>, _) = mpsc::sync_channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        // An input that can't be read any more is at its end, as for every other program.
        while let Ok(size @ 1..) = input.read(&mut buffer) {
            if sender
                .send(buffer.get(..size).unwrap_or_default().to_vec())
                .is_err()
            {
                return;
            }
        }
    });
    receiver
}

/// The input on its way.
struct Input<'a, 'b> {
    held: &'a Held<'b>,
    pieces: Receiver<Vec<u8>>,
    /// What the host may not have yet; it begins with the byte at `has`.
    kept: VecDeque<u8>,
    has: u64,
    /// How much was sent, over this connection or before it; not known before the host has said what it has.
    sent: Option<u64>,
    /// All of it was read.
    whole: bool,
    done: bool,
}

impl Input<'_, '_> {
    /// Tells the host that this is all, once it has it.
    fn conclude(&mut self) {
        let total = self.has + self.kept.len() as u64;
        let Some((mut line, _)) = self.held.line() else {
            return;
        };
        let host = line.host();
        let finished = line.shell().and_then(|mut shell| {
            foreground::finish(&host, shell.as_mut(), &self.held.place, total)
        });
        self.done = finished.is_ok_and(|has| has >= total);
    }
}

impl Source for Input<'_, '_> {
    fn has(&mut self, total: u64) {
        self.sent = self.sent.or(Some(total));
        let gone = usize::try_from(total.saturating_sub(self.has))
            .unwrap_or(usize::MAX)
            .min(self.kept.len());
        self.kept.drain(..gone);
        self.has += gone as u64;
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let sent = self.sent?;
        let ahead = usize::try_from(sent.saturating_sub(self.has)).ok()?;
        if ahead == self.kept.len() && self.kept.len() < KEPT && !self.whole {
            match self.pieces.recv_timeout(PAUSE) {
                Ok(piece) => self.kept.extend(piece),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => self.whole = true,
            }
        }
        let piece: Vec<u8> = self
            .kept
            .range(ahead.min(self.kept.len())..)
            .take(PIECE)
            .copied()
            .collect();
        if !piece.is_empty() {
            self.sent = Some(sent + piece.len() as u64);
            return Some(piece);
        }
        if self.whole {
            self.conclude();
        } else {
            // The host has to catch up.
            std::thread::sleep(PAUSE);
        }
        None
    }

    fn is_done(&self) -> bool {
        self.done || self.held.is_over()
    }
}

/// The exit status of a run: the job's own, always; 124 when it ran into its time limit.
pub fn status(ran: &Ran) -> Option<u8> {
    if ran.record.timed_out {
        return Some(exit::TIMED_OUT);
    }
    ran.record
        .exit_status
        .filter(|_| ran.record.state == State::Exited)
}
