//! The routes: each turns a request into a command's, and its results into JSON. The document that describes them
//! (OpenAPI 3.1) is derived from them.

use std::collections::BTreeMap;
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
use utoipa::openapi::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{IntoParams, Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::guard::{Guard, guard};
use super::problem::{BAD_METHOD, BAD_VALUE, NOT_FOUND, Problem, busy};
use super::request::{Body, JobPath, Path, Query, flag, wait};
use super::{App, log};
use crate::cmd::context::Context;
use crate::cmd::deliver::Sending;
use crate::cmd::values::duration;
use crate::cmd::{self, start as starting};
use crate::delivery::Outcome;
use crate::error::{Failure, Kind};
use crate::job::{JobWord, Target};
use crate::servers::start::{Start, shell_line};
use crate::servers::{Class, one};
use crate::signal::{BadSignal, SignalWord};
use crate::terminal::JobJson;

/// The largest body of a request, in bytes.
const BODY_MAX: usize = 1 << 20;
/// How long `_stop` gives a job to end by itself, unless it is told.
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
        .routes(routes!(pids))
        .routes(routes!(log::log))
}

/// All routes, behind the guard.
pub fn router(app: Arc<App>, who: Guard) -> Router {
    Router::from(routes())
        .fallback(async |uri: Uri| {
            let path = uri.path();
            let message = format!("there is nothing at {path}; /openapi.json lists the routes");
            Problem::new(NOT_FOUND, message)
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let path = uri.path();
            let message = format!("{path} does not take {method}; see the Allow header");
            Problem::new(BAD_METHOD, message)
        })
        .with_state(app)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(Arc::new(who), guard))
}

/// Has a worker carry a request out.
async fn work<T: Send + 'static>(
    app: Arc<App>,
    class: Class,
    work: impl FnOnce(&mut Context, &CancellationToken) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Problem> {
    let permit = match class {
        Class::Short => app.workers.permit(class).await,
        _ => app.workers.try_permit(class),
    };
    let permit = permit.ok_or_else(busy)?;
    let gone = CancellationToken::new();
    let _guard = gone.clone().drop_guard();
    let done = permit.work(move || work(&mut app.limits.context()?, &gone));
    Ok(done.await??)
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
struct Filter {
    /// Unfinished jobs only
    #[serde(default, deserialize_with = "flag")]
    running: bool,
}

/// List jobs, as their hosts report them
#[utoipa::path(get, path = "/processes", params(Filter), responses(
    (status = OK, description = "The jobs, the oldest first; the state is unknown if a host can't be asked", body = Vec<JobJson>),
    Problem,
))]
async fn list(
    State(app): State<Arc<App>>,
    Query(filter): Query<Filter>,
) -> Result<Response, Problem> {
    let listing = work(app, Class::Short, move |context, _| {
        let mut listing = one::ask(context, Vec::new(), !filter.running)?;
        // A job that ended a moment ago does not run any more.
        listing
            .jobs
            .retain(|job| !filter.running || !job.state.is_finished());
        Ok(listing)
    });
    let jobs = listing.await?.jobs;
    let jobs = jobs.iter().map(|job| JobJson::new(&job.record, job.state));
    Ok(Json(jobs.collect::<Vec<_>>()).into_response())
}

/// Show how a job stands
#[utoipa::path(get, path = "/processes/{job}", params(JobPath), responses(
    (status = OK, description = "The job", body = JobJson),
    Problem,
))]
async fn show(State(app): State<Arc<App>>, Path(path): Path<JobPath>) -> Result<Response, Problem> {
    let listed = work(app, Class::Short, move |context, _| {
        let (_, job) = one::job(context, &path.job)?;
        one::ask_one(context, &job)
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
    (status = OK, description = "The process ids of its group on its host; none once its first process has ended", body = Pids),
    Problem,
))]
async fn pids(
    State(app): State<Arc<App>>,
    Path(path): Path<JobPath>,
) -> Result<Json<Pids>, Problem> {
    let pids = work(app, Class::Short, move |context, _| {
        let (_, job) = one::job(context, &path.job)?;
        cmd::pids::pids(context, &job)
    });
    let pids = pids.await?;
    Ok(Json(Pids { ok: true, pids }))
}

/// A job to start
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewJob {
    /// `local`, an alias of the server's ssh configuration, or [user@]host[:port]
    #[schema(
        pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,60}(:[1-9][0-9]{0,3})?$|^[A-Za-z0-9][A-Za-z0-9._-]{0,30}@[A-Za-z0-9][A-Za-z0-9._-]{0,60}$"
    )]
    host: String,
    /// A line for /bin/sh, or an array of words
    #[schema(schema_with = command_schema)]
    command: Command,
    /// Stands for the job in place of its id; unique among unfinished jobs
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    name: Option<String>,
    /// The directory to start in; a relative one is taken from the home directory
    #[schema(pattern = "^[^\\u0000]+$")]
    cwd: Option<String>,
    /// Variables for its environment
    #[serde(default)]
    #[schema(schema_with = env_schema)]
    env: BTreeMap<String, String>,
    /// Standard error goes where standard output goes
    #[serde(default)]
    merge: bool,
    /// How long it may run, such as 90s or 1h 30m: then its host ends it
    #[schema(pattern = "^[1-9][0-9]{0,5}(ms|s|m)$")]
    timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "command: a line for /bin/sh as text, or an array of words"
)]
enum Command {
    Line(String),
    Words(Vec<String>),
}

fn text(pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
}

fn command_schema() -> Schema {
    let words = ArrayBuilder::new()
        .min_items(Some(1))
        .prefix_items([text("^[^\\u0000]+$")])
        .items(text("^[^\\u0000]*$"));
    let line = text("^[^\\u0000]*[!-~][^\\u0000]*$");
    OneOfBuilder::new().item(line).item(words).build().into()
}

fn env_schema() -> Schema {
    ObjectBuilder::new()
        .property_names(Some(text("^[A-Za-z_][A-Za-z0-9_]*$")))
        .additional_properties(Some(text("^[^\\u0000]*$")))
        .build()
        .into()
}

impl NewJob {
    fn request(self, context: &Context) -> Result<starting::Request, Failure> {
        let command = match self.command {
            Command::Line(line) => shell_line(line),
            Command::Words(words) => words,
        };
        let timeout = self.timeout.map(|time| duration(&time)).transpose();
        let start = Start {
            host: self.host,
            command,
            name: self.name,
            cwd: self.cwd,
            env: self.env,
        };
        let timeout =
            timeout.map_err(|error| Failure::new(Kind::Usage, format!("timeout: {error}")))?;
        Ok(starting::Request {
            merge: self.merge,
            ..start.request(context, timeout)?
        })
    }
}

/// Start a job that outlives this server
#[utoipa::path(post, path = "/processes", request_body = NewJob, responses(
    (status = CREATED, description = "The job runs", body = JobJson, headers(("Location", description = "The job's path"))),
    Problem,
))]
async fn start(State(app): State<Arc<App>>, Body(job): Body<NewJob>) -> Result<Response, Problem> {
    let spawned = work(app, Class::Short, move |context, _| {
        let request = job.request(context)?;
        starting::spawn(context, request)
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

#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Done {
    ok: bool,
}

/// Forget a finished job, and remove its files
#[utoipa::path(delete, path = "/processes/{job}", params(JobPath, Removal), responses(
    (status = OK, description = "It is gone", body = Done),
    Problem,
))]
async fn remove(
    State(app): State<Arc<App>>,
    Path(path): Path<JobPath>,
    Query(Removal { force }): Query<Removal>,
) -> Result<Json<Done>, Problem> {
    let class = if force { Class::Long } else { Class::Short };
    let removed = work(app, class, move |context, _| {
        let (_, job) = one::job(context, &path.job)?;
        one::remove(context, &job, force)
    });
    removed.await?;
    Ok(Json(Done { ok: true }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct SignalPath {
    /// A job's id, its name, a unique prefix of its id, or HOST/ID with its slash written as %2F
    #[param(min_length = 1)]
    job: String,
    /// A name with or without SIG in any case, or a number of the job's system; 0 only asks whether the job runs
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

/// How a job stands after it was signalled
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Ended {
    ok: bool,
    /// 128+n when signal n ended it
    #[schema(required)]
    exit_status: Option<u8>,
    still_running: bool,
}

impl Ended {
    fn of(Outcome { record, .. }: &Outcome) -> Self {
        Self {
            ok: true,
            exit_status: record.exit_status,
            still_running: !record.state.is_finished(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Signalled {
    Sent(Done),
    Waited(Ended),
}

/// Send a signal to all processes of a job, exactly once
#[utoipa::path(post, path = "/processes/{job}/_signal/{signal}", params(SignalPath, Waiting), responses(
    (status = OK, description = "Its delivery is confirmed; with wait, how the job stands then", body = Signalled),
    Problem,
))]
async fn signal(
    State(app): State<Arc<App>>,
    Path(path): Path<SignalPath>,
    Query(Waiting { wait }): Query<Waiting>,
) -> Result<Json<Signalled>, Problem> {
    let bad = |error: BadSignal| Problem::new(BAD_VALUE, error.to_string());
    let signal: SignalWord = path.signal.parse().map_err(bad)?;
    if wait.is_some() && signal.is_existence_check() {
        return Err(Problem::new(BAD_VALUE, "wait: signal 0 ends no job"));
    }
    let class = if wait.is_some() {
        Class::Long
    } else {
        Class::Short
    };
    let answer = work(app, class, move |context, gone| {
        let (_, job) = one::job(context, &path.job)?;
        let until = wait.map(|wait| Instant::now() + wait);
        // The first part of the wait is the command's own; a client that goes ends the rest.
        let sending = Sending {
            wait: wait.map(|wait| wait.min(one::SLICE)),
            ..Sending::default()
        };
        let outcome = deliver(context, &job, signal, &sending)?;
        Ok(match until {
            None => Signalled::Sent(Done { ok: true }),
            Some(until) if outcome.still_running == Some(true) => {
                Signalled::Waited(Ended::of(&one::await_end(context, &job, until, gone)?))
            }
            Some(_) => Signalled::Waited(Ended::of(&outcome)),
        })
    });
    answer.await.map(Json)
}

/// Sends a signal to a job, and returns the job's state after it.
fn deliver(
    context: &mut Context,
    job: &JobWord,
    signal: SignalWord,
    sending: &Sending,
) -> Result<Outcome, Failure> {
    let mut outcome = one::deliver(context, job, signal, sending)?.outcome?;
    match outcome.error.take() {
        // Who waits for the end learns it from the answer.
        Some(failure) if failure.kind == Kind::Lost && sending.wait.is_some() => Ok(outcome),
        Some(failure) => Err(failure),
        None => Ok(outcome),
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Stopping {
    /// How long it may take to end by itself: 10s unless given, an hour at most
    #[serde(default, deserialize_with = "wait")]
    #[param(value_type = String, required = false, example = "5s", pattern = "^([1-9][0-9]{0,2}(ms|s)|[1-9]m)$")]
    grace: Option<Duration>,
}

/// End a job: TERM, then KILL if it still runs after the grace
#[utoipa::path(post, path = "/processes/{job}/_stop", params(JobPath, Stopping), responses(
    (status = OK, description = "How the job stands now", body = Ended),
    Problem,
))]
async fn stop(
    State(app): State<Arc<App>>,
    Path(path): Path<JobPath>,
    Query(Stopping { grace }): Query<Stopping>,
) -> Result<Json<Ended>, Problem> {
    let ended = work(app, Class::Long, move |context, _| {
        let (_, job) = one::job(context, &path.job)?;
        let sending = Sending::stop(grace.unwrap_or(GRACE), Target::Group);
        Ok(Ended::of(&deliver(
            context,
            &job,
            SignalWord::TERM,
            &sending,
        )?))
    });
    ended.await.map(Json)
}
