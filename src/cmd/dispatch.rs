//! From the words of the command line to a command, and from its outcome to what is printed.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::args::{self as cli, Command, Common, KeeperCommand, Parallel, Reach};
#[cfg(any(feature = "mcp", feature = "serve"))]
use super::servers;
use super::{complete, input};
use crate::cmd::allowed::AllowedHosts;
use crate::cmd::select::Selection;
use crate::cmd::{self as commands, Context, kill, ps, rm, spawn, tail, wait};
use crate::connection::{Policy, keeper};
use crate::error::{Failure, Kind, exit};
use crate::escape::printable;
use crate::host::{Connect, Destination, Host};
use crate::job::{BadJobThere, JobThere, Record};
use crate::remote::{Stream, primer};
use crate::signal::{self, Os, SignalWord};
use crate::state::{Store, Which};
use crate::terminal::{self, Spinner, print, warn};

/// How many hosts are talked to at once where no option says it.
const PARALLEL: usize = 16;
/// How many jobs a question lists.
const LISTED: usize = 10;

/// All of rsig.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    if let Some(shell) = std::env::var_os(complete::VARIABLE) {
        return complete(&shell, words.into_iter().skip(1).collect());
    }
    if let [_, verb, socket] = words.as_slice()
        && verb == keeper::SERVE
    {
        let served = keeper::serve(Path::new(socket), primer(), warn, terminal::note);
        return if served.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let command = cli::parse(words);
    // These pass a job's own status on.
    let (waiting, running) = (
        matches!(command, Command::Wait(_)),
        matches!(command, Command::Run(_)),
    );
    let status = dispatch(command).unwrap_or_else(|error| {
        terminal::die_of_broken_pipe(&error);
        let failure = Failure::from(error);
        warn(&failure.message);
        match failure.kind {
            Kind::CommandMissing if running => exit::COMMAND_MISSING,
            Kind::CommandDenied if running => exit::COMMAND_DENIED,
            kind if waiting || running => terminal::wait_failure(kind),
            kind => kind.exit_status(),
        }
    });
    ExitCode::from(status)
}

/// What a shell asks for at the TAB key.
fn complete(shell: &OsStr, words: Vec<OsString>) -> ExitCode {
    let Some(shell) = complete::Shell::of(shell) else {
        warn(&format!(
            "{} names no shell that rsig completes for: bash, zsh or fish",
            complete::VARIABLE
        ));
        return ExitCode::from(exit::USAGE);
    };
    let text = if words.is_empty() {
        shell.script().to_owned()
    } else {
        complete::answer(shell, words)
    };
    // A shell that has gone needs no answer.
    drop(terminal::print_bytes(false, text.as_bytes()));
    ExitCode::SUCCESS
}

fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Spawn(arguments) => spawn(arguments),
        Command::Run(arguments) => super::run::run(arguments),
        Command::Kill(arguments) if arguments.list => list_signals(&arguments),
        Command::Kill(arguments) => kill(arguments),
        Command::Stop(arguments) => stop(arguments),
        Command::Wait(arguments) => wait(arguments),
        Command::Tail(arguments) => tail(arguments),
        Command::Ps(arguments) => ps(arguments),
        Command::Rm(arguments) => rm(arguments),
        Command::History(arguments) => history(&arguments),
        Command::Keeper(arguments) => keeper_command(arguments.command),
        #[cfg(feature = "mcp")]
        Command::Mcp(arguments) => servers::mcp(arguments),
        #[cfg(feature = "serve")]
        Command::Serve(arguments) => servers::serve(arguments),
    }
}

pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Failure::new(Kind::Usage, message).into()
}

pub fn context(reach: Reach) -> Result<Context> {
    let step = if reach.verbose {
        terminal::note
    } else {
        |_: &str| ()
    };
    let keeper =
        !reach.no_keeper && std::env::var_os("RSIG_KEEPER").is_none_or(|value| value != "0");
    let policy = Policy {
        batch: false,
        keeper,
        parallel: PARALLEL,
        verbose: reach.verbose,
        step,
        warn,
    };
    Ok(Context {
        store: Store::open(warn)?,
        policy,
        connect: Connect::default(),
        allowed: AllowedHosts::default(),
    })
}

fn context_for_many(reach: Reach, parallel: Parallel, connect: Connect) -> Result<Context> {
    let mut context = Context {
        connect,
        ..context(reach)?
    };
    context.policy.parallel = parallel.parallel.into();
    Ok(context)
}

/// The options of the command line that take part in connecting.
pub fn connect(given: impl Into<Connect>) -> Result<Connect> {
    let here = std::env::current_dir().context("the current directory can't be read")?;
    let connect = given.into().absolute(&here);
    connect
        .check()
        .map_err(|error| usage(format!("-l: {error}")))?;
    Ok(connect)
}

/// The same for a command that names jobs, whose records say how to connect: only a `HOST/ID` among them, or an option
/// that names a host, has a use for more.
fn connect_to(
    jobs: &[OsString],
    host: Option<&Host>,
    given: impl Into<Connect>,
) -> Result<Connect> {
    let mut used = host.is_some();
    for job in jobs.iter().filter_map(|word| word.to_str()) {
        match JobThere::parse(job) {
            Some(Err(error @ BadJobThere::Host(_))) => {
                return Err(usage(format!("{}: {error}", printable(job, 80))));
            }
            Some(_) => used = true,
            None => {}
        }
    }
    let connect = connect(given)?;
    if used || connect == Connect::default() {
        return Ok(connect);
    }
    Err(usage(
        "a job's record says how to connect to its host: -p, -l, -i, -F, -J and -o are for jobs named as HOST/ID",
    ))
}

fn spinner(text: &'static str, common: Common) -> Spinner {
    Spinner::new(text, !common.quiet && !common.reach.verbose)
}

fn spawn(arguments: cli::Spawn) -> Result<u8> {
    let hosts = arguments.host.0;
    if hosts.len() > 1 && arguments.job.name.is_some() {
        return Err(usage(
            "-n: a name stands for one job; leave it out to start one on each of several hosts",
        ));
    }
    let [first, others @ ..] = hosts.as_slice() else {
        return Err(usage("no host is named"));
    };
    let mut request = job(
        arguments.job,
        first.clone(),
        arguments.connect,
        arguments.command,
    )?;
    request.merge = arguments.merge;
    request.input = arguments
        .stdin
        .as_deref()
        .map(input::whole)
        .transpose()?
        .map(Arc::new);
    let mut context = context_for_many(
        arguments.common.reach,
        arguments.parallel,
        Connect::default(),
    )?;
    let mut spinner = spinner("starting the job", arguments.common);
    if others.is_empty() {
        let spawned = spawn::spawn(&mut context, &request)?;
        spinner.stop();
        print_spawned(spawned, arguments.json, arguments.common.quiet)?;
        return Ok(exit::DONE);
    }
    let connect = request.destination.connect.clone();
    let elsewhere = |host: &Host| Destination {
        host: host.clone(),
        connect: connect.clone(),
    };
    let mut requests = vec![request.clone()];
    requests.extend(others.iter().map(|host| spawn::Request {
        destination: elsewhere(host),
        ..request.clone()
    }));
    let mut status = exit::DONE;
    let mut printed = Ok(());
    spawn::spawn_each(&mut context, &requests, |spawned| {
        spinner.stop();
        match spawned {
            Ok(spawned) => {
                let result = print_spawned(spawned, arguments.json, arguments.common.quiet);
                printed = std::mem::replace(&mut printed, Ok(())).and(result);
            }
            Err(error) => {
                let failure = Failure::from(error);
                warn(&failure.message);
                status = status.max(failure.kind.exit_status());
            }
        }
    });
    printed.map(|()| status)
}

fn print_spawned(spawned: spawn::Spawned, json: bool, quiet: bool) -> Result<()> {
    if let Some(warning) = spawned.warning.filter(|_| !quiet) {
        warn(&warning);
    }
    if json {
        print(serde_json::to_string(&terminal::job_json(
            &spawned.record,
            spawned.record.state,
        ))?)
    } else {
        print(&spawned.record.id)
    }
}

/// What is to be started, and where.
pub fn job(
    job: cli::JobArgs,
    host: Host,
    connect: cli::ConnectArgs,
    command: Vec<OsString>,
) -> Result<spawn::Request> {
    if job.terminal {
        return Err(usage(
            "-t: a job outlives the terminal that it is started from, so it has none; for a program that buffers its \
             output without one, try `stdbuf -oL` or its own option",
        ));
    }
    let command = if job.shell {
        let [line] = command.as_slice() else {
            return Err(usage(
                "-c takes COMMAND as one word, a line for /bin/sh: quote it",
            ));
        };
        vec!["/bin/sh".into(), "-c".into(), line.clone()]
    } else {
        command
    };
    if command.first().is_some_and(|word| word.is_empty()) {
        return Err(usage("the command is empty"));
    }
    let env = job.env.into_iter().map(with_value).collect::<Result<_>>()?;
    Ok(spawn::Request {
        name: job.name,
        cwd: job.cwd,
        env,
        timeout: job.timeout,
        ephemeral: job.rm,
        ..spawn::Request::new(
            Destination {
                host,
                connect: self::connect(connect)?,
            },
            command,
        )
    })
}

/// `-e KEY` takes the value that the variable has here.
fn with_value((name, value): (String, Option<OsString>)) -> Result<(String, OsString)> {
    match value.or_else(|| std::env::var_os(&name)) {
        Some(value) => Ok((name, value)),
        None => Err(usage(format!(
            "-e {name}: there is no such variable here; write {name}=VALUE to give it one"
        ))),
    }
}

fn list_signals(arguments: &cli::Kill) -> Result<u8> {
    let os = arguments.os.map_or_else(Os::here, Os::from);
    let rows = match arguments.words.as_slice() {
        [] => signal::table(os),
        [word] => vec![
            signal::row_for(os, &word.to_string_lossy())
                .map_err(|error| usage(error.to_string()))?,
        ],
        _ => return Err(usage("-l takes one signal, or none for all of them")),
    };
    if arguments.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "number": row.number,
                    "name": row.name,
                    "action": row.action.to_string(),
                    "description": row.description,
                })
            })
            .collect();
        print(serde_json::to_string(&rows)?)?;
    } else {
        print(terminal::signal_table(&rows))?;
    }
    Ok(exit::DONE)
}

fn kill(arguments: cli::Kill) -> Result<u8> {
    let selection = arguments.selectors.selection();
    if selection.is_some() && !arguments.words.is_empty() {
        return Err(usage(
            "jobs are either named or picked by --all, --host and --name; the signal then goes with -s",
        ));
    }
    let (jobs, signal) = words(arguments.words, arguments.signal)?;
    if signal.is_existence_check() && arguments.wait.is_some() {
        return Err(usage(
            "signal 0 only asks whether a job is there; use `rsig wait` to wait for its end",
        ));
    }
    if arguments.then.is_some_and(SignalWord::is_existence_check) {
        return Err(usage("--then 0 would send nothing"));
    }
    let mut request = kill::Request {
        wait: arguments.wait,
        then: arguments.then,
        ways: arguments.via.into(),
        target: arguments.target,
        ..kill::Request::new(jobs, signal)
    };
    let connect = connect_to(&request.jobs, None, arguments.connect)?;
    let mut context = context_for_many(arguments.common.reach, arguments.parallel, connect)?;
    if let Some(selection) = selection {
        let asks = arguments.selectors.all && !arguments.yes && !signal.is_existence_check();
        let Some(jobs) = picked(
            &context,
            &selection,
            arguments.common,
            asks.then(|| signal.to_string()),
        )?
        else {
            return Ok(exit::DONE);
        };
        (request.jobs, request.selected) = (jobs, true);
    }
    send(&mut context, &request, arguments.common, arguments.json)
}

/// Tells `JOB [SIGNAL]` from `-s SIGNAL JOB...`.
fn words(
    mut words: Vec<OsString>,
    signal: Option<SignalWord>,
) -> Result<(Vec<OsString>, SignalWord)> {
    if let Some(signal) = signal {
        return Ok((words, signal));
    }
    let several = "name the signal with -s to signal several jobs: rsig kill -s TERM JOB...";
    match words.len() {
        0 | 1 => Ok((words, SignalWord::TERM)),
        2 => {
            let word = words.pop().unwrap_or_default();
            let signal = word
                .to_string_lossy()
                .parse()
                .map_err(|error| usage(format!("{error}; {several}")))?;
            Ok((words, signal))
        }
        _ => Err(usage(several)),
    }
}

fn stop(arguments: cli::Stop) -> Result<u8> {
    let which = arguments.which;
    let mut request = kill::Request {
        target: arguments.target,
        ..kill::Request::stop(which.jobs, arguments.grace)
    };
    let connect = connect_to(&request.jobs, None, which.connect)?;
    let mut context = context_for_many(arguments.common.reach, arguments.parallel, connect)?;
    if let Some(selection) = which.selectors.selection() {
        let asks = which.selectors.all && !arguments.yes;
        let signals = asks.then(|| "TERM, then KILL".to_owned());
        let Some(jobs) = picked(&context, &selection, arguments.common, signals)? else {
            return Ok(exit::DONE);
        };
        (request.jobs, request.selected) = (jobs, true);
    }
    send(&mut context, &request, arguments.common, arguments.json)
}

/// The ids of the unfinished jobs that are picked; none where there are none. Asks first when `signals` are given.
fn picked(
    context: &Context,
    selection: &Selection,
    common: Common,
    signals: Option<String>,
) -> Result<Option<Vec<OsString>>> {
    let records = selection.of(&context.store, Which::Unfinished)?;
    if records.is_empty() {
        if !common.quiet {
            warn(&format!("no unfinished jobs{selection}; nothing was done"));
        }
        return Ok(None);
    }
    if let Some(signals) = signals {
        confirm(&signals, &records)?;
    }
    Ok(Some(
        records
            .into_iter()
            .map(|record| OsString::from(record.id.as_str()))
            .collect(),
    ))
}

/// Asks on the terminal whether all these jobs are meant.
fn confirm(signals: &str, records: &[Record]) -> Result<()> {
    let jobs = if records.len() == 1 {
        "1 job".to_owned()
    } else {
        format!("{} jobs", records.len())
    };
    if !terminal::is_on_terminal() {
        return Err(usage(format!(
            "--all would send {signals} to {jobs}, and there is no terminal to ask on: add --yes"
        )));
    }
    let mut question = String::new();
    for record in records.iter().take(LISTED) {
        question += &format!(
            "  {}: {}\n",
            record.label(),
            terminal::command_line(&record.command)
        );
    }
    if records.len() > LISTED {
        question += &format!("  and {} more\n", records.len() - LISTED);
    }
    if terminal::ask(&format!("{question}Send {signals} to {jobs}? [y/N] "))? {
        return Ok(());
    }
    Err(Failure::new(Kind::Failed, "nothing was sent").into())
}

fn send(context: &mut Context, request: &kill::Request, common: Common, json: bool) -> Result<u8> {
    let mut spinner = spinner("asking the host", common);
    let waiting = request.wait.is_some();
    let asked = request.signal.to_string();
    let mut status = exit::DONE;
    let mut printed = Ok(());
    kill::kill(context, request, |report| {
        spinner.stop();
        status = status.max(terminal::report_status(&report, waiting));
        if let Some(note) = report
            .outcome
            .as_ref()
            .ok()
            .and_then(|outcome| outcome.note.as_ref())
            .filter(|_| !common.quiet)
        {
            warn(note);
        }
        let result = if json {
            serde_json::to_string(&terminal::report_json(
                &report,
                &asked,
                request.target,
                waiting,
            ))
            .map_err(anyhow::Error::from)
            .and_then(print)
        } else {
            if let Some(failure) = report.failure() {
                warn(&failure.message);
            }
            match terminal::report_line(&report, request.target, waiting).filter(|_| !common.quiet)
            {
                Some(line) => print(line),
                None => Ok(()),
            }
        };
        if result.is_err() {
            printed = result;
        }
    });
    printed.map(|()| status)
}

fn wait(arguments: cli::Wait) -> Result<u8> {
    let which = arguments.which;
    let connect = connect_to(&which.jobs, None, which.connect)?;
    let mut context = context_for_many(arguments.common.reach, arguments.parallel, connect)?;
    let selection = which.selectors.selection();
    let mut request = wait::Request {
        jobs: which.jobs,
        selected: selection.is_some(),
        timeout: arguments.timeout,
        any: arguments.any,
    };
    if let Some(selection) = selection {
        let Some(jobs) = picked(&context, &selection, arguments.common, None)? else {
            return Ok(exit::DONE);
        };
        request.jobs = jobs;
    }
    let mut all = Vec::new();
    let mut printed = Ok(());
    wait::wait(&mut context, &request, |waited| {
        let line = if arguments.json {
            terminal::waited_json(&waited)
                .map(|job| serde_json::to_string(&job).map_err(anyhow::Error::from))
                .transpose()
        } else {
            Ok(terminal::waited_line(&waited).filter(|_| !arguments.common.quiet))
        };
        let failure = match &waited.outcome {
            Ok(outcome) => outcome.error.as_ref(),
            Err(failure) => Some(failure),
        };
        if let Some(failure) = failure {
            warn(&failure.message);
        }
        match line {
            Ok(Some(line)) => {
                printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| print(line));
            }
            Ok(None) => {}
            Err(error) => printed = Err(error),
        }
        all.push(waited);
    });
    printed?;
    if let Some(first) = all
        .iter()
        .position(|waited| request.any && waited.has_ended())
    {
        return Ok(terminal::wait_status(&all[first..=first]));
    }
    let place = |word: &str| {
        request
            .jobs
            .iter()
            .position(|job| job.to_string_lossy() == word)
    };
    all.sort_by_key(|waited| place(&waited.word));
    Ok(terminal::wait_status(&all))
}

fn tail(arguments: cli::Tail) -> Result<u8> {
    let connect = connect_to(
        std::slice::from_ref(&arguments.job),
        None,
        arguments.connect,
    )?;
    let request = tail::Request {
        out: !arguments.stderr,
        err: !arguments.stdout,
        from: arguments.bytes.map_or(arguments.lines.0, |bytes| bytes.0),
        follow: arguments.follow,
        brief: false,
        enough: None,
    };
    let mut context = Context {
        connect,
        ..context(arguments.common.reach)?
    };
    let mut spinner = Spinner::new(
        "asking the host",
        !arguments.follow && !arguments.common.quiet,
    );
    let mut broken = None;
    let result = tail::tail(
        &mut context,
        OsStr::new(&arguments.job),
        &request,
        &mut |stream, bytes| {
            spinner.stop();
            terminal::print_bytes(stream == Stream::Err, bytes).map_err(|error| {
                let failure = Failure::new(
                    Kind::Failed,
                    format!("the output can't be passed on: {error}"),
                );
                broken = Some(error);
                failure
            })
        },
    );
    match broken {
        Some(error) => Err(error.into()),
        None => result.map(|_| exit::DONE),
    }
}

fn ps(arguments: cli::Ps) -> Result<u8> {
    let discovered = arguments.host.as_ref().filter(|_| arguments.discover);
    let connect = connect_to(&arguments.jobs, discovered, arguments.connect)?;
    let discover = discovered.map(|host| Destination {
        host: host.clone(),
        connect: connect.clone(),
    });
    let mut context = context_for_many(arguments.reach, arguments.parallel, connect)?;
    let request = ps::Request {
        jobs: arguments.jobs,
        all: arguments.all,
        host: arguments.host,
        discover,
        states: arguments.state,
        cached: arguments.cached,
    };
    let mut spinner = Spinner::new(
        "asking the hosts",
        !arguments.quiet && !arguments.reach.verbose && !arguments.cached,
    );
    let listing = ps::ps(&mut context, &request)?;
    spinner.stop();
    let mut status = exit::DONE;
    for failure in &listing.failures {
        warn(&failure.message);
        if matches!(failure.kind, Kind::NotFound | Kind::Ambiguous) {
            status = status.max(failure.kind.exit_status());
        }
    }
    if arguments.json {
        let jobs: Vec<_> = listing
            .jobs
            .iter()
            .map(|job| terminal::job_json(&job.record, job.state))
            .collect();
        print(serde_json::to_string(&jobs)?)?;
    } else if arguments.quiet {
        let ids: Vec<&str> = listing
            .jobs
            .iter()
            .map(|job| job.record.id.as_str())
            .collect();
        if !ids.is_empty() {
            print(ids.join("\n"))?;
        }
    } else {
        print(terminal::job_table(&listing.jobs))?;
    }
    Ok(status)
}

fn rm(arguments: cli::Rm) -> Result<u8> {
    let connect = connect_to(&arguments.jobs, None, arguments.connect)?;
    let mut context = context_for_many(arguments.common.reach, arguments.parallel, connect)?;
    let mut spinner = spinner("asking the hosts", arguments.common);
    let selection = Selection {
        hosts: arguments.host,
        name: arguments.name_pattern,
    };
    let picks =
        arguments.finished || arguments.older_than.is_some() || selection != Selection::default();
    let none = format!("no finished jobs{selection}; nothing was done");
    let named = !arguments.jobs.is_empty();
    let request = rm::Request {
        jobs: arguments.jobs,
        finished: picks.then_some((arguments.older_than.unwrap_or_default(), selection)),
        force: arguments.force,
        forget: arguments.forget,
    };
    let mut status = exit::DONE;
    let mut printed = Ok(());
    let mut any = named;
    rm::rm(&mut context, &request, |removed| {
        spinner.stop();
        any = true;
        match removed {
            rm::Removed::Gone(record, note) => {
                if let Some(note) = note {
                    warn(&note);
                }
                printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| print(&record.id));
            }
            rm::Removed::Kept(failure) => {
                warn(&failure.message);
                status = status.max(failure.kind.exit_status());
            }
        }
    })?;
    spinner.stop();
    if !any && !arguments.common.quiet {
        warn(&none);
    }
    printed.map(|()| status)
}

fn history(arguments: &cli::History) -> Result<u8> {
    let store = Store::open(warn)?;
    let entries = commands::history::history(&store, arguments.job.as_deref(), arguments.last)?;
    if arguments.json {
        for entry in &entries {
            print(serde_json::to_string(entry)?)?;
        }
    } else {
        print(terminal::history_table(&entries))?;
    }
    Ok(exit::DONE)
}

fn keeper_command(command: KeeperCommand) -> Result<u8> {
    match command {
        KeeperCommand::Status { json } => {
            let keepers = commands::keeper::status()?;
            print(if json {
                serde_json::to_string(&keepers)?
            } else {
                terminal::keeper_table(&keepers)
            })?;
        }
        KeeperCommand::Stop { host, .. } => {
            let which = host.map_or(commands::keeper::Which::All, commands::keeper::Which::Of);
            for keeper in commands::keeper::stop(&which)? {
                print(format_args!("{}: keeper {} ended", keeper.host, keeper.pid))?;
            }
        }
    }
    Ok(exit::DONE)
}
