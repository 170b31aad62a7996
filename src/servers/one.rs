//! What both faces do with the one job that a request is about: a command's request, and its one outcome.

use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::cmd::{Context, kill, ps, resolve_one, rm, wait};
use crate::delivery::Outcome;
use crate::error::{Failure, Kind};
use crate::job::Record;

/// How long one wait for a job lasts; in between it is seen whether anybody still wants to know.
pub const SLICE: Duration = Duration::from_secs(5);

/// A job that a client has named, and the word that means this very job to every command from now on: a name may be
/// another job's a moment later.
pub fn job(context: &Context, word: &str) -> Result<(Record, OsString), Failure> {
    let record = resolve_one(context, OsStr::new(word))?;
    let word = if record.is_unmet() {
        word.into()
    } else {
        record.id.as_str().into()
    };
    Ok((record, word))
}

/// How jobs stand: these, or those that there are.
pub fn ask(context: &mut Context, jobs: Vec<OsString>, all: bool) -> Result<ps::Listing, Failure> {
    let request = ps::Request {
        jobs,
        all,
        host: None,
        discover: None,
        states: Vec::new(),
        cached: false,
    };
    Ok(ps::ps(context, &request)?)
}

/// How one job stands.
pub fn ask_one(context: &mut Context, word: &OsStr) -> Result<ps::Listed, Failure> {
    let mut listing = ask(context, vec![word.to_owned()], true)?;
    let unknown = || Failure::new(Kind::NotFound, format!("no job {}", word.display()));
    listing
        .jobs
        .pop()
        .ok_or_else(|| listing.failures.pop().unwrap_or_else(unknown))
}

/// Sends what a request says to its one job.
pub fn deliver(context: &mut Context, request: &kill::Request) -> Result<kill::Report, Failure> {
    let mut reports = Vec::new();
    kill::kill(context, request, |report| reports.push(report));
    reports
        .pop()
        .ok_or_else(|| Failure::new(Kind::Failed, "nothing is known of the signal"))
}

/// Forgets a job, with its files.
pub fn remove(context: &mut Context, word: OsString, force: bool) -> Result<(), Failure> {
    let mut kept = None;
    let request = rm::Request {
        jobs: vec![word],
        finished: None,
        force,
        forget: false,
    };
    rm::rm(context, &request, |removed| {
        if let rm::Removed::Kept(failure) = removed {
            kept = Some(failure);
        }
    })?;
    kept.map_or(Ok(()), Err)
}

/// Waits for a job to end: until the time is up, or nobody waits for the answer any more.
pub fn await_end(
    context: &mut Context,
    word: &OsStr,
    until: Instant,
    gone: &CancellationToken,
) -> Result<Outcome, Failure> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Some(left.min(SLICE));
        let request = wait::Request {
            jobs: vec![word.to_owned()],
            selected: false,
            timeout,
            any: false,
        };
        let mut waited = None;
        wait::wait(context, &request, |one| waited = Some(one.outcome));
        let unknown = || {
            Failure::new(
                Kind::Failed,
                format!("{}: nothing is known of its end", word.display()),
            )
        };
        let outcome = waited.ok_or_else(unknown)??;
        match outcome.error {
            Some(failure) => return Err(failure),
            None if outcome.record.state.is_finished() || left <= SLICE || gone.is_cancelled() => {
                return Ok(outcome);
            }
            None => {}
        }
    }
}
