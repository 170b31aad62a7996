//! What rsig does, a verb a file. A command takes typed words and gives typed outcomes; it prints nothing, so that
//! every face of rsig can call it.

pub mod keeper;
pub mod kill;
pub mod ps;
pub mod rm;
pub mod run;
pub mod spawn;
pub mod tail;
pub mod wait;

use std::ffi::{OsStr, OsString};
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};

use anyhow::Result;

use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::job::Record;
use crate::printable::printable;
use crate::store::Store;
use crate::transport::{Line, Policy};

/// How many hosts are talked to at once.
const PARALLEL: usize = 16;

/// What every command works with.
pub struct Context {
    /// The state file.
    pub store: Store,
    /// How to connect.
    pub policy: Policy,
}

/// One word that stands for a job, and the job.
pub struct Named {
    /// The word as typed.
    pub word: String,
    /// The job, or why there is none.
    pub record: Result<Record, Failure>,
}

/// The jobs that words stand for. A job that several words name comes once.
pub fn resolve(store: &Store, words: &[OsString]) -> Vec<Named> {
    let mut named: Vec<Named> = Vec::with_capacity(words.len());
    for word in words {
        let record = resolve_one(store, word);
        let double = |other: &Named| matches!((&other.record, &record), (Ok(one), Ok(two)) if one.id == two.id);
        if !named.iter().any(double) {
            named.push(Named { word: word.to_string_lossy().into_owned(), record });
        }
    }
    named
}

/// The job that a word stands for.
pub fn resolve_one(store: &Store, word: &OsStr) -> Result<Record, Failure> {
    match word.to_str() {
        Some(text) => store.resolve(text).map_err(Failure::from),
        None => {
            let shown = printable(word.as_encoded_bytes(), 80);
            Err(Failure::new(Kind::NotFound, format!("no job \"{shown}\": ids and names are plain ASCII")))
        }
    }
}

/// Jobs of one host, with what is to be done with each.
pub struct Group<T> {
    /// The way to the host.
    pub destination: Destination,
    /// The jobs.
    pub jobs: Vec<T>,
}

/// Sorts jobs by host and by the way there.
pub fn by_host<T>(jobs: impl IntoIterator<Item = T>, record: impl Fn(&T) -> &Record) -> Vec<Group<T>> {
    let mut groups: Vec<Group<T>> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for job in jobs {
        let destination = record(&job).destination.clone();
        let place = *places.entry(destination.clone()).or_insert_with(|| {
            groups.push(Group { destination, jobs: Vec::new() });
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(place) {
            group.jobs.push(job);
        }
    }
    groups
}

/// Works on all hosts at once, at most [`PARALLEL`] at a time, and passes on what comes as it comes.
pub fn on_each_host<T: Send, E: Send>(
    policy: &Policy,
    groups: Vec<Group<T>>,
    work: impl Fn(&mut Line<'_>, Vec<T>, &Sender<E>) + Sync,
    mut on_event: impl FnMut(E),
) {
    on_each_host_in_batches(policy, groups, work, |events| events.into_iter().for_each(&mut on_event));
}

/// The same, with all that is there passed on at once: what is written down together costs little more than one.
pub fn on_each_host_in_batches<T: Send, E: Send>(
    policy: &Policy,
    groups: Vec<Group<T>>,
    work: impl Fn(&mut Line<'_>, Vec<T>, &Sender<E>) + Sync,
    mut on_events: impl FnMut(Vec<E>),
) {
    let (sender, receiver) = mpsc::channel();
    let workers = groups.len().min(PARALLEL);
    let queue = Mutex::new(groups.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let sender = sender.clone();
            let (queue, work) = (&queue, &work);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some(group) = next else { return };
                    work(&mut Line::new(&group.destination, policy), group.jobs, &sender);
                }
            });
        }
        drop(sender);
        while let Ok(first) = receiver.recv() {
            on_events(std::iter::once(first).chain(receiver.try_iter()).collect());
        }
    });
}
