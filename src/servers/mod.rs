//! The other faces of rsig: servers that call the same commands as the command line does.
//!
//! What they share is here: which hosts may be used and how, the one way from a request to a command, and how many of
//! them work at a time. The commands block, so each request that calls one gets a thread for as long as that takes; the
//! rest is tokio, and nothing outside of this directory knows of it. A face asks the user nothing: there is nobody to
//! ask. It holds nothing about jobs: another face, or the command line, sees and does the same.

#[cfg(feature = "mcp")]
pub mod mcp;
mod one;
#[cfg(feature = "serve")]
pub mod serve;
mod start;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cmd::Context;
use crate::error::{Failure, Kind};
use crate::state::Store;

/// How many requests talk to hosts at a time; the next ones wait their turn.
const SHORT: usize = 16;
/// How many wait for a job, or run one, at a time.
const LONG: usize = 64;
/// The stack of a thread that works on a request: that of every thread the standard library starts.
const STACK: usize = 2 << 20;

/// What a request may do, and how hosts are reached: the same for all requests.
pub struct Limits {
    make: Box<dyn Fn() -> Result<Context> + Send + Sync>,
}

impl Limits {
    /// As `make` has it, but for what could ask the user.
    pub fn new(make: impl Fn() -> Result<Context> + Send + Sync + 'static) -> Self {
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

/// Holds the state file against what it must be, before anybody asks for anything.
fn check_state() -> Result<()> {
    Store::open(crate::terminal::warn)?;
    Ok(())
}

/// How long the work for a request may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// As long as a host takes to answer.
    Short,
    /// As long as a job takes.
    Long,
}

/// The threads that work for requests.
pub struct Crew {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Default for Crew {
    fn default() -> Self {
        Self {
            short: Arc::new(Semaphore::new(SHORT)),
            long: Arc::new(Semaphore::new(LONG)),
        }
    }
}

impl Crew {
    /// Waits for a turn.
    pub async fn turn(&self, length: Length) -> Option<Turn> {
        let permits = match length {
            Length::Short => &self.short,
            Length::Long => &self.long,
        };
        Arc::clone(permits).acquire_owned().await.ok().map(Turn)
    }

    /// A turn, if there is one now.
    #[cfg(feature = "serve")]
    pub fn turn_now(&self, length: Length) -> Option<Turn> {
        let permits = match length {
            Length::Short => &self.short,
            Length::Long => &self.long,
        };
        Arc::clone(permits).try_acquire_owned().ok().map(Turn)
    }
}

/// The right to a thread.
pub struct Turn(
    #[allow(dead_code, reason = "held, and given back in the end")] OwnedSemaphorePermit,
);

impl Turn {
    /// Has a thread do what blocks. Dropped, the work goes on by itself to its end, and keeps its turn until then.
    pub async fn work<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(self);
            done
        });
        done.await.map_err(|_| {
            Failure::new(
                Kind::Failed,
                "rsig failed at this request; the server goes on",
            )
        })
    }
}

/// Tells the work for a request that nobody waits for it any more.
#[derive(Clone, Default)]
pub struct Gone(Arc<AtomicBool>);

impl Gone {
    /// Whether nobody does.
    pub fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// From the end of this guard on, nobody does.
    pub fn at_the_end(&self) -> impl Drop + use<> {
        struct Guard(Gone);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.0.store(true, Ordering::Relaxed);
            }
        }
        Guard(self.clone())
    }
}

/// What runs the servers.
fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(SHORT + LONG + 8)
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .context("the server can't be started")
}
