//! Error responses: an HTTP status, a word for programs, and a message for people.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::{Content, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, PartialSchema as _, ToSchema};

use crate::error::Failure;
use crate::servers::message as shown;

/// An HTTP status and the word for it.
type Terms = (u16, &'static str);

pub const BAD_VALUE: Terms = (400, "bad_value");
pub const UNAUTHORIZED: Terms = (401, "unauthorized");
pub const BAD_HOST: Terms = (403, "bad_host");
pub const NOT_FOUND: Terms = (404, "not_found");
pub const BAD_METHOD: Terms = (405, "bad_method");
pub const TOO_SLOW: Terms = (408, "too_slow");
const TOO_LARGE: Terms = (413, "too_large");
const BAD_MEDIA_TYPE: Terms = (415, "bad_media_type");
pub const BUSY: Terms = (503, "busy");

/// All statuses that a problem can have.
const STATUSES: [u16; 12] = [400, 401, 403, 404, 405, 408, 409, 413, 415, 500, 502, 503];

/// Why a request was not carried out.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    #[serde(skip)]
    status: u16,
    /// The kind of error
    error: &'static str,
    /// What happened, to which job or host, and what to do next
    message: String,
}

impl Problem {
    pub fn new((status, error): Terms, message: impl AsRef<str>) -> Self {
        Self {
            status,
            error,
            message: shown(message.as_ref()),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind.http(), failure.message)
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(BAD_VALUE, rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(BAD_VALUE, rejection.body_text())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let terms = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => BAD_MEDIA_TYPE,
            _ => BAD_VALUE,
        };
        Self::new(terms, rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let header = match (self.status, self.error) {
            UNAUTHORIZED => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            BUSY => Some((RETRY_AFTER, HeaderValue::from_static("1"))),
            _ => None,
        };
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().extend(header);
        response
    }
}

impl IntoResponses for Problem {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let response = |status: u16| {
            let reason = StatusCode::from_u16(status).ok()?.canonical_reason()?;
            let response = ResponseBuilder::new()
                .description(reason)
                .content("application/json", Content::new(Some(Self::schema())));
            Some((status.to_string(), response.build().into()))
        };
        STATUSES.into_iter().filter_map(response).collect()
    }
}

pub fn busy() -> Problem {
    Problem::new(
        BUSY,
        "too many requests are waiting for jobs or following logs; try again in a moment",
    )
}
