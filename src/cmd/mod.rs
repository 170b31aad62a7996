//! The command line: one verb, one file, with its flags, what it does and how it prints.
//!
//! What a verb does takes a [`context::Context`] and gives typed results, so that the servers call it too.

pub mod allowed;
pub mod args;
pub mod complete;
mod config;
pub mod context;
pub mod deliver;
mod ephemeral;
pub mod foreground;
mod history;
mod interrupt;
pub mod jobs;
mod keeper;
mod kill;
// The pages are those of a build with everything.
mod outage;
#[cfg(all(test, feature = "mcp", feature = "serve"))]
mod pages;
pub mod pattern;
#[cfg(feature = "serve")]
pub mod pids;
pub mod ps;
mod report;
pub mod rm;
mod run;
mod select;
pub mod send;
#[cfg(any(feature = "mcp", feature = "serve"))]
mod servers;
mod several;
mod spawn;
pub mod start;
mod stop;
pub mod tail;
mod top;
pub mod values;
pub mod wait;
mod words;

use std::ffi::OsString;

use clap::{FromArgMatches as _, Subcommand as _};

use crate::error::{Failure, Kind};
use crate::state::Config;
use crate::terminal;

#[derive(Debug, clap::Subcommand)]
#[command(about = env!("CARGO_PKG_DESCRIPTION"), long_about = None)]
pub enum Command {
    Spawn(spawn::Spawn),
    Run(run::Run),
    Kill(kill::Kill),
    Stop(stop::Stop),
    Wait(wait::Wait),
    Send(send::Send),
    Tail(tail::Tail),
    Ps(ps::Ps),
    Top(top::Top),
    Rm(rm::Rm),
    History(history::History),
    Keeper(keeper::Keeper),
    Config(config::Config),
    #[cfg(feature = "mcp")]
    Mcp(servers::Mcp),
    #[cfg(feature = "serve")]
    Serve(servers::Serve),
}

/// The definition of the whole command line.
fn definition() -> clap::Command {
    Command::augment_subcommands(
        clap::Command::new(env!("CARGO_PKG_NAME"))
            .version(env!("CARGO_PKG_VERSION"))
            .max_term_width(100)
            .disable_help_subcommand(true)
            .subcommand_required(true)
            .arg_required_else_help(true),
    )
}

impl Command {
    /// Reads a command line. A wrong one, or one that asks for help, prints and exits.
    pub fn parse(mut words: Vec<OsString>) -> Self {
        let mut definition = definition();
        words::arrange(&definition, &mut words);
        let verb = words.get(1).cloned().unwrap_or_default();
        let file = Config::current();
        let configured = file
            .clone()
            .and_then(|file| Ok((config::applied(definition.clone(), file, &words)?, file)));
        if let Ok((configured, _)) = &configured {
            definition = configured.clone();
        }
        let parsed = definition
            .try_get_matches_from_mut(words)
            .and_then(|mut matches| Self::from_arg_matches_mut(&mut matches));
        let fault = match (&parsed, configured) {
            // Help is given with any configuration.
            (Err(error), _) if !error.use_stderr() => None,
            (_, Err(failure)) => Some(failure),
            (Err(_), Ok((_, file))) => config::blamed(&definition, &verb.to_string_lossy(), file),
            (Ok(_), Ok(_)) => None,
        };
        if let Some(failure) = fault {
            terminal::warn(&failure.message);
            std::process::exit(failure.kind.exit_status().into());
        }
        parsed.unwrap_or_else(|error| error.format(&mut definition).exit())
    }

    /// Runs the command, and gives its exit status.
    pub fn run(self) -> Result<u8, Failure> {
        if !self.handles_signals() {
            interrupt::end_first_process()?;
        }
        match self {
            Self::Spawn(spawn) => spawn.run(),
            Self::Run(run) => run.run(),
            Self::Kill(kill) => kill.run(),
            Self::Stop(stop) => stop.run(),
            Self::Wait(wait) => wait.run(),
            Self::Send(send) => send.run(),
            Self::Tail(tail) => tail.run(),
            Self::Ps(ps) => ps.run(),
            Self::Top(top) => top.run(),
            Self::Rm(rm) => rm.run(),
            Self::History(history) => history.run(),
            Self::Keeper(keeper) => keeper.run(),
            Self::Config(config) => config.run(),
            #[cfg(feature = "mcp")]
            Self::Mcp(mcp) => mcp.run(),
            #[cfg(feature = "serve")]
            Self::Serve(serve) => serve.run(),
        }
    }

    fn handles_signals(&self) -> bool {
        #[cfg(feature = "serve")]
        if matches!(self, Self::Serve(_)) {
            return true;
        }
        matches!(self, Self::Run(_) | Self::Spawn(_))
    }

    /// The exit status for a failure of this command; `wait` and `run` pass on the job's own.
    pub fn status_of_failure(&self) -> fn(Kind) -> u8 {
        match self {
            Self::Run(_) => foreground::process::status_of_failure,
            Self::Wait(_) => wait::status_of_failure,
            _ => Kind::exit_status,
        }
    }
}
