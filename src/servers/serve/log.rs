//! `GET /processes/JOB/_log`: the bytes that a job has written, as they are.
//!
//! A few pieces at most wait for a client. One that takes them slowly holds its job's reader back, and the reader the
//! host, so nothing piles up anywhere but in the log. What goes wrong behind the first byte can't be said any more: the
//! answer is broken off, so that no client takes it for whole.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};

use super::App;
use super::problem::Problem;
use super::routes::{Options, Word, flag};
use crate::cmd::tail::{Request, tail};
use crate::error::{Failure, Kind};
use crate::remote::Stream as Log;
use crate::remote::output::From as Start;
use crate::servers::Length;
use crate::servers::one::job;

/// How many logs are followed at a time.
const FOLLOWERS: usize = 32;
/// How many pieces wait for a client.
const PIECES: usize = 4;
/// The largest place in a log that every shell can count to.
const FARTHEST: u64 = 1 << 53;

/// Places for those that follow a log.
pub fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(FOLLOWERS))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    #[serde(default)]
    stream: Stream,
    #[serde(default)]
    offset: u64,
    #[serde(default, deserialize_with = "flag")]
    follow: bool,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Stream {
    #[default]
    Stdout,
    Stderr,
}

type Piece = Result<Bytes, Failure>;

pub async fn log(
    State(app): State<Arc<App>>,
    word: Word,
    query: Options<Wanted>,
) -> Result<Response, Problem> {
    let (Path(word), Query(wanted)) = (word?, query?);
    if wanted.offset > FARTHEST {
        return Err(Problem::bad_value(format!("offset: {FARTHEST} at most")));
    }
    if !wanted.follow {
        let (sender, pieces) = mpsc::channel(PIECES);
        let turn = app
            .crew
            .turn_now(Length::Long)
            .ok_or_else(|| Problem::busy("too many requests read or wait"))?;
        tokio::spawn(turn.work(move || pass(&app, &word, &wanted, &sender)));
        return begun(pieces).await;
    }
    let place = Arc::clone(&app.followers).try_acquire_owned();
    let place =
        place.map_err(|_| Problem::busy(&format!("{FOLLOWERS} logs are followed already")))?;
    // Asked first, so that what is wrong is said before the first byte is, however long that takes to come.
    let there = Wanted {
        follow: false,
        ..wanted
    };
    let (asked, name) = (Arc::clone(&app), word.clone());
    let turn = app
        .crew
        .turn(Length::Short)
        .await
        .ok_or_else(|| Problem::busy("the server stops"))?;
    turn.work(move || is_there(&asked, &name, &there)).await??;
    let (sender, pieces) = mpsc::channel(PIECES);
    let follower = std::thread::Builder::new().spawn(move || {
        pass(&app, &word, &wanted, &sender);
        drop(place);
    });
    follower.map_err(|error| Problem::busy(&format!("no thread can be started: {error}")))?;
    Ok(answer(None, pieces))
}

/// The answer once it is known to be one.
async fn begun(mut pieces: mpsc::Receiver<Piece>) -> Result<Response, Problem> {
    match pieces.recv().await {
        Some(Err(failure)) => Err(failure.into()),
        first => Ok(answer(first, pieces)),
    }
}

fn answer(first: Option<Piece>, mut pieces: mpsc::Receiver<Piece>) -> Response {
    let mut first = first;
    let stream = Pieces(Box::new(move |context| match first.take() {
        Some(piece) => std::task::Poll::Ready(Some(piece)),
        None => pieces.poll_recv(context),
    }));
    (
        [(CONTENT_TYPE, "application/octet-stream")],
        Body::new(stream),
    )
        .into_response()
}

type Poll = std::task::Poll<Option<Piece>>;

/// A body of pieces.
struct Pieces(Box<dyn FnMut(&mut std::task::Context<'_>) -> Poll + Send>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Failure>>> {
        (self.0)(context).map(|piece| piece.map(|piece| piece.map(hyper::body::Frame::data)))
    }
}

/// Passes a log on, and in the end what went wrong.
fn pass(app: &App, word: &str, wanted: &Wanted, sender: &mpsc::Sender<Piece>) {
    let over = || sender.is_closed() || app.stopping.is_so();
    let read = read(app, word, wanted, &over, &mut |bytes: &[u8]| {
        // In parts of a moderate size, whatever the reader's buffer is.
        for part in bytes.chunks(64 << 10) {
            let sent = sender.blocking_send(Ok(Bytes::copy_from_slice(part)));
            sent.map_err(|_| Failure::new(Kind::Failed, "the client has gone"))?;
        }
        Ok(())
    });
    let stopped = || {
        app.stopping
            .is_so()
            .then(|| Failure::new(Kind::Failed, "the server stops"))
    };
    if let Some(failure) = read.err().or_else(stopped) {
        // Nobody is there to hear it any more, perhaps.
        drop(sender.blocking_send(Err(failure)));
    }
}

/// Asks whether the log can be read.
fn is_there(app: &App, word: &str, wanted: &Wanted) -> Result<(), Failure> {
    // Nothing is read behind its end, nor to it: what has been read may be forgotten.
    let behind = Wanted {
        offset: FARTHEST,
        ..*wanted
    };
    read(app, word, &behind, &|| true, &mut |_| Ok(()))
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
        brief: wanted.offset == FARTHEST,
        enough: Some(over),
    };
    tail(
        &mut context,
        &word,
        &request,
        &mut |_: Log, bytes: &[u8]| sink(bytes),
    )?;
    Ok(())
}
