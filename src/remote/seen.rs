//! What a host says of a job: the `job` line that every script gives.

use super::answer::garbage;
use crate::error::Failure;
use crate::job::{EndedBy, Epoch, Record, State, now};

/// What a host found of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It ended, and its end is recorded.
    Exited,
    /// It runs.
    Running,
    /// STOP stopped it.
    Stopped,
    /// Its process is gone; its supervisor is about to record the end.
    Ending,
    /// Its supervisor is there, or about to be; the job is not yet.
    Starting,
    /// Gone without a recorded end.
    Lost,
    /// Recorded by another machine that shares this home directory or this address.
    Elsewhere,
    /// There is no such job on the host.
    Absent,
    /// The directory of all jobs is missing, so nothing can be said: its file system may not be mounted.
    Away,
    /// Its directory is a link or writable by other users, so it is not trusted.
    Foreign,
}

/// What else there is to say about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Its time limit ended it.
    TimedOut,
    /// Its tether ended it: nobody had been in contact for too long.
    Untied,
    /// Its time limit or its tether could not end it: it runs as another user.
    Unkept,
    /// It runs, and its directory is gone.
    NoDirectory,
    /// Its host or its container has begun again since it started.
    Rebooted,
}

/// A host's word on one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub standing: Standing,
    pub exit_status: Option<u8>,
    /// When it ended, by the host's clock.
    pub finished_at: Option<Epoch>,
    pub note: Option<Note>,
    pub pid: Option<u32>,
    pub pgid: Option<u32>,
    /// When it started, by the host's clock.
    pub started_at: Option<Epoch>,
    /// What `uname -s` said where it started.
    pub os: Option<String>,
    /// See [`Record::birth`], [`Record::boot`] and [`Record::machine`].
    pub birth: Option<String>,
    pub boot: Option<String>,
    pub machine: Option<String>,
    /// What `uname -n` said where it started.
    pub node: Option<String>,
}

/// How long after a start was asked for its job may still turn up on the host, in seconds.
const START_LAG: Epoch = 60;

impl Seen {
    /// Reads the fields behind `job INDEX`.
    fn parse(fields: &str) -> Option<Self> {
        let mut words = fields.splitn(12, ' ');
        let mut word = || words.next();
        let standing = match word()? {
            "exited" => Standing::Exited,
            "running" => Standing::Running,
            "stopped" => Standing::Stopped,
            "ending" => Standing::Ending,
            "starting" => Standing::Starting,
            "lost" => Standing::Lost,
            "elsewhere" => Standing::Elsewhere,
            "none" => Standing::Absent,
            "away" => Standing::Away,
            "foreign" => Standing::Foreign,
            _ => return None,
        };
        let seen = Self {
            standing,
            exit_status: optional(word()?)?,
            finished_at: optional(word()?)?,
            note: match word()? {
                "-" => None,
                "timeout" => Some(Note::TimedOut),
                "tether" => Some(Note::Untied),
                "unkept" => Some(Note::Unkept),
                "dir" => Some(Note::NoDirectory),
                "boot" => Some(Note::Rebooted),
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
        (standing != Standing::Exited || seen.exit_status.is_some()).then_some(seen)
    }

    /// The word of a host that was asked for all its jobs and did not name this one.
    pub fn absent() -> Self {
        Self {
            standing: Standing::Absent,
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
        // A host may have said when that was.
        let is_new = || now().saturating_sub(record.created_at) < START_LAG;
        match self.standing {
            Standing::Exited => State::Exited,
            Standing::Running | Standing::Ending => State::Running,
            Standing::Stopped => State::Stopped,
            Standing::Starting => State::Starting,
            Standing::Absent | Standing::Away if record.state == State::Exited => State::Exited,
            Standing::Absent if record.state == State::Starting && is_new() => State::Starting,
            Standing::Lost | Standing::Absent => State::Lost,
            Standing::Elsewhere | Standing::Away | Standing::Foreign => State::Unknown,
        }
    }

    /// Takes what the host said into the record. Where the host can't tell, the last known state stays.
    pub fn update(&self, record: &mut Record) {
        let state = self.state(record);
        record.checked_at = Some(now());
        if state == State::Unknown {
            return;
        }
        record.state = state;
        record.unkept = self.note == Some(Note::Unkept);
        match self.note {
            Some(Note::TimedOut) => {
                record.timed_out = true;
                record.ended_by = Some(EndedBy::Timeout);
            }
            Some(Note::Untied) => record.ended_by = Some(EndedBy::Tether),
            Some(Note::Rebooted) => record.rebooted = true,
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

/// A field, `-` where it is not known; `None` where it is malformed.
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

/// One of the words that stand before a path in [`Record::job_dir`].
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

/// Reads a `job` line of a script about `jobs` jobs.
pub fn job_line(host: &str, line: &str, jobs: usize) -> Result<(usize, Seen), Failure> {
    indexed(line, jobs)
        .filter(|(word, ..)| *word == "job")
        .and_then(|(_, index, fields)| Some((index, Seen::parse(fields)?)))
        .ok_or_else(|| garbage(host, line.as_bytes()))
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
            (index, seen.standing, seen.exit_status),
            (1, Standing::Exited, Some(143))
        );
        assert_eq!(seen.node.as_deref(), Some("web 1"));
        assert_eq!((seen.note, seen.machine.as_deref()), (None, Some("m:1")));
        let (_, seen) = job_line(
            "h",
            "job 0 exited 143 - timeout 5 5 1600000000 Linux 77 b0 m:1 web",
            2,
        )
        .unwrap();
        assert_eq!(seen.note, Some(Note::TimedOut));
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
