//! Finds the jobs of this user on a host, and adopts those that have no record here.

use std::collections::HashMap;

use anyhow::Result;

use super::Context;
use super::ps::Listed;
use crate::connection::Line;
use crate::host::Destination;
use crate::job::{JobId, Record};
use crate::remote::{Seen, Standing, meet};
use crate::state::Which;

/// The jobs that a host knows, and with them those unfinished ones recorded here as its own that it does not. A record
/// that is here already keeps all that it says about the job and the way there.
pub fn discover(context: &mut Context, destination: &Destination) -> Result<Vec<Listed>> {
    let policy = context.policy;
    let mut line = Line::new(destination, &policy);
    let host = line.host();
    let found = line
        .shell()
        .and_then(|mut shell| meet::discover(&host, shell.as_mut()))?;
    let mut recorded: HashMap<JobId, Record> = context
        .store
        .list(Which::All)?
        .into_iter()
        .map(|record| (record.id.clone(), record))
        .collect();
    let mut listed = Vec::with_capacity(found.len());
    let mut adopted = Vec::new();
    for met in found {
        // Another way to get there may be one to another machine.
        let known = recorded
            .remove(&met.id)
            .filter(|record| record.destination == *destination);
        let is_new = known.is_none();
        if is_new && met.seen.standing == Standing::Foreign {
            continue;
        }
        let mut record =
            known.unwrap_or_else(|| Record::unmet(met.id.clone(), destination.clone()));
        let state = met.seen.state(&record);
        if is_new {
            met.tell(&mut record);
            adopted.push(record.clone());
        } else {
            met.seen.update(&mut record);
        }
        listed.push(Listed { record, state });
    }
    for mut record in recorded.into_values() {
        if record.destination == *destination && !record.state.is_finished() {
            let seen = Seen::absent();
            let state = seen.state(&record);
            seen.update(&mut record);
            listed.push(Listed { record, state });
        }
    }
    // The first of a name gets it: a job that can still be signalled, else the newest.
    adopted.sort_by_key(|record| {
        (
            record.state.is_finished(),
            std::cmp::Reverse(record.created_at),
        )
    });
    context.store.adopt(&adopted);
    context.store.update(listed.iter().map(|job| &job.record));
    listed.sort_by_key(|job| job.record.created_at);
    Ok(listed)
}
