//! `ssh_send_stdin`: writes to the standard input of a job.

use rmcp::schemars::JsonSchema;
use serde::Deserialize;

use super::answer::{JobAnswer, Problem};
use super::{Tool, ToolCall};
use crate::cmd::send::append;
use crate::servers::operations::text;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct SendStdin {
    /// The job: its id, its name, a unique prefix of its id, or HOST/ID
    job_id: String,
    /// What to send; without it, nothing is sent
    text: Option<String>,
    /// Send a newline after the text
    #[serde(default = "newline")]
    newline: bool,
    /// Close the input after the text: the job sees end of file
    #[serde(default)]
    eof: bool,
}

fn newline() -> bool {
    true
}

impl Tool for SendStdin {
    type Answer = JobAnswer;
    const NAME: &'static str = "ssh_send_stdin";
    const TITLE: &'static str = "Write to a job's standard input";
    const DESCRIPTION: &'static str = "Send a line, or any text, to the standard input of a job that ssh_spawn started \
        with stdin_open. It arrives exactly once and in one piece; the answer does not wait for the job to read it. \
        Follow what the job says to it with ssh_tail.";

    fn call(self, call: &mut ToolCall<'_>, answer: &mut JobAnswer) -> Result<(), Problem> {
        let (_, job) = answer.find(call.context, &self.job_id)?;
        Ok(append(
            call.context,
            &job,
            &text(self.text, self.newline, self.eof)?,
            self.eof,
        )?)
    }
}
