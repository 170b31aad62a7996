//! A job that a client wants started, held against what a command line would be held against.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use crate::cmd::args::JobArgs;
use crate::cmd::context::Context;
use crate::cmd::start::Request;
use crate::cmd::values::is_variable;
use crate::error::{Failure, Kind};
use crate::host::Destination;

/// What a client says of a job.
#[derive(Default)]
pub struct Start {
    pub host: String,
    pub command: Vec<String>,
    pub name: Option<String>,
    pub cwd: Option<String>,
    pub env: BTreeMap<String, String>,
}

/// The words of a job that is one line for a shell; none where the line is empty.
pub fn shell_line(line: String) -> Vec<String> {
    if line.trim().is_empty() {
        Vec::new()
    } else {
        vec!["/bin/sh".to_owned(), "-c".to_owned(), line]
    }
}

impl Start {
    /// The command's request.
    pub fn request(self, context: &Context, timeout: Option<Duration>) -> Result<Request, Failure> {
        let bad =
            |what: &str, error: &dyn Display| Failure::new(Kind::Usage, format!("{what}: {error}"));
        let nothing = |text: &String| text.is_empty() || text.contains('\0');
        if self.command.first().is_none_or(String::is_empty)
            || self.command.iter().any(|word| word.contains('\0'))
        {
            return Err(bad("command", &"it is empty, or holds a NUL character"));
        }
        if self.cwd.as_ref().is_some_and(nothing) {
            return Err(bad("cwd", &"it is empty, or holds a NUL character"));
        }
        if let Some((name, _)) = self
            .env
            .iter()
            .find(|(name, value)| !is_variable(name) || value.contains('\0'))
        {
            return Err(bad(
                "env",
                &format!("{name:?} can't name a variable, or its value holds a NUL character"),
            ));
        }
        let host = self.host.parse().map_err(|error| bad("host", &error))?;
        let destination = Destination {
            host,
            connect: context.connect.clone(),
        };
        let name = self.name.map(|name| name.parse()).transpose();
        let env = self.env.into_iter();
        let job = JobArgs {
            name: name.map_err(|error| bad("name", &error))?,
            cwd: self.cwd.map(Into::into),
            env: env
                .map(|(name, value)| (name, Some(value.into())))
                .collect(),
            timeout,
            ..JobArgs::default()
        };
        let command = self.command.into_iter().map(Into::into).collect();
        Ok(Request {
            job,
            ..Request::new(destination, command)
        })
    }
}
