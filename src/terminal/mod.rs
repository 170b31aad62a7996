//! What people and programs see: lines, tables and JSON on standard output, messages on standard error.

mod gather;
mod json;
mod lines;
mod print;
mod spinner;
mod table;

pub use gather::{Gathered, print_gathered};
pub use json::{FailureJson, JobJson};
pub use lines::Lines;
pub use print::{Output, ask, is_coloured, is_on_terminal, print_bytes, unprinted, warn};
pub use spinner::Spinner;
pub use table::Table;

use crate::escape::printable;
use crate::job::{EndedBy, Epoch, Record, State, now};
use crate::remote::Usage;

/// The longest command that is shown, in characters.
const COMMAND_MAX: usize = 4096;

/// A command line as a person would type it, on one line.
pub fn command_line(words: &[String]) -> String {
    let joined =
        shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "));
    printable(joined, COMMAND_MAX)
}

/// How a job ended, as part of a sentence.
pub fn ended(record: &Record) -> String {
    let status = record
        .exit_status
        .map_or_else(|| "?".to_owned(), |status| status.to_string());
    let signal = record.exit_signal();
    format!(
        "ended with status {}",
        with_reason(&status, signal.as_deref(), record.cause())
    )
}

/// The same for a table.
pub fn exited(status: u8, signal: Option<&str>, cause: Option<EndedBy>) -> String {
    format!("exited {}", with_reason(&status.to_string(), signal, cause))
}

fn with_reason(status: &str, signal: Option<&str>, cause: Option<EndedBy>) -> String {
    let signal = signal.map_or_else(String::new, |signal| format!(" ({signal})"));
    let cause = match cause {
        Some(EndedBy::Timeout) => ", timed out",
        Some(EndedBy::Tether) => ", ended by its tether",
        None => "",
    };
    format!("{status}{signal}{cause}")
}

/// What a table shows of a job's use: its share of a CPU, its CPU time, its memory and its processes.
pub fn usage(usage: Option<&Usage>) -> [String; 4] {
    let Some(usage) = usage else {
        return ["-"; 4].map(str::to_owned);
    };
    let unknown = || "-".to_owned();
    [
        usage
            .cpu_percent
            .map_or_else(unknown, |percent| format!("{percent:.1}%")),
        cpu_time(usage.cpu_seconds),
        usage.rss_bytes.map_or_else(unknown, size),
        usage.processes.to_string(),
    ]
}

/// CPU time, as ps(1) writes it: `1:02`, `1:02:03`.
fn cpu_time(seconds: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole seconds are meant, and no time is negative"
    )]
    let whole = seconds as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// A number of bytes in its largest unit, to three digits or four.
fn size(bytes: u64) -> String {
    let units = ["K", "M", "G", "T", "P", "E"];
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    while tenths >= 10240 && unit + 1 < units.len() {
        tenths /= 1024;
        unit += 1;
    }
    if tenths < 100 && unit > 0 {
        format!("{}.{}{}", tenths / 10, tenths % 10, units[unit])
    } else {
        format!("{}{}", tenths / 10, units[unit])
    }
}

/// A time span in its largest unit.
pub fn age(seconds: Epoch) -> String {
    match seconds.max(0) {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

/// A job's state in a table; it may differ from its record's.
pub fn state(record: &Record, state: State) -> String {
    match (state, record.exit_status) {
        (State::Exited, Some(status)) => {
            exited(status, record.exit_signal().as_deref(), record.cause())
        }
        (State::Unknown, _) => format!("unknown (was {})", record.state),
        _ => state.to_string(),
    }
}

/// How long ago the job started, or ended when it has; by two clocks that may differ.
pub fn since(record: &Record, state: State) -> String {
    let when = if state.is_finished() {
        record.finished_at
    } else {
        record.started_at
    };
    when.map_or_else(|| "-".to_owned(), |when| age(now() - when))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_short() {
        for (bytes, shown) in [
            (0, "0K"),
            (4095, "3K"),
            (1 << 20, "1.0M"),
            ((1 << 20) * 23 / 2, "11M"),
            (1023 << 20, "1023M"),
            (u64::MAX, "15E"),
        ] {
            assert_eq!(size(bytes), shown);
        }
        for (seconds, shown) in [(0.0, "0:00"), (62.9, "1:02"), (3723.0, "1:02:03")] {
            assert_eq!(cpu_time(seconds), shown);
        }
    }
}
