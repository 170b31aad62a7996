//! What every tool's answer has in common: whether it went well, and if not, why.

use rmcp::model::JsonObject;
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::Tool;
use crate::error::{Failure, Kind};
use crate::escape::printable;

/// How much of a message is shown, in characters: some of it may be a host's.
const MESSAGE_MAX: usize = 2000;

/// Why a call came out badly.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars", inline)]
pub struct Problem {
    #[schemars(extend("enum" = ["bad_param", "not_found", "no_pid", "delivery_failed", "unexpected"]))]
    kind: &'static str,
    /// What happened, to which job or host, and what to do next
    message: String,
}

impl Problem {
    pub fn new(kind: &'static str, message: impl AsRef<str>) -> Self {
        Self {
            kind,
            message: printable(message.as_ref().as_bytes(), MESSAGE_MAX),
        }
    }

    pub fn bad_param(message: impl AsRef<str>) -> Self {
        Self::new(Kind::Usage.mcp(), message)
    }

    pub fn unexpected(message: impl AsRef<str>) -> Self {
        Self::new(Kind::Failed.mcp(), message)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind.mcp(), failure.message)
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Failure::from(error).into()
    }
}

/// A tool's answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer<T> {
    /// Whether what was asked for was done
    ok: bool,
    #[serde(flatten)]
    content: T,
    /// Why not, or null
    error: Option<Problem>,
}

impl<T> Answer<T> {
    pub fn done(content: T) -> Self {
        Self {
            ok: true,
            content,
            error: None,
        }
    }

    pub fn failed(content: T, problem: Problem) -> Self {
        Self {
            ok: false,
            content,
            error: Some(problem),
        }
    }

    pub fn is_error(&self) -> bool {
        self.error.is_some()
    }
}

/// Reads a tool's parameters. One that is null is as good as absent.
pub fn params<T: Tool>(mut arguments: JsonObject) -> Result<T::Params, Problem> {
    arguments.retain(|_, value| !value.is_null());
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." {
            String::new()
        } else {
            format!("{path}: ")
        };
        Problem::bad_param(format!("{place}{}", error.into_inner()))
    })
}
