//! Extractors for the path, the query and the body of a request.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Request};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use utoipa::IntoParams;

use super::problem::{Problem, TOO_SLOW};
use crate::clock;
use crate::cmd::values::duration;

/// Maximum time for a client to send a body.
const BODY_WAIT: Duration = Duration::from_secs(20);
/// Maximum time for which a request may wait for a job.
const WAIT_MAX: Duration = Duration::from_secs(3600);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct JobPath {
    /// A job's id, its name, a unique prefix of its id, or HOST/ID with its slash written as %2F
    #[param(min_length = 1)]
    pub job: String,
}

/// Parameters in the path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub struct Path<T>(pub T);

/// Parameters in the query.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub struct Query<T>(pub T);

/// A JSON body, which must arrive within `BODY_WAIT`.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let read =
            tokio::time::timeout(clock::scaled(BODY_WAIT), Json::from_request(request, state))
                .await;
        let late = |_| Problem::new(TOO_SLOW, "the body took too long to arrive");
        let Json(body) = read.map_err(late)??;
        Ok(Self(body))
    }
}

/// Deserializes a boolean.
pub fn flag<'a, D: Deserializer<'a>>(value: D) -> Result<bool, D::Error> {
    match String::deserialize(value)?.as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(D::Error::custom("not true or false")),
    }
}

/// Deserializes a duration to wait.
pub fn wait<'a, D: Deserializer<'a>>(value: D) -> Result<Option<Duration>, D::Error> {
    let wait = duration(&String::deserialize(value)?).map_err(D::Error::custom)?;
    if wait > WAIT_MAX {
        return Err(D::Error::custom("an hour at most"));
    }
    Ok(Some(wait))
}
