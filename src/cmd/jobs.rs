//! Resolves JOB words to records, and runs work on the hosts of jobs.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use super::args::{Common, JobsArgs};
use super::context::Context;
use super::select::Selectors;
use crate::connection::{HostConnection, Permits, Policy};
use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::job::{JobId, JobWord, Record};
use crate::remote::{self, ObservedState};
use crate::state::RecordFilter;
use crate::terminal;

/// Maximum number of jobs listed in a confirmation prompt.
const LISTED_MAX: usize = 10;

/// A job, and the word that names it.
#[derive(Clone, Debug)]
pub struct Job {
    pub word: String,
    pub record: Record,
}

impl From<Record> for Job {
    fn from(record: Record) -> Self {
        Self {
            word: record.id.to_string(),
            record,
        }
    }
}

/// The jobs that a command acts on.
#[derive(Debug, Default)]
pub struct Jobs {
    pub found: Vec<Job>,
    /// The words that name no job, with the reason.
    pub unknown: Vec<(String, Failure)>,
    /// The jobs were selected, not named: a job that has ended meanwhile is not an error.
    pub selected: bool,
}

impl Jobs {
    /// The jobs that words name. A job that several words name is listed once.
    pub fn named(context: &Context, words: &[JobWord]) -> Self {
        let mut jobs = Self::default();
        for word in words {
            let name = word.as_str().to_owned();
            match context.resolve(word) {
                Ok(record) => {
                    let is_same = |job: &Job| {
                        job.record.id == record.id && job.record.destination == record.destination
                    };
                    if !jobs.found.iter().any(is_same) {
                        jobs.found.push(Job { word: name, record });
                    }
                }
                Err(failure) => jobs.unknown.push((name, failure)),
            }
        }
        jobs
    }

    /// The selected unfinished jobs. With `--all`, asks the user to confirm that all of them get `signals`.
    fn selected(
        context: &Context,
        selectors: &Selectors,
        common: Common,
        signals: Option<&str>,
    ) -> Result<Self, Failure> {
        let picking = &selectors.picking;
        let records = picking.pick(&context.store, RecordFilter::Unfinished)?;
        if records.is_empty() {
            common.note(&format!("no unfinished jobs{picking}; nothing was done"));
        } else if let Some(signals) = signals.filter(|_| selectors.all) {
            confirm(signals, &records)?;
        }
        Ok(Self {
            found: records.into_iter().map(Job::from).collect(),
            selected: true,
            ..Self::default()
        })
    }

    /// The selected jobs if there are selectors, else the named ones.
    pub fn of(
        context: &Context,
        selectors: &Selectors,
        words: &[JobWord],
        common: Common,
        signals: Option<&str>,
    ) -> Result<Self, Failure> {
        if selectors.is_given() {
            Self::selected(context, selectors, common, signals)
        } else {
            Ok(Self::named(context, words))
        }
    }

    pub fn words(&self) -> Vec<String> {
        self.found.iter().map(|job| job.word.clone()).collect()
    }
}

impl JobsArgs {
    /// See [`Jobs::of`].
    pub fn find(
        &self,
        context: &Context,
        common: Common,
        signals: Option<&str>,
    ) -> Result<Jobs, Failure> {
        Jobs::of(context, &self.selectors, &self.jobs, common, signals)
    }
}

/// Asks the user on the terminal to confirm the signal to all these jobs.
fn confirm(signals: &str, records: &[Record]) -> Result<(), Failure> {
    let jobs = match records.len() {
        1 => "1 job".to_owned(),
        number => format!("{number} jobs"),
    };
    if !terminal::is_on_terminal() {
        return Err(Failure::usage(format!(
            "--all would send {signals} to {jobs}, and there is no terminal to ask on: add --yes"
        )));
    }
    let mut question = String::new();
    for record in records.iter().take(LISTED_MAX) {
        let command = terminal::command_line(&record.command);
        question += &format!("  {}: {command}\n", record.label());
    }
    if records.len() > LISTED_MAX {
        question += &format!("  and {} more\n", records.len() - LISTED_MAX);
    }
    if terminal::ask(&format!("{question}Send {signals} to {jobs}? [y/N] ")) {
        return Ok(());
    }
    Err(Failure::new(Kind::Failed, "nothing was sent"))
}

/// Completes the records of jobs that are known only by id, by asking the host. Returns the jobs that exist there, and
/// the others with the reason.
pub fn look_up(
    connection: &mut HostConnection<'_>,
    jobs: Vec<Job>,
) -> (Vec<Job>, Vec<(Job, Failure)>) {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    let ids: Vec<JobId> = jobs
        .iter()
        .filter(|job| job.record.is_placeholder())
        .map(|job| job.record.id.clone())
        .collect();
    if ids.is_empty() {
        return (jobs, missing);
    }
    let host = connection.host();
    let jobs_dir = connection.jobs_dir();
    let mut found = connection
        .ask(|shell| remote::discover::find(&host, shell, &ids, jobs_dir))
        .map(Vec::into_iter);
    for mut job in jobs {
        if !job.record.is_placeholder() {
            there.push(job);
            continue;
        }
        match &mut found {
            Err(failure) => missing.push((job, failure.clone())),
            Ok(found) => match found
                .next()
                .filter(|answer| answer.seen.observed != ObservedState::Absent)
            {
                Some(answer) => {
                    answer.fill_in(&mut job.record);
                    there.push(job);
                }
                None => {
                    let failure = not_on_host(&job.record);
                    missing.push((job, failure));
                }
            },
        }
    }
    (there, missing)
}

/// The failure for a job that its host does not know.
pub fn not_on_host(record: &Record) -> Failure {
    let message = format!(
        "no job {}: `rsig ps --host {} --discover` lists the jobs there",
        record.label(),
        record.host()
    );
    Failure::new(Kind::NotFound, message)
}

/// Groups jobs by destination (host and how to connect to it), in order of first appearance.
pub fn by_host(jobs: Vec<Job>) -> Vec<(Destination, Vec<Job>)> {
    let mut groups: Vec<(Destination, Vec<Job>)> = Vec::new();
    let mut indices = HashMap::new();
    for job in jobs {
        let destination = &job.record.destination;
        let index = *indices.entry(destination.clone()).or_insert_with(|| {
            groups.push((destination.clone(), Vec::new()));
            groups.len() - 1
        });
        if let Some((_, jobs)) = groups.get_mut(index) {
            jobs.push(job);
        }
    }
    groups
}

/// What [`Policy::parallel`] limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The number of hosts worked on at once.
    Work,
    /// The number of hosts connected to at once: waiting for the jobs of some hosts must not keep others from being
    /// asked.
    Connecting,
}

/// Works on all hosts at once, within the limit. Sends each result to the returned receiver as it is ready. The work
/// goes on even if the receiver is dropped.
pub fn on_each_host<T: Send + 'static, R: Send + 'static>(
    policy: &Policy,
    limit: Limit,
    hosts: Vec<(Destination, T)>,
    work: impl Fn(&mut HostConnection<'_>, T, &Sender<R>) + Send + Sync + 'static,
) -> Receiver<R> {
    let (sender, receiver) = mpsc::channel();
    let policy = *policy;
    let permits = (limit == Limit::Connecting).then(|| Arc::new(Permits::new(policy.parallel)));
    let threads = match limit {
        // One host needs no thread: the results of one script arrive together anyway.
        Limit::Work if hosts.len() == 1 => 0,
        Limit::Work => hosts.len().min(policy.parallel),
        Limit::Connecting => hosts.len(),
    };
    let queue = Mutex::new(hosts.into_iter());
    let worker = Arc::new(move |sender: Sender<R>| {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((destination, task)) = next else {
                return;
            };
            let connection = HostConnection::new(&destination, &policy);
            let mut connection = match &permits {
                Some(permits) => connection.with_permits(Arc::clone(permits)),
                None => connection,
            };
            work(&mut connection, task, &sender);
        }
    });
    let started = (0..threads).filter(|_| {
        let (worker, sender) = (Arc::clone(&worker), sender.clone());
        std::thread::Builder::new()
            .spawn(move || worker(sender))
            .is_ok()
    });
    // If there is no thread, or none can be started, the caller's thread does the work.
    if started.count() == 0 {
        worker(sender);
    }
    receiver
}
