//! Opening the state file with SQLite: when it is created, when it is only read, and when it is refused and left
//! unchanged.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::directory::{self, LOCK, open_private};
use super::failure::{failure, is_damage};
use crate::clock;
use crate::error::{Failure, Kind};

/// `rsig` in ASCII: marks a state file as ours (PRAGMA application_id).
const APPLICATION: u32 = 0x7273_6967;
/// The version of the schema (PRAGMA user_version). Earlier versions were never released.
const SCHEMA: u32 = 5;
/// Columns to search by are extracted from the JSON by SQLite, so that no value is written in two places. Rows with the
/// same `created_at`, in seconds, are ordered by rowid.
const TABLES: &str = "
    CREATE TABLE jobs (
        record TEXT NOT NULL,
        goes_by_name INTEGER NOT NULL DEFAULT 1,
        id TEXT NOT NULL AS (record ->> '$.id') STORED,
        name TEXT AS (record ->> '$.name') STORED,
        host TEXT NOT NULL AS (record ->> '$.destination.host') STORED,
        state TEXT NOT NULL AS (record ->> '$.state') STORED,
        created_at INTEGER NOT NULL AS (record ->> '$.created_at') STORED
    ) STRICT;
    CREATE UNIQUE INDEX ids ON jobs (id);
    CREATE UNIQUE INDEX taken_names ON jobs (name)
        WHERE name IS NOT NULL AND goes_by_name AND state NOT IN ('exited', 'lost');
    CREATE INDEX names ON jobs (name, created_at) WHERE name IS NOT NULL AND goes_by_name;
    CREATE INDEX unfinished ON jobs (created_at) WHERE state NOT IN ('exited', 'lost');
    CREATE TABLE history (
        number INTEGER NOT NULL PRIMARY KEY,
        entry TEXT NOT NULL,
        at TEXT NOT NULL AS (entry ->> '$.at') STORED,
        job TEXT NOT NULL AS (entry ->> '$.job') STORED,
        name TEXT AS (entry ->> '$.name') STORED
    ) STRICT;
    CREATE INDEX history_of_jobs ON history (job);
    CREATE INDEX history_of_names ON history (name);
";
/// Page size of a new file, in bytes. Small, because each change writes whole pages to the log.
const PAGE_SIZE: u32 = 1024;
/// Maximum size of the write-ahead log before it is written back, in bytes. Each command reads all of the log.
const LOG_MAX: u64 = 200 << 10;
/// Name of the state file in the state directory.
const FILE: &str = "jobs.db";
/// Maximum wait for other writers if the operation can't proceed without the write.
pub const LOCK_WAIT_MAX: LockWait = LockWait {
    total: Duration::from_secs(30),
    idle: Duration::from_secs(30),
};
/// Maximum wait for other writers if the operation is already done. The wait ends sooner if the holder of the lock
/// writes nothing.
pub const LOCK_WAIT_AFTER: LockWait = LockWait {
    total: Duration::from_secs(5),
    idle: Duration::from_secs(1),
};

/// Limits on a wait for other writers.
#[derive(Clone, Copy)]
pub struct LockWait {
    /// Maximum total wait.
    total: Duration,
    /// Maximum wait while the lock's holder writes nothing.
    idle: Duration,
}

/// Whether this process's last wait for other writers timed out.
static LOCK_WAIT_FAILED: AtomicBool = AtomicBool::new(false);

/// The device and inode of the state file that this process has open. Its header must not be read again: closing that
/// descriptor would drop SQLite's locks on the file (POSIX locks belong to the process).
static OPENED: Mutex<Option<(u64, u64)>> = Mutex::new(None);

/// An open state file.
pub struct StateFile {
    pub connection: Connection,
    path: PathBuf,
    /// Why there is no file and none can be created. Then the connection is to an empty in-memory database.
    missing: Option<String>,
}

impl StateFile {
    /// Opens the state file in `directory`, and creates both if missing. A file that can't be written is opened
    /// read-only.
    pub fn open(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(FILE);
        if let Some(why) = directory::make(directory)? {
            return Self::empty(path, why);
        }
        directory::check(directory)?;
        let content = if identity(&path).is_some_and(|file| *opened() == Some(file)) {
            Content::Ours
        } else {
            content(&path).map_err(|error| failure(&path, error))?
        };
        directory::check_locks(directory)?;
        let connection = match content {
            Content::Ours => open_ours(&path),
            Content::Nothing => match create(directory, &path) {
                Err(error) if !is_damage(&error) => {
                    let why = failure(&path, error).message;
                    return Self::empty(path, why);
                }
                created => created,
            },
        };
        let connection = connection.map_err(|error| failure(&path, error))?;
        *opened() = identity(&path);
        Ok(Self {
            connection,
            path,
            missing: None,
        })
    }

    /// Opens the state file read-only, if it exists. Creates and changes nothing.
    pub fn peek(directory: &Path) -> Option<Self> {
        let path = directory.join(FILE);
        directory::check(directory).ok()?;
        matches!(content(&path), Ok(Content::Ours)).then_some(())?;
        Some(Self {
            connection: connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?,
            path,
            missing: None,
        })
    }

    fn empty(path: PathBuf, why: String) -> Result<Self, Failure> {
        let made = Connection::open_in_memory()
            .and_then(|connection| connection.execute_batch(TABLES).map(|()| connection));
        let connection = made.map_err(|error| failure(&path, error))?;
        Ok(Self {
            connection,
            path,
            missing: Some(why),
        })
    }

    /// Why there are no records, if the state file could not be created.
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    pub fn failure(&self, error: rusqlite::Error) -> Failure {
        failure(&self.path, error)
    }

    /// Makes a change in one transaction. Waits for other writers, but not again after a wait timed out.
    pub fn change<T>(
        &mut self,
        mut wait: LockWait,
        make: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Failure> {
        if let Some(why) = &self.missing {
            return Err(Failure::new(Kind::Failed, why));
        }
        wait.total = if LOCK_WAIT_FAILED.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            clock::scaled(wait.total)
        };
        let changed = self.attempt(wait, make);
        LOCK_WAIT_FAILED.store(is_busy(&changed), Ordering::Relaxed);
        changed.map_err(|error| self.failure(error))
    }

    /// Like [`Self::change`], but without waiting. `None`: another process is writing.
    pub fn try_change<T>(
        &mut self,
        make: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, Failure> {
        if let Some(why) = &self.missing {
            return Err(Failure::new(Kind::Failed, why));
        }
        let wait = LockWait {
            total: Duration::ZERO,
            idle: Duration::ZERO,
        };
        match self.attempt(wait, make) {
            changed if is_busy(&changed) => Ok(None),
            changed => changed.map(Some).map_err(|error| self.failure(error)),
        }
    }

    fn attempt<T>(
        &mut self,
        wait: LockWait,
        make: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let transaction = self.begin(wait)?;
        let made = make(&transaction)?;
        transaction.commit()?;
        if self.log().0 > LOG_MAX {
            self.write_log_back();
        }
        Ok(made)
    }

    fn begin(&self, wait: LockWait) -> rusqlite::Result<Transaction<'_>> {
        let end = Instant::now() + wait.total;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let log = self.log();
            self.connection.busy_timeout(left.min(wait.idle))?;
            let begun =
                Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate);
            if !is_busy(&begun) || left <= wait.idle || self.log() == log {
                return begun;
            }
        }
    }

    /// The size of the log and its modification time.
    fn log(&self) -> (u64, Option<SystemTime>) {
        fs::metadata(self.path.with_extension("db-wal"))
            .map_or((0, None), |log| (log.len(), log.modified().ok()))
    }

    /// Writes the log back and truncates it. SQLite's own checkpoint would only copy the log, again after each change:
    /// the progress is recorded in the log's index, which is deleted when the last command closes the file.
    fn write_log_back(&self) {
        let connection = &self.connection;
        // If other processes read the log now, or the disk is full, a later change retries.
        let _ = connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
    }
}

fn is_busy<T>(changed: &rusqlite::Result<T>) -> bool {
    let code = changed
        .as_ref()
        .err()
        .and_then(rusqlite::Error::sqlite_error_code);
    code == Some(ErrorCode::DatabaseBusy)
}

fn opened() -> MutexGuard<'static, Option<(u64, u64)>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

enum Content {
    /// No file, or a file whose creation was interrupted: the switch to the write-ahead log is the last step.
    Nothing,
    Ours,
}

/// Reads the header of a file in SQLite's format (sqlite.org/fileformat.html, 1.3). Opening the file as a database
/// could already change it.
fn content(path: &Path) -> Result<Content> {
    let mut head = Vec::new();
    // Non-blocking: opening a FIFO would wait for a writer.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => {
            file.take(100).read_to_end(&mut head)?;
        }
        Ok(_) => bail!("it is not a regular file"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let number = |at: usize| {
        let bytes = head.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    };
    match (number(60), number(68)) {
        _ if head.is_empty() => Ok(Content::Nothing),
        (Some(schema), Some(APPLICATION)) if head.starts_with(b"SQLite format 3\0") => {
            check_schema(schema)?;
            Ok(if head.get(18) == Some(&2) {
                Content::Ours
            } else {
                Content::Nothing
            })
        }
        _ => bail!("it is not a state file of rsig, and is left as it is"),
    }
}

fn check_schema(schema: u32) -> Result<()> {
    match schema {
        SCHEMA => Ok(()),
        newer if newer > SCHEMA => bail!(
            "it was written by a newer rsig (its schema is {newer}, this one knows {SCHEMA}): use that version, or name another \
             directory in RSIG_STATE_DIR"
        ),
        _ => bail!(
            "it was written by an unreleased version of rsig: remove it, or name another directory in RSIG_STATE_DIR; jobs stay \
             on their hosts, where `rsig ps --host HOST --discover` finds them"
        ),
    }
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection> {
    // Canonicalized first: NOFOLLOW refuses a symbolic link anywhere in the path, but only the last component must not
    // be one.
    let parent = path.parent().map(fs::canonicalize).transpose()?;
    let path = parent.unwrap_or_default().join(FILE);
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(LOCK_WAIT_MAX.total)?;
    // Neither a commit nor the last close writes the log back: `attempt` does, once the log is larger than `LOG_MAX`.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

/// Opens a file that was created completely.
fn open_ours(path: &Path) -> Result<Connection> {
    // SQLite is asked, because the file's header may be older than the log.
    let check = |connection: Connection| {
        check_schema(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)?;
        Ok(connection)
    };
    let opened = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).and_then(check);
    let log = fs::metadata(path.with_extension("db-wal"));
    if opened.is_ok() || log.is_ok_and(|log| log.len() > 0) {
        return opened;
    }
    // The index of the empty log can't be created here. Opened as immutable, the file can be read without an index, as
    // long as nothing writes to it.
    let mut uri = b"file:".to_vec();
    for byte in path.as_os_str().as_bytes() {
        uri.extend(format!("%{byte:02x}").bytes());
    }
    uri.extend(b"?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let uri = std::ffi::OsString::from_vec(uri);
    let immutable = Connection::open_with_flags(uri, flags).map_err(anyhow::Error::from);
    immutable.and_then(check).or(opened)
}

/// Creates the file under a lock, since changing the journal mode does not wait for other processes
/// (sqlite.org/wal.html).
fn create(directory: &Path, path: &Path) -> Result<Connection> {
    let lock = open_private(&directory.join(LOCK))?;
    lock.lock()?;
    open_private(path)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "page_size", PAGE_SIZE)?;
    // Beginning the transaction rolls back an unfinished one, so the version is valid only inside the transaction.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let schema: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if schema == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", SCHEMA)?;
    }
    // Fails if the tables are not ours, before anything is changed.
    transaction
        .prepare("SELECT record, id, state FROM jobs")
        .map(drop)?;
    transaction.commit()?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A lack of space for the log's index shows only at the first use.
    connection.query_row("SELECT count(*) FROM jobs", [], |_| Ok(()))?;
    Ok(connection)
}
