//! `ssh_signal`: sends a signal to a job and optionally waits for its end.

use rmcp::schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::{JobAnswer, Problem};
use super::{Tool, ToolCall, wait};
use crate::cmd::deliver::{Report, SendOptions};
use crate::delivery::{SendOutcome, Via, ViaPolicy};
use crate::error::{Failure, Kind};
use crate::servers::operations::deliver;
use crate::signal::SignalWord;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct SendSignal {
    /// The job: its id, its name, a unique prefix of its id, or HOST/ID
    job_id: String,
    /// The signal: a name with or without SIG in any case, or a number on the job's system; 0 only asks whether it runs
    #[serde(default = "term")]
    #[schemars(schema_with = "signal_schema")]
    signal: Value,
    /// Wait up to this many milliseconds for the job to end, 30000 at most, to learn its exit status
    #[serde(default)]
    wait_ms: u64,
    /// Allow delivery by the job's own SSH channel, if one is held
    #[serde(default = "yes")]
    use_channel: bool,
    /// Allow delivery by kill on the host; without it, only the channel is used
    #[serde(default = "yes")]
    use_pid_fallback: bool,
}

fn term() -> Value {
    "TERM".into()
}

fn yes() -> bool {
    true
}

fn signal_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "integer"] })
}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    #[serde(flatten)]
    job: JobAnswer,
    /// The name with SIG
    signal: Option<String>,
    /// The signal's number on the job's host
    signal_number: Option<u8>,
    /// Whether the delivery was confirmed; null if the connection broke and the host can't be asked
    #[schemars(with = "Option<bool>")]
    sent: SendOutcome,
    sent_via_channel: bool,
    sent_via_pid: bool,
    /// The job's first process
    pid: Option<u32>,
    /// The job's exit status if it has ended: 128+n when signal n ended it
    exit_status: Option<u8>,
    still_running: Option<bool>,
}

impl Tool for SendSignal {
    type Answer = Answer;
    const NAME: &'static str = "ssh_signal";
    const TITLE: &'static str = "Signal a job";
    const DESCRIPTION: &'static str = "Send a signal to all processes of a job that ssh_spawn has started (its process \
        group), exactly once. Use it to end a job (TERM, then KILL if it still runs), to interrupt it (INT), to have it \
        reload (HUP), or to stop and continue it (STOP, CONT). With wait_ms it also waits for the end and gives the exit \
        status; signal 0 only asks whether the job runs. A job that has already ended is not an error: sent is false \
        then, and exit_status is given.";
    const DESTRUCTIVE: bool = true;

    fn is_long(&self) -> bool {
        self.wait_ms > 0
    }

    fn call(self, call: &mut ToolCall<'_>, answer: &mut Answer) -> Result<(), Problem> {
        answer.job.job_id = Some(self.job_id.clone());
        let word = self.signal.as_str().map(str::to_owned);
        let signal = word.unwrap_or_else(|| self.signal.to_string()).parse();
        let signal: SignalWord =
            signal.map_err(|error| Failure::usage(format!("signal: {error}")))?;
        answer.signal = Some(with_sig(&signal.to_string()));
        let via = match (self.use_channel, self.use_pid_fallback) {
            (true, true) => ViaPolicy::Any,
            (true, false) => ViaPolicy::Channel,
            (false, true) => ViaPolicy::Pid,
            (false, false) => {
                let message = "use_channel and use_pid_fallback can't both be false";
                return Err(Failure::usage(message).into());
            }
        };
        if self.is_long() && signal.is_existence_check() {
            let message =
                "signal 0 does not end a job: omit wait_ms, or follow the job with ssh_tail";
            return Err(Failure::usage(message).into());
        }
        let (_, job) = answer.job.find(call.context, &self.job_id)?;
        let sending = SendOptions {
            wait: self.is_long().then(|| wait(self.wait_ms)),
            via,
            ..SendOptions::default()
        };
        answer.fill(deliver(call.context, &job, signal, &sending)?)
    }
}

impl Answer {
    fn fill(&mut self, report: Report) -> Result<(), Problem> {
        if let Some(signal) = report.signal {
            self.signal = Some(with_sig(&signal.name()));
            self.signal_number = signal.number();
        }
        let outcome = report.outcome?;
        let record = &outcome.record;
        self.job.job_id = Some(record.id.to_string());
        self.pid = record.pid;
        self.exit_status = record.exit_status;
        self.sent = outcome.sent;
        self.sent_via_channel = outcome.sent.via() == Some(Via::Channel);
        self.sent_via_pid = outcome.sent.via() == Some(Via::Pid);
        let has_ended = record.state.is_finished().then_some(false);
        self.still_running = outcome.still_running.or(has_ended);
        let Some(failure) = outcome.error else {
            // As far as is known, a job that was just signalled still runs.
            self.still_running.get_or_insert(true);
            return Ok(());
        };
        match failure.kind {
            Kind::NotRunning | Kind::Lost => {
                self.still_running = Some(false);
                Ok(())
            }
            Kind::Failed => Err(Problem {
                kind: match record.pid {
                    Some(_) => "delivery_failed",
                    None => "no_pid",
                },
                ..failure.into()
            }),
            _ => Err(failure.into()),
        }
    }
}

fn with_sig(name: &str) -> String {
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        name.to_owned()
    } else {
        format!("SIG{name}")
    }
}
