//! Queries for records and history entries.

use std::collections::HashMap;

use nix::unistd::{Uid, User};
use rusqlite::params;

use super::history::{self, Entry};
use super::rows::{id_range, select};
use super::{RecordFilter, Store, UNFINISHED};
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::job::{JobId, JobName, Record};

/// Maximum number of candidates listed for an ambiguous word.
const CANDIDATES_MAX: u8 = 8;

impl Store {
    /// The records selected by `which`, the oldest first.
    pub fn list(&self, which: RecordFilter) -> Result<Vec<Record>, Failure> {
        let condition = which.condition();
        self.select(&format!("WHERE {condition} ORDER BY created_at, rowid"), [])
    }

    /// Records whose names match a pattern of SQLite's GLOB, the oldest first.
    pub fn named_like(&self, which: RecordFilter, pattern: &str) -> Result<Vec<Record>, Failure> {
        let condition = which.condition();
        self.select(
            &format!("WHERE {condition} AND name GLOB ?1 ORDER BY created_at, rowid"),
            [pattern],
        )
    }

    /// Records whose ids or names begin with `prefix`, the newest first, at most `limit`.
    pub fn with_prefix(
        &self,
        which: RecordFilter,
        prefix: &str,
        limit: u32,
    ) -> Result<Vec<Record>, Failure> {
        let condition = which.condition();
        self.select(
            &format!(
                "WHERE {condition} AND (substr(id, 1, length(?1)) = ?1 OR substr(name, 1, length(?1)) = ?1) \
                 ORDER BY created_at DESC, rowid DESC LIMIT ?2"
            ),
            params![prefix, limit],
        )
    }

    pub fn get(&self, id: &JobId) -> Result<Option<Record>, Failure> {
        Ok(self.select("WHERE id = ?1", [id.as_str()])?.pop())
    }

    /// The unfinished job with this name, if any.
    pub fn holder(&self, name: &JobName) -> Result<Option<Record>, Failure> {
        let named = self.named(name)?;
        Ok(named.filter(|record| !record.state.is_finished()))
    }

    /// The unfinished job with this name, or else the newest one.
    pub fn named(&self, name: &JobName) -> Result<Option<Record>, Failure> {
        let rest = format!(
            "WHERE name = ?1 AND goes_by_name ORDER BY {UNFINISHED} DESC, created_at DESC, rowid DESC LIMIT 1"
        );
        Ok(self.select(&rest, [name.as_str()])?.pop())
    }

    /// The job that a word names: an id, a name, or a unique prefix of an id.
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
        let mut found = Vec::new();
        if let Some([first, end]) = id_range(word) {
            found = self.select(
                "WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3",
                params![first, end, CANDIDATES_MAX + 1],
            )?;
        }
        if let [one] = found.as_slice() {
            return Ok(one.clone());
        }
        let shown = printable(word, 80);
        if found.is_empty() {
            let known = "`rsig ps -a` lists the jobs that this machine knows";
            let hint = self.file.missing().unwrap_or(known);
            return Err(Failure::new(
                Kind::NotFound,
                format!("no job {shown:?}: {hint}"),
            ));
        }
        let limit = usize::from(CANDIDATES_MAX);
        let labels = found.iter().take(limit).map(Record::label);
        let more = (found.len() > limit).then(|| "...".to_owned());
        let list: String = labels
            .chain(more)
            .map(|line| format!("\n  {line}"))
            .collect();
        let message = format!("{shown:?} fits several jobs:{list}");
        Err(Failure::new(Kind::Ambiguous, message))
    }

    /// The hosts of all jobs, as typed.
    pub fn hosts(&self) -> Result<Vec<String>, Failure> {
        let read = || {
            self.file
                .connection
                .prepare("SELECT DISTINCT host FROM jobs ORDER BY host")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| self.file.failure(error))
    }

    fn select(
        &self,
        rest: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<Record>, Failure> {
        let connection = &self.file.connection;
        select(connection, rest, parameters).map_err(|error| self.file.failure(error))
    }

    /// The last `limit` history entries of one job or of all jobs, the oldest first.
    pub fn history(&self, job: Option<&JobId>, limit: Option<u32>) -> Result<Vec<Entry>, Failure> {
        let mut entries = history::read(&self.file.connection, job, limit)
            .map_err(|error| self.file.failure(error))?;
        let mut names = HashMap::new();
        for entry in &mut entries {
            let name = names
                .entry(entry.user.clone())
                .or_insert_with_key(|uid| user_name(uid));
            entry.user.clone_from(name);
        }
        Ok(entries)
    }

    /// The job in the history that a word names, if its record is gone: an id, a prefix of an id, or a name.
    pub fn resolve_past(&self, word: &str) -> Result<JobId, Failure> {
        let found =
            history::find(&self.file.connection, word).map_err(|error| self.file.failure(error))?;
        let shown = printable(word, 80);
        match found.as_slice() {
            [] => Err(Failure::new(
                Kind::NotFound,
                format!("no job {shown:?}, and none in the history: `rsig history` lists it"),
            )),
            [id] => id.parse().map_err(|error| {
                Failure::new(
                    Kind::Failed,
                    format!("the history has a job {id:?}: {error}"),
                )
            }),
            _ => Err(Failure::new(
                Kind::Ambiguous,
                format!("{shown:?} fits several jobs in the history"),
            )),
        }
    }
}

/// The name of the user with this uid, or the uid if the system has no name for it.
fn user_name(uid: &str) -> String {
    let user = uid.parse().ok().map(Uid::from_raw);
    let user = user.and_then(|uid| User::from_uid(uid).ok().flatten());
    user.map_or_else(|| uid.to_owned(), |user| user.name)
}
