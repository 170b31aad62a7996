//! `stop`: ends jobs.

use std::time::Duration;

use clap::Args;

use super::args::{Common, JobsArgs, Parallel};
use super::deliver::{SendOptions, send};
use super::report::report;
use super::values;
use crate::error::Failure;
use crate::job::Target;
use crate::signal::SignalWord;

/// Default time that a job has to end by itself.
pub const GRACE: Duration = Duration::from_secs(10);

/// End jobs: TERM, then CONT if stopped, then KILL after the grace
#[derive(Args, Debug)]
pub struct Stop {
    /// How long a job may take to end by itself
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    grace: Duration,
    /// Which of a job's processes are ended; with `tree`, the grace period applies to all of them
    #[arg(long, value_enum, default_value_t)]
    target: Target,
    /// Do not ask before stopping the jobs that --all selects; required without a terminal
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
    jobs: JobsArgs,
}

impl Stop {
    pub fn run(self) -> Result<u8, Failure> {
        let connect = self.jobs.connect.clone().for_jobs(&self.jobs.jobs)?;
        let mut context = self.parallel.context(self.common.reach(), connect)?;
        let asked = (!self.yes).then_some("TERM, then KILL");
        let jobs = self.jobs.find(&context, self.common, asked)?;
        let (signal, sending) = (SignalWord::TERM, SendOptions::stop(self.grace, self.target));
        let spinner = self.common.spinner("asking the host");
        let reports = send(&mut context, jobs, signal, &sending);
        report(reports, signal, &sending, spinner, self.common, self.json)
    }
}
