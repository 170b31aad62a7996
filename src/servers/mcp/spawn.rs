//! `ssh_spawn`: starts a job that outlives this server.

use rmcp::schemars::JsonSchema;
use serde::Serialize;

use super::answer::Problem;
use super::{Tool, ToolCall};
use crate::cmd::start::{Spawned, spawn};
use crate::job::JobId;
use crate::servers::start::NewJob;

#[derive(Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    /// The job's id, for all other tools; with an error, the id of a job that may still start
    job_id: Option<String>,
    /// The job's first process
    pid: Option<u32>,
    host: Option<String>,
    /// A warning about how the job runs, or null
    warning: Option<String>,
}

impl Tool for NewJob {
    type Answer = Answer;
    const NAME: &'static str = "ssh_spawn";
    const TITLE: &'static str = "Start a job";
    const DESCRIPTION: &'static str = "Start a command on a host as a job that goes on whatever happens to this server \
        or the connection, and return at once with its job_id. Use it for builds, servers, training runs: anything that \
        takes longer than a minute, or that you want to watch or signal. For short commands use ssh_exec. Follow the job \
        with ssh_tail, end it with ssh_signal. Its standard input is /dev/null, or with \
        stdin_open what ssh_send_stdin sends, and it has no terminal.";

    fn call(self, call: &mut ToolCall<'_>, answer: &mut Answer) -> Result<(), Problem> {
        answer.host = Some(self.host.to_string());
        let mut request = self.request(call.context)?;
        let id = JobId::random()?;
        request.id = Some(id.clone());
        let spawned = spawn(call.context, request);
        // After a failure, a job that may still start has a record.
        let is_recorded = matches!(call.context.store.get(&id), Ok(Some(_)));
        answer.job_id = is_recorded.then(|| id.to_string());
        let Spawned { record, warning } = spawned?;
        answer.job_id = Some(record.id.to_string());
        answer.pid = record.pid;
        answer.warning = warning;
        Ok(())
    }
}
