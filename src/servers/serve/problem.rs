//! What went wrong with a request: a status, a word for programs, and a sentence for people.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::{Failure, Kind};
use crate::escape::printable;

/// How much of a message is shown, in characters: some of it may be a host's.
const MESSAGE: usize = 2000;

/// Why a request was not carried out.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    word: &'static str,
    message: String,
}

impl Problem {
    pub fn new(status: StatusCode, word: &'static str, message: impl AsRef<str>) -> Self {
        Self {
            status,
            word,
            message: printable(message.as_ref().as_bytes(), MESSAGE),
        }
    }

    /// What the client has sent can't be meant.
    pub fn bad_value(message: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_value", message)
    }

    /// So many do the same that there is no place left.
    pub fn busy(what: &str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            format!("{what}; try again in a moment"),
        )
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let (status, word) = match failure.kind {
            Kind::Usage | Kind::BadSignal => (StatusCode::BAD_REQUEST, "bad_value"),
            Kind::CommandMissing => (StatusCode::BAD_REQUEST, "command_missing"),
            Kind::CommandDenied => (StatusCode::BAD_REQUEST, "command_denied"),
            Kind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Kind::Ambiguous => (StatusCode::CONFLICT, "ambiguous"),
            Kind::NotRunning => (StatusCode::CONFLICT, "not_running"),
            Kind::StillRunning | Kind::TimedOut => (StatusCode::CONFLICT, "still_running"),
            Kind::NameTaken => (StatusCode::CONFLICT, "name_taken"),
            Kind::HostDenied => (StatusCode::FORBIDDEN, "host_denied"),
            Kind::NotPermitted => (StatusCode::FORBIDDEN, "not_permitted"),
            Kind::Unreachable | Kind::NoShell | Kind::NoChannel => {
                (StatusCode::BAD_GATEWAY, "unreachable")
            }
            Kind::Auth => (StatusCode::BAD_GATEWAY, "auth"),
            Kind::HostKey => (StatusCode::BAD_GATEWAY, "host_key"),
            Kind::Unconfirmed => (StatusCode::BAD_GATEWAY, "unconfirmed"),
            Kind::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        Self::new(status, word, failure.message)
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_value(rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_value(rejection.body_text())
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Failure::from(error).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.word, "message": self.message }));
        let mut response = (self.status, body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
