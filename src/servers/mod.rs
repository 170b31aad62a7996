//! The servers: what the verbs do, for agents (MCP) and for programs (HTTP).
//!
//! Here is what they share: which hosts may be used and how, and how many requests run at once. Verbs block, so each
//! request that runs one gets a thread for that time; the rest is tokio, which nothing outside this directory uses. A
//! server never prompts, and keeps nothing about jobs.

#[cfg(feature = "mcp")]
pub mod mcp;
mod one;
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

/// At most this many requests wait for a host at once.
const SHORT_MAX: usize = 16;
/// At most this many requests wait for a job at once.
const LONG_MAX: usize = 64;
/// The stack of a worker: that of every thread that the standard library starts.
const STACK_BYTES: usize = 2 << 20;
/// The longest message of an error, in characters: part of it may come from a host.
const MESSAGE_MAX: usize = 2000;

/// Runs the requests.
pub struct Workers {
    context: Box<dyn Fn() -> Result<Context, Failure> + Send + Sync>,
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Workers {
    /// `context` is called for each request.
    pub fn new(context: impl Fn() -> Result<Context, Failure> + Send + Sync + 'static) -> Self {
        Self {
            context: Box::new(context),
            short: Arc::new(Semaphore::new(SHORT_MAX)),
            long: Arc::new(Semaphore::new(LONG_MAX)),
        }
    }

    /// The permits of requests that wait for a job, or of those that only ask a host.
    fn permits(&self, long: bool) -> Arc<Semaphore> {
        Arc::clone(if long { &self.long } else { &self.short })
    }

    /// Has a worker carry out a request. If this future is dropped, the worker's token is cancelled; the worker keeps the
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

/// The message of an error as clients see it.
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
