//! Runs a job in the foreground. Its output is passed on as it is written, its input and the user's signals are sent to
//! it, and it ends when its client does, unless it is meant to run on.
//!
//! The job's output is kept in files on its host until it is delivered, and its input is kept here until the host has
//! it. So after a connection breaks, a new one continues at the right byte in both directions. A run begins on the
//! connection that the host's commands share, and moves to a private one if it lasts long or carries much data.

pub mod process;
mod run_stream;
mod signals;

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use run_stream::RunStream;

use crate::cmd::cleanup::forget_read;
use crate::cmd::context::SharedContext;
use crate::cmd::start::{self, JobStreams};
use crate::connection::{HostConnection, Permits, Policy, PrivateConnection, ShellInput};
use crate::error::{Failure, Kind, exit, no_thread, reason};
use crate::host::Destination;
use crate::job::{JobId, Record, State};
use crate::remote::Sink;
use crate::remote::look::StreamSelection;
use crate::remote::start::{Spool, Tether};
use crate::remote::stream::{self, JobEnd, OutputLoss, Positions, Runner as _};
use crate::signal::SignalWord;

/// A job to run.
pub struct Request {
    pub spawn: start::Request,
    /// Time that the job has to end after INT, TERM or HUP before KILL.
    pub grace: Duration,
    /// How long the job may run on without its client; `None`: without limit.
    pub tether: Option<Duration>,
    /// Maximum size of undelivered output on the host, in bytes per stream.
    pub backlog: u64,
    /// Limits concurrent connecting: a permit is held until the connection is made.
    pub permits: Option<Arc<Permits>>,
}

/// The run's interface to its caller while the job runs.
pub struct Surroundings {
    /// The job's input; `None`: /dev/null.
    pub input: Option<Box<dyn Read + Send>>,
    /// The channel for signals to the job. A `None` on it only wakes the receiver.
    pub signals: (Sender<Option<PassedSignal>>, Receiver<Option<PassedSignal>>),
    /// Stops this process. Called once the job is stopped.
    pub stop: Box<dyn Fn() + Send + Sync>,
    /// Ends this process with a status, or gives up this run only.
    pub exit: Box<dyn Fn(u8) + Send + Sync>,
    /// Shows the user a message.
    pub note: fn(&str),
}

/// A signal to pass on to the job.
#[derive(Clone, Copy, Debug)]
pub struct PassedSignal {
    pub signal: SignalWord,
    /// When the signal arrived: passing on the previous one may take long.
    pub at: Instant,
    /// 128 plus the signal's number on this machine.
    pub status: u8,
    /// The signal is INT; several of them kill the job.
    pub interrupts: bool,
    /// The signal asks the job to end: KILL follows after the grace.
    pub ends: bool,
    /// The signal ends a run whose job does not run yet.
    pub quits: bool,
    /// The signal stops the job and then this process (Ctrl-Z).
    pub stops: bool,
}

/// How the job of a run ended.
pub struct RunResult {
    pub record: Record,
    /// Why some of the output is missing, if any is.
    pub loss: Option<OutputLoss>,
}

/// Maximum size of the input kept until the host has it, in bytes.
const INPUT_KEPT_MAX: usize = 4 << 20;
/// Maximum size of a piece of input, in bytes. With its header line, it fits into one frame of the keeper protocol.
const PIECE_MAX: usize = 60_000;
/// Interval at which to look for more input.
const INPUT_INTERVAL: Duration = Duration::from_millis(20);
/// Interval at which a host that has no room for input is asked again.
const ROOM_INTERVAL: Duration = Duration::from_millis(100);
/// Number of bytes delivered before the host is told that it can delete them.
const ACK_EVERY: u64 = 8 << 20;
/// Longest interval between heartbeats; a short tether makes it shorter.
const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(3);
/// Maximum time to make a connection, by default.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// Pause before reconnecting after a connection broke: the first one, and the longest.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Runs a job to its end.
pub fn run(
    context: &SharedContext,
    request: Request,
    outside: Surroundings,
    sink: &mut Sink<'_>,
) -> Result<RunResult, Failure> {
    let destination = request.spawn.destination.clone();
    let policy = Policy {
        starts: true,
        ..context.lock().policy
    };
    let tether = request
        .tether
        .map(|patience| tether(&destination, patience))
        .transpose()?;
    let spool = Spool {
        input: outside.input.is_some(),
        limit: request.backlog,
    };
    let held = RunContext {
        destination: &destination,
        policy: &policy,
        heartbeat: tether
            .as_ref()
            .filter(|_| !destination.is_plain_local())
            .map(|tether| (tether.timeout / 4).min(HEARTBEAT_INTERVAL_MAX)),
        patience: request.tether.map(|tether| tether + CONNECT_MAX),
        grace: request.grace,
        note: outside.note,
        stop: outside.stop,
        exit: outside.exit,
        wake: outside.signals.0,
        shared: Mutex::default(),
        changed: Arc::default(),
    };
    let order = start::Request {
        foreground: Some(start::Foreground { spool, tether }),
        ..request.spawn
    };
    std::thread::scope(|scope| {
        let (held, signals) = (&held, outside.signals.1);
        // Makes the threads end on every way out of this scope.
        let _over = EndGuard(held);
        held.start_passing(scope, signals)
            .map_err(|error| no_thread(&error))?;
        let mut connection = HostConnection::new(&destination, &policy);
        if let Some(permits) = request.permits {
            connection = connection.with_permits(permits);
        }
        connection.connect()?;
        if !held.set_phase(Phase::Asked(connection.share())) {
            return Err(interrupted_start());
        }
        let (spawned, flow) = start::spawn_foreground(context, &connection, &order, &|id| {
            let mut shared = held.shared();
            shared.asked = Some(id.clone());
            if shared.given_up {
                return Err(interrupted_start());
            }
            Ok(())
        })?;
        if let Some(warning) = &spawned.warning {
            (outside.note)(warning);
        }
        let mut record = spawned.record;
        if !held.set_phase(Phase::Runs(Box::new(record.clone()))) {
            held.end_job(&record);
            return Err(interrupted_start());
        }
        let fed = outside
            .input
            .map(|input| read_ahead(input, Arc::clone(&held.changed)))
            .transpose()
            .and_then(|pieces| {
                std::thread::Builder::new()
                    .spawn_scoped(scope, move || held.send_pending(pieces.as_ref()))
            });
        if let Err(error) = fed {
            held.end_job(&record);
            return Err(no_thread(&error));
        }
        let result = held.stream(&record, connection, flow, sink);
        if matches!(&result, Err(failure) if failure.kind == Kind::Failed) {
            held.end_job(&record);
        }
        let (end, forgotten) = result.map_err(|failure| stays(&failure, &record))?;
        end.update(&mut record);
        let store = &mut context.lock().store;
        store.update([&record]);
        if forgotten {
            store.remove(&record);
        }
        Ok(RunResult {
            record,
            loss: end.loss,
        })
    })
}

/// The failure of a run whose job stays, with the job's id.
fn stays(failure: &Failure, record: &Record) -> Failure {
    let id = &record.id;
    let what = if failure.kind == Kind::Failed {
        // It was told to end.
        format!("its files stay; `rsig rm {id}` removes them")
    } else {
        format!("it may still run; `rsig wait {id}` asks again")
    };
    Failure::new(
        failure.kind,
        format!("{failure}\n{}: {what}", record.label()),
    )
}

/// The failure of a run that a signal ended before its job started. It is never shown.
fn interrupted_start() -> Failure {
    Failure::new(Kind::Failed, "given up")
}

/// The tether that ends the job when this process is gone. On this machine it watches the process, elsewhere the
/// heartbeats.
fn tether(destination: &Destination, patience: Duration) -> Result<Tether, Failure> {
    let holder = destination.is_plain_local().then(|| -> Result<_, Failure> {
        let pid = std::process::id();
        Ok((pid, birth(pid)?))
    });
    Ok(Tether {
        timeout: patience,
        holder: holder.transpose()?,
    })
}

/// The start time of a process, in the form that the scripts use: field 22 of proc(5)'s stat, else the time that ps
/// prints.
fn birth(pid: u32) -> Result<String, Failure> {
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
        .output()
        .map_err(|error| {
            Failure::new(Kind::Failed, format!("ps can't be run: {}", reason(&error)))
        })?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join("_"))
}

/// How far a run has got.
#[derive(Default)]
enum Phase<'a> {
    #[default]
    Connecting,
    /// The start request is about to be sent over this connection.
    Asked(HostConnection<'a>),
    Runs(Box<Record>),
}

/// What the threads of a run share.
struct RunContext<'a> {
    destination: &'a Destination,
    policy: &'a Policy,
    heartbeat: Option<Duration>,
    /// How long the host may be unreachable before the run gives up.
    patience: Option<Duration>,
    grace: Duration,
    note: fn(&str),
    stop: Box<dyn Fn() + Send + Sync>,
    exit: Box<dyn Fn(u8) + Send + Sync>,
    /// Wakes the thread that passes on signals.
    wake: Sender<Option<PassedSignal>>,
    shared: Mutex<Shared<'a>>,
    changed: Arc<Condvar>,
}

#[derive(Default)]
struct Shared<'a> {
    phase: Phase<'a>,
    /// The connection that carries the streams, to check out further shells for signals.
    connection: Option<HostConnection<'a>>,
    /// The job for which a start request was sent, or is about to be.
    asked: Option<JobId>,
    /// The input of the script that passes the job's streams on, while there is one.
    input: Option<Arc<ShellInput>>,
    /// Input that the host may not have yet. It begins at position `has`.
    kept: VecDeque<u8>,
    has: u64,
    /// The position up to which input was sent; unknown until the host has reported how much it has.
    sent: Option<u64>,
    room: u64,
    room_asked: Option<Instant>,
    /// All input was read.
    has_all_input: bool,
    /// The host was told where the input ends.
    told: bool,
    delivered: Positions,
    acknowledged: u64,
    /// A signal has ended the run before its job started.
    given_up: bool,
    over: bool,
}

impl Shared<'_> {
    /// The next message to the script, if there is one to send.
    fn next(&mut self, feeds: bool) -> Option<Vec<u8>> {
        let Positions { out, err } = self.delivered;
        if out + err >= self.acknowledged + ACK_EVERY {
            self.acknowledged = out + err;
            return Some(stream::ack(self.delivered));
        }
        if !feeds || self.told {
            return None;
        }
        let asks = self
            .room_asked
            .is_none_or(|then| then.elapsed() >= ROOM_INTERVAL);
        let Some(sent) = self.sent else {
            return self.room_asked.is_none().then(|| self.request_room());
        };
        let ahead = usize::try_from(sent.saturating_sub(self.has)).unwrap_or(usize::MAX);
        let unsent = self.kept.len().saturating_sub(ahead);
        let room = usize::try_from((self.has + self.room).saturating_sub(sent)).unwrap_or(0);
        match unsent.min(room).min(PIECE_MAX) {
            0 if unsent > 0 || self.kept.len() >= INPUT_KEPT_MAX => {
                asks.then(|| self.request_room())
            }
            0 if self.has_all_input => {
                self.told = true;
                Some(stream::end_of_input(sent))
            }
            0 => None,
            size => {
                let piece: Vec<u8> = self.kept.range(ahead..ahead + size).copied().collect();
                self.sent = Some(sent + size as u64);
                Some(stream::input(&piece))
            }
        }
    }

    /// Takes over input that was read, up to `INPUT_KEPT_MAX`.
    fn take_in(&mut self, pieces: &Receiver<Vec<u8>>) {
        while self.kept.len() < INPUT_KEPT_MAX && !self.has_all_input {
            match pieces.try_recv() {
                Ok(piece) => self.kept.extend(piece),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.has_all_input = true,
            }
        }
    }

    fn request_room(&mut self) -> Vec<u8> {
        self.room_asked = Some(Instant::now());
        stream::ROOM.to_vec()
    }
}

/// Tells the threads of a run that it is over, when dropped.
struct EndGuard<'a, 'b>(&'a RunContext<'b>);

impl Drop for EndGuard<'_, '_> {
    fn drop(&mut self) {
        let mut shared = self.0.shared();
        shared.over = true;
        shared.input = None;
        drop(shared);
        self.0.changed.notify_all();
        // Fails harmlessly if the thread has already ended.
        let _ = self.0.wake.send(None);
    }
}

impl<'a> RunContext<'a> {
    fn shared(&self) -> MutexGuard<'_, Shared<'a>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the run goes on: false if a signal has ended it.
    fn set_phase(&self, phase: Phase<'a>) -> bool {
        let mut shared = self.shared();
        shared.phase = phase;
        !shared.given_up
    }

    /// Passes the output on until the job has ended, over as many connections as needed. Returns the job's end, and
    /// whether the host has forgotten the job.
    fn stream(
        &self,
        record: &Record,
        mut connection: HostConnection<'a>,
        mut flow: Option<JobStreams>,
        sink: &mut Sink<'_>,
    ) -> Result<(JobEnd, bool), Failure> {
        let (host, place) = (connection.host(), record.job_dir());
        let (mut pause, mut is_again) = (RECONNECT_PAUSE.0, false);
        // The last moment at which the streams were known to be passed on.
        let mut contact = Instant::now();
        loop {
            self.shared().connection = Some(connection.share());
            let private = PrivateConnection::prepare(&connection);
            let mut passing = RunStream {
                held: self,
                sink,
                private: private.as_ref(),
                input: None,
                forgets: record.ephemeral,
                forgotten: false,
                begun: false,
                is_again: std::mem::take(&mut is_again),
                moved: 0,
            };
            let result = match flow.take() {
                Some(JobStreams {
                    mut shell,
                    mut hearing,
                }) => shell
                    .input()
                    .map_err(|error| broken(&host, &error))
                    .and_then(|input| {
                        passing.input = Some(Arc::new(input));
                        stream::follow_started(&host, shell.as_mut(), &mut hearing, &mut passing)
                    }),
                None => connection.shell().and_then(|mut shell| {
                    let input = shell.input().map_err(|error| broken(&host, &error))?;
                    passing.input = Some(Arc::new(input));
                    let positions = self.shared().delivered;
                    stream::stream(&host, shell.as_mut(), &place, positions, &mut passing)
                }),
            };
            let (forgotten, moved) = (passing.forgotten, passing.moved);
            if passing.begun {
                contact = Instant::now();
            }
            self.shared().input = None;
            match result {
                Ok(Some(end)) => {
                    let forgotten =
                        forgotten || passing.may_forget(&end) && forget(&mut connection, record);
                    return Ok((end, forgotten));
                }
                Ok(None) => {
                    if let Some(private) = private {
                        private.take_over(&mut connection);
                    }
                }
                Err(failure) if failure.kind.is_outage() => {
                    // A host that accepts every connection and then breaks it must not cause a busy loop.
                    pause = if moved > 0 {
                        RECONNECT_PAUSE.0
                    } else {
                        (pause * 2).min(RECONNECT_PAUSE.1)
                    };
                    let left = || match self.patience {
                        Some(patience) => patience.saturating_sub(contact.elapsed()),
                        None => Duration::MAX,
                    };
                    if left().is_zero() {
                        return Err(failure);
                    }
                    (self.note)(&format!("{failure}; connecting again"));
                    std::thread::sleep(pause);
                    connection.close();
                    crate::connection::keep_trying(left, || connection.connect())?;
                    is_again = true;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Sends messages to the script: acknowledgements of delivered output, and the input.
    fn send_pending(&self, pieces: Option<&Receiver<Vec<u8>>>) {
        let mut shared = self.shared();
        while !shared.over {
            if let Some(pieces) = pieces {
                shared.take_in(pieces);
            }
            let next = shared
                .input
                .clone()
                .and_then(|input| Some((input, shared.next(pieces.is_some())?)));
            let Some((input, words)) = next else {
                let pause = if pieces.is_some() && !shared.has_all_input {
                    INPUT_INTERVAL
                } else {
                    ROOM_INTERVAL
                };
                shared = self
                    .changed
                    .wait_timeout(shared, pause)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                continue;
            };
            drop(shared);
            let sent = input.write(&words);
            shared = self.shared();
            let is_same = shared
                .input
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, &input));
            if sent.is_err() && is_same {
                // The thread that reads will find the connection broken.
                shared.input = None;
            }
        }
    }
}
/// Makes the host forget the job, all of whose output has been passed on.
fn forget(connection: &mut HostConnection<'_>, record: &Record) -> bool {
    let read = StreamSelection {
        out: true,
        err: true,
    };
    forget_read(connection, &mut [record.clone()], read).is_ok_and(|gone| gone == [true])
}

fn broken(host: &str, error: &std::io::Error) -> Failure {
    Failure::new(
        Kind::Unreachable,
        format!("{host}: the connection broke: {error}"),
    )
}

/// Reads input in a thread of its own, which is never joined: a blocking read can't be cancelled.
fn read_ahead(
    mut input: Box<dyn Read + Send>,
    changed: Arc<Condvar>,
) -> io::Result<Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::sync_channel(4);
    let read = move || {
        let mut buffer = vec![0; PIECE_MAX];
        // A read error counts as the end of the input, as in other programs.
        while let Ok(size @ 1..) = input.read(&mut buffer) {
            let piece = buffer.get(..size).unwrap_or_default().to_vec();
            if sender.send(piece).is_err() {
                return;
            }
            changed.notify_all();
        }
    };
    std::thread::Builder::new().spawn(read).map(|_| receiver)
}

/// The exit status of a run: 124 if the job reached its time limit, else the job's own, but 125 instead of 0 if output
/// was lost.
pub fn status(ran: &RunResult) -> Option<u8> {
    if ran.record.timed_out {
        return Some(exit::TIMED_OUT);
    }
    ran.record
        .exit_status
        .filter(|_| ran.record.state == State::Exited)
        .map(|status| match ran.loss {
            Some(_) if status == exit::DONE => exit::LOST,
            _ => status,
        })
}
