//! A job in a list, and the texts for its row.

use super::{age, exited};
use crate::job::{Record, State, now};
use crate::remote::{Observation, Usage};

/// A job and its current state, which may be unknown, unlike the record's.
#[derive(Debug)]
pub struct ListedJob {
    pub record: Record,
    pub state: State,
    /// Its resource usage, if measured.
    pub usage: Option<Usage>,
}

impl From<Record> for ListedJob {
    fn from(record: Record) -> Self {
        let state = record.state;
        Self {
            record,
            state,
            usage: None,
        }
    }
}

impl ListedJob {
    /// Updates the job with the answer of its host. `None`: the host did not answer.
    pub fn take(&mut self, answer: Option<(Observation, Option<Usage>)>) {
        self.state = State::Unknown;
        self.usage = None;
        if let Some((seen, usage)) = answer {
            self.usage = usage;
            self.state = seen.state(&self.record);
            seen.update(&mut self.record);
        }
    }
}

/// The text for a job's state in a table. `state` may differ from the record's state.
pub fn state(record: &Record, state: State) -> String {
    match (state, record.exit_status) {
        (State::Exited, Some(status)) => {
            exited(status, record.exit_signal().as_deref(), record.cause())
        }
        (State::Unknown, _) => format!("unknown (was {})", record.state),
        _ => state.to_string(),
    }
}

/// How long ago the job started, or ended if it has. The host's clock may differ from this machine's.
pub fn since(record: &Record, state: State) -> String {
    let when = if state.is_finished() {
        record.finished_at
    } else {
        record.started_at
    };
    when.map_or_else(|| "-".to_owned(), |when| age(now().saturating_sub(when)))
}

/// The table cells for a job's resource usage: CPU percentage, CPU time, memory, number of processes.
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

/// CPU time in the format of ps(1): `1:02`, `1:02:03`.
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

/// A number of bytes in the largest suitable unit, with up to four digits.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_say_any_time() {
        let destination = crate::host::Destination {
            host: "web1".parse().unwrap(),
            connect: crate::host::Connect::default(),
        };
        let id = "0123abcd".parse().unwrap();
        let mut record = Record::new(id, None, destination, vec!["true".to_owned()]);
        for (started_at, shown) in [
            (None, "-"),
            (Some(now() - 7200), "2h"),
            (Some(i64::MAX), "0s"),
            (Some(i64::MIN), "106751991167300d"),
        ] {
            record.started_at = started_at;
            assert_eq!(since(&record, State::Running), shown);
        }
        record.created_at = i64::MIN;
        assert_eq!(Observation::absent().state(&record), State::Lost);
    }

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
