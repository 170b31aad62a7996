//! `ps`: lists jobs with the states that their hosts report, and finds jobs that were started elsewhere.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::mpsc::Sender;

use clap::Args;
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter};
use serde::Serialize;

use super::args::{ConnectArgs, ConnectionOptions, Parallel, job_word};
use super::complete;
use super::context::Context;
use super::jobs::{Job, Jobs, Limit, by_host, look_up, on_each_host};
use super::values::{Hosts, configured};
use crate::connection::HostConnection;
use crate::error::{Failure, Kind, exit};
use crate::host::{Destination, Host};
use crate::job::{JobId, JobName, JobWord, Record, State};
use crate::remote::{Observation, ObservedState, Usage, discover as remote, look, measure};
use crate::state::RecordFilter;
use crate::terminal::{self, JobJson, ListedJob, Output, Spinner, Table, warn};

/// Which jobs are listed.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// Exited jobs too
    #[arg(short, long)]
    pub all: bool,
    /// Jobs started on these hosts (spelled as in `spawn`)
    #[arg(long, value_name = "HOST[,HOST]", add = ArgValueCompleter::new(complete::recorded_host))]
    pub host: Vec<Hosts>,
    /// Jobs in one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', add = ArgValueCandidates::new(complete::states))]
    pub state: Vec<State>,
    /// All of your jobs that the hosts themselves know, exited ones and those started elsewhere included; this machine
    /// records them (a job whose name is already in use here is known by its id only)
    #[arg(long, requires = "host", conflicts_with_all = ["cached", "jobs"])]
    pub discover: bool,
    /// Show the last known states without asking any host
    #[arg(long)]
    pub cached: bool,
    /// What they use is measured.
    #[arg(skip)]
    pub resources: bool,
    /// Ids, names, unique id prefixes, or HOST/ID, shown in any state
    #[arg(value_name = "JOB", value_parser = job_word(), add = ArgValueCompleter::new(complete::any))]
    pub jobs: Vec<JobWord>,
}

/// List jobs with the states that their hosts report
#[derive(Args, Debug)]
pub struct Ps {
    #[command(flatten)]
    filter: Filter,
    /// Measure the CPU use, the memory and the number of processes of each job, over all its processes
    #[arg(short, long, conflicts_with_all = ["cached", "quiet"])]
    resources: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print a JSON array
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    #[command(flatten)]
    reach: ConnectionOptions,
    #[command(flatten)]
    parallel: Parallel,
    #[command(flatten, next_help_heading = "Connecting (for --discover and HOST/ID)")]
    connect: ConnectArgs,
}

impl Ps {
    pub fn run(mut self) -> Result<u8, Failure> {
        self.filter.resources = self.resources;
        let connect = if self.filter.discover {
            self.connect.connect()
        } else {
            self.connect.for_jobs(&self.filter.jobs)
        }?;
        let mut context = self.parallel.context(self.reach, connect)?;
        let is_slow = !self.quiet && !self.reach.verbose && !self.filter.cached;
        let mut spinner = Spinner::new("asking the hosts", is_slow);
        let Listing { jobs, failures } = ps(&mut context, &self.filter)?;
        spinner.stop();
        let mut status = exit::DONE;
        for failure in &failures {
            warn(&failure.message);
            if self.filter.discover || matches!(failure.kind, Kind::NotFound | Kind::Ambiguous) {
                status = status.max(failure.kind.exit_status());
            }
        }
        if !self.quiet {
            let cautions = jobs.iter().filter_map(|job| job.record.caution());
            cautions.for_each(|caution| warn(&caution));
        }
        let mut out = Output::default();
        if self.json && self.resources {
            out.json(&jobs.iter().map(measured_json).collect::<Vec<_>>());
        } else if self.json {
            let jobs = jobs.iter().map(|job| JobJson::new(&job.record, job.state));
            out.json(&jobs.collect::<Vec<_>>());
        } else if self.quiet {
            jobs.iter().for_each(|job| out.line(&job.record.id));
        } else {
            out.line(table(&jobs, self.resources));
        }
        out.finish()?;
        Ok(status)
    }
}

#[derive(Debug, Default)]
pub struct Listing {
    /// Sorted by age, the oldest first, or in the order in which they were named.
    pub jobs: Vec<ListedJob>,
    /// For words that name no job, and for hosts that could not be asked.
    pub failures: Vec<Failure>,
}

/// Lists jobs. A job that turns out to have exited since the last look is listed too.
pub fn ps(context: &mut Context, filter: &Filter) -> Result<Listing, Failure> {
    let mut listing = Listing::default();
    if filter.discover {
        discover(context, &filter.host, &mut listing)?;
        if filter.resources {
            ask(context, filter, &mut listing);
        }
    } else {
        recorded(context, filter, &mut listing)?;
        if !filter.cached {
            ask(context, filter, &mut listing);
        }
    }
    listing
        .jobs
        .retain(|job| filter.state.is_empty() || filter.state.contains(&job.state));
    Ok(listing)
}

/// Lists the recorded jobs that match the filter, in their last known states.
pub fn recorded(context: &Context, filter: &Filter, listing: &mut Listing) -> Result<(), Failure> {
    let mut records = Vec::new();
    if filter.jobs.is_empty() {
        let all = filter.all || filter.state.contains(&State::Exited);
        records = context.store.list(RecordFilter::All)?;
        records.retain(|record| all || record.state != State::Exited);
    } else {
        let jobs = Jobs::named(context, &filter.jobs);
        listing
            .failures
            .extend(jobs.unknown.into_iter().map(|(_, failure)| failure));
        for Job { record, .. } in jobs.found {
            if record.is_placeholder() && filter.cached {
                let message = format!(
                    "{}: its state is not recorded here; omit --cached",
                    record.label()
                );
                listing.failures.push(Failure::new(Kind::NotFound, message));
            } else {
                records.push(record);
            }
        }
    }
    let hosts = Hosts::all(&filter.host);
    records.retain(|record| {
        let host = record.host();
        context.allowed.has(host) && (filter.host.is_empty() || hosts.contains(host))
    });
    listing.jobs = records.into_iter().map(ListedJob::from).collect();
    Ok(())
}

/// Jobs of one host, and what the host reports about them, or why it could not be asked.
type Answer = (Vec<Job>, Result<Vec<(Observation, Option<Usage>)>, Failure>);

/// Asks the hosts of all jobs that have not exited, all hosts at once, with one script each.
fn ask(context: &mut Context, filter: &Filter, listing: &mut Listing) {
    let asked = listing
        .jobs
        .iter()
        .enumerate()
        .filter(|(_, job)| job.state != State::Exited)
        .map(|(index, job)| Job {
            // The index in the listing, where the answer belongs.
            word: index.to_string(),
            record: job.record.clone(),
        });
    let hosts = by_host(asked.collect());
    let resources = filter.resources;
    let answers = on_each_host(
        &context.policy,
        Limit::Work,
        hosts,
        move |connection, jobs, sender| see(connection, jobs, resources, sender),
    );
    for (asked, answer) in answers {
        let mut answers = match answer {
            Ok(seen) => seen.into_iter(),
            Err(failure) => {
                listing.failures.push(failure);
                Vec::new().into_iter()
            }
        };
        for Job { word, record } in asked {
            let index = word.parse::<usize>().ok();
            let Some(job) = index.and_then(|index| listing.jobs.get_mut(index)) else {
                continue;
            };
            job.record = record;
            job.take(answers.next());
        }
    }
    // A job known only by id is listed only if its host confirms it.
    listing
        .jobs
        .retain(|job| !job.record.is_placeholder() || job.state != State::Unknown);
    let answered = listing
        .jobs
        .iter()
        .filter(|job| job.state != State::Unknown)
        .map(|job| &job.record);
    context.store.update(answered);
}

fn see(
    connection: &mut HostConnection<'_>,
    jobs: Vec<Job>,
    resources: bool,
    sender: &Sender<Answer>,
) {
    // The receiver is dropped only at the end, so a failed send is harmless.
    let tell = |answer: Answer| drop(sender.send(answer));
    let (jobs, missing) = look_up(connection, jobs);
    for (job, failure) in missing {
        tell((vec![job], Err(failure)));
    }
    if jobs.is_empty() {
        return;
    }
    let host = connection.host();
    let dirs: Vec<String> = jobs.iter().map(|job| job.record.job_dir()).collect();
    let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
    let seen = connection.ask(|shell| {
        if resources {
            return measure(&host, shell, &dirs);
        }
        let seen = look::see(&host, shell, &dirs)?;
        Ok(seen.into_iter().map(|seen| (seen, None)).collect())
    });
    tell((jobs, seen));
}

/// Lists all jobs that the hosts know, and the unfinished jobs recorded for these hosts that the hosts do not know. A
/// job without a record gets one; an existing record keeps its description of the job and of how to connect.
fn discover(context: &mut Context, hosts: &[Hosts], listing: &mut Listing) -> Result<(), Failure> {
    let connect = context.connect.clone();
    let way = |word: &Host| configured().destination(word, &connect);
    let hosts: Vec<&Host> = hosts.iter().flat_map(|hosts| &hosts.0).collect();
    let asked = hosts.len();
    let hosts = hosts.iter().map(|host| Ok((way(host)?, way(host)?)));
    let hosts = hosts.collect::<Result<Vec<_>, Failure>>()?;
    let found = on_each_host(
        &context.policy,
        Limit::Work,
        hosts,
        |connection, destination: Destination, sender| {
            let host = connection.host();
            let jobs_dir = connection.jobs_dir();
            let found = connection.ask(|shell| remote::discover(&host, shell, jobs_dir));
            drop(sender.send((destination, found)));
        },
    );
    for (destination, found) in found {
        match found {
            Ok(found) => adopt(context, &destination, found, &mut listing.jobs)?,
            Err(failure) => listing.failures.push(failure),
        }
    }
    listing.jobs.sort_by_key(|job| job.record.created_at);
    // If no host answered, there is no list to show.
    match listing.failures.pop() {
        Some(failure) if listing.failures.len() + 1 == asked => Err(failure),
        failure => {
            listing.failures.extend(failure);
            Ok(())
        }
    }
}

fn adopt(
    context: &mut Context,
    destination: &Destination,
    found: Vec<remote::DiscoveredJob>,
    listed: &mut Vec<ListedJob>,
) -> Result<(), Failure> {
    // A different way to connect may lead to a different machine.
    let mut recorded: HashMap<JobId, Record> = context
        .store
        .list(RecordFilter::All)?
        .into_iter()
        .filter(|record| record.destination == *destination)
        .map(|record| (record.id.clone(), record))
        .collect();
    let mut adopted = Vec::new();
    for job in found {
        let known = recorded.remove(&job.id);
        let is_new = known.is_none();
        if is_new && job.seen.observed == ObservedState::Untrusted {
            continue;
        }
        let mut record =
            known.unwrap_or_else(|| Record::placeholder(job.id.clone(), destination.clone()));
        let state = job.seen.state(&record);
        if is_new {
            job.fill_in(&mut record);
            adopted.push(record.clone());
        } else {
            job.seen.update(&mut record);
        }
        listed.push(ListedJob {
            record,
            state,
            usage: None,
        });
    }
    for mut record in recorded.into_values() {
        if record.state != State::Exited {
            let seen = Observation::absent();
            let state = seen.state(&record);
            seen.update(&mut record);
            listed.push(ListedJob {
                record,
                state,
                usage: None,
            });
        }
    }
    // Of jobs with the same name, the first gets it: one that can still be signalled, else the newest.
    adopted.sort_by_key(|record| (record.state.is_finished(), Reverse(record.created_at)));
    context.store.adopt(&adopted);
    context.store.update(listed.iter().map(|job| &job.record));
    Ok(())
}

/// A job as `ps -r --json` shows it.
#[derive(Serialize)]
struct MeasuredJson<'a> {
    #[serde(flatten)]
    job: JobJson<'a>,
    cpu_percent: Option<f64>,
    cpu_seconds: Option<f64>,
    rss_bytes: Option<u64>,
    processes: Option<u32>,
}

fn measured_json(job: &ListedJob) -> MeasuredJson<'_> {
    let usage = job.usage.as_ref();
    MeasuredJson {
        job: JobJson::new(&job.record, job.state),
        cpu_percent: usage.and_then(|usage| usage.cpu_percent),
        cpu_seconds: usage.map(|usage| usage.cpu_seconds),
        rss_bytes: usage.and_then(|usage| usage.rss_bytes),
        processes: usage.map(|usage| usage.processes),
    }
}

fn table(jobs: &[ListedJob], resources: bool) -> Table {
    let with = |cells: [String; 6], usage: [String; 4], command: String| {
        let usage = usage.into_iter().filter(move |_| resources);
        cells.into_iter().chain(usage).chain([command])
    };
    let header = ["ID", "NAME", "HOST", "STATE", "PID", "SINCE"].map(str::to_owned);
    let used = ["CPU", "TIME", "MEMORY", "PROCS"].map(str::to_owned);
    let mut table = Table::new(with(header, used, "COMMAND".to_owned()));
    for ListedJob {
        record,
        state,
        usage,
    } in jobs
    {
        let cells = [
            record.id.to_string(),
            record.name.as_ref().map_or("-", JobName::as_str).to_owned(),
            record.host().to_string(),
            coloured(*state, terminal::state(record, *state)),
            record
                .pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            terminal::since(record, *state),
        ];
        let command = terminal::command_line(&record.command);
        table.row(with(cells, terminal::usage(usage.as_ref()), command));
    }
    table
}

fn coloured(state: State, text: String) -> String {
    let code = match state {
        State::Running => "32",
        State::Starting | State::Stopped | State::Unknown => "33",
        State::Lost => "31",
        State::Exited => "2",
    };
    if terminal::is_coloured() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text
    }
}
