//! `history`: what was done to jobs, those included that are forgotten by now.

use std::ffi::OsStr;

use anyhow::Result;

use super::resolve_one;
use crate::error::Kind;
use crate::history::Event;
use crate::store::Store;

/// The events of the job that a word stands for, or of all jobs, the oldest first; of many the last `most`.
///
/// # Errors
/// When there is no such job and never was, as far as is known; or when the state file can't be used.
pub fn history(store: &Store, job: Option<&OsStr>, most: Option<u32>) -> Result<Vec<Event>> {
    let Some(word) = job else { return store.events(None, most) };
    let id = match resolve_one(store, word) {
        Ok(record) => record.id,
        Err(failure) if failure.kind == Kind::NotFound => store.resolve_past(&word.to_string_lossy())?,
        Err(failure) => return Err(failure.into()),
    };
    store.events(Some(&id), most)
}
