//! The command line: its words and options, and nothing else.

use super::complete;
#[cfg(feature = "serve")]
use super::values::Listen;
use super::values::{self, Hosts, Lines, Place};
use super::words::arrange;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, FromArgMatches as _, Subcommand, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter};

#[cfg(any(feature = "mcp", feature = "serve"))]
use crate::cmd::allowed::HostPattern;
use crate::cmd::select::{NamePattern, Selection};
use crate::delivery::Ways;
use crate::host::{Connect, Host};
use crate::job::{JobName, State, Target};
use crate::signal::{Os, SignalWord};

/// What stands before the verb.
fn top() -> clap::Command {
    clap::Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .max_term_width(100)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
}

/// The definition of the whole command line.
pub fn definition() -> clap::Command {
    Command::augment_subcommands(top())
}

/// What defines a verb.
type Define = fn(clap::Command) -> clap::Command;

/// The verbs, as [`Command`] has them.
const VERBS: &[(&str, Define)] = &[
    ("spawn", Spawn::augment_args),
    ("run", Run::augment_args),
    ("kill", Kill::augment_args),
    ("stop", Stop::augment_args),
    ("wait", Wait::augment_args),
    ("tail", Tail::augment_args),
    ("ps", Ps::augment_args),
    ("rm", Rm::augment_args),
    ("history", History::augment_args),
    ("keeper", Keeper::augment_args),
    #[cfg(feature = "mcp")]
    ("mcp", Mcp::augment_args),
    #[cfg(feature = "serve")]
    ("serve", Serve::augment_args),
];

/// The definition of one verb: a command needs no other, and all of them take a tenth of what it takes in all.
pub(super) fn definition_of(verb: &OsStr) -> Option<clap::Command> {
    let (name, define) = VERBS.iter().find(|(name, _)| verb == *name)?;
    Some(define(clap::Command::new(*name)))
}

/// What the words of a command line say. With words that make no sense, or ask for help, it prints and exits.
pub fn parse(mut words: Vec<OsString>) -> Command {
    // No option stands before the verb but --help and --version, which end it all.
    let verb = words.get(1).and_then(|verb| definition_of(verb));
    let mut definition = match verb {
        Some(verb) => {
            arrange(&verb, &mut words);
            top().subcommand(verb)
        }
        None => definition(),
    };
    let parsed = definition
        .try_get_matches_from_mut(words)
        .and_then(|mut matches| Command::from_arg_matches_mut(&mut matches));
    parsed.unwrap_or_else(|error| error.format(&mut definition).exit())
}

/// The verbs.
#[derive(Debug, Subcommand)]
#[command(about = env!("CARGO_PKG_DESCRIPTION"), long_about = None)]
pub enum Command {
    Spawn(Spawn),
    Run(Run),
    Kill(Kill),
    Stop(Stop),
    Wait(Wait),
    Tail(Tail),
    Ps(Ps),
    Rm(Rm),
    History(History),
    Keeper(Keeper),
    #[cfg(feature = "mcp")]
    Mcp(Mcp),
    #[cfg(feature = "serve")]
    Serve(Serve),
}

/// How hosts are reached.
#[derive(Args, Clone, Copy, Debug)]
pub struct Reach {
    /// Say on standard error what happens while connecting
    #[arg(short, long)]
    pub verbose: bool,
    /// Connect directly, without the host's keeper (as with RSIG_KEEPER=0)
    #[arg(long)]
    pub no_keeper: bool,
}

/// What most commands take.
#[derive(Args, Clone, Copy, Debug)]
pub struct Common {
    /// Print no more than what was asked for
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub reach: Reach,
}

/// How many hosts at once.
#[derive(Args, Clone, Copy, Debug)]
pub struct Parallel {
    /// Talk to so many hosts at a time, at most
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub parallel: u16,
}

/// What picks jobs, in place of their ids and names.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Picking jobs (in place of JOB)")]
pub struct Selectors {
    /// All unfinished jobs; with --host and --name those of them that fit both
    #[arg(long)]
    pub all: bool,
    /// Those that were started on one of these hosts, written as then
    #[arg(long, value_name = "HOST[,HOST]", value_delimiter = ',', add = ArgValueCompleter::new(complete::recorded_host))]
    pub host: Vec<Host>,
    /// Those whose name fits a pattern: *, ?, [a-z]
    #[arg(long = "name", value_name = "GLOB")]
    pub name_pattern: Option<NamePattern>,
}

impl Selectors {
    /// What they pick, if any is given.
    pub fn selection(&self) -> Option<Selection> {
        let given = self.all || !self.host.is_empty() || self.name_pattern.is_some();
        given.then(|| Selection {
            hosts: self.host.clone(),
            name: self.name_pattern.clone(),
        })
    }
}

/// The options that take part in connecting, with ssh's meanings.
#[derive(Args, Clone, Debug)]
pub struct ConnectArgs {
    /// The user to log in as
    #[arg(short, long = "login", value_name = "USER")]
    login: Option<String>,
    #[command(flatten)]
    way: WayArgs,
}

/// Those of them that are not taken by something else on any command.
#[derive(Args, Clone, Debug)]
pub struct WayArgs {
    /// The port of the SSH server
    #[arg(short, long, value_parser = crate::host::parse_port)]
    port: Option<u16>,
    /// A private key to log in with; may be given several times
    #[arg(short, long = "identity", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    identity: Vec<PathBuf>,
    /// The SSH configuration file, in place of the user's and the system's
    #[arg(short = 'F', long = "config", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Go there by way of these hosts
    #[arg(short = 'J', long = "jump", value_name = "HOST[,HOST]", add = ArgValueCompleter::new(complete::jump))]
    jump: Option<String>,
    /// An option of ssh_config(5); may be given several times
    #[arg(short, long = "option", value_name = "KEY=VALUE", value_parser = values::ssh_option)]
    option: Vec<String>,
    /// A command in front of the host's /bin/sh, such as 'sudo -n -u app' or 'docker exec -i web'
    #[arg(long, value_name = "WORDS", value_parser = values::prefix)]
    prefix: Option<values::Prefix>,
    /// Short for --prefix 'sudo -n -H [-u USER]'
    #[arg(long, value_name = "USER", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    sudo: Option<String>,
}

/// The heading of these options where they are for a job that is started.
const KEPT: &str = "Connecting (kept with the job)";
/// The heading of these options where they are for jobs that are named as `HOST/ID`.
const CONNECTING: &str = "Connecting (for HOST/ID)";

impl From<ConnectArgs> for Connect {
    fn from(given: ConnectArgs) -> Self {
        Self {
            user: given.login,
            ..given.way.into()
        }
    }
}

impl From<WayArgs> for Connect {
    fn from(given: WayArgs) -> Self {
        let mut prefix = given.prefix.map(|prefix| prefix.0).unwrap_or_default();
        if let Some(user) = given.sudo {
            prefix.extend(["sudo", "-n", "-H"].map(str::to_owned));
            if !user.is_empty() {
                prefix.extend(["-u".to_owned(), user]);
            }
        }
        Self {
            port: given.port,
            user: None,
            prefix,
            identities: given.identity,
            config: given.config,
            jump: given.jump,
            options: given.option,
        }
    }
}

/// What a job is, apart from where it runs.
#[derive(Args, Debug)]
pub struct JobArgs {
    /// A name for the job, unique among the unfinished ones
    #[arg(short, long)]
    pub name: Option<JobName>,
    /// The directory to start in; a relative one is taken from the home directory (on `local`: from here)
    #[arg(short = 'C', long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub cwd: Option<OsString>,
    /// A variable for the job's environment; KEY alone takes its value from here and keeps it out of every argument list
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = values::Variables)]
    pub env: Vec<(String, Option<OsString>)>,
    /// COMMAND is one line for /bin/sh -c
    #[arg(short = 'c', long)]
    pub shell: bool,
    /// End the job when it has run for so long: TERM, CONT, then KILL after 10 s. Its host counts, whoever is connected
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub timeout: Option<Duration>,
    /// Forget the job and remove its files once it has ended and its output is read: when `tail` has shown both streams to
    /// their ends (an empty one needs no reading). What sees to it is that `tail`, or a `wait` or `ps` that finds it ended
    #[arg(long)]
    pub rm: bool,
    /// Refused: jobs have no terminal
    #[arg(short = 't', hide = true)]
    pub terminal: bool,
}

/// Start a job that outlives the connection, and print its id; on several hosts, one each
#[derive(Args, Debug)]
#[command(override_usage = "rsig spawn [OPTIONS] <HOST[,HOST]...> [--] <COMMAND> [ARG]...")]
pub struct Spawn {
    #[command(flatten)]
    pub job: JobArgs,
    /// What the job is to read, in place of nothing: all of it is on the host before the job starts; `-` is standard
    /// input
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub stdin: Option<PathBuf>,
    /// Put standard error into standard output, in order
    #[arg(long)]
    pub merge: bool,
    /// Print each job as JSON, on a line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub parallel: Parallel,
    #[command(flatten, next_help_heading = KEPT)]
    pub connect: ConnectArgs,
    /// Where: `local`, an alias of ssh_config(5), or [user@]host[:port]; several are separated by commas. The ids come in
    /// the order of the hosts, as long as none keeps the others waiting for more than a second
    #[arg(value_name = "HOST[,HOST]...", add = ArgValueCompleter::new(complete::hosts))]
    pub host: Hosts,
    /// The command and its arguments: everything behind HOST
    #[arg(required = true, num_args = 1.., value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

/// Run a job in the foreground: as `ssh HOST COMMAND`, and it gets your signals, survives a broken connection, and ends
/// when you do
#[derive(Args, Debug)]
#[command(override_usage = "rsig run [OPTIONS] <HOST> [--] <COMMAND> [ARG]...")]
pub struct Run {
    #[command(flatten)]
    pub job: JobArgs,
    /// How long the job may take to end after INT, TERM or HUP, before it gets KILL
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    pub grace: Duration,
    /// How long the job may run on when this rsig or its machine is gone
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    pub tether: Duration,
    /// Let the job run on without this rsig
    #[arg(long, conflicts_with = "tether")]
    pub no_tether: bool,
    /// Take the job's input from here; `-` is standard input, also when that is a terminal
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub stdin: Option<PathBuf>,
    /// How many MB of each output may wait on the host; then the job blocks, as on a full pipe
    #[arg(long, value_name = "MB", default_value = "256", value_parser = clap::value_parser!(u64).range(32..=1_048_576))]
    pub backlog: u64,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten, next_help_heading = KEPT)]
    pub connect: ConnectArgs,
    /// Where: `local`, an alias of ssh_config(5), or [user@]host[:port]
    #[arg(add = ArgValueCompleter::new(complete::host))]
    pub host: Host,
    /// The command and its arguments: everything behind HOST
    #[arg(required = true, num_args = 1.., value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

/// The way that a signal may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// By the channel where one is held, else by pid
    #[default]
    Auto,
    /// By the SSH channel's signal request alone
    Channel,
    /// By a kill on the host alone
    Pid,
}

impl From<Via> for Ways {
    fn from(via: Via) -> Self {
        match via {
            Via::Auto => Self::Any,
            Via::Channel => Self::Channel,
            Via::Pid => Self::Pid,
        }
    }
}

/// An operating system with a signal table of its own.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OsWord {
    Linux,
    Darwin,
    Freebsd,
}

impl From<OsWord> for Os {
    fn from(word: OsWord) -> Self {
        match word {
            OsWord::Linux => Self::Linux,
            OsWord::Darwin => Self::Darwin,
            OsWord::Freebsd => Self::FreeBSD,
        }
    }
}

/// Send a signal to jobs, each exactly once
#[derive(Args, Debug)]
#[command(override_usage = "rsig kill [OPTIONS] <JOB> [SIGNAL]\n       \
    rsig kill [OPTIONS] -s <SIGNAL> <JOB>...\n       rsig kill -l [--os <OS>] [SIGNAL]")]
pub struct Kill {
    /// The signal: a name with or without SIG, or a number of the job's system; also as -TERM or -15
    #[arg(short, long, add = ArgValueCompleter::new(complete::signal))]
    pub signal: Option<SignalWord>,
    /// Wait so long for the jobs to end
    #[arg(short, long, value_name = "DURATION", value_parser = values::duration)]
    pub wait: Option<Duration>,
    /// Send this as well when a job still runs after the wait, and wait as long again
    #[arg(long, value_name = "SIGNAL", requires = "wait", add = ArgValueCompleter::new(complete::signal))]
    pub then: Option<SignalWord>,
    /// Which way the signal may take
    #[arg(long, value_enum, default_value_t)]
    pub via: Via,
    /// Which of a job's processes get it
    #[arg(long, value_enum, default_value_t)]
    pub target: Target,
    /// List the signals, or the one given: a name, a number or an exit status
    #[arg(short, long, conflicts_with_all = ["signal", "wait", "then", "all", "host", "name_pattern"])]
    pub list: bool,
    /// With --list: whose signals
    #[arg(long, value_enum, requires = "list")]
    pub os: Option<OsWord>,
    /// Signal what --all picks without asking; without a terminal to ask on, --all needs it
    #[arg(short, long)]
    pub yes: bool,
    /// Print one JSON object per job
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub parallel: Parallel,
    #[command(flatten)]
    pub selectors: Selectors,
    #[command(
        flatten,
        next_help_heading = "Connecting (for HOST/ID, or user@HOST/ID)"
    )]
    pub connect: WayArgs,
    /// JOB [SIGNAL], or with -s any number of JOBs: ids, names, unique beginnings of ids, or HOST/ID
    #[arg(value_name = "JOB", required_unless_present_any = ["list", "all", "host", "name_pattern"], add = ArgValueCompleter::new(complete::unfinished))]
    pub words: Vec<OsString>,
}

/// Jobs by their names, or picked in place of those.
#[derive(Args, Debug)]
pub struct WhichJobs {
    #[command(flatten)]
    pub selectors: Selectors,
    #[command(flatten, next_help_heading = CONNECTING)]
    pub connect: ConnectArgs,
    /// Ids, names, unique beginnings of ids, or HOST/ID
    #[arg(required_unless_present_any = ["all", "host", "name_pattern"], conflicts_with_all = ["all", "host", "name_pattern"], value_name = "JOB", add = ArgValueCompleter::new(complete::unfinished))]
    pub jobs: Vec<OsString>,
}

/// End jobs: TERM, then CONT if stopped, then KILL after the grace
#[derive(Args, Debug)]
pub struct Stop {
    /// How long a job may take to end by itself
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    pub grace: Duration,
    /// Which of a job's processes are ended; with `tree`, the grace is for all of them
    #[arg(long, value_enum, default_value_t)]
    pub target: Target,
    /// Stop what --all picks without asking; without a terminal to ask on, --all needs it
    #[arg(short, long)]
    pub yes: bool,
    /// Print one JSON object per job
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub parallel: Parallel,
    #[command(flatten)]
    pub which: WhichJobs,
}

/// Wait for jobs to end, and exit as they do
#[derive(Args, Debug)]
pub struct Wait {
    /// Give up after so long, with status 124
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub timeout: Option<Duration>,
    /// Return when the first of them ends, with its status
    #[arg(long)]
    pub any: bool,
    /// Print one JSON object per job
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub parallel: Parallel,
    #[command(flatten)]
    pub which: WhichJobs,
}

/// Show what a job has written
#[derive(Args, Debug)]
pub struct Tail {
    /// The last N lines of each stream, from line N on, or all
    #[arg(
        short = 'n',
        long,
        value_name = "N|+N|all",
        default_value = "10",
        conflicts_with = "bytes",
        allow_hyphen_values = true
    )]
    pub lines: Lines,
    /// The last N bytes of each stream, or from byte N on
    #[arg(short = 'c', long, value_name = "N|+N", allow_hyphen_values = true)]
    pub bytes: Option<Place>,
    /// Go on until the job ends
    #[arg(short, long)]
    pub follow: bool,
    /// Standard output only
    #[arg(long, conflicts_with = "stderr")]
    pub stdout: bool,
    /// Standard error only
    #[arg(long)]
    pub stderr: bool,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten, next_help_heading = CONNECTING)]
    pub connect: ConnectArgs,
    /// An id, a name, the unique beginning of an id, or HOST/ID: a job that this machine need not know
    #[arg(add = ArgValueCompleter::new(complete::any))]
    pub job: OsString,
}

/// List jobs, as their hosts say they stand
#[derive(Args, Debug)]
pub struct Ps {
    /// Finished jobs too
    #[arg(short, long)]
    pub all: bool,
    /// Those of one host
    #[arg(long, add = ArgValueCompleter::new(complete::recorded_host))]
    pub host: Option<Host>,
    /// Those in one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', add = ArgValueCandidates::new(complete::states))]
    pub state: Vec<State>,
    /// All of your jobs that the host itself knows, finished ones too and also those started elsewhere; this machine
    /// remembers them from then on (one whose name is in use here goes by its id only)
    #[arg(long, requires = "host", conflicts_with_all = ["cached", "jobs"])]
    pub discover: bool,
    /// Show what was last known, and ask no host
    #[arg(long)]
    pub cached: bool,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print a JSON array
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
    #[command(flatten)]
    pub parallel: Parallel,
    #[command(flatten, next_help_heading = "Connecting (for --discover and HOST/ID)")]
    pub connect: ConnectArgs,
    /// Ids, names, unique beginnings of ids, or HOST/ID, shown in any state
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(complete::any))]
    pub jobs: Vec<OsString>,
}

/// Forget finished jobs, and remove their files from their hosts
#[derive(Args, Debug)]
pub struct Rm {
    /// All that are finished; with --host and --name those of them that fit both
    #[arg(long, visible_alias = "all", conflicts_with = "force")]
    pub finished: bool,
    /// The finished ones that were started on one of these hosts, written as then
    #[arg(long, value_name = "HOST[,HOST]", value_delimiter = ',', conflicts_with = "force", add = ArgValueCompleter::new(complete::recorded_host))]
    pub host: Vec<Host>,
    /// The finished ones whose name fits a pattern: *, ?, [a-z]
    #[arg(long = "name", value_name = "GLOB", conflicts_with = "force")]
    pub name_pattern: Option<NamePattern>,
    /// All that ended at least so long ago
    #[arg(long, value_name = "DURATION", value_parser = values::duration, conflicts_with = "force")]
    pub older_than: Option<Duration>,
    /// Stop a job first that still runs
    #[arg(long)]
    pub force: bool,
    /// Forget the record only, for a host that is gone
    #[arg(long, conflicts_with = "force")]
    pub forget: bool,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub parallel: Parallel,
    #[command(flatten, next_help_heading = CONNECTING)]
    pub connect: ConnectArgs,
    /// Ids, names, unique beginnings of ids, or HOST/ID
    #[arg(
        value_name = "JOB",
        required_unless_present_any = ["finished", "older_than", "host", "name_pattern"],
        add = ArgValueCompleter::new(complete::finished)
    )]
    pub jobs: Vec<OsString>,
}

/// Show what was done to jobs: starts, signals, ends and removals, those included of jobs that are forgotten
///
/// Kept for a year, and the last 100,000 at most. A signal that is not confirmed was sent or not: the connection broke, or
/// rsig was ended before the answer. Values of `-e` are never written down.
#[derive(Args, Debug)]
pub struct History {
    /// The last N only
    #[arg(short = 'n', long, value_name = "N")]
    pub last: Option<u32>,
    /// Print one JSON object per event
    #[arg(long)]
    pub json: bool,
    /// An id, a name, or the unique beginning of an id, also of a job that is removed; all jobs without it
    #[arg(add = ArgValueCompleter::new(complete::any))]
    pub job: Option<OsString>,
}

/// Look at the background connections to hosts, and end them
#[derive(Args, Debug)]
pub struct Keeper {
    #[command(subcommand)]
    pub command: KeeperCommand,
}

/// What to do with keepers.
#[derive(Debug, Subcommand)]
pub enum KeeperCommand {
    /// List the keepers of this machine
    Status {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// End keepers; jobs run on, and the next command starts another
    Stop {
        /// The keepers of one host
        #[arg(
            required_unless_present = "all",
            conflicts_with = "all",
            add = ArgValueCompleter::new(complete::recorded_host)
        )]
        host: Option<Host>,
        /// All keepers
        #[arg(long)]
        all: bool,
    },
}

/// What a server may do for its clients, and how it reaches hosts.
#[cfg(any(feature = "mcp", feature = "serve"))]
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Only use hosts that fit: `local`, or [USER@]HOST[:PORT] with * and ? in any part; may be given several times. A part
    /// that the pattern lacks must not be there
    #[arg(long, value_name = "GLOB")]
    pub allow_host: Vec<HostPattern>,
    #[command(flatten)]
    pub reach: Reach,
    #[command(
        flatten,
        next_help_heading = "Connecting (to every host that a client names)"
    )]
    pub connect: ConnectArgs,
}

/// Serve agents: the Model Context Protocol on standard input and output
#[cfg(feature = "mcp")]
#[derive(Args, Debug)]
pub struct Mcp {
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Serve programs: HTTP on a Unix socket, or on a port of this machine alone
#[cfg(feature = "serve")]
#[derive(Args, Debug)]
pub struct Serve {
    /// Listen on this address of this machine in place of the Unix socket; requests then need the token in the state
    /// directory's file `serve.token`, which is made when there is none
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<Listen>,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_verb_alone_is_as_among_all() {
        let mut all = definition();
        all.build();
        for among_all in all.get_subcommands_mut() {
            let mut alone = top()
                .subcommand(definition_of(among_all.get_name().as_ref()).expect("it is a verb"));
            alone.build();
            let alone = alone
                .find_subcommand_mut(among_all.get_name())
                .expect("it was just put there");
            assert_eq!(
                alone.render_long_help().to_string(),
                among_all.render_long_help().to_string()
            );
        }
        assert_eq!(VERBS.len(), all.get_subcommands().count());
    }
}
