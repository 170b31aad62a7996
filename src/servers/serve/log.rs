//! `GET /processes/JOB/_log`: the bytes that a job has written, as they are.
//!
//! A few chunks at most wait for a client. One that takes them slowly holds its job's reader back, and the reader the
//! host, so nothing piles up anywhere but in the log. What goes wrong after the first byte can't be said any more: the
//! answer is broken off, so that no client takes it for whole.

use std::sync::Arc;

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
use super::request::{JobPath, Path, Query, flag};
use crate::cmd::tail::{Request, tail};
use crate::error::{Failure, Kind};
use crate::remote::Stream as Log;
use crate::remote::output::From as Start;
use crate::servers::Class;
use crate::servers::one::job;

/// How many chunks wait for a client, and how large they are at most.
const CHUNKS: usize = 4;
const CHUNK_MAX: usize = 64 << 10;
/// The largest position in a log that every shell can count to.
const OFFSET_MAX: u64 = 1 << 53;

#[derive(Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// Which of its streams
    #[serde(default)]
    #[param(inline)]
    stream: Stream,
    /// Leave out this many bytes
    #[serde(default)]
    #[param(maximum = 9_007_199_254_740_992_i64)]
    offset: u64,
    /// Go on until the job ends; an answer that breaks off before its end is not whole
    #[serde(default, deserialize_with = "flag")]
    follow: bool,
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Stream {
    #[default]
    Stdout,
    Stderr,
}

/// Read what a job has written, byte by byte
#[utoipa::path(get, path = "/processes/{job}/_log", params(JobPath, Wanted), responses(
    (status = OK, description = "The bytes", content_type = "application/octet-stream"),
    Problem,
))]
pub async fn log(
    State(app): State<Arc<App>>,
    Path(path): Path<JobPath>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    if wanted.offset > OFFSET_MAX {
        return Err(Problem::new(
            BAD_VALUE,
            format!("offset: {OFFSET_MAX} at most"),
        ));
    }
    let class = if wanted.follow {
        Class::Follow
    } else {
        Class::Long
    };
    let permit = app.workers.try_permit(class).ok_or_else(busy)?;
    let (sender, mut chunks) = mpsc::channel(CHUNKS);
    tokio::spawn(permit.work(move || {
        let stopped = || Failure::new(Kind::Failed, "the server stops");
        let sent = send(&app, &path.job, &wanted, &sender);
        if let Some(failure) = sent
            .err()
            .or_else(|| app.stopping.is_cancelled().then(stopped))
        {
            // A client that has gone does not hear of it.
            drop(sender.blocking_send(Err(failure)));
        }
    }));
    let first = match chunks.recv().await {
        Some(Err(failure)) => return Err(failure.into()),
        first => first,
    };
    let body = Body::from_stream(tokio_stream::iter(first).chain(ReceiverStream::new(chunks)));
    Ok(([(CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

type Chunk = Result<Bytes, Failure>;

fn send(
    app: &App,
    word: &str,
    wanted: &Wanted,
    sender: &mpsc::Sender<Chunk>,
) -> Result<(), Failure> {
    let send = |bytes| {
        let sent = sender.blocking_send(Ok(bytes));
        sent.map_err(|_| Failure::new(Kind::Failed, "the client has gone"))
    };
    if wanted.follow {
        // Fails before the first byte, however long that takes to come. Nothing is read, and not to the end: a job whose
        // output was read may be forgotten.
        let nothing = Wanted {
            offset: OFFSET_MAX,
            follow: false,
            ..*wanted
        };
        read(app, word, &nothing, &|| true, &mut |_| Ok(()))?;
        send(Bytes::new())?;
    }
    let over = || sender.is_closed() || app.stopping.is_cancelled();
    read(app, word, wanted, &over, &mut |bytes| {
        let mut chunks = bytes.chunks(CHUNK_MAX);
        chunks.try_for_each(|chunk| send(Bytes::copy_from_slice(chunk)))
    })
}

fn read(
    app: &App,
    word: &str,
    wanted: &Wanted,
    over: &dyn Fn() -> bool,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut context = app.limits.context()?;
    let (_, word) = job(&context, word)?;
    let request = Request {
        out: wanted.stream == Stream::Stdout,
        err: wanted.stream == Stream::Stderr,
        from: Start::Byte(wanted.offset + 1),
        follow: wanted.follow,
        brief: wanted.offset == OFFSET_MAX,
        enough: Some(over),
    };
    let sink = &mut |_: Log, bytes: &[u8]| sink(bytes);
    tail(&mut context, &word, &request, sink)?;
    Ok(())
}
