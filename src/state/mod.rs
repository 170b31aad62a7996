//! The state file: this machine's records of jobs and the history, in SQLite.
//!
//! Many commands write at once and any of them may be killed at any moment, so every change is one immediate
//! transaction with a busy timeout. The journal is a write-ahead log: data that is only kept for display needs no
//! fsync, and the record of a new job ([`Store::insert`]) gets one. The hosts are authoritative for their jobs; this
//! file knows which host to ask.

pub mod config;
mod directory;
mod failure;
mod file;
mod find;
pub mod history;
mod rows;

pub use config::Config;
pub use directory::state_directory;
pub use history::SignalEntry;

use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, params};

use crate::error::{Failure, Kind};
use crate::job::SendOutcome;
use crate::job::{JobName, Record, State, Target};
use file::{LOCK_WAIT_AFTER, LOCK_WAIT_MAX, StateFile};
use history::Action;
use rows::{json, select};

/// The condition of the index `unfinished`, verbatim: otherwise SQLite does not use the index.
const UNFINISHED: &str = "state NOT IN ('exited', 'lost')";

/// Whether the user was warned that writing fails: once per process is enough.
static WARNED: AtomicBool = AtomicBool::new(false);

/// An open state file.
///
/// Only creating a record fails if the file can't be written. Everything else is recorded after the fact on a
/// best-effort basis: a failure is only a warning.
pub struct Store {
    file: StateFile,
    warn: fn(&str),
    /// Changes to write at the end, in this order, because another process was writing.
    deferred: Vec<Change>,
}

type Change = Box<dyn Fn(&Connection) -> rusqlite::Result<()> + Send>;

/// Which records to select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFilter {
    Unfinished,
    Finished,
    All,
}

impl RecordFilter {
    fn condition(self) -> &'static str {
        match self {
            Self::Unfinished => UNFINISHED,
            Self::Finished => "state IN ('exited', 'lost')",
            Self::All => "1",
        }
    }
}

impl Store {
    pub fn open(warn: fn(&str)) -> Result<Self, Failure> {
        let file = StateFile::open(&state_directory()?)?;
        Ok(Self::of(file, warn))
    }

    /// Opens the state file read-only, if there is one of this version. Creates and changes nothing.
    pub fn peek() -> Option<Self> {
        let file = StateFile::peek(&state_directory().ok()?)?;
        Some(Self::of(file, |_| ()))
    }

    fn of(file: StateFile, warn: fn(&str)) -> Self {
        let deferred = Vec::new();
        Self {
            file,
            warn,
            deferred,
        }
    }

    /// Adds new records, all or none. They are on disk when this returns. Fails with [`Kind::NameTaken`] if a name is
    /// in use.
    pub fn insert<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<(), Failure> {
        self.write_deferred();
        self.sync("FULL")?;
        let inserted = self.file.change(LOCK_WAIT_MAX, |transaction| {
            records.into_iter().try_for_each(|record| {
                transaction.execute("INSERT INTO jobs (record) VALUES (?1)", [json(record)?])?;
                history::write(transaction, record, Action::spawn(record))
            })
        });
        self.sync("NORMAL")?;
        inserted.map_err(|failure| match failure.kind {
            Kind::NameTaken => failure,
            kind => Failure::new(
                kind,
                format!("the job was not started: {}", failure.message),
            ),
        })
    }

    fn sync(&self, value: &str) -> Result<(), Failure> {
        let set = self
            .file
            .connection
            .pragma_update(None, "synchronous", value);
        set.map_err(|error| self.file.failure(error))
    }

    /// Adds records of jobs that were found on their hosts. Existing records stay unchanged. A new job whose name is
    /// already used here can only be addressed by its id. Of several new jobs with the same name, the first gets it.
    pub fn adopt<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        self.write_waiting(|transaction| {
            let mut statement = transaction.prepare(
                "INSERT INTO jobs (record, goes_by_name) \
                 SELECT ?1, NOT EXISTS (SELECT 1 FROM jobs WHERE name = ?2 AND goes_by_name) \
                 WHERE true ON CONFLICT (id) DO NOTHING",
            )?;
            for record in records {
                statement.execute(params![
                    json(record)?,
                    record.name.as_ref().map(JobName::as_str)
                ])?;
            }
            Ok(())
        });
    }

    /// Updates the records of jobs. A record that was removed is not created again, and the record of a job elsewhere
    /// with the same id is not changed. A command with older information does not undo a recorded end, and the last
    /// signal is kept.
    pub fn update<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        let records: Vec<Record> = records.into_iter().cloned().collect();
        self.write_or_defer(move |transaction| {
            records
                .iter()
                .try_for_each(|record| update_record(transaction, record, None))
        });
    }

    /// Records signals and the job's state after them. Signals that were not sent get no history entry.
    pub fn signalled(
        &mut self,
        record: &Record,
        target: Target,
        signals: impl IntoIterator<Item = SignalEntry>,
    ) {
        let record = record.clone();
        let signals: Vec<SignalEntry> = signals.into_iter().collect();
        self.write_or_defer(move |transaction| {
            let mut last = None;
            for signalled in signals.iter().filter(|one| one.sent != SendOutcome::No) {
                history::write(transaction, &record, Action::signal(signalled, target))?;
                if signalled.sent != SendOutcome::Unknown {
                    last = Some(signalled.signal.name());
                }
            }
            // Signals are written first, since they may have caused the end.
            update_record(transaction, &record, last)
        });
    }

    /// Removes the record of a job whose files are gone.
    pub fn remove(&mut self, record: &Record) {
        self.write_waiting(|transaction| delete(transaction, record, Action::Removal).map(drop));
    }

    /// Removes the record of a job that was not started.
    pub fn not_started(&mut self, record: &Record, why: Kind) {
        let action = Action::not_started(why);
        self.write_waiting(|transaction| delete(transaction, record, action).map(drop));
    }

    /// Drops the record of a job whose files stay on the host. Returns whether there was a record.
    pub fn forget(&mut self, record: &Record) -> Result<bool, Failure> {
        self.file.change(LOCK_WAIT_MAX, |transaction| {
            delete(transaction, record, Action::Forget)
        })
    }

    /// Writes at once, or at the end if another process is writing, so that results are printed without delay.
    fn write_or_defer(
        &mut self,
        make: impl Fn(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) {
        let written = if self.deferred.is_empty() {
            self.file.try_change(|transaction| make(transaction))
        } else {
            Ok(None)
        };
        match written {
            Ok(Some(())) => {}
            Ok(None) => self.deferred.push(Box::new(make)),
            Err(failure) => self.warn(&failure),
        }
    }

    /// Writes the deferred changes. Dropping the store does so too.
    pub fn write_deferred(&mut self) {
        let deferred = std::mem::take(&mut self.deferred);
        if !deferred.is_empty() {
            self.write_waiting(|transaction| {
                deferred.iter().try_for_each(|make| make(transaction))
            });
        }
    }

    fn warn(&self, failure: &Failure) {
        if !WARNED.swap(true, Ordering::Relaxed) {
            (self.warn)(&format!(
                "what was done is not recorded: {}",
                failure.message
            ));
        }
    }

    fn write_waiting(&mut self, make: impl FnOnce(&Connection) -> rusqlite::Result<()>) {
        self.write_deferred();
        let written = self
            .file
            .change(LOCK_WAIT_AFTER, |transaction| make(transaction));
        if let Err(failure) = written {
            self.warn(&failure);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.write_deferred();
    }
}

/// The stored record of the same job: a job elsewhere may have the same id.
fn find_record(connection: &Connection, record: &Record) -> rusqlite::Result<Option<Record>> {
    let known = select(connection, "WHERE id = ?1", [record.id.as_str()])?.pop();
    Ok(known.filter(|known| known.destination == record.destination))
}

fn update_record(
    connection: &Connection,
    record: &Record,
    last_signal: Option<String>,
) -> rusqlite::Result<()> {
    let Some(known) = find_record(connection, record)? else {
        return Ok(());
    };
    // A recorded end is kept, and what a start has reported.
    let is_old = known.state == State::Exited && record.state != State::Exited
        || record.state == State::Starting
            && matches!(known.state, State::Running | State::Stopped);
    let (new, other) = if is_old {
        (&known, record)
    } else {
        (record, &known)
    };
    // Another command may have read the record before the start had written what it knows.
    let or_other = |own: &Option<String>, other: &Option<String>| own.clone().or(other.clone());
    let record = Record {
        last_signal: last_signal
            .or(known.last_signal.clone())
            .or(record.last_signal.clone()),
        dir: or_other(&new.dir, &other.dir),
        pid: new.pid.or(other.pid),
        pgid: new.pgid.or(other.pgid),
        started_at: new.started_at.or(other.started_at),
        os: or_other(&new.os, &other.os),
        birth: or_other(&new.birth, &other.birth),
        boot: or_other(&new.boot, &other.boot),
        machine: or_other(&new.machine, &other.machine),
        ..new.clone()
    };
    if record.state.is_finished() && record.state != known.state {
        history::write(connection, &record, Action::end(&record))?;
    }
    // Another job may have taken the name of a lost job that turns out to run.
    let statement = format!(
        "UPDATE jobs SET record = ?2, goes_by_name = goes_by_name AND (?4 OR NOT EXISTS \
         (SELECT 1 FROM jobs WHERE name = ?3 AND id <> ?1 AND goes_by_name AND {UNFINISHED})) \
         WHERE id = ?1"
    );
    connection.prepare_cached(&statement)?.execute(params![
        record.id.as_str(),
        json(&record)?,
        record.name.as_ref().map(JobName::as_str),
        record.state.is_finished(),
    ])?;
    Ok(())
}

/// Drops a record. Returns whether there was one.
fn delete(connection: &Connection, record: &Record, action: Action) -> rusqlite::Result<bool> {
    if find_record(connection, record)?.is_none() {
        return Ok(false);
    }
    connection.execute("DELETE FROM jobs WHERE id = ?1", [record.id.as_str()])?;
    history::write(connection, record, action)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::open(&directory.path().join("state")).unwrap();
        let warn = |text: &str| panic!("{text}");
        (directory, Store::of(file, warn))
    }

    fn record(name: Option<&str>) -> Record {
        let destination = crate::host::Destination {
            host: "local".parse().unwrap(),
            connect: <_>::default(),
        };
        let name = name.map(|name| name.parse().unwrap());
        Record::new(
            JobId::random().unwrap(),
            name,
            destination,
            vec!["true".into()],
        )
    }

    fn inserted(store: &mut Store) -> Record {
        let record = record(None);
        store.insert([&record]).unwrap();
        record
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
        // A command with older information does not undo the end.
        record.state = State::Lost;
        store.update([&record]);
        assert_eq!(store.get(&record.id).unwrap().unwrap().state, State::Exited);
        store.remove(&record);
        store.remove(&record);
        let history = store.history(Some(&record.id), None).unwrap();
        assert!(
            matches!(
                history
                    .iter()
                    .map(|entry| &entry.action)
                    .collect::<Vec<_>>()[..],
                [
                    Action::Spawn { .. },
                    Action::End {
                        exit_status: Some(0),
                        ..
                    },
                    Action::Removal
                ]
            ),
            "{history:?}"
        );
    }

    #[test]
    fn who_read_the_record_before_its_start_was_written_erases_nothing() {
        for start_is_last in [false, true] {
            let (_directory, mut store) = store();
            let early = inserted(&mut store);
            let started = Record {
                state: State::Running,
                dir: Some("/jobs/x".into()),
                pid: Some(7),
                ..early.clone()
            };
            let ended = Record {
                state: State::Exited,
                exit_status: Some(3),
                ..early.clone()
            };
            let all = if start_is_last {
                [&early, &ended, &started]
            } else {
                [&started, &early, &ended]
            };
            for record in all {
                store.update([record]);
            }
            let known = store.get(&early.id).unwrap().unwrap();
            assert_eq!((known.state, known.exit_status), (State::Exited, Some(3)));
            assert_eq!(
                (known.dir.as_deref(), known.pid),
                (Some("/jobs/x"), Some(7))
            );
        }
    }

    #[test]
    fn a_lost_job_that_runs_again_leaves_its_name_to_the_one_that_took_it() {
        let (_directory, mut store) = store();
        let (mut first, second) = (record(Some("train")), record(Some("train")));
        store.insert([&first]).unwrap();
        assert_eq!(store.insert([&second]).unwrap_err().kind, Kind::NameTaken);
        first.state = State::Lost;
        store.update([&first]);
        store.insert([&second]).unwrap();
        first.state = State::Running;
        store.update([&first]);
        assert_eq!(store.get(&first.id).unwrap(), Some(first));
        let name = "train".parse().unwrap();
        assert_eq!(store.holder(&name).unwrap(), Some(second));
    }

    #[test]
    fn no_record_of_another_job_is_changed() {
        let (_directory, mut store) = store();
        let here = inserted(&mut store);
        let mut there = here.clone();
        there.destination.host = "elsewhere".parse().unwrap();
        there.state = State::Exited;
        store.update([&there]);
        store.remove(&there);
        store.adopt([&there]);
        assert!(!store.forget(&there).unwrap());
        assert_eq!(store.get(&here.id).unwrap(), Some(here));
    }

    /// The statements of commands that must not take longer with many jobs, with their conditions and orders.
    #[test]
    fn indexes_serve_these_statements() {
        let (_directory, store) = store();
        for statement in [
            "SELECT record FROM jobs WHERE id = 'x'",
            "SELECT record FROM jobs WHERE id >= 'x' AND id < 'x{' ORDER BY id LIMIT 9",
            &format!(
                "SELECT record FROM jobs WHERE name = 'x' AND goes_by_name \
                 ORDER BY {UNFINISHED} DESC, created_at DESC, rowid DESC LIMIT 1"
            ),
            "SELECT record FROM jobs WHERE state NOT IN ('exited', 'lost') ORDER BY created_at, rowid",
            "SELECT number FROM history WHERE job = 'x' ORDER BY number DESC LIMIT 5",
            "SELECT DISTINCT job FROM history WHERE job >= 'x' AND job < 'x{' LIMIT 2",
            "SELECT job FROM history WHERE name = 'x' ORDER BY number DESC LIMIT 1",
            "DELETE FROM history WHERE number < 5",
        ] {
            let plan: Vec<String> = store
                .file
                .connection
                .prepare(&format!("EXPLAIN QUERY PLAN {statement}"))
                .unwrap()
                .query_map([], |row| row.get(3))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            let is_scan = |step: &String| step.starts_with("SCAN") && !step.contains("INDEX");
            assert!(!plan.iter().any(is_scan), "{statement}: {plan:?}");
        }
    }
}
