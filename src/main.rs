//! rsig starts jobs on other machines over SSH, and lets any later shell, script or CI step signal them, wait for
//! them, read their output and list them.

mod cli;
mod commands;
mod delivery;
mod dispatch;
mod error;
#[cfg(any(feature = "mcp", feature = "serve"))]
mod faces;
mod history;
mod host;
mod job;
mod output;
mod printable;
mod remote;
mod signal;
mod store;
mod sys;
mod transport;

use std::process::ExitCode;

fn main() -> ExitCode {
    sys::process::be_waiting_parent();
    dispatch::main(std::env::args_os())
}
