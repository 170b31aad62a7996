//! From the words of the command line to a command, and from its outcome to what is printed.

mod foreground;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use crate::cli::{self, Cli, Command, Common, KeeperCommand, Reach, complete};
use crate::commands::{self, Context, kill, ps, rm, spawn, tail, wait};
use crate::delivery::Ways;
use crate::error::{Failure, Kind, exit};
use crate::host::{Connect, Destination, Host};
use crate::job::Target;
use crate::output::{self, Spinner, print, warn};
use crate::remote::Stream;
use crate::signal::{self, Os, SignalWord};
use crate::store::Store;
use crate::transport::{Policy, keeper};

/// All of rsig.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    if let Some(shell) = std::env::var_os(complete::VARIABLE) {
        return complete(&shell, words.into_iter().skip(1).collect());
    }
    if let [_, verb, socket] = words.as_slice()
        && verb == keeper::SERVE
    {
        let served = keeper::serve(Path::new(socket), warn, output::note);
        return if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let cli = Cli::parse_from(cli::arrange(words));
    // These pass a job's own status on.
    let (waiting, running) = (matches!(cli.command, Command::Wait(_)), matches!(cli.command, Command::Run(_)));
    let status = dispatch(cli.command).unwrap_or_else(|error| {
        output::die_of_broken_pipe(&error);
        let failure = Failure::from(error);
        warn(&failure.message);
        match failure.kind {
            Kind::CommandMissing if running => exit::COMMAND_MISSING,
            Kind::CommandDenied if running => exit::COMMAND_DENIED,
            kind if waiting || running => output::wait_failure(kind),
            kind => kind.exit_status(),
        }
    });
    ExitCode::from(status)
}

/// What a shell asks for at the TAB key.
fn complete(shell: &OsStr, words: Vec<OsString>) -> ExitCode {
    let Some(shell) = complete::Shell::of(shell) else {
        warn(&format!("{} names no shell that rsig completes for: bash, zsh or fish", complete::VARIABLE));
        return ExitCode::from(exit::USAGE);
    };
    let text = if words.is_empty() { shell.script().to_owned() } else { complete::answer(shell, words) };
    // A shell that has gone needs no answer.
    drop(output::print_bytes(false, text.as_bytes()));
    ExitCode::SUCCESS
}

fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Spawn(arguments) => spawn(arguments),
        Command::Run(arguments) => foreground::run(arguments),
        Command::Kill(arguments) if arguments.list => list_signals(&arguments),
        Command::Kill(arguments) => kill(arguments),
        Command::Stop(arguments) => stop(arguments),
        Command::Wait(arguments) => wait(&arguments),
        Command::Tail(arguments) => tail(&arguments),
        Command::Ps(arguments) => ps(arguments),
        Command::Rm(arguments) => rm(arguments),
        Command::Keeper(arguments) => keeper_command(arguments.command),
    }
}

fn usage(message: impl Into<String>) -> anyhow::Error {
    Failure::new(Kind::Usage, message).into()
}

fn context(reach: Reach) -> Result<Context> {
    let step = if reach.verbose { output::note } else { |_: &str| () };
    let keeper = !reach.no_keeper && std::env::var_os("RSIG_KEEPER").is_none_or(|value| value != "0");
    Ok(Context { store: Store::open()?, policy: Policy { batch: false, keeper, verbose: reach.verbose, step, warn } })
}

fn spinner(text: &'static str, common: Common) -> Spinner {
    Spinner::new(text, !common.quiet && !common.reach.verbose)
}

fn spawn(arguments: cli::Spawn) -> Result<u8> {
    let mut request = job(arguments.job, arguments.host, arguments.connect, arguments.command)?;
    request.merge = arguments.merge;
    let mut context = context(arguments.common.reach)?;
    let mut spinner = spinner("starting the job", arguments.common);
    let spawned = spawn::spawn(&mut context, request)?;
    spinner.stop();
    if let Some(warning) = spawned.warning.filter(|_| !arguments.common.quiet) {
        warn(&warning);
    }
    if arguments.json {
        print(serde_json::to_string(&output::job_json(&spawned.record, spawned.record.state))?)?;
    } else {
        print(&spawned.record.id)?;
    }
    Ok(exit::DONE)
}

/// What is to be started, and where.
fn job(job: cli::JobArgs, host: Host, connect: cli::ConnectArgs, command: Vec<OsString>) -> Result<spawn::Request> {
    if job.terminal {
        return Err(usage(
            "-t: a job outlives the terminal that it is started from, so it has none; for a program that buffers its \
             output without one, try `stdbuf -oL` or its own option",
        ));
    }
    let command = if job.shell {
        let [line] = command.as_slice() else {
            return Err(usage("-c takes COMMAND as one word, a line for /bin/sh: quote it"));
        };
        vec!["/bin/sh".into(), "-c".into(), line.clone()]
    } else {
        command
    };
    if command.first().is_some_and(|word| word.is_empty()) {
        return Err(usage("the command is empty"));
    }
    let env = job.env.into_iter().map(with_value).collect::<Result<_>>()?;
    let here = std::env::current_dir().context("the current directory can't be read")?;
    let connect = Connect::from(connect).absolute(&here);
    connect.check().map_err(|error| usage(format!("-l: {error}")))?;
    Ok(spawn::Request {
        destination: Destination { host, connect },
        command,
        name: job.name,
        cwd: job.cwd,
        env,
        merge: false,
        foreground: None,
    })
}

/// `-e KEY` takes the value that the variable has here.
fn with_value((name, value): (String, Option<OsString>)) -> Result<(String, OsString)> {
    match value.or_else(|| std::env::var_os(&name)) {
        Some(value) => Ok((name, value)),
        None => Err(usage(format!("-e {name}: there is no such variable here; write {name}=VALUE to give it one"))),
    }
}

fn list_signals(arguments: &cli::Kill) -> Result<u8> {
    let os = arguments.os.map_or_else(Os::here, Os::from);
    let rows = match arguments.words.as_slice() {
        [] => signal::table(os),
        [word] => vec![signal::row_for(os, &word.to_string_lossy()).map_err(|error| usage(error.to_string()))?],
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
        print(output::signal_table(&rows))?;
    }
    Ok(exit::DONE)
}

fn kill(arguments: cli::Kill) -> Result<u8> {
    let (jobs, signal) = words(arguments.words, arguments.signal)?;
    if signal.is_existence_check() && arguments.wait.is_some() {
        return Err(usage("signal 0 only asks whether a job is there; use `rsig wait` to wait for its end"));
    }
    if arguments.then.is_some_and(SignalWord::is_existence_check) {
        return Err(usage("--then 0 would send nothing"));
    }
    let request = kill::Request {
        jobs,
        signal,
        wait: arguments.wait,
        then: arguments.then,
        ways: arguments.via.into(),
        target: arguments.target,
        wake: false,
    };
    send(&request, arguments.common, arguments.json)
}

/// Tells `JOB [SIGNAL]` from `-s SIGNAL JOB...`.
fn words(mut words: Vec<OsString>, signal: Option<SignalWord>) -> Result<(Vec<OsString>, SignalWord)> {
    if let Some(signal) = signal {
        return Ok((words, signal));
    }
    let several = "name the signal with -s to signal several jobs: rsig kill -s TERM JOB...";
    match words.len() {
        0 | 1 => Ok((words, SignalWord::TERM)),
        2 => {
            let word = words.pop().unwrap_or_default();
            let signal = word.to_string_lossy().parse().map_err(|error| usage(format!("{error}; {several}")))?;
            Ok((words, signal))
        }
        _ => Err(usage(several)),
    }
}

fn stop(arguments: cli::Stop) -> Result<u8> {
    let request = kill::Request {
        jobs: arguments.jobs,
        signal: SignalWord::TERM,
        wait: Some(arguments.grace),
        then: Some(SignalWord::KILL),
        ways: Ways::Any,
        target: Target::Group,
        wake: true,
    };
    send(&request, arguments.common, arguments.json)
}

fn send(request: &kill::Request, common: Common, json: bool) -> Result<u8> {
    let mut context = context(common.reach)?;
    let mut spinner = spinner("asking the host", common);
    let waiting = request.wait.is_some();
    let asked = request.signal.to_string();
    let mut status = exit::DONE;
    let mut printed = Ok(());
    kill::kill(&mut context, request, |report| {
        spinner.stop();
        status = status.max(output::report_status(&report, waiting));
        let result = if json {
            serde_json::to_string(&output::report_json(&report, &asked, request.target, waiting))
                .map_err(anyhow::Error::from)
                .and_then(print)
        } else {
            if let Some(failure) = report.failure() {
                warn(&failure.message);
            }
            match output::report_line(&report, request.target, waiting).filter(|_| !common.quiet) {
                Some(line) => print(line),
                None => Ok(()),
            }
        };
        if result.is_err() {
            printed = result;
        }
    })?;
    printed.map(|()| status)
}

fn wait(arguments: &cli::Wait) -> Result<u8> {
    let mut context = context(arguments.common.reach)?;
    let mut all = Vec::new();
    let mut printed = Ok(());
    wait::wait(&mut context, &arguments.jobs, arguments.timeout, |waited| {
        let line = if arguments.json {
            output::waited_json(&waited).map(|job| serde_json::to_string(&job).map_err(anyhow::Error::from)).transpose()
        } else {
            Ok(output::waited_line(&waited).filter(|_| !arguments.common.quiet))
        };
        let failure = match &waited.outcome {
            Ok(outcome) => outcome.error.as_ref(),
            Err(failure) => Some(failure),
        };
        if let Some(failure) = failure {
            warn(&failure.message);
        }
        match line {
            Ok(Some(line)) => printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| print(line)),
            Ok(None) => {}
            Err(error) => printed = Err(error),
        }
        all.push(waited);
    })?;
    printed?;
    let place = |word: &str| arguments.jobs.iter().position(|job| job.to_string_lossy() == word);
    all.sort_by_key(|waited| place(&waited.word));
    Ok(output::wait_status(&all))
}

fn tail(arguments: &cli::Tail) -> Result<u8> {
    let request = tail::Request {
        out: !arguments.stderr,
        err: !arguments.stdout,
        from: arguments.bytes.map_or(arguments.lines.0, |bytes| bytes.0),
        follow: arguments.follow,
    };
    let mut context = context(arguments.common.reach)?;
    let mut spinner = Spinner::new("asking the host", !arguments.follow && !arguments.common.quiet);
    let mut broken = None;
    let result = tail::tail(&mut context, OsStr::new(&arguments.job), &request, &mut |stream, bytes| {
        spinner.stop();
        output::print_bytes(stream == Stream::Err, bytes).map_err(|error| {
            let failure = Failure::new(Kind::Failed, format!("the output can't be passed on: {error}"));
            broken = Some(error);
            failure
        })
    });
    match broken {
        Some(error) => Err(error.into()),
        None => result.map(|()| exit::DONE),
    }
}

fn ps(arguments: cli::Ps) -> Result<u8> {
    let mut context = context(arguments.reach)?;
    let request = ps::Request {
        jobs: arguments.jobs,
        all: arguments.all,
        host: arguments.host,
        states: arguments.state,
        cached: arguments.cached,
    };
    let mut spinner =
        Spinner::new("asking the hosts", !arguments.quiet && !arguments.reach.verbose && !arguments.cached);
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
        let jobs: Vec<_> = listing.jobs.iter().map(|job| output::job_json(&job.record, job.state)).collect();
        print(serde_json::to_string(&jobs)?)?;
    } else if arguments.quiet {
        let ids: Vec<&str> = listing.jobs.iter().map(|job| job.record.id.as_str()).collect();
        if !ids.is_empty() {
            print(ids.join("\n"))?;
        }
    } else {
        print(output::job_table(&listing.jobs))?;
    }
    Ok(status)
}

fn rm(arguments: cli::Rm) -> Result<u8> {
    let mut context = context(arguments.common.reach)?;
    let mut spinner = spinner("asking the hosts", arguments.common);
    let request = rm::Request {
        jobs: arguments.jobs,
        finished: arguments.older_than.or(arguments.finished.then_some(Duration::ZERO)),
        force: arguments.force,
        forget: arguments.forget,
    };
    let mut status = exit::DONE;
    let mut printed = Ok(());
    rm::rm(&mut context, &request, |removed| {
        spinner.stop();
        match removed {
            rm::Removed::Gone(id, note) => {
                if let Some(note) = note {
                    warn(&note);
                }
                printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| print(id));
            }
            rm::Removed::Kept(failure) => {
                warn(&failure.message);
                status = status.max(failure.kind.exit_status());
            }
        }
    })?;
    printed.map(|()| status)
}

fn keeper_command(command: KeeperCommand) -> Result<u8> {
    match command {
        KeeperCommand::Status { json } => {
            let keepers = commands::keeper::status()?;
            print(if json { serde_json::to_string(&keepers)? } else { output::keeper_table(&keepers) })?;
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
