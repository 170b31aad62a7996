//! `rsig serve`: jobs over HTTP, for programs on this machine.
//!
//! `listen` opens the sockets, `guard` does access control, `request` parses requests, `routes` and `log` handle them,
//! `problem` describes errors. There is no TLS, and the server listens only on this machine: from elsewhere, forward
//! the port or the socket with ssh.

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

/// Maximum number of open connections; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// Maximum time for a client to send the head of a request, and for a connection to be idle.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// Maximum size of the head of a request, in bytes.
const HEAD_MAX: usize = 32 << 10;
/// Maximum time for which a client may not read from its response.
const WRITE_WAIT: Duration = Duration::from_secs(30);
/// Maximum time for open requests to finish when the server stops.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(3);
/// Maximum number of logs followed at once.
const FOLLOW_MAX: usize = 32;

/// The state shared by all requests.
struct App {
    workers: Arc<Workers>,
    /// Permits for following logs.
    follow: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// Serves until TERM, INT or HUP. Jobs keep running.
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
    // Does not wait for workers that still wait for a host.
    runtime.shutdown_background();
    served
}

/// Accepts connections and serves each one in a task.
async fn accept(listener: &Listener, router: Router, connections: &GracefulShutdown) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Ok(stream) = listener.accept().await else {
            // For example out of file descriptors, which is temporary.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream
            .as_mut()
            .set_write_timeout_pinned(Some(clock::scaled(WRITE_WAIT)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(clock::scaled(HEAD_WAIT))
            .max_buf_size(HEAD_MAX)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(router.clone()),
            );
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // Ignore errors: a broken connection affects only its client.
            drop(connection.await);
            drop(permit);
        });
    }
}
