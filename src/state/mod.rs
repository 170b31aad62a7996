//! The state file: this machine's records of jobs, in SQLite.
//!
//! Many commands write at once and any of them may be killed at any moment, so every change is one immediate
//! transaction under a busy time-out. The journal is a write-ahead log: a change of what is only remembered for display
//! needs no fsync, and one that must outlive a power cut ([`Store::insert`]) asks for it. The hosts hold the truth about
//! their jobs; this file knows where to ask.

pub mod event;
mod history;

pub use history::Signalled;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Row, Transaction, TransactionBehavior, params,
};

use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::job::{Epoch, JobId, JobName, Record};
use crate::state::event::Happening;

/// `rsig` in ASCII: marks a state file as ours (PRAGMA application_id).
const APPLICATION: u32 = 0x7273_6967;
/// The schema that this version writes (PRAGMA user_version): how many [`STEPS`] there are.
#[allow(clippy::cast_possible_truncation, reason = "there are a few")]
const SCHEMA: u32 = STEPS.len() as u32;
/// How long to wait for other writers before a job is refused because it can't be recorded.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(30);
/// The same for what is written after the fact, which must not hold up what it tells of.
const LOCK_WAIT_AFTER: Duration = Duration::from_secs(5);

/// Whether the user was told that writing fails: one warning per process is enough.
static WARNED: AtomicBool = AtomicBool::new(false);
/// Whether the last write after the fact failed: then the next one does not wait for the lock again.
static LAST_WRITE_FAILED: AtomicBool = AtomicBool::new(false);
/// The name of the file in the state directory.
const FILE: &str = "jobs.db";

/// What makes a state file of each schema from one of the schema before it. A step that has been released is never
/// changed: what it made is on people's disks.
const STEPS: [&str; 4] = [JOBS, HISTORY, NAMES_OF_ADOPTED, LINES];

// Within one second of created_at, the rowid tells what came first.
const JOBS: &str = "
    CREATE TABLE jobs (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT,
        host TEXT NOT NULL,
        connect TEXT NOT NULL,
        command TEXT NOT NULL,
        cwd TEXT,
        dir TEXT,
        state TEXT NOT NULL,
        pid INTEGER,
        pgid INTEGER,
        os TEXT,
        started_at INTEGER,
        finished_at INTEGER,
        exit_status INTEGER,
        last_signal TEXT,
        checked_at INTEGER,
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX taken_names ON jobs (name) WHERE name IS NOT NULL AND state NOT IN ('exited', 'lost');
    CREATE INDEX names ON jobs (name, created_at) WHERE name IS NOT NULL;
    CREATE INDEX unfinished ON jobs (created_at) WHERE state NOT IN ('exited', 'lost');
";

// The job of an event may be forgotten by then, so all that is shown of it stands in the event.
const HISTORY: &str = "
    ALTER TABLE jobs ADD COLUMN timed_out INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN ephemeral INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE events (
        number INTEGER NOT NULL PRIMARY KEY,
        at INTEGER NOT NULL,
        user TEXT NOT NULL,
        job TEXT NOT NULL,
        name TEXT,
        host TEXT NOT NULL,
        happening TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_jobs ON events (job);
";

// A job that was found on its host may have a name that another job had before it: it goes by its id only.
const NAMES_OF_ADOPTED: &str = "
    ALTER TABLE jobs ADD COLUMN goes_by_name INTEGER NOT NULL DEFAULT 1;
    DROP INDEX taken_names;
    DROP INDEX names;
    CREATE UNIQUE INDEX taken_names ON jobs (name)
        WHERE name IS NOT NULL AND goes_by_name AND state NOT IN ('exited', 'lost');
    CREATE INDEX names ON jobs (name, created_at) WHERE name IS NOT NULL AND goes_by_name;
";

// In which order the lines of both streams were first seen: where lines are numbered across the streams, they keep their
// numbers.
const LINES: &str = "ALTER TABLE jobs ADD COLUMN lines TEXT NOT NULL DEFAULT '';";

/// The size of a page of a new file, in bytes.
const PAGE: u32 = 1024;
/// How long the log may become, in pages, before it is written back: the next command reads all of it.
const LOG_MAX: u32 = 200;

const COLUMNS: &str = "id, name, host, connect, command, cwd, dir, state, pid, pgid, os, started_at, finished_at, \
     exit_status, last_signal, checked_at, created_at, timed_out, ephemeral";

/// A parameter for each of the [`COLUMNS`].
const VALUES: &str = "?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, \
     ?18, ?19";

/// The condition of the index `unfinished`, to the letter: SQLite uses it only then.
const UNFINISHED: &str = "state NOT IN ('exited', 'lost')";

/// Brings a job's record up to date; an end that is known stays.
fn renew(transaction: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
    let statement = "UPDATE jobs SET name=?2, command=?5, cwd=?6, dir=?7, state=?8, pid=?9, \
         pgid=?10, os=?11, started_at=?12, finished_at=?13, exit_status=?14, \
         last_signal=coalesce(last_signal, ?15), checked_at=?16, created_at=?17, timed_out=?18, ephemeral=?19 \
         WHERE id=?1 AND host=?3 AND connect=?4 AND (state <> 'exited' OR ?8 = 'exited')";
    history::write_end(transaction, record)?;
    execute(transaction, statement, record).map(drop)
}

/// The schema that the file has.
fn schema_of(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Takes the [`STEPS`] that a file has not seen yet, and says which schema it has then. In an immediate transaction, so
/// that only one command does; another may have while this one waited, also a newer rsig.
fn take_steps(transaction: &Transaction<'_>) -> rusqlite::Result<u32> {
    let taken = schema_of(transaction)?;
    for step in STEPS.iter().skip(taken as usize) {
        transaction.execute_batch(step)?;
    }
    let schema = taken.max(SCHEMA);
    transaction.pragma_update(None, "user_version", schema)?;
    Ok(schema)
}

/// Carries out a statement on the row of a record, and says how many rows that changed: none where it is that of a job
/// somewhere else with the same id. The parameters behind the first three are `values`.
fn on_row(
    connection: &Connection,
    statement: &str,
    record: &Record,
    values: &[&str],
) -> rusqlite::Result<usize> {
    let Destination { host, connect } = &record.destination;
    let row = [record.id.to_string(), host.to_string(), json(connect)?];
    let parameters = row.iter().map(String::as_str).chain(values.iter().copied());
    connection
        .prepare_cached(&format!(
            "{statement} WHERE id = ?1 AND host = ?2 AND connect = ?3"
        ))?
        .execute(rusqlite::params_from_iter(parameters))
}

/// Drops a record, and says whether there was one: that of a job somewhere else with the same id is not touched.
fn delete(
    transaction: &Transaction<'_>,
    record: &Record,
    happening: &Happening,
) -> rusqlite::Result<bool> {
    let rows = on_row(transaction, "DELETE FROM jobs", record, &[])?;
    if rows > 0 {
        history::write(transaction, record, happening)?;
    }
    Ok(rows > 0)
}

/// An open state file.
///
/// Only what would create a record fails when it can't be written. Everything else is written after the fact and as
/// well as possible: a failure is a warning, once per process.
pub struct Store {
    connection: Connection,
    path: PathBuf,
    warn: fn(&str),
}

/// Which records to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those of jobs that are not known to be over.
    Unfinished,
    /// Those of jobs that are.
    Finished,
    /// All.
    All,
}

impl Which {
    fn condition(self) -> &'static str {
        match self {
            Self::Unfinished => UNFINISHED,
            Self::Finished => "state IN ('exited', 'lost')",
            Self::All => "1",
        }
    }
}

/// Where rsig keeps its state: `RSIG_STATE_DIR`, else `$XDG_STATE_HOME/rsig`, else `~/.local/state/rsig`.
pub fn state_directory() -> Result<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(directory) = variable("RSIG_STATE_DIR") {
        return std::path::absolute(directory)
            .context("RSIG_STATE_DIR can't be made an absolute path");
    }
    variable("XDG_STATE_HOME")
        .filter(|directory| directory.is_absolute())
        .or_else(|| {
            variable("HOME")
                .filter(|home| home.is_absolute())
                .map(|home| home.join(".local/state"))
        })
        .map(|directory| directory.join("rsig"))
        .ok_or_else(|| {
            anyhow!("there is no place for the state file: neither RSIG_STATE_DIR nor HOME is set")
        })
}

/// Makes the state directory, unless it is there.
fn make_directory(directory: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("the state directory {} can't be made", directory.display()))
}

/// Holds the state directory against what it must be.
fn check_directory(directory: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(directory)
        .with_context(|| format!("the state directory {} can't be read", directory.display()))?;
    let shown = directory.display();
    if metadata.is_symlink() {
        bail!(
            "the state directory {shown} is a symbolic link: name the directory itself in RSIG_STATE_DIR"
        );
    }
    if !metadata.is_dir() {
        bail!("{shown} is in the place of the state directory and is none");
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        bail!(
            "the state directory {shown} belongs to another user (uid {})",
            metadata.uid()
        );
    }
    if metadata.mode() & 0o077 != 0 {
        bail!("others have access to the state directory {shown}: run `chmod 700 '{shown}'`");
    }
    Ok(())
}

/// What the first bytes of a file say that it is.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    /// The schema, and whether the file was made to its end: the switch to the write-ahead log is the last step.
    Ours {
        schema: u32,
        finished: bool,
    },
    Foreign,
}

/// Reads the head of a file in SQLite's format (sqlite.org/fileformat.html, 1.3): opening it as a database could
/// already change it.
fn content(head: &[u8]) -> Content {
    let number = |at: usize| {
        head.get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_be_bytes)
    };
    match (head, number(60), number(68)) {
        ([], ..) => Content::Nothing,
        (_, Some(schema), Some(APPLICATION)) if head.starts_with(b"SQLite format 3\0") => {
            Content::Ours {
                schema,
                finished: head.get(18) == Some(&2),
            }
        }
        _ => Content::Foreign,
    }
}

fn read_head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    // Not blocking, since a FIFO would wait for somebody to write to it.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) if !file.metadata()?.is_file() => {
            Err(io::Error::other("it is not a regular file"))
        }
        Ok(file) => file.take(100).read_to_end(&mut head).map(|_| head),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(head),
        Err(error) => Err(error),
    }
}

impl Store {
    /// Opens the state file, and makes it when there is none.
    pub fn open(warn: fn(&str)) -> Result<Self, Failure> {
        Ok(Self::open_in(&state_directory()?, warn)?)
    }

    /// Opens the state file in `directory`.
    fn open_in(directory: &Path, warn: fn(&str)) -> Result<Self> {
        make_directory(directory)?;
        check_directory(directory)?;
        let path = directory.join(FILE);
        let shown = path.display();
        let head =
            read_head(&path).with_context(|| format!("the state file {shown} can't be read"))?;
        match content(&head) {
            Content::Foreign => bail!("{shown} is not a state file of rsig; it is left as it is"),
            Content::Ours { schema, .. } if schema > SCHEMA => Err(newer(schema)),
            Content::Ours { finished: true, .. } => {
                Self::connect(&path, warn).and_then(Self::up_to_date)
            }
            // Whoever was making it may have been killed in the middle.
            Content::Ours {
                finished: false, ..
            }
            | Content::Nothing => Self::create(directory, &path, warn),
        }
        .with_context(|| format!("the state file {shown} can't be used"))
    }

    /// Opens the state file to look at it, if there is one of this version: makes and changes nothing.
    pub fn peek() -> Result<Option<Self>> {
        let directory = state_directory()?;
        let path = directory.join(FILE);
        match content(&read_head(&path)?) {
            Content::Ours {
                schema,
                finished: true,
            } if schema <= SCHEMA => {}
            Content::Nothing
            | Content::Ours {
                finished: false, ..
            } => return Ok(None),
            Content::Ours { .. } | Content::Foreign => {
                bail!("{} is not a state file of this rsig", path.display())
            }
        }
        check_directory(&directory)?;
        let connection = Self::open_file(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        // The next command that writes brings an older one up to date.
        Ok((schema_of(&connection)? == SCHEMA).then_some(Self {
            connection,
            path,
            warn: |_| (),
        }))
    }

    fn open_file(path: &Path, access: OpenFlags) -> Result<Connection> {
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        // Resolved first: NOFOLLOW refuses a link anywhere in the path, and only the last part must not be one.
        let parent = path
            .parent()
            .map(fs::canonicalize)
            .transpose()?
            .unwrap_or_default();
        Ok(Connection::open_with_flags(parent.join(FILE), flags)?)
    }

    fn connect(path: &Path, warn: fn(&str)) -> Result<Self> {
        let connection = Self::open_file(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(LOCK_WAIT_MAX)?;
        // The last command to leave need not write the log back: it is done when the log has grown.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.pragma_update(None, "wal_autocheckpoint", LOG_MAX)?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            warn,
        })
    }

    /// Brings a file that an older rsig made up to this version's schema.
    fn up_to_date(mut self) -> Result<Self> {
        // Asked of SQLite: what the file's head says may be older than the log beside it.
        match schema_of(&self.connection)? {
            SCHEMA => return Ok(self),
            schema if schema > SCHEMA => return Err(newer(schema)),
            _ => {}
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let schema = take_steps(&transaction)?;
        transaction.commit()?;
        // So that an older rsig sees it in the file's head. While others read, that is left to a later checkpoint.
        drop(
            self.connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())),
        );
        if schema > SCHEMA {
            Err(newer(schema))
        } else {
            Ok(self)
        }
    }

    /// Makes the file under a lock: a change of the journal's mode does not wait for others (sqlite.org/wal.html).
    fn create(directory: &Path, path: &Path, warn: fn(&str)) -> Result<Self> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join("lock"))?;
        lock.lock().context("the state directory can't be locked")?;
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)?;
        let mut store = Self::connect(path, warn)?;
        // The log is read whole by the only command that has the file open, and each change writes whole pages to it.
        store.connection.pragma_update(None, "page_size", PAGE)?;
        // The transaction takes back what an unfinished one left behind, so only inside it does the file say what it is.
        let transaction = store
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        take_steps(&transaction)?;
        // It fails where the tables are not ours, before anything is changed.
        transaction
            .prepare(&format!("SELECT {COLUMNS} FROM jobs"))
            .map(drop)?;
        transaction.commit()?;
        store
            .connection
            .pragma_update(None, "journal_mode", "WAL")?;
        store.up_to_date()
    }

    /// Adds a new record, so that it is on the disk when this returns.
    pub fn insert(&mut self, record: &Record) -> Result<(), Failure> {
        self.set_synchronous("FULL")?;
        let statement = format!("INSERT INTO jobs ({COLUMNS}) VALUES ({VALUES})");
        let inserted = self.change(|transaction| {
            execute(transaction, &statement, record)?;
            history::write(transaction, record, &Happening::spawn(record)).map(drop)
        });
        self.set_synchronous("NORMAL")?;
        match inserted {
            Err(rusqlite::Error::SqliteFailure(error, _))
                if error.code == rusqlite::ErrorCode::ConstraintViolation =>
            {
                Err(Failure::new(Kind::NameTaken, "the name is taken"))
            }
            other => other.map_err(|error| {
                let failure = self.failure(error);
                let message = format!(
                    "the job can't be recorded, so it was not started: {}",
                    failure.message
                );
                Failure::new(failure.kind, message)
            }),
        }
    }

    fn set_synchronous(&self, value: &str) -> Result<(), Failure> {
        self.connection
            .pragma_update(None, "synchronous", value)
            .map_err(|error| self.failure(error))
    }

    fn failure(&self, error: rusqlite::Error) -> Failure {
        let path = self.path.display();
        let error =
            anyhow::Error::new(error).context(format!("the state file {path} can't be used"));
        error.into()
    }

    /// Adds records of jobs that were found on their hosts. One that is there already stays
    /// as it is, and a name that some job here goes by is not given to another: that one goes by its id only. Of several
    /// with the same name the first gets it.
    pub fn adopt<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        let statement = format!(
            "INSERT INTO jobs ({COLUMNS}, goes_by_name) \
             SELECT {VALUES}, NOT EXISTS (SELECT 1 FROM jobs WHERE name = ?2 AND goes_by_name) \
             WHERE true ON CONFLICT (id) DO NOTHING"
        );
        self.write_after(|transaction| {
            records
                .into_iter()
                .try_for_each(|record| execute(transaction, &statement, record).map(drop))
        });
    }

    /// Writes what is known of jobs over their records. None is made where there is none any more, and that of a job
    /// somewhere else with the same id is left alone. A record that says how the job ended is not taken back by a command
    /// that looked earlier, and the last signal is kept.
    pub fn update<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        self.write_after(|transaction| {
            records
                .into_iter()
                .try_for_each(|record| renew(transaction, record))
        });
    }

    /// Writes down what has happened already; a failure is a warning.
    fn write_after(&mut self, make: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) {
        let wait = if LAST_WRITE_FAILED.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            LOCK_WAIT_AFTER
        };
        let written = self
            .connection
            .busy_timeout(wait)
            .and_then(|()| self.change(make));
        // A writer that must succeed waits as ever.
        drop(self.connection.busy_timeout(LOCK_WAIT_MAX));
        LAST_WRITE_FAILED.store(written.is_err(), Ordering::Relaxed);
        if let Err(error) = written
            && !WARNED.swap(true, Ordering::Relaxed)
        {
            let what = "what was done is not written down";
            (self.warn)(&format!("{what}: {}", self.failure(error).message));
        }
    }

    /// Makes a change as a whole or not at all.
    fn change<T>(
        &mut self,
        make: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let made = make(&transaction)?;
        transaction.commit()?;
        Ok(made)
    }

    /// Forgets a job whose files are gone.
    pub fn remove(&mut self, record: &Record) {
        self.write_after(|transaction| delete(transaction, record, &Happening::Removal).map(drop));
    }

    /// Drops the record of a job whose files stay, and says whether there was one.
    pub fn forget(&mut self, record: &Record) -> Result<bool, Failure> {
        self.change(|transaction| delete(transaction, record, &Happening::Forget))
            .map_err(|error| self.failure(error))
    }

    /// Takes back the record of a job that was not started.
    pub fn not_started(&mut self, record: &Record, why: Kind) {
        let happening = Happening::not_started(why);
        self.write_after(|transaction| delete(transaction, record, &happening).map(drop));
    }

    /// The unfinished or finished jobs, or all, whose names fit a pattern of SQLite's GLOB, the oldest first.
    pub fn named_like(&self, which: Which, pattern: &str) -> Result<Vec<Record>, Failure> {
        let condition = which.condition();
        self.many(
            &format!("SELECT {COLUMNS} FROM jobs WHERE {condition} AND name GLOB ?1 ORDER BY created_at, rowid"),
            [pattern],
        )
    }

    /// Records, the oldest first.
    pub fn list(&self, which: Which) -> Result<Vec<Record>, Failure> {
        let condition = which.condition();
        self.many(
            &format!("SELECT {COLUMNS} FROM jobs WHERE {condition} ORDER BY created_at, rowid"),
            [],
        )
    }

    /// The record of an id.
    pub fn get(&self, id: &JobId) -> Result<Option<Record>, Failure> {
        self.one(
            &format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"),
            id.as_str(),
        )
    }

    /// The unfinished job of a name, else the newest of that name.
    pub fn named(&self, name: &JobName) -> Result<Option<Record>, Failure> {
        let statement = format!(
            "SELECT {COLUMNS} FROM jobs WHERE name = ?1 AND goes_by_name \
             ORDER BY {UNFINISHED} DESC, created_at DESC, rowid DESC LIMIT 1"
        );
        self.one(&statement, name.as_str())
    }

    /// The records whose ids begin with `prefix`, which holds nothing but an id's characters; at most `most`.
    pub fn beginning_with(&self, prefix: &str, most: u32) -> Result<Vec<Record>, Failure> {
        // '{' comes right behind 'z', the last character of an id.
        self.many(
            &format!("SELECT {COLUMNS} FROM jobs WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3"),
            params![prefix, format!("{prefix}{{"), most],
        )
    }

    fn many(
        &self,
        statement: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<Record>, Failure> {
        let read = || -> rusqlite::Result<Vec<Result<Record>>> {
            self.connection
                .prepare(statement)?
                .query_map(parameters, |row| Ok(read_record(row)))?
                .collect()
        };
        read()
            .map_err(|error| self.failure(error))?
            .into_iter()
            .collect::<Result<_>>()
            .map_err(Failure::from)
    }

    /// The records whose ids or names begin with `beginning`, the newest first; at most `most`.
    pub fn fitting(
        &self,
        which: Which,
        beginning: &str,
        most: u32,
    ) -> Result<Vec<Record>, Failure> {
        let condition = which.condition();
        self.many(
            &format!(
                "SELECT {COLUMNS} FROM jobs WHERE {condition} \
                 AND (substr(id, 1, length(?1)) = ?1 OR substr(name, 1, length(?1)) = ?1) \
                 ORDER BY created_at DESC, rowid DESC LIMIT ?2"
            ),
            params![beginning, most],
        )
    }

    /// The hosts of all jobs, as they were typed.
    pub fn hosts(&self) -> Result<Vec<String>> {
        let mut statement = self
            .connection
            .prepare("SELECT DISTINCT host FROM jobs ORDER BY host")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn one(&self, statement: &str, key: &str) -> Result<Option<Record>, Failure> {
        let read = || {
            self.connection
                .prepare_cached(statement)?
                .query_row([key], |row| Ok(read_record(row)))
                .optional()
        };
        Ok(read().map_err(|error| self.failure(error))?.transpose()?)
    }
}

fn newer(schema: u32) -> anyhow::Error {
    anyhow!(
        "it is from a newer rsig (its schema is {schema}, this rsig knows {SCHEMA}): use that one; the file is left as \
         it is"
    )
}

/// A value that is kept as JSON.
fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// Binds a record to a statement whose parameters are the [`COLUMNS`] in their order.
fn execute(connection: &Connection, statement: &str, record: &Record) -> rusqlite::Result<usize> {
    connection.prepare_cached(statement)?.execute(params![
        record.id.as_str(),
        record.name.as_ref().map(JobName::as_str),
        record.destination.host.to_string(),
        json(&record.destination.connect)?,
        json(&record.command)?,
        record.cwd,
        record.dir,
        record.state.word(),
        record.pid,
        record.pgid,
        record.os,
        record.started_at,
        record.finished_at,
        record.exit_status,
        record.last_signal,
        record.checked_at,
        record.created_at,
        record.timed_out,
        record.ephemeral,
    ])
}

/// A row as a record. What is in the file was written by us, but a person may have been there since.
fn read_record(row: &Row<'_>) -> Result<Record> {
    let id: String = row.get(0)?;
    let read = || -> Result<Record> {
        Ok(Record {
            id: id.parse()?,
            name: row
                .get::<_, Option<String>>(1)?
                .map(|name| name.parse())
                .transpose()?,
            destination: Destination {
                host: row.get::<_, String>(2)?.parse()?,
                connect: serde_json::from_str(&row.get::<_, String>(3)?)?,
            },
            command: serde_json::from_str(&row.get::<_, String>(4)?)?,
            cwd: row.get(5)?,
            dir: row.get(6)?,
            state: row.get::<_, String>(7)?.parse()?,
            pid: row.get(8)?,
            pgid: row.get(9)?,
            os: row.get(10)?,
            started_at: row.get(11)?,
            finished_at: row.get(12)?,
            exit_status: row.get(13)?,
            last_signal: row.get(14)?,
            checked_at: row.get(15)?,
            created_at: row.get::<_, Epoch>(16)?,
            timed_out: row.get(17)?,
            ephemeral: row.get(18)?,
        })
    };
    read().with_context(|| format!("the record of job {id:?} in the state file makes no sense"))
}

/// How many candidates an ambiguous word lists.
const CANDIDATES: u32 = 8;
/// The shortest prefix of an id that is taken for one.
const PREFIX: usize = 3;

impl Store {
    /// The job that a word names: an id, a name (the unfinished job of that name, else the newest), or a unique
    /// beginning of an id.
    pub fn resolve(&self, word: &str) -> Result<Record, Failure> {
        if let Ok(id) = word.parse::<JobId>()
            && let Some(record) = self.get(&id)?
        {
            return Ok(record);
        }
        if let Ok(name) = word.parse::<JobName>()
            && let Some(record) = self.named(&name)?
        {
            return Ok(record);
        }
        if (PREFIX..JobId::LENGTH).contains(&word.len()) && crate::job::is_id_text(word) {
            let found = self.beginning_with(word, CANDIDATES + 1)?;
            match found.as_slice() {
                [] => {}
                [one] => return Ok(one.clone()),
                several => {
                    let mut list: Vec<String> = several
                        .iter()
                        .take(CANDIDATES as usize)
                        .map(|record| format!("  {}", record.label()))
                        .collect();
                    if several.len() > CANDIDATES as usize {
                        list.push("  ...".to_owned());
                    }
                    let message = format!("{word:?} fits several jobs:\n{}", list.join("\n"));
                    return Err(Failure::new(Kind::Ambiguous, message));
                }
            }
        }
        let shown = crate::escape::printable(word, 80);
        let message =
            format!("no job {shown:?}: `rsig ps -a` lists the jobs that this machine knows");
        Err(Failure::new(Kind::NotFound, message))
    }

    /// The unfinished job that has this name, if any.
    pub fn holder(&self, name: &JobName) -> Result<Option<Record>, Failure> {
        Ok(self
            .named(name)?
            .filter(|record| !record.state.is_finished()))
    }
}
