//! `rm`: forgets finished jobs, and removes their files from their hosts.

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::args::{Common, ConnectArgs, FOR_HOST_ID, Parallel, job_word};
use super::context::Context;
use super::deliver::{self, Report, SendOptions};
use super::jobs::{Job, Jobs, Limit, by_host, look_up, on_each_host};
use super::select::Criteria;
use super::{complete, values};
use crate::connection::HostConnection;
use crate::error::{Failure, Kind, exit};
use crate::escape::printable;
use crate::job::{JobWord, Record, State, Target, now};
use crate::remote::ObservedState;
use crate::remote::look::{self, Removal};
use crate::signal::SignalWord;
use crate::state::RecordFilter;
use crate::terminal::{Output, warn};

/// Time that a job stopped by `--force` has to end by itself before KILL.
const GRACE: Duration = Duration::from_secs(10);

/// The options that select jobs, instead of naming them.
const SELECTORS: [&str; 5] = ["finished", "lost", "older_than", "host", "name_pattern"];

/// Forget finished jobs, and remove their files from their hosts
#[derive(Args, Debug)]
pub struct Rm {
    /// All jobs that have exited; with --host and --name, those that match both
    #[arg(long, visible_alias = "all")]
    finished: bool,
    /// All lost jobs, which may still run; with --finished, in addition to those
    #[arg(long)]
    lost: bool,
    #[command(flatten)]
    picking: Criteria,
    /// Jobs that ended at least DURATION ago
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    older_than: Option<Duration>,
    /// Stop a job that still runs first
    #[arg(long, conflicts_with_all = ["finished", "lost", "host", "name_pattern", "older_than", "forget"])]
    force: bool,
    /// Forget the record only, for a host that is gone
    #[arg(long)]
    forget: bool,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    parallel: Parallel,
    #[command(flatten, next_help_heading = FOR_HOST_ID)]
    connect: ConnectArgs,
    /// Ids, names, unique id prefixes, or HOST/ID
    #[arg(
        value_name = "JOB",
        required_unless_present_any = SELECTORS,
        conflicts_with_all = SELECTORS,
        value_parser = job_word(),
        add = ArgValueCompleter::new(complete::finished)
    )]
    jobs: Vec<JobWord>,
}

impl Rm {
    pub fn run(self) -> Result<u8, Failure> {
        let connect = self.connect.clone().for_jobs(&self.jobs)?;
        let mut context = self.parallel.context(self.common.reach(), connect)?;
        let mut jobs = Jobs::named(&context, &self.jobs);
        for record in self.picked(&context)? {
            if !jobs.found.iter().any(|job| job.record.id == record.id) {
                jobs.found.push(record.into());
            }
        }
        if jobs.found.is_empty() && jobs.unknown.is_empty() {
            self.common.note(&format!(
                "no finished jobs{}; nothing was done",
                self.picking
            ));
        }
        let mut spinner = self.common.spinner("asking the hosts");
        let (mut out, mut status) = (Output::default(), exit::DONE);
        let removals: Box<dyn Iterator<Item = Result<Record, Failure>>> = if self.forget {
            Box::new(forget(&mut context, jobs))
        } else {
            Box::new(remove(&mut context, jobs, self.force))
        };
        for removal in removals {
            spinner.stop();
            match removal {
                Ok(record) => {
                    if self.forget {
                        warn(&left_behind(&record));
                    }
                    out.line(&record.id);
                }
                Err(failure) => {
                    warn(&failure.message);
                    status = status.max(failure.kind.exit_status());
                }
            }
        }
        out.finish()?;
        Ok(status)
    }

    /// The finished jobs that are selected; lost ones only with `--lost`.
    fn picked(&self, context: &Context) -> Result<Vec<Record>, Failure> {
        let picks =
            self.finished || self.lost || self.older_than.is_some() || self.picking.is_given();
        if !picks {
            return Ok(Vec::new());
        }
        let age = self.older_than.unwrap_or_default();
        let mut records = self.picking.pick(&context.store, RecordFilter::Finished)?;
        records.retain(|record| {
            let is_asked_for = match record.state {
                State::Lost => self.lost,
                _ => self.finished || !self.lost,
            };
            is_asked_for && is_older(record, age)
        });
        Ok(records)
    }
}

fn is_older(record: &Record, age: Duration) -> bool {
    let ended = record
        .finished_at
        .or(record.checked_at)
        .unwrap_or(record.created_at);
    u64::try_from(now().saturating_sub(ended)).is_ok_and(|seconds| seconds >= age.as_secs())
}

/// Drops records without contacting any host.
fn forget(context: &mut Context, jobs: Jobs) -> impl Iterator<Item = Result<Record, Failure>> {
    let unknown = jobs.unknown.into_iter().map(|(_, failure)| Err(failure));
    unknown.chain(jobs.found.into_iter().map(|Job { record, .. }| {
        if context.store.forget(&record)? {
            return Ok(record);
        }
        let message = format!("{}: no local record to remove", record.label());
        Err(Failure::new(Kind::NotFound, message))
    }))
}

fn left_behind(record: &Record) -> String {
    let what = if record.state == State::Exited {
        "its files stay"
    } else {
        "it may still run, and its files stay"
    };
    let dir = printable(record.dir.as_deref().unwrap_or("its directory"), 300);
    format!("{}: {what} in {dir}", record.label())
}

/// The result of removing a job, and of the signals sent to end it first.
struct RemovalResult {
    stopped: Option<Report>,
    result: Result<Record, Failure>,
}

/// Forgets jobs and removes their files, on all hosts at once. With `force`, jobs that still run are stopped first.
pub fn remove(
    context: &mut Context,
    jobs: Jobs,
    force: bool,
) -> impl Iterator<Item = Result<Record, Failure>> {
    let unknown = jobs.unknown.into_iter().map(|(_, failure)| Err(failure));
    let removed = on_each_host(
        &context.policy,
        Limit::Work,
        by_host(jobs.found),
        move |connection, jobs, sender| {
            for removed in on_host(connection, jobs, force) {
                // The receiver is dropped only at the end, so a failed send is harmless.
                drop(sender.send(removed));
            }
        },
    );
    let store = &mut context.store;
    unknown.chain(
        removed
            .into_iter()
            .map(|RemovalResult { stopped, result }| {
                if let Some(report) = stopped {
                    deliver::record_report(store, &report, Target::Group);
                }
                let record = result?;
                store.remove(&record);
                Ok(record)
            }),
    )
}

fn on_host(connection: &mut HostConnection<'_>, jobs: Vec<Job>, force: bool) -> Vec<RemovalResult> {
    let mut results = Vec::new();
    let (jobs, missing) = look_up(connection, jobs);
    let kept = |failure| RemovalResult {
        stopped: None,
        result: Err(failure),
    };
    results.extend(missing.into_iter().map(|(_, failure)| kept(failure)));
    let (running, mut over): (Vec<Job>, Vec<Job>) = jobs
        .into_iter()
        .partition(|job| force && job.record.state != State::Exited);
    let mut stopped = HashMap::new();
    for report in stop(connection, running) {
        match ended_record(&report) {
            Ok(record) => {
                over.push(Job::from(record.clone()));
                stopped.insert(record.id, report);
            }
            Err(failure) => results.push(RemovalResult {
                stopped: Some(report),
                result: Err(failure),
            }),
        }
    }
    if over.is_empty() {
        return results;
    }
    let host = connection.host();
    let dirs: Vec<String> = over.iter().map(|job| job.record.job_dir()).collect();
    let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
    let removals = connection.ask(|shell| look::forget(&host, shell, &dirs));
    let mut removals = removals.map(Vec::into_iter);
    for Job { record, .. } in over {
        let stopped = stopped.remove(&record.id);
        let result = match &mut removals {
            Ok(removals) => match removals.next() {
                Some(removal) => removed(record, removal),
                None => Err(not_removed(&record, "its host did not answer for it")),
            },
            Err(failure) => {
                let message = format!(
                    "{}: not removed: {failure}; --forget drops the record alone",
                    record.label()
                );
                Err(Failure::new(failure.kind, message))
            }
        };
        results.push(RemovalResult { stopped, result });
    }
    results
}

fn stop(connection: &mut HostConnection<'_>, running: Vec<Job>) -> Vec<Report> {
    if running.is_empty() {
        return Vec::new();
    }
    let (sender, reports) = mpsc::channel();
    let sending = SendOptions::stop(GRACE, Target::Group);
    deliver::on_host(connection, running, SignalWord::TERM, &sending, &sender);
    drop(sender);
    reports.into_iter().collect()
}

/// The record of a job that has ended, else the failure.
fn ended_record(report: &Report) -> Result<Record, Failure> {
    let outcome = report.outcome.as_ref().map_err(Clone::clone)?;
    match (&outcome.error, outcome.still_running) {
        (Some(failure), _) => Err(failure.clone()),
        (None, Some(false)) => Ok(outcome.record.clone()),
        (None, _) => {
            let message = format!(
                "{}: still running after KILL; not removed",
                outcome.record.label()
            );
            Err(Failure::new(Kind::TimedOut, message))
        }
    }
}

fn removed(record: Record, removal: Removal) -> Result<Record, Failure> {
    match removal {
        Removal::Gone => Ok(record),
        Removal::Kept(why) => Err(not_removed(
            &record,
            &format!("its files can't be removed: {why}"),
        )),
        Removal::Refused(seen) => Err(match seen.observed {
            ObservedState::Elsewhere => {
                not_removed(&record, "it is on another machine; ask that one")
            }
            ObservedState::DirMissing => not_removed(
                &record,
                "the directory of all jobs is missing on its host: is the file system mounted?",
            ),
            ObservedState::Untrusted => not_removed(
                &record,
                "its job directory is writable by other users, so nothing in it is touched",
            ),
            _ => Failure::new(
                Kind::StillRunning,
                format!(
                    "{}: it has not ended; stop it first, or use --force",
                    record.label()
                ),
            ),
        }),
    }
}

fn not_removed(record: &Record, why: &str) -> Failure {
    Failure::new(Kind::Failed, format!("{}: {why}", record.label()))
}
