//! The events in the state file: what was done to jobs, those included that are forgotten by now.
//!
//! An event is written in the transaction of the change that it tells of, so neither is there without the other.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Store, json, on_row};
use crate::delivery::Sent;
use crate::error::{Failure, Kind};
use crate::job::{Epoch, JobId, JobName, Record, Target, is_id_text, now};
use crate::signal::Signal;
use crate::state::event::{Event, Happening, user, user_name};

/// How many events are kept, the newest.
const MOST: i64 = 100_000;
/// How long they are kept, in seconds: a year.
const LONGEST: Epoch = 365 * 24 * 3600;
/// Old ones are dropped once in so many.
const SELDOM: i64 = 1000;

/// Writes down what happened to a job, whether or not there is a record of it.
pub(super) fn write(
    connection: &Connection,
    record: &Record,
    happening: &Happening,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO events (at, user, job, name, host, happening) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let name = record.name.as_ref().map(JobName::as_str);
    let (id, host) = (record.id.as_str(), record.host().to_string());
    statement.execute(params![now(), user(), id, name, host, json(happening)?])?;
    let number = connection.last_insert_rowid();
    if number % SELDOM == 0 {
        prune(connection, number)?;
    }
    Ok(())
}

/// Writes down that a job is over, if that is news to its record.
pub(super) fn write_end(connection: &Connection, record: &Record) -> rusqlite::Result<()> {
    if !record.state.is_finished() {
        return Ok(());
    }
    let is_news = "SELECT 1 FROM jobs WHERE id = ?1 AND host = ?2 AND connect = ?3 AND state NOT IN ('exited', ?4)";
    let row = params![
        record.id.as_str(),
        record.host().to_string(),
        json(&record.destination.connect)?,
        record.state.word()
    ];
    if connection.prepare_cached(is_news)?.exists(row)? {
        write(connection, record, &Happening::end(record))?;
    }
    Ok(())
}

/// Drops what is too old or too much. The numbers follow the time, so only what goes is looked at.
fn prune(connection: &Connection, newest: i64) -> rusqlite::Result<()> {
    let young: Option<i64> = connection
        .query_row(
            "SELECT number FROM events WHERE at >= ?1 ORDER BY number LIMIT 1",
            [now() - LONGEST],
            |row| row.get(0),
        )
        .optional()?;
    let first = young.unwrap_or(newest).max(newest - MOST + 1);
    connection
        .execute("DELETE FROM events WHERE number < ?1", [first])
        .map(drop)
}

/// A signal, and what became of it.
pub struct Signalled {
    /// Its name on the job's host.
    pub signal: Signal,
    /// What became of it.
    pub sent: Sent,
}

impl Store {
    /// Writes down what became of signals, and how the job stands then. What was not sent leaves no event.
    pub fn signalled<'a>(
        &mut self,
        record: &Record,
        target: Target,
        signals: impl Iterator<Item = &'a Signalled>,
    ) {
        self.write_after(|transaction| {
            for Signalled { signal, sent } in signals {
                if *sent != Sent::No {
                    write(
                        transaction,
                        record,
                        &Happening::signal(&signal.name(), target, *sent),
                    )?;
                }
                if matches!(sent, Sent::Yes(_)) {
                    on_row(
                        transaction,
                        "UPDATE jobs SET last_signal = ?4",
                        record,
                        &[&signal.name()],
                    )?;
                }
            }
            // The signals first: an end follows from them.
            super::renew(transaction, record)
        });
    }

    /// The events of one job or of all, the oldest first; of many the last `most`.
    pub fn events(&self, job: Option<&JobId>, most: Option<u32>) -> Result<Vec<Event>, Failure> {
        let condition = if job.is_some() {
            "job = ?1"
        } else {
            "?1 IS NULL"
        };
        let read = || -> rusqlite::Result<Vec<Result<Event>>> {
            let mut statement = self.connection.prepare(&format!(
                "SELECT number, at, user, job, name, host, happening FROM events WHERE {condition} \
                 ORDER BY number DESC LIMIT ?2"
            ))?;
            let most = most.map_or(-1, i64::from);
            statement
                .query_map(params![job.map(JobId::as_str), most], |row| {
                    Ok(read_event(row))
                })?
                .collect()
        };
        let events = read().map_err(|error| self.failure(error))?;
        let mut names = HashMap::new();
        let named = |event: Result<Event>| {
            let mut event = event?;
            let kept = std::mem::take(&mut event.user);
            event
                .user
                .clone_from(names.entry(kept).or_insert_with_key(|kept| user_name(kept)));
            Ok(event)
        };
        Ok(events.into_iter().rev().map(named).collect::<Result<_>>()?)
    }

    /// The job that a word named, where there is no record of it any more: an id, the beginning of one, or a name.
    pub fn resolve_past(&self, word: &str) -> Result<JobId, Failure> {
        let find = |statement: &str, parameters: &[&str]| -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection.prepare(statement)?;
            statement
                .query_map(rusqlite::params_from_iter(parameters), |row| row.get(0))?
                .collect()
        };
        // '{' comes right behind 'z', the last character of an id.
        let by_id = "SELECT DISTINCT job FROM events WHERE job >= ?1 AND job < ?2 LIMIT 2";
        let by_name = "SELECT job FROM events WHERE name = ?1 ORDER BY number DESC LIMIT 1";
        let mut found = Vec::new();
        if is_id_text(word) && (super::PREFIX..=JobId::LENGTH).contains(&word.len()) {
            found =
                find(by_id, &[word, &format!("{word}{{")]).map_err(|error| self.failure(error))?;
        }
        if found.is_empty() {
            found = find(by_name, &[word]).map_err(|error| self.failure(error))?;
        }
        let shown = crate::escape::printable(word, 80);
        match found.as_slice() {
            [id] => Ok(id
                .parse()
                .context("the history in the state file is damaged")?),
            [] => {
                let message = format!(
                    "no job {shown:?}, and none of the past: `rsig history` lists what is known"
                );
                Err(Failure::new(Kind::NotFound, message))
            }
            _ => Err(Failure::new(
                Kind::Ambiguous,
                format!("{shown:?} fits several jobs of the past"),
            )),
        }
    }
}

fn read_event(row: &Row<'_>) -> Result<Event> {
    let number: i64 = row.get(0)?;
    let read = || -> Result<Event> {
        Ok(Event {
            at: row.get(1)?,
            user: row.get(2)?,
            job: row.get::<_, String>(3)?.parse()?,
            name: row.get(4)?,
            host: row.get(5)?,
            happening: serde_json::from_str(&row.get::<_, String>(6)?)?,
        })
    };
    read().with_context(|| format!("event {number} in the state file makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::State;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open_in(&directory.path().join("state"), |_| ()).unwrap();
        (directory, store)
    }

    fn inserted(store: &mut Store) -> Record {
        let destination = crate::host::Destination {
            host: "local".parse().unwrap(),
            connect: <_>::default(),
        };
        let record = Record::new(
            JobId::random().unwrap(),
            None,
            destination,
            vec!["true".into()],
        );
        store.insert(&record).unwrap();
        record
    }

    fn words(store: &Store, id: &JobId) -> Vec<String> {
        let events = store.events(Some(id), None).unwrap();
        events
            .iter()
            .map(|event| serde_json::to_string(&event.happening).unwrap())
            .collect()
    }

    #[test]
    fn an_end_is_written_down_once() {
        let (_directory, mut store) = store();
        let mut record = inserted(&mut store);
        record.state = State::Running;
        store.update([&record, &record]);
        record.state = State::Exited;
        record.exit_status = Some(0);
        store.update([&record]);
        store.update([&record]);
        // A command that looked earlier takes nothing back.
        record.state = State::Lost;
        store.update([&record]);
        store.remove(&record);
        store.remove(&record);
        let words = words(&store, &record.id);
        assert_eq!(words.len(), 3, "{words:?}");
        assert!(
            words[1].contains("exited") && words[2].contains("removal"),
            "{words:?}"
        );
    }

    #[test]
    fn old_events_are_dropped() {
        let (_directory, mut store) = store();
        let record = inserted(&mut store);
        let fill = "WITH RECURSIVE n (i) AS (VALUES (2) UNION ALL SELECT i + 1 FROM n WHERE i < ?1 - 1) \
                    INSERT INTO events SELECT i, ?2, 'u', 'j', NULL, 'h', '{}' FROM n";
        store
            .connection
            .execute(fill, params![MOST + 2 * SELDOM, now()])
            .unwrap();
        let count = |store: &Store| -> i64 {
            store
                .connection
                .query_row("SELECT count(*) FROM events", [], |row| row.get(0))
                .unwrap()
        };
        assert_eq!(count(&store), MOST + 2 * SELDOM - 1);
        store
            .change(|transaction| write(transaction, &record, &Happening::Removal))
            .unwrap();
        assert_eq!(count(&store), MOST);

        store
            .connection
            .execute("UPDATE events SET at = at - ?1", [LONGEST + 10])
            .unwrap();
        for _ in 0..SELDOM {
            store
                .change(|transaction| write(transaction, &record, &Happening::Removal))
                .unwrap();
        }
        assert_eq!(count(&store), SELDOM);
    }

    #[test]
    fn nothing_that_a_command_does_reads_all_events() {
        let (_directory, store) = store();
        for statement in [
            "SELECT number FROM events WHERE job = 'x' ORDER BY number DESC LIMIT 5",
            "SELECT DISTINCT job FROM events WHERE job >= 'x' AND job < 'x{' LIMIT 2",
            "DELETE FROM events WHERE number < 5",
        ] {
            let plan: Vec<String> = store
                .connection
                .prepare(&format!("EXPLAIN QUERY PLAN {statement}"))
                .unwrap()
                .query_map([], |row| row.get(3))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            assert!(
                plan.iter().all(|step| !step.starts_with("SCAN")),
                "{plan:?}"
            );
        }
    }
}
