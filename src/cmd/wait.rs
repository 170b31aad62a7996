//! `wait`: waits for jobs to end.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::args::{Common, JobsArgs, Parallel};
use super::context::Context;
use super::deliver::Report;
use super::jobs::{Job, Jobs, Limit, by_host, look_up, on_each_host};
use super::outage::Outage;
use super::pattern::{Pattern, last_lines};
use super::tail::OUTPUT_REMOVED;
use super::values::{self, DURATION_MAX};
use crate::connection::HostConnection;
use crate::delivery::{self, Outcome, SignalRequest};
use crate::error::{Failure, Kind, exit};
use crate::job::{JobId, Record, State};
use crate::remote::search::{FoundLine, Search, SearchResult, search};
use crate::remote::{JobNote, Stream};
use crate::terminal::{self, JobJson, Output, warn};

/// With `--any`: longest wait of one script, after which a host's worker checks whether another host's job has ended.
const ANY_SLICE: Duration = Duration::from_secs(10);
/// Longest wait of one script after a failure, so that the host is soon asked again about jobs whose state is unknown.
const RETRY_SLICE: Duration = Duration::from_secs(1);
/// Longest search of one script, so that its shell is soon checked in for others.
const SEARCH_SLICE: Duration = Duration::from_secs(1);
/// Pause before the output of a job that has not started yet is searched again.
const START_PAUSE: Duration = Duration::from_millis(200);
/// Time that a host has to answer after the timeout.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// How long is waited.
#[derive(Args, Clone, Debug, Default)]
pub struct WaitOptions {
    /// Wait for a line of the job's output that matches the extended regular expression REGEX, and print it
    #[arg(long = "for", value_name = "REGEX", allow_hyphen_values = true, value_parser = Pattern::parse)]
    pub pattern: Option<Pattern>,
    /// Give up after DURATION and exit with 124
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub timeout: Option<Duration>,
    /// Return when the first job ends (with --for: has a matching line), with its status
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
    until: WaitOptions,
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
        let until = WaitOptions {
            patient: true,
            ..self.until
        };
        let is_done = until.is_done();
        for report in wait(&mut context, jobs, until.clone()) {
            if let Some(failure) = report.failure() {
                warn(&failure.message);
            }
            if let Ok(outcome) = &report.outcome
                && let Some(caution) = outcome.record.caution()
            {
                self.common.note(&caution);
            }
            match &report.outcome {
                Ok(outcome) if self.json => {
                    let job = JobJson::new(&outcome.record, state(outcome));
                    match &until.pattern {
                        Some(_) => out.json(&FoundJson::new(job, report.found.as_ref())),
                        None => out.json(&job),
                    }
                }
                Ok(outcome) if outcome.error.is_none() && !self.common.quiet => {
                    match (&until.pattern, &report.found) {
                        (_, Some(found)) => out.bytes(&[&found.line[..], b"\n"].concat()),
                        (Some(_), None) => warn(&line(&outcome.record)),
                        (None, None) => out.line(line(&outcome.record)),
                    }
                }
                _ => {}
            }
            reports.push(report);
        }
        out.finish()?;
        if until.any && reports.last().is_some_and(is_done) {
            reports.drain(..reports.len() - 1);
        }
        reports.sort_by_key(|report| named.iter().rposition(|word| *word == report.word));
        Ok(status(&reports, until.pattern.is_some()))
    }
}

/// A job and the line found, for `wait --for --json`.
#[derive(Serialize)]
struct FoundJson<'a> {
    #[serde(flatten)]
    job: JobJson<'a>,
    line: Option<Cow<'a, str>>,
    stream: Option<&'static str>,
}

impl<'a> FoundJson<'a> {
    fn new(job: JobJson<'a>, found: Option<&'a FoundLine>) -> Self {
        Self {
            job,
            line: found.map(|found| String::from_utf8_lossy(&found.line)),
            stream: found.map(|found| match found.stream {
                Stream::Out => "stdout",
                Stream::Err => "stderr",
            }),
        }
    }
}

impl WaitOptions {
    /// Returns the test for a report that satisfies `--any`.
    fn is_done(&self) -> fn(&Report) -> bool {
        match self.pattern {
            Some(_) => |report| report.found.is_some(),
            None => has_ended,
        }
    }
}

/// Waits for jobs, on all hosts at once. Yields a report as each job ends.
pub fn wait(context: &mut Context, jobs: Jobs, until: WaitOptions) -> impl Iterator<Item = Report> {
    let (over, running): (Vec<Job>, Vec<Job>) = jobs
        .found
        .into_iter()
        .partition(|job| job.record.state == State::Exited && until.pattern.is_none());
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
    let (any, is_done) = (until.any, until.is_done());
    let patience = if until.patient {
        ANSWER_MAX
    } else {
        DURATION_MAX
    };
    let watch = HostWait {
        end,
        until,
        enough: Arc::clone(&enough),
        note: context.policy.warn,
    };
    let waited = on_each_host(
        &context.policy,
        Limit::Connecting,
        by_host(running),
        move |connection, jobs, sender| watch.on_host(connection, jobs, sender),
    );
    let waited = std::iter::from_fn(move || {
        let left = end.saturating_duration_since(Instant::now()) + patience;
        let report = match waited.recv_timeout(left) {
            Ok(report) => report,
            // The host's worker may still be connecting.
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
        done = any && is_done(&report);
        if done {
            enough.store(true, Ordering::Relaxed);
        }
        Some(report)
    })
}

/// The report of a job whose state is unknown at the timeout.
fn timed_out(job: Job, why: Option<&Failure>) -> Report {
    let label = job.record.label();
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    let message = format!("{label}: it is not known whether it still runs{why}");
    Report::failed(job, Failure::new(Kind::TimedOut, message))
}

fn has_ended(report: &Report) -> bool {
    matches!(&report.outcome, Ok(outcome) if outcome.error.is_none() && outcome.record.state.is_finished())
}

/// The wait, as the workers of all hosts share it.
struct HostWait {
    end: Instant,
    until: WaitOptions,
    enough: Arc<AtomicBool>,
    note: fn(&str),
}

impl HostWait {
    fn on_host(
        &self,
        connection: &mut HostConnection<'_>,
        mut jobs: Vec<Job>,
        sender: &Sender<Report>,
    ) {
        // The receiver is dropped only at the end, so a failed send is harmless.
        let report = |report: Report| drop(sender.send(report));
        let mut outage = Outage::default();
        let mut searched = HashMap::new();
        while !jobs.is_empty() && !self.enough.load(Ordering::Relaxed) {
            let round = self.wait_once(connection, jobs, &outage, &mut searched, &report);
            jobs = round.open;
            let Some(failure) = round.failure else {
                outage.end(&connection.host(), self.note);
                continue;
            };
            let pause = outage.record_failure(&failure, round.connected, self.note);
            let left = self.end.saturating_duration_since(Instant::now());
            if self.until.patient && left.is_zero() {
                jobs.drain(..)
                    .for_each(|job| report(timed_out(job, Some(&failure))));
            } else if !self.until.patient && (left.is_zero() || !outage.had_contact) {
                jobs.drain(..)
                    .for_each(|job| report(Report::failed(job, failure.clone())));
            } else if !round.answered {
                connection.close();
                std::thread::sleep(pause.min(left));
            }
        }
    }

    /// Waits for one slice of time, and reports the jobs that are settled.
    fn wait_once(
        &self,
        connection: &mut HostConnection<'_>,
        jobs: Vec<Job>,
        outage: &Outage,
        searched: &mut HashMap<JobId, [u64; 2]>,
        report: &dyn Fn(Report),
    ) -> RoundResult {
        let mut round = RoundResult {
            had_contact: outage.had_contact,
            ..RoundResult::default()
        };
        if let Err(failure) = connection.connect() {
            if round.keeps_waiting(&failure) {
                round.open = jobs;
            } else {
                jobs.into_iter()
                    .for_each(|job| report(Report::failed(job, failure.clone())));
            }
            return round;
        }
        round.connected = true;
        round.had_contact = true;
        let (jobs, missing) = look_up(connection, jobs);
        for (job, failure) in missing {
            if round.keeps_waiting(&failure) {
                round.open.push(job);
            } else {
                report(Report::failed(job, failure));
            }
        }
        if let Some(pattern) = &self.until.pattern {
            self.search(connection, jobs, pattern, searched, &mut round, report);
            return round;
        }
        let mut words: HashMap<JobId, String> = HashMap::new();
        let mut requests = Vec::new();
        for Job { word, record } in jobs {
            words.insert(record.id.clone(), word);
            requests.push(SignalRequest::wait(record));
        }
        if requests.is_empty() {
            return round;
        }
        let left = self.end.saturating_duration_since(Instant::now());
        let slice = match (outage.failures > 0, self.until.any) {
            (true, _) => left.min(RETRY_SLICE),
            (false, true) => left.min(ANY_SLICE),
            (false, false) => left,
        };
        delivery::deliver(connection, requests, Some(slice), &mut |outcome| {
            let word = words.remove(&outcome.record.id).unwrap_or_default();
            let is_open = match &outcome.error {
                Some(failure) => round.keeps_waiting(failure),
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

    /// The same for a line of the jobs' output. `searched` holds the position up to which each job's was searched.
    fn search(
        &self,
        connection: &mut HostConnection<'_>,
        jobs: Vec<Job>,
        pattern: &Pattern,
        searched: &mut HashMap<JobId, [u64; 2]>,
        round: &mut RoundResult,
        report: &dyn Fn(Report),
    ) {
        if jobs.is_empty() {
            return;
        }
        let searches = jobs.iter().map(|job| Search {
            place: job.record.job_dir(),
            at: searched.get(&job.record.id).copied().unwrap_or_default(),
        });
        let searches: Vec<Search> = searches.collect();
        let left = || self.end.saturating_duration_since(Instant::now());
        let (host, slice) = (connection.host(), left().min(SEARCH_SLICE));
        let answers =
            connection.ask(|shell| search(&host, shell, &searches, pattern.as_str(), slice));
        let answers = match answers {
            Ok(answers) => answers,
            Err(failure) => {
                for job in jobs {
                    if round.keeps_waiting(&failure) {
                        round.open.push(job);
                    } else {
                        report(Report::failed(job, failure.clone()));
                    }
                }
                return;
            }
        };
        for (Job { word, record }, answer) in jobs.into_iter().zip(answers) {
            let is_over = matches!(answer, SearchResult::Over(..));
            let (outcome, found) = match answer {
                SearchResult::Open(at) => {
                    searched.insert(record.id.clone(), at);
                    (Outcome::of(record), None)
                }
                SearchResult::Over(seen, found) => {
                    let is_removed = seen.note == Some(JobNote::NoDirectory);
                    let mut outcome = Outcome::seen(record, seen);
                    outcome.error = match &found {
                        Some(_) => None,
                        None => outcome
                            .error
                            .or_else(|| no_line_failure(connection, &outcome.record, is_removed)),
                    };
                    (outcome, found)
                }
            };
            let is_open = match &outcome.error {
                Some(failure) => round.keeps_waiting(failure),
                None => {
                    round.answered = true;
                    let is_final = is_over && outcome.record.state.is_finished();
                    found.is_none() && !is_final && !left().is_zero()
                }
            };
            if is_open {
                // The job's files do not exist yet.
                std::thread::sleep(if is_over {
                    START_PAUSE.min(left())
                } else {
                    Duration::ZERO
                });
                let record = outcome.record;
                round.open.push(Job { word, record });
            } else {
                report(Report {
                    found,
                    ..Report::new(word, Ok(outcome))
                });
            }
        }
    }
}

/// Why the line can no longer appear in a job's output. `None` for a lost job and for one that may still start.
/// `is_removed`: the output is gone from the host.
fn no_line_failure(
    connection: &mut HostConnection<'_>,
    record: &Record,
    is_removed: bool,
) -> Option<Failure> {
    let label = record.label();
    let message = match record.state {
        State::Exited if is_removed => format!("{label}: {OUTPUT_REMOVED}"),
        State::Exited => {
            let (ended, last) = (
                terminal::ended(record),
                last_lines(connection, &record.job_dir()),
            );
            match last.as_str() {
                "" => format!("{label}: {ended} without such a line"),
                last => format!("{label}: {ended} without such a line; its last lines:{last}"),
            }
        }
        State::Running | State::Stopped => {
            format!(
                "{label}: it runs, but its files are gone from its host, and its output with them"
            )
        }
        State::Starting | State::Lost | State::Unknown => return None,
    };
    Some(Failure::new(Kind::Failed, message))
}

/// The result of waiting for one slice of time.
#[derive(Default)]
struct RoundResult {
    /// The jobs that are still waited for.
    open: Vec<Job>,
    /// Why the state of some of them is unknown.
    failure: Option<Failure>,
    connected: bool,
    /// The host has reported on at least one job.
    answered: bool,
    /// A connection was made in this round or before.
    had_contact: bool,
}

impl RoundResult {
    /// Whether to keep waiting for a job after a failure, which is noted then. A host name that has never resolved may
    /// be misspelled, so that failure counts as an outage only after a connection was made.
    fn keeps_waiting(&mut self, failure: &Failure) -> bool {
        let is_outage = matches!(failure.kind, Kind::Unreachable | Kind::Silent)
            || failure.kind.is_outage() && self.had_contact;
        if is_outage {
            self.failure = Some(failure.clone());
        }
        is_outage
    }
}

/// The state to show: unknown if the host could not be asked, unless the job has exited.
fn state(outcome: &Outcome) -> State {
    match outcome.error {
        Some(_) if outcome.record.state != State::Exited => State::Unknown,
        _ => outcome.record.state,
    }
}

/// The state of a job at the end of the wait, as a line for the user.
pub fn line(record: &Record) -> String {
    let label = record.label();
    match record.state {
        State::Exited => format!("{label}: {}", terminal::ended(record)),
        State::Lost if record.rebooted => format!("{label}: lost: {}", record.why_lost()),
        State::Lost => format!("{label}: lost: gone without a recorded end"),
        _ => format!("{label}: still running"),
    }
}

/// 124 if any job still runs, else 255 if any host was unreachable, else 125 if any job is lost or rsig failed, else
/// the status of the last job.
fn status(reports: &[Report], for_line: bool) -> u8 {
    let status_of = if for_line { status_of_line } else { status_of };
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
    /// The outcome of the wait itself.
    Ours(u8),
    /// The job's exit status.
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

/// The same for `--for`: 0 if the line was found, 1 if the job ended without it.
fn status_of_line(report: &Report) -> Status {
    match (&report.outcome, report.failure()) {
        _ if report.found.is_some() => Status::Jobs(exit::DONE),
        (_, Some(failure)) if failure.kind == Kind::Failed => Status::Jobs(exit::FAILED),
        (Ok(outcome), None) if outcome.record.state != State::Lost => Status::Ours(exit::TIMED_OUT),
        _ => status_of(report),
    }
}

/// The exit status for a failure of rsig itself in `wait` and `run`, where 1 and 3 could be the job's status.
pub fn status_of_failure(kind: Kind) -> u8 {
    match kind.exit_status() {
        exit::FAILED | exit::NO_JOB | exit::NOT_RUNNING => exit::LOST,
        status => status,
    }
}
