//! Real servers, real processes and slow networks for the integration tests. Linux only; servers need root.
//!
//! A test file is a module of `tests/main.rs` and uses what it needs from `crate::harness`:
//!
//! - [`Site`], [`on_every_site!`], [`on_two_sites!`] and [`on_every_kept_site!`]: the same test over every connection, and
//!   by a keeper; [`Fixture`] is what it gets. `RSIG_TEST_SITES=all cargo test` runs all tests on all sites.
//! - [`Server`]: sshd or dropbear on 127.0.0.1 with accounts of its own. [`Proxy`] stands before it.
//! - [`Rsig`]: the program under test with its own home and state; [`Output`] asserts, [`Running`] and [`Tty`] talk.
//! - [`Agent`], [`keys`]: a throwaway ssh-agent and keys.
//! - [`poll_until`]: instead of any sleep.
//!
//! Nothing stays behind. Everything a test makes lies below one directory in memory or /tmp, and every process it starts
//! bears a mark of it (see [`procs`]): a guard's `Drop` kills and removes what is its own, even if the test
//! panics, and fails the test when that does not work. When the whole test process is killed, the warden does it
//! (see `warden.rs`), within about a second. The exceptions: SIGKILL to the warden as well, and a process that
//! has shed every mark on purpose.
//!
//! Worth knowing:
//! - Bind guards to names: `let _ = Server::...start()` drops at once. A [`Proxy`] does not keep its server alive.
//! - Guards in statics are never dropped by Rust; the warden clears them away when the test process ends.
//! - Run tests as root, after `tests/install-debian`. A program that a test starts is looked up by [`tool`], in the table
//!   of `programs.rs`.
//! - A test that needs an ignored signal starts `env --ignore-signal=HUP` with the program; one that compares
//!   `SigIgn` leaves 32 and 33 out, which cargo's `posix_spawn` can leave ignored and no program can undo.
//! - Do not write a script and exec it: another thread that forks meanwhile may hold it open (ETXTBSY).
//!   `sh FILE` has no such trouble.

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

/// What any step of a test may take, on a machine with much else to do: what takes longer hangs.
pub const SOON: Duration = Duration::from_secs(60);

const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Waits until `condition` holds. It looks less often the longer it takes, since many tests wait at a time.
///
/// # Panics
/// When it does not within `limit`, with `what`.
#[track_caller]
pub fn poll_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        let waited = start.elapsed();
        assert!(waited < limit, "not within {limit:?}: {what}");
        std::thread::sleep((waited / 6).clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
    }
}
