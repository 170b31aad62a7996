//! `kill`: sends signals to jobs, and lists signals.

use std::ffi::OsString;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use serde_json::json;

use super::args::{Common, Parallel, WayArgs};
use super::complete;
use super::deliver::{SendOptions, send};
use super::jobs::Jobs;
use super::report::report;
use super::select::Selectors;
use super::values::OsWord;
use crate::error::{Failure, exit};
use crate::job::JobWord;
use crate::signal::{self, Os, SignalWord};
use crate::terminal::{Output, Table};

/// Send a signal to jobs, each exactly once
#[derive(Args, Debug)]
#[command(override_usage = "rsig kill [OPTIONS] <JOB> [SIGNAL]\n       \
    rsig kill [OPTIONS] -s <SIGNAL> <JOB>...\n       rsig kill -l [--os <OS>] [SIGNAL]")]
pub struct Kill {
    /// The signal: a name with or without SIG, or a number on the job's system; also as -TERM or -15
    #[arg(short, long, add = ArgValueCompleter::new(complete::signal))]
    signal: Option<SignalWord>,
    #[command(flatten)]
    sending: SendOptions,
    /// List the signals, or the one given: a name, a number or an exit status
    #[arg(short, long, conflicts_with_all = ["signal", "wait", "then", "all", "host", "name_pattern"])]
    list: bool,
    /// With --list: the system whose signals are listed
    #[arg(long, value_enum, requires = "list")]
    os: Option<OsWord>,
    /// Do not ask before signalling the jobs that --all selects; required without a terminal
    #[arg(short, long)]
    yes: bool,
    /// Print one JSON object per job
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    parallel: Parallel,
    #[command(flatten)]
    selectors: Selectors,
    #[command(
        flatten,
        next_help_heading = "Connecting (for HOST/ID, or user@HOST/ID)"
    )]
    connect: WayArgs,
    /// JOB [SIGNAL], or with -s any number of JOBs: ids, names, unique id prefixes, or HOST/ID
    #[arg(value_name = "JOB", required_unless_present_any = ["list", "all", "host", "name_pattern"], add = ArgValueCompleter::new(complete::unfinished))]
    words: Vec<OsString>,
}

impl Kill {
    pub fn run(self) -> Result<u8, Failure> {
        if self.list {
            return list_signals(
                self.os.map_or_else(Os::here, Os::from),
                &self.words,
                self.json,
            );
        }
        if self.selectors.is_given() && !self.words.is_empty() {
            return Err(Failure::usage(
                "name jobs, or select them with --all, --host and --name; the signal then goes with -s",
            ));
        }
        let (words, signal) = job_and_signal(self.words, self.signal)?;
        if signal.is_existence_check() && self.sending.wait.is_some() {
            return Err(Failure::usage(
                "signal 0 only asks whether a job is there; use `rsig wait` to wait for its end",
            ));
        }
        if self
            .sending
            .then
            .is_some_and(SignalWord::is_existence_check)
        {
            return Err(Failure::usage("--then 0 would send nothing"));
        }
        let words = words
            .iter()
            .map(JobWord::parse)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Failure::usage(error.to_string()))?;
        let connect = self.connect.for_jobs(&words)?;
        let mut context = self.parallel.context(self.common.reach(), connect)?;
        let name = signal.to_string();
        let asked = (!self.yes && !signal.is_existence_check()).then_some(name.as_str());
        let jobs = Jobs::of(&context, &self.selectors, &words, self.common, asked)?;
        let spinner = self.common.spinner("asking the host");
        let reports = send(&mut context, jobs, signal, &self.sending);
        report(
            reports,
            signal,
            &self.sending,
            spinner,
            self.common,
            self.json,
        )
    }
}

/// Splits `JOB [SIGNAL]`, or the jobs of `-s SIGNAL JOB...`, into jobs and signal.
fn job_and_signal(
    mut words: Vec<OsString>,
    signal: Option<SignalWord>,
) -> Result<(Vec<OsString>, SignalWord), Failure> {
    let several = "name the signal with -s to signal several jobs: rsig kill -s TERM JOB...";
    match (signal, words.len()) {
        (Some(signal), _) => Ok((words, signal)),
        (None, 0 | 1) => Ok((words, SignalWord::TERM)),
        (None, 2) => {
            let word = words.pop().unwrap_or_default();
            let signal = word
                .to_string_lossy()
                .parse()
                .map_err(|error| Failure::usage(format!("{error}; {several}")))?;
            Ok((words, signal))
        }
        _ => Err(Failure::usage(several)),
    }
}

fn list_signals(os: Os, words: &[OsString], json: bool) -> Result<u8, Failure> {
    let rows = match words {
        [] => signal::table(os),
        [word] => vec![
            signal::row_for(os, &word.to_string_lossy())
                .map_err(|error| Failure::usage(error.to_string()))?,
        ],
        _ => return Err(Failure::usage("-l takes at most one signal")),
    };
    let mut out = Output::default();
    if json {
        let row = |row: &signal::Row| {
            json!({
                "number": row.number,
                "name": row.name,
                "action": row.action.to_string(),
                "description": row.description,
            })
        };
        out.json(&rows.iter().map(row).collect::<Vec<_>>());
    } else {
        let mut table = Table::new(["NUMBER", "NAME", "DEFAULT", "DESCRIPTION"]);
        for row in rows {
            table.row([
                row.number.to_string(),
                row.name,
                row.action.to_string(),
                row.description.to_owned(),
            ]);
        }
        out.line(table);
    }
    out.finish()?;
    Ok(exit::DONE)
}
