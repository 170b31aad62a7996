//! `spawn`: starts a job that outlives the connection.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::turns::Turns;
use super::{Context, Group, spread};
use crate::connection::{Line, Policy, Shell};
use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::job::{self, JobId, JobName, Record, State};
use crate::remote::meet::Meta;
use crate::remote::start::{
    Input, Order, Spool, Started, Tether, keep_relay, start, start_and_hear,
};
use crate::remote::{Hearing, Seen, Standing, look};

/// A job to start.
#[derive(Clone)]
pub struct Request {
    /// Where.
    pub destination: Destination,
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Its name.
    pub name: Option<JobName>,
    /// The directory to start in, as typed.
    pub cwd: Option<OsString>,
    /// Variables for its environment.
    pub env: Vec<(String, OsString)>,
    /// What it is to read; else nothing.
    pub input: Option<Arc<Input>>,
    /// Standard error goes where standard output goes.
    pub merge: bool,
    /// How long it may run: its host ends it then.
    pub timeout: Option<Duration>,
    /// It is forgotten, with its files, once it has ended and its output is read.
    pub ephemeral: bool,
    /// Somebody runs it in the foreground.
    pub foreground: Option<Foreground>,
}

impl Request {
    /// A command in its user's home, with no more than a login's environment.
    pub fn new(destination: Destination, command: Vec<OsString>) -> Self {
        Self {
            destination,
            command,
            name: None,
            cwd: None,
            env: Vec::new(),
            input: None,
            merge: false,
            timeout: None,
            ephemeral: false,
            foreground: None,
        }
    }
}

/// Whether a word can name a variable.
pub fn is_variable(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// How a job in the foreground is held.
#[derive(Clone)]
pub struct Foreground {
    /// How its streams are passed on.
    pub spool: Spool,
    /// What ends it when nobody holds it any more.
    pub tether: Option<Tether>,
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
/// More input than this is much, in bytes.
const MUCH: u64 = 1 << 20;
/// No further one begins after this time: a silent host takes long to give none.
const LOOKING: Duration = Duration::from_secs(10);

/// Starts a job.
pub fn spawn(context: &mut Context, request: &Request) -> Result<Spawned> {
    let (policy, destination) = (policy(context, request), request.destination.clone());
    let job = prepare(context, request)?;
    let launched = launch(
        &mut Line::new(&destination, &policy),
        job,
        request,
        &mut detached,
    );
    settle(context, launched)
}

/// How to connect for it: much input gets a connection of its own, since the keeper's is for short things.
fn policy(context: &Context, request: &Request) -> Policy {
    let much = request
        .input
        .as_ref()
        .is_some_and(|input| input.size() > MUCH);
    Policy {
        keeper: context.policy.keeper && !much,
        ..context.policy
    }
}

/// The streams of a job in the foreground, which the script that has started it passes on.
pub struct Flow {
    /// Where that script runs.
    pub shell: Box<dyn Shell>,
    /// How far it was heard.
    pub hearing: Hearing,
}

/// Starts a job in the foreground. Its streams come with it, unless that connection broke.
pub fn in_foreground(
    context: &mut Context,
    connection: &Line<'_>,
    request: &Request,
    on_asked: &dyn Fn(&JobId),
) -> Result<(Spawned, Option<Flow>)> {
    let job = prepare(context, request)?;
    let mut flow = None;
    let launched = launch(&mut connection.share(), job, request, &mut |line, order| {
        let mut shell = line.shell()?;
        on_asked(order.id);
        let answer = start_and_hear(&line.host(), shell.as_mut(), order);
        Ok(answer.map(|told| {
            told.map(|(started, hearing)| {
                flow = Some(Flow { shell, hearing });
                started
            })
        }))
    });
    Ok((settle(context, launched)?, flow))
}

/// How long a job that runs is held back for an earlier host's.
const IN_TURN: Duration = Duration::from_secs(1);

/// Starts jobs on several hosts, at most [`crate::connection::Policy::parallel`] at a time. They are passed on in the
/// order of the requests; but a host that is slow, or dead, holds the others back for a second at most.
pub fn spawn_each(
    context: &mut Context,
    requests: &[Request],
    mut on_spawned: impl FnMut(Result<Spawned>),
) {
    let mut turns = Turns::default();
    let mut groups: Vec<Group<(usize, &Request, Job)>> = Vec::new();
    for (place, request) in requests.iter().enumerate() {
        match prepare(context, request) {
            Ok(job) => {
                groups.push(Group {
                    destination: request.destination.clone(),
                    jobs: vec![(place, request, job)],
                });
            }
            Err(error) => turns.put(place, Err(error), Instant::now()),
        }
    }
    let policy = requests
        .first()
        .map_or(context.policy, |request| policy(context, request));
    let work = |line: &mut Line<'_>,
                jobs: Vec<(usize, &Request, Job)>,
                sender: &Sender<(usize, Launched)>| {
        for (place, request, job) in jobs {
            // Nobody listens any more only when all is over.
            drop(sender.send((place, launch(line, job, request, &mut detached))));
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
                Ok((place, launched)) => {
                    turns.put(place, settle(context, launched), Instant::now());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    while let Some(spawned) = turns.take(Instant::now(), Duration::ZERO) {
        on_spawned(spawned);
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
    NotStarted(Record, Failure),
    /// That can't be found out.
    Unsure(Failure),
}

/// Records a job before anything is asked of its host.
fn prepare(context: &mut Context, request: &Request) -> Result<Job> {
    if !context.allowed.has(&request.destination.host) {
        let message = format!(
            "{} is no host that may be used here: {}",
            request.destination, context.allowed
        );
        return Err(Failure::new(Kind::HostDenied, message).into());
    }
    let text = |word: &OsString| word.to_string_lossy().into_owned();
    let command: Vec<String> = request.command.iter().map(text).collect();
    let mut record = Record::new(
        JobId::random()?,
        request.name.clone(),
        request.destination.clone(),
        command,
    );
    let directory = directory(&request.destination, request.cwd.clone())?;
    record.cwd = directory.as_ref().map(text);
    record.ephemeral = request.ephemeral;
    reserve(context, &record)?;
    Ok(Job { record, directory })
}

/// What a host says of an order: what it has started or why it has not, or that its answer was lost. The outer failure: it
/// did not leave.
type Asked = Result<Result<Result<Started, Failure>, Failure>, Failure>;

/// Asks a host for a job, by what sends the order.
fn launch(
    line: &mut Line<'_>,
    job: Job,
    request: &Request,
    send: &mut dyn FnMut(&mut Line<'_>, &Order<'_>) -> Asked,
) -> Launched {
    let Job {
        mut record,
        directory,
    } = job;
    let id = record.id.clone();
    let words = || -> Result<(String, String)> {
        Ok((
            job::random_hex::<16>()?,
            Meta::of(&record)
                .line()
                .context("the job can't be described")?,
        ))
    };
    let (cookie, meta) = match words() {
        Ok(both) => both,
        Err(error) => return Launched::NotStarted(record, error.into()),
    };
    let foreground = request.foreground.as_ref();
    let order = Order {
        id: &id,
        cookie: &cookie,
        meta: &meta,
        command: &request.command,
        env: &request.env,
        directory,
        input: request.input.as_deref(),
        merge: request.merge,
        timeout: request.timeout,
        spool: foreground.map(|foreground| foreground.spool),
        tether: foreground.and_then(|foreground| foreground.tether.clone()),
    };
    if let Err(failure) = line.connect() {
        return Launched::NotStarted(record, failure);
    }
    let stale = line.may_be_stale();
    let (mut again, mut wordless) = (false, 0);
    let started = loop {
        let answer = match send(line, &order) {
            Ok(answer) => answer,
            Err(failure) => return Launched::NotStarted(record, failure),
        };
        match answer {
            Ok(Ok(started)) => break started,
            Ok(Err(failure)) if again || wordless > 0 => {
                return after_a_break(line, record, failure);
            }
            Ok(Err(failure)) => return Launched::NotStarted(record, failure),
            // It may have been killed before it read anything, or in the middle; where there is none a second time, there
            // was none the first time.
            Err(failure) if failure.kind == Kind::NoShell => {
                wordless += 1;
                if !line.gives_another(wordless) {
                    return Launched::NotStarted(record, failure);
                }
            }
            // A connection that another command made may have been broken for long: then nothing has reached the host.
            // Should it have after all, the id is taken there, and that job is found.
            Err(failure)
                if failure.kind == Kind::Unreachable && stale && !again && is_absent(line, &id) =>
            {
                again = true;
            }
            Err(failure) => return after_a_break(line, record, failure),
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
            context.store.update([&spawned.record]);
            Ok(spawned)
        }
        Launched::NotStarted(record, failure) => {
            context.store.not_started(&record, failure.kind);
            Err(failure.into())
        }
        Launched::Unsure(failure) => Err(failure.into()),
    }
}

/// Whether the host, asked over a new connection, knows nothing of a job.
fn is_absent(line: &mut Line<'_>, id: &JobId) -> bool {
    line.hang_up();
    let host = line.host();
    let seen = line
        .shell()
        .and_then(|mut shell| look::see(&host, shell.as_mut(), &[id.as_str()]));
    seen.is_ok_and(|seen| {
        matches!(
            seen.as_slice(),
            [Seen {
                standing: Standing::Absent,
                ..
            }]
        )
    })
}

/// Sends the order for a job in the background.
fn detached(line: &mut Line<'_>, order: &Order<'_>) -> Asked {
    let host = line.host();
    let mut shell = line.shell()?;
    let answer = start(&host, shell.as_mut(), order);
    if let Ok(Ok(started)) = &answer {
        keep_relay(shell.as_mut(), order.id, started)?;
    }
    Ok(answer)
}

/// The directory to name to the host: on this machine a relative one is taken from here.
fn directory(destination: &Destination, cwd: Option<OsString>) -> Result<Option<OsString>> {
    if !destination.is_local() {
        return Ok(cwd);
    }
    let here = std::env::current_dir().context("the current directory can't be read")?;
    let home = cwd
        .as_ref()
        .is_some_and(|cwd| cwd.to_string_lossy().starts_with('~'));
    Ok(match cwd {
        Some(cwd) if home => Some(cwd),
        Some(cwd) => Some(here.join(PathBuf::from(cwd)).into_os_string()),
        None => Some(here.into_os_string()),
    })
}

/// Records the job before anything is asked of its host.
fn reserve(context: &mut Context, record: &Record) -> Result<(), Failure> {
    let Err(error) = context.store.insert(record) else {
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
        return context.store.insert(record);
    };
    if !context.allowed.has(holder.host()) {
        return Err(taken(&holder, " as far as is known"));
    }
    // What this machine knows may be old: only the host can say whether that job still runs.
    let policy = context.policy;
    let destination = holder.destination.clone();
    let mut line = Line::new(&destination, &policy);
    let host = line.host();
    let place = holder.job_dir();
    let seen = line
        .shell()
        .and_then(|mut shell| look::see(&host, shell.as_mut(), &[&place]));
    match seen {
        Ok(seen) => seen.iter().for_each(|seen| seen.update(&mut holder)),
        Err(failure) => {
            return Err(taken(&holder, &format!(" as far as is known ({failure})")));
        }
    }
    context.store.update([&holder]);
    if holder.state.is_finished() {
        context.store.insert(record)
    } else {
        Err(taken(&holder, ""))
    }
}

/// The host gave no answer that tells: looks whether the job runs, or never started.
fn after_a_break(line: &mut Line<'_>, mut record: Record, failure: Failure) -> Launched {
    let host = line.host();
    let mut seen = None;
    let began = Instant::now();
    for attempt in 0..LOOKS {
        line.hang_up();
        let answer = line
            .shell()
            .and_then(|mut shell| look::see(&host, shell.as_mut(), &[record.id.as_str()]));
        seen = match answer {
            Ok(mut seen) => seen.pop(),
            Err(failure) if failure.kind == Kind::Unreachable => None,
            // It would say the same again.
            Err(_) => break,
        };
        // What is about to start, or may still be on its way there, is given time.
        match seen.as_ref().map(|seen| seen.standing) {
            None | Some(Standing::Starting | Standing::Absent)
                if attempt + 1 < LOOKS && began.elapsed() < LOOKING =>
            {
                std::thread::sleep(BETWEEN_LOOKS);
            }
            _ => break,
        }
    }
    match seen {
        Some(seen) if seen.standing == Standing::Absent => Launched::NotStarted(record, failure),
        Some(seen)
            if !matches!(
                seen.standing,
                Standing::Starting | Standing::Elsewhere | Standing::Away | Standing::Foreign
            ) =>
        {
            seen.update(&mut record);
            Launched::Runs(Spawned {
                record,
                warning: None,
            })
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
