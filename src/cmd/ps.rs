//! `ps`: how jobs stand, as their hosts say.

use std::ffi::OsString;

use anyhow::Result;

use super::discover::discover;
use super::ephemeral::forget_read;
use super::{Context, Named, by_host, meet, on_each_host, resolve};
use crate::connection::Line;
use crate::error::{Failure, Kind};
use crate::host::{Destination, Host};
use crate::job::{Record, State};
use crate::remote::Seen;
use crate::remote::look::{self, Streams};
use crate::state::Which;

/// Which jobs to list.
pub struct Request {
    /// These, in any state; else all that fit.
    pub jobs: Vec<OsString>,
    /// Finished ones too.
    pub all: bool,
    /// Those of one host.
    pub host: Option<Host>,
    /// All that this host knows, whoever started them; those without a record get one.
    pub discover: Option<Destination>,
    /// Those in one of these states; none given is any.
    pub states: Vec<State>,
    /// Ask no host.
    pub cached: bool,
}

/// A job, and how it stands now.
pub struct Listed {
    /// What is known of it.
    pub record: Record,
    /// Its state now: unlike the record's, it may be unknown.
    pub state: State,
}

/// The jobs, and what went wrong on the way.
pub struct Listing {
    /// The jobs, the oldest first, or in the order in which they were named.
    pub jobs: Vec<Listed>,
    /// Words that name no job, and hosts that could not be asked.
    pub failures: Vec<Failure>,
}

/// Lists jobs.
pub fn ps(context: &mut Context, request: &Request) -> Result<Listing> {
    let mut listing = Listing {
        jobs: Vec::new(),
        failures: Vec::new(),
    };
    if let Some(destination) = &request.discover {
        listing.jobs = discover(context, destination)?;
    } else {
        listing.jobs = recorded(context, request, &mut listing.failures)?;
        if !request.cached {
            ask(context, &mut listing);
        }
    }
    // What turned out to be finished just now is what a person who looks wants to see; the next time it is gone.
    listing
        .jobs
        .retain(|job| request.states.is_empty() || request.states.contains(&job.state));
    Ok(listing)
}

/// The jobs that the request means, as they were last known.
fn recorded(
    context: &Context,
    request: &Request,
    failures: &mut Vec<Failure>,
) -> Result<Vec<Listed>> {
    let mut records = Vec::new();
    if request.jobs.is_empty() {
        let finished_too = request.all
            || (!request.states.is_empty()
                && request.states.iter().any(|state| state.is_finished()));
        records = context.store.list(if finished_too {
            Which::All
        } else {
            Which::Unfinished
        })?;
    } else {
        for Named { record, .. } in resolve(context, &request.jobs) {
            match record {
                Ok(record) if record.is_unmet() && request.cached => {
                    let message = format!(
                        "{}: nothing is known of it here; leave --cached out",
                        record.label()
                    );
                    failures.push(Failure::new(Kind::NotFound, message));
                }
                Ok(record) => records.push(record),
                Err(failure) => failures.push(failure),
            }
        }
    }
    records.retain(|record| {
        context.allowed.has(record.host())
            && request
                .host
                .as_ref()
                .is_none_or(|host| host == record.host())
    });
    Ok(records
        .into_iter()
        .map(|record| Listed {
            state: record.state,
            record,
        })
        .collect())
}

/// Asks the hosts of all unfinished jobs, all at once, one script each.
fn ask(context: &mut Context, listing: &mut Listing) {
    let unfinished = listing
        .jobs
        .iter()
        .enumerate()
        .filter(|(_, job)| !job.state.is_finished());
    let asks: Vec<(usize, Record)> = unfinished
        .map(|(index, job)| (index, job.record.clone()))
        .collect();
    let policy = context.policy;
    let Listing { jobs, failures } = listing;
    let mut forgotten = Vec::new();
    on_each_host(
        &policy,
        by_host(asks, |(_, record)| record),
        |line, asks, sender| {
            let on_failure = |ask, failure| drop(sender.send(Event::Seen(vec![ask], Err(failure))));
            let asks = meet(line, asks, |(_, record)| record, on_failure);
            if asks.is_empty() {
                return;
            }
            let host = line.host();
            let places: Vec<String> = asks.iter().map(|(_, record)| record.job_dir()).collect();
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            let answer = line.ask(|shell| look::see(&host, shell, &places));
            let over: Vec<Record> = answer
                .iter()
                .flatten()
                .zip(&asks)
                .filter_map(over_and_ephemeral)
                .collect();
            drop(sender.send(Event::Seen(asks, answer)));
            forget(line, over, &mut |record| {
                drop(sender.send(Event::Forgotten(Box::new(record))));
            });
        },
        |event| match event {
            Event::Forgotten(record) => forgotten.push(record),
            Event::Seen(asks, Ok(answers)) => {
                for ((index, record), seen) in asks.into_iter().zip(answers) {
                    let Some(job) = jobs.get_mut(index) else {
                        continue;
                    };
                    job.record = record;
                    job.state = seen.state(&job.record);
                    seen.update(&mut job.record);
                }
            }
            Event::Seen(asks, Err(failure)) => {
                for (index, _) in asks {
                    if let Some(job) = jobs.get_mut(index) {
                        job.state = State::Unknown;
                    }
                }
                failures.push(failure);
            }
        },
    );
    // What is known by its id alone is no job unless its host says so.
    jobs.retain(|job| !job.record.is_unmet() || job.state != State::Unknown);
    let checked = jobs
        .iter()
        .filter(|job| job.state != State::Unknown)
        .map(|job| &job.record);
    context.store.update(checked);
    for record in &forgotten {
        context.store.remove(record);
    }
}

/// What a host's part of the work tells.
enum Event {
    /// How its jobs stand.
    Seen(Vec<(usize, Record)>, Result<Vec<Seen>, Failure>),
    /// A job that was to be forgotten after its end is.
    Forgotten(Box<Record>),
}

fn over_and_ephemeral((seen, (_, record)): (&Seen, &(usize, Record))) -> Option<Record> {
    (record.ephemeral && seen.state(record).is_finished()).then(|| record.clone())
}

/// Forgets those jobs whose output is read; the others wait for that.
fn forget(line: &mut Line<'_>, mut over: Vec<Record>, on_forgotten: &mut dyn FnMut(Record)) {
    if over.is_empty() {
        return;
    }
    // A host that can't be asked is asked by the next command that looks.
    let gone = forget_read(line, &mut over, Streams::default()).unwrap_or_default();
    over.into_iter()
        .zip(gone)
        .filter(|(_, gone)| *gone)
        .for_each(|(record, _)| on_forgotten(record));
}
