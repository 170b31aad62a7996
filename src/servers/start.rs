//! A request to start a job, checked like the command line of `spawn`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::cmd::args::JobArgs;
use crate::cmd::context::Context;
use crate::cmd::start::Request;
use crate::cmd::values::{configured, duration, is_variable, log_max};
use crate::error::Failure;
use crate::host::Host;
use crate::job::JobName;

/// A job to start
#[derive(Deserialize)]
#[cfg_attr(feature = "mcp", derive(rmcp::schemars::JsonSchema))]
#[cfg_attr(feature = "mcp", schemars(crate = "rmcp::schemars"))]
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// `local`, an alias of the server's ssh configuration, or [user@]host[:port]
    #[cfg_attr(feature = "mcp", schemars(with = "String"))]
    #[cfg_attr(feature = "serve", schema(value_type = String, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,60}(:[1-9][0-9]{0,3})?$|^[A-Za-z0-9][A-Za-z0-9._-]{0,30}@[A-Za-z0-9][A-Za-z0-9._-]{0,60}$"))]
    pub host: Host,
    /// A line for /bin/sh, or an array of words
    #[cfg_attr(feature = "serve", schema(schema_with = schema::command))]
    pub command: Command,
    /// A name to use instead of the id, unique among unfinished jobs: letters, digits, '.', '_', '-'
    #[cfg_attr(feature = "mcp", schemars(with = "Option<String>"))]
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"))]
    name: Option<JobName>,
    /// The directory to start in, relative to the home directory
    #[cfg_attr(feature = "serve", schema(pattern = "^[^\\u0000]+$"))]
    cwd: Option<String>,
    /// Variables for the job's environment
    #[serde(default)]
    #[cfg_attr(feature = "serve", schema(schema_with = schema::env))]
    env: BTreeMap<String, String>,
    /// Write standard error into standard output, in order
    #[serde(default)]
    merge: bool,
    /// Keep the job's standard input open, so that input can be sent while the job runs
    #[serde(default)]
    stdin_open: bool,
    /// Keep only the newest part of each output stream, such as 16M; older output is removed while the job runs
    #[cfg_attr(
        feature = "serve",
        schema(pattern = "^([1-9][0-9]{2,5}K|[1-9][0-9]{0,2}[MG])$")
    )]
    log_max: Option<String>,
    /// Terminate the job after this time, such as 90s or 1h 30m
    #[cfg_attr(feature = "serve", schema(pattern = "^[1-9][0-9]{0,5}(ms|s|m)$"))]
    pub timeout: Option<String>,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "mcp", derive(rmcp::schemars::JsonSchema))]
#[cfg_attr(feature = "mcp", schemars(crate = "rmcp::schemars", inline))]
#[serde(
    untagged,
    expecting = "expected a line for /bin/sh, or an array of words"
)]
pub enum Command {
    Line(String),
    Words(Vec<String>),
}

impl NewJob {
    #[cfg(feature = "mcp")]
    pub fn new(host: Host, line: String) -> Self {
        Self {
            host,
            command: Command::Line(line),
            name: None,
            cwd: None,
            env: BTreeMap::new(),
            merge: false,
            stdin_open: false,
            log_max: None,
            timeout: None,
        }
    }

    /// Checks the values and converts them to the request of `spawn`.
    pub fn request(self, context: &Context) -> Result<Request, Failure> {
        let (shell, command) = match self.command {
            Command::Line(line) => (true, vec![line]),
            Command::Words(words) => (false, words),
        };
        let has_nul = |text: &String| text.contains('\0');
        let is_blank = |word: &String| word.trim().is_empty();
        if command.first().is_none_or(is_blank) || command.iter().any(has_nul) {
            return Err(Failure::usage(
                "command: empty, or contains a NUL character",
            ));
        }
        let is_no_path = |path: &String| path.is_empty() || has_nul(path);
        if self.cwd.as_ref().is_some_and(is_no_path) {
            return Err(Failure::usage("cwd: empty, or contains a NUL character"));
        }
        for (name, value) in &self.env {
            if !is_variable(name) || has_nul(value) {
                let message = "not a variable name, or its value contains a NUL character";
                return Err(Failure::usage(format!("env: {name:?} {message}")));
            }
        }
        let timeout = self.timeout.map(|time| duration(&time)).transpose();
        let timeout = timeout.map_err(|error| Failure::usage(format!("timeout: {error}")))?;
        let log_max = self.log_max.map(|size| log_max(&size)).transpose();
        let log_max = log_max.map_err(|error| Failure::usage(format!("log_max: {error}")))?;
        let destination = configured().destination(&self.host, &context.connect)?;
        let env = self.env.into_iter();
        let mut job = JobArgs {
            name: self.name,
            cwd: self.cwd.map(Into::into),
            env: env
                .map(|(name, value)| (name, Some(value.into())))
                .collect(),
            shell,
            timeout,
            ..JobArgs::default()
        };
        let command = job.check(command.into_iter().map(Into::into).collect())?;
        Ok(Request {
            job,
            merge: self.merge,
            log_max,
            open: self.stdin_open,
            ..Request::new(destination, command)
        })
    }
}

/// The schemas of the OpenAPI document that are not derived.
#[cfg(feature = "serve")]
mod schema {
    use utoipa::openapi::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};

    fn text(pattern: &str) -> ObjectBuilder {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(pattern))
    }

    pub fn command() -> Schema {
        let words = ArrayBuilder::new()
            .min_items(Some(1))
            .prefix_items([text("^[^\\u0000]*[!-~][^\\u0000]*$")])
            .items(text("^[^\\u0000]*$"));
        let line = text("^[^\\u0000]*[!-~][^\\u0000]*$");
        OneOfBuilder::new().item(line).item(words).build().into()
    }

    pub fn env() -> Schema {
        ObjectBuilder::new()
            .property_names(Some(text("^[A-Za-z_][A-Za-z0-9_]*$")))
            .additional_properties(Some(text("^[^\\u0000]*$")))
            .build()
            .into()
    }
}
