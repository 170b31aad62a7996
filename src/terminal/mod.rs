//! Output for people and programs: lines, tables and JSON on standard output, messages on standard error.

mod gather;
mod json;
mod lines;
mod listed;
mod print;
pub mod screen;
mod spinner;
mod table;

pub use gather::{GatheredOutput, print_gathered};
pub use json::{FailureJson, JobJson};
pub use lines::LineWriter;
pub use listed::{ListedJob, since, state, usage};
pub use print::{Output, ask, is_coloured, is_on_terminal, output_failure, print_bytes, warn};
pub use spinner::Spinner;
pub use table::Table;

use crate::escape::printable;
use crate::job::{EndedBy, Epoch, Record};

/// Maximum length of a command line that is shown, in characters.
const COMMAND_MAX: usize = 4096;

/// A command line as it would be typed into a shell, escaped to fit one line.
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

/// How a job ended, for a table.
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

/// A time span in its largest unit, rounded down.
pub fn age(seconds: Epoch) -> String {
    match seconds.max(0) {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}
