//! Prints the results of the signals of `kill` and `stop`.

use std::time::Duration;

use serde::Serialize;

use super::args::Common;
use super::deliver::{Report, SendOptions};
use crate::delivery::{Outcome, SendOutcome, Via};
use crate::error::{Failure, exit};
use crate::job::{JobName, Record, State, Target};
use crate::signal::{Signal, SignalWord};
use crate::terminal::{self, FailureJson, Output, Spinner, warn};

/// Prints the reports of `kill` and `stop`, and returns the highest of their statuses.
pub fn report(
    reports: impl Iterator<Item = Report>,
    signal: SignalWord,
    sending: &SendOptions,
    mut spinner: Spinner,
    common: Common,
    json: bool,
) -> Result<u8, Failure> {
    let mut out = Output::default();
    let mut status = exit::DONE;
    for report in reports {
        spinner.stop();
        status = status.max(status_of(&report, sending));
        if let Ok(Outcome {
            note: Some(note), ..
        }) = &report.outcome
        {
            common.note(note);
        }
        if json {
            out.json(&json_of(&report, signal, sending));
            continue;
        }
        if let Some(failure) = report.failure() {
            warn(&failure.message);
        } else if let (Ok(outcome), false) = (&report.outcome, common.quiet) {
            out.line(line_of(&report, outcome, sending));
        }
    }
    out.finish()?;
    Ok(status)
}

fn status_of(report: &Report, sending: &SendOptions) -> u8 {
    match (report.failure(), &report.outcome) {
        (Some(failure), _) => failure.kind.exit_status(),
        (None, Ok(outcome)) if sending.wait.is_some() && outcome.still_running == Some(true) => {
            exit::TIMED_OUT
        }
        _ => exit::DONE,
    }
}

#[derive(Serialize)]
struct ThenJson {
    signal: String,
    sent: SendOutcome,
    via: Option<&'static str>,
}

/// The object that `kill --json` prints for a job.
#[derive(Serialize)]
struct ReportJson<'a> {
    job: &'a str,
    id: Option<&'a str>,
    name: Option<&'a str>,
    host: Option<String>,
    signal: String,
    signal_number: Option<u8>,
    target: &'static str,
    sent: SendOutcome,
    via: Option<&'static str>,
    then: Option<ThenJson>,
    still_running: Option<bool>,
    exit_status: Option<u8>,
    exit_signal: Option<String>,
    waited_ms: Option<u64>,
    error: Option<FailureJson<'a>>,
}

/// The signal is shown as typed if the system of the job's host is not known.
fn json_of<'a>(report: &'a Report, asked: SignalWord, sending: &SendOptions) -> ReportJson<'a> {
    let outcome = report.outcome.as_ref().ok();
    let record = outcome.map(|outcome| &outcome.record);
    let sent = outcome.map_or(SendOutcome::No, |outcome| outcome.sent);
    let then = outcome
        .and_then(|outcome| outcome.then)
        .zip(report.then_signal);
    let waited = outcome
        .filter(|_| sending.wait.is_some())
        .map(|outcome| outcome.waited.as_millis());
    ReportJson {
        job: &report.word,
        id: record.map(|record| record.id.as_str()),
        name: record
            .and_then(|record| record.name.as_ref())
            .map(JobName::as_str),
        host: record.map(|record| record.host().to_string()),
        signal: report
            .signal
            .map_or_else(|| asked.to_string(), |signal| signal.name()),
        signal_number: report.signal.as_ref().and_then(Signal::number),
        target: sending.target.word(),
        sent,
        via: sent.via().map(Via::word),
        then: then.map(|(sent, signal)| ThenJson {
            signal: signal.name(),
            sent,
            via: sent.via().map(Via::word),
        }),
        still_running: outcome.and_then(|outcome| outcome.still_running),
        exit_status: record.and_then(|record| record.exit_status),
        exit_signal: record.and_then(Record::exit_signal),
        waited_ms: waited.map(|waited| u64::try_from(waited).unwrap_or(u64::MAX)),
        error: report.failure().map(FailureJson::from),
    }
}

/// The result of one job's signals, or why they failed, as one line.
pub fn sentence(report: &Report, sending: &SendOptions) -> String {
    match (report.failure(), &report.outcome) {
        (None, Ok(outcome)) => line_of(report, outcome, sending),
        (failure, _) => failure.map_or_else(String::new, ToString::to_string),
    }
}

/// The result of one job's signals as one line.
fn line_of(report: &Report, outcome: &Outcome, sending: &SendOptions) -> String {
    let waiting = sending.wait.is_some();
    let label = outcome.record.label();
    let mut parts = Vec::new();
    match (outcome.sent, report.signal) {
        (SendOutcome::Yes(_), Some(signal)) => {
            let to = match sending.target {
                Target::Group => "",
                Target::Process => " to its first process",
                Target::Tree => " to its whole tree",
            };
            parts.push(format!("{signal} sent{to}{}", caution(signal)));
        }
        (_, Some(signal)) if signal.is_existence_check() => return format!("{label}: it runs"),
        // A selected job that has ended meanwhile.
        (SendOutcome::No, _) if !waiting && outcome.record.state.is_finished() => {
            parts.push(end(outcome));
        }
        // The job's relay knows no more than that.
        (SendOutcome::No, _) if !waiting => parts.push("it had already ended".to_owned()),
        _ => {}
    }
    if let (Some(SendOutcome::Yes(_)), Some(signal)) = (outcome.then, report.then_signal) {
        parts.push(format!("then {signal}"));
    }
    if waiting {
        parts.push(end(outcome));
    }
    format!("{label}: {}", parts.join(", "))
}

/// A note for the sender of this signal.
fn caution(signal: Signal) -> &'static str {
    if signal.stops_only_interactively() {
        " (it does nothing unless the job catches it: a job has no terminal; STOP stops one)"
    } else {
        ""
    }
}

/// How the wait ended.
fn end(outcome: &Outcome) -> String {
    let waited = rounded(outcome.waited);
    let ended = terminal::ended(&outcome.record);
    match (outcome.record.state, outcome.sent) {
        (State::Exited | State::Lost, _) if outcome.still_running == Some(true) => {
            format!("{ended}, but what it started still runs after {waited}")
        }
        (State::Exited, SendOutcome::No) => format!("it had already {ended}"),
        (State::Exited, _) => format!("{ended} after {waited}"),
        _ => format!("still running after {waited}"),
    }
}

/// In milliseconds below one second, else in seconds and tenths.
fn rounded(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{}.{} s", time.as_secs(), time.subsec_millis() / 100)
    }
}
