//! What rsig does, a verb a file. A command takes typed words and gives typed outcomes; it prints nothing, so that
//! every face of rsig can call it.

pub mod allowed;
pub mod args;
pub mod complete;
pub mod discover;
pub mod dispatch;
mod ephemeral;
pub mod foreground;
pub mod history;
mod input;
pub mod keeper;
pub mod kill;
// The pages are those of a build with everything.
#[cfg(all(test, feature = "mcp", feature = "serve"))]
mod pages;
#[cfg(feature = "serve")]
pub mod pids;
pub mod ps;
pub mod rm;
mod run;
pub mod select;
#[cfg(any(feature = "mcp", feature = "serve"))]
mod servers;
pub mod spawn;
pub mod tail;
mod turns;
pub mod values;
pub mod wait;
mod words;

use std::ffi::{OsStr, OsString};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use anyhow::Result;

use allowed::AllowedHosts;

use crate::connection::{Line, Permits, Policy};
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::host::{Connect, Destination};
use crate::job::{BadJobThere, JobId, JobThere, Record};
use crate::remote::{self, Standing};
use crate::state::Store;

/// The most threads that wait for hosts at once.
const WAITING: usize = 256;

/// What every command works with.
pub struct Context {
    /// The state file.
    pub store: Store,
    /// How to connect.
    pub policy: Policy,
    /// How to get to a host that is named as `HOST/ID`.
    pub connect: Connect,
    /// The hosts that may be used.
    pub allowed: AllowedHosts,
}

/// One word that stands for a job, and the job.
pub struct Named {
    /// The word as typed.
    pub word: String,
    /// The job, or why there is none.
    pub record: Result<Record, Failure>,
}

/// The jobs that words stand for. A job that several words name comes once.
pub fn resolve(context: &Context, words: &[OsString]) -> Vec<Named> {
    let mut named: Vec<Named> = Vec::with_capacity(words.len());
    for word in words {
        let record = resolve_one(context, word);
        let is_same =
            |one: &Record, two: &Record| one.id == two.id && one.destination == two.destination;
        let double = |other: &Named| matches!((&other.record, &record), (Ok(one), Ok(two)) if is_same(one, two));
        if !named.iter().any(double) {
            named.push(Named {
                word: word.to_string_lossy().into_owned(),
                record,
            });
        }
    }
    named
}

/// The job that a word stands for. Of one that is named as `HOST/ID` and has no record here, nothing is known until
/// [`meet`] has asked its host.
pub fn resolve_one(context: &Context, word: &OsStr) -> Result<Record, Failure> {
    let Some(text) = word.to_str() else {
        let shown = printable(word.as_encoded_bytes(), 80);
        return Err(Failure::new(
            Kind::NotFound,
            format!("no job \"{shown}\": ids and names are plain ASCII"),
        ));
    };
    match JobThere::parse(text) {
        None => allowed_only(context, text, context.store.resolve(text)?),
        Some(Ok(there)) => allowed_only(
            context,
            text,
            resolve_there(context, there).map_err(Failure::from)?,
        ),
        Some(Err(error)) => {
            let kind = if matches!(error, BadJobThere::Host(_)) {
                Kind::Usage
            } else {
                Kind::NotFound
            };
            Err(Failure::new(
                kind,
                format!("no job {:?}: {error}", printable(text, 80)),
            ))
        }
    }
}

/// The job, if it is on a host that may be used.
fn allowed_only(context: &Context, word: &str, record: Record) -> Result<Record, Failure> {
    if context.allowed.has(record.host()) {
        return Ok(record);
    }
    let message = format!(
        "no job {word:?} on a host that may be used here: {}",
        context.allowed
    );
    Err(Failure::new(Kind::NotFound, message))
}

/// The record here of a job there, where it says the same about the way.
fn resolve_there(context: &Context, JobThere { host, id }: JobThere) -> Result<Record> {
    let known = context.store.get(&id)?;
    let as_recorded = context.connect == Connect::default();
    let destination = Destination {
        host,
        connect: context.connect.clone(),
    };
    let is_it = |record: &Record| {
        if as_recorded {
            *record.host() == destination.host
        } else {
            record.destination == destination
        }
    };
    Ok(match known.filter(is_it) {
        Some(record) => record,
        None => Record::unmet(id, destination),
    })
}

/// Asks the host about those jobs that nothing is known of but their id. Gives back all that are there; the others go to
/// `on_failure`.
pub fn meet<T>(
    line: &mut Line<'_>,
    jobs: Vec<T>,
    record: impl Fn(&mut T) -> &mut Record,
    mut on_failure: impl FnMut(T, Failure),
) -> Vec<T> {
    let mut jobs = jobs;
    let unmet: Vec<JobId> = jobs
        .iter_mut()
        .map(&record)
        .filter(|job| job.is_unmet())
        .map(|job| job.id.clone())
        .collect();
    if unmet.is_empty() {
        return jobs;
    }
    let host = line.host();
    let mut met = match line
        .shell()
        .and_then(|mut shell| remote::meet::meet(&host, shell.as_mut(), &unmet))
    {
        Ok(met) => Ok(met.into_iter()),
        Err(failure) => Err(failure),
    };
    let mut there = Vec::with_capacity(jobs.len());
    for mut job in jobs {
        let known = record(&mut job);
        if !known.is_unmet() {
            there.push(job);
            continue;
        }
        match &mut met {
            Err(failure) => on_failure(job, failure.clone()),
            Ok(met) => match met
                .next()
                .filter(|met| met.seen.standing != Standing::Absent)
            {
                Some(met) => {
                    met.tell(known);
                    there.push(job);
                }
                None => {
                    let failure = not_there(known);
                    on_failure(job, failure);
                }
            },
        }
    }
    there
}

/// The failure of a job that its host does not know.
pub fn not_there(record: &Record) -> Failure {
    let message = format!(
        "no job {}: `rsig ps --host {} --discover` lists those that are there",
        record.label(),
        record.host()
    );
    Failure::new(Kind::NotFound, message)
}

/// Jobs of one host, with what is to be done with each.
pub struct Group<T> {
    /// The way to the host.
    pub destination: Destination,
    /// The jobs.
    pub jobs: Vec<T>,
}

/// Sorts jobs by host and by the way there.
pub fn by_host<T>(
    jobs: impl IntoIterator<Item = T>,
    record: impl Fn(&T) -> &Record,
) -> Vec<Group<T>> {
    let mut groups: Vec<Group<T>> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for job in jobs {
        let destination = record(&job).destination.clone();
        let place = *places.entry(destination.clone()).or_insert_with(|| {
            groups.push(Group {
                destination,
                jobs: Vec::new(),
            });
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
    spread(policy, None, groups, &work, |receiver| {
        receiver.into_iter().for_each(&mut on_event);
    });
}

/// The same for work that waits for jobs: only while it connects does a host count, so that those that wait for long
/// don't keep the others from being asked.
pub fn wait_on_each_host<T: Send, E: Send>(
    policy: &Policy,
    groups: Vec<Group<T>>,
    work: impl Fn(&mut Line<'_>, Vec<T>, &Sender<E>) + Sync,
    mut on_event: impl FnMut(E),
) {
    let permits = Arc::new(Permits::new(policy.parallel));
    spread(policy, Some(&permits), groups, &work, |receiver| {
        receiver.into_iter().for_each(&mut on_event);
    });
}

/// Gives the hosts to threads, and what comes of it to `hear`. With permits there is a thread for each host.
fn spread<T: Send, E: Send>(
    policy: &Policy,
    permits: Option<&Arc<Permits>>,
    groups: Vec<Group<T>>,
    work: &(impl Fn(&mut Line<'_>, Vec<T>, &Sender<E>) + Sync),
    hear: impl FnOnce(Receiver<E>),
) {
    let (sender, receiver) = mpsc::channel();
    if permits.is_none() && groups.len() == 1 {
        // One host needs no thread, and the events of one script come together anyway.
        for group in groups {
            work(
                &mut Line::new(&group.destination, policy),
                group.jobs,
                &sender,
            );
        }
        drop(sender);
        return hear(receiver);
    }
    let workers = groups.len().min(if permits.is_some() {
        WAITING
    } else {
        policy.parallel
    });
    let queue = Mutex::new(groups.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let sender = sender.clone();
            let queue = &queue;
            scope.spawn(move || {
                loop {
                    let next = queue
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .next();
                    let Some(group) = next else { return };
                    let line = Line::new(&group.destination, policy);
                    let mut line = match permits {
                        Some(permits) => line.with_permits(Arc::clone(permits)),
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
