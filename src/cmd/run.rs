//! The edge of `run`: this process's own streams and signals.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::args as cli;
use super::dispatch::{context, job, usage};
use super::{foreground as run, spawn};
use crate::error::{Failure, Kind, exit};
use crate::remote::Stream;
use crate::signal::SignalWord;
use crate::sys;
use crate::terminal::{self, warn};

pub fn run(arguments: cli::Run) -> Result<u8> {
    let input = input(arguments.stdin.as_deref())?;
    let spawn: spawn::Request = job(
        arguments.job,
        arguments.host,
        arguments.connect,
        arguments.command,
    )?;
    let request = run::Request {
        spawn,
        grace: arguments.grace,
        tether: (!arguments.no_tether).then_some(arguments.tether),
        backlog: arguments.backlog << 20,
    };
    let mut context = context(arguments.common.reach)?;
    let note: fn(&str) = if arguments.common.quiet { |_| () } else { warn };
    let outside = run::Outside {
        input,
        signals: signals()?,
        stop,
        exit: |status| std::process::exit(status.into()),
        note,
    };
    let mut broken = None;
    let ran = run::run(&mut context, request, outside, &mut |stream, bytes| {
        terminal::print_bytes(stream == Stream::Err, bytes).map_err(|error| {
            let failure = Failure::new(
                Kind::Failed,
                format!("the output can't be passed on: {error}"),
            );
            broken = Some(error);
            failure
        })
    });
    if let Some(error) = broken {
        return Err(error.into());
    }
    let ran = ran?;
    if ran.disk_full {
        warn(&format!(
            "{}: the disk there was full, and some of the output is lost",
            ran.record.label()
        ));
    }
    match run::status(&ran) {
        Some(status) => Ok(status),
        None => {
            warn(&format!(
                "{}: it is lost: gone, and nothing recorded its end",
                ran.record.label()
            ));
            Ok(exit::LOST)
        }
    }
}

/// The job's input. A terminal is not passed on, and /dev/null is what the job has by itself.
fn input(given: Option<&Path>) -> Result<Option<Box<dyn Read + Send>>> {
    match given {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path)
                .map_err(|error| usage(format!("--stdin {}: {error}", path.display())))?;
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
fn signals() -> Result<Receiver<run::Pass>> {
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
    let mut signals = Signals::new(all).context("signals can't be taken")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for number in signals.forever() {
            let word = known.iter().find(|(known, _)| *known == number);
            let Some(Ok(signal)) = word.map(|(_, word)| word.parse::<SignalWord>()) else {
                continue;
            };
            let ends = [SIGINT, SIGTERM, SIGHUP].contains(&number);
            let pass = run::Pass {
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
