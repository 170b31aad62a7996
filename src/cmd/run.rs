//! `run`: runs a job in the foreground. This file has its flags, and this process's own streams and signals;
//! [`foreground`] holds the job.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::args::{Common, ConnectArgs, JobArgs, KEPT};
use super::{complete, foreground, start, values};
use crate::error::{Failure, Kind, exit};
use crate::host::{Destination, Host};
use crate::job::EndedBy;
use crate::remote::Stream;
use crate::signal::SignalWord;
use crate::sys;
use crate::terminal::{self, warn};

/// Run a job in the foreground: as `ssh HOST COMMAND`, and it gets your signals, survives a broken connection, and ends
/// when you do
#[derive(Args, Debug)]
#[command(override_usage = "rsig run [OPTIONS] <HOST> [--] <COMMAND> [ARG]...")]
pub struct Run {
    #[command(flatten)]
    job: JobArgs,
    /// How long the job may take to end after INT, TERM or HUP before it gets KILL
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    grace: Duration,
    /// How long the job may run on when this rsig or its machine is gone
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
    /// How many MB of each output may wait on the host; then the job blocks, as on a full pipe
    #[arg(long, value_name = "MB", default_value = "256", value_parser = clap::value_parser!(u64).range(32..=1_048_576))]
    backlog: u64,
    #[command(flatten)]
    common: Common,
    #[command(flatten, next_help_heading = KEPT)]
    connect: ConnectArgs,
    /// Where: `local`, an alias of ssh_config(5), or [user@]host[:port]
    #[arg(add = ArgValueCompleter::new(complete::host))]
    host: Host,
    /// The command and its arguments: everything after HOST
    #[arg(required = true, num_args = 1.., value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl Run {
    pub fn run(mut self) -> Result<u8, Failure> {
        let input = input(self.stdin.as_deref())?;
        let command = self.job.check(self.command)?;
        let destination = Destination {
            host: self.host,
            connect: self.connect.connect()?,
        };
        let request = foreground::Request {
            spawn: start::Request {
                job: self.job,
                ephemeral: !self.keep,
                ..start::Request::new(destination, command)
            },
            grace: self.grace,
            tether: (!self.no_tether).then_some(self.tether),
            backlog: self.backlog << 20,
        };
        let mut context = self.common.reach().context()?;
        let outside = foreground::Outside {
            input,
            signals: signals()?,
            stop,
            exit: |status| std::process::exit(status.into()),
            note: if self.common.quiet { |_| () } else { warn },
        };
        let mut broken = None;
        let ran = foreground::run(&mut context, request, outside, &mut |stream, bytes| {
            terminal::print_bytes(stream == Stream::Err, bytes).map_err(|error| {
                let failure = Failure::new(Kind::Failed, error.to_string());
                broken = Some(error);
                failure
            })
        });
        if let Some(error) = broken {
            return Err(terminal::unprinted(&error));
        }
        let ran = ran?;
        let label = ran.record.label();
        if ran.disk_full {
            warn(&format!(
                "{label}: the disk there was full, and some of the output is lost"
            ));
        }
        if ran.record.ended_by == Some(EndedBy::Tether) {
            let patience = humantime::format_duration(self.tether);
            warn(&format!(
                "{label}: ended by its tether: no contact for {patience}"
            ));
        }
        match foreground::status(&ran) {
            Some(status) => Ok(status),
            None => Err(Failure::lost(&label)),
        }
    }
}

/// The job's input. A terminal is not passed on, and /dev/null is what the job has by itself.
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
        _ => {
            let own = io::stdin().lock();
            let file = std::os::fd::AsFd::as_fd(&own)
                .try_clone_to_owned()
                .map(File::from);
            // A standard input that is closed gives nothing either.
            Ok(file
                .ok()
                .filter(|file| !is_null(file))
                .map(|file| Box::new(file) as Box<dyn Read + Send>))
        }
    }
}

fn is_null(file: &File) -> bool {
    let null = std::fs::metadata("/dev/null");
    let (Ok(null), Ok(file)) = (null, file.metadata()) else {
        return false;
    };
    file.file_type().is_char_device() && file.rdev() == null.rdev()
}

/// The signals that this process gets, for the job. What was ignored when it began stays so: under nohup the end of the
/// terminal, and what a shell without job control keeps from its background jobs.
fn signals() -> Result<Receiver<foreground::Pass>, Failure> {
    let known = [
        (SIGINT, "INT"),
        (SIGTERM, "TERM"),
        (SIGHUP, "HUP"),
        (SIGQUIT, "QUIT"),
        (SIGUSR1, "USR1"),
        (SIGUSR2, "USR2"),
        (SIGTSTP, "STOP"),
        (SIGCONT, "CONT"),
    ];
    let all = known
        .iter()
        .map(|(number, _)| *number)
        .filter(|number| !sys::process::is_ignored(*number));
    let mut signals = Signals::new(all)
        .map_err(|error| Failure::new(Kind::Failed, format!("signals can't be caught: {error}")))?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for number in signals.forever() {
            let word = known.iter().find(|(known, _)| *known == number);
            let Some(Ok(signal)) = word.map(|(_, word)| word.parse::<SignalWord>()) else {
                continue;
            };
            let ends = [SIGINT, SIGTERM, SIGHUP].contains(&number);
            let pass = foreground::Pass {
                signal,
                status: u8::try_from(128 + number).unwrap_or(exit::FAILED),
                interrupts: number == SIGINT,
                ends,
                quits: ends || number == SIGQUIT,
                stops: number == SIGTSTP,
            };
            if sender.send(pass).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Stops this process, as the terminal's Ctrl-Z would.
fn stop() {
    // It can't fail for a process's own sake.
    drop(signal_hook::low_level::raise(signal_hook::consts::SIGSTOP));
}
