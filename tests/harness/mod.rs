//! Real servers, real processes and slow networks for the integration tests. Linux only; servers need root.
//!
//! A test file is a module of `tests/main.rs` and imports what it needs from `crate::harness`:
//!
//! - [`Site`], [`on_every_site!`], [`on_two_sites!`] and [`on_every_kept_site!`]: run the same test over every kind of
//!   connection, and through a keeper. The test gets a [`Fixture`]. `RSIG_TEST_SITES=all cargo test` runs all tests on
//!   all sites.
//! - [`Server`]: sshd or dropbear on 127.0.0.1 with accounts of its own. A [`Proxy`] can be put in front of it.
//! - [`Rsig`]: the program under test with its own home and state. [`Output`] has assertions; [`Running`] and [`Tty`]
//!   interact with a running program.
//! - [`Agent`], [`keys`]: a throwaway ssh-agent and keys.
//! - [`poll_until`]: use it instead of sleeping.
//!
//! Tests leave nothing behind. Everything a test creates is below one directory in memory or /tmp, and every process it
//! starts can be recognised as its own (see [`procs`]). A guard's `Drop` kills and removes what belongs to it, even if
//! the test panics, and fails the test if that does not work. If the whole test process is killed, the warden does it
//! (see `warden.rs`), within about a second. Exceptions: the warden gets SIGKILL too, or a process has shed every mark
//! on purpose.
//!
//! Notes:
//! - Bind guards to names: `let _ = Server::...start()` drops at once. A [`Proxy`] does not keep its server alive.
//! - Rust never drops guards in statics; the warden cleans up after them when the test process ends.
//! - Run the tests as root, after `tests/install-debian`. Programs that a test starts are looked up with [`tool`], in
//!   the table of `programs.rs`.
//! - A test that needs an ignored signal starts the program with `env --ignore-signal=HUP`. A test that compares
//!   `SigIgn` leaves out 32 and 33: cargo's `posix_spawn` can leave them ignored, and no program can undo that.
//! - Do not write a script and exec it: another thread that forks in the meantime may hold it open (ETXTBSY). `sh FILE`
//!   does not have this problem.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses a part of it"
)]

pub mod accounts;
pub mod agent;
mod claim;
pub mod container;
mod daemon;
pub mod jobs;
pub mod keepers;
pub mod kerberos;
pub mod keys;
pub mod kit;
mod options;
pub mod procs;
pub mod programs;
pub mod proxy;
pub mod rsig;
pub mod running;
pub mod scratch;
pub mod server;
pub mod site;
pub mod tty;
mod warden;

use std::time::{Duration, Instant};

pub use accounts::{Login, Shell};
pub use agent::Agent;
pub use options::Options;
pub use procs::Process;
pub use programs::{program_path, tool};
pub use proxy::{Direction, Proxy};
pub use rsig::Rsig;
pub use running::{Invocation, Output, Running};
pub use scratch::Scratch;
pub use server::Server;
pub use site::{Fixture, Site, idle_shells};
pub(crate) use site::{check_on, on_every_kept_site, on_every_site, on_sites, on_two_sites};
pub use tty::Tty;
pub use warden::base;

/// Timeout for any single step of a test, even on a busy machine.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(60);

const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Waits until `condition` holds. The polling interval grows with the time waited, since many tests wait at once.
///
/// # Panics
/// If it does not hold within `limit`. The message contains `what`.
#[track_caller]
pub fn poll_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        let waited = start.elapsed();
        assert!(waited < limit, "not within {limit:?}: {what}");
        std::thread::sleep((waited / 6).clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
    }
}
