//! The routes: each passes a request to a verb and returns the result as JSON. The OpenAPI 3.1 document is derived from
//! the routes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::LOCATION;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router, middleware};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoParams, Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::guard::{Guard, guard};
use super::problem::{BAD_METHOD, BAD_VALUE, NOT_FOUND, Problem, busy};
use super::request::{Body, JobPath, Path, Query, flag, wait};
use super::{App, log};
use crate::cmd::context::Context;
use crate::cmd::deliver::SendOptions;
use crate::cmd::pids;
use crate::cmd::ps::Filter;
use crate::cmd::send::append;
use crate::cmd::start::spawn;
use crate::delivery::Outcome;
use crate::error::{Failure, Kind};
use crate::job::{JobWord, Target};
use crate::servers::operations;
use crate::servers::start::NewJob;
use crate::signal::{BadSignal, SignalWord};
use crate::terminal::JobJson;

/// Maximum size of a request's body, in bytes.
const BODY_MAX: usize = 1 << 20;
/// Default time that `_stop` gives a job to end after TERM, before KILL.
const GRACE: Duration = Duration::from_secs(10);

/// Jobs on other machines over SSH: start them, signal them, read their output. The same jobs as on rsig's command line.
#[derive(OpenApi)]
#[openapi(security(("token" = [])), modifiers(&Token))]
struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "On a port: the token in serve.token in rsig's state directory. The Unix socket needs none.",
            ));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(bearer.build()));
    }
}

fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(version))
        .routes(routes!(document))
        .routes(routes!(list, start))
        .routes(routes!(show, remove))
        .routes(routes!(signal))
        .routes(routes!(stop))
        .routes(routes!(send))
        .routes(routes!(processes))
        .routes(routes!(log::log))
}

/// All routes, behind the guard.
pub fn router(app: Arc<App>, rules: Guard) -> Router {
    Router::from(routes())
        .fallback(async |uri: Uri| {
            let path = uri.path();
            let message = format!("nothing at {path}; /openapi.json lists the routes");
            Problem::new(NOT_FOUND, message)
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let path = uri.path();
            let message = format!("{path} does not take {method}; see the Allow header");
            Problem::new(BAD_METHOD, message)
        })
        .with_state(app)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(Arc::new(rules), guard))
}

type Shared = State<Arc<App>>;

impl App {
    /// Runs a request on a worker. The request may wait for a job (`long`) or only for a host.
    async fn run<T: Send + 'static>(
        &self,
        long: bool,
        work: impl FnOnce(&mut Context, &CancellationToken) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Problem> {
        let permits = self.workers.permits(long);
        let permit = if long {
            permits.try_acquire_owned().ok()
        } else {
            permits.acquire_owned().await.ok()
        };
        let permit = permit.ok_or_else(busy)?;
        Ok(Arc::clone(&self.workers).run(permit, work).await??)
    }

    /// Like `run`, for a request about one job.
    pub(super) async fn run_on<T: Send + 'static>(
        &self,
        job: String,
        long: bool,
        work: impl FnOnce(&mut Context, &JobWord, &CancellationToken) -> Result<T, Failure>
        + Send
        + 'static,
    ) -> Result<T, Problem> {
        let work = move |context: &mut Context, gone: &CancellationToken| {
            let (_, job) = operations::job(context, &job)?;
            work(context, &job, gone)
        };
        self.run(long, work).await
    }
}

#[derive(Serialize, ToSchema)]
struct Version {
    name: &'static str,
    version: &'static str,
}

/// The name and version of the server
#[utoipa::path(get, path = "/", responses((status = OK, description = "rsig and its version", body = Version), Problem))]
async fn version() -> Json<Version> {
    Json(Version {
        name: "rsig",
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// This document
#[utoipa::path(get, path = "/openapi.json", responses((status = OK, description = "The document", body = Object), Problem))]
async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(routes().into_openapi())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listing {
    /// Unfinished jobs only
    #[serde(default, deserialize_with = "flag")]
    running: bool,
}

/// List jobs, as their hosts report them
#[utoipa::path(get, path = "/processes", params(Listing), responses(
    (status = OK, description = "The jobs, oldest first; the state is unknown if a host can't be asked", body = Vec<JobJson>),
    Problem,
))]
async fn list(app: Shared, Query(query): Query<Listing>) -> Result<Response, Problem> {
    let filter = Filter {
        all: !query.running,
        ..Filter::default()
    };
    let listing = app.run(false, move |context, _| operations::list(context, &filter));
    let jobs = listing.await?.jobs;
    let jobs = jobs.iter().map(|job| JobJson::new(&job.record, job.state));
    Ok(Json(jobs.collect::<Vec<_>>()).into_response())
}

/// Show the state of a job
#[utoipa::path(get, path = "/processes/{job}", params(JobPath), responses(
    (status = OK, description = "The job", body = JobJson),
    Problem,
))]
async fn show(app: Shared, Path(path): Path<JobPath>) -> Result<Response, Problem> {
    let listed = app.run_on(path.job, false, |context, job, _| {
        let filter = Filter {
            all: true,
            jobs: vec![job.clone()],
            ..Filter::default()
        };
        let mut listing = operations::list(context, &filter)?;
        let unknown = || Failure::new(Kind::NotFound, format!("no job {}", job.as_str()));
        let found = listing.jobs.pop();
        found.ok_or_else(|| listing.failures.pop().unwrap_or_else(unknown))
    });
    let listed = listed.await?;
    Ok(Json(JobJson::new(&listed.record, listed.state)).into_response())
}

#[derive(Serialize, ToSchema)]
struct Pids {
    ok: bool,
    pids: Vec<u32>,
}

/// List the processes of a job
#[utoipa::path(get, path = "/processes/{job}/_pids", params(JobPath), responses(
    (status = OK, description = "The process ids of the job's process group on its host; none once the job's first process has ended", body = Pids),
    Problem,
))]
async fn processes(app: Shared, Path(path): Path<JobPath>) -> Result<Json<Pids>, Problem> {
    let pids = app.run_on(path.job, false, |context, job, _| pids::pids(context, job));
    let pids = pids.await?;
    Ok(Json(Pids { ok: true, pids }))
}

/// Start a job that outlives this server
#[utoipa::path(post, path = "/processes", request_body = NewJob, responses(
    (status = CREATED, description = "The job runs", body = JobJson, headers(("Location", description = "The job's path"))),
    Problem,
))]
async fn start(app: Shared, Body(job): Body<NewJob>) -> Result<Response, Problem> {
    let spawned = app.run(false, |context, _| {
        let request = job.request(context)?;
        spawn(context, request)
    });
    let record = spawned.await?.record;
    let location = [(LOCATION, format!("/processes/{}", record.id))];
    let job = Json(JobJson::new(&record, record.state));
    Ok((StatusCode::CREATED, location, job).into_response())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Removal {
    /// Stop it first if it still runs
    #[serde(default, deserialize_with = "flag")]
    force: bool,
}

/// A request that was carried out; if it waited for the job, the job's state after that
#[expect(clippy::option_option, reason = "absent is not null")]
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Done {
    ok: bool,
    /// 128+n when signal n ended it
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u8>)]
    exit_status: Option<Option<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    still_running: Option<bool>,
}

impl Done {
    const OK: Self = Self {
        ok: true,
        exit_status: None,
        still_running: None,
    };

    fn with(Outcome { record, .. }: &Outcome) -> Self {
        Self {
            exit_status: Some(record.exit_status),
            still_running: Some(!record.state.is_finished()),
            ..Self::OK
        }
    }
}

/// Remove a finished job and its files
#[utoipa::path(delete, path = "/processes/{job}", params(JobPath, Removal), responses(
    (status = OK, description = "The job was removed", body = Done),
    Problem,
))]
async fn remove(
    app: Shared,
    Path(path): Path<JobPath>,
    Query(Removal { force }): Query<Removal>,
) -> Result<Json<Done>, Problem> {
    let removed = app.run_on(path.job, force, move |context, job, _| {
        operations::remove(context, job, force)
    });
    removed.await.map(|()| Json(Done::OK))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct SignalPath {
    /// A job's id, its name, a unique prefix of its id, or HOST/ID with its slash written as %2F
    #[param(min_length = 1)]
    job: String,
    /// A name with or without SIG in any case, or a number on the job's system; 0 only asks whether the job runs
    #[param(
        example = "TERM",
        pattern = "^((SIG)?(HUP|INT|QUIT|ILL|TRAP|ABRT|BUS|FPE|KILL|USR1|SEGV|USR2|PIPE|ALRM|TERM|CHLD|CONT|STOP|TSTP|TTIN|TTOU|URG|XCPU|XFSZ|VTALRM|PROF|WINCH|SYS)|[0-9]|[12][0-9]|3[01])$"
    )]
    signal: String,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Waiting {
    /// Wait up to this long for the job to end, an hour at most
    #[serde(default, deserialize_with = "wait")]
    #[param(value_type = String, required = false, example = "5s", pattern = "^([1-9][0-9]{0,2}(ms|s)|[1-9]m)$")]
    wait: Option<Duration>,
}

/// Send a signal to all processes of a job, exactly once
#[utoipa::path(post, path = "/processes/{job}/_signal/{signal}", params(SignalPath, Waiting), responses(
    (status = OK, description = "The signal was delivered; with wait, the state of the job after that", body = Done),
    Problem,
))]
async fn signal(
    app: Shared,
    Path(path): Path<SignalPath>,
    Query(Waiting { wait }): Query<Waiting>,
) -> Result<Json<Done>, Problem> {
    let bad = |error: BadSignal| Problem::new(BAD_VALUE, error.to_string());
    let signal: SignalWord = path.signal.parse().map_err(bad)?;
    if wait.is_some() && signal.is_existence_check() {
        return Err(Problem::new(BAD_VALUE, "wait: signal 0 does not end a job"));
    }
    let done = app.run_on(path.job, wait.is_some(), move |context, job, gone| {
        let until = wait.map(|wait| Instant::now() + wait);
        // The verb waits for at most one slice; the rest of the wait ends early if the client is gone.
        let sending = SendOptions {
            wait: wait.map(|wait| wait.min(operations::SLICE)),
            ..SendOptions::default()
        };
        let outcome = deliver(context, job, signal, &sending)?;
        Ok(match until {
            None => Done::OK,
            Some(until) if outcome.still_running == Some(true) => {
                Done::with(&operations::await_end(context, job, until, gone)?)
            }
            Some(_) => Done::with(&outcome),
        })
    });
    done.await.map(Json)
}

/// Sends a signal to a job and returns the outcome.
fn deliver(
    context: &mut Context,
    job: &JobWord,
    signal: SignalWord,
    sending: &SendOptions,
) -> Result<Outcome, Failure> {
    let mut outcome = operations::deliver(context, job, signal, sending)?.outcome?;
    match outcome.error.take() {
        // A client that waits sees the state in the response.
        Some(failure) if failure.kind == Kind::Lost && sending.wait.is_some() => Ok(outcome),
        Some(failure) => Err(failure),
        None => Ok(outcome),
    }
}

/// What to send to a job's standard input
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewInput {
    text: String,
    /// Send a newline after the text
    #[serde(default)]
    newline: bool,
    /// Close the input after the text
    #[serde(default)]
    eof: bool,
}

/// Write to the standard input of a job that was started with stdin_open, exactly once
#[utoipa::path(post, path = "/processes/{job}/_stdin", params(JobPath), request_body = NewInput, responses(
    (status = OK, description = "The text is on the host's disk", body = Done),
    Problem,
))]
async fn send(
    app: Shared,
    Path(path): Path<JobPath>,
    Body(input): Body<NewInput>,
) -> Result<Json<Done>, Problem> {
    let sent = app.run_on(path.job, false, move |context, job, _| {
        let data = operations::text(Some(input.text), input.newline, input.eof)?;
        append(context, job, &data, input.eof)
    });
    sent.await.map(|()| Json(Done::OK))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Stopping {
    /// Time for the job to end after TERM: 10s by default, an hour at most
    #[serde(default, deserialize_with = "wait")]
    #[param(value_type = String, required = false, example = "5s", pattern = "^([1-9][0-9]{0,2}(ms|s)|[1-9]m)$")]
    grace: Option<Duration>,
}

/// End a job: TERM, then KILL if it still runs after the grace
#[utoipa::path(post, path = "/processes/{job}/_stop", params(JobPath, Stopping), responses(
    (status = OK, description = "The state of the job now", body = Done),
    Problem,
))]
async fn stop(
    app: Shared,
    Path(path): Path<JobPath>,
    Query(Stopping { grace }): Query<Stopping>,
) -> Result<Json<Done>, Problem> {
    let done = app.run_on(path.job, true, move |context, job, _| {
        let sending = SendOptions::stop(grace.unwrap_or(GRACE), Target::Group);
        Ok(Done::with(&deliver(
            context,
            job,
            SignalWord::TERM,
            &sending,
        )?))
    });
    done.await.map(Json)
}
