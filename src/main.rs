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
mod hosts;
mod job;
mod remote;
#[cfg(any(feature = "mcp", feature = "serve"))]
mod servers;
mod signal;
mod state;
mod sys;
mod terminal;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use cmd::{Command, complete};
use connection::keeper;

fn main() -> ExitCode {
    sys::process::reset_sigchld();
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(shell) = std::env::var_os(complete::VARIABLE) {
        return complete::run(&shell, words).into();
    }
    if let [_, verb, socket] = words.as_slice()
        && verb == keeper::SERVE
    {
        let served = keeper::serve(
            Path::new(socket),
            remote::primer(),
            terminal::warn,
            terminal::warn,
        );
        return ExitCode::from(u8::from(served.is_err()));
    }
    let command = Command::parse(words);
    let status_of_failure = command.status_of_failure();
    let status = command.run().unwrap_or_else(|failure| {
        terminal::warn(&failure.message);
        status_of_failure(failure.kind)
    });
    status.into()
}
