//! `GET /processes/JOB/_log`: a job's output, byte for byte.
//!
//! At most `CHUNKS_MAX` chunks are queued for a client. A slow client slows down the reader of the log, and the reader
//! slows down the host, so nothing accumulates. An error after the first byte can't be reported, so the response is cut
//! off: no client takes it for complete. The response is also cut off if the next bytes were removed because of the
//! job's `log_max`. Bytes that are gone before the first byte are counted in a header.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::problem::{BAD_VALUE, Problem, busy};
use super::request::{JobPath, Path, Query, flag, wait};
use crate::cmd::context::Context;
use crate::cmd::pattern::Pattern;
use crate::cmd::tail::{Request, tail};
use crate::error::{Failure, Kind};
use crate::remote::output::{MissingOutput, StartPosition as Start};
use crate::servers::operations;

/// Maximum number of chunks queued for a client.
const CHUNKS_MAX: usize = 4;
/// Maximum size of a chunk, in bytes.
const CHUNK_MAX: usize = 64 << 10;
/// Maximum position in a log, in bytes: every shell can count that far.
const OFFSET_MAX: u64 = 1 << 53;
/// Header: the number of bytes from the offset on that are gone.
const OMITTED: &str = "rsig-omitted-bytes";

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Which of the job's streams
    #[serde(default)]
    #[param(inline)]
    stream: Stream,
    /// Skip this many bytes
    #[serde(default)]
    #[param(maximum = 9_007_199_254_740_992_i64)]
    offset: u64,
    /// Continue until the job ends; a response that is cut off is incomplete
    #[serde(default, deserialize_with = "flag")]
    follow: bool,
    /// First wait until a line of either stream matches this extended regular expression. The output is searched from its
    /// beginning
    wait_for: Option<String>,
    /// Wait up to this long for such a line, an hour at most; without it, only the output so far is searched
    #[serde(default, deserialize_with = "wait")]
    #[param(value_type = String, required = false, example = "5s", pattern = "^([1-9][0-9]{0,2}(ms|s)|[1-9]m)$")]
    wait: Option<Duration>,
}

/// Header: whether a line matched `wait_for`.
const MATCHED: &str = "rsig-matched";

#[derive(Clone, Copy, Default, Deserialize, ToSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Stream {
    #[default]
    Stdout,
    Stderr,
}

/// Read what a job has written
#[utoipa::path(get, path = "/processes/{job}/_log", params(JobPath, LogQuery), responses(
    (status = OK, description = "The bytes", content_type = "application/octet-stream", headers(
        ("Rsig-Matched", description = "With wait_for: true, or false if no line matched before the time ran out or the job ended"),
        ("Rsig-Omitted-Bytes" = u64, description = "Number of bytes after the offset that log_max has removed")
    )),
    Problem,
))]
pub async fn log(
    State(app): State<Arc<App>>,
    Path(path): Path<JobPath>,
    Query(wanted): Query<LogQuery>,
) -> Result<Response, Problem> {
    if wanted.offset > OFFSET_MAX {
        return Err(Problem::new(
            BAD_VALUE,
            format!("offset: {OFFSET_MAX} at most"),
        ));
    }
    let matched = match (&wanted.wait_for, wanted.wait) {
        (Some(text), limit) => {
            let pattern = Pattern::parse(text);
            let pattern =
                pattern.map_err(|why| Problem::new(BAD_VALUE, format!("wait_for: {why}")))?;
            Some(await_line(&app, path.job.clone(), pattern, limit).await?)
        }
        (None, Some(_)) => return Err(Problem::new(BAD_VALUE, "wait: needs wait_for")),
        (None, None) => None,
    };
    let permits = if wanted.follow {
        Arc::clone(&app.follow)
    } else {
        app.workers.permits(true)
    };
    let permit = permits.try_acquire_owned().map_err(|_| busy())?;
    let (sender, mut chunks) = mpsc::channel(CHUNKS_MAX);
    let omitted = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&omitted);
    tokio::spawn(async move {
        let (last, workers) = (sender.clone(), Arc::clone(&app.workers));
        let stopping = app.stopping.clone();
        let send = move |context: &mut Context, _: &_| {
            send(&app, context, &path.job, &wanted, &sender, &counted)
        };
        let sent = workers.run(permit, send).await.and_then(|sent| sent);
        let failure = match sent {
            Ok(()) if stopping.is_cancelled() => Failure::new(Kind::Failed, "the server stops"),
            Ok(()) => return,
            Err(failure) => failure,
        };
        // If the client is gone, a failed send is harmless.
        drop(last.send(Err(failure)).await);
    });
    let first = match chunks.recv().await {
        Some(Err(failure)) => return Err(failure.into()),
        first => first,
    };
    let body = Body::from_stream(tokio_stream::iter(first).chain(ReceiverStream::new(chunks)));
    let matched = matched.map(|matched| [(MATCHED, matched.to_string())]);
    let omitted = Some(omitted.load(Ordering::Relaxed)).filter(|omitted| *omitted > 0);
    let omitted = omitted.map(|omitted| [(OMITTED, omitted.to_string())]);
    let content = [(CONTENT_TYPE, "application/octet-stream")];
    Ok((content, matched, omitted, body).into_response())
}

async fn await_line(
    app: &App,
    job: String,
    pattern: Pattern,
    limit: Option<Duration>,
) -> Result<bool, Problem> {
    let found = app.run_on(job, true, move |context, job, gone| {
        let until = Instant::now() + limit.unwrap_or_default();
        operations::await_line(context, job, &pattern, until, gone)
    });
    Ok(found.await?.is_some())
}

type Chunk = Result<Bytes, Failure>;

fn send(
    app: &App,
    context: &mut Context,
    job: &str,
    wanted: &LogQuery,
    sender: &mpsc::Sender<Chunk>,
    omitted: &AtomicU64,
) -> Result<(), Failure> {
    let (_, job) = operations::job(context, job)?;
    let (begun, broken) = (Cell::new(false), Cell::new(false));
    let gone = |gone: &MissingOutput<'_>| {
        if begun.get() {
            broken.set(true);
        } else {
            omitted.fetch_add(gone.bytes, Ordering::Relaxed);
        }
    };
    let send = |bytes| {
        if broken.get() {
            return Err(Failure::new(Kind::Failed, "what comes next is gone"));
        }
        let sent = sender.blocking_send(Ok(bytes));
        sent.map_err(|_| Failure::new(Kind::Failed, "the client is gone"))
    };
    let over = || sender.is_closed() || app.stopping.is_cancelled();
    let request = Request {
        out: wanted.stream == Stream::Stdout,
        err: wanted.stream == Stream::Stderr,
        from: Start::Byte(wanted.offset + 1),
        follow: wanted.follow,
        brief: wanted.offset == OFFSET_MAX,
        enough: Some(&over),
        gone: &gone,
    };
    if wanted.follow {
        // The first byte may take long to arrive, so report errors now, by a request that reads nothing.
        let check = Request {
            from: Start::Byte(OFFSET_MAX + 1),
            follow: false,
            brief: true,
            enough: None,
            ..request
        };
        let ring = tail(context, &job, &check, &mut |_, _| Ok(()))?.ring;
        let oldest = ring.map_or(0, |ring| ring.oldest[usize::from(request.err)]);
        // If bytes at the offset are gone, later bytes exist, and the header is sent with those.
        if oldest <= wanted.offset {
            begun.set(true);
            send(Bytes::new())?;
        }
    }
    tail(context, &job, &request, &mut |_, bytes| {
        begun.set(true);
        let mut chunks = bytes.chunks(CHUNK_MAX);
        chunks.try_for_each(|chunk| send(Bytes::copy_from_slice(chunk)))
    })?;
    Ok(())
}
