//! The servers: they call the same commands as the command line does, for agents and for programs.
//!
//! Here is what they share: which hosts may be used and how, and how many requests are worked on at a time. Commands
//! block, so each request that calls one has a thread for that long; the rest is tokio, which nothing outside of this
//! directory knows of. A server never prompts, and keeps nothing about jobs.

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

use crate::cmd::context::Context;
use crate::error::{Failure, Kind};
use crate::state::Store;

/// The stack of a worker: that of every thread that the standard library starts.
const STACK_BYTES: usize = 2 << 20;

/// What a request may do, and how hosts are reached: the same for all requests.
pub struct Limits {
    make: Box<dyn Fn() -> Result<Context, Failure> + Send + Sync>,
}

impl Limits {
    pub fn new(make: impl Fn() -> Result<Context, Failure> + Send + Sync + 'static) -> Self {
        Self {
            make: Box::new(make),
        }
    }

    /// What a command works with, for one request.
    pub fn context(&self) -> Result<Context, Failure> {
        let mut context = (self.make)()?;
        context.policy.batch = true;
        Ok(context)
    }
}

/// Fails early if the state file can't be used.
fn check_state() -> Result<()> {
    Store::open(crate::terminal::warn)?;
    Ok(())
}

/// How long a request may occupy a worker. The numbers are how many may do so at a time.
#[derive(Clone, Copy)]
pub enum Class {
    /// As long as a host takes to answer.
    Short = 16,
    /// As long as a job takes.
    Long = 64,
    /// As long as a client follows a log.
    #[cfg(feature = "serve")]
    Follow = 32,
}

/// The permits of each class.
pub struct WorkerPool {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    #[cfg(feature = "serve")]
    follow: Arc<Semaphore>,
}

impl Default for WorkerPool {
    fn default() -> Self {
        let permits = |class| Arc::new(Semaphore::new(class as usize));
        Self {
            short: permits(Class::Short),
            long: permits(Class::Long),
            #[cfg(feature = "serve")]
            follow: permits(Class::Follow),
        }
    }
}

impl WorkerPool {
    fn permits(&self, class: Class) -> Arc<Semaphore> {
        Arc::clone(match class {
            Class::Short => &self.short,
            Class::Long => &self.long,
            #[cfg(feature = "serve")]
            Class::Follow => &self.follow,
        })
    }

    /// Waits for a permit.
    pub async fn permit(&self, class: Class) -> Option<Permit> {
        self.permits(class).acquire_owned().await.ok().map(Permit)
    }

    /// A permit, if one is free.
    #[cfg(feature = "serve")]
    pub fn try_permit(&self, class: Class) -> Option<Permit> {
        self.permits(class).try_acquire_owned().ok().map(Permit)
    }
}

/// The right to a worker.
pub struct Permit(#[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit);

impl Permit {
    /// Has a worker do what blocks. If this is dropped, the work goes on to its end, and keeps its permit until then.
    pub async fn work<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(self);
            done
        });
        let panicked = "rsig failed at this request; the server goes on";
        done.await.map_err(|_| Failure::new(Kind::Failed, panicked))
    }
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
