//! The state file as SQLite opens it: what is made, what is only read, and what is refused and left as it is.

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
/// The version of the schema (PRAGMA user_version). Those before it were never released.
const SCHEMA: u32 = 5;
/// What is searched for is taken out of the JSON by SQLite, so that nothing stands twice.
/// Within one second of `created_at`, the rowid tells what came first.
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
/// The size of a page of a new file, in bytes: each change writes whole pages to the log.
const PAGE_SIZE: u32 = 1024;
/// How long the log may become, in bytes, before it is written back: the next command reads all of it.
const LOG_MAX: u64 = 200 << 10;
/// The name of the file in the state directory.
const FILE: &str = "jobs.db";
/// How long to wait for other writers where the work can't go on without the write.
pub const LOCK_WAIT_MAX: LockWait = LockWait {
    whole: Duration::from_secs(30),
    idle: Duration::from_secs(30),
};
/// The same with what was done already: a lock that nobody writes under is not worth the user's time.
pub const LOCK_WAIT_AFTER: LockWait = LockWait {
    whole: Duration::from_secs(5),
    idle: Duration::from_secs(1),
};

/// How long to wait for other writers.
#[derive(Clone, Copy)]
pub struct LockWait {
    /// In all.
    whole: Duration,
    /// While nothing is written.
    idle: Duration,
}

/// Whether the last wait of this process for other writers was in vain.
static LOCK_STAYED: AtomicBool = AtomicBool::new(false);

/// The state file that this process has open. To read its head once more would, at the close, drop the locks that
/// SQLite holds on it (POSIX locks are the process's).
static OPENED: Mutex<Option<(u64, u64)>> = Mutex::new(None);

/// An open state file.
pub struct StateFile {
    pub connection: Connection,
    path: PathBuf,
    /// Why there is no file and none can be made. The connection is to an empty one in memory then.
    missing: Option<String>,
}

impl StateFile {
    /// Opens the state file in `directory`, and makes both where they are missing. One that can't be written is
    /// opened all the same, to be read.
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

    /// Opens the state file for a look, if there is one: makes and changes nothing.
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

    /// Why there are no records, where it is not that no job was started.
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    pub fn failure(&self, error: rusqlite::Error) -> Failure {
        failure(&self.path, error)
    }

    /// Makes a change as a whole or not at all. Waits for other writers, but not again after it waited in vain.
    pub fn change<T>(
        &mut self,
        mut wait: LockWait,
        make: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Failure> {
        if let Some(why) = &self.missing {
            return Err(Failure::new(Kind::Failed, why));
        }
        wait.whole = if LOCK_STAYED.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            clock::long(wait.whole)
        };
        let changed = self.attempt(wait, make);
        LOCK_STAYED.store(is_busy(&changed), Ordering::Relaxed);
        changed.map_err(|error| self.failure(error))
    }

    /// The same without waiting; `None`: another process is writing.
    pub fn try_change<T>(
        &mut self,
        make: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, Failure> {
        if let Some(why) = &self.missing {
            return Err(Failure::new(Kind::Failed, why));
        }
        let wait = LockWait {
            whole: Duration::ZERO,
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
        let end = Instant::now() + wait.whole;
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

    /// The log's length and when it was written to last.
    fn log(&self) -> (u64, Option<SystemTime>) {
        fs::metadata(self.path.with_extension("db-wal"))
            .map_or((0, None), |log| (log.len(), log.modified().ok()))
    }

    /// Empties the log. SQLite by itself would only copy it, again after each change: that the copy is there is noted in
    /// the log's index, which the last command to leave takes with it.
    fn write_log_back(&self) {
        let connection = &self.connection;
        // Where others read the log now, or the disk is full, a later change does it.
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

/// The device and the number of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

enum Content {
    /// No file, or one whose maker was killed in the middle: the switch to the write-ahead log is the last step.
    Nothing,
    Ours,
}

/// Reads the head of a file in SQLite's format (sqlite.org/fileformat.html, 1.3): to open it as a database could
/// already change it.
fn content(path: &Path) -> Result<Content> {
    let mut head = Vec::new();
    // Not blocking, since a FIFO would wait for somebody to write to it.
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
            "it is of a newer rsig (its schema is {newer}, this one knows {SCHEMA}): use that, or name another \
             directory in RSIG_STATE_DIR"
        ),
        _ => bail!(
            "it is of an unreleased version of rsig: remove it, or name another directory in RSIG_STATE_DIR; jobs stay \
             on their hosts, where `rsig ps --host HOST --discover` finds them"
        ),
    }
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection> {
    // Resolved first: NOFOLLOW refuses a link anywhere in the path, and only the last part must not be one.
    let parent = path.parent().map(fs::canonicalize).transpose()?;
    let path = parent.unwrap_or_default().join(FILE);
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(LOCK_WAIT_MAX.whole)?;
    // Neither a change nor the last command to leave need write the log back: it is done when the log has grown.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

/// Opens a file that was made to its end.
fn open_ours(path: &Path) -> Result<Connection> {
    // Asked of SQLite: what the file's head says may be older than the log beside it.
    let check = |connection: Connection| {
        check_schema(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)?;
        Ok(connection)
    };
    let opened = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).and_then(check);
    let log = fs::metadata(path.with_extension("db-wal"));
    if opened.is_ok() || log.is_ok_and(|log| log.len() > 0) {
        return opened;
    }
    // The index of an empty log can't be made here; without one the file can be read where nobody writes.
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

/// Makes the file under a lock: a change of the journal's mode does not wait for others (sqlite.org/wal.html).
fn create(directory: &Path, path: &Path) -> Result<Connection> {
    let lock = open_private(&directory.join(LOCK))?;
    lock.lock()?;
    open_private(path)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "page_size", PAGE_SIZE)?;
    // The transaction takes back what an unfinished one left behind, so only inside it does the file say what it is.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let schema: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if schema == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", SCHEMA)?;
    }
    // It fails where the tables are not ours, before anything is changed.
    transaction
        .prepare("SELECT record, id, state FROM jobs")
        .map(drop)?;
    transaction.commit()?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Where there is no room for the log's index, that shows at the first use.
    connection.query_row("SELECT count(*) FROM jobs", [], |_| Ok(()))?;
    Ok(connection)
}
