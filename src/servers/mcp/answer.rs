//! What every tool's answer has in common: whether it went well, and if not, why.

use rmcp::model::JsonObject;
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::Tool;
use crate::error::{Failure, Kind};
use crate::escape::printable;

/// How much of a message is shown, in characters: some of it may be a host's.
const MESSAGE: usize = 2000;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(crate = "rmcp::schemars", inline)]
pub enum ErrorKind {
    // Not documented for the schema, where each tool would repeat it: the messages say it.
    // A parameter is missing, unknown, or can't be meant.
    BadParam,
    // No such job.
    NotFound,
    // The job has no process yet that could be signalled.
    NoPid,
    // The host could not be reached, or the signal not be delivered there.
    DeliveryFailed,
    // Anything else.
    Unexpected,
}

/// Why a call came out badly.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars", inline)]
pub struct Problem {
    kind: ErrorKind,
    /// What happened, to which job or host, and what to do next
    message: String,
}

impl Problem {
    pub fn new(kind: ErrorKind, message: impl AsRef<str>) -> Self {
        Self {
            kind,
            message: printable(message.as_ref().as_bytes(), MESSAGE),
        }
    }

    pub fn bad_param(message: impl AsRef<str>) -> Self {
        Self::new(ErrorKind::BadParam, message)
    }

    pub fn unexpected(message: impl AsRef<str>) -> Self {
        Self::new(ErrorKind::Unexpected, message)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind {
            Kind::Usage
            | Kind::HostDenied
            | Kind::BadSignal
            | Kind::NameTaken
            | Kind::CommandMissing
            | Kind::CommandDenied => ErrorKind::BadParam,
            Kind::NotFound | Kind::Ambiguous => ErrorKind::NotFound,
            Kind::Unreachable
            | Kind::Auth
            | Kind::HostKey
            | Kind::NotPermitted
            | Kind::NoChannel
            | Kind::NoShell
            | Kind::Unconfirmed => ErrorKind::DeliveryFailed,
            Kind::NotRunning | Kind::StillRunning | Kind::TimedOut | Kind::Failed => {
                ErrorKind::Unexpected
            }
        };
        Self::new(kind, failure.message)
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
