//! `rsig serve`: jobs over HTTP, for programs on this machine.
//!
//! `listen` has the sockets, `guard` decides who may ask at all, `stream` cuts off who is too slow, `routes` and `log`
//! answer, `problem` says what went wrong, `openapi` describes it all. There is no TLS and no other address than this
//! machine's: from elsewhere, ssh forwards the port or the socket.

mod guard;
mod listen;
mod log;
mod openapi;
mod problem;
mod routes;
mod stream;
mod token;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use self::guard::Guard;
use self::listen::{Listener, Peer};
use self::stream::Watched;
use super::{Crew, Gone, Limits};
use crate::clock;
use crate::terminal::note;

/// How many connections there are at a time; the next ones wait.
const CONNECTIONS: usize = 256;
/// How long a client may take to send the head of a request, and how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(10);
/// The largest head of a request.
const HEAD_MAX: usize = 32 << 10;
/// How long requests at hand may take once the server is to stop.
const STOPPING: Duration = Duration::from_secs(3);

/// What every request works with.
struct App {
    limits: Limits,
    crew: Crew,
    /// Places for those that follow a log.
    followers: Arc<Semaphore>,
    /// The server stops.
    stopping: Gone,
}

/// Serves until TERM or INT. Jobs run on.
pub fn serve(limits: Limits, address: Option<SocketAddr>) -> Result<()> {
    super::check_state()?;
    let runtime = super::runtime()?;
    let served = runtime.block_on(async {
        let mut ends = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ]
        .map(signal);
        let [term, int, hup] = &mut ends;
        let unheard = "signals can't be taken";
        let (term, int, hup) = (
            term.as_mut().ok().context(unheard)?,
            int.as_mut().ok().context(unheard)?,
            hup.as_mut().ok().context(unheard)?,
        );
        let (listener, guard) = match address {
            None => {
                let (listener, path) = listen::on_socket()?;
                note(&format!("listening on the socket {}", path.display()));
                (listener, Guard::of_socket())
            }
            Some(address) => {
                let (token, path) = token::load()?;
                let (listener, address) = listen::on_port(address).await?;
                note(&format!(
                    "listening on http://{address}; the token is in {}",
                    path.display()
                ));
                (listener, Guard::of_port(address.port(), token))
            }
        };
        let stopping = Gone::default();
        let app = App {
            limits,
            crew: Crew::default(),
            followers: log::places(),
            stopping: stopping.clone(),
        };
        let (stop, stopped) = watch::channel(());
        let serving = accept(listener, routes::router(Arc::new(app), guard), stopped);
        tokio::select! {
            () = serving => {}
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => {}
        }
        drop(stopping.at_the_end());
        // Each connection holds a receiver until it is closed.
        stop.send_replace(());
        // Those that take longer are broken off.
        drop(tokio::time::timeout(STOPPING, stop.closed()).await);
        Ok(())
    });
    // What still waits for a host is not waited for.
    runtime.shutdown_background();
    served
}

/// Takes connections for as long as it is let.
async fn accept(listener: Listener, router: Router, stopped: watch::Receiver<()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(peer) => {
                let (router, stopped) = (router.clone(), stopped.clone());
                tokio::spawn(async move {
                    match peer {
                        Peer::Socket(stream) => talk(stream, router, stopped).await,
                        Peer::Port(stream) => talk(stream, router, stopped).await,
                    }
                    drop(place);
                });
            }
            // There are no more descriptors, say: that passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Serves one connection to its end.
async fn talk<S>(stream: S, router: Router, mut stopped: watch::Receiver<()>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(clock::long(HEAD))
        .max_buf_size(HEAD_MAX)
        .serve_connection(
            TokioIo::new(Watched::new(stream)),
            TowerToHyperService::new(router),
        );
    let mut connection = pin!(connection);
    // A connection that breaks concerns nobody but its client.
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        }
    }
}
