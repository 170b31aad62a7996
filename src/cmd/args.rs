//! Groups of options that several commands share.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap_complete::engine::ArgValueCompleter;

use super::complete;
use super::context::Context;

use super::select::Selectors;
use super::values;
use crate::connection::Policy;
use crate::error::Failure;
use crate::host::Connect;
use crate::job::{JobName, JobWord};
use crate::state::Store;
use crate::terminal::{Spinner, warn};

/// Number of hosts contacted at once by commands without `--parallel`.
const PARALLEL_DEFAULT: usize = 16;

/// How hosts are reached.
#[derive(Args, Clone, Copy, Debug)]
pub struct ConnectionOptions {
    /// Report the steps of connecting on standard error
    #[arg(short, long)]
    pub verbose: bool,
    /// Connect directly, without the host's keeper (as with RSIG_KEEPER=0)
    #[arg(long)]
    pub no_keeper: bool,
    /// From `-q`: the server's banner is not wanted.
    #[arg(skip)]
    pub quiet: bool,
}

impl ConnectionOptions {
    /// Opens the state file.
    pub fn context(self) -> Result<Context, Failure> {
        self.context_with(warn)
    }

    /// The same, with a function for warnings, which are shown even with `-q`.
    pub fn context_with(self, warn: fn(&str)) -> Result<Context, Failure> {
        let keeper =
            !self.no_keeper && std::env::var_os("RSIG_KEEPER").is_none_or(|value| value != "0");
        let policy = Policy {
            batch: false,
            keeper,
            starts: false,
            parallel: PARALLEL_DEFAULT,
            verbose: self.verbose,
            quiet: self.quiet,
            step: if self.verbose { warn } else { |_| () },
            warn,
        };
        Ok(Context {
            store: Store::open(warn)?,
            policy,
            connect: Connect::default(),
            allowed: super::allowed::AllowedHosts::default(),
        })
    }
}

/// What most commands take.
#[derive(Args, Clone, Copy, Debug)]
pub struct Common {
    /// Suppress informational messages
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub reach: ConnectionOptions,
}

impl Common {
    pub fn reach(self) -> ConnectionOptions {
        let quiet = self.quiet;
        ConnectionOptions {
            quiet,
            ..self.reach
        }
    }

    pub fn spinner(self, text: &'static str) -> Spinner {
        Spinner::new(text, !self.quiet && !self.reach.verbose)
    }

    /// Prints an informational message, unless `-q` was given.
    pub fn note(self, text: &str) {
        if !self.quiet {
            warn(text);
        }
    }
}

#[derive(Args, Clone, Copy, Debug)]
pub struct Parallel {
    /// Contact at most N hosts at once
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u16).range(1..=1000))]
    parallel: u16,
}

impl Parallel {
    pub fn number(self) -> usize {
        self.parallel.into()
    }

    pub fn context(self, reach: ConnectionOptions, connect: Connect) -> Result<Context, Failure> {
        let mut context = reach.context()?;
        context.policy.parallel = self.parallel.into();
        context.connect = connect;
        Ok(context)
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

/// Those of them that no command uses for something else.
#[derive(Args, Clone, Debug)]
pub struct WayArgs {
    /// The port of the SSH server
    #[arg(short, long, value_parser = crate::host::parse_port)]
    port: Option<u16>,
    /// A private key to log in with; repeatable
    #[arg(short, long = "identity", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    identity: Vec<PathBuf>,
    /// The SSH configuration file to use instead of the user's and the system's
    #[arg(short = 'F', long = "config", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Connect through these jump hosts
    #[arg(short = 'J', long = "jump", value_name = "HOST[,HOST]", add = ArgValueCompleter::new(complete::jump))]
    jump: Option<String>,
    /// An option of ssh_config(5); repeatable
    #[arg(short, long = "option", value_name = "KEY=VALUE", value_parser = values::ssh_option)]
    option: Vec<String>,
    /// A command in front of the host's /bin/sh, such as 'sudo -n -u app' or 'docker exec -i web'
    #[arg(long, value_name = "WORDS", value_parser = values::prefix)]
    prefix: Option<values::Prefix>,
    /// Short for --prefix 'sudo -n -H [-u USER]'
    #[arg(long, value_name = "USER", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    sudo: Option<String>,
    /// The directory on the host for the job's files, instead of one in the home directory
    #[arg(long, value_name = "DIR", value_parser = crate::host::parse_jobs_dir)]
    jobs_dir: Option<String>,
}

/// Help heading of the connection options on commands that start a job.
pub const KEPT: &str = "Connecting (kept with the job)";
/// Help heading of the connection options on commands that take `HOST/ID`.
pub const FOR_HOST_ID: &str = "Connecting (for HOST/ID)";

impl ConnectArgs {
    pub fn connect(self) -> Result<Connect, Failure> {
        self.way.with_user(self.login)
    }

    pub fn for_jobs(self, jobs: &[JobWord]) -> Result<Connect, Failure> {
        for_jobs(self.connect()?, jobs)
    }
}

impl WayArgs {
    pub fn for_jobs(self, jobs: &[JobWord]) -> Result<Connect, Failure> {
        for_jobs(self.with_user(None)?, jobs)
    }

    fn with_user(self, user: Option<String>) -> Result<Connect, Failure> {
        let mut prefix = self.prefix.map(|prefix| prefix.0).unwrap_or_default();
        if let Some(user) = self.sudo {
            prefix.extend(["sudo", "-n", "-H"].map(str::to_owned));
            if !user.is_empty() {
                prefix.extend(["-u".to_owned(), user]);
            }
        }
        let connect = Connect {
            prefix,
            jobs_dir: self.jobs_dir,
            chosen: None,
            port: self.port,
            user,
            identities: self.identity,
            config: self.config,
            jump: self.jump,
            options: self.option,
        };
        connect
            .check()
            .map_err(|error| Failure::usage(format!("-l: {error}")))?;
        connect.absolute(std::env::current_dir).map_err(|error| {
            Failure::usage(format!(
                "-i and -F need absolute paths here: the current directory can't be read: {error}"
            ))
        })
    }
}

/// Rejects connection options if no job is named as `HOST/ID`: a job's record already says how to connect.
fn for_jobs(connect: Connect, jobs: &[JobWord]) -> Result<Connect, Failure> {
    if connect == Connect::default() || jobs.iter().any(|job| job.host_and_id().is_some()) {
        return Ok(connect);
    }
    Err(Failure::usage(
        "a job's record says how to connect to its host: -p, -l, -i, -F, -J and -o are for jobs named as HOST/ID",
    ))
}

/// What a job is, apart from where it runs.
#[derive(Args, Clone, Debug, Default)]
pub struct JobArgs {
    /// A name for the job, unique among the unfinished ones
    #[arg(short, long)]
    pub name: Option<JobName>,
    /// The directory to start in, relative to the home directory (on `local`: to the current one)
    #[arg(short = 'C', long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub cwd: Option<OsString>,
    /// A variable for the job's environment; KEY alone takes the value from rsig's own environment, which keeps it out
    /// of every argument list
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = values::Variables)]
    pub env: Vec<(String, Option<OsString>)>,
    /// COMMAND is one line for /bin/sh -c
    #[arg(short = 'c', long)]
    pub shell: bool,
    /// Terminate the job after DURATION (TERM, then KILL 10 s later), even if nobody is connected
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub timeout: Option<Duration>,
    /// Refused: jobs have no terminal
    #[arg(short = 't', hide = true)]
    pub terminal: bool,
}

impl JobArgs {
    /// Checks the options and the command. A variable given without a value takes its value from this process.
    pub fn check(&mut self, command: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
        if self.terminal {
            return Err(Failure::usage(
                "-t: a job outlives the terminal that it is started from, so it has none; for a program that buffers \
                 its output without one, try `stdbuf -oL` or the program's own option",
            ));
        }
        for (name, value) in &mut self.env {
            *value = value.take().or_else(|| std::env::var_os(&*name));
            if value.is_none() {
                return Err(Failure::usage(format!(
                    "-e {name}: there is no such variable here; write {name}=VALUE to give it one"
                )));
            }
        }
        let command = match (self.shell, command.as_slice()) {
            (false, _) => command,
            (true, [line]) => vec!["/bin/sh".into(), "-c".into(), line.clone()],
            (true, _) => {
                return Err(Failure::usage(
                    "-c takes COMMAND as one word, a line for /bin/sh: quote it",
                ));
            }
        };
        if command.first().is_some_and(|word| word.is_empty()) {
            return Err(Failure::usage("the command is empty"));
        }
        Ok(command)
    }
}

/// Parses a JOB word. Bytes that are not UTF-8 are accepted: such a word names no job.
pub fn job_word() -> impl clap::builder::TypedValueParser<Value = JobWord> {
    OsStringValueParser::new().try_map(JobWord::parse)
}

/// Jobs by their names, or selected instead.
#[derive(Args, Clone, Debug)]
pub struct JobsArgs {
    #[command(flatten)]
    pub selectors: Selectors,
    #[command(flatten, next_help_heading = FOR_HOST_ID)]
    pub connect: ConnectArgs,
    /// Ids, names, unique id prefixes, or HOST/ID
    #[arg(required_unless_present_any = ["all", "host", "name_pattern"], conflicts_with_all = ["all", "host", "name_pattern"], value_name = "JOB", value_parser = job_word(), add = ArgValueCompleter::new(complete::unfinished))]
    pub jobs: Vec<JobWord>,
}
