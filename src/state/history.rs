//! The history of jobs, including jobs whose records were removed: starts, signals, ends and removals.
//!
//! The history never holds a value of `-e`, nor text from a host, which could contain such a value.

use nix::unistd::Uid;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use super::rows::{from_json, id_range, json};
use crate::error::Kind;
use crate::job::SendOutcome;
use crate::job::{Epoch, JobId, JobName, Record, Target, now, rfc3339};
use crate::signal::Signal;

/// Maximum number of entries; the oldest are dropped.
const ENTRIES_MAX: i64 = 100_000;
/// Maximum age of an entry, in seconds: a year.
const AGE_MAX: Epoch = 365 * 24 * 3600;
/// Old entries are dropped once per this many new ones.
const PRUNE_EVERY: i64 = 1000;
/// Maximum length of a command line in the history, in bytes. The job's record has all of it.
const COMMAND_MAX: usize = 4096;

/// An entry of the history. It holds everything that is shown, since the job's record may be gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The time by this machine's clock, in RFC 3339 format.
    pub at: String,
    /// The user who did it or noticed it. The state file holds the uid, since looking up the name can take long.
    pub user: String,
    pub job: JobId,
    pub name: Option<JobName>,
    pub host: String,
    #[serde(flatten)]
    pub action: Action,
}

/// What was done to a job, or what happened to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Action {
    Spawn {
        command: Vec<String>,
    },
    NotStarted {
        /// The kind of the failure, as in `kill --json`.
        error: String,
    },
    Signal {
        signal: String,
        target: String,
        via: Option<String>,
        /// True if the host confirmed that it was sent; `None` if the connection broke before.
        sent: Option<bool>,
    },
    End {
        state: String,
        exit_status: Option<u8>,
        exit_signal: Option<String>,
        timed_out: bool,
        finished_at: Option<String>,
    },
    Removal,
    /// The record was dropped; the files stay on the host.
    Forget,
}

/// A signal of the job's host, and whether it was sent.
pub struct SignalEntry {
    pub signal: Signal,
    pub sent: SendOutcome,
}

impl Action {
    pub fn spawn(record: &Record) -> Self {
        let mut room = COMMAND_MAX;
        let fits = |word: &&String| {
            room = room.saturating_sub(word.len());
            room > 0
        };
        let mut command: Vec<String> = record.command.iter().take_while(fits).cloned().collect();
        if command.len() < record.command.len() {
            command.push("…".to_owned());
        }
        Self::Spawn { command }
    }

    pub fn not_started(kind: Kind) -> Self {
        Self::NotStarted {
            error: kind.word().to_owned(),
        }
    }

    pub fn signal(signalled: &SignalEntry, target: Target) -> Self {
        Self::Signal {
            signal: signalled.signal.name(),
            target: target.word().to_owned(),
            via: signalled.sent.via().map(|via| via.word().to_owned()),
            sent: signalled.sent.into(),
        }
    }

    pub fn end(record: &Record) -> Self {
        Self::End {
            state: record.state.word().to_owned(),
            exit_status: record.exit_status,
            exit_signal: record.exit_signal(),
            timed_out: record.timed_out,
            finished_at: record.finished_at.and_then(rfc3339),
        }
    }
}

/// Records what was done to a job, whether or not the job has a record.
pub(super) fn write(
    connection: &Connection,
    record: &Record,
    action: Action,
) -> rusqlite::Result<()> {
    let entry = Entry {
        at: rfc3339(now()).unwrap_or_default(),
        user: Uid::current().to_string(),
        job: record.id.clone(),
        name: record.name.clone(),
        host: record.host().to_string(),
        action,
    };
    connection
        .prepare_cached("INSERT INTO history (entry) VALUES (?1)")?
        .execute([json(&entry)?])?;
    let number = connection.last_insert_rowid();
    if number % PRUNE_EVERY == 0 {
        prune(connection, number)?;
    }
    Ok(())
}

/// Drops entries that are too old or too many. Numbers increase with time, so only the dropped entries are read.
fn prune(connection: &Connection, newest: i64) -> rusqlite::Result<()> {
    let young = "SELECT number FROM history WHERE at >= ?1 ORDER BY number LIMIT 1";
    let young: Option<i64> = connection
        .query_row(young, [rfc3339(now() - AGE_MAX)], |row| row.get(0))
        .optional()?;
    let first = young.unwrap_or(newest).max(newest - ENTRIES_MAX + 1);
    connection.execute("DELETE FROM history WHERE number < ?1", [first])?;
    Ok(())
}

/// The last `limit` entries of one job or of all jobs, the oldest first.
pub(super) fn read(
    connection: &Connection,
    job: Option<&JobId>,
    limit: Option<u32>,
) -> rusqlite::Result<Vec<Entry>> {
    let condition = match job {
        Some(_) => "job = ?1",
        None => "?1 IS NULL",
    };
    let mut statement = connection.prepare(&format!(
        "SELECT entry FROM history WHERE {condition} ORDER BY number DESC LIMIT ?2"
    ))?;
    let parameters = params![job.map(JobId::as_str), limit.map_or(-1, i64::from)];
    let mut entries: Vec<Entry> = statement
        .query_map(parameters, from_json)?
        .collect::<rusqlite::Result<_>>()?;
    entries.reverse();
    Ok(entries)
}

/// The ids in the history that begin with a text, at most two; if there are none, the last job with that name.
pub(super) fn find(connection: &Connection, word: &str) -> rusqlite::Result<Vec<String>> {
    let all = |statement: &str, parameters: &[&str]| -> rusqlite::Result<Vec<String>> {
        connection
            .prepare(statement)?
            .query_map(rusqlite::params_from_iter(parameters), |row| row.get(0))?
            .collect()
    };
    let by_id = "SELECT DISTINCT job FROM history WHERE job >= ?1 AND job < ?2 LIMIT 2";
    let by_name = "SELECT job FROM history WHERE name = ?1 ORDER BY number DESC LIMIT 1";
    let mut found = Vec::new();
    if let Some([first, end]) = id_range(word) {
        found = all(by_id, &[&first, &end])?;
    }
    if found.is_empty() {
        found = all(by_name, &[word])?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::file::StateFile;

    #[test]
    fn old_entries_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::open(&directory.path().join("state")).unwrap();
        let destination = crate::host::Destination {
            host: "local".parse().unwrap(),
            connect: <_>::default(),
        };
        let record = Record::new(JobId::random().unwrap(), None, destination, Vec::new());
        let connection = &file.connection;
        let fill = |first: i64, last: i64, at: Epoch| {
            let fill = "WITH RECURSIVE n (i) AS (VALUES (?1) UNION ALL SELECT i + 1 FROM n WHERE i < ?2) \
                        INSERT INTO history SELECT i, json_object('at', ?3, 'job', 'j') FROM n";
            connection
                .execute(fill, params![first, last, rfc3339(at)])
                .unwrap();
        };
        let count = || -> i64 {
            let count = "SELECT count(*) FROM history";
            connection.query_row(count, [], |row| row.get(0)).unwrap()
        };
        let last = ENTRIES_MAX + 2 * PRUNE_EVERY - 1;
        fill(1, last, now());
        write(connection, &record, Action::Removal).unwrap();
        assert_eq!(count(), ENTRIES_MAX);
        connection.execute("DELETE FROM history", []).unwrap();
        fill(1, 500, now() - AGE_MAX - 10);
        fill(501, PRUNE_EVERY - 1, now() - AGE_MAX + 1000);
        write(connection, &record, Action::Removal).unwrap();
        assert_eq!(count(), PRUNE_EVERY - 500);
    }
}
