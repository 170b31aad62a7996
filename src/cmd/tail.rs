//! `tail`: passes a job's output on.

use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::args::{Common, ConnectArgs, FOR_HOST_ID, job_word};
use super::context::Context;
use super::jobs::not_there;
use super::{complete, values};
use crate::connection::{HostConnection, Policy, PrivateConnection, keep_trying};
use crate::error::{Failure, Kind, exit};
use crate::host::Destination;
use crate::job::{JobWord, Record};
use crate::remote::output::{From, Progress, Read, Sink, Wanted, read};
use crate::remote::{Note, Seen, Standing, Stream};
use crate::terminal::{self, Spinner};

/// Show what a job has written
#[derive(Args, Debug)]
pub struct Tail {
    /// The last N lines of each stream, from line N on, or all
    #[arg(
        short = 'n',
        long,
        value_name = "N|+N|all",
        default_value = "10",
        conflicts_with = "bytes",
        allow_hyphen_values = true,
        value_parser = values::lines
    )]
    lines: From,
    /// The last N bytes of each stream, or from byte N on
    #[arg(short = 'c', long, value_name = "N|+N", allow_hyphen_values = true, value_parser = values::bytes)]
    bytes: Option<From>,
    /// Go on until the job ends
    #[arg(short, long)]
    follow: bool,
    /// Standard output only
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,
    /// Standard error only
    #[arg(long)]
    stderr: bool,
    #[command(flatten)]
    common: Common,
    #[command(flatten, next_help_heading = FOR_HOST_ID)]
    connect: ConnectArgs,
    /// An id, a name, a unique id prefix, or HOST/ID: a job that this machine need not know
    #[arg(value_parser = job_word(), add = ArgValueCompleter::new(complete::any))]
    job: JobWord,
}

impl Tail {
    pub fn run(self) -> Result<u8, Failure> {
        let connect = self.connect.for_jobs(std::slice::from_ref(&self.job))?;
        let request = Request {
            out: !self.stderr,
            err: !self.stdout,
            from: self.bytes.unwrap_or(self.lines),
            follow: self.follow,
            brief: false,
            enough: None,
        };
        let mut context = Context {
            connect,
            ..self.common.reach().context()?
        };
        let mut spinner = Spinner::new("asking the host", !self.follow && !self.common.quiet);
        let mut broken = None;
        let result = tail(&mut context, &self.job, &request, &mut |stream, bytes| {
            spinner.stop();
            terminal::print_bytes(stream == Stream::Err, bytes).map_err(|error| {
                let failure = Failure::new(Kind::Failed, error.to_string());
                broken = Some(error);
                failure
            })
        });
        match broken {
            Some(error) => Err(terminal::unprinted(&error)),
            None => result.map(|_| exit::DONE),
        }
    }
}

/// The pause after a connection that broke.
const AFTER_A_BREAK: Duration = Duration::from_millis(200);

/// What to show of a job's output.
pub struct Request<'a> {
    /// Its standard output.
    pub out: bool,
    /// Its standard error.
    pub err: bool,
    /// Where to begin.
    pub from: From,
    /// Go on until the job ends.
    pub follow: bool,
    /// What is to come is not much, so the keeper's connection will do.
    pub brief: bool,
    /// Ends the reading once it holds: asked after all that comes, and several times a second. It does not change back.
    pub enough: Option<&'a (dyn Fn() -> bool + 'a)>,
}

impl Request<'_> {
    fn is_enough(&self) -> bool {
        self.enough.is_some_and(|enough| enough())
    }
}

/// A job whose output was passed on.
pub struct Tailed {
    /// The job as it stood before the first byte was read.
    #[cfg_attr(
        not(feature = "mcp"),
        allow(dead_code, reason = "an agent is told how the job stands")
    )]
    pub record: Record,
    /// The positions in both streams of the first bytes that were wanted.
    #[cfg_attr(
        not(feature = "mcp"),
        allow(dead_code, reason = "cursors are made of them")
    )]
    pub begin: [u64; 2],
}

/// Passes a job's output on to `sink`.
pub fn tail(
    context: &mut Context,
    word: &JobWord,
    request: &Request<'_>,
    sink: &mut Sink<'_>,
) -> Result<Tailed, Failure> {
    let mut record = context.resolve(word)?;
    let destination = record.destination.clone();
    let place = record.job_dir();
    let wanted = Wanted {
        place: &place,
        out: request.out,
        err: request.err,
        from: request.from,
        follow: request.follow,
        pause: None,
        enough: request.enough,
    };
    // What may be much gets a connection of its own: the keeper's is for short things.
    let policy = Policy {
        keeper: context.policy.keeper && (request.follow || is_short(request)),
        ..context.policy
    };
    let read = if request.follow && !request.brief && !destination.is_plain_local() {
        follow(&destination, &policy, &wanted, sink)?
    } else {
        // Gone on with behind what was passed on, should an old connection turn out to be broken.
        let mut progress = Progress::default();
        let mut line = HostConnection::new(&destination, &policy);
        let host = line.host();
        line.ask(|shell| read(&host, shell, &wanted, &mut progress, sink))?
    };
    let label = record.label();
    if record.is_unmet() && read.seen.standing == Standing::Absent {
        return Err(not_there(&record));
    }
    if let Some(failure) = unreadable(&label, &read.seen) {
        return Err(failure);
    }
    read.seen.update(&mut record);
    context.store.update([&record]);
    let begin = read.begin;
    if request.is_enough() {
        return Ok(Tailed { record, begin });
    }
    if read.cut {
        let message = format!(
            "{label}: its log was cut short or replaced while it was followed; what was written since is not shown"
        );
        return Err(Failure::new(Kind::Failed, message));
    }
    Ok(Tailed { record, begin })
}

/// Follows a log over as many connections as it takes, each byte once.
fn follow(
    destination: &Destination,
    policy: &Policy,
    wanted: &Wanted<'_>,
    sink: &mut Sink<'_>,
) -> Result<Read, Failure> {
    let host = destination.to_string();
    let mut progress = Progress::default();
    // The first connection is to be had at once, or not at all.
    let mut line = HostConnection::new(destination, policy);
    line.connect()?;
    let mut first = true;
    loop {
        let private = PrivateConnection::prepare(&line);
        let pause = || private.as_ref().is_some_and(PrivateConnection::is_ready);
        let wanted = Wanted {
            pause: Some(&pause),
            ..*wanted
        };
        let mut carried = 0;
        let mut pass = |stream: Stream, bytes: &[u8]| {
            carried += bytes.len() as u64;
            if let Some(private) = &private {
                private.carried(carried);
            }
            sink(stream, bytes)
        };
        let result = line
            .shell()
            .and_then(|mut shell| read(&host, shell.as_mut(), &wanted, &mut progress, &mut pass));
        let was_first = std::mem::take(&mut first);
        match result {
            Ok(read) if read.paused => {
                if let Some(private) = &private {
                    private.take_over(&mut line);
                }
                continue;
            }
            Err(failure) if failure.kind == Kind::Silent && was_first => return Err(failure),
            Err(failure) if failure.kind.is_outage() && !wanted.is_enough() => {
                (policy.warn)(&format!("{failure}; connecting again"));
            }
            other => return other,
        }
        // A host that takes every connection and breaks it is not asked in a circle.
        std::thread::sleep(AFTER_A_BREAK);
        let left = || {
            if wanted.is_enough() {
                Duration::ZERO
            } else {
                Duration::MAX
            }
        };
        line.hang_up();
        keep_trying(left, || line.connect())?;
    }
}

/// Whether what is asked for is certainly not much.
fn is_short(request: &Request<'_>) -> bool {
    let few = match request.from {
        From::LastLines(count) => count <= 1000,
        From::LastBytes(count) => count <= 256 << 10,
        From::Line(_) | From::Byte(_) | From::Behind { .. } => false,
    };
    request.brief || (few && !request.follow)
}

/// Why the host has no output of the job to give.
fn unreadable(label: &str, seen: &Seen) -> Option<Failure> {
    let (kind, why) = match seen.standing {
        Standing::Absent => (
            Kind::Failed,
            "its files are not on the host; it never started, or they were removed",
        ),
        Standing::Away => (
            Kind::Unreachable,
            "the directory of all jobs is missing on its host: is the file system mounted?",
        ),
        Standing::Running | Standing::Stopped if seen.note == Some(Note::NoDirectory) => (
            Kind::Failed,
            "it runs, but its files are gone from its host, and its output with them",
        ),
        Standing::Foreign => (
            Kind::Failed,
            "its directory is writable by other users, so it is not read",
        ),
        _ => return None,
    };
    Some(Failure::new(kind, format!("{label}: {why}")))
}
