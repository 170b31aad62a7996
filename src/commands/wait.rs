//! `wait`: waits for jobs to end.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;

use super::{Context, Named, by_host, meet, on_each_host, resolve};
use crate::delivery::{self, Order, Outcome, Ways};
use crate::error::Failure;
use crate::job::{Record, Target};

/// For as long as it takes.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How the waiting for one job came out, and the word that stood for it.
pub struct Waited {
    /// The word as typed.
    pub word: String,
    /// How it came out; an error alone when there is no such job.
    pub outcome: Result<Outcome, Failure>,
}

/// Waits for jobs, all hosts at once. Each is passed on as it ends.
///
/// # Errors
/// When the state file can't be used.
pub fn wait(
    context: &mut Context,
    jobs: &[OsString],
    timeout: Option<Duration>,
    mut on_waited: impl FnMut(Waited),
) -> Result<()> {
    let mut asks: Vec<(String, Record)> = Vec::new();
    for Named { word, record } in resolve(context, jobs) {
        match record {
            Ok(record) if record.state.is_finished() => {
                let outcome = Outcome { still_running: Some(false), ..Outcome::of(record) };
                on_waited(Waited { word, outcome: Ok(outcome) });
            }
            Ok(record) => asks.push((word, record)),
            Err(failure) => on_waited(Waited { word, outcome: Err(failure) }),
        }
    }
    let policy = context.policy;
    let store = &mut context.store;
    let mut result = Ok(());
    on_each_host(
        &policy,
        by_host(asks, |(_, record)| record),
        |line, asks, sender| {
            let mut words = std::collections::HashMap::new();
            let mut orders = Vec::new();
            let asks = meet(
                line,
                asks,
                |(_, record)| record,
                |(word, record), failure| {
                    let outcome = Ok(Outcome { error: Some(failure), ..Outcome::of(record) });
                    drop(sender.send(Waited { word, outcome }));
                },
            );
            if asks.is_empty() {
                return;
            }
            for (word, record) in asks {
                words.insert(record.id.clone(), word);
                orders.push(Order {
                    record,
                    signal: None,
                    then: None,
                    target: Target::Group,
                    wake: false,
                    ways: Ways::Any,
                });
            }
            delivery::deliver(line, orders, Some(timeout.unwrap_or(FOREVER)), &mut |outcome| {
                let word = words.remove(&outcome.record.id).unwrap_or_default();
                // Nobody listens any more only when all is over.
                drop(sender.send(Waited { word, outcome: Ok(outcome) }));
            });
        },
        |waited| {
            if let Ok(outcome) = &waited.outcome
                && let Err(error) = store.update([&outcome.record])
            {
                result = Err(error);
            }
            on_waited(waited);
        },
    );
    result
}
