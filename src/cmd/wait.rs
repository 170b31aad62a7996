//! `wait`: waits for jobs to end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use clap::Args;

use super::args::{Common, JobsArgs, Parallel};
use super::context::Context;
use super::deliver::Report;
use super::jobs::{Job, Jobs, Limit, by_host, meet, on_each_host};
use super::values::{self, DURATION_MAX};
use crate::connection::HostConnection;
use crate::delivery::{self, Outcome, SignalRequest, Ways};
use crate::error::{Failure, Kind, exit};
use crate::job::{JobId, Record, State, Target};
use crate::terminal::{self, JobJson, Output, warn};

/// How long the other hosts go on waiting after one end was enough.
const SLICE: Duration = Duration::from_secs(10);

/// How long is waited.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Until {
    /// Give up after DURATION and exit with 124
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub timeout: Option<Duration>,
    /// Return when the first of them ends, with its status
    #[arg(long)]
    pub any: bool,
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
        for report in wait(&mut context, jobs, self.until) {
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
        by_host(running)
    };
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
    let watch = Watch {
        end: Instant::now() + until.timeout.unwrap_or(DURATION_MAX),
        any: until.any,
        enough: Arc::clone(&enough),
    };
    let waited = on_each_host(
        &context.policy,
        Limit::Connecting,
        running,
        move |line, jobs, sender| watch.on_host(line, jobs, sender),
    );
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

fn has_ended(report: &Report) -> bool {
    matches!(&report.outcome, Ok(outcome) if outcome.error.is_none() && outcome.record.state.is_finished())
}

/// The waiting for one host's jobs.
struct Watch {
    end: Instant,
    any: bool,
    enough: Arc<AtomicBool>,
}

impl Watch {
    fn on_host(&self, line: &mut HostConnection<'_>, jobs: Vec<Job>, sender: &Sender<Report>) {
        // The receiver is dropped only at the end, so a failed send is harmless.
        let report = |report: Report| drop(sender.send(report));
        let (jobs, missing) = meet(line, jobs);
        for (job, failure) in missing {
            report(Report::failed(job, failure));
        }
        let mut words: HashMap<JobId, String> = HashMap::new();
        let mut records = Vec::new();
        for Job { word, record } in jobs {
            words.insert(record.id.clone(), word);
            records.push(record);
        }
        while !records.is_empty() && !self.enough.load(Ordering::Relaxed) {
            let left = self.end.saturating_duration_since(Instant::now());
            let (time, last) = if self.any && left > SLICE {
                (SLICE, false)
            } else {
                (left, true)
            };
            let orders = records.drain(..).map(order).collect();
            delivery::deliver(line, orders, Some(time), &mut |outcome| {
                if outcome.error.is_none() && !outcome.record.state.is_finished() && !last {
                    records.push(outcome.record);
                    return;
                }
                let word = words.remove(&outcome.record.id).unwrap_or_default();
                report(Report::new(word, Ok(outcome)));
            });
        }
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
