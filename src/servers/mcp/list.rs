//! `ssh_list_jobs`: lists jobs with their states, as their hosts report them.

use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::Problem;
use super::{Tool, ToolCall};
use crate::cmd::ps::Filter;
use crate::cmd::values::Hosts;
use crate::host::Host;
use crate::servers::operations;
use crate::terminal::JobJson;

/// Maximum number of jobs in a result; the newest are listed.
const JOBS_MAX: usize = 500;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct List {
    /// Only the jobs of this host, spelled as when they were started
    #[schemars(with = "Option<String>")]
    host: Option<Host>,
    /// Include jobs that have ended
    #[serde(default = "yes")]
    include_finished: bool,
}

fn yes() -> bool {
    true
}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    /// The jobs, oldest first: id, name, host, command, state (starting, running, stopped, exited, lost, or unknown
    /// if the host can't be asked), pid, exit_status, and more
    #[schemars(schema_with = "jobs_schema")]
    jobs: Vec<Value>,
    /// How many older jobs are left out
    omitted: usize,
    /// Hosts that could not be asked, and why
    warnings: Vec<String>,
}

fn jobs_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "array", "items": { "type": "object" } })
}

impl Tool for List {
    type Answer = Answer;
    const NAME: &'static str = "ssh_list_jobs";
    const TITLE: &'static str = "List jobs";
    const DESCRIPTION: &'static str = "List jobs with their states and exit statuses as their hosts report them now, \
        including jobs of earlier sessions, of other servers and of the command line. Use it to find a job_id again, or \
        to see what runs where.";
    const READ_ONLY: bool = true;

    fn call(self, call: &mut ToolCall<'_>, answer: &mut Answer) -> Result<(), Problem> {
        let filter = Filter {
            all: self.include_finished,
            host: Vec::from_iter(self.host.map(|host| Hosts(vec![host]))),
            ..Filter::default()
        };
        let listing = operations::list(call.context, &filter)?;
        answer.omitted = listing.jobs.len().saturating_sub(JOBS_MAX);
        let jobs = listing.jobs.iter().skip(answer.omitted);
        let jobs = jobs.map(|job| serde_json::to_value(JobJson::new(&job.record, job.state)));
        answer.jobs = jobs
            .collect::<Result<_, _>>()
            .map_err(anyhow::Error::from)?;
        let warnings = listing.failures.into_iter().map(|failure| failure.message);
        answer.warnings = warnings.collect();
        Ok(())
    }
}
