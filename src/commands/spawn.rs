//! `spawn`: starts a job that outlives the connection.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Context, Group, spread};
use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::job::{self, JobId, JobName, Record, State};
use crate::remote::start::{Order, start};
use crate::remote::{Standing, look};
use crate::store::Taken;
use crate::transport::Line;

/// A job to start.
pub struct Request {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Its name.
    pub name: Option<JobName>,
    /// The directory to start in, as typed.
    pub cwd: Option<OsString>,
    /// Variables for its environment.
    pub env: Vec<(String, OsString)>,
    /// Standard error goes where standard output goes.
    pub merge: bool,
    /// How long it may run: its host ends it then.
    pub timeout: Option<Duration>,
    /// It is forgotten, with its files, once it has ended and its output is read.
    pub ephemeral: bool,
}

/// A job that was started.
pub struct Spawned {
    /// Its record.
    pub record: Record,
    /// What the user should know.
    pub warning: Option<String>,
}

/// How often an answer that was lost is asked for again.
const LOOKS: u32 = 5;
/// The time between two of them.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

/// Starts a job.
///
/// # Errors
/// When it was not started, and nothing of it is left; or, of kind [`Kind::Unconfirmed`], when that can't be found out.
pub fn spawn(context: &mut Context, destination: &Destination, request: &Request) -> Result<Spawned> {
    let job = prepare(context, destination, request)?;
    let policy = context.policy;
    let launched = launch(&mut Line::new(destination, &policy), job, request);
    settle(context, launched)
}

/// How long a job that runs is held back for an earlier host's.
const IN_TURN: Duration = Duration::from_secs(1);

/// Starts the same job on several hosts, at most [`crate::transport::Policy::parallel`] at a time. They are passed on in
/// the order of the hosts; but one that is slow, or dead, holds the others back for a second at most.
pub fn spawn_on(
    context: &mut Context,
    destinations: &[Destination],
    request: &Request,
    mut on_spawned: impl FnMut(Result<Spawned>),
) {
    let mut turns = Turns::default();
    let mut groups: Vec<Group<(usize, Job)>> = Vec::new();
    for (place, destination) in destinations.iter().enumerate() {
        match prepare(context, destination, request) {
            Ok(job) => groups.push(Group { destination: destination.clone(), jobs: vec![(place, job)] }),
            Err(error) => turns.put(place, Err(error), Instant::now()),
        }
    }
    let policy = context.policy;
    let work = |line: &mut Line<'_>, jobs: Vec<(usize, Job)>, sender: &Sender<(usize, Launched)>| {
        for (place, job) in jobs {
            // Nobody listens any more only when all is over.
            drop(sender.send((place, launch(line, job, request))));
        }
    };
    spread(&policy, None, groups, &work, |receiver| {
        loop {
            while let Some(spawned) = turns.take(Instant::now(), IN_TURN) {
                on_spawned(spawned);
            }
            let received = match turns.overdue_at(IN_TURN) {
                Some(at) => receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok((place, launched)) => turns.put(place, settle(context, launched), Instant::now()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    while let Some(spawned) = turns.take(Instant::now(), Duration::ZERO) {
        on_spawned(spawned);
    }
}

/// Puts what comes in any order into its own, without waiting for long.
struct Turns<T> {
    waiting: BTreeMap<usize, (Instant, T)>,
    /// The first place that has not come yet.
    next: usize,
    /// Places behind that which have been let through.
    ahead: BTreeSet<usize>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), next: 0, ahead: BTreeSet::new() }
    }
}

impl<T> Turns<T> {
    fn put(&mut self, place: usize, item: T, now: Instant) {
        self.waiting.insert(place, (now, item));
    }

    /// The next one: whose turn it is, or the first of those that are there when any has waited long enough.
    fn take(&mut self, now: Instant, patience: Duration) -> Option<T> {
        let overdue = self.overdue_at(patience).is_some_and(|at| at <= now);
        let first = self.waiting.first_entry().filter(|first| overdue || *first.key() <= self.next)?;
        let (place, (_, item)) = first.remove_entry();
        self.ahead.insert(place);
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
        Some(item)
    }

    fn overdue_at(&self, patience: Duration) -> Option<Instant> {
        self.waiting.values().map(|(since, _)| *since + patience).min()
    }
}

/// A job that is recorded and about to be asked for.
struct Job {
    record: Record,
    directory: Option<OsString>,
}

/// What came of asking a host for a job.
enum Launched {
    /// It runs.
    Runs(Spawned),
    /// It was not started.
    NotStarted(JobId, Failure),
    /// That can't be found out.
    Unsure(Failure),
}

/// Records a job before anything is asked of its host.
fn prepare(context: &mut Context, destination: &Destination, request: &Request) -> Result<Job> {
    let text = |word: &OsString| word.to_string_lossy().into_owned();
    let command: Vec<String> = request.command.iter().map(text).collect();
    let mut record = Record::new(JobId::random()?, request.name.clone(), destination.clone(), command);
    let directory = directory(destination, request.cwd.clone())?;
    record.cwd = directory.as_ref().map(text);
    record.ephemeral = request.ephemeral;
    reserve(context, &record)?;
    Ok(Job { record, directory })
}

/// Asks a host for a job.
fn launch(line: &mut Line<'_>, job: Job, request: &Request) -> Launched {
    let Job { mut record, directory } = job;
    let id = record.id.clone();
    let secrets = || -> Result<(String, String)> { Ok((job::random_hex::<16>()?, meta(&record)?)) };
    let (cookie, meta) = match secrets() {
        Ok(both) => both,
        Err(error) => return Launched::NotStarted(id, error.into()),
    };
    let mut order = Order {
        id: &id,
        cookie: &cookie,
        meta: &meta,
        command: &request.command,
        env: &request.env,
        directory,
        merge: request.merge,
        timeout: request.timeout,
        relay: None,
    };
    if let Err(failure) = line.connect() {
        return Launched::NotStarted(id, failure);
    }
    let host = line.host();
    let answer = match line.shell_with_relay(&id) {
        Ok((mut shell, relay)) => {
            order.relay = relay.as_deref();
            start(&host, shell.as_mut(), &order)
        }
        Err(failure) => return Launched::NotStarted(id, failure),
    };
    let started = match answer {
        Ok(Ok(started)) => started,
        Err(failure) if failure.kind == Kind::Unreachable => return after_a_break(line, record, failure),
        Ok(Err((_, failure))) | Err(failure) => return Launched::NotStarted(id, failure),
    };
    record.state = State::Running;
    record.pid = Some(started.pid);
    record.pgid = Some(started.pgid);
    record.os = Some(started.os);
    record.dir = Some(started.dir);
    record.started_at = Some(started.started_at);
    record.checked_at = Some(job::now());
    let warning = started.ends_at_logout.then(|| {
        format!(
            "{}: logind there ends what a login leaves behind (KillUserProcesses), and `systemd-run --user --scope` does \
             not work: the job ends when your last session there does",
            record.label()
        )
    });
    Launched::Runs(Spawned { record, warning })
}

/// Keeps what came of it.
fn settle(context: &mut Context, launched: Launched) -> Result<Spawned> {
    match launched {
        Launched::Runs(spawned) => {
            let record = &spawned.record;
            let recorded = context.store.update([record]);
            recorded.with_context(|| format!("{} runs, but can't be recorded", record.label()))?;
            Ok(spawned)
        }
        Launched::NotStarted(id, failure) => {
            context.store.not_started(&id, failure.kind)?;
            Err(failure.into())
        }
        Launched::Unsure(failure) => Err(failure.into()),
    }
}

/// The directory to name to the host: on this machine a relative one is taken from here.
fn directory(destination: &Destination, cwd: Option<OsString>) -> Result<Option<OsString>> {
    if !destination.is_local() {
        return Ok(cwd);
    }
    let here = std::env::current_dir().context("the current directory can't be read")?;
    let home = cwd.as_ref().is_some_and(|cwd| cwd.to_string_lossy().starts_with('~'));
    Ok(match cwd {
        Some(cwd) if home => Some(cwd),
        Some(cwd) => Some(here.join(PathBuf::from(cwd)).into_os_string()),
        None => Some(here.into_os_string()),
    })
}

/// What the host keeps of the job, for whoever finds it there: one line.
fn meta(record: &Record) -> Result<String> {
    let meta = serde_json::json!({
        "id": record.id.as_str(),
        "name": record.name.as_ref().map(JobName::as_str),
        "command": record.command,
        "cwd": record.cwd,
        "created_at": record.created_at,
        "ephemeral": record.ephemeral,
    });
    serde_json::to_string(&meta).context("the job can't be described")
}

/// Records the job before anything is asked of its host.
fn reserve(context: &mut Context, record: &Record) -> Result<()> {
    let Err(error) = context.store.insert(record) else { return Ok(()) };
    if error.downcast_ref::<Taken>().is_none() {
        return Err(error.context("the job can't be recorded, so it was not started"));
    }
    let taken = |holder: &Record, why: &str| {
        let name = record.name.as_ref().map_or("", JobName::as_str);
        let id = &holder.id;
        Failure::new(
            Kind::Failed,
            format!(
                "the name {name} is taken by {}{why}; take another, or end that job: rsig stop {id}",
                holder.label()
            ),
        )
    };
    let Some(name) = &record.name else { return Err(error) };
    let Some(mut holder) = context.store.holder(name)? else {
        return context.store.insert(record);
    };
    // What this machine knows may be old: only the host can say whether that job still runs.
    let policy = context.policy;
    let destination = holder.destination.clone();
    let mut line = Line::new(&destination, &policy);
    let host = line.host();
    let place = holder.dir.clone().unwrap_or_else(|| holder.id.to_string());
    let seen = line.shell().and_then(|mut shell| look::see(&host, shell.as_mut(), &[&place]));
    match seen {
        Ok(seen) => seen.iter().for_each(|seen| seen.update(&mut holder)),
        Err(failure) => return Err(taken(&holder, &format!(" as far as is known ({failure})")).into()),
    }
    context.store.update([&holder])?;
    if holder.state.is_finished() { context.store.insert(record) } else { Err(taken(&holder, "").into()) }
}

/// The connection broke before the host had answered: looks whether the job runs, or never started.
fn after_a_break(line: &mut Line<'_>, mut record: Record, failure: Failure) -> Launched {
    let host = line.host();
    let mut seen = None;
    for attempt in 0..LOOKS {
        line.hang_up();
        let answer = line.shell().and_then(|mut shell| look::see(&host, shell.as_mut(), &[record.id.as_str()]));
        seen = answer.ok().and_then(|mut seen| seen.pop());
        // What is about to start, or may still be on its way there, is given time.
        match seen.as_ref().map(|seen| seen.standing) {
            None | Some(Standing::Starting | Standing::Absent) if attempt + 1 < LOOKS => {
                std::thread::sleep(BETWEEN_LOOKS);
            }
            _ => break,
        }
    }
    match seen {
        Some(seen) if seen.standing == Standing::Absent => Launched::NotStarted(record.id, failure),
        Some(seen) if !matches!(seen.standing, Standing::Starting | Standing::Elsewhere | Standing::Foreign) => {
            seen.update(&mut record);
            Launched::Runs(Spawned { record, warning: None })
        }
        _ => {
            let message = format!(
                "{failure}. Whether the job started is not known: `rsig ps {}` will tell once {host} answers again",
                record.id
            );
            Launched::Unsure(Failure::new(Kind::Unconfirmed, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_of_turn_waits_for_a_while() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut turns = Turns::default();
        turns.put(1, "b", start);
        assert_eq!(turns.take(start, second), None);
        turns.put(0, "a", start);
        assert_eq!(
            [turns.take(start, second), turns.take(start, second), turns.take(start, second)],
            [Some("a"), Some("b"), None]
        );
        turns.put(4, "e", start);
        turns.put(3, "d", start + second / 2);
        assert_eq!((turns.take(start + second / 2, second), turns.overdue_at(second)), (None, Some(start + second)));
        // One that is overdue takes those along that stand before it.
        assert_eq!([turns.take(start + second, second), turns.take(start + second, second)], [Some("d"), Some("e")]);
        turns.put(5, "f", start + second);
        assert_eq!(turns.take(start + second, second), None);
        turns.put(2, "c", start + second);
        assert_eq!([turns.take(start + second, second), turns.take(start + second, second)], [Some("c"), Some("f")]);
    }
}
