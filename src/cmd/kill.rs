//! `kill` and `stop`: sends signals, each exactly once, and waits for what comes of them.

use std::ffi::OsString;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::{Context, Named, by_host, meet, on_each_host, resolve, wait_on_each_host};
use crate::connection::{Line, Policy};
use crate::delivery::{self, Order, Outcome, Ways, ended_before};
use crate::error::{Failure, Kind};
use crate::job::{Record, Target};
use crate::remote::{Standing, look};
use crate::signal::{Signal, SignalWord};
use crate::state::{Signalled, Store};

/// What is to be sent, and to what.
pub struct Request {
    /// The jobs, as typed.
    pub jobs: Vec<OsString>,
    /// They are ids that a selector picked: one that has ended meanwhile is passed over.
    pub selected: bool,
    /// What is sent.
    pub signal: SignalWord,
    /// How long to wait for the end.
    pub wait: Option<Duration>,
    /// What is sent when the job still runs then.
    pub then: Option<SignalWord>,
    /// Which way the signals may take.
    pub ways: Ways,
    /// Which of the processes.
    pub target: Target,
    /// A stopped job gets CONT after the signal.
    pub wake: bool,
}

impl Request {
    /// A signal for the groups of jobs, by whichever way; the end is not waited for.
    pub fn new(jobs: Vec<OsString>, signal: SignalWord) -> Self {
        Self {
            jobs,
            selected: false,
            signal,
            wait: None,
            then: None,
            ways: Ways::Any,
            target: Target::Group,
            wake: false,
        }
    }

    /// What ends jobs: TERM, CONT for those that are stopped, and KILL after the grace.
    pub fn stop(jobs: Vec<OsString>, grace: Duration) -> Self {
        let (wait, then) = (Some(grace), Some(SignalWord::KILL));
        Self {
            wait,
            then,
            wake: true,
            ..Self::new(jobs, SignalWord::TERM)
        }
    }
}

/// What became of one job's signals.
pub struct Report {
    /// The word that stood for the job.
    pub word: String,
    /// The signals as they are on the job's host, where that is known.
    pub signal: Option<Signal>,
    /// The second signal.
    pub then_signal: Option<Signal>,
    /// How it came out; an error alone when there is no such job.
    pub outcome: Result<Outcome, Failure>,
}

impl Report {
    /// Why it came out badly, if it did.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.outcome {
            Ok(outcome) => outcome.error.as_ref(),
            Err(failure) => Some(failure),
        }
    }

    /// A job that was picked, not named, and had ended by the time is no failure.
    fn pass_over(&mut self) {
        if let Ok(outcome) = &mut self.outcome {
            outcome
                .error
                .take_if(|error| error.kind == Kind::NotRunning);
        }
    }
}

/// One job on its way through the command.
struct Ask {
    word: String,
    record: Record,
}

/// Sends the signals and waits, all hosts at once. The reports come as they are known.
pub fn kill(context: &mut Context, request: &Request, mut on_report: impl FnMut(Report)) {
    let (mut asks, mut over) = (Vec::new(), Vec::new());
    for Named { word, record } in resolve(context, &request.jobs) {
        match record {
            // What a job has left behind is its tree's, and worth a hint to who meant the job itself.
            Ok(record) if record.state.is_finished() && request.target != Target::Tree => {
                match request.wait {
                    None if !request.selected => over.push(Ask { word, record }),
                    _ => on_report(of_finished(word, record, request)),
                }
            }
            Ok(record) => asks.push(Ask { word, record }),
            Err(failure) if request.selected && failure.kind == Kind::NotFound => {}
            Err(failure) => {
                on_report(Report {
                    word,
                    signal: None,
                    then_signal: None,
                    outcome: Err(failure),
                });
            }
        }
    }
    let policy = context.policy;
    let store = &mut context.store;
    let groups = by_host(asks, |ask| &ask.record);
    // Nobody listens any more only when all is over.
    let work = |line: &mut Line<'_>, asks, sender: &Sender<Report>| {
        on_host(line, asks, request, &mut |report| drop(sender.send(report)));
    };
    let mut on_event = |mut report: Report| {
        record(store, &report, request);
        if request.selected {
            report.pass_over();
        }
        on_report(report);
    };
    if request.wait.is_some() {
        wait_on_each_host(&policy, groups, work, &mut on_event);
    } else {
        on_each_host(&policy, groups, work, &mut on_event);
    }
    // The hosts of jobs that are over are asked last, and nobody is asked for a password for it.
    on_each_host(
        &Policy {
            batch: true,
            ..policy
        },
        by_host(over, |ask| &ask.record),
        |line, asks, sender| {
            let known: Vec<_> = asks
                .iter()
                .map(|ask| (ask.word.clone(), ask.record.clone()))
                .collect();
            let mut reports = Vec::new();
            on_host(line, asks, request, &mut |report| reports.push(report));
            for (word, record) in known {
                let at = reports.iter().position(|report| report.word == word);
                let told = at
                    .map(|at| reports.swap_remove(at))
                    .filter(|report| is_over(report) || may_be_sent(report));
                drop(sender.send(told.unwrap_or_else(|| of_finished(word, record, request))));
            }
        },
        on_event,
    );
}

/// Whether a host has said that the job had ended before; where it can't, its end is known all the same.
fn is_over(report: &Report) -> bool {
    report
        .failure()
        .is_some_and(|failure| matches!(failure.kind, Kind::NotRunning | Kind::BadSignal))
}

/// Whether the job was not over after all: lost for a while, and there again.
fn may_be_sent(report: &Report) -> bool {
    report
        .outcome
        .as_ref()
        .is_ok_and(|outcome| outcome.sent != delivery::Sent::No)
}

/// A job whose end is known here needs no host.
fn of_finished(word: String, record: Record, request: &Request) -> Report {
    let error = (request.wait.is_none() && !request.selected).then(|| ended_before(&record));
    let on = |signal: SignalWord| record.system().and_then(|os| signal.on(os).ok());
    Report {
        word,
        signal: on(request.signal),
        then_signal: request.then.and_then(on),
        outcome: Ok(Outcome {
            still_running: Some(false),
            error,
            ..Outcome::of(record)
        }),
    }
}

/// Keeps what was learned of a job.
fn record(store: &mut Store, report: &Report, request: &Request) {
    let Ok(outcome) = &report.outcome else {
        return;
    };
    let signalled = |signal: Option<Signal>, sent| {
        Some(Signalled {
            signal: signal?,
            sent,
        })
    };
    let first =
        signalled(report.signal, outcome.sent).filter(|first| !first.signal.is_existence_check());
    let second = outcome
        .then
        .and_then(|sent| signalled(report.then_signal, sent));
    store.signalled(&outcome.record, request.target, first.iter().chain(&second));
}

/// Carries out the request for the jobs of one host.
fn on_host(
    line: &mut Line<'_>,
    asks: Vec<Ask>,
    request: &Request,
    on_report: &mut dyn FnMut(Report),
) {
    let mut orders = Vec::new();
    let mut words = std::collections::HashMap::new();
    let asks = meet(
        line,
        asks,
        |ask| &mut ask.record,
        |Ask { word, record }, failure| {
            let outcome = Ok(Outcome {
                error: Some(failure),
                ..Outcome::of(record)
            });
            on_report(Report {
                word,
                signal: None,
                then_signal: None,
                outcome,
            });
        },
    );
    for mut ask in asks {
        let fail = |record: Record, failure| {
            Ok(Outcome {
                error: Some(failure),
                ..Outcome::of(record)
            })
        };
        let signals = system(line, &mut ask.record).and_then(|()| signals(&ask.record, request));
        match signals {
            Ok((signal, then)) => {
                words.insert(ask.record.id.clone(), (ask.word, signal, then));
                let (target, wake, ways) = (request.target, request.wake, request.ways);
                orders.push(Order {
                    record: ask.record,
                    signal: Some(signal),
                    then,
                    target,
                    wake,
                    ways,
                });
            }
            Err(failure) => {
                let outcome = fail(ask.record, failure);
                on_report(Report {
                    word: ask.word,
                    signal: None,
                    then_signal: None,
                    outcome,
                });
            }
        }
    }
    if orders.is_empty() {
        return;
    }
    delivery::deliver(line, orders, request.wait, &mut |outcome| {
        if let Some((word, signal, then_signal)) = words.remove(&outcome.record.id) {
            on_report(Report {
                word,
                signal: Some(signal),
                then_signal,
                outcome: Ok(outcome),
            });
        }
    });
}

/// Finds out a job's operating system, where its host was never heard of it.
fn system(line: &mut Line<'_>, record: &mut Record) -> Result<(), Failure> {
    if record.os.is_some() {
        return Ok(());
    }
    let host = line.host();
    let seen = line.ask(|shell| look::see(&host, shell, &[record.id.as_str()]))?;
    seen.iter().for_each(|seen| seen.update(record));
    if seen.iter().any(|seen| seen.standing == Standing::Foreign) {
        let message = format!("{}: {}", record.label(), delivery::NOT_BELIEVED);
        return Err(Failure::new(Kind::Failed, message));
    }
    match (record.state.is_finished(), &record.os) {
        (true, None) => Err(ended_before(record)),
        (_, Some(_)) => Ok(()),
        (false, None) => Err(Failure::new(
            Kind::Failed,
            format!(
                "{}: it has not started yet; try again in a moment",
                record.label()
            ),
        )),
    }
}

/// The request's signals on the job's host.
fn signals(record: &Record, request: &Request) -> Result<(Signal, Option<Signal>), Failure> {
    let os = record.system().unwrap_or(crate::signal::Os::Other);
    let on = |word: SignalWord| {
        word.on(os)
            .map_err(|error| Failure::new(Kind::BadSignal, format!("{}: {error}", record.label())))
    };
    Ok((on(request.signal)?, request.then.map(on).transpose()?))
}
