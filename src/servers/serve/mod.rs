//! `rsig serve`: jobs over HTTP, for programs on this machine.
//!
//! `listen` opens the sockets, `guard` decides who may send requests, `request` parses them, `routes` and `log` answer
//! them, `problem` describes errors. There is no TLS and no address but this machine's: from elsewhere, let ssh forward
//! the port or the socket.

mod guard;
mod listen;
mod log;
mod problem;
mod request;
mod routes;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use self::guard::Guard;
use self::listen::Listener;
use super::Workers;
use crate::clock;
use crate::terminal::warn;

/// At most this many connections are open at once; further ones wait.
const CONNECTIONS_MAX: usize = 256;
/// How long a client may take to send the head of a request, and a connection may be idle.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// The largest head of a request, in bytes.
const HEAD_MAX: usize = 32 << 10;
/// How long a client may read nothing of an answer.
const WRITE_WAIT: Duration = Duration::from_secs(30);
/// How long requests may take to finish when the server stops.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(3);
/// At most this many logs are followed at once.
const FOLLOW_MAX: usize = 32;

/// What every request works with.
struct App {
    workers: Arc<Workers>,
    /// The permits of followed logs.
    follow: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// Serves until TERM, INT or HUP. Jobs run on.
pub fn serve(workers: Workers, address: Option<SocketAddr>) -> Result<()> {
    super::check_state()?;
    let runtime = super::runtime()?;
    let served = runtime.block_on(async {
        let on = |kind| signal(kind).context("signals can't be handled");
        let mut term = on(SignalKind::terminate())?;
        let mut int = on(SignalKind::interrupt())?;
        let mut hup = on(SignalKind::hangup())?;
        let (listener, guard) = match address {
            None => {
                let (listener, path) = listen::on_socket()?;
                warn(&format!("listening on the socket {}", path.display()));
                (listener, Guard(None))
            }
            Some(address) => {
                let (token, path) = token::load()?;
                let (listener, address) = listen::on_port(address).await?;
                let path = path.display();
                warn(&format!(
                    "listening on http://{address}; the token is in {path}"
                ));
                (listener, Guard(Some((address.port(), token))))
            }
        };
        let stopping = CancellationToken::new();
        let app = App {
            workers: Arc::new(workers),
            follow: Arc::new(Semaphore::new(FOLLOW_MAX)),
            stopping: stopping.clone(),
        };
        let connections = GracefulShutdown::new();
        let router = routes::router(Arc::new(app), guard);
        tokio::select! {
            () = accept(&listener, router, &connections) => {}
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => {}
        }
        stopping.cancel();
        // Requests that take longer are cut off.
        drop(tokio::time::timeout(SHUTDOWN_WAIT, connections.shutdown()).await);
        Ok(())
    });
    // Workers that wait for a host are left behind.
    runtime.shutdown_background();
    served
}

/// Accepts connections, and serves each in a task.
async fn accept(listener: &Listener, router: Router, connections: &GracefulShutdown) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Ok(stream) = listener.accept().await else {
            // Out of file descriptors, for example: that passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream
            .as_mut()
            .set_write_timeout_pinned(Some(clock::long(WRITE_WAIT)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(clock::long(HEAD_WAIT))
            .max_buf_size(HEAD_MAX)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(router.clone()),
            );
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // A broken connection concerns its client only.
            drop(connection.await);
            drop(permit);
        });
    }
}
