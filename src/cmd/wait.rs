//! `wait`: waits for jobs to end.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use super::ephemeral::forget_read;
use super::{Context, Named, by_host, meet, resolve};
use crate::connection::{Line, Permits};
use crate::delivery::{self, Order, Outcome, Ways};
use crate::error::{Failure, Kind};
use crate::job::{JobId, Record, Target};
use crate::remote::look::Streams;

/// For as long as it takes.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// How soon those that wait for other jobs find out that one was enough.
const SLICE: Duration = Duration::from_secs(10);

/// What to wait for.
pub struct Request {
    /// The jobs, as typed.
    pub jobs: Vec<OsString>,
    /// They are ids that a selector picked: one that is forgotten meanwhile is passed over.
    pub selected: bool,
    /// For how long.
    pub timeout: Option<Duration>,
    /// The first end is enough.
    pub any: bool,
}

/// How the waiting for one job came out, and the word that stood for it.
pub struct Waited {
    /// The word as typed.
    pub word: String,
    /// How it came out; an error alone when there is no such job.
    pub outcome: Result<Outcome, Failure>,
}

impl Waited {
    /// Whether the job is over.
    pub fn has_ended(&self) -> bool {
        self.outcome
            .as_ref()
            .is_ok_and(|outcome| outcome.error.is_none() && outcome.record.state.is_finished())
    }
}

/// What a host's part of the work tells.
enum Event {
    Waited(Waited),
    /// A job that was to be forgotten after its end is.
    Forgotten(Box<Record>),
}

/// Waits for jobs, all hosts at once. Each is passed on as it ends.
pub fn wait(context: &mut Context, request: &Request, mut on_waited: impl FnMut(Waited)) {
    let mut asks: Vec<(String, Record)> = Vec::new();
    let mut enough = false;
    for Named { word, record } in resolve(context, &request.jobs) {
        match record {
            Ok(record) if record.state.is_finished() => {
                if !enough {
                    let outcome = Outcome {
                        still_running: Some(false),
                        ..Outcome::of(record)
                    };
                    on_waited(Waited {
                        word,
                        outcome: Ok(outcome),
                    });
                }
                enough = request.any;
            }
            Ok(record) => asks.push((word, record)),
            Err(failure) if request.selected && failure.kind == Kind::NotFound => {}
            Err(failure) => on_waited(Waited {
                word,
                outcome: Err(failure),
            }),
        }
    }
    if enough {
        return;
    }
    let until = Instant::now() + request.timeout.unwrap_or(FOREVER);
    let (sender, receiver) = mpsc::channel();
    let (slots, over) = (
        Arc::new(Permits::new(context.policy.parallel)),
        Arc::new(AtomicBool::new(false)),
    );
    for group in by_host(asks, |(_, record)| record) {
        let words = group.jobs.iter().map(|(word, _)| word.clone()).collect();
        let (policy, any, sender) = (context.policy, request.any, sender.clone());
        let watch = Watch {
            until,
            any,
            over: Arc::clone(&over),
            sender: sender.clone(),
        };
        let slots = Arc::clone(&slots);
        // Not waited for: where the first end is enough, the other hosts may still be asked about theirs.
        let thread = std::thread::Builder::new().spawn(move || {
            watch.on_host(
                &mut Line::new(&group.destination, &policy).with_permits(slots),
                group.jobs,
            );
        });
        if let Err(error) = thread {
            fail(words, &error, &sender);
        }
    }
    drop(sender);
    for event in receiver {
        match event {
            Event::Forgotten(record) => context.store.remove(&record),
            Event::Waited(waited) => {
                if let Ok(outcome) = &waited.outcome {
                    context.store.update([&outcome.record]);
                }
                let enough = request.any && waited.has_ended();
                on_waited(waited);
                if enough {
                    over.store(true, Ordering::Relaxed);
                    break;
                }
            }
        }
    }
}

fn fail(words: Vec<String>, error: &std::io::Error, sender: &Sender<Event>) {
    for word in words {
        let failure = Failure::new(
            Kind::Failed,
            format!("{word}: no thread can be started to wait for it: {error}"),
        );
        drop(sender.send(Event::Waited(Waited {
            word,
            outcome: Err(failure),
        })));
    }
}

/// The waiting for one host's jobs.
struct Watch {
    until: Instant,
    any: bool,
    over: Arc<AtomicBool>,
    sender: Sender<Event>,
}

impl Watch {
    fn on_host(&self, line: &mut Line<'_>, asks: Vec<(String, Record)>) {
        let asks = meet(
            line,
            asks,
            |(_, record)| record,
            |(word, record), failure| {
                let outcome = Ok(Outcome {
                    error: Some(failure),
                    ..Outcome::of(record)
                });
                drop(self.sender.send(Event::Waited(Waited { word, outcome })));
            },
        );
        let mut words: HashMap<JobId, String> = HashMap::new();
        let mut records = Vec::new();
        for (word, record) in asks {
            words.insert(record.id.clone(), word);
            records.push(record);
        }
        let mut ended = Vec::new();
        while !records.is_empty() && !self.over.load(Ordering::Relaxed) {
            let left = self.until.saturating_duration_since(Instant::now());
            let (time, last) = if self.any && left > SLICE {
                (SLICE, false)
            } else {
                (left, true)
            };
            let orders = records.drain(..).map(order).collect();
            delivery::deliver(line, orders, Some(time), &mut |outcome| {
                if outcome.error.is_none() && !outcome.record.state.is_finished() && !last {
                    records.push(outcome.record);
                    return;
                }
                if outcome.record.ephemeral
                    && outcome.error.is_none()
                    && outcome.record.state.is_finished()
                {
                    ended.push(outcome.record.clone());
                }
                let word = words.remove(&outcome.record.id).unwrap_or_default();
                // Nobody listens any more only when all is over, or one end was enough.
                drop(self.sender.send(Event::Waited(Waited {
                    word,
                    outcome: Ok(outcome),
                })));
            });
        }
        if ended.is_empty() || self.over.load(Ordering::Relaxed) {
            return;
        }
        // A host that can't be asked is asked by the next command that looks.
        let forgotten = forget_read(line, &mut ended, Streams::default()).unwrap_or_default();
        for (record, forgotten) in ended.into_iter().zip(forgotten) {
            if forgotten {
                drop(self.sender.send(Event::Forgotten(Box::new(record))));
            }
        }
    }
}

fn order(record: Record) -> Order {
    Order {
        record,
        signal: None,
        then: None,
        target: Target::Group,
        wake: false,
        ways: Ways::Any,
    }
}
