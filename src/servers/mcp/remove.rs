//! `ssh_remove_job`: forgets a finished job, with its files.

use rmcp::schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answer::Problem;
use super::{Call, Class, Tool};
use crate::servers::one::{job, remove};

pub struct Remove;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct Params {
    /// The job: its id, its name, the unique beginning of its id, or HOST/ID
    job_id: String,
    /// Stop a job first that still runs: TERM, and KILL ten seconds later
    #[serde(default)]
    force: bool,
}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    job_id: Option<String>,
    host: Option<String>,
}

impl Tool for Remove {
    type Params = Params;
    type Answer = Answer;
    const NAME: &'static str = "ssh_remove_job";
    const TITLE: &'static str = "Remove a job";
    const DESCRIPTION: &'static str = "Forget a job that has ended, and remove its output from its host. Do it when you \
        have read what you need: nothing is ever removed by itself. A job that runs is refused unless force is true, \
        which ends it first.";
    const DESTRUCTIVE: bool = true;

    fn class(params: &Params) -> Class {
        if params.force {
            Class::Long
        } else {
            Class::Short
        }
    }

    fn call(call: &mut Call, params: Params, answer: &mut Answer) -> Result<(), Problem> {
        answer.job_id = Some(params.job_id.clone());
        let (record, word) = job(&call.context, &params.job_id)?;
        answer.job_id = Some(record.id.to_string());
        answer.host = Some(record.host().to_string());
        Ok(remove(&mut call.context, &word, params.force)?)
    }
}
