//! A job's state as reported by its host: the `job` line of every script.

use super::answer::unexpected;
use crate::error::Failure;
use crate::job::{EndedBy, Epoch, Record, State, now};

/// The state of a job on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservedState {
    /// The job has ended, and its end is recorded.
    Exited,
    /// The job runs.
    Running,
    /// The job was stopped by STOP.
    Stopped,
    /// The job's process is gone, and its supervisor is about to record the end.
    Ending,
    /// The supervisor runs or is about to start; the job does not run yet.
    Starting,
    /// The job is gone without a recorded end.
    Lost,
    /// Recorded by another machine that shares this home directory or this address.
    Elsewhere,
    /// The host has no such job.
    Absent,
    /// The directory of all jobs is missing, so the state is unknown: its file system may not be mounted.
    DirMissing,
    /// The job's directory is a link or writable by other users, so it is not trusted.
    Untrusted,
}

/// An addition to a job's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobNote {
    /// The job was ended by its time limit.
    TimedOut,
    /// The job was ended by its tether: there had been no contact for too long.
    TetherEnded,
    /// The time limit or the tether could not end the job, since it runs as another user.
    NotEnded,
    /// The job's output is gone: it runs without its directory, or its files were removed.
    NoDirectory,
    /// The host or the container has restarted since the job started.
    Rebooted,
}

/// A host's report on one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub observed: ObservedState,
    pub exit_status: Option<u8>,
    /// When the job ended, by the host's clock.
    pub finished_at: Option<Epoch>,
    pub note: Option<JobNote>,
    pub pid: Option<u32>,
    pub pgid: Option<u32>,
    /// When the job started, by the host's clock.
    pub started_at: Option<Epoch>,
    /// The output of `uname -s` where the job started.
    pub os: Option<String>,
    /// See [`Record::birth`], [`Record::boot`] and [`Record::machine`].
    pub birth: Option<String>,
    pub boot: Option<String>,
    pub machine: Option<String>,
    /// The output of `uname -n` where the job started.
    pub node: Option<String>,
}

/// Time after the request in which a starting job may still appear on the host, in seconds.
const START_LAG: Epoch = 60;

impl Observation {
    /// Parses the fields after `job INDEX`.
    fn parse(fields: &str) -> Option<Self> {
        let mut words = fields.splitn(12, ' ');
        let mut word = || words.next();
        let observed = match word()? {
            "exited" => ObservedState::Exited,
            "running" => ObservedState::Running,
            "stopped" => ObservedState::Stopped,
            "ending" => ObservedState::Ending,
            "starting" => ObservedState::Starting,
            "lost" => ObservedState::Lost,
            "elsewhere" => ObservedState::Elsewhere,
            "none" => ObservedState::Absent,
            "away" => ObservedState::DirMissing,
            "foreign" => ObservedState::Untrusted,
            _ => return None,
        };
        let seen = Self {
            observed,
            exit_status: optional(word()?)?,
            finished_at: optional(word()?)?,
            note: match word()? {
                "-" => None,
                "timeout" => Some(JobNote::TimedOut),
                "tether" => Some(JobNote::TetherEnded),
                "unkept" => Some(JobNote::NotEnded),
                "dir" => Some(JobNote::NoDirectory),
                "boot" => Some(JobNote::Rebooted),
                _ => return None,
            },
            pid: optional(word()?)?,
            pgid: optional(word()?)?,
            started_at: optional(word()?)?,
            os: optional(word()?)?,
            birth: mark(word()?)?,
            boot: mark(word()?)?,
            machine: mark(word()?)?,
            node: optional(word()?)?,
        };
        (observed != ObservedState::Exited || seen.exit_status.is_some()).then_some(seen)
    }

    /// The report for a job that is missing in a host's list of all jobs.
    pub fn absent() -> Self {
        Self {
            observed: ObservedState::Absent,
            exit_status: None,
            finished_at: None,
            note: None,
            pid: None,
            pgid: None,
            started_at: None,
            os: None,
            birth: None,
            boot: None,
            machine: None,
            node: None,
        }
    }

    /// The state to show for the job, whose record is `record`.
    pub fn state(&self, record: &Record) -> State {
        // `created_at` may come from a host, so the difference may be out of range.
        let is_new = || now().saturating_sub(record.created_at) < START_LAG;
        match self.observed {
            ObservedState::Exited => State::Exited,
            ObservedState::Running | ObservedState::Ending => State::Running,
            ObservedState::Stopped => State::Stopped,
            ObservedState::Starting => State::Starting,
            ObservedState::Absent | ObservedState::DirMissing if record.state == State::Exited => {
                State::Exited
            }
            ObservedState::Absent if record.state == State::Starting && is_new() => State::Starting,
            ObservedState::Lost | ObservedState::Absent => State::Lost,
            ObservedState::Elsewhere | ObservedState::DirMissing | ObservedState::Untrusted => {
                State::Unknown
            }
        }
    }

    /// Updates the record. If the host can't tell the state, the last known one stays.
    pub fn update(&self, record: &mut Record) {
        let state = self.state(record);
        record.checked_at = Some(now());
        if state == State::Unknown {
            return;
        }
        record.state = state;
        record.unkept = self.note == Some(JobNote::NotEnded);
        match self.note {
            Some(JobNote::TimedOut) => {
                record.timed_out = true;
                record.ended_by = Some(EndedBy::Timeout);
            }
            Some(JobNote::TetherEnded) => record.ended_by = Some(EndedBy::Tether),
            Some(JobNote::Rebooted) => record.rebooted = true,
            _ => {}
        }
        record.exit_status = self.exit_status.or(record.exit_status);
        record.finished_at = self.finished_at.or(record.finished_at);
        record.pid = self.pid.or(record.pid);
        record.pgid = self.pgid.or(record.pgid);
        record.started_at = self.started_at.or(record.started_at);
        for (known, seen) in [
            (&mut record.os, &self.os),
            (&mut record.birth, &self.birth),
            (&mut record.boot, &self.boot),
            (&mut record.machine, &self.machine),
        ] {
            if seen.is_some() {
                known.clone_from(seen);
            }
        }
    }
}

/// Parses a field: `Some(None)` for `-` (not known), `None` if it is malformed.
#[allow(
    clippy::option_option,
    reason = "malformed and not known are two things"
)]
pub(super) fn optional<T: std::str::FromStr>(word: &str) -> Option<Option<T>> {
    if word == "-" {
        Some(None)
    } else {
        word.parse().ok().map(Some)
    }
}

/// Parses one of the words before a path in [`Record::job_dir`].
#[allow(
    clippy::option_option,
    reason = "malformed and not known are two things"
)]
pub(super) fn mark(word: &str) -> Option<Option<String>> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    let is_mark = word.bytes().all(is_plain) && (1..=128).contains(&word.len());
    is_mark.then(|| optional(word)).flatten()
}

/// Splits `WORD INDEX REST` for one of `jobs` jobs.
pub fn indexed(line: &str, jobs: usize) -> Option<(&str, usize, &str)> {
    let mut words = line.splitn(3, ' ');
    let word = words.next()?;
    let index = words.next()?.parse().ok().filter(|index| *index < jobs)?;
    Some((word, index, words.next().unwrap_or_default()))
}

/// Parses a `job` line of a script about `jobs` jobs.
pub fn job_line(host: &str, line: &str, jobs: usize) -> Result<(usize, Observation), Failure> {
    indexed(line, jobs)
        .filter(|(word, ..)| *word == "job")
        .and_then(|(_, index, fields)| Some((index, Observation::parse(fields)?)))
        .ok_or_else(|| unexpected(host, line.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_strictly() {
        let (index, seen) = job_line(
            "h",
            "job 1 exited 143 1700000000 - 5 5 1600000000 Linux 77 b0 m:1 web 1",
            2,
        )
        .unwrap();
        assert_eq!(
            (index, seen.observed, seen.exit_status),
            (1, ObservedState::Exited, Some(143))
        );
        assert_eq!(seen.node.as_deref(), Some("web 1"));
        assert_eq!((seen.note, seen.machine.as_deref()), (None, Some("m:1")));
        let (_, seen) = job_line(
            "h",
            "job 0 exited 143 - timeout 5 5 1600000000 Linux 77 b0 m:1 web",
            2,
        )
        .unwrap();
        assert_eq!(seen.note, Some(JobNote::TimedOut));
        assert!(job_line("h", "job 0 none - - - - - - - - - - -", 1).is_ok());
        for bad in [
            "",
            "job",
            "job 0",
            "job 1 running - - - 5 5 1 Linux 7 b m web",
            "job 0 exited - - - 5 5 1 Linux 7 b m web",
            "job 0 exited 1 - late 5 5 1 Linux 7 b m web",
            "job 0 exited 300 1 - 5 5 1 Linux 7 b m web",
            "job 0 running - - - -5 5 1 Linux 7 b m web",
            "job 0 dancing - - - 5 5 1 Linux 7 b m web",
            "job 0 running - - - 5 5 1 Linux 7 b m",
            "sent 0 running - - - 5 5 1 Linux 7 b m web",
        ] {
            assert!(job_line("h", bad, 1).is_err(), "{bad:?}");
        }
    }
}
