//! Outcomes as a line each.

use std::time::Duration;

use crate::cmd::kill::Report;
use crate::cmd::wait::Waited;
use crate::delivery::{Outcome, Sent};
use crate::job::{Record, State, Target};
use crate::signal::Signal;

/// What became of one job's signals; none where only a message on standard error says it.
pub fn report(report: &Report, target: Target, waiting: bool) -> Option<String> {
    let outcome = report
        .outcome
        .as_ref()
        .ok()
        .filter(|outcome| outcome.error.is_none())?;
    let label = outcome.record.label();
    let mut parts = Vec::new();
    match (outcome.sent, report.signal) {
        (Sent::Yes(_), Some(signal)) => {
            parts.push(format!("{signal} sent{}{}", to(target), caution(signal)));
        }
        (_, Some(signal)) if signal.is_existence_check() => {
            return Some(format!("{label}: it runs"));
        }
        // A job that was picked and had ended by the time.
        (Sent::No, _) if !waiting && outcome.record.state.is_finished() => parts.push(end(outcome)),
        // Its relay knows no more than that.
        (Sent::No, _) if !waiting => parts.push("it had already ended".to_owned()),
        _ => {}
    }
    if let (Some(Sent::Yes(_)), Some(signal)) = (outcome.then, report.then_signal) {
        parts.push(format!("then {signal}"));
    }
    if waiting {
        parts.push(end(outcome));
    }
    Some(format!("{label}: {}", parts.join(", ")))
}

fn to(target: Target) -> &'static str {
    match target {
        Target::Group => "",
        Target::Process => " to its first process",
        Target::Tree => " to its whole tree",
    }
}

/// What a person should know who sends this signal.
fn caution(signal: Signal) -> &'static str {
    if signal.stops_only_interactively() {
        " (it does nothing unless the job catches it: a job has no terminal; STOP stops one)"
    } else {
        ""
    }
}

/// How the waiting ended.
fn end(outcome: &Outcome) -> String {
    let waited = rounded(outcome.waited);
    match (outcome.record.state, outcome.sent) {
        (State::Exited | State::Lost, _) if outcome.still_running == Some(true) => {
            format!(
                "{}, but what it started still runs after {waited}",
                exited(&outcome.record)
            )
        }
        (State::Exited, Sent::No) => format!("it had already {}", exited(&outcome.record)),
        (State::Lost, Sent::No) => "it was lost before: gone without a recorded end".to_owned(),
        (State::Exited, _) => format!("{} after {waited}", exited(&outcome.record)),
        (State::Lost, _) => format!("gone after {waited}, without a recorded end"),
        _ => format!("still running after {waited}"),
    }
}

fn exited(record: &Record) -> String {
    let status = record
        .exit_status
        .map_or_else(|| "?".to_owned(), |status| status.to_string());
    let signal = record
        .exit_signal()
        .map_or_else(String::new, |signal| format!(" ({signal})"));
    format!(
        "ended with status {status}{signal}{}",
        timed_out(record.timed_out)
    )
}

/// What is added to an end for which the time limit was the reason.
pub fn timed_out(is: bool) -> &'static str {
    if is { ", timed out" } else { "" }
}

/// To the millisecond below a second, to the tenth above.
fn rounded(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{}.{} s", time.as_secs(), time.subsec_millis() / 100)
    }
}

/// How the waiting for one job came out; none where only a message on standard error says it.
pub fn waited(waited: &Waited) -> Option<String> {
    let outcome = waited
        .outcome
        .as_ref()
        .ok()
        .filter(|outcome| outcome.error.is_none())?;
    let label = outcome.record.label();
    Some(match outcome.record.state {
        State::Exited => format!("{label}: {}", exited(&outcome.record)),
        State::Lost => format!("{label}: lost: gone without a recorded end"),
        _ => format!("{label}: still running"),
    })
}
