//! Outcomes as JSON, by the contract of the command line.

use serde::Serialize;

use crate::cmd::kill::Report;
use crate::cmd::wait::Waited;
use crate::delivery::{Sent, Via};
use crate::error::Failure;
use crate::job::{EndedBy, JobName, Record, State, Target, rfc3339};
use crate::signal::Signal;

/// A job as `ps --json` has it.
#[derive(Serialize)]
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
pub struct Job<'a> {
    id: &'a str,
    name: Option<&'a str>,
    host: String,
    command: &'a [String],
    cwd: Option<&'a str>,
    dir: Option<&'a str>,
    state: &'static str,
    pid: Option<u32>,
    pgid: Option<u32>,
    os: Option<&'a str>,
    started_at: Option<String>,
    finished_at: Option<String>,
    exit_status: Option<u8>,
    exit_signal: Option<String>,
    last_signal: Option<&'a str>,
    checked_at: Option<String>,
    prefix: Option<String>,
    jobs_dir: Option<&'a str>,
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>))]
    ended_by: Option<EndedBy>,
}

/// A job in a state that may be other than its record's.
pub fn job(record: &Record, state: State) -> Job<'_> {
    Job {
        id: record.id.as_str(),
        name: record.name.as_ref().map(JobName::as_str),
        host: record.destination.host.to_string(),
        command: &record.command,
        cwd: record.cwd.as_deref(),
        dir: record.dir.as_deref(),
        state: state.word(),
        pid: record.pid,
        pgid: record.pgid,
        os: record.os.as_deref(),
        started_at: record.started_at.and_then(rfc3339),
        finished_at: record.finished_at.and_then(rfc3339),
        exit_status: record.exit_status,
        exit_signal: record.exit_signal(),
        last_signal: record.last_signal.as_deref(),
        checked_at: record.checked_at.and_then(rfc3339),
        prefix: record.destination.prefix(),
        jobs_dir: record.jobs_dir.as_deref(),
        ended_by: record
            .ended_by
            .or(record.timed_out.then_some(EndedBy::Timeout)),
    }
}

#[derive(Serialize)]
struct Error<'a> {
    kind: &'static str,
    message: &'a str,
}

impl<'a> Error<'a> {
    fn of(failure: &'a Failure) -> Self {
        Self {
            kind: failure.kind.word(),
            message: &failure.message,
        }
    }
}

#[derive(Serialize)]
struct Then {
    signal: String,
    sent: Option<bool>,
    via: Option<&'static str>,
}

/// One job's part of `kill --json`.
#[derive(Serialize)]
pub struct Killed<'a> {
    job: &'a str,
    id: Option<&'a str>,
    name: Option<&'a str>,
    host: Option<String>,
    signal: Option<String>,
    signal_number: Option<u8>,
    target: &'static str,
    sent: Option<bool>,
    via: Option<&'static str>,
    then: Option<Then>,
    still_running: Option<bool>,
    exit_status: Option<u8>,
    exit_signal: Option<String>,
    waited_ms: Option<u64>,
    error: Option<Error<'a>>,
}

/// What became of one job's signals. `asked` is the signal as typed, for a job whose host's signals are not known.
pub fn report<'a>(report: &'a Report, asked: &str, target: Target, waiting: bool) -> Killed<'a> {
    let outcome = report.outcome.as_ref().ok();
    let record = outcome.map(|outcome| &outcome.record);
    let sent = outcome.map_or(Sent::No, |outcome| outcome.sent);
    let then = outcome
        .and_then(|outcome| outcome.then)
        .zip(report.then_signal)
        .map(|(sent, signal)| Then {
            signal: signal.name(),
            sent: is_sent(sent),
            via: via(sent),
        });
    let waited = outcome.filter(|_| waiting).map(|outcome| outcome.waited);
    Killed {
        job: &report.word,
        id: record.map(|record| record.id.as_str()),
        name: record
            .and_then(|record| record.name.as_ref())
            .map(JobName::as_str),
        host: record.map(|record| record.destination.host.to_string()),
        signal: Some(
            report
                .signal
                .map_or_else(|| asked.to_owned(), |signal| signal.name()),
        ),
        signal_number: report.signal.as_ref().and_then(Signal::number),
        target: target.word(),
        sent: is_sent(sent),
        via: via(sent),
        then,
        still_running: outcome.and_then(|outcome| outcome.still_running),
        exit_status: record.and_then(|record| record.exit_status),
        exit_signal: record.and_then(Record::exit_signal),
        waited_ms: waited.map(|waited| u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)),
        error: report.failure().map(Error::of),
    }
}

fn is_sent(sent: Sent) -> Option<bool> {
    match sent {
        Sent::No => Some(false),
        Sent::Yes(_) => Some(true),
        Sent::Unknown => None,
    }
}

fn via(sent: Sent) -> Option<&'static str> {
    match sent {
        Sent::Yes(via) => Some(Via::word(via)),
        Sent::No | Sent::Unknown => None,
    }
}

/// A job that was waited for; none where the word named no job.
pub fn waited(waited: &Waited) -> Option<Job<'_>> {
    let outcome = waited.outcome.as_ref().ok()?;
    let state = if outcome.error.is_some() {
        State::Unknown
    } else {
        outcome.record.state
    };
    Some(job(&outcome.record, state))
}
