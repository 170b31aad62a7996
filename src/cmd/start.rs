//! Starts jobs: the common part of `spawn`, `run` and the servers.
//!
//! A job is recorded before the start request is sent to its host. If the answer is lost, the host is asked whether the
//! job runs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::args::JobArgs;
use super::context::{Context, SharedContext};
use super::interrupt::{Starts, cancel_later};
use super::jobs::{Limit, on_each_host};
pub use super::started::Spawned;
use super::started::{LOOKING_MAX, LaunchResult, after_lost_answer, is_absent, unsure};
use crate::connection::{HostConnection, Shell};
use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::job::{self, JobId, JobName, Record, State};
use crate::remote::discover::JobMetadata;
use crate::remote::start::{
    Input, LogMax, Spool, StartRequest, Started, Tether, keep_relay, start, start_and_follow,
};
use crate::remote::{AnswerReader, look};

/// A job to start.
#[derive(Clone)]
pub struct Request {
    pub destination: Destination,
    pub command: Vec<OsString>,
    pub job: JobArgs,
    /// The job's input, copied to the host before the job starts.
    pub input: Option<Arc<Input>>,
    /// The job's input stays open for `rsig send`.
    pub open: bool,
    pub merge: bool,
    /// How much of each output is kept; `None`: all.
    pub log_max: Option<LogMax>,
    /// The job is removed once its output has been delivered.
    pub ephemeral: bool,
    pub foreground: Option<Foreground>,
    /// Once the job has ended, this many bytes from the end of each output are returned.
    pub last: Option<u64>,
    /// The job's id; `None`: a random one.
    pub id: Option<JobId>,
    /// The job is not started after this time.
    pub start_by: Option<Instant>,
}

impl Request {
    /// A request to run a command in the user's home directory with the environment of a login only.
    pub fn new(destination: Destination, command: Vec<OsString>) -> Self {
        Self {
            destination,
            command,
            job: JobArgs::default(),
            input: None,
            open: false,
            merge: false,
            log_max: None,
            ephemeral: false,
            foreground: None,
            last: None,
            id: None,
            start_by: None,
        }
    }

    /// Whether `start_by` has passed.
    fn is_late(&self) -> bool {
        self.start_by.is_some_and(|time| Instant::now() > time)
    }
}

/// How a foreground job is tied to its client.
#[derive(Clone)]
pub struct Foreground {
    /// How the job's streams are passed on.
    pub spool: Spool,
    /// Ends the job when its client is gone.
    pub tether: Option<Tether>,
}

/// The usage error for a name on several hosts.
pub const ONE_NAME: &str =
    "-n: a name stands for one job; omit it to start one on each of several hosts";

/// Time for which ids are held back, so that they are printed in the order of their hosts.
const ORDER_WAIT: Duration = Duration::from_secs(1);
/// Maximum input sent over the keeper's connection, in bytes. More gets a private connection: the keeper's is for short
/// scripts.
const KEEPER_INPUT_MAX: u64 = 1 << 20;

/// Starts one job.
#[cfg(any(feature = "mcp", feature = "serve"))]
pub fn spawn(context: &mut Context, request: Request) -> Result<Spawned, Failure> {
    let none = || Failure::new(Kind::Failed, "nothing is known of the start");
    spawn_each(context, vec![request], &Arc::default())
        .next()
        .unwrap_or_else(|| Err(none()))
}

/// Starts jobs on several hosts at once.
pub fn spawn_each(
    context: &mut Context,
    requests: Vec<Request>,
    starts: &Arc<Starts>,
) -> impl Iterator<Item = Result<Spawned, Failure>> {
    let mut refused = Vec::new();
    let mut hosts = Vec::new();
    let mut policy = context.policy;
    policy.starts = true;
    let jobs = requests.iter().map(|request| Job::new(context, request));
    let jobs: Vec<Result<Job, Failure>> = jobs.collect();
    let new: Vec<&Record> = jobs.iter().flatten().map(|job| &job.record).collect();
    // Only a single job can have a name. Several records go in one transaction, since each transaction costs an fsync.
    let recorded = match new.as_slice() {
        [] => Ok(()),
        [record] => reserve(context, record),
        records => context.store.insert(records.iter().copied()),
    };
    for (index, (request, job)) in requests.into_iter().zip(jobs).enumerate() {
        let size = request.input.as_ref().map_or(0, |input| input.size());
        policy.keeper &= size <= KEEPER_INPUT_MAX;
        match job.and_then(|job| recorded.clone().map(|()| job)) {
            Ok(job) => {
                starts.begin(&job.record);
                hosts.push((request.destination.clone(), (index, request, job)));
            }
            Err(failure) => refused.push(Err(failure)),
        }
    }
    let asked = Arc::clone(starts);
    let launched = on_each_host(
        &policy,
        Limit::Work,
        hosts,
        move |connection, (index, request, job): (usize, Request, Job), sender| {
            let launched = launch(connection, job, &request, &mut |connection, order| {
                send_detached(connection, order, &asked)
            });
            // The receiver is dropped only at the end, so a failed send is harmless.
            drop(sender.send((index, launched)));
        },
    );
    let starts = Arc::clone(starts);
    refused
        .into_iter()
        .chain(in_order(launched).map(move |launched| {
            if let LaunchResult::NotStarted(record, _) = &launched {
                starts.end(&record.id, || ());
            }
            settle(context, launched)
        }))
}

/// Yields the results that arrive within [`ORDER_WAIT`] of the first one in order, and the rest as they arrive: a slow
/// host must not hold back the others.
fn in_order<T>(results: Receiver<(usize, T)>) -> impl Iterator<Item = T> {
    let mut early: Vec<(usize, T)> = results.recv().into_iter().collect();
    let until = Instant::now() + ORDER_WAIT;
    while let Ok(result) = results.recv_timeout(until.saturating_duration_since(Instant::now())) {
        early.push(result);
    }
    early.sort_by_key(|(index, _)| *index);
    early.into_iter().chain(results).map(|(_, result)| result)
}

/// The streams of a job, passed on by the script that started it.
pub struct JobStreams {
    /// The shell that runs the script.
    pub shell: Box<dyn Shell>,
    /// How far the script's output was read.
    pub hearing: AnswerReader,
}

/// Starts a foreground job. Returns its streams too, unless the connection broke.
pub fn spawn_foreground(
    context: &SharedContext,
    connection: &HostConnection<'_>,
    request: &Request,
    on_asked: &dyn Fn(&JobId) -> Result<(), Failure>,
) -> Result<(Spawned, Option<JobStreams>), Failure> {
    let job = Job::new(&context.lock(), request)?;
    match job.record.name {
        Some(_) => reserve(&mut context.lock(), &job.record)?,
        None => context.insert(&job.record)?,
    }
    let (launched, flow) = launch_and_follow(connection, job, request, on_asked);
    Ok((settle(&mut context.lock(), launched)?, flow))
}

/// Starts a job whose output is returned once it has ended. Returns its streams too, unless the connection broke.
#[cfg(feature = "mcp")]
pub fn spawn_and_collect(
    context: &mut Context,
    connection: &HostConnection<'_>,
    request: &Request,
) -> Result<(Spawned, Option<JobStreams>), Failure> {
    let job = Job::new(context, request)?;
    reserve(context, &job.record)?;
    let place = job.record.job_dir();
    let (launched, flow) = launch_and_follow(connection, job, request, &|_| Ok(()));
    if request.is_late() && matches!(launched, LaunchResult::Runs(_)) {
        // The client has stopped waiting for the job and does not know of it.
        cancel_later(connection.detach(), place);
    }
    Ok((settle(context, launched)?, flow))
}

/// Starts a job whose streams come over the same shell. `on_asked` is called just before the request is sent.
fn launch_and_follow(
    connection: &HostConnection<'_>,
    job: Job,
    request: &Request,
    on_asked: &dyn Fn(&JobId) -> Result<(), Failure>,
) -> (LaunchResult, Option<JobStreams>) {
    let place = job.record.job_dir();
    let mut flow = None;
    let launched = launch(
        &mut connection.share(),
        job,
        request,
        &mut |connection, order| {
            let mut shell = connection.shell()?;
            on_asked(order.id)?;
            let answer = start_and_follow(&connection.host(), shell.as_mut(), order);
            Ok(answer.map(|told| {
                told.map(|(started, hearing)| {
                    flow = Some(JobStreams { shell, hearing });
                    started
                })
            }))
        },
    );
    if matches!(launched, LaunchResult::Unsure(_)) {
        cancel_later(connection.detach(), place);
    }
    (launched, flow)
}

/// A job about to be started: its record, and its working directory.
struct Job {
    record: Record,
    directory: Option<OsString>,
}

impl Job {
    fn new(context: &Context, request: &Request) -> Result<Self, Failure> {
        if !context.allowed.has(&request.destination.host) {
            let message = format!(
                "host {} is not allowed (see --allow-host): {}",
                request.destination, context.allowed
            );
            return Err(Failure::new(Kind::HostDenied, message));
        }
        let text = |word: &OsString| word.to_string_lossy().into_owned();
        let command: Vec<String> = request.command.iter().map(text).collect();
        let mut record = Record::new(
            request.id.clone().map_or_else(JobId::random, Ok)?,
            request.job.name.clone(),
            request.destination.clone(),
            command,
        );
        let directory = directory(&request.destination, request.job.cwd.clone())?;
        record.cwd = directory.as_ref().map(text);
        record.ephemeral = request.ephemeral;
        Ok(Self { record, directory })
    }
}

/// A host's answer to a start request: what was started, or why nothing was. The middle failure: the answer was lost.
/// The outer failure: the request was not sent.
type StartAnswer = Result<Result<Result<Started, Failure>, Failure>, Failure>;

/// Starts a job on a host; `send` sends the request.
fn launch(
    connection: &mut HostConnection<'_>,
    job: Job,
    request: &Request,
    send: &mut dyn FnMut(&mut HostConnection<'_>, &StartRequest<'_>) -> StartAnswer,
) -> LaunchResult {
    let Job {
        mut record,
        directory,
    } = job;
    let (id, place) = (record.id.clone(), record.job_dir());
    let jobs_dir = record.destination.connect.jobs_dir.clone();
    let words = || -> anyhow::Result<(String, String)> {
        Ok((
            job::random_hex::<16>()?,
            JobMetadata::of(&record)
                .line()
                .context("the job can't be described")?,
        ))
    };
    let (cookie, meta) = match words() {
        Ok(both) => both,
        Err(error) => return LaunchResult::NotStarted(record, error.into()),
    };
    let env: Vec<(String, OsString)> = request
        .job
        .env
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
        .collect();
    let foreground = request.foreground.as_ref();
    let order = StartRequest {
        id: &id,
        cookie: &cookie,
        meta: &meta,
        jobs_dir: jobs_dir.as_deref(),
        command: &request.command,
        env: &env,
        directory,
        stays: request.destination.starts_in_shell_dir(),
        input: request.input.as_deref(),
        open: request.open,
        merge: request.merge,
        log_max: request.log_max.as_ref(),
        timeout: request.job.timeout,
        spool: foreground.map(|foreground| foreground.spool),
        last: request.last,
        tether: foreground.and_then(|foreground| foreground.tether.clone()),
    };
    if let Err(failure) = connection.connect() {
        return LaunchResult::NotStarted(record, failure);
    }
    if request.is_late() {
        let failure = Failure::new(Kind::Unreachable, "the host did not answer in time");
        return LaunchResult::NotStarted(record, failure);
    }
    let stale = connection.was_shared_before();
    let (mut again, mut silent_shells) = (false, 0);
    let started = loop {
        let answer = match send(connection, &order) {
            Ok(answer) => answer,
            Err(failure) => return LaunchResult::NotStarted(record, failure),
        };
        match answer {
            Ok(Ok(started)) => break started,
            Ok(Err(failure)) if again || silent_shells > 0 => {
                return after_lost_answer(connection, record, failure);
            }
            Ok(Err(failure)) => return LaunchResult::NotStarted(record, failure),
            // The shell may have been killed before it read anything, or halfway. If there is no shell the second time
            // either, there was none the first time.
            Err(failure) if failure.kind.has_no_shell() => {
                silent_shells += 1;
                if !connection.may_try_another(silent_shells) {
                    return LaunchResult::NotStarted(record, failure);
                }
            }
            Err(failure) if failure.kind == Kind::Silent => return unsure(&record, &failure),
            Err(failure) => {
                let broke = Instant::now();
                // A connection made by another command may have been broken for a long time; then the request has not
                // reached the host. If it has after all, the id is taken there, and that job is found.
                if failure.kind.is_outage() && stale && !again && is_absent(connection, &place) {
                    again = true;
                } else if broke.elapsed() < LOOKING_MAX {
                    return after_lost_answer(connection, record, failure);
                } else {
                    return unsure(&record, &failure);
                }
            }
        }
    };
    record.state = State::Running;
    record.pid = Some(started.pid);
    record.pgid = Some(started.pgid);
    record.os = Some(started.os);
    record.birth = Some(started.birth);
    record.boot = Some(started.boot);
    record.machine = Some(started.machine);
    record.dir = Some(started.dir);
    record.started_at = Some(started.started_at);
    record.checked_at = Some(job::now());
    let warning = started.ends_at_logout.then(|| {
        format!(
            "{}: logind there ends a user's processes at logout (KillUserProcesses), and `systemd-run --user --scope` does \
             not work: the job ends when your last session there does",
            record.label()
        )
    });
    LaunchResult::Runs(Spawned { record, warning })
}

/// Records the result in the state file.
fn settle(context: &mut Context, launched: LaunchResult) -> Result<Spawned, Failure> {
    match launched {
        LaunchResult::Runs(spawned) => {
            context.store.update([&spawned.record]);
            Ok(spawned)
        }
        LaunchResult::NotStarted(record, failure) => {
            context.store.not_started(&record, failure.kind);
            Err(failure)
        }
        LaunchResult::Unsure(failure) => Err(failure),
    }
}

/// Sends the request for a background job.
fn send_detached(
    connection: &mut HostConnection<'_>,
    order: &StartRequest<'_>,
    starts: &Starts,
) -> StartAnswer {
    let host = connection.host();
    let mut shell = connection.shell()?;
    starts.mark_requested(order.id, connection.detach());
    let answer = start(&host, shell.as_mut(), order);
    if let Ok(Ok(started)) = &answer {
        keep_relay(shell.as_mut(), order.id, started)?;
    }
    Ok(answer)
}

/// The working directory to send to the host. On this machine, a relative one is resolved against the current
/// directory, but not behind a prefix, where the file system may be a different one.
fn directory(
    destination: &Destination,
    cwd: Option<OsString>,
) -> Result<Option<OsString>, Failure> {
    if !destination.is_plain_local() {
        return Ok(cwd);
    }
    let cwd = PathBuf::from(cwd.unwrap_or_default());
    if cwd.is_absolute() || cwd.to_string_lossy().starts_with('~') {
        return Ok(Some(cwd.into_os_string()));
    }
    let here = std::env::current_dir().map_err(|error| {
        let message = format!("the current directory can't be read: {error}; use -C DIR");
        Failure::new(Kind::Failed, message)
    })?;
    // Joining an empty path would add a slash.
    let directory = if cwd.as_os_str().is_empty() {
        here
    } else {
        here.join(cwd)
    };
    Ok(Some(directory.into_os_string()))
}

/// Records a job before its host is contacted.
fn reserve(context: &mut Context, record: &Record) -> Result<(), Failure> {
    let Err(error) = context.store.insert([record]) else {
        return Ok(());
    };
    if error.kind != Kind::NameTaken {
        return Err(error);
    }
    let taken = |holder: &Record, why: &str| {
        let name = record.name.as_ref().map_or("", JobName::as_str);
        let id = &holder.id;
        Failure::new(
            Kind::NameTaken,
            format!(
                "the name {name} is taken by {}{why}; take another, or end that job: rsig stop {id}",
                holder.label()
            ),
        )
    };
    let Some(name) = &record.name else {
        return Err(error);
    };
    let Some(mut holder) = context.store.holder(name)? else {
        return context.store.insert([record]);
    };
    if !context.allowed.has(holder.host()) {
        return Err(taken(&holder, " as far as is known"));
    }
    // The record may be out of date: only the host knows whether that job still runs.
    let policy = context.policy;
    let destination = holder.destination.clone();
    let mut connection = HostConnection::new(&destination, &policy);
    let host = connection.host();
    let place = holder.job_dir();
    let seen = connection.ask(|shell| look::see(&host, shell, &[&place]));
    match seen {
        Ok(seen) => seen.iter().for_each(|seen| seen.update(&mut holder)),
        Err(failure) => {
            return Err(taken(&holder, &format!(" as far as is known ({failure})")));
        }
    }
    context.store.update([&holder]);
    if holder.state.is_finished() {
        context.store.insert([record])
    } else {
        Err(taken(&holder, ""))
    }
}
