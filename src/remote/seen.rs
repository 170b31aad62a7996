//! What a host says of a job: the `job` line that every script gives.

use super::answer::garbage;
use crate::error::Failure;
use crate::job::{Epoch, Record, State, now};

/// How a job stands on its host.
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
    /// Recorded by another machine that shares this home directory.
    Elsewhere,
    /// There is no such job on the host.
    Absent,
    /// Its directory is a link, or others could have written to it: nothing in it is believed.
    Foreign,
}

/// A host's word on one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How it stands.
    pub standing: Standing,
    /// It ran into its time limit, and was ended for that.
    pub timed_out: bool,
    /// Its exit status, once it has one.
    pub exit_status: Option<u8>,
    /// When it ended, by the host's clock.
    pub finished_at: Option<Epoch>,
    /// Its first process.
    pub pid: Option<u32>,
    /// Its process group.
    pub pgid: Option<u32>,
    /// When it started, by the host's clock.
    pub started_at: Option<Epoch>,
    /// What `uname -s` said where it started.
    pub os: Option<String>,
    /// What `uname -n` said where it started.
    pub node: Option<String>,
}

/// How long after it was asked for a job that its host does not know may still turn up there, in seconds.
const ON_ITS_WAY: Epoch = 60;

impl Seen {
    /// Reads the fields behind `job INDEX`.
    fn parse(fields: &str) -> Option<Self> {
        let mut words = fields.splitn(8, ' ');
        let mut word = || words.next();
        let first = word()?;
        let standing = match first {
            "exited" | "expired" => Standing::Exited,
            "running" => Standing::Running,
            "stopped" => Standing::Stopped,
            "ending" => Standing::Ending,
            "starting" => Standing::Starting,
            "lost" => Standing::Lost,
            "elsewhere" => Standing::Elsewhere,
            "none" => Standing::Absent,
            "foreign" => Standing::Foreign,
            _ => return None,
        };
        let seen = Self {
            standing,
            timed_out: first == "expired",
            exit_status: optional(word()?)?,
            finished_at: optional(word()?)?,
            pid: optional(word()?)?,
            pgid: optional(word()?)?,
            started_at: optional(word()?)?,
            os: optional(word()?)?,
            node: optional(word()?)?,
        };
        (standing != Standing::Exited || seen.exit_status.is_some()).then_some(seen)
    }

    /// The word of a host that was asked for all its jobs and did not name this one.
    pub fn absent() -> Self {
        Self {
            standing: Standing::Absent,
            timed_out: false,
            exit_status: None,
            finished_at: None,
            pid: None,
            pgid: None,
            started_at: None,
            os: None,
            node: None,
        }
    }

    /// The state to show for the job, whose record is `record`.
    pub fn state(&self, record: &Record) -> State {
        match self.standing {
            Standing::Exited => State::Exited,
            Standing::Running | Standing::Ending => State::Running,
            Standing::Stopped => State::Stopped,
            Standing::Starting => State::Starting,
            Standing::Absent if record.state == State::Exited => State::Exited,
            Standing::Absent
                if record.state == State::Starting && now() - record.created_at < ON_ITS_WAY =>
            {
                State::Starting
            }
            Standing::Lost | Standing::Absent => State::Lost,
            Standing::Elsewhere | Standing::Foreign => State::Unknown,
        }
    }

    /// Takes what the host said into the record, except where another machine or nobody could say it: then the last
    /// known state stays.
    pub fn update(&self, record: &mut Record) {
        let state = self.state(record);
        record.checked_at = Some(now());
        if state == State::Unknown {
            return;
        }
        record.state = state;
        record.timed_out |= self.timed_out;
        record.exit_status = self.exit_status.or(record.exit_status);
        record.finished_at = self.finished_at.or(record.finished_at);
        record.pid = self.pid.or(record.pid);
        record.pgid = self.pgid.or(record.pgid);
        record.started_at = self.started_at.or(record.started_at);
        record.os = self.os.clone().or(record.os.take());
    }
}

/// A field, `-` where it is not known; `None` where it makes no sense.
#[allow(
    clippy::option_option,
    reason = "no such word, and a word that says there is nothing, are two things"
)]
fn optional<T: std::str::FromStr>(word: &str) -> Option<Option<T>> {
    if word == "-" {
        Some(None)
    } else {
        word.parse().ok().map(Some)
    }
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
            "job 1 exited 143 1700000000 5 5 1600000000 Linux web 1",
            2,
        )
        .unwrap();
        assert_eq!(
            (index, seen.standing, seen.exit_status),
            (1, Standing::Exited, Some(143))
        );
        assert_eq!(seen.node.as_deref(), Some("web 1"));
        assert!(!seen.timed_out);
        let (_, seen) = job_line(
            "h",
            "job 0 expired 143 1700000000 5 5 1600000000 Linux web",
            2,
        )
        .unwrap();
        assert_eq!((seen.standing, seen.timed_out), (Standing::Exited, true));
        assert!(job_line("h", "job 0 none - - - - - - -", 1).is_ok());
        for bad in [
            "",
            "job",
            "job 0",
            "job 1 running - - 5 5 1 Linux web",
            "job 0 exited - - 5 5 1 Linux web",
            "job 0 expired - - 5 5 1 Linux web",
            "job 0 exited 300 1 5 5 1 Linux web",
            "job 0 running - - -5 5 1 Linux web",
            "job 0 dancing - - 5 5 1 Linux web",
            "job 0 running - - 5 5 1 Linux",
            "sent 0 running - - 5 5 1 Linux web",
        ] {
            assert!(job_line("h", bad, 1).is_err(), "{bad:?}");
        }
    }
}
