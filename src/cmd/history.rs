//! `history`: shows what was done to jobs, including jobs that have been forgotten since.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::args::job_word;
use super::complete;
use crate::error::{Failure, Kind, exit};
use crate::escape::printable;
use crate::job::{EndedBy, JobName, JobWord};
use crate::state::Store;
use crate::state::history::{Action, Entry};
use crate::terminal::{self, Output, Table, warn};

/// Show what was done to jobs: starts, signals, ends and removals, including those of removed jobs
///
/// Events are kept for a year, at most 100,000 of them. A signal that is not confirmed may or may not have been sent: the
/// connection broke before the answer. Values of `-e` are never written down.
#[derive(Args, Debug)]
pub struct History {
    /// Show only the last N events
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<u32>,
    /// Print one JSON object per event
    #[arg(long)]
    json: bool,
    /// An id, a name or a unique id prefix, even of a removed job; all jobs if omitted
    #[arg(value_parser = job_word(), add = ArgValueCompleter::new(complete::any))]
    job: Option<JobWord>,
}

impl History {
    pub fn run(self) -> Result<u8, Failure> {
        let store = Store::open(warn)?;
        let job = match &self.job {
            None => None,
            Some(word) => {
                // Of HOST/ID, the id alone identifies the job.
                let word = word
                    .host_and_id()
                    .map_or(word.as_str(), |(_, id)| id.as_str());
                Some(match store.resolve(word) {
                    Ok(record) => record.id,
                    Err(failure) if failure.kind == Kind::NotFound => store.resolve_past(word)?,
                    Err(failure) => return Err(failure),
                })
            }
        };
        let entries = store.history(job.as_ref(), self.last)?;
        let mut out = Output::default();
        if self.json {
            entries.iter().for_each(|entry| out.json(entry));
        } else {
            out.line(table(&entries));
        }
        out.finish()?;
        Ok(exit::DONE)
    }
}

fn table(entries: &[Entry]) -> Table {
    let mut table = Table::new(["TIME", "USER", "JOB", "NAME", "HOST", "EVENT"]);
    for entry in entries {
        table.row([
            printable(&entry.at, 64),
            printable(&entry.user, 64),
            entry.job.to_string(),
            entry.name.as_ref().map_or("-", JobName::as_str).to_owned(),
            printable(&entry.host, 255),
            describe(&entry.action),
        ]);
    }
    table
}

fn describe(action: &Action) -> String {
    match action {
        Action::Spawn { command } => format!("spawn: {}", terminal::command_line(command)),
        Action::NotStarted { error } => format!("not started ({error})"),
        Action::Signal {
            signal,
            target,
            via,
            sent,
        } => {
            let via = via
                .as_ref()
                .map_or_else(String::new, |via| format!(" by {via}"));
            let sent = if *sent == Some(true) {
                "confirmed"
            } else {
                "not confirmed"
            };
            format!("{signal} to its {target}{via}, {sent}")
        }
        Action::End {
            state,
            exit_status: Some(status),
            exit_signal,
            timed_out,
            ..
        } if state == "exited" => {
            let cause = timed_out.then_some(EndedBy::Timeout);
            terminal::exited(*status, exit_signal.as_deref(), cause)
        }
        Action::End { state, .. } => state.clone(),
        Action::Removal => "removed".to_owned(),
        Action::Forget => "record dropped, files left".to_owned(),
    }
}
