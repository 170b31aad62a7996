//! Lists the processes of a job on its host. For the HTTP server only: `ps` shows just the first process.

use super::context::Context;
use super::jobs::{Job, look_up};
use crate::connection::HostConnection;
use crate::error::Failure;
use crate::job::{JobWord, State};
use crate::remote;

/// The pids of the job's process group on its host. Empty once the job's first process has ended.
pub fn pids(context: &mut Context, word: &JobWord) -> Result<Vec<u32>, Failure> {
    let record = context.resolve(word)?;
    if record.state == State::Exited {
        return Ok(Vec::new());
    }
    let (destination, policy) = (record.destination.clone(), context.policy);
    let mut connection = HostConnection::new(&destination, &policy);
    let (jobs, missing) = look_up(&mut connection, vec![Job::from(record)]);
    if let Some((_, failure)) = missing.into_iter().next() {
        return Err(failure);
    }
    let Some(Job { mut record, .. }) = jobs.into_iter().next() else {
        return Ok(Vec::new());
    };
    let (host, dir) = (connection.host(), record.job_dir());
    let (seen, pids) = connection.ask(|shell| remote::pids::pids(&host, shell, &dir))?;
    seen.update(&mut record);
    context.store.update([&record]);
    Ok(pids)
}
