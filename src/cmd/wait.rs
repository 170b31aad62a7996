//! `wait`: waits for jobs to end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use clap::Args;

use super::args::{Common, JobsArgs, Parallel};
use super::context::Context;
use super::deliver::Report;
use super::jobs::{Job, Jobs, Limit, by_host, meet, on_each_host};
use super::values::{self, DURATION_MAX};
use crate::connection::{Backoff, HostConnection};
use crate::delivery::{self, Outcome, SignalRequest, Ways};
use crate::error::{Failure, Kind, exit};
use crate::job::{JobId, Record, State, Target};
use crate::terminal::{self, JobJson, Output, warn};

/// How long the other hosts go on waiting after one end was enough.
const SLICE: Duration = Duration::from_secs(10);
/// How soon a host is asked again about jobs of which it could say nothing.
const UNKNOWN_SLICE: Duration = Duration::from_secs(1);
/// How many connections may break one after the other before the user is told.
const QUIET_BREAKS_MAX: u32 = 2;
/// How long a host may take to answer once the time is over.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// How long is waited.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Until {
    /// Give up after DURATION and exit with 124
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub timeout: Option<Duration>,
    /// Return when the first of them ends, with its status
    #[arg(long)]
    pub any: bool,
    /// Go on while a host that was never reached is unreachable, or a job unknown.
    #[arg(skip)]
    pub patient: bool,
}

/// Wait for jobs to end, and exit as they do
#[derive(Args, Debug)]
pub struct Wait {
    #[command(flatten)]
    until: Until,
    /// Print one JSON object per job
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    parallel: Parallel,
    #[command(flatten)]
    jobs: JobsArgs,
}

impl Wait {
    pub fn run(self) -> Result<u8, Failure> {
        let connect = self.jobs.connect.clone().for_jobs(&self.jobs.jobs)?;
        let mut context = self.parallel.context(self.common.reach(), connect)?;
        let jobs = self.jobs.find(&context, self.common, None)?;
        let words = self.jobs.jobs.iter().map(|word| word.as_str().to_owned());
        let named: Vec<String> = if jobs.selected {
            jobs.words()
        } else {
            words.collect()
        };
        let mut out = Output::default();
        let mut reports = Vec::new();
        let until = Until {
            patient: true,
            ..self.until
        };
        for report in wait(&mut context, jobs, until) {
            if let Some(failure) = report.failure() {
                warn(&failure.message);
            }
            match &report.outcome {
                Ok(outcome) if self.json => {
                    out.json(&JobJson::new(&outcome.record, state(outcome)));
                }
                Ok(outcome) if outcome.error.is_none() && !self.common.quiet => {
                    out.line(line(&outcome.record));
                }
                _ => {}
            }
            reports.push(report);
        }
        out.finish()?;
        if self.until.any && reports.last().is_some_and(has_ended) {
            reports.drain(..reports.len() - 1);
        }
        reports.sort_by_key(|report| named.iter().position(|word| *word == report.word));
        Ok(status(&reports))
    }
}

/// Waits for jobs, all hosts at once. The reports come as the jobs end.
pub fn wait(context: &mut Context, jobs: Jobs, until: Until) -> impl Iterator<Item = Report> {
    let (over, running): (Vec<Job>, Vec<Job>) = jobs
        .found
        .into_iter()
        .partition(|job| job.record.state == State::Exited);
    let enough = Arc::new(AtomicBool::new(until.any && !over.is_empty()));
    let running = if enough.load(Ordering::Relaxed) {
        Vec::new()
    } else {
        running
    };
    let mut awaited = running.clone();
    let unknown = jobs
        .unknown
        .into_iter()
        .map(|(word, failure)| Report::new(word, Err(failure)));
    let known = over.into_iter().map(|job| {
        let outcome = Outcome {
            still_running: Some(false),
            ..Outcome::of(job.record)
        };
        Report::new(job.word, Ok(outcome))
    });
    let end = Instant::now() + until.timeout.unwrap_or(DURATION_MAX);
    let watch = Watch {
        end,
        until,
        enough: Arc::clone(&enough),
        note: context.policy.warn,
    };
    let waited = on_each_host(
        &context.policy,
        Limit::Connecting,
        by_host(running),
        move |line, jobs, sender| watch.on_host(line, jobs, sender),
    );
    let patience = if until.patient {
        ANSWER_MAX
    } else {
        DURATION_MAX
    };
    let waited = std::iter::from_fn(move || {
        let left = end.saturating_duration_since(Instant::now()) + patience;
        let report = match waited.recv_timeout(left) {
            Ok(report) => report,
            // Who asks that host may be in the middle of connecting.
            Err(RecvTimeoutError::Timeout) => timed_out(awaited.pop()?, None),
            Err(RecvTimeoutError::Disconnected) => return None,
        };
        awaited.retain(|job| job.word != report.word);
        Some(report)
    });
    let mut reports = unknown.chain(known).chain(waited);
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let report = reports.next()?;
        if let Ok(outcome) = &report.outcome {
            context.store.update([&outcome.record]);
        }
        done = until.any && has_ended(&report);
        if done {
            enough.store(true, Ordering::Relaxed);
        }
        Some(report)
    })
}

/// The report of a job of which nothing is known when the time is over.
fn timed_out(job: Job, why: Option<&Failure>) -> Report {
    let label = job.record.label();
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    let message = format!("{label}: it is not known whether it still runs{why}");
    Report::failed(job, Failure::new(Kind::TimedOut, message))
}

fn has_ended(report: &Report) -> bool {
    matches!(&report.outcome, Ok(outcome) if outcome.error.is_none() && outcome.record.state.is_finished())
}

/// The waiting for one host's jobs.
struct Watch {
    end: Instant,
    until: Until,
    enough: Arc<AtomicBool>,
    note: fn(&str),
}

impl Watch {
    fn on_host(&self, line: &mut HostConnection<'_>, mut jobs: Vec<Job>, sender: &Sender<Report>) {
        // The receiver is dropped only at the end, so a failed send is harmless.
        let report = |report: Report| drop(sender.send(report));
        let mut outage = Outage::default();
        while !jobs.is_empty() && !self.enough.load(Ordering::Relaxed) {
            let round = self.round(line, jobs, &outage, &report);
            jobs = round.open;
            let Some(failure) = round.failure else {
                outage.end(&line.host(), self.note);
                continue;
            };
            let pause = outage.lasts(&failure, round.connected, self.note);
            let left = self.end.saturating_duration_since(Instant::now());
            if self.until.patient && left.is_zero() {
                jobs.drain(..)
                    .for_each(|job| report(timed_out(job, Some(&failure))));
            } else if !self.until.patient && (left.is_zero() || !outage.had_contact) {
                jobs.drain(..)
                    .for_each(|job| report(Report::failed(job, failure.clone())));
            } else if !round.answered {
                line.hang_up();
                std::thread::sleep(pause.min(left));
            }
        }
    }

    /// Waits for a while, and passes on what is final.
    fn round(
        &self,
        line: &mut HostConnection<'_>,
        jobs: Vec<Job>,
        outage: &Outage,
        report: &dyn Fn(Report),
    ) -> Round {
        let mut round = Round {
            had_contact: outage.had_contact,
            ..Round::default()
        };
        if let Err(failure) = line.connect() {
            if round.goes_on(&failure) {
                round.open = jobs;
            } else {
                jobs.into_iter()
                    .for_each(|job| report(Report::failed(job, failure.clone())));
            }
            return round;
        }
        round.connected = true;
        round.had_contact = true;
        let (jobs, missing) = meet(line, jobs);
        for (job, failure) in missing {
            if round.goes_on(&failure) {
                round.open.push(job);
            } else {
                report(Report::failed(job, failure));
            }
        }
        let mut words: HashMap<JobId, String> = HashMap::new();
        let mut orders = Vec::new();
        for Job { word, record } in jobs {
            words.insert(record.id.clone(), word);
            orders.push(order(record));
        }
        if orders.is_empty() {
            return round;
        }
        let left = self.end.saturating_duration_since(Instant::now());
        let slice = match (outage.failures > 0, self.until.any) {
            (true, _) => left.min(UNKNOWN_SLICE),
            (false, true) => left.min(SLICE),
            (false, false) => left,
        };
        delivery::deliver(line, orders, Some(slice), &mut |outcome| {
            let word = words.remove(&outcome.record.id).unwrap_or_default();
            let is_open = match &outcome.error {
                Some(failure) => round.goes_on(failure),
                None => {
                    round.answered = true;
                    !outcome.record.state.is_finished() && slice < left
                }
            };
            if is_open {
                let record = outcome.record;
                round.open.push(Job { word, record });
            } else {
                report(Report::new(word, Ok(outcome)));
            }
        });
        round
    }
}

/// What came of a while of waiting.
#[derive(Default)]
struct Round {
    /// The jobs that are still waited for.
    open: Vec<Job>,
    /// Why some of them are unknown.
    failure: Option<Failure>,
    connected: bool,
    /// The host has said something of a job.
    answered: bool,
    /// There was a connection now or before.
    had_contact: bool,
}

impl Round {
    /// Whether a job is waited for in spite of a failure. A name that was never resolved may be a wrong one.
    fn goes_on(&mut self, failure: &Failure) -> bool {
        let goes_on =
            failure.kind == Kind::Unreachable || failure.kind.is_outage() && self.had_contact;
        if goes_on {
            self.failure = Some(failure.clone());
        }
        goes_on
    }
}

/// The time in which a host can't be asked, or says nothing of a job.
#[derive(Default)]
struct Outage {
    had_contact: bool,
    failures: u32,
    told: bool,
    backoff: Backoff,
}

impl Outage {
    /// Tells the user once. Gives the pause before the next attempt.
    fn lasts(&mut self, failure: &Failure, connected: bool, note: fn(&str)) -> Duration {
        self.had_contact |= connected;
        self.failures += 1;
        // What is over with the next attempt is not worth a message.
        if !self.told && (!connected || self.failures > QUIET_BREAKS_MAX) {
            self.told = true;
            note(&format!("{failure}; still waiting"));
        }
        self.backoff.next()
    }

    fn end(&mut self, host: &str, note: fn(&str)) {
        if self.told {
            note(&format!("{host}: in contact again"));
        }
        *self = Self {
            had_contact: true,
            ..Self::default()
        };
    }
}

fn order(record: Record) -> SignalRequest {
    SignalRequest {
        record,
        signal: None,
        then: None,
        target: Target::Group,
        wake: false,
        ways: Ways::Any,
    }
}

/// The state to show: nothing can be said of a job whose host could not be asked.
fn state(outcome: &Outcome) -> State {
    match outcome.error {
        Some(_) => State::Unknown,
        None => outcome.record.state,
    }
}

fn line(record: &Record) -> String {
    let label = record.label();
    match record.state {
        State::Exited => format!("{label}: {}", terminal::ended(record)),
        State::Lost if record.rebooted => format!("{label}: lost: {}", record.why_lost()),
        State::Lost => format!("{label}: lost: gone without a recorded end"),
        _ => format!("{label}: still running"),
    }
}

/// 124 if any job still runs, else 255, else 125, else the status of the last one.
fn status(reports: &[Report]) -> u8 {
    let statuses: Vec<Status> = reports.iter().map(status_of).collect();
    [exit::TIMED_OUT, exit::UNREACHABLE, exit::LOST]
        .into_iter()
        .map(Status::Ours)
        .find(|worst| statuses.contains(worst))
        .or(statuses.last().copied())
        .map_or(
            exit::DONE,
            |(Status::Ours(status) | Status::Jobs(status))| status,
        )
}

#[derive(Clone, Copy, PartialEq)]
enum Status {
    /// What the waiting came to.
    Ours(u8),
    /// What the job exited with.
    Jobs(u8),
}

fn status_of(report: &Report) -> Status {
    match (&report.outcome, report.failure()) {
        (Ok(outcome), None) => match (outcome.record.state, outcome.record.exit_status) {
            (State::Exited, Some(status)) => Status::Jobs(status),
            (State::Lost, _) => Status::Ours(exit::LOST),
            _ => Status::Ours(exit::TIMED_OUT),
        },
        (_, failure) => {
            Status::Ours(failure.map_or(exit::LOST, |failure| status_of_failure(failure.kind)))
        }
    }
}

/// The status for a failure of rsig itself in `wait` and `run`, where 1 and 3 could be the job's.
pub fn status_of_failure(kind: Kind) -> u8 {
    match kind.exit_status() {
        exit::FAILED | exit::NO_JOB | exit::NOT_RUNNING => exit::LOST,
        status => status,
    }
}
