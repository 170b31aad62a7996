//! What every command works with: the state file, and how and to which hosts it may connect.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::allowed::AllowedHosts;
use super::values::configured;
use crate::connection::Policy;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::host::Connect;
use crate::job::{BadJobId, JobWord, Record};
use crate::state::Store;

pub struct Context {
    pub store: Store,
    pub policy: Policy,
    /// How to connect to a host that is named as `HOST/ID`.
    pub connect: Connect,
    /// The hosts that may be used.
    pub allowed: AllowedHosts,
}

/// A context that several threads share.
pub struct SharedContext {
    context: Mutex<Context>,
    queue: Mutex<Vec<NewRecord>>,
}

/// A record to insert, and the result.
type NewRecord = (Record, Arc<OnceLock<Result<(), Failure>>>);

impl SharedContext {
    pub fn new(context: Context) -> Self {
        Self {
            context: Mutex::new(context),
            queue: Mutex::default(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Context> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Store::insert`]. Records that arrive while another thread writes go in one transaction, since each
    /// transaction costs an fsync.
    pub fn insert(&self, record: &Record) -> Result<(), Failure> {
        let queue = || self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let result = Arc::new(OnceLock::new());
        queue().push((record.clone(), Arc::clone(&result)));
        let mut context = self.lock();
        let all = std::mem::take(&mut *queue());
        if !all.is_empty() {
            let inserted = context.store.insert(all.iter().map(|(record, _)| record));
            for (_, result) in all {
                result.get_or_init(|| inserted.clone());
            }
        }
        result.get().cloned().unwrap_or(Ok(()))
    }
}

impl Context {
    /// The job that a word names. If `HOST/ID` has no record here, [`super::jobs::look_up`] asks the host later.
    pub fn resolve(&self, word: &JobWord) -> Result<Record, Failure> {
        let record = match word.host_and_id() {
            None if word.as_str().contains('/') => {
                let shown = printable(word.as_str(), 80);
                let message = format!("no job {shown:?}: {BadJobId}");
                return Err(Failure::new(Kind::NotFound, message));
            }
            None => self.store.resolve(word.as_str())?,
            Some((host, id)) => {
                let destination = configured().destination(host, &self.connect)?;
                // Without connection options, the record's own are used. With different ones, the record may be that of
                // a job on another machine.
                let is_same = |record: &Record| {
                    if self.connect == Connect::default() {
                        record.host() == &destination.host
                    } else {
                        record.destination == destination
                    }
                };
                self.store
                    .get(id)?
                    .filter(is_same)
                    .unwrap_or_else(|| Record::placeholder(id.clone(), destination))
            }
        };
        if self.allowed.has(record.host()) {
            return Ok(record);
        }
        let message = format!(
            "no job {:?} on a host that is allowed here: {}",
            word.as_str(),
            self.allowed
        );
        Err(Failure::new(Kind::NotFound, message))
    }
}
