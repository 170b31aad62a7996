//! Which processes a job has, as its host says. No verb of the command line: `ps` shows the first of them.

use std::ffi::OsStr;

use anyhow::Result;

use super::{Context, meet, resolve_one};
use crate::connection::Line;
use crate::remote;

/// The numbers of the processes of a job's group on its host; none once its first process has ended.
pub fn pids(context: &mut Context, word: &OsStr) -> Result<Vec<u32>> {
    let record = resolve_one(context, word)?;
    if record.state.is_finished() {
        return Ok(Vec::new());
    }
    let (destination, policy) = (record.destination.clone(), context.policy);
    let mut line = Line::new(&destination, &policy);
    let mut unmet = None;
    let mut met = meet(
        &mut line,
        vec![record],
        |record| record,
        |_, failure| unmet = Some(failure),
    );
    let Some(mut record) = met.pop() else {
        return unmet.map_or(Ok(Vec::new()), |failure| Err(failure.into()));
    };
    let place = record.job_dir();
    let host = line.host();
    let (seen, pids) = line.ask(|shell| remote::pids::pids(&host, shell, &place))?;
    seen.update(&mut record);
    context.store.update([&record]);
    Ok(pids)
}
