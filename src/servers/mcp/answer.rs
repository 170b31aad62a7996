//! What all tools share: the parsing of parameters, and in results the job, the success and the error.

use rmcp::model::JsonObject;
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cmd::context::Context;
use crate::error::Failure;
use crate::job::{JobWord, Record};
use crate::servers::{message, operations};

/// Why a call failed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars", inline)]
pub struct Problem {
    #[schemars(extend("enum" = ["bad_param", "not_found", "no_pid", "delivery_failed", "unexpected"]))]
    pub kind: &'static str,
    /// What happened, to which job or host, and what to do next
    pub message: String,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self {
            kind: failure.kind.mcp(),
            message: message(&failure.message),
        }
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Failure::from(error).into()
    }
}

/// The job that an answer is about.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct JobAnswer {
    /// The job's id, or the word that the client used
    pub job_id: Option<String>,
    host: Option<String>,
}

impl JobAnswer {
    /// Like [`operations::job`], and fills in the id and the host.
    pub fn find(&mut self, context: &Context, word: &str) -> Result<(Record, JobWord), Failure> {
        self.job_id = Some(word.to_owned());
        let found = operations::job(context, word)?;
        self.job_id = Some(found.0.id.to_string());
        self.host = Some(found.0.host().to_string());
        Ok(found)
    }
}

/// A tool's answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer<T> {
    /// Whether the call succeeded
    ok: bool,
    #[serde(flatten)]
    content: T,
    /// Why the call failed, or null
    pub error: Option<Problem>,
}

impl<T> Answer<T> {
    pub fn new(content: T, result: Result<(), Problem>) -> Self {
        let error = result.err();
        Self {
            ok: error.is_none(),
            content,
            error,
        }
    }
}

/// Parses a tool's parameters. Null counts as absent.
pub fn params<T: DeserializeOwned>(mut arguments: JsonObject) -> Result<T, Failure> {
    arguments.retain(|_, value| !value.is_null());
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|error| {
        let message = match error.path().to_string().as_str() {
            "." => error.inner().to_string(),
            _ => error.to_string(),
        };
        Failure::usage(message)
    })
}
