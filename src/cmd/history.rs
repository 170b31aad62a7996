//! `history`: what was done to jobs, those included that are forgotten by now.

use std::ffi::OsStr;

use anyhow::Result;

use crate::error::Kind;
use crate::job::JobThere;
use crate::state::Store;
use crate::state::history::Entry;

/// The events of the job that a word stands for, or of all jobs, the oldest first; of many the last `most`.
pub fn history(store: &Store, job: Option<&OsStr>, most: Option<u32>) -> Result<Vec<Entry>> {
    let Some(word) = job else {
        return Ok(store.history(None, most)?);
    };
    let word = word.to_string_lossy();
    // Of a job that is named by its host too, the id is enough here.
    let word = match JobThere::parse(&word) {
        Some(Ok(there)) => there.id.to_string(),
        _ => word.into_owned(),
    };
    let id = match store.resolve(&word) {
        Ok(record) => record.id,
        Err(failure) if failure.kind == Kind::NotFound => store.resolve_past(&word)?,
        Err(failure) => return Err(failure.into()),
    };
    Ok(store.history(Some(&id), most)?)
}
