//! `ssh_list_jobs`: how jobs stand, as their hosts say.

use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::Problem;
use super::{Call, Tool};
use crate::cmd::ps::{Filter, ps};
use crate::cmd::values::Hosts;
use crate::terminal::JobJson;

/// How many jobs an answer holds at most, the newest.
const MOST: usize = 500;

pub struct List;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct Params {
    /// The jobs of this host only, written as when they were started
    #[serde(default)]
    host: Option<String>,
    /// Those too that have ended
    #[serde(default = "yes")]
    include_finished: bool,
}

fn yes() -> bool {
    true
}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    /// The jobs, the oldest first: id, name, host, command, state (starting, running, stopped, exited, lost, or unknown
    /// where the host can't be asked), pid, exit_status, and more
    #[schemars(schema_with = "jobs_schema")]
    jobs: Vec<Value>,
    /// How many older ones are left out
    omitted: usize,
    /// Hosts that could not be asked, and why
    warnings: Vec<String>,
}

fn jobs_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let object = super::any_object(generator);
    schemars::json_schema!({ "type": "array", "items": object })
}

impl Tool for List {
    type Params = Params;
    type Answer = Answer;
    const NAME: &'static str = "ssh_list_jobs";
    const TITLE: &'static str = "List jobs";
    const DESCRIPTION: &'static str = "List jobs with their states and exit statuses, freshly asked of their hosts: also \
        those of earlier sessions, of other servers and of the command line. Use it to find a job_id again, or to see \
        what runs where.";
    const READ_ONLY: bool = true;
    const IDEMPOTENT: bool = true;

    fn call(call: &mut Call, params: Params, answer: &mut Answer) -> Result<(), Problem> {
        let host = params.host.map(|host| host.parse()).transpose();
        let host = host.map_err(|error| Problem::bad_param(format!("host: {error}")))?;
        let filter = Filter {
            all: params.include_finished,
            host: host.into_iter().map(|host| Hosts(vec![host])).collect(),
            ..Filter::default()
        };
        let mut listing = ps(&mut call.context, &filter)?;
        // What has ended a moment ago is finished too.
        listing
            .jobs
            .retain(|job| params.include_finished || !job.state.is_finished());
        answer.omitted = listing.jobs.len().saturating_sub(MOST);
        for job in listing.jobs.iter().skip(answer.omitted) {
            let job = serde_json::to_value(JobJson::new(&job.record, job.state));
            answer
                .jobs
                .push(job.map_err(|error| Problem::unexpected(error.to_string()))?);
        }
        answer.warnings = listing
            .failures
            .into_iter()
            .map(|failure| failure.message)
            .collect();
        Ok(())
    }
}
