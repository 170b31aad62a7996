//! From JOB words to records, and from records to work on their hosts.

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
use crate::remote::{self, Standing};
use crate::state::Which;
use crate::terminal;

/// How many jobs a question lists.
const LISTED_MAX: usize = 10;

/// A job, and the word that stands for it.
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

/// The jobs that a command is about.
#[derive(Debug, Default)]
pub struct Jobs {
    pub found: Vec<Job>,
    /// The words that name no job, and why.
    pub unknown: Vec<(String, Failure)>,
    /// They were selected, not named: one that has ended meanwhile is passed over.
    pub selected: bool,
}

impl Jobs {
    /// The jobs that words stand for. A job that several words name comes once.
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

    /// The unfinished jobs that are selected. Asks first whether all of them are to get `signals`.
    fn selected(
        context: &Context,
        selectors: &Selectors,
        common: Common,
        signals: Option<&str>,
    ) -> Result<Self, Failure> {
        let picking = &selectors.picking;
        let records = picking.pick(&context.store, Which::Unfinished)?;
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

    /// The jobs that are selected, else those that are named.
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

/// Asks on the terminal whether all these jobs are meant.
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

/// Asks the host about those jobs of which only the id is known. Returns the jobs that are there, and the others with
/// the reason.
pub fn meet(
    connection: &mut HostConnection<'_>,
    jobs: Vec<Job>,
) -> (Vec<Job>, Vec<(Job, Failure)>) {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    let ids: Vec<JobId> = jobs
        .iter()
        .filter(|job| job.record.is_unmet())
        .map(|job| job.record.id.clone())
        .collect();
    if ids.is_empty() {
        return (jobs, missing);
    }
    let host = connection.host();
    let jobs_dir = connection.jobs_dir();
    let mut met = connection
        .shell()
        .and_then(|mut shell| remote::meet::meet(&host, shell.as_mut(), &ids, jobs_dir))
        .map(Vec::into_iter);
    for mut job in jobs {
        if !job.record.is_unmet() {
            there.push(job);
            continue;
        }
        match &mut met {
            Err(failure) => missing.push((job, failure.clone())),
            Ok(met) => match met
                .next()
                .filter(|met| met.seen.standing != Standing::Absent)
            {
                Some(met) => {
                    met.tell(&mut job.record);
                    there.push(job);
                }
                None => {
                    let failure = not_there(&job.record);
                    missing.push((job, failure));
                }
            },
        }
    }
    (there, missing)
}

/// The failure of a job that its host does not know.
pub fn not_there(record: &Record) -> Failure {
    let message = format!(
        "no job {}: `rsig ps --host {} --discover` lists the jobs there",
        record.label(),
        record.host()
    );
    Failure::new(Kind::NotFound, message)
}

/// Sorts jobs by host and by the way there, in the order in which the hosts come.
pub fn by_host(jobs: Vec<Job>) -> Vec<(Destination, Vec<Job>)> {
    let mut groups: Vec<(Destination, Vec<Job>)> = Vec::new();
    let mut places = HashMap::new();
    for job in jobs {
        let destination = &job.record.destination;
        let place = *places.entry(destination.clone()).or_insert_with(|| {
            groups.push((destination.clone(), Vec::new()));
            groups.len() - 1
        });
        if let Some((_, jobs)) = groups.get_mut(place) {
            jobs.push(job);
        }
    }
    groups
}

/// Which limit holds for the number of hosts that are worked on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`Policy::parallel`].
    Work,
    /// The same while connecting only: hosts whose jobs are waited for must not keep the others from being asked.
    Connecting,
}

/// Works on all hosts at once, and returns what comes of it as it comes. The work goes on when the receiver is dropped.
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
        // One host needs no thread: the results of one script come together anyway.
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
            let line = HostConnection::new(&destination, &policy);
            let mut line = match &permits {
                Some(permits) => line.with_permits(Arc::clone(permits)),
                None => line,
            };
            work(&mut line, task, &sender);
        }
    });
    let started = (0..threads).filter(|_| {
        let (worker, sender) = (Arc::clone(&worker), sender.clone());
        std::thread::Builder::new()
            .spawn(move || worker(sender))
            .is_ok()
    });
    // Where no thread can be started, the work is done all the same.
    if started.count() == 0 {
        worker(sender);
    }
    receiver
}
