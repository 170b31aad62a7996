//! The servers: the verbs, offered to agents (MCP) and to programs (HTTP).
//!
//! This module holds what both servers share: the allowed hosts and connection options, and the limits on concurrent
//! requests. Verbs block, so each request that runs a verb gets a thread meanwhile. Everything else is async on tokio,
//! which is used only in this directory. A server never prompts, and keeps no state about jobs.

#[cfg(feature = "mcp")]
pub mod mcp;
mod operations;
#[cfg(feature = "serve")]
pub mod serve;
mod start;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::cmd::context::Context;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::state::Store;

/// Maximum number of concurrent requests that wait for a host.
const SHORT_MAX: usize = 16;
/// Maximum number of concurrent requests that wait for a job.
const LONG_MAX: usize = 64;
/// Stack size of a worker, in bytes: the standard library's default for a thread.
const STACK_BYTES: usize = 2 << 20;
/// Maximum length of an error message, in characters. Part of a message may come from a host.
const MESSAGE_MAX: usize = 2000;

/// Runs requests on threads, up to the limits.
pub struct Workers {
    context: Box<dyn Fn() -> Result<Context, Failure> + Send + Sync>,
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Workers {
    /// `context` is called once per request.
    pub fn new(context: impl Fn() -> Result<Context, Failure> + Send + Sync + 'static) -> Self {
        Self {
            context: Box::new(context),
            short: Arc::new(Semaphore::new(SHORT_MAX)),
            long: Arc::new(Semaphore::new(LONG_MAX)),
        }
    }

    /// The permits for requests that wait for a job (`long`), or for requests that only ask a host.
    fn permits(&self, long: bool) -> Arc<Semaphore> {
        Arc::clone(if long { &self.long } else { &self.short })
    }

    /// Runs a request on a worker. If this future is dropped, the worker's token is cancelled; the worker keeps the
    /// permit until it ends.
    async fn run<T: Send + 'static>(
        self: Arc<Self>,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce(&mut Context, &CancellationToken) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let gone = CancellationToken::new();
        let _guard = gone.clone().drop_guard();
        let done = tokio::task::spawn_blocking(move || {
            let mut context = (self.context)()?;
            context.policy.batch = true;
            let done = work(&mut context, &gone);
            drop(permit);
            Ok(done)
        });
        let panicked = "internal error; the server goes on";
        done.await
            .map_err(|_| Failure::new(Kind::Failed, panicked))?
    }
}

/// Escapes and truncates an error message for clients.
fn message(text: &str) -> String {
    printable(text.as_bytes(), MESSAGE_MAX)
}

/// Fails early if the state file can't be used.
fn check_state() -> Result<()> {
    Store::open(crate::terminal::warn)?;
    Ok(())
}

fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(128)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .context("the server can't be started")
}
