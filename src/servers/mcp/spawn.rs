//! `ssh_spawn`: starts a job that outlives this server.

use std::collections::BTreeMap;

use rmcp::schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answer::Problem;
use super::{Call, Tool};
use crate::cmd::start::{Spawned, spawn};
use crate::servers::start::{Start, shell_line};

pub struct Spawn;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct Params {
    /// Where: `local`, an alias of the server's ssh configuration, or [user@]host[:port]
    host: String,
    /// One line for /bin/sh
    command: String,
    /// The directory to start in; a relative one is taken from the home directory
    #[serde(default)]
    cwd: Option<String>,
    /// Variables for its environment
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// A name that stands for the job in place of its id, unique among unfinished jobs: letters, digits, '.', '_', '-'
    #[serde(default)]
    name: Option<String>,
}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    /// What names the job from now on, to every tool
    job_id: Option<String>,
    /// Its first process
    pid: Option<u32>,
    host: Option<String>,
    /// What you should know of how it runs, or null
    warning: Option<String>,
}

impl Tool for Spawn {
    type Params = Params;
    type Answer = Answer;
    const NAME: &'static str = "ssh_spawn";
    const TITLE: &'static str = "Start a job";
    const DESCRIPTION: &'static str = "Start a command on a host as a job that runs on by itself, whatever happens to \
        this server or the connection, and return at once with its job_id. Use it for builds, servers, training runs: \
        all that takes longer than a minute or that you want to watch or signal; for short commands use ssh_exec. Follow \
        the job with ssh_tail, end it with ssh_signal. Its standard input is /dev/null and it has no terminal.";

    fn call(call: &mut Call, params: Params, answer: &mut Answer) -> Result<(), Problem> {
        answer.host = Some(params.host.clone());
        let command = shell_line(params.command);
        let start = Start {
            host: params.host,
            command,
            name: params.name,
            cwd: params.cwd,
            env: params.env,
        };
        let request = start.request(&call.context, None)?;
        let Spawned { record, warning } = spawn(&mut call.context, request)?;
        answer.job_id = Some(record.id.to_string());
        answer.pid = record.pid;
        answer.warning = warning;
        Ok(())
    }
}
