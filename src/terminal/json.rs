//! JSON objects shared by several commands.

use serde::Serialize;

use crate::error::Failure;
use crate::job::{EndedBy, JobName, Record, State, rfc3339};

/// A job as `ps --json` shows it.
#[derive(Serialize)]
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
pub struct JobJson<'a> {
    id: &'a str,
    name: Option<&'a str>,
    host: String,
    command: &'a [String],
    cwd: Option<&'a str>,
    dir: Option<&'a str>,
    state: &'static str,
    pid: Option<u32>,
    pgid: Option<u32>,
    os: Option<&'a str>,
    started_at: Option<String>,
    finished_at: Option<String>,
    exit_status: Option<u8>,
    exit_signal: Option<String>,
    last_signal: Option<&'a str>,
    checked_at: Option<String>,
    prefix: Option<String>,
    jobs_dir: Option<&'a str>,
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>))]
    ended_by: Option<EndedBy>,
}

impl<'a> JobJson<'a> {
    /// `state` may differ from the record's state.
    pub fn new(record: &'a Record, state: State) -> Self {
        Self {
            id: record.id.as_str(),
            name: record.name.as_ref().map(JobName::as_str),
            host: record.host().to_string(),
            command: &record.command,
            cwd: record.cwd.as_deref(),
            dir: record.dir.as_deref(),
            state: state.word(),
            pid: record.pid,
            pgid: record.pgid,
            os: record.os.as_deref(),
            started_at: record.started_at.and_then(rfc3339),
            finished_at: record.finished_at.and_then(rfc3339),
            exit_status: record.exit_status,
            exit_signal: record.exit_signal(),
            last_signal: record.last_signal.as_deref(),
            checked_at: record.checked_at.and_then(rfc3339),
            prefix: record.destination.prefix(),
            jobs_dir: record.destination.connect.jobs_dir.as_deref(),
            ended_by: record
                .ended_by
                .or(record.timed_out.then_some(EndedBy::Timeout)),
        }
    }
}

#[derive(Serialize)]
pub struct FailureJson<'a> {
    kind: &'static str,
    message: &'a str,
}

impl<'a> From<&'a Failure> for FailureJson<'a> {
    fn from(failure: &'a Failure) -> Self {
        Self {
            kind: failure.kind.word(),
            message: &failure.message,
        }
    }
}
