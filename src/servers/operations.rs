//! The operations that both servers offer, each on one job or as a list.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::cmd::context::Context;
use crate::cmd::deliver::{Report, SendOptions, send};
use crate::cmd::jobs::Jobs;
use crate::cmd::pattern::Pattern;
use crate::cmd::ps::{Filter, Listing, ps};
use crate::cmd::rm;
use crate::cmd::send;
use crate::cmd::wait::{WaitOptions, wait};
use crate::delivery::Outcome;
use crate::error::{Failure, Kind};
use crate::job::{JobWord, Record};
use crate::remote::search::FoundLine;
use crate::remote::send::Data;
use crate::signal::SignalWord;

/// Interval at which a waiting request checks whether the client still waits.
pub const SLICE: Duration = Duration::from_secs(5);

/// Finds the job that a client names. Returns its record and a word that stays unique: another job may get the name.
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

/// Lists jobs. Without `filter.all`, also omits jobs that turn out to have just ended.
pub fn list(context: &mut Context, filter: &Filter) -> Result<Listing, Failure> {
    let mut listing = ps(context, filter)?;
    let jobs = &mut listing.jobs;
    jobs.retain(|job| filter.all || !job.state.is_finished());
    Ok(listing)
}

/// Sends a signal to a job.
pub fn deliver(
    context: &mut Context,
    word: &JobWord,
    signal: SignalWord,
    sending: &SendOptions,
) -> Result<Report, Failure> {
    let jobs = only(context, word);
    let report = send(context, jobs, signal, sending).last();
    report.ok_or_else(|| no_result(word))
}

/// Removes a job.
pub fn remove(context: &mut Context, word: &JobWord, force: bool) -> Result<(), Failure> {
    let jobs = only(context, word);
    rm::remove(context, jobs, force).try_for_each(|removed| removed.map(drop))
}

/// Waits for a job to end, until the deadline or until the client is gone.
pub fn await_end(
    context: &mut Context,
    word: &JobWord,
    until: Instant,
    gone: &CancellationToken,
) -> Result<Outcome, Failure> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let slice = WaitOptions {
            timeout: Some(left.min(SLICE)),
            ..WaitOptions::default()
        };
        let jobs = only(context, word);
        let report = wait(context, jobs, slice).last();
        let outcome = report.ok_or_else(|| no_result(word))?.outcome?;
        let is_over = left <= SLICE || gone.is_cancelled();
        match outcome.error {
            Some(failure) => return Err(failure),
            None if outcome.record.state.is_finished() || is_over => return Ok(outcome),
            None => {}
        }
    }
}

/// The data for a job's standard input. Fails if there is neither text nor an end of file to send.
pub fn text(text: Option<String>, newline: bool, eof: bool) -> Result<Data, Failure> {
    match text {
        None if !eof => Err(Failure::usage("text: nothing to send")),
        None => send::data(Vec::new()),
        Some(text) if newline => send::line(text.into_bytes()),
        Some(text) => send::data(text.into_bytes()),
    }
}

/// Waits for a line of a job's output, until the job ends, the deadline passes or the client is gone.
pub fn await_line(
    context: &mut Context,
    word: &JobWord,
    pattern: &Pattern,
    until: Instant,
    gone: &CancellationToken,
) -> Result<Option<FoundLine>, Failure> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let slice = WaitOptions {
            timeout: Some(left.min(SLICE)),
            pattern: Some(pattern.clone()),
            ..WaitOptions::default()
        };
        let jobs = only(context, word);
        let report = wait(context, jobs, slice).last();
        let report = report.ok_or_else(|| no_result(word))?;
        let outcome = report.outcome?;
        let has_ended = outcome.record.state.is_finished();
        match outcome.error {
            Some(failure) if !has_ended => return Err(failure),
            None if report.found.is_none()
                && !has_ended
                && left > SLICE
                && !gone.is_cancelled() => {}
            _ => return Ok(report.found),
        }
    }
}

fn no_result(word: &JobWord) -> Failure {
    let message = format!("{}: the request gave no result", word.as_str());
    Failure::new(Kind::Failed, message)
}
