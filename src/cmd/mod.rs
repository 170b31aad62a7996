//! The command line. Each verb has a file with its options, its action and its output.
//!
//! Actions take a [`context::Context`] and return typed results, so that the servers can call them too.

pub mod allowed;
pub mod args;
mod cleanup;
pub mod complete;
mod config;
pub mod context;
pub mod deliver;
pub mod foreground;
mod history;
mod interrupt;
pub mod jobs;
mod keeper;
mod kill;
mod outage;
// The man pages describe a build with all features.
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
mod started;
mod stop;
pub mod tail;
mod top;
pub mod values;
pub mod wait;
mod words;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args as _, FromArgMatches as _};

use crate::error::{Failure, Kind};
use crate::state::Config;
use crate::terminal;

/// Generates the command line from a list of verbs: the definition, the parsed command, and the code that runs it.
macro_rules! verbs {
    ($($(#[$only:meta])? $name:literal => $file:ident::$Verb:ident,)*) => {
        #[derive(Debug)]
        pub enum Command {
            $($(#[$only])? $Verb($file::$Verb),)*
        }

        /// Adds the definitions of the wanted verbs.
        fn define(command: clap::Command, is_wanted: impl Fn(&str) -> bool) -> clap::Command {
            $(
                $(#[$only])?
                let command = if is_wanted($name) {
                    command.subcommand($file::$Verb::augment_args(clap::Command::new($name)))
                } else {
                    command
                };
            )*
            command
        }

        impl Command {
            fn read(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
                let (verb, mut matches) = matches
                    .remove_subcommand()
                    .ok_or_else(|| clap::Error::new(ErrorKind::MissingSubcommand))?;
                match verb.as_str() {
                    $(
                        $(#[$only])?
                        $name => $file::$Verb::from_arg_matches_mut(&mut matches).map(Self::$Verb),
                    )*
                    _ => Err(clap::Error::new(ErrorKind::InvalidSubcommand)),
                }
            }

            /// Runs the command and returns its exit status.
            pub fn run(self) -> Result<u8, Failure> {
                if !self.handles_signals() {
                    interrupt::end_first_process()?;
                }
                match self {
                    $($(#[$only])? Self::$Verb(verb) => verb.run(),)*
                }
            }
        }
    };
}

verbs! {
    "spawn" => spawn::Spawn,
    "run" => run::Run,
    "kill" => kill::Kill,
    "stop" => stop::Stop,
    "wait" => wait::Wait,
    "send" => send::Send,
    "tail" => tail::Tail,
    "ps" => ps::Ps,
    "top" => top::Top,
    "rm" => rm::Rm,
    "history" => history::History,
    "keeper" => keeper::Keeper,
    "config" => config::Config,
    #[cfg(feature = "mcp")]
    "mcp" => servers::Mcp,
    #[cfg(feature = "serve")]
    "serve" => servers::Serve,
}

/// The definition of the whole command line.
fn definition() -> clap::Command {
    define(program(), |_| true)
}

/// The definition for one verb only: building all of them takes as long as the rest of a command's start-up. For an
/// unknown verb, the whole definition.
fn definition_for(verb: &str) -> clap::Command {
    let definition = define(program(), |name| name == verb);
    if definition.has_subcommands() {
        definition
    } else {
        self::definition()
    }
}

fn program() -> clap::Command {
    clap::Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .max_term_width(100)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
}

impl Command {
    /// Parses a command line. Prints a message and exits if it is invalid or asks for help.
    pub fn parse(mut words: Vec<OsString>) -> Self {
        let verb = words.get(1).cloned().unwrap_or_default();
        let verb = verb.to_string_lossy();
        let mut definition = definition_for(&verb);
        words::arrange(&definition, &mut words);
        let configured = Config::current();
        let configured = configured.and_then(|file| {
            config::apply(&mut definition, file, &words)?;
            Ok(file)
        });
        let parsed = definition
            .try_get_matches_from_mut(words)
            .and_then(|mut matches| Self::read(&mut matches));
        let fault = match (&parsed, configured) {
            // Help is shown even if the configuration file is invalid.
            (Err(error), _) if !error.use_stderr() => None,
            (_, Err(failure)) => Some(failure),
            (Err(_), Ok(file)) => config::invalid_default(&definition, &verb, file),
            (Ok(_), Ok(_)) => None,
        };
        if let Some(failure) = fault {
            terminal::warn(&failure.message);
            std::process::exit(failure.kind.exit_status().into());
        }
        parsed.unwrap_or_else(|error| error.format(&mut definition).exit())
    }

    fn handles_signals(&self) -> bool {
        #[cfg(feature = "serve")]
        if matches!(self, Self::Serve(_)) {
            return true;
        }
        matches!(self, Self::Run(_) | Self::Spawn(_))
    }

    /// The exit status for a failure of this command. `wait` and `run` differ, since they pass on the job's own status.
    pub fn status_of_failure(&self) -> fn(Kind) -> u8 {
        match self {
            Self::Run(_) => foreground::process::status_of_failure,
            Self::Wait(_) => wait::status_of_failure,
            _ => Kind::exit_status,
        }
    }
}
