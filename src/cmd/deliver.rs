//! Sends signals to jobs on any number of hosts: the common part of `kill`, `stop` and `rm --force`.

use std::collections::HashMap;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::context::Context;
use super::jobs::{Job, Jobs, Limit, by_host, look_up, on_each_host};
use super::{complete, values};
use crate::connection::{HostConnection, Policy};
use crate::delivery::{self, Outcome, SendOutcome, SignalRequest, ViaPolicy, ended_before};
use crate::error::{Failure, Kind};
use crate::job::{Record, State, Target};
use crate::remote::search::FoundLine;
use crate::remote::{ObservedState, look};
use crate::signal::{Os, Signal, SignalWord};
use crate::state::{SignalEntry, Store};

/// How a signal is sent, and what is waited for.
#[derive(Args, Clone, Debug, Default)]
pub struct SendOptions {
    /// Wait up to DURATION for the jobs to end
    #[arg(short, long, value_name = "DURATION", value_parser = values::duration)]
    pub wait: Option<Duration>,
    /// If a job still runs after the wait, send this signal too and wait as long again
    #[arg(long, value_name = "SIGNAL", requires = "wait", add = ArgValueCompleter::new(complete::signal))]
    pub then: Option<SignalWord>,
    /// How the signal may be delivered
    #[arg(long, value_enum, default_value_t)]
    pub via: ViaPolicy,
    /// Which of a job's processes get the signal
    #[arg(long, value_enum, default_value_t)]
    pub target: Target,
    /// A stopped job gets CONT after the signal, so that it can die of it.
    #[arg(skip)]
    pub wake: bool,
}

impl SendOptions {
    /// Options to end a job: KILL follows the first signal after the grace.
    pub fn stop(grace: Duration, target: Target) -> Self {
        Self {
            wait: Some(grace),
            then: Some(SignalWord::KILL),
            via: ViaPolicy::Any,
            target,
            wake: true,
        }
    }
}

/// The result of signalling one job, or of waiting for it.
pub struct Report {
    /// The word that named the job.
    pub word: String,
    /// The signals as the job's host defines them, if its system is known.
    pub signal: Option<Signal>,
    pub then_signal: Option<Signal>,
    /// The line of output that was waited for.
    pub found: Option<FoundLine>,
    /// `Err` only if there is no such job.
    pub outcome: Result<Outcome, Failure>,
}

impl Report {
    pub fn new(word: String, outcome: Result<Outcome, Failure>) -> Self {
        Self {
            word,
            signal: None,
            then_signal: None,
            found: None,
            outcome,
        }
    }

    pub fn failed(job: Job, failure: Failure) -> Self {
        let outcome = Outcome {
            error: Some(failure),
            ..Outcome::of(job.record)
        };
        Self::new(job.word, Ok(outcome))
    }

    pub fn failure(&self) -> Option<&Failure> {
        match &self.outcome {
            Ok(outcome) => outcome.error.as_ref(),
            Err(failure) => Some(failure),
        }
    }

    fn is_failure(&self, kind: Kind) -> bool {
        self.failure().is_some_and(|failure| failure.kind == kind)
    }

    /// Turns the report of a lost job, whose end is not known, into a failure of its own kind.
    fn mark_lost(&mut self) {
        if let Ok(outcome) = &mut self.outcome
            && outcome.record.state == State::Lost
            && outcome.still_running != Some(true)
            && outcome
                .error
                .as_ref()
                .is_none_or(|error| error.kind == Kind::NotRunning)
        {
            outcome.still_running = None;
            outcome.error = Some(Failure::lost(
                &outcome.record.label(),
                outcome.record.why_lost(),
            ));
        }
    }
}

/// Sends a signal to jobs and waits for them, on all hosts at once. Yields each report as soon as it is known.
pub fn send<'a>(
    context: &'a mut Context,
    jobs: Jobs,
    signal: SignalWord,
    sending: &SendOptions,
) -> impl Iterator<Item = Report> + use<'a> {
    let selected = jobs.selected;
    // With the target `tree`, remaining descendants get the signal even if the job itself has ended.
    let (over, running): (Vec<Job>, Vec<Job>) = jobs
        .found
        .into_iter()
        .partition(|job| job.record.state == State::Exited && sending.target != Target::Tree);
    // For a job that has already ended, its host is asked what the job left behind, unless only its end matters.
    let (asked, known) = if sending.wait.is_none() && !selected {
        (over, Vec::new())
    } else {
        (Vec::new(), over)
    };
    let unknown = jobs
        .unknown
        .into_iter()
        .map(|(word, failure)| Report::new(word, Err(failure)));
    let of_known = {
        let sending = sending.clone();
        move |job| report_ended(job, signal, &sending, selected)
    };
    let limit = match sending.wait {
        Some(_) => Limit::Connecting,
        None => Limit::Work,
    };
    let work = {
        let sending = sending.clone();
        move |connection: &mut HostConnection<'_>, jobs, sender: &Sender<Report>| {
            on_host(connection, jobs, signal, &sending, sender);
        }
    };
    let sent = on_each_host(&context.policy, limit, by_host(running), work);
    let again = {
        let (policy, sending) = (context.policy, sending.clone());
        std::iter::once_with(move || ask_ended(policy, asked, signal, sending)).flatten()
    };
    let target = sending.target;
    let store = &mut context.store;
    unknown
        .chain(known.into_iter().map(of_known))
        .chain(sent)
        .chain(again)
        .map(move |mut report| {
            record_report(store, &report, target);
            report.mark_lost();
            if selected && report.is_failure(Kind::NotRunning) {
                report.outcome = report.outcome.map(|outcome| Outcome {
                    error: None,
                    ..outcome
                });
            }
            report
        })
}

/// Asks hosts what jobs that have already ended left behind. This is done last and without a password prompt: if a host
/// can't be reached, the job's end is still known.
fn ask_ended(
    policy: Policy,
    jobs: Vec<Job>,
    signal: SignalWord,
    sending: SendOptions,
) -> impl Iterator<Item = Report> {
    let policy = Policy {
        batch: true,
        ..policy
    };
    on_each_host(
        &policy,
        Limit::Work,
        by_host(jobs),
        move |connection, jobs: Vec<Job>, sender| {
            let (reports, received) = mpsc::channel();
            on_host(connection, jobs.clone(), signal, &sending, &reports);
            drop(reports);
            let mut reports: HashMap<String, Report> = received
                .into_iter()
                .map(|report| (report.word.clone(), report))
                .collect();
            for job in jobs {
                // The answer counts if it is about the job, not if the host could not be reached.
                let told = reports.remove(&job.word).filter(|report| {
                    report.is_failure(Kind::NotRunning)
                        || report.is_failure(Kind::BadSignal)
                        || matches!(&report.outcome, Ok(outcome) if outcome.sent != SendOutcome::No)
                });
                let report = told.unwrap_or_else(|| report_ended(job, signal, &sending, false));
                // The receiver is dropped only at the end, so a failed send is harmless.
                drop(sender.send(report));
            }
        },
    )
    .into_iter()
}

/// The report of a job whose end is already on record.
fn report_ended(job: Job, signal: SignalWord, sending: &SendOptions, selected: bool) -> Report {
    let record = job.record;
    let error = (sending.wait.is_none() && !selected).then(|| ended_before(&record));
    let on = |signal: SignalWord| record.system().and_then(|os| signal.on(os).ok());
    Report {
        signal: on(signal),
        then_signal: sending.then.and_then(on),
        ..Report::new(
            job.word,
            Ok(Outcome {
                still_running: Some(false),
                error,
                ..Outcome::of(record)
            }),
        )
    }
}

/// Records a report in the state file.
pub fn record_report(store: &mut Store, report: &Report, target: Target) {
    let Ok(outcome) = &report.outcome else {
        return;
    };
    let first = report.signal.map(|signal| (signal, outcome.sent));
    let second = report.then_signal.zip(outcome.then);
    let signals = [first, second]
        .into_iter()
        .flatten()
        .filter(|(signal, _)| !signal.is_existence_check())
        .map(|(signal, sent)| SignalEntry { signal, sent });
    store.signalled(&outcome.record, target, signals);
}

/// Signals the jobs of one host.
pub fn on_host(
    connection: &mut HostConnection<'_>,
    jobs: Vec<Job>,
    signal: SignalWord,
    sending: &SendOptions,
    sender: &Sender<Report>,
) {
    // The receiver is dropped only at the end, so a failed send is harmless.
    let report = |report: Report| drop(sender.send(report));
    let (jobs, missing) = look_up(connection, jobs);
    for (job, failure) in missing {
        report(Report::failed(job, failure));
    }
    let mut requests = Vec::new();
    let mut asked = HashMap::new();
    for mut job in jobs {
        let signals = learn_system(connection, &mut job.record)
            .and_then(|()| signals(&job.record, signal, sending.then));
        match signals {
            Ok((signal, then)) => {
                asked.insert(job.record.id.clone(), (job.word, signal, then));
                requests.push(SignalRequest {
                    record: job.record,
                    signal: Some(signal),
                    then,
                    target: sending.target,
                    wake: sending.wake,
                    ways: sending.via,
                });
            }
            Err(failure) => report(Report::failed(job, failure)),
        }
    }
    if requests.is_empty() {
        return;
    }
    delivery::deliver(connection, requests, sending.wait, &mut |outcome| {
        if let Some((word, signal, then)) = asked.remove(&outcome.record.id) {
            report(Report {
                signal: Some(signal),
                then_signal: then,
                ..Report::new(word, Ok(outcome))
            });
        }
    });
}

/// Asks the host for the operating system of a job if the record lacks it.
fn learn_system(connection: &mut HostConnection<'_>, record: &mut Record) -> Result<(), Failure> {
    if record.os.is_some() {
        return Ok(());
    }
    let host = connection.host();
    let seen = connection.ask(|shell| look::see(&host, shell, &[&record.job_dir()]))?;
    seen.iter().for_each(|seen| seen.update(record));
    let failed = |what: &str| Failure::new(Kind::Failed, format!("{}: {what}", record.label()));
    if seen
        .iter()
        .any(|seen| seen.observed == ObservedState::Untrusted)
    {
        return Err(failed(delivery::NOT_TRUSTED));
    }
    match (record.state.is_finished(), &record.os) {
        (true, None) => Err(ended_before(record)),
        (_, Some(_)) => Ok(()),
        (false, None) => Err(failed("it has not started yet; try again in a moment")),
    }
}

/// The signals as the job's host defines them.
fn signals(
    record: &Record,
    signal: SignalWord,
    then: Option<SignalWord>,
) -> Result<(Signal, Option<Signal>), Failure> {
    let os = record.system().unwrap_or(Os::Other);
    let on = |word: SignalWord| {
        word.on(os)
            .map_err(|error| Failure::new(Kind::BadSignal, format!("{}: {error}", record.label())))
    };
    Ok((on(signal)?, then.map(on).transpose()?))
}
