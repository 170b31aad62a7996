//! `ssh_exec`: runs a command to its end, and gives what it wrote.
//!
//! It is a job like any other: its host enforces the time limit, even if this server dies. If the answer holds the whole
//! output, the job is removed at once.

use std::time::{Duration, Instant};

use rmcp::schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answer::Problem;
use super::{Call, Tool};
use crate::cmd::context::Context;
use crate::cmd::{start, tail};
use crate::error::{Failure, Kind};
use crate::host::Host;
use crate::job::{JobId, JobWord};
use crate::remote::Stream;
use crate::remote::output::From as TailStart;
use crate::servers::one::{await_end, remove};
use crate::servers::start::NewJob;

/// The part of each stream that an answer holds, in bytes.
const OUTPUT_MAX: usize = 64 << 10;
/// How long a host may take to answer beyond the time limit: the default ConnectTimeout.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// The longest time limit, in milliseconds.
const TIMEOUT_MAX: u64 = 24 * 3600 * 1000;
/// How long a job may take to end after its time limit: its host sends KILL after ten seconds.
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

    fn call(self, call: &mut Call<'_>, answer: &mut Answer) -> Result<(), Problem> {
        answer.host = Some(self.host.to_string());
        if self.timeout_ms == 0 || self.timeout_ms > TIMEOUT_MAX {
            let message =
                format!("timeout_ms: from 1 to {TIMEOUT_MAX}; for longer jobs use ssh_spawn");
            return Err(Failure::usage(message).into());
        }
        let (now, timeout) = (Instant::now(), Duration::from_millis(self.timeout_ms));
        let id = self.id?;
        answer.job_id = Some(id.to_string());
        let mut request = NewJob::new(self.host, self.command).request(call.context)?;
        request.job.timeout = Some(timeout);
        request.id = Some(id);
        request.start_by = Some(now + timeout + ANSWER_WAIT);
        let started = start::spawn(call.context, request)?.record;
        let job = JobWord::from(&started);
        let until = Instant::now() + timeout + END_WAIT;
        let record = await_end(call.context, &job, until, call.gone)?.record;
        if !record.state.is_finished() {
            let message = "still running, even after KILL: look at it with ssh_list_jobs";
            let message = format!("{}: {message}", record.label());
            return Err(Failure::new(Kind::Failed, message).into());
        }
        answer.exit_status = record.exit_status;
        answer.timed_out = record.timed_out;
        answer.read(call.context, &job)?;
        if !answer.stdout_cut && !answer.stderr_cut {
            remove(call.context, &job, false)?;
            answer.job_id = None;
        }
        Ok(())
    }
}

impl Answer {
    /// Reads the ends of both streams.
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
        let mut cut = [false; 2];
        let mut texts = [Vec::new(), Vec::new()];
        let read = tail::tail(context, job, &request, &mut |stream, bytes| {
            let index = usize::from(stream == Stream::Err);
            texts[index].extend_from_slice(bytes);
            // What is written meanwhile comes too.
            let excess = texts[index].len().saturating_sub(OUTPUT_MAX);
            texts[index].drain(..excess);
            cut[index] |= excess > 0;
            Ok(())
        })?;
        [self.stdout_cut, self.stderr_cut] =
            [0, 1].map(|index| cut[index] || read.begin[index] > 0);
        [self.stdout, self.stderr] = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok(())
    }
}
