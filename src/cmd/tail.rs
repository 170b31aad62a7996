//! `tail`: shows a job's output.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::args::{Common, ConnectArgs, FOR_HOST_ID, job_word};
use super::context::Context;
use super::jobs::not_on_host;
use super::{complete, values};
use crate::connection::{HostConnection, Policy, PrivateConnection, keep_trying};
use crate::error::{Failure, Kind, exit};
use crate::host::Destination;
use crate::job::{JobWord, Record};
use crate::remote::output::{
    MissingOutput, Progress, ReadRequest, ReadResult, Ring, Sink, StartPosition, read,
};
use crate::remote::{JobNote, Observation, ObservedState, Stream};
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
    lines: StartPosition,
    /// The last N bytes of each stream, or from byte N on
    #[arg(short = 'c', long, value_name = "N|+N", allow_hyphen_values = true, value_parser = values::bytes)]
    bytes: Option<StartPosition>,
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
    /// An id, a name, a unique id prefix, or HOST/ID, which this machine need not have a record of
    #[arg(value_parser = job_word(), add = ArgValueCompleter::new(complete::any))]
    job: JobWord,
}

impl Tail {
    pub fn run(self) -> Result<u8, Failure> {
        let connect = self.connect.for_jobs(std::slice::from_ref(&self.job))?;
        let missing = RefCell::new(MissingBytes::default());
        let request = Request {
            out: !self.stderr,
            err: !self.stdout,
            from: self.bytes.unwrap_or(self.lines),
            follow: self.follow,
            brief: false,
            enough: None,
            gone: &|gone| missing.borrow_mut().add(gone),
        };
        let mut context = Context {
            connect,
            ..self.common.reach().context()?
        };
        let mut spinner = Spinner::new("asking the host", !self.follow && !self.common.quiet);
        let mut broken = None;
        let result = tail(&mut context, &self.job, &request, &mut |stream, bytes| {
            spinner.stop();
            missing.borrow_mut().print_note(self.common, false);
            terminal::print_bytes(stream == Stream::Err, bytes).map_err(|error| {
                let failure = Failure::new(Kind::Failed, error.to_string());
                broken = Some(error);
                failure
            })
        });
        spinner.stop();
        missing.borrow_mut().print_note(self.common, true);
        if let Some(error) = broken {
            return Err(terminal::output_failure(&error));
        }
        let tailed = result?;
        if tailed.ring.is_some_and(|ring| ring.has_lost) {
            let label = tailed.record.label();
            self.common.note(&format!(
                "{label}: the disk there was full, and some of the output is lost"
            ));
        }
        Ok(exit::DONE)
    }
}

/// Requested output that is gone from the host, for notes to the user.
#[derive(Default)]
struct MissingBytes {
    /// Number of bytes not reported yet.
    bytes: u64,
    /// The job's label, and its `--log-max`.
    label_and_max: [String; 2],
    noted_at: Option<Instant>,
}

impl MissingBytes {
    fn add(&mut self, gone: &MissingOutput) {
        self.bytes += gone.bytes;
        self.label_and_max = [gone.label, gone.max].map(str::to_owned);
    }

    /// Prints a note, but not every time: a slow reader may fall behind again and again.
    fn print_note(&mut self, common: Common, last: bool) {
        if self.bytes > 0 && (last || self.noted_at.is_none_or(|at| at.elapsed() >= NOTE_INTERVAL))
        {
            let (size, [label, max]) = (size(self.bytes), &self.label_and_max);
            common.note(&format!(
                "{label}: {size} of its output are gone (--log-max {max})"
            ));
            (self.bytes, self.noted_at) = (0, Some(Instant::now()));
        }
    }
}

/// A number of bytes for a message.
fn size(bytes: u64) -> String {
    let mut tenths = bytes;
    for unit in ["kB", "MB", "GB", "TB"] {
        if tenths < 1000 && unit == "kB" {
            return format!("{bytes} bytes");
        }
        tenths /= if unit == "kB" { 100 } else { 1000 };
        if tenths < 10_000 {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{} TB", tenths / 10)
}

/// Minimum interval between two notes on output that is gone.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of bytes read over the connection that a host's commands share.
const SHARED_BYTES_MAX: u64 = 256 << 10;
/// Pause before reconnecting after a connection broke.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// What to show of a job's output.
pub struct Request<'a> {
    /// Include standard output.
    pub out: bool,
    /// Include standard error.
    pub err: bool,
    /// Where to begin.
    pub from: StartPosition,
    /// Go on until the job ends.
    pub follow: bool,
    /// Little output is expected, so the keeper's connection is used throughout.
    pub brief: bool,
    /// Ends the reading once it returns true. It is called after each read and several times a second, and must not
    /// change back.
    pub enough: Option<&'a (dyn Fn() -> bool + 'a)>,
    /// Called with output that is gone from the host.
    pub gone: &'a dyn Fn(&MissingOutput<'_>),
}

impl Request<'_> {
    fn is_enough(&self) -> bool {
        self.enough.is_some_and(|enough| enough())
    }
}

/// A job whose output was passed on.
pub struct Tailed {
    /// The job's record, in its state before the first byte was read.
    pub record: Record,
    /// Set if the job was started with `--log-max`.
    pub ring: Option<Ring>,
    /// See [`ReadResult::begin`].
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
    let label = record.label();
    let gone = |gone: &MissingOutput<'_>| {
        (request.gone)(&MissingOutput {
            label: &label,
            ..*gone
        });
    };
    let wanted = ReadRequest {
        place: &place,
        out: request.out,
        err: request.err,
        from: request.from,
        follow: request.follow,
        most: None,
        pause: None,
        enough: request.enough,
        gone: &gone,
    };
    let policy = context.policy;
    let read = if request.follow && !request.brief && !destination.is_plain_local() {
        follow(&destination, &policy, &wanted, sink)?
    } else {
        // If an old connection turns out to be broken, reading continues after the output already passed on.
        let mut progress = Progress::default();
        let mut connection = HostConnection::new(&destination, &policy);
        let host = connection.host();
        let is_shared = policy.keeper && !destination.is_plain_local() && !is_short(request);
        let some = ReadRequest {
            most: is_shared.then_some(SHARED_BYTES_MAX),
            ..wanted
        };
        let first = connection.ask(|shell| read(&host, shell, &some, &mut progress, sink))?;
        if first.paused {
            // Long output gets a private connection: the keeper's is for short transfers.
            let policy = Policy {
                keeper: false,
                ..policy
            };
            let mut connection = HostConnection::new(&destination, &policy);
            connection.ask(|shell| read(&host, shell, &wanted, &mut progress, sink))?
        } else {
            first
        }
    };
    if record.is_placeholder() && read.seen.observed == ObservedState::Absent {
        return Err(not_on_host(&record));
    }
    if let Some(failure) = unreadable(&label, &read.seen) {
        return Err(failure);
    }
    read.seen.update(&mut record);
    context.store.update([&record]);
    let (ring, begin) = (read.ring, read.begin);
    let tailed = Tailed {
        record,
        ring,
        begin,
    };
    if request.is_enough() {
        return Ok(tailed);
    }
    if read.truncated {
        let message = format!(
            "{label}: its log was cut short or replaced while it was followed; what was written since is not shown"
        );
        return Err(Failure::new(Kind::Failed, message));
    }
    Ok(tailed)
}

/// Follows a log over as many connections as needed. Passes each byte on once.
fn follow(
    destination: &Destination,
    policy: &Policy,
    wanted: &ReadRequest<'_>,
    sink: &mut Sink<'_>,
) -> Result<ReadResult, Failure> {
    let host = destination.to_string();
    let mut progress = Progress::default();
    // The first connection is tried only once.
    let mut connection = HostConnection::new(destination, policy);
    connection.connect()?;
    let mut first = true;
    loop {
        let private = PrivateConnection::prepare(&connection);
        let pause = || private.as_ref().is_some_and(PrivateConnection::is_ready);
        let wanted = ReadRequest {
            pause: Some(&pause),
            ..*wanted
        };
        let mut carried = 0;
        let mut pass = |stream: Stream, bytes: &[u8]| {
            carried += bytes.len() as u64;
            if let Some(private) = &private {
                private.count_bytes(carried);
            }
            sink(stream, bytes)
        };
        let result = connection
            .shell()
            .and_then(|mut shell| read(&host, shell.as_mut(), &wanted, &mut progress, &mut pass));
        let was_first = std::mem::take(&mut first);
        match result {
            Ok(read) if read.paused => {
                if let Some(private) = &private {
                    private.take_over(&mut connection);
                }
                continue;
            }
            Err(failure) if failure.kind == Kind::Silent && was_first => return Err(failure),
            Err(failure) if failure.kind.is_outage() && !wanted.is_enough() => {
                (policy.warn)(&format!("{failure}; connecting again"));
            }
            other => return other,
        }
        // A host that accepts every connection and then breaks it must not cause a busy loop.
        std::thread::sleep(RECONNECT_PAUSE);
        let left = || {
            if wanted.is_enough() {
                Duration::ZERO
            } else {
                Duration::MAX
            }
        };
        connection.close();
        keep_trying(left, || connection.connect())?;
    }
}

/// Whether the requested output is known to be short.
fn is_short(request: &Request<'_>) -> bool {
    let few = match request.from {
        StartPosition::LastLines(count) => count <= 1000,
        StartPosition::LastBytes(count) => count <= 256 << 10,
        StartPosition::Line(_) | StartPosition::Byte(_) | StartPosition::Behind { .. } => false,
    };
    request.brief || (few && !request.follow)
}

/// Why a finished job that the host knows has no output there.
pub const OUTPUT_REMOVED: &str =
    "its output was removed from its host, as `run` without --keep does once it is delivered";

/// Why the host can't provide the job's output, if so.
fn unreadable(label: &str, seen: &Observation) -> Option<Failure> {
    let (kind, why) = match seen.observed {
        ObservedState::Absent => (
            Kind::Failed,
            "its files are not on the host; it never started, or they were removed",
        ),
        ObservedState::DirMissing => (
            Kind::Unreachable,
            "the directory of all jobs is missing on its host: is the file system mounted?",
        ),
        ObservedState::Running | ObservedState::Stopped
            if seen.note == Some(JobNote::NoDirectory) =>
        {
            (
                Kind::Failed,
                "it runs, but its files are gone from its host, and its output with them",
            )
        }
        ObservedState::Untrusted => (
            Kind::Failed,
            "its directory is writable by other users, so it is not read",
        ),
        _ if seen.note == Some(JobNote::NoDirectory) => (Kind::Failed, OUTPUT_REMOVED),
        _ => return None,
    };
    Some(Failure::new(kind, format!("{label}: {why}")))
}
