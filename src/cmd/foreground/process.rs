//! The signals and the exit status of a process that runs jobs in the foreground.

use std::time::{Duration, Instant};

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::{PassedSignal, RunResult};
use crate::cmd::wait;
use crate::error::{Failure, Kind, exit, no_thread, reason};
use crate::job::EndedBy;
use crate::remote::stream::OutputLoss;
use crate::signal::SignalWord;
use crate::sys;
use crate::terminal::warn;

/// Passes the signals of this process to `pass_on` until that returns false. Signals that were ignored at the start
/// stay ignored: HUP under nohup, and those that a shell without job control makes its background jobs ignore.
pub fn signals(pass_on: impl Fn(PassedSignal) -> bool + Send + 'static) -> Result<(), Failure> {
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
    let mut signals = Signals::new(all).map_err(|error| {
        Failure::new(
            Kind::Failed,
            format!("signals can't be caught: {}", reason(&error)),
        )
    })?;
    let pass = move || {
        for number in signals.forever() {
            let word = known.iter().find(|(known, _)| *known == number);
            let Some(Ok(signal)) = word.map(|(_, word)| word.parse::<SignalWord>()) else {
                continue;
            };
            let ends = [SIGINT, SIGTERM, SIGHUP].contains(&number);
            let pass = PassedSignal {
                signal,
                at: Instant::now(),
                status: u8::try_from(128 + number).unwrap_or(exit::FAILED),
                interrupts: number == SIGINT,
                ends,
                quits: ends || number == SIGQUIT,
                stops: number == SIGTSTP,
            };
            if !pass_on(pass) {
                return;
            }
        }
    };
    let started = std::thread::Builder::new().spawn(pass);
    started.map(drop).map_err(|error| no_thread(&error))
}

/// Stops this process, as the terminal's Ctrl-Z would.
pub fn stop() {
    // Can't fail for a process's own signal.
    drop(signal_hook::low_level::raise(signal_hook::consts::SIGSTOP));
}

/// The exit status for a job that was run. Warns of lost output, and if the tether ended the job.
pub fn status(ran: &RunResult, tether: Option<Duration>) -> Result<u8, Failure> {
    let label = ran.record.label();
    match ran.loss {
        Some(OutputLoss::DiskFull) => warn(&format!(
            "{label}: the disk there was full, and some of the output is lost"
        )),
        Some(OutputLoss::WriterKilled) => warn(&format!(
            "{label}: the dd that writes its output there was killed; some of the output may be lost"
        )),
        None => {}
    }
    if let Some(tether) = tether.filter(|_| ran.record.ended_by == Some(EndedBy::Tether)) {
        let patience = humantime::format_duration(tether);
        warn(&format!(
            "{label}: ended by its tether: no contact for {patience}"
        ));
    }
    super::status(ran).ok_or_else(|| Failure::lost(&label, ran.record.why_lost()))
}

/// The exit status for a failure of rsig itself, where 1 and 3 could be the job's status.
pub fn status_of_failure(kind: Kind) -> u8 {
    match kind {
        Kind::CommandMissing => exit::COMMAND_MISSING,
        Kind::CommandDenied => exit::COMMAND_DENIED,
        kind => wait::status_of_failure(kind),
    }
}
