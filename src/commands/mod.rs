//! What rsig does, a verb a file. A command takes typed words and gives typed outcomes; it prints nothing, so that
//! every face of rsig can call it.

mod ephemeral;
pub mod history;
pub mod keeper;
pub mod kill;
pub mod ps;
pub mod rm;
pub mod run;
pub mod select;
pub mod spawn;
pub mod tail;
mod turns;
pub mod wait;

use std::ffi::{OsStr, OsString};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use anyhow::Result;

use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::job::Record;
use crate::printable::printable;
use crate::store::Store;
use crate::transport::{Line, Policy, Slots};

/// The most threads that wait for hosts at once.
const WAITING: usize = 256;

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

/// Works on all hosts at once, at most [`Policy::parallel`] at a time, and passes on what comes as it comes.
pub fn on_each_host<T: Send, E: Send>(
    policy: &Policy,
    groups: Vec<Group<T>>,
    work: impl Fn(&mut Line<'_>, Vec<T>, &Sender<E>) + Sync,
    mut on_event: impl FnMut(E),
) {
    spread(policy, None, groups, &work, |receiver| receiver.into_iter().for_each(&mut on_event));
}

/// The same for work that waits for jobs: only while it connects does a host count, so that those that wait for long
/// don't keep the others from being asked.
pub fn wait_on_each_host<T: Send, E: Send>(
    policy: &Policy,
    groups: Vec<Group<T>>,
    work: impl Fn(&mut Line<'_>, Vec<T>, &Sender<E>) + Sync,
    mut on_event: impl FnMut(E),
) {
    let slots = Arc::new(Slots::new(policy.parallel));
    spread(policy, Some(&slots), groups, &work, |receiver| receiver.into_iter().for_each(&mut on_event));
}

/// Gives the hosts to threads, and what comes of it to `hear`. With slots there is a thread for each host.
fn spread<T: Send, E: Send>(
    policy: &Policy,
    slots: Option<&Arc<Slots>>,
    groups: Vec<Group<T>>,
    work: &(impl Fn(&mut Line<'_>, Vec<T>, &Sender<E>) + Sync),
    hear: impl FnOnce(Receiver<E>),
) {
    let (sender, receiver) = mpsc::channel();
    let workers = groups.len().min(if slots.is_some() { WAITING } else { policy.parallel });
    let queue = Mutex::new(groups.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let sender = sender.clone();
            let queue = &queue;
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some(group) = next else { return };
                    let line = Line::new(&group.destination, policy);
                    let mut line = match slots {
                        Some(slots) => line.among(Arc::clone(slots)),
                        None => line,
                    };
                    work(&mut line, group.jobs, &sender);
                }
            });
        }
        drop(sender);
        hear(receiver);
    });
}
