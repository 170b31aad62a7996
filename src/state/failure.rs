//! Failures to use the state file or its directory: what failed, where, and what to do.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use nix::errno::Errno;
use rusqlite::ErrorCode;

use crate::error::{Failure, Kind, reason};

/// Maximum number of files that SQLite opens besides the state file.
const EXTRA_FILES_MAX: usize = 4;

pub fn is_damage(error: &anyhow::Error) -> bool {
    let code = error
        .downcast_ref()
        .and_then(rusqlite::Error::sqlite_error_code);
    matches!(
        code,
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt | ErrorCode::Unknown)
    )
}

/// Describes an error of the state file: what failed, where, and what to do.
pub fn failure(path: &Path, error: impl Into<anyhow::Error>) -> Failure {
    let error = error.into();
    let directory = path.parent().unwrap_or(path);
    let code = error
        .downcast_ref()
        .and_then(rusqlite::Error::sqlite_error_code);
    let why = match (code, error.downcast_ref()) {
        (Some(ErrorCode::ConstraintViolation), _) => {
            return Failure::new(Kind::NameTaken, "the name is taken");
        }
        (Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked), _) => {
            format!(
                "another process keeps it locked; `fuser {}` shows which",
                path.display()
            )
        }
        _ if is_damage(&error) => format!(
            "it is damaged ({}); move it away, and `rsig ps --host HOST --discover` finds the jobs again",
            message(&error)
        ),
        (_, Some(error)) => explain(error),
        (Some(_), _) => match probe(directory) {
            Err(error) => explain(&error),
            Ok(()) => format!(
                "{}; if it stays, set RSIG_STATE_DIR to a directory on another file system",
                message(&error)
            ),
        },
        (None, None) => message(&error),
    };
    let message = format!("the state file {} can't be used: {why}", path.display());
    Failure::new(Kind::Failed, message)
}

/// SQLite's message, without repetition.
fn message(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(rusqlite::Error::SqliteFailure(_, Some(message))) => message.clone(),
        Some(rusqlite::Error::FromSqlConversionFailure(_, _, error)) => error.to_string(),
        _ => error.to_string(),
    }
}

/// Finds out why SQLite could not write here or open its files, since SQLite does not report the system error.
fn probe(directory: &Path) -> io::Result<()> {
    let files: Vec<File> = (0..EXTRA_FILES_MAX)
        .map(|_| File::open(directory))
        .collect::<io::Result<_>>()?;
    drop(files);
    let path = directory.join(format!("probe-{}", std::process::id()));
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_all()
    });
    drop(fs::remove_file(&path));
    written
}

/// The text of a system error, with what to do about it.
pub fn explain(error: &io::Error) -> String {
    let Some(errno) = error.raw_os_error().map(Errno::from_raw) else {
        return error.to_string();
    };
    let what = errno.desc().to_lowercase();
    let elsewhere = "set RSIG_STATE_DIR to a directory elsewhere";
    match errno {
        Errno::ENOSPC | Errno::EDQUOT => format!("{what}; free some space, or {elsewhere}"),
        Errno::EMFILE => reason(error),
        Errno::ENFILE | Errno::ENOMEM => what,
        _ => format!("{what}; {elsewhere}"),
    }
}
