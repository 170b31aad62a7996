//! rsig starts jobs on other machines over SSH, and lets any later shell, script or CI step signal them, wait for
//! them, read their output and list them.

mod clock;
mod cmd;
mod connection;
mod delivery;
mod error;
mod escape;
mod glob;
mod host;
mod job;
mod remote;
#[cfg(any(feature = "mcp", feature = "serve"))]
mod servers;
mod signal;
mod state;
mod sys;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    sys::process::be_waiting_parent();
    cmd::dispatch::main(std::env::args_os())
}
