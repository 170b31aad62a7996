//! `run`: runs a job in the foreground. This module has the options and connects the job to this process's own streams.
//! [`foreground`] runs the job, and [`several`] coordinates jobs on several hosts.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::args::{Common, ConnectArgs, JobArgs, KEPT};
use super::context::{Context, SharedContext};
use super::foreground::process;
use super::values::{Hosts, configured};
use super::{complete, foreground, several, start, values};
use crate::error::{Failure, Kind};
use crate::host::Host;
use crate::remote::Stream;
use crate::terminal::{self, warn};

/// Run a job in the foreground, like `ssh HOST COMMAND`, but it gets your signals, survives a broken connection, and ends
/// when you do
#[derive(Args, Debug)]
#[command(override_usage = "rsig run [OPTIONS] <HOST[,HOST]...> [--] <COMMAND> [ARG]...")]
pub struct Run {
    #[command(flatten)]
    job: JobArgs,
    /// How long the job may take to end after INT, TERM or HUP before it gets KILL
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    grace: Duration,
    /// How long the job may run on after this rsig or its machine is gone
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    tether: Duration,
    /// Let the job run on without this rsig
    #[arg(long, conflicts_with = "tether")]
    no_tether: bool,
    /// Keep the job's record, files and output after its end
    #[arg(long)]
    keep: bool,
    /// A file for the job's standard input; `-` means standard input, even if it is a terminal
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    stdin: Option<PathBuf>,
    /// How many MB of each output may wait on the host; beyond that the job blocks, as on a full pipe
    #[arg(long, value_name = "MB", default_value = "256", value_parser = clap::value_parser!(u64).range(32..=1_048_576))]
    backlog: u64,
    /// Print equal outputs once, under the names of their hosts, when all jobs have ended
    #[arg(long)]
    gather: bool,
    /// Run on at most N hosts at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    parallel: Option<u16>,
    /// When the job of one host fails, start no others and end those that run
    #[arg(long)]
    fail_fast: bool,
    #[command(flatten)]
    common: Common,
    #[command(flatten, next_help_heading = KEPT)]
    connect: ConnectArgs,
    /// Where: `local`, an alias of ssh_config(5), or [user@]host[:port]; several are separated by commas or written as a
    /// range: web[01-40,50]
    #[arg(value_name = "HOST[,HOST]...", add = ArgValueCompleter::new(complete::hosts))]
    host: Hosts,
    /// The command and its arguments: everything after HOST
    #[arg(required = true, num_args = 1.., value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl Run {
    pub fn run(mut self) -> Result<u8, Failure> {
        let is_one = self.host.0.len() == 1 && !self.gather;
        let input = if is_one {
            input(self.stdin.as_deref())?
        } else {
            self.refuse_for_several()?;
            None
        };
        let command = self.job.check(std::mem::take(&mut self.command))?;
        let connect = self.connect.clone().connect()?;
        let request = |host: &Host| {
            let destination = configured().destination(host, &connect)?;
            Ok(foreground::Request {
                spawn: start::Request {
                    job: self.job.clone(),
                    ephemeral: !self.keep,
                    ..start::Request::new(destination, command.clone())
                },
                grace: self.grace,
                tether: (!self.no_tether).then_some(self.tether),
                backlog: self.backlog << 20,
                permits: None,
            })
        };
        let requests = self.host.0.iter().map(request);
        let mut requests = requests.collect::<Result<Vec<_>, Failure>>()?;
        let context = self.common.reach().context()?;
        let note = if self.common.quiet {
            |_: &str| ()
        } else {
            warn
        };
        match requests.pop() {
            Some(request) if is_one => alone(context, request, input, note),
            last => {
                requests.extend(last);
                let options = several::Options {
                    parallel: self.parallel.map_or_else(several::all_at_once, Into::into),
                    gather: self.gather,
                    fail_fast: self.fail_fast,
                    note,
                };
                let words = self.host.0.iter().map(ToString::to_string);
                several::run(context, words.zip(requests), options)
            }
        }
    }

    /// Rejects options that are invalid on several hosts, and notes that standard input is not passed on to them.
    fn refuse_for_several(&self) -> Result<(), Failure> {
        if self.job.name.is_some() && self.host.0.len() > 1 {
            return Err(Failure::usage(start::ONE_NAME));
        }
        match &self.stdin {
            Some(path) if path != Path::new("/dev/null") => Err(Failure::usage(
                "--stdin: on several hosts the standard input of `run` is /dev/null; `rsig spawn --stdin` gives each a copy",
            )),
            None if has_input() => {
                self.common.note(
                    "on several hosts the standard input is /dev/null: what is piped in goes to none of them",
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Runs one job, with this process's own streams and signals.
fn alone(
    context: Context,
    request: foreground::Request,
    input: Option<Box<dyn Read + Send>>,
    note: fn(&str),
) -> Result<u8, Failure> {
    let tether = request.tether;
    let (sender, receiver) = mpsc::channel();
    let passes = sender.clone();
    process::signals(move |pass| passes.send(Some(pass)).is_ok())?;
    let outside = foreground::Surroundings {
        input,
        signals: (sender, receiver),
        stop: Box::new(process::stop),
        exit: Box::new(|status| std::process::exit(status.into())),
        note,
    };
    let mut broken = None;
    let context = SharedContext::new(context);
    let ran = foreground::run(&context, request, outside, &mut |stream, bytes| {
        terminal::print_bytes(stream == Stream::Err, bytes).map_err(|error| {
            let failure = Failure::new(Kind::Failed, error.to_string());
            broken = Some(error);
            failure
        })
    });
    match broken {
        Some(error) => {
            // Its last line tells which job stays; what went wrong is told below, and nothing for a closed pipe.
            if let Some(stays) = ran
                .as_ref()
                .err()
                .and_then(|run| run.message.lines().last())
            {
                terminal::warn(stays);
            }
            Err(terminal::output_failure(&error))
        }
        None => process::status(&ran?, tether),
    }
}

/// Whether standard input has data, or may still get some.
fn has_input() -> bool {
    let Some(file) = own_input() else {
        return false;
    };
    let Ok(metadata) = file.metadata() else {
        return false;
    };
    let kind = metadata.file_type();
    if kind.is_file() {
        return metadata.len() > 0;
    }
    // An empty pipe without a writer is at its end.
    let mut poll = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    let at_end = nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok()
        && poll[0].revents() == Some(PollFlags::POLLHUP);
    (kind.is_fifo() || kind.is_socket()) && !at_end
}

/// The job's input. `None` for /dev/null, which the job has by default, and for a terminal unless `--stdin -` names it.
fn input(given: Option<&Path>) -> Result<Option<Box<dyn Read + Send>>, Failure> {
    match given {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path)
                .map_err(|error| Failure::usage(format!("--stdin {}: {error}", path.display())))?;
            Ok(if is_null(&file) {
                None
            } else {
                Some(Box::new(file))
            })
        }
        None if io::stdin().is_terminal() => Ok(None),
        _ => Ok(own_input().map(|file| Box::new(file) as Box<dyn Read + Send>)),
    }
}

/// Standard input, unless it is closed or /dev/null.
fn own_input() -> Option<File> {
    let own = io::stdin().as_fd().try_clone_to_owned().ok();
    own.map(File::from).filter(|file| !is_null(file))
}

fn is_null(file: &File) -> bool {
    let null = std::fs::metadata("/dev/null");
    let (Ok(null), Ok(file)) = (null, file.metadata()) else {
        return false;
    };
    file.file_type().is_char_device() && file.rdev() == null.rdev()
}
