//! The routes: what is asked for, as a command's request, and what came of it, as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::guard::{Guard, guard};
use super::problem::Problem;
use super::{App, log, openapi};
use crate::clock;
use crate::cmd::values::duration;
use crate::cmd::{self as commands, Context, kill, spawn};
use crate::delivery::Outcome;
use crate::error::{Failure, Kind};
use crate::servers::start::{Start, shell_line};
use crate::servers::{Gone, Length, one};
use crate::signal::{BadSignal, SignalWord};
use crate::terminal::job_json;

/// The largest body of a request.
const BODY_MAX: usize = 1 << 20;
/// How long a client may take to send one.
const BODY: Duration = Duration::from_secs(20);
/// The longest time that a request may wait for a job.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long `_stop` gives a job to end by itself, unless it is told.
const GRACE: Duration = Duration::from_secs(10);

/// The job that a path names.
pub type Word = Result<Path<String>, PathRejection>;
/// What stands behind the question mark.
pub type Options<T> = Result<Query<T>, QueryRejection>;

/// All routes, behind the guard.
pub fn router(app: Arc<App>, who: Guard) -> Router {
    let job = "/processes/{job}";
    Router::new()
        .route("/", get(version))
        .route("/openapi.json", get(openapi::document))
        .route("/processes", get(list).post(start))
        .route(job, get(show).delete(remove))
        .route(&format!("{job}/_signal/{{signal}}"), post(send))
        .route(&format!("{job}/_stop"), post(stop))
        .route(&format!("{job}/_log"), get(log::log))
        .route(&format!("{job}/_pids"), get(pids))
        .fallback(async |uri: Uri| {
            let message = format!(
                "there is nothing at {}; /openapi.json says what there is",
                uri.path()
            );
            Problem::new(StatusCode::NOT_FOUND, "not_found", message)
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let message = format!(
                "{method} is not for {}; the Allow header says what is",
                uri.path()
            );
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "bad_method", message)
        })
        .with_state(app)
        .layer(middleware::from_fn_with_state(Arc::new(who), guard))
}

/// Has a thread carry a request out.
async fn work<T: Send + 'static>(
    app: &Arc<App>,
    length: Length,
    work: impl FnOnce(&mut Context, &Gone) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Problem> {
    let turn = match length {
        Length::Short => app.crew.turn(length).await,
        Length::Long => app.crew.turn_now(length),
    };
    let turn = turn.ok_or_else(|| Problem::busy("too many requests read or wait"))?;
    let gone = Gone::default();
    let _guard = gone.at_the_end();
    let app = Arc::clone(app);
    Ok(turn
        .work(move || work(&mut app.limits.context()?, &gone))
        .await??)
}

async fn version() -> Json<Value> {
    Json(json!({ "name": "rsig", "version": env!("CARGO_PKG_VERSION") }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    #[serde(default, deserialize_with = "flag")]
    running: bool,
}

async fn list(State(app): State<Arc<App>>, query: Options<Filter>) -> Result<Response, Problem> {
    let Query(filter) = query?;
    let listing = work(&app, Length::Short, move |context, _| {
        let mut listing = one::ask(context, Vec::new(), !filter.running)?;
        // What has ended a moment ago does not run any more.
        listing
            .jobs
            .retain(|job| !filter.running || !job.state.is_finished());
        Ok(listing)
    });
    let jobs = listing.await?.jobs;
    let jobs: Vec<_> = jobs
        .iter()
        .map(|listed| job_json(&listed.record, listed.state))
        .collect();
    Ok(Json(&jobs).into_response())
}

async fn show(State(app): State<Arc<App>>, word: Word) -> Result<Response, Problem> {
    let Path(word) = word?;
    let listed = work(&app, Length::Short, move |context, _| {
        let (_, job) = one::job(context, &word)?;
        one::ask_one(context, &job)
    });
    let listed = listed.await?;
    Ok(Json(job_json(&listed.record, listed.state)).into_response())
}

async fn pids(State(app): State<Arc<App>>, word: Word) -> Result<Json<Value>, Problem> {
    let Path(word) = word?;
    let pids = work(&app, Length::Short, move |context, _| {
        let (_, job) = one::job(context, &word)?;
        Ok(commands::pids::pids(context, &job)?)
    });
    Ok(Json(json!({ "ok": true, "pids": pids.await? })))
}

/// A job to start.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    host: String,
    command: Command,
    name: Option<String>,
    cwd: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    merge: bool,
    timeout: Option<String>,
}

/// A command: a line for a shell, or words.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "command: a line for /bin/sh as text, or an array of words"
)]
enum Command {
    Line(String),
    Words(Vec<String>),
}

impl Wanted {
    fn request(self, context: &Context) -> Result<spawn::Request, Failure> {
        let command = match self.command {
            Command::Line(line) => shell_line(line),
            Command::Words(words) => words,
        };
        let bad = |error| Failure::new(Kind::Usage, format!("timeout: {error}"));
        let timeout = self
            .timeout
            .map(|time| duration(&time))
            .transpose()
            .map_err(bad)?;
        let start = Start {
            host: self.host,
            command,
            name: self.name,
            cwd: self.cwd,
            env: self.env,
        };
        Ok(spawn::Request {
            merge: self.merge,
            timeout,
            ..start.request(context)?
        })
    }
}

async fn start(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let wanted: Wanted = body(request).await?;
    let spawned = work(&app, Length::Short, move |context, _| {
        let request = wanted.request(context)?;
        Ok(spawn::spawn(context, &request)?)
    });
    let record = spawned.await?.record;
    let place = format!("/processes/{}", record.id);
    Ok((
        StatusCode::CREATED,
        [(LOCATION, place)],
        Json(job_json(&record, record.state)),
    )
        .into_response())
}

/// Reads a body of JSON, if it comes soon and is not large.
async fn body<T: for<'a> Deserialize<'a>>(request: Request) -> Result<T, Problem> {
    if !is_json(request.headers()) {
        let message = "the body has to be JSON: send the header Content-Type: application/json";
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "bad_media_type",
            message,
        ));
    }
    let read = tokio::time::timeout(
        clock::long(BODY),
        axum::body::to_bytes(request.into_body(), BODY_MAX),
    )
    .await;
    let late = || {
        Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "too_slow",
            "the body took too long to come",
        )
    };
    let bytes = read.map_err(|_| late())?.map_err(|error| {
        let message =
            format!("the body can't be read ({error}); it may have {BODY_MAX} bytes at most");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    })?;
    serde_json::from_slice(&bytes).map_err(|error| Problem::bad_value(format!("the body: {error}")))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("application/json")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forcing {
    #[serde(default, deserialize_with = "flag")]
    force: bool,
}

async fn remove(
    State(app): State<Arc<App>>,
    word: Word,
    query: Options<Forcing>,
) -> Result<Json<Value>, Problem> {
    let Path(word) = word?;
    let Query(Forcing { force }) = query?;
    let length = if force { Length::Long } else { Length::Short };
    work(&app, length, move |context, _| {
        let (_, job) = one::job(context, &word)?;
        one::remove(context, job, force)
    })
    .await?;
    Ok(Json(json!({ "ok": true })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Waiting {
    #[serde(default, deserialize_with = "time")]
    wait: Option<Duration>,
}

async fn send(
    State(app): State<Arc<App>>,
    words: Result<Path<(String, String)>, PathRejection>,
    query: Options<Waiting>,
) -> Result<Json<Value>, Problem> {
    let Path((word, signal)) = words?;
    let Query(Waiting { wait }) = query?;
    let signal: SignalWord = signal
        .parse()
        .map_err(|error: BadSignal| Problem::bad_value(error.to_string()))?;
    if wait.is_some() && signal.is_existence_check() {
        return Err(Problem::bad_value("wait: signal 0 ends no job"));
    }
    let length = if wait.is_some() {
        Length::Long
    } else {
        Length::Short
    };
    let answer = work(&app, length, move |context, gone| {
        let (_, job) = one::job(context, &word)?;
        let until = wait.map(|wait| Instant::now() + wait);
        // The first part of the wait is the command's own; a client that goes ends the rest.
        let request = kill::Request {
            wait: wait.map(|wait| wait.min(one::SLICE)),
            ..kill::Request::new(vec![job.clone()], signal)
        };
        let outcome = deliver(context, &request)?;
        match until {
            None => Ok(json!({ "ok": true })),
            Some(until) if outcome.still_running == Some(true) => {
                Ok(ended(&one::await_end(context, &job, until, gone)?))
            }
            Some(_) => Ok(ended(&outcome)),
        }
    });
    answer.await.map(Json)
}

/// Sends what a request says to its one job, and gives how that stands then.
fn deliver(context: &mut Context, request: &kill::Request) -> Result<Outcome, Failure> {
    let outcome = one::deliver(context, request)?.outcome?;
    match outcome.error {
        Some(failure) => Err(failure),
        None => Ok(outcome),
    }
}

/// What a request that has waited is told.
fn ended(outcome: &Outcome) -> Value {
    let record = &outcome.record;
    json!({ "ok": true, "exit_status": record.exit_status, "still_running": !record.state.is_finished() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grace {
    #[serde(default, deserialize_with = "time")]
    grace: Option<Duration>,
}

async fn stop(
    State(app): State<Arc<App>>,
    word: Word,
    query: Options<Grace>,
) -> Result<Json<Value>, Problem> {
    let Path(word) = word?;
    let Query(Grace { grace }) = query?;
    let answer = work(&app, Length::Long, move |context, _| {
        let (_, job) = one::job(context, &word)?;
        let outcome = deliver(
            context,
            &kill::Request::stop(vec![job], grace.unwrap_or(GRACE)),
        )?;
        Ok(ended(&outcome))
    });
    answer.await.map(Json)
}

/// Reads a yes or no.
pub fn flag<'a, D: Deserializer<'a>>(value: D) -> Result<bool, D::Error> {
    match String::deserialize(value)?.as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(D::Error::custom("not true or false")),
    }
}

/// Reads how long to wait.
fn time<'a, D: Deserializer<'a>>(value: D) -> Result<Option<Duration>, D::Error> {
    let time = duration(&String::deserialize(value)?).map_err(D::Error::custom)?;
    if time > WAIT_MAX {
        Err(D::Error::custom("an hour at most"))
    } else {
        Ok(Some(time))
    }
}
