//! `ssh_exec`: runs a command to its end and returns its output.
//!
//! The command is a job like any other: its host enforces the time limit, even if this server dies. The script that
//! starts the job sends the job's output once the job has ended. If that script is interrupted, the job is waited for
//! and read like other jobs. If the result holds the whole output, the job is removed at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use rmcp::schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answer::Problem;
use super::{Tool, ToolCall};
use crate::cmd::context::Context;
use crate::cmd::start::{JobStreams, Request, spawn_and_collect};
use crate::cmd::tail;
use crate::connection::{HostConnection, Policy, ShellInput};
use crate::error::{Failure, Kind};
use crate::host::Host;
use crate::job::{EndedBy, JobId, JobWord, Record, State};
use crate::remote::Stream;
use crate::remote::output::StartPosition as TailStart;
use crate::remote::stream::{self, JobEnd, Runner};
use crate::servers::operations::{await_end, remove};
use crate::servers::start::NewJob;

/// Maximum output per stream in a result, in bytes: the end of the stream.
const OUTPUT_MAX: usize = 64 << 10;
/// Time that a host may take to respond beyond the time limit, if its ConnectTimeout is not known.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// Maximum time limit, in milliseconds.
const TIMEOUT_MAX: u64 = 24 * 3600 * 1000;
/// Maximum time for a job to end after its time limit. Its host sends KILL after ten seconds.
const END_WAIT: Duration = Duration::from_secs(20);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct Exec {
    /// Where: `local`, an alias of the server's ssh configuration, or [user@]host[:port]
    #[schemars(with = "String")]
    host: Host,
    /// A line for /bin/sh
    command: String,
    /// Terminate the command and its process group after this many milliseconds
    #[serde(default = "timeout")]
    timeout_ms: u64,
    /// The id of the job, chosen before it starts so that every answer has it.
    #[serde(skip, default = "JobId::random")]
    #[schemars(skip)]
    id: anyhow::Result<JobId>,
}

fn timeout() -> u64 {
    60_000
}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    host: Option<String>,
    /// The end of its standard output
    stdout: String,
    /// The end of its standard error
    stderr: String,
    /// Whether earlier output is left out
    stdout_cut: bool,
    stderr_cut: bool,
    /// 128+n when signal n ended it
    exit_status: Option<u8>,
    /// Whether it was terminated at the time limit
    timed_out: bool,
    /// The job, if it was not removed at once: its output was cut, or it may still run. Read it with ssh_tail, then
    /// remove it with ssh_remove_job
    job_id: Option<String>,
}

impl Tool for Exec {
    type Answer = Answer;
    const NAME: &'static str = "ssh_exec";
    const TITLE: &'static str = "Run a command";
    const DESCRIPTION: &'static str = "Run a command on a host to its end, and get its output and exit status. Use it \
        for what takes up to a minute: looking around, editing files, checking something. For anything longer use \
        ssh_spawn. A command that exits with a status other than 0 is not an error: look at exit_status. Of long output, \
        only the end is given.";
    const DESTRUCTIVE: bool = true;

    fn is_long(&self) -> bool {
        true
    }

    fn late(&self) -> (Duration, Answer) {
        let answer = Answer {
            host: Some(self.host.to_string()),
            job_id: self.id.as_ref().ok().map(JobId::to_string),
            ..Answer::default()
        };
        (Duration::from_millis(self.timeout_ms) + ANSWER_WAIT, answer)
    }

    fn call(self, call: &mut ToolCall<'_>, answer: &mut Answer) -> Result<(), Problem> {
        answer.host = Some(self.host.to_string());
        if self.timeout_ms == 0 || self.timeout_ms > TIMEOUT_MAX {
            let message =
                format!("timeout_ms: from 1 to {TIMEOUT_MAX}; for longer jobs use ssh_spawn");
            return Err(Failure::usage(message).into());
        }
        let (now, timeout) = (Instant::now(), Duration::from_millis(self.timeout_ms));
        let id = self.id?;
        let mut request = NewJob::new(self.host, self.command).request(call.context)?;
        request.job.timeout = Some(timeout);
        request.id = Some(id.clone());
        request.last = Some(OUTPUT_MAX as u64);
        let started = start(call, request, now, timeout);
        // A job without a record was not started.
        if started.is_ok() || matches!(call.context.store.get(&id), Ok(Some(_))) {
            answer.job_id = Some(id.to_string());
        }
        let (started, ending) = started?;
        let job = JobWord::from(&started);
        if let Some((end, ends)) = ending {
            answer.exit_status = end.exit_status;
            answer.timed_out = end.ended_by == Some(EndedBy::Timeout);
            answer.take(ends);
            if answer.is_whole() {
                call.context.store.remove(&started);
                answer.job_id = None;
            }
            return Ok(());
        }
        let until = Instant::now() + timeout + END_WAIT;
        let record = await_end(call.context, &job, until, call.gone)?.record;
        if !record.state.is_finished() {
            let message = "still running, even after KILL: look at it with ssh_list_jobs";
            let message = format!("{}: {message}", record.label());
            return Err(Failure::new(Kind::Failed, message).into());
        }
        if record.state == State::Lost {
            return Err(Failure::lost(&record.label(), record.why_lost()).into());
        }
        answer.exit_status = record.exit_status;
        answer.timed_out = record.timed_out;
        answer.read(call.context, &job)?;
        if answer.is_whole() {
            remove(call.context, &job, false)?;
            answer.job_id = None;
        }
        Ok(())
    }
}

/// Starts the job. Also returns its end and its output, unless the script is interrupted.
fn start(
    call: &mut ToolCall<'_>,
    mut request: Request,
    begun: Instant,
    timeout: Duration,
) -> Result<(Record, Option<(JobEnd, OutputTails)>), Failure> {
    let policy = Policy {
        starts: true,
        ..call.context.policy
    };
    let destination = request.destination.clone();
    let mut connection = HostConnection::new(&destination, &policy);
    let wait = connection.connect_timeout().unwrap_or(ANSWER_WAIT);
    request.start_by = Some(begun + timeout + wait);
    call.limit.send_replace(timeout + wait);
    let (spawned, flow) = spawn_and_collect(call.context, &connection, &request)?;
    let Some(JobStreams {
        mut shell,
        mut hearing,
    }) = flow
    else {
        return Ok((spawned.record, None));
    };
    let mut reader = Reader {
        gone: call.gone,
        input: shell.input().ok().map(Arc::new),
        ends: OutputTails::default(),
    };
    let host = connection.host();
    let end = stream::follow_started(&host, shell.as_mut(), &mut hearing, &mut reader);
    let mut record = spawned.record;
    // After an interruption, the caller asks about the job again.
    let end = end.ok().flatten().filter(|end| end.state == State::Exited);
    if let Some(end) = &end {
        end.update(&mut record);
        call.context.store.update([&record]);
    }
    Ok((record, end.map(|end| (end, reader.ends))))
}

/// The last `OUTPUT_MAX` bytes of both streams.
#[derive(Default)]
struct OutputTails {
    texts: [Vec<u8>; 2],
    cut: [bool; 2],
}

impl OutputTails {
    fn add(&mut self, stream: Stream, bytes: &[u8]) {
        let index = usize::from(stream == Stream::Err);
        self.texts[index].extend_from_slice(bytes);
        // Output written in the meantime is sent too, so there may be more than was requested.
        let excess = self.texts[index].len().saturating_sub(OUTPUT_MAX);
        self.texts[index].drain(..excess);
        self.cut[index] |= excess > 0;
    }
}

/// Receives the output and the end of the job.
struct Reader<'a> {
    gone: &'a CancellationToken,
    input: Option<Arc<ShellInput>>,
    ends: OutputTails,
}

impl Runner for Reader<'_> {
    fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        self.ends.add(stream, bytes);
        Ok(())
    }

    fn at(&mut self, stream: Stream, position: u64) {
        self.ends.cut[usize::from(stream == Stream::Err)] |= position > 0;
    }

    fn ping(&mut self, line: &[u8]) {
        if let Some(input) = &self.input {
            input.try_write(line);
        }
    }

    fn wants_pause(&self) -> bool {
        self.gone.is_cancelled()
    }

    fn finish(&mut self, line: &str, patience: Duration) -> bool {
        self.input
            .as_ref()
            .is_none_or(|input| input.finish(line, patience))
    }

    fn may_forget(&mut self, end: &JobEnd) -> bool {
        end.state == State::Exited && !self.ends.cut.contains(&true)
    }
}

impl Answer {
    /// Reads the last `OUTPUT_MAX` bytes of both streams.
    fn read(&mut self, context: &mut Context, job: &JobWord) -> Result<(), Failure> {
        let request = tail::Request {
            out: true,
            err: true,
            from: TailStart::LastBytes(OUTPUT_MAX as u64),
            follow: false,
            brief: true,
            enough: None,
            gone: &|_| (),
        };
        let mut ends = OutputTails::default();
        let read = tail::tail(context, job, &request, &mut |stream, bytes| {
            ends.add(stream, bytes);
            Ok(())
        })?;
        for (cut, begin) in ends.cut.iter_mut().zip(read.begin) {
            *cut |= begin > 0;
        }
        self.take(ends);
        Ok(())
    }

    fn take(&mut self, ends: OutputTails) {
        [self.stdout_cut, self.stderr_cut] = ends.cut;
        [self.stdout, self.stderr] = ends
            .texts
            .map(|text| String::from_utf8_lossy(&text).into_owned());
    }

    fn is_whole(&self) -> bool {
        !self.stdout_cut && !self.stderr_cut
    }
}
