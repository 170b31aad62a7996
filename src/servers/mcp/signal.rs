//! `ssh_signal`: sends a signal to a job, and waits for what comes of it.

use rmcp::schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::Problem;
use super::{Call, Class, Tool};
use crate::cmd::deliver::{Report, Sending};
use crate::delivery::{Sent, Via, Ways};
use crate::error::Kind;
use crate::servers::one::{deliver, job};
use crate::signal::SignalWord;

pub struct Signal;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct Params {
    /// The job: its id, its name, the unique beginning of its id, or HOST/ID
    job_id: String,
    /// The signal: a name with or without SIG in any case, or a number of the job's system; 0 only asks whether it runs
    #[serde(default = "term")]
    #[schemars(schema_with = "signal_schema", default = "term")]
    signal: Value,
    /// Wait so many milliseconds for the job to end, 30000 at most; the answer then has the real exit status
    #[serde(default)]
    wait_ms: u64,
    /// The signal may go by the job's own SSH channel, where one is held
    #[serde(default = "yes")]
    use_channel: bool,
    /// The signal may go by a kill on the host; with false, by the channel alone
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

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    /// The job's id, or the word that stood for it
    job_id: Option<String>,
    host: Option<String>,
    /// With SIG in front
    signal: Option<String>,
    /// What the signal's number is on the job's host
    signal_number: Option<u8>,
    /// Whether its delivery was confirmed; null when the connection broke and that can't be found out
    sent: Option<bool>,
    sent_via_channel: bool,
    sent_via_pid: bool,
    /// The job's first process
    pid: Option<u32>,
    /// The job's exit status if it has ended: 128+n when signal n ended it
    exit_status: Option<u8>,
    still_running: Option<bool>,
}

impl Default for Answer {
    /// Nothing was sent, and nothing is known.
    fn default() -> Self {
        Self {
            job_id: None,
            host: None,
            signal: None,
            signal_number: None,
            sent: Some(false),
            sent_via_channel: false,
            sent_via_pid: false,
            pid: None,
            exit_status: None,
            still_running: None,
        }
    }
}

impl Tool for Signal {
    type Params = Params;
    type Answer = Answer;
    const NAME: &'static str = "ssh_signal";
    const TITLE: &'static str = "Signal a job";
    const DESCRIPTION: &'static str = "Send a signal to all processes of a job that ssh_spawn has started (its process \
        group), exactly once. Use it to end a job (TERM, then KILL if it still runs), to interrupt it (INT), to have it \
        reload (HUP), or to stop and continue it (STOP, CONT). With wait_ms it also waits for the end, so that you learn \
        the exit status; signal 0 only asks whether the job runs. A job that had ended already is no error: sent is false \
        then, and exit_status is there.";
    const DESTRUCTIVE: bool = true;

    fn class(params: &Params) -> Class {
        if params.wait_ms > 0 {
            Class::Long
        } else {
            Class::Short
        }
    }

    fn call(call: &mut Call, params: Params, answer: &mut Answer) -> Result<(), Problem> {
        answer.job_id = Some(params.job_id.clone());
        let signal = word(&params.signal)?;
        answer.signal = Some(with_sig(&signal.to_string()));
        let ways = match (params.use_channel, params.use_pid_fallback) {
            (true, true) => Ways::Any,
            (true, false) => Ways::Channel,
            (false, true) => Ways::Pid,
            (false, false) => {
                return Err(Problem::bad_param(
                    "use_channel and use_pid_fallback are both false: no way is left",
                ));
            }
        };
        let waits = params.wait_ms > 0;
        if waits && signal.is_existence_check() {
            return Err(Problem::bad_param(
                "signal 0 ends no job: leave wait_ms out, or follow the job with ssh_tail",
            ));
        }
        let (record, job) = job(&call.context, &params.job_id)?;
        answer.host = Some(record.host().to_string());
        let wait = waits.then(|| super::wait(params.wait_ms));
        let sending = Sending {
            wait,
            via: ways,
            ..Sending::default()
        };
        answer.tell(deliver(&mut call.context, &job, signal, &sending)?)
    }
}

impl Answer {
    fn tell(&mut self, report: Report) -> Result<(), Problem> {
        if let Some(signal) = report.signal {
            self.signal = Some(with_sig(&signal.name()));
            self.signal_number = signal.number();
        }
        let outcome = report.outcome?;
        let record = &outcome.record;
        self.job_id = Some(record.id.to_string());
        self.pid = record.pid;
        self.exit_status = record.exit_status;
        self.sent = match outcome.sent {
            Sent::No => Some(false),
            Sent::Yes(_) => Some(true),
            Sent::Unknown => None,
        };
        self.sent_via_channel = outcome.sent == Sent::Yes(Via::Channel);
        self.sent_via_pid = outcome.sent == Sent::Yes(Via::Pid);
        self.still_running = outcome
            .still_running
            .or(record.state.is_finished().then_some(false));
        match outcome.error {
            Some(failure) if matches!(failure.kind, Kind::NotRunning | Kind::Lost) => {
                self.still_running = Some(false);
                Ok(())
            }
            Some(failure) if failure.kind == Kind::Failed && record.pid.is_none() => {
                Err(Problem::new("no_pid", failure.message))
            }
            Some(failure) if failure.kind == Kind::Failed => {
                Err(Problem::new("delivery_failed", failure.message))
            }
            Some(failure) => Err(failure.into()),
            None => {
                // What was signalled a moment ago and not heard of since runs, as far as is known.
                self.still_running = self.still_running.or(Some(true));
                Ok(())
            }
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

/// The signal that is meant.
fn word(signal: &Value) -> Result<SignalWord, Problem> {
    let text = match signal {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
        other => {
            return Err(Problem::bad_param(format!(
                "signal: {other} is neither a name nor a whole number"
            )));
        }
    };
    text.parse()
        .map_err(|error| Problem::bad_param(format!("signal: {error}")))
}
