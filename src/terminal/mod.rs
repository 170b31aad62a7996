//! The edge of the command line: outcomes as tables, lines and JSON, messages on standard error, exit statuses.

mod json;
mod line;
mod print;
mod spinner;
mod table;

#[cfg(feature = "serve")]
pub use json::Job as JobJson;
pub use json::{job as job_json, report as report_json, waited as waited_json};
pub use line::{report as report_line, waited as waited_line};
pub use print::{ask, die_of_broken_pipe, is_on_terminal, note, print, print_bytes, warn};
pub use spinner::Spinner;
pub use table::{
    command as command_line, history as history_table, jobs as job_table, keepers as keeper_table,
    signals as signal_table,
};

use crate::cmd::kill::Report;
use crate::cmd::wait::Waited;
use crate::error::{Kind, exit};
use crate::job::State;

/// The exit status of one job's part of `kill` and `stop`.
pub fn report_status(report: &Report, waiting: bool) -> u8 {
    match (report.failure(), &report.outcome) {
        (Some(failure), _) => failure.kind.exit_status(),
        (None, Ok(outcome)) if waiting && outcome.still_running == Some(true) => exit::TIMED_OUT,
        _ => exit::DONE,
    }
}

/// The exit status of `wait`: 124 if any job still runs, else 255, else 125, else the status of the last named. The
/// jobs come in the order in which they were named.
pub fn wait_status(waited: &[Waited]) -> u8 {
    let statuses: Vec<(u8, bool)> = waited.iter().map(one_wait_status).collect();
    let worst = [exit::TIMED_OUT, exit::UNREACHABLE, exit::LOST];
    worst
        .into_iter()
        .find(|worst| statuses.iter().any(|(status, own)| !own && status == worst))
        .or(statuses.last().map(|(status, _)| *status))
        .unwrap_or(exit::DONE)
}

/// The exit status for one job, and whether it is the job's own.
fn one_wait_status(waited: &Waited) -> (u8, bool) {
    let outcome = match &waited.outcome {
        Ok(outcome) => outcome,
        Err(failure) => return (wait_failure(failure.kind), false),
    };
    match (
        &outcome.error,
        outcome.record.state,
        outcome.record.exit_status,
    ) {
        (Some(failure), ..) => (wait_failure(failure.kind), false),
        (None, State::Exited, Some(status)) => (status, true),
        (None, State::Lost, _) => (exit::LOST, false),
        _ => (exit::TIMED_OUT, false),
    }
}

/// What `wait` makes of rsig's own failures: 1 and 3 could be the job's.
pub fn wait_failure(kind: Kind) -> u8 {
    match kind.exit_status() {
        exit::FAILED | exit::NO_JOB | exit::NOT_RUNNING => exit::LOST,
        status => status,
    }
}
