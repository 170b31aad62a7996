//! `ssh_remove_job`: forgets a finished job and removes its files.

use rmcp::schemars::JsonSchema;
use serde::Deserialize;

use super::answer::{JobAnswer, Problem};
use super::{Tool, ToolCall};
use crate::servers::operations::remove;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct Remove {
    /// The job: its id, its name, a unique prefix of its id, or HOST/ID
    job_id: String,
    /// Stop the job first if it still runs: TERM, and KILL ten seconds later
    #[serde(default)]
    force: bool,
}

impl Tool for Remove {
    type Answer = JobAnswer;
    const NAME: &'static str = "ssh_remove_job";
    const TITLE: &'static str = "Remove a job";
    const DESCRIPTION: &'static str = "Forget a job that has ended, and remove its output from its host. Do it when you \
        have read what you need: nothing is ever removed by itself. A running job is refused unless force is true, which \
        ends it first.";
    const DESTRUCTIVE: bool = true;

    fn is_long(&self) -> bool {
        self.force
    }

    fn call(self, call: &mut ToolCall<'_>, answer: &mut JobAnswer) -> Result<(), Problem> {
        let (_, job) = answer.find(call.context, &self.job_id)?;
        Ok(remove(call.context, &job, self.force)?)
    }
}
