//! `spawn`: starts jobs that outlive the connection.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::args::{Common, ConnectArgs, JobArgs, KEPT, Parallel};
use super::complete;
use super::interrupt::{Starts, on_signal};
use super::start::{ONE_NAME, Request, Spawned, spawn_each};
use super::values::{Hosts, configured, log_max};
use crate::error::{Failure, Kind, exit};
use crate::host::Connect;
use crate::remote::start::{Input, LogMax};
use crate::terminal::{JobJson, Output, warn};

/// Start a job that outlives the connection, and print its id; on several hosts, one each
#[derive(Args, Debug)]
#[command(override_usage = "rsig spawn [OPTIONS] <HOST[,HOST]...> [--] <COMMAND> [ARG]...")]
pub struct Spawn {
    #[command(flatten)]
    job: JobArgs,
    /// A file for the job's standard input, copied to the host before the job starts; `-` means standard input, even
    /// if it is a terminal
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    stdin: Option<PathBuf>,
    /// Leave the job's standard input open for `rsig send`
    #[arg(long, conflicts_with = "stdin")]
    stdin_open: bool,
    /// Write standard error into standard output, in order
    #[arg(long)]
    merge: bool,
    /// Keep only the newest SIZE of each output on the host, such as 16M, and at most 1 MB more; older output is removed
    /// while the job runs
    #[arg(long, value_name = "SIZE", value_parser = log_max)]
    log_max: Option<LogMax>,
    /// Print each job as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    parallel: Parallel,
    #[command(flatten, next_help_heading = KEPT)]
    connect: ConnectArgs,
    /// Where: `local`, an alias of ssh_config(5), or [user@]host[:port]; several are separated by commas or
    /// written as a range: web[01-40,50]. The ids are printed in the order of the hosts, except for
    /// hosts that answer more than a second after the first
    #[arg(value_name = "HOST[,HOST]...", add = ArgValueCompleter::new(complete::hosts))]
    host: Hosts,
    /// The command and its arguments: everything after HOST
    #[arg(required = true, num_args = 1.., value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl Spawn {
    pub fn run(mut self) -> Result<u8, Failure> {
        let hosts = self.host.0;
        if hosts.len() > 1 && self.job.name.is_some() {
            return Err(Failure::usage(ONE_NAME));
        }
        let command = self.job.check(self.command)?;
        let starts = Arc::new(Starts::default());
        let given_up = Arc::clone(&starts);
        let caught = on_signal(move || given_up.give_up())?;
        let connect = self.connect.connect()?;
        let input = self
            .stdin
            .as_deref()
            .map(whole_input)
            .transpose()?
            .map(Arc::new);
        let requests = hosts.into_iter().map(|host| {
            let destination = configured().destination(&host, &connect)?;
            Ok(Request {
                job: self.job.clone(),
                input: input.clone(),
                open: self.stdin_open,
                merge: self.merge,
                log_max: self.log_max.clone(),
                ..Request::new(destination, command.clone())
            })
        });
        let requests = requests.collect::<Result<Vec<Request>, Failure>>()?;
        let mut context = self
            .parallel
            .context(self.common.reach(), Connect::default())?;
        let mut spinner = self.common.spinner("starting the job");
        let (mut out, mut status) = (Output::default(), exit::DONE);
        let mut ids = Vec::new();
        for result in spawn_each(&mut context, requests, &starts) {
            spinner.stop();
            match result {
                Ok(Spawned { record, warning }) => {
                    if let Some(warning) = warning {
                        self.common.note(&warning);
                    }
                    starts.end(&record.id, || {
                        if self.json {
                            out.json(&JobJson::new(&record, record.state));
                        } else {
                            out.line(&record.id);
                        }
                    });
                    ids.push(record.label());
                }
                Err(failure) => {
                    caught.yield_to_signal();
                    warn(&failure.message);
                    status = status.max(failure.kind.exit_status());
                }
            }
        }
        if out.has_failed() {
            ids.iter().for_each(|id| warn(&format!("started {id}")));
        }
        out.finish()?;
        Ok(status)
    }
}

/// A whole file as input, or standard input for `-`. Input of unknown size is first copied to an unnamed file.
pub fn whole_input(path: &Path) -> Result<Input, Failure> {
    let unreadable =
        |error: io::Error| Failure::usage(format!("--stdin {}: {error}", path.display()));
    let mut file = if path == Path::new("-") {
        let own = io::stdin().as_fd().try_clone_to_owned();
        File::from(own.map_err(unreadable)?)
    } else {
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        // Files of /proc have no length.
        if metadata.is_file() && metadata.len() > 0 {
            return Ok(Input::new(file, metadata.len()));
        }
        file
    };
    let copied =
        tempfile::tempfile().and_then(|mut copy| Ok((io::copy(&mut file, &mut copy)?, copy)));
    let (size, copy) = copied.map_err(|error| {
        let message = format!(
            "--stdin {}: it can't be read to its end: {error}",
            path.display()
        );
        Failure::new(Kind::Failed, message)
    })?;
    Ok(Input::new(copy, size))
}
