//! `rm`: forgets finished jobs, and removes their files from their hosts.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;

use super::select::Selection;
use super::{Context, Named, by_host, meet, on_each_host, resolve};
use crate::connection::Line;
use crate::delivery::{self, Order, Outcome, Ways};
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::job::{Record, Target, now};
use crate::remote::Standing;
use crate::remote::look::{self, Removal};
use crate::signal::{Signal, SignalWord};
use crate::state::{Signalled, Store, Which};

/// Which jobs to forget.
pub struct Request {
    /// These.
    pub jobs: Vec<OsString>,
    /// And all that are finished, for at least so long, and that are picked.
    pub finished: Option<(Duration, Selection)>,
    /// Stop those first that still run.
    pub force: bool,
    /// The records only; no host is asked.
    pub forget: bool,
}

/// How long a job that is stopped first may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// What became of one job.
pub enum Removed {
    /// It is forgotten. The text says what stays behind, if anything does.
    Gone(Box<Record>, Option<String>),
    /// It is not.
    Kept(Failure),
}

/// Forgets jobs, all hosts at once.
pub fn rm(
    context: &mut Context,
    request: &Request,
    mut on_removed: impl FnMut(Removed),
) -> Result<()> {
    let mut records: Vec<Record> = Vec::new();
    for Named { record, .. } in resolve(context, &request.jobs) {
        match record {
            Ok(record) => records.push(record),
            Err(failure) => on_removed(Removed::Kept(failure)),
        }
    }
    if let Some((age, selection)) = &request.finished {
        let old = |record: &Record| {
            let ended = record
                .finished_at
                .or(record.checked_at)
                .unwrap_or(record.created_at);
            u64::try_from(now().saturating_sub(ended)).is_ok_and(|seconds| seconds >= age.as_secs())
        };
        let finished = selection.of(&context.store, Which::Finished)?;
        records.extend(finished.into_iter().filter(old));
        let mut ids = std::collections::HashSet::new();
        records.retain(|record| ids.insert(record.id.clone()));
    }
    if request.forget {
        for record in records {
            if !context.store.forget(&record)? {
                let message = format!(
                    "{}: there is no record of it here that could be forgotten",
                    record.label()
                );
                on_removed(Removed::Kept(Failure::new(Kind::NotFound, message)));
                continue;
            }
            let dir = printable(record.dir.as_deref().unwrap_or("its directory"), 300);
            let label = record.label();
            let what = if record.state.is_finished() {
                "its files stay"
            } else {
                "it may still run, and its files stay"
            };
            let note = format!("{label}: {what} in {dir}");
            on_removed(Removed::Gone(Box::new(record), Some(note)));
        }
        return Ok(());
    }
    let policy = context.policy;
    let store = &mut context.store;
    on_each_host(
        &policy,
        by_host(records, |record| record),
        |line, records, sender| {
            on_host(line, records, request.force, &mut |event| {
                drop(sender.send(event));
            });
        },
        |event| {
            match &event {
                Event::Stopped(stopped) => stopped.record(store),
                Event::Removed(Removed::Gone(record, _)) => store.remove(record),
                Event::Removed(Removed::Kept(_)) => {}
            }
            if let Event::Removed(removed) = event {
                on_removed(removed);
            }
        },
    );
    Ok(())
}

/// What a host's part of the work tells.
enum Event {
    /// A job was stopped first, or was to be.
    Stopped(Box<Stopped>),
    /// What became of a job in the end.
    Removed(Removed),
}

/// The signals that a job was to be stopped by, and what became of them.
struct Stopped {
    outcome: Outcome,
    signals: Option<(Signal, Signal)>,
}

impl Stopped {
    fn record(&self, store: &mut Store) {
        let Self { outcome, signals } = self;
        let first = signals.map(|(signal, _)| Signalled {
            signal,
            sent: outcome.sent,
        });
        let second = signals
            .zip(outcome.then)
            .map(|((_, signal), sent)| Signalled { signal, sent });
        store.signalled(&outcome.record, Target::Group, first.iter().chain(&second));
    }
}

/// Removes the files of one host's jobs.
fn on_host(
    line: &mut Line<'_>,
    records: Vec<Record>,
    force: bool,
    on_event: &mut dyn FnMut(Event),
) {
    let records = meet(
        line,
        records,
        |record| record,
        |_, failure| on_event(Event::Removed(Removed::Kept(failure))),
    );
    let records = if force {
        stop(line, records, on_event)
    } else {
        records
    };
    let on_removed = &mut |removed| on_event(Event::Removed(removed));
    if records.is_empty() {
        return;
    }
    let host = line.host();
    let places: Vec<String> = records.iter().map(Record::job_dir).collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let removals = line
        .shell()
        .and_then(|mut shell| look::forget(&host, shell.as_mut(), &places));
    match removals {
        Ok(removals) => {
            for (record, removal) in records.into_iter().zip(removals) {
                on_removed(removed(&record, removal));
            }
        }
        Err(failure) => {
            for record in records {
                let message = format!(
                    "{}: not forgotten: {failure}; --forget drops the record alone",
                    record.label()
                );
                on_removed(Removed::Kept(Failure::new(failure.kind, message)));
            }
        }
    }
}

fn removed(record: &Record, removal: Removal) -> Removed {
    let kept = |what: &str| {
        Removed::Kept(Failure::new(
            Kind::Failed,
            format!("{}: {what}", record.label()),
        ))
    };
    match removal {
        Removal::Gone => Removed::Gone(Box::new(record.clone()), None),
        Removal::Kept(why) => kept(&format!("its files can't be removed: {why}")),
        Removal::Refused(seen) => match seen.standing {
            Standing::Elsewhere => kept("it is another machine's, and that one has to be asked"),
            Standing::Away => kept(
                "the directory of all jobs is missing on its host: is the file system mounted?",
            ),
            Standing::Foreign => kept(
                "others could have written to its directory there, so nothing in it is touched",
            ),
            _ => {
                let message = format!(
                    "{}: it has not ended; stop it first, or use --force",
                    record.label()
                );
                Removed::Kept(Failure::new(Kind::StillRunning, message))
            }
        },
    }
}

/// Stops what still runs, and gives those back that are over.
fn stop(line: &mut Line<'_>, records: Vec<Record>, on_event: &mut dyn FnMut(Event)) -> Vec<Record> {
    let (mut over, running): (Vec<Record>, Vec<Record>) = records
        .into_iter()
        .partition(|record| record.state.is_finished());
    let mut orders = Vec::new();
    let mut sent = std::collections::HashMap::new();
    for record in running {
        let os = record.system().unwrap_or(crate::signal::Os::Other);
        match (SignalWord::TERM.on(os), SignalWord::KILL.on(os)) {
            (Ok(term), Ok(kill)) => {
                sent.insert(record.id.clone(), (term, kill));
                orders.push(Order {
                    record,
                    signal: Some(term),
                    then: Some(kill),
                    target: Target::Group,
                    wake: true,
                    ways: Ways::Pid,
                });
            }
            (Err(error), _) | (_, Err(error)) => {
                let failure = Failure::new(Kind::BadSignal, format!("{}: {error}", record.label()));
                on_event(Event::Removed(Removed::Kept(failure)));
            }
        }
    }
    if orders.is_empty() {
        return over;
    }
    delivery::deliver(line, orders, Some(GRACE), &mut |outcome| {
        let signals = sent.get(&outcome.record.id).copied();
        on_event(Event::Stopped(Box::new(Stopped {
            outcome: outcome.clone(),
            signals,
        })));
        match (outcome.error, outcome.still_running) {
            (Some(failure), _) => on_event(Event::Removed(Removed::Kept(failure))),
            (None, Some(false)) => over.push(outcome.record),
            (None, _) => {
                let message = format!(
                    "{}: it has not ended, not even by KILL; not forgotten",
                    outcome.record.label()
                );
                on_event(Event::Removed(Removed::Kept(Failure::new(
                    Kind::TimedOut,
                    message,
                ))));
            }
        }
    });
    over
}
