//! `ssh_exec`: runs a command to its end, and gives what it has written.
//!
//! It is a job like any other: the time limit is its host's to keep, so it is kept whatever becomes of this server. Where
//! the answer has all of it, the job is forgotten at once.

use std::time::{Duration, Instant};

use rmcp::schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answer::Problem;
use super::{Call, Class, Tool};
use crate::cmd::{start, tail};
use crate::job::{JobId, JobWord, Record};
use crate::remote::Stream;
use crate::remote::output::From as TailStart;
use crate::servers::one::{await_end, remove};
use crate::servers::start::{Start, shell_line};

/// How much of each stream an answer holds, in bytes.
const OUTPUT: usize = 64 << 10;
/// How long a host may take to answer beyond the time limit: `ConnectTimeout` where no configuration sets one.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// The longest time limit, in milliseconds.
const TIMEOUT_MAX: u64 = 24 * 3600 * 1000;
/// How long a job may take to end once its time is up: its host sends KILL after ten seconds.
const ENDING: Duration = Duration::from_secs(20);

pub struct Exec;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct Params {
    /// Where: `local`, an alias of the server's ssh configuration, or [user@]host[:port]
    host: String,
    /// One line for /bin/sh
    command: String,
    /// How long it may run, in milliseconds; then its whole process group is ended
    #[serde(default = "timeout")]
    timeout_ms: u64,
    /// The id of the job: known before it starts, so that every answer can tell it.
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
    /// Whether what came before that is left out
    stdout_cut: bool,
    stderr_cut: bool,
    /// 128+n when signal n ended it
    exit_status: Option<u8>,
    /// Whether it was ended because its time was up
    timed_out: bool,
    /// The job, where it was not forgotten at once: its output was cut, or it is not known to have ended. Read it with
    /// ssh_tail, then remove it with ssh_remove_job
    job_id: Option<String>,
}

impl Tool for Exec {
    type Params = Params;
    type Answer = Answer;
    const NAME: &'static str = "ssh_exec";
    const TITLE: &'static str = "Run a command";
    const DESCRIPTION: &'static str = "Run a command on a host to its end, and get its output and exit status. Use it \
        for what takes up to a minute or so: looking around, editing files, checking something. For all that takes longer \
        use ssh_spawn. A command that exits with something else than 0 is no error: look at exit_status. Of long output \
        the end is given.";
    const DESTRUCTIVE: bool = true;

    fn class(_params: &Params) -> Class {
        Class::Long
    }

    fn late(params: &Params) -> Option<(Duration, Answer)> {
        let answer = Answer {
            host: Some(params.host.clone()),
            job_id: params.id.as_ref().ok().map(JobId::to_string),
            ..Answer::default()
        };
        Some((
            Duration::from_millis(params.timeout_ms) + ANSWER_WAIT,
            answer,
        ))
    }

    fn call(call: &mut Call, params: Params, answer: &mut Answer) -> Result<(), Problem> {
        answer.host = Some(params.host.clone());
        if params.timeout_ms == 0 || params.timeout_ms > TIMEOUT_MAX {
            return Err(Problem::bad_param(format!(
                "timeout_ms: from 1 to {TIMEOUT_MAX}; for longer ones use ssh_spawn"
            )));
        }
        let timeout = Duration::from_millis(params.timeout_ms);
        let start = Start {
            host: params.host,
            command: shell_line(params.command),
            ..Start::default()
        };
        let id = params.id?;
        answer.job_id = Some(id.to_string());
        let request = start::Request {
            id: Some(id),
            start_by: Some(Instant::now() + timeout + ANSWER_WAIT),
            ..start.request(&call.context, Some(timeout))?
        };
        let until = Instant::now() + timeout + ENDING;
        let spawned = start::spawn(&mut call.context, request)?;
        let record = ended(call, &spawned.record, until)?;
        answer.exit_status = record.exit_status;
        answer.timed_out = record.timed_out;
        answer.read(call, &record)?;
        if !answer.stdout_cut && !answer.stderr_cut {
            remove(&mut call.context, &JobWord::from(&record), false)?;
            answer.job_id = None;
        }
        Ok(())
    }
}

/// The job once it has ended.
fn ended(call: &mut Call, record: &Record, until: Instant) -> Result<Record, Problem> {
    let ended = await_end(&mut call.context, &JobWord::from(record), until, &call.gone)?.record;
    if ended.state.is_finished() {
        return Ok(ended);
    }
    let hint = "it has not ended, not even by KILL: look at it with ssh_list_jobs";
    Err(Problem::unexpected(format!("{}: {hint}", record.label())))
}

impl Answer {
    /// The ends of both streams.
    fn read(&mut self, call: &mut Call, record: &Record) -> Result<(), Problem> {
        let request = tail::Request {
            out: true,
            err: true,
            // One more than is given, to see whether there is more.
            from: TailStart::LastBytes(OUTPUT as u64 + 1),
            follow: false,
            brief: true,
            enough: None,
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        tail::tail(
            &mut call.context,
            &JobWord::from(record),
            &request,
            &mut |stream, bytes| {
                let all = if stream == Stream::Out {
                    &mut out
                } else {
                    &mut err
                };
                all.extend_from_slice(bytes);
                // What is written while it is read may be more than was asked for.
                let excess = all.len().saturating_sub(2 * OUTPUT);
                all.drain(..excess);
                Ok(())
            },
        )?;
        (self.stdout, self.stdout_cut) = end(&out);
        (self.stderr, self.stderr_cut) = end(&err);
        Ok(())
    }
}

/// The end of what was written, and whether more was.
fn end(bytes: &[u8]) -> (String, bool) {
    let at = bytes.len().saturating_sub(OUTPUT);
    (
        String::from_utf8_lossy(bytes.get(at..).unwrap_or_default()).into_owned(),
        at > 0,
    )
}
