//! The commands for the one job that a request is about.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::cmd::context::Context;
use crate::cmd::deliver::{Report, Sending, send};
use crate::cmd::jobs::Jobs;
#[cfg(feature = "serve")]
use crate::cmd::ps::{self, Filter, Listed, Listing};
use crate::cmd::rm;
use crate::cmd::wait::{self, Until};
use crate::delivery::Outcome;
use crate::error::{Failure, Kind};
use crate::job::{JobWord, Record};
use crate::signal::SignalWord;

/// How long one wait for a job lasts; after it, the server looks whether the client is still there.
pub const SLICE: Duration = Duration::from_secs(5);

/// A job that a client has named, and the word that means this very job from now on: a name may be another job's a
/// moment later.
pub fn job(context: &Context, word: &str) -> Result<(Record, JobWord), Failure> {
    let word = JobWord::parse(word).map_err(|error| {
        let shown = crate::escape::printable(word, 80);
        Failure::usage(format!("no job {shown:?}: {error}"))
    })?;
    let record = context.resolve(&word)?;
    let word = JobWord::from(&record);
    Ok((record, word))
}

fn only(context: &Context, word: &JobWord) -> Jobs {
    Jobs::named(context, std::slice::from_ref(word))
}

/// The states of all jobs, or of the unfinished ones.
#[cfg(feature = "serve")]
pub fn ask(context: &mut Context, jobs: Vec<JobWord>, all: bool) -> Result<Listing, Failure> {
    let filter = Filter {
        all,
        jobs,
        ..Filter::default()
    };
    ps::ps(context, &filter)
}

/// The state of one job.
#[cfg(feature = "serve")]
pub fn ask_one(context: &mut Context, word: &JobWord) -> Result<Listed, Failure> {
    let mut listing = ask(context, vec![word.clone()], true)?;
    let unknown = || Failure::new(Kind::NotFound, format!("no job {}", word.as_str()));
    listing
        .jobs
        .pop()
        .ok_or_else(|| listing.failures.pop().unwrap_or_else(unknown))
}

/// Sends a signal to a job.
pub fn deliver(
    context: &mut Context,
    word: &JobWord,
    signal: SignalWord,
    sending: &Sending,
) -> Result<Report, Failure> {
    let jobs = only(context, word);
    send(context, jobs, signal, sending)
        .last()
        .ok_or_else(|| Failure::new(Kind::Failed, "nothing is known of the signal"))
}

/// Forgets a job, and removes its files.
pub fn remove(context: &mut Context, word: &JobWord, force: bool) -> Result<(), Failure> {
    let jobs = only(context, word);
    rm::remove(context, jobs, force).try_for_each(|removed| removed.map(drop))
}

/// Waits for a job to end, until the time is up or the client has gone.
pub fn await_end(
    context: &mut Context,
    word: &JobWord,
    until: Instant,
    gone: &CancellationToken,
) -> Result<Outcome, Failure> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let slice = Until {
            timeout: Some(left.min(SLICE)),
            ..Until::default()
        };
        let jobs = only(context, word);
        let unknown = || {
            let message = format!("{}: nothing is known of its end", word.as_str());
            Failure::new(Kind::Failed, message)
        };
        let report = wait::wait(context, jobs, slice).last();
        let outcome = report.ok_or_else(unknown)?.outcome?;
        match outcome.error {
            Some(failure) => return Err(failure),
            None if outcome.record.state.is_finished() || left <= SLICE || gone.is_cancelled() => {
                return Ok(outcome);
            }
            None => {}
        }
    }
}
