//! `run` on several hosts: a foreground run for each host, in a thread of its own. This module coordinates the runs: it
//! decides when each starts, passes signals to them, reports on each, and combines their statuses.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};

use super::context::{Context, SharedContext};
use super::foreground::{self, PassedSignal, Request, Surroundings, process};
use crate::connection::Permits;
use crate::error::{Failure, Kind, exit};
use crate::hosts::fold;
use crate::remote::Stream;
use crate::signal::SignalWord;
use crate::terminal::{self, GatheredOutput, LineWriter, print_gathered, warn};

/// Maximum wait for the jobs to be stopped (Ctrl-Z) before this process stops itself.
const STOP_WAIT_MAX: Duration = Duration::from_secs(3);
/// The signal for jobs that are ended because of another host.
fn term_signal() -> PassedSignal {
    PassedSignal {
        signal: SignalWord::TERM,
        at: Instant::now(),
        status: 143,
        interrupts: false,
        ends: true,
        quits: true,
        stops: false,
    }
}

/// Maximum number of files that the run on one host keeps open.
const FILES_PER_HOST: u64 = 8;
/// Number of files reserved for the rest of this process.
const FILES_RESERVED: u64 = 64;

/// The number of hosts that the limit on open files allows at once.
pub fn all_at_once() -> usize {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let hosts = limit.saturating_sub(FILES_RESERVED) / FILES_PER_HOST;
    usize::try_from(hosts.max(1)).unwrap_or(usize::MAX)
}

/// How the jobs are run.
pub struct Options {
    /// Number of hosts that run at once.
    pub parallel: usize,
    pub gather: bool,
    pub fail_fast: bool,
    pub note: fn(&str),
}

/// An event while the jobs run.
enum Message {
    Signal(PassedSignal),
    /// A job was stopped, so that this process can stop too.
    Stopped,
    /// Output can't be written.
    Broken(io::Error),
    /// The run on a host was given up before its job started.
    GivenUp(usize, u8),
    /// The run on a host has ended.
    Over(usize, HostEnded),
}

struct HostEnded {
    status: u8,
    /// Why the run failed.
    message: Option<String>,
    output: Option<GatheredOutput>,
}

/// One of the hosts.
struct HostRun {
    word: String,
    /// Passes signals to the run, while there is one.
    signals: Option<Sender<Option<PassedSignal>>>,
    /// Whether the job ran.
    ran: bool,
    status: u8,
    output: Option<GatheredOutput>,
}

struct Group {
    options: Options,
    members: Vec<HostRun>,
    messages: (Sender<Message>, Receiver<Message>),
    context: Arc<SharedContext>,
    permits: Arc<Permits>,
    /// Why no further hosts are started; `None` while they are.
    over: Option<StopReason>,
    /// While a stop is pending: its deadline, and the number of jobs stopped so far.
    stop: Option<(Instant, usize)>,
}

enum StopReason {
    Signal(u8),
    Failed,
    Broken(io::Error),
}

/// Runs a job on each host. Returns the first nonzero status, in the order of the hosts.
pub fn run(
    context: Context,
    hosts: impl Iterator<Item = (String, Request)>,
    options: Options,
) -> Result<u8, Failure> {
    let messages = mpsc::channel();
    let sender = messages.0.clone();
    process::signals(move |pass| sender.send(Message::Signal(pass)).is_ok())?;
    let (words, requests): (Vec<String>, Vec<Request>) = hosts.unzip();
    let member = |word: String| HostRun {
        word,
        signals: None,
        ran: false,
        status: exit::DONE,
        output: None,
    };
    let mut group = Group {
        members: words.into_iter().map(member).collect(),
        messages,
        permits: Arc::new(Permits::new(context.policy.parallel)),
        context: Arc::new(SharedContext::new(context)),
        options,
        over: None,
        stop: None,
    };
    let mut waiting = requests.into_iter().enumerate();
    loop {
        while group.over.is_none() && group.running() < group.options.parallel {
            let Some((at, request)) = waiting.next() else {
                break;
            };
            group.start(at, request);
        }
        if group.running() == 0 {
            break;
        }
        if let Some(message) = group.next() {
            group.take(message);
        }
        group.stop_when_stopped();
    }
    group.finish()
}

impl Group {
    fn running(&self) -> usize {
        let runs = |member: &&HostRun| member.signals.is_some();
        self.members.iter().filter(runs).count()
    }

    /// Starts the run on a host in a thread that is never joined: a host that does not respond must not block this
    /// process.
    fn start(&mut self, at: usize, request: Request) {
        let Some(member) = self.members.get_mut(at) else {
            return;
        };
        let (wake, signals) = mpsc::channel();
        let messages = self.messages.0.clone();
        let (stopped, given_up) = (messages.clone(), messages.clone());
        // The receiver is dropped only at the end, so a failed send is harmless.
        let outside = Surroundings {
            input: None,
            signals: (wake.clone(), signals),
            stop: Box::new(move || drop(stopped.send(Message::Stopped))),
            exit: Box::new(move |status| drop(given_up.send(Message::GivenUp(at, status)))),
            note: self.options.note,
        };
        let request = Request {
            permits: Some(Arc::clone(&self.permits)),
            ..request
        };
        let context = Arc::clone(&self.context);
        let (word, gather) = (member.word.clone(), self.options.gather);
        let thread = std::thread::Builder::new().spawn(move || {
            let ended = run_host(&context, request, outside, &word, gather, &messages);
            drop(messages.send(Message::Over(at, ended)));
        });
        (member.signals, member.ran) = (Some(wake), true);
        if let Err(error) = thread {
            let ended = HostEnded {
                status: exit::LOST,
                message: Some(format!(
                    "{}: no thread can be started: {error}",
                    member.word
                )),
                output: None,
            };
            self.take(Message::Over(at, ended));
        }
    }

    fn next(&self) -> Option<Message> {
        let Some((until, _)) = self.stop else {
            return self.messages.1.recv().ok();
        };
        let left = until.saturating_duration_since(Instant::now());
        self.messages.1.recv_timeout(left).ok()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Signal(pass) => {
                if pass.quits && self.over.is_none() {
                    self.over = Some(StopReason::Signal(pass.status));
                }
                if pass.stops {
                    self.stop = Some((Instant::now() + STOP_WAIT_MAX, 0));
                }
                self.pass(pass);
            }
            Message::Stopped => {
                if let Some((_, stopped)) = &mut self.stop {
                    *stopped += 1;
                }
            }
            Message::Broken(error) => {
                if !matches!(self.over, Some(StopReason::Broken(_))) {
                    self.over = Some(StopReason::Broken(error));
                    self.pass(term_signal());
                }
            }
            Message::GivenUp(at, status) => {
                if let Some(member) = self.members.get_mut(at)
                    && member.signals.take().is_some()
                {
                    member.ran = false;
                    if !matches!(self.over, Some(StopReason::Failed)) {
                        member.status = status;
                    }
                }
            }
            Message::Over(at, ended) => self.end(at, ended),
        }
    }

    fn pass(&self, pass: PassedSignal) {
        for signals in self
            .members
            .iter()
            .filter_map(|member| member.signals.as_ref())
        {
            // Sending to a run that has ended fails, which is harmless.
            let _ = signals.send(Some(pass));
        }
    }

    fn end(&mut self, at: usize, ended: HostEnded) {
        let Some(member) = self.members.get_mut(at) else {
            return;
        };
        // A run that was given up has already ended for the group.
        if member.signals.take().is_none() {
            return;
        }
        member.output = ended.output;
        if let Some(message) = ended.message
            && !matches!(self.over, Some(StopReason::Broken(_)))
        {
            warn(&message);
        }
        // A job that was ended because another host's job failed does not count as failed.
        if !matches!(self.over, Some(StopReason::Failed)) {
            member.status = ended.status;
        }
        if ended.status != exit::DONE && self.options.fail_fast && self.over.is_none() {
            self.over = Some(StopReason::Failed);
            self.pass(term_signal());
        }
    }

    /// Stops this process once all jobs are stopped (Ctrl-Z on the terminal), or at the deadline.
    fn stop_when_stopped(&mut self) {
        if let Some((until, stopped)) = self.stop
            && (stopped >= self.running() || Instant::now() >= until)
        {
            self.stop = None;
            process::stop();
        }
    }

    fn finish(self) -> Result<u8, Failure> {
        let mut outputs = Vec::new();
        let (mut idle, mut statuses) = (Vec::new(), Vec::new());
        for member in self.members {
            if !member.ran {
                idle.push(member.word.clone());
            }
            statuses.push(match self.over {
                Some(StopReason::Signal(status)) if !member.ran => status,
                _ => member.status,
            });
            outputs.extend(member.output.map(|output| (member.word, output)));
        }
        // The store may never be dropped, which would write this: threads that were given up may hold it for ever.
        self.context.lock().store.write_deferred();
        if let Some(StopReason::Broken(error)) = self.over {
            return Err(terminal::output_failure(&error));
        }
        print_gathered(outputs).map_err(|error| terminal::output_failure(&error))?;
        if !idle.is_empty() {
            warn(&format!(
                "not run on {}",
                fold(idle.iter().map(String::as_str))
            ));
        }
        let failed = statuses.into_iter().find(|status| *status != exit::DONE);
        Ok(failed.unwrap_or(exit::DONE))
    }
}

/// Runs the job on one host to its end.
fn run_host(
    context: &SharedContext,
    request: Request,
    outside: Surroundings,
    word: &str,
    gather: bool,
    messages: &Sender<Message>,
) -> HostEnded {
    let mut lines =
        [false, true].map(|error_stream| LineWriter::new(word.to_owned(), error_stream));
    let mut output = gather.then(GatheredOutput::default);
    let [out, err] = &mut lines;
    let (tether, host) = (request.tether, format!("{}: ", request.spawn.destination));
    let broken = |error: io::Error| {
        let failure = Failure::new(Kind::Failed, error.to_string());
        // The receiver is dropped only at the end, so a failed send is harmless.
        drop(messages.send(Message::Broken(error)));
        failure
    };
    let ran = foreground::run(context, request, outside, &mut |stream, bytes| {
        match (stream, &mut output) {
            (Stream::Err, _) => err.print(bytes),
            (Stream::Out, None) => out.print(bytes),
            (Stream::Out, Some(output)) => output.add(bytes),
        }
        .map_err(broken)
    });
    let ends = [
        out.end(),
        err.end(),
        output.as_mut().map_or(Ok(()), GatheredOutput::end),
    ];
    let ran = ends
        .into_iter()
        .try_for_each(|end| end.map_err(broken))
        .and(ran);
    let (status, message) = match ran {
        Ok(ran) => match process::status(&ran, tether) {
            Ok(exit::DONE) => (exit::DONE, None),
            Ok(status) => (status, Some(terminal::ended(&ran.record))),
            Err(failure) => (
                process::status_of_failure(failure.kind),
                Some(failure.message),
            ),
        },
        Err(failure) => (
            process::status_of_failure(failure.kind),
            Some(failure.message),
        ),
    };
    let message = message.map(|message| {
        let why = message.strip_prefix(&host).unwrap_or(&message);
        format!("{word}: {why}")
    });
    HostEnded {
        status,
        message,
        output,
    }
}
