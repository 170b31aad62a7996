//! Shell completion.
//!
//! The scripts in `completions/` contain no candidates of their own. They run rsig with the words up to the cursor, the
//! last of which is being completed, and with the shell's name in [`VARIABLE`]. The output has one candidate on each
//! line: a value, a tab and a description. Options and commands come from clap's definitions, jobs and hosts from the
//! state file, which is only read. No host is contacted; docker, podman or kubectl is run to list containers once its
//! scheme has been typed. On any failure, nothing is offered.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::ArgMatches;
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate as Candidate, PathCompleter, complete,
};

use super::definition;
use super::values::OsWord;
use super::words::arrange;
use crate::error::exit;
use crate::escape::printable;
use crate::host::Host;
use crate::job::{Record, State};
use crate::signal::{self, Os};
use crate::state::{Config, RecordFilter, Store};
use crate::terminal::{print_bytes, warn};

/// The environment variable that names the shell.
pub const VARIABLE: &str = "RSIG_COMPLETE";
/// Maximum number of jobs offered, the newest first.
const JOBS_MAX: u32 = 1000;
/// Maximum length of a job's command in a description, in characters.
const COMMAND_MAX: usize = 60;

/// Maximum time for a program to list its containers, and maximum size of its output in bytes.
const PROGRAM_TIME_MAX: Duration = Duration::from_secs(2);
const PROGRAM_OUTPUT_MAX: u64 = 1 << 20;

/// Prints the candidates, or the shell's completion script to source if there are no words.
pub fn run(shell: &OsStr, words: Vec<OsString>) -> u8 {
    let script = match shell.to_str() {
        Some("bash") => include_str!("../../completions/rsig.bash"),
        Some("zsh") => include_str!("../../completions/_rsig"),
        Some("fish") => include_str!("../../completions/rsig.fish"),
        Some("elvish") => include_str!("../../completions/rsig.elv"),
        Some("nushell") => include_str!("../../completions/rsig.nu"),
        Some("powershell") => include_str!("../../completions/rsig.ps1"),
        _ => {
            warn(&format!(
                "{VARIABLE} must be bash, zsh, fish, elvish, nushell or powershell"
            ));
            return exit::USAGE;
        }
    };
    let text = if words.len() < 2 {
        script.to_owned()
    } else {
        candidates(words).iter().filter_map(line).collect()
    };
    // A failed write is harmless: the shell has gone.
    drop(print_bytes(false, text.as_bytes()));
    exit::DONE
}

fn line(candidate: &Candidate) -> Option<String> {
    let value = candidate.get_value().to_string_lossy();
    let help = candidate.get_help().map(ToString::to_string);
    let help = help.as_deref().and_then(|help| help.lines().next());
    let is_one_word = !value.contains(['\n', '\t']);
    is_one_word.then(|| format!("{value}\t{}\n", help.unwrap_or_default()))
}

/// The candidates for the last word. The first word is `rsig`.
fn candidates(mut words: Vec<OsString>) -> Vec<Candidate> {
    let mut definition = definition();
    let current = words.pop().unwrap_or_default();
    let is_option = current.as_encoded_bytes().starts_with(b"-");
    let mut named = Vec::new();
    if let Some(verb) = words.get(1) {
        // Only a command can be the first word.
        if definition.find_subcommand(verb).is_none() {
            return Vec::new();
        }
        arrange(&definition, &mut words);
        let parser = definition.clone().ignore_errors(true);
        let matches = parser.try_get_matches_from(&words).unwrap_or_default();
        if let Some((verb, given)) = matches.subcommand() {
            // The ids of the arguments that hold jobs.
            named.extend(["jobs", "words"].iter().flat_map(|id| raw(given, id)));
            let signals = dashed_signals(verb, given, &named, &current);
            if !signals.is_empty() {
                return signals;
            }
            if let Some((argument, completer)) = by_context(verb, given, &named) {
                definition = definition.mut_subcommand(verb, |command| {
                    command.mut_arg(argument, |argument| argument.add(completer))
                });
            }
        }
    }
    // After a single dash, only long options are offered: they are more descriptive.
    words.push(if current == "-" { "--".into() } else { current });
    let (here, last) = (std::env::current_dir().ok(), words.len() - 1);
    let found = complete(&mut definition, words, last, here.as_deref());
    let is_wanted = |candidate: &Candidate| {
        let value = candidate.get_value();
        (is_option || !value.as_encoded_bytes().starts_with(b"-"))
            && !named.iter().any(|job| job == value)
    };
    let found = found.unwrap_or_default().into_iter();
    found.filter(is_wanted).collect()
}

fn raw(given: &ArgMatches, argument: &str) -> Vec<OsString> {
    let values = given.try_get_raw(argument).ok().flatten();
    values.into_iter().flatten().map(OsString::from).collect()
}

fn is_set(given: &ArgMatches, flag: &str) -> bool {
    matches!(given.try_get_one(flag), Ok(Some(true)))
}

/// An argument whose candidates depend on the words before it, and its completer.
fn by_context(
    verb: &str,
    given: &ArgMatches,
    named: &[OsString],
) -> Option<(&'static str, ArgValueCompleter)> {
    Some(match verb {
        "kill" => {
            let completer = match signal_index(given) {
                Some(place) if place == named.len() => {
                    let os = system(given, named);
                    ArgValueCompleter::new(move |current: &OsStr| signals(os, current))
                }
                Some(place) if place < named.len() => {
                    ArgValueCompleter::new(|_: &OsStr| Vec::new())
                }
                _ => ArgValueCompleter::new(unfinished),
            };
            ("words", completer)
        }
        "rm" if is_set(given, "force") || is_set(given, "forget") => {
            ("jobs", ArgValueCompleter::new(any))
        }
        // Files on other hosts are not known.
        "spawn" | "run" if raw(given, "host") == [Host::LOCAL] => {
            ("command", ArgValueCompleter::new(PathCompleter::any()))
        }
        _ => return None,
    })
}

/// The index of the signal among the words of `kill`: `-l SIGNAL`, `JOB SIGNAL`, or none in `-s SIGNAL JOB...`.
fn signal_index(given: &ArgMatches) -> Option<usize> {
    match (is_set(given, "list"), given.try_contains_id("signal")) {
        (true, _) => Some(0),
        (false, Ok(true)) => None,
        _ => Some(1),
    }
}

/// The signals for `kill -TE`. Empty if none matches: the word may be an option such as `-J`.
fn dashed_signals(
    verb: &str,
    given: &ArgMatches,
    named: &[OsString],
    current: &OsStr,
) -> Vec<Candidate> {
    match current.to_str().and_then(|text| text.strip_prefix('-')) {
        Some(name)
            if verb == "kill"
                && name.starts_with(|letter: char| letter.is_ascii_uppercase())
                && signal_index(given) == Some(1) =>
        {
            prefixed("-", signals(system(given, named), OsStr::new(name)))
        }
        _ => Vec::new(),
    }
}

fn prefixed(prefix: &str, candidates: Vec<Candidate>) -> Vec<Candidate> {
    let candidates = candidates.into_iter();
    let prefixed = candidates.map(|candidate| candidate.add_prefix(prefix));
    prefixed.collect()
}

/// The system whose signals are offered: that of `--os`, of the job, or of this machine.
fn system(given: &ArgMatches, named: &[OsString]) -> Os {
    let of_job = || {
        let word = named.first()?.to_str()?;
        Store::peek()?.resolve(word).ok()?.system()
    };
    match given.try_get_one::<OsWord>("os") {
        Ok(Some(os)) => Os::from(*os),
        _ => of_job().unwrap_or_else(Os::here),
    }
}

pub fn unfinished(current: &OsStr) -> Vec<Candidate> {
    jobs(RecordFilter::Unfinished, current).unwrap_or_default()
}

pub fn finished(current: &OsStr) -> Vec<Candidate> {
    jobs(RecordFilter::Finished, current).unwrap_or_default()
}

pub fn any(current: &OsStr) -> Vec<Candidate> {
    jobs(RecordFilter::All, current).unwrap_or_default()
}

/// Jobs by name, then by id.
fn jobs(which: RecordFilter, current: &OsStr) -> Option<Vec<Candidate>> {
    let prefix = current.to_str()?;
    let store = Store::peek()?;
    let records = store.with_prefix(which, prefix, JOBS_MAX).ok()?;
    let names = records.iter().filter_map(|record| {
        let name = record.name.as_ref()?;
        // A name refers to one job; older jobs of that name are offered by id.
        let named = store.named(name).ok()??;
        let help = format!("{} {}", record.id, description(record));
        let is_meant = name.as_str().starts_with(prefix) && named.id == record.id;
        is_meant.then(|| described(name.as_str(), help))
    });
    let ids = records
        .iter()
        .filter(|record| record.id.as_str().starts_with(prefix))
        .map(|record| described(record.id.as_str(), description(record)));
    Some(names.chain(ids).collect())
}

fn description(record: &Record) -> String {
    let state = match (record.state, record.exit_status) {
        (State::Exited, Some(status)) => format!("exited {status}"),
        (state, _) => state.to_string(),
    };
    let command = printable(record.command.join(" "), COMMAND_MAX);
    format!("{} {state}: {command}", record.host())
}

fn described(value: &str, help: String) -> Candidate {
    Candidate::new(value).help(Some(help.into()))
}

pub fn signal(current: &OsStr) -> Vec<Candidate> {
    signals(Os::here(), current)
}

/// Signals, spelled like the typed prefix: with or without SIG, in upper or lower case.
fn signals(os: Os, current: &OsStr) -> Vec<Candidate> {
    let typed = current.to_string_lossy();
    let upper = typed.to_ascii_uppercase();
    let sig = if upper.starts_with("SIG") { "SIG" } else { "" };
    let is_lower = typed.starts_with(|letter: char| letter.is_ascii_lowercase());
    let fitting = signal::table(os).into_iter().filter_map(|row| {
        let mut name = format!("{sig}{}", row.name);
        // Real-time signals are too many to offer before part of a name is typed.
        if !name.starts_with(&upper) || (upper == sig && row.name.starts_with("RTM")) {
            return None;
        }
        if is_lower {
            name.make_ascii_lowercase();
        }
        let help = format!("{} {}: {}", row.number, row.action, row.description);
        Some(described(&name, help))
    });
    fitting.collect()
}

pub fn states() -> Vec<Candidate> {
    State::ALL.map(|state| Candidate::new(state.word())).into()
}

/// The hosts of recorded jobs, as typed.
pub fn recorded_host(current: &OsStr) -> Vec<Candidate> {
    let hosts = Store::peek().and_then(|store| store.hosts().ok());
    matching_hosts(hosts.unwrap_or_default(), current)
}

/// This machine, hosts of recorded jobs, of `~/.ssh/config` and of rsig's configuration file, and containers.
pub fn host(current: &OsStr) -> Vec<Candidate> {
    let mut candidates = recorded_host(current);
    candidates.extend(matching_hosts(vec![Host::LOCAL.to_owned()], current));
    if !current.as_encoded_bytes().starts_with(b"@") {
        candidates.extend(configured_host(current));
    }
    candidates.extend(scheme_host(current));
    if let Ok(config) = Config::current() {
        let typed = current.to_string_lossy();
        let names = config.names().into_iter();
        candidates.extend(
            names
                .filter(|name| name.starts_with(&*typed))
                .map(Candidate::new),
        );
    }
    candidates.sort();
    candidates.dedup();
    candidates
}

/// Running containers, as listed by the scheme's program, and aliases for `openssh://`. Until a scheme has been typed,
/// only schemes.
fn scheme_host(current: &OsStr) -> Vec<Candidate> {
    const SCHEMES: [&str; 4] = ["docker://", "podman://", "kubectl://", "openssh://"];
    let typed = current.to_str().unwrap_or_default();
    let Some((program, rest)) = typed.split_once("://") else {
        let fits = |scheme: &&str| !typed.is_empty() && scheme.starts_with(typed);
        return SCHEMES
            .into_iter()
            .filter(fits)
            .map(Candidate::new)
            .collect();
    };
    let names = match (program, rest.split_once('/')) {
        ("openssh", _) => return prefixed("openssh://", configured_host(OsStr::new(rest))),
        ("docker" | "podman", None) => program_output(program, &["ps", "--format", "{{.Names}}"]),
        ("kubectl", None) => program_output(program, &["get", "pods", "-o", "name"]),
        ("kubectl", Some((namespace, _))) => {
            program_output(program, &["get", "pods", "-o", "name", "-n", namespace])
        }
        _ => return Vec::new(),
    };
    let start = rest.find('/').map_or(0, |at| at + 1);
    let before = format!("{program}://{}", rest.get(..start).unwrap_or_default());
    let names = names
        .lines()
        .map(|name| name.strip_prefix("pod/").unwrap_or(name));
    matching_hosts(
        names.map(|name| format!("{before}{name}")).collect(),
        current,
    )
}

/// The output of a program, or nothing if it takes too long.
fn program_output(program: &str, words: &[&str]) -> String {
    let mut command = std::process::Command::new(program);
    command
        .args(words)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut child) = command.stdout(Stdio::piped()).spawn() else {
        return String::new();
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    if let Some(out) = child.stdout.take() {
        // After the timeout, the receiver is gone and a failed send is harmless. If no thread can be started, nothing
        // is received.
        let read = move || drop(sender.send(std::io::read_to_string(out.take(PROGRAM_OUTPUT_MAX))));
        drop(std::thread::Builder::new().spawn(read));
    }
    let output = receiver.recv_timeout(PROGRAM_TIME_MAX);
    // Fails harmlessly if the program has ended.
    let _ = child.kill();
    let _ = child.wait();
    output.ok().and_then(Result::ok).unwrap_or_default()
}

/// Candidates for the last host of a list.
pub fn hosts(current: &OsStr) -> Vec<Candidate> {
    last_part(',', current, host)
}

/// Candidates for the last host of a list of jump hosts.
pub fn jump(current: &OsStr) -> Vec<Candidate> {
    last_part(',', current, configured_host)
}

/// The hosts of `~/.ssh/config`, after a `USER@` that has been typed.
fn configured_host(current: &OsStr) -> Vec<Candidate> {
    let read = || {
        let path = PathBuf::from(std::env::var_os("HOME")?).join(".ssh/config");
        let config = fs::read(path).ok()?;
        Some(aliases(&String::from_utf8_lossy(&config)))
    };
    last_part('@', current, |name| {
        matching_hosts(read().unwrap_or_default(), name)
    })
}

/// Completes the part after the last separator.
fn last_part(
    separator: char,
    current: &OsStr,
    complete: impl Fn(&OsStr) -> Vec<Candidate>,
) -> Vec<Candidate> {
    let typed = current.to_str().unwrap_or_default();
    let start = typed.rfind(separator).map_or(0, |at| at + 1);
    let (before, last) = typed.split_at(start);
    prefixed(before, complete(OsStr::new(last)))
}

/// The hosts that start with the typed prefix and that rsig accepts.
fn matching_hosts(hosts: Vec<String>, current: &OsStr) -> Vec<Candidate> {
    let prefix = current.to_string_lossy();
    let fits = |host: &String| host.starts_with(&*prefix) && host.parse::<Host>().is_ok();
    hosts.into_iter().filter(fits).map(Candidate::new).collect()
}

/// The names after `Host` in an `ssh_config(5)`, without patterns. Included files are not read.
fn aliases(config: &str) -> Vec<String> {
    let is_separator = |letter: char| letter.is_whitespace() || matches!(letter, '=' | '"');
    let names = config.lines().flat_map(|line| {
        let mut words = line.split(is_separator).filter(|word| !word.is_empty());
        let is_host = words
            .next()
            .is_some_and(|word| word.eq_ignore_ascii_case("host"));
        let names = words.take_while(move |word| is_host && !word.starts_with('#'));
        names.filter(|name| !name.contains(['*', '?', '!']))
    });
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(candidates: &[Candidate]) -> String {
        candidates
            .iter()
            .map(|candidate| candidate.get_value().to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The candidates for the last word of a command line, without the leading `rsig`.
    fn offered(line: &str) -> String {
        let words = std::iter::once("rsig").chain(line.split(' '));
        values(&candidates(words.map(OsString::from).collect()))
    }

    #[test]
    fn every_command_and_every_option() {
        let definition = definition();
        let verbs: Vec<&str> = definition
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        assert_eq!(offered(""), verbs.join(" "));
        let mut built = definition.clone();
        built.build();
        for command in built.get_subcommands() {
            let shown = offered(&format!("{} --", command.get_name()));
            let shown: Vec<&str> = shown.split(' ').collect();
            for argument in command
                .get_arguments()
                .filter(|argument| !argument.is_hide_set())
            {
                let Some(long) = argument.get_long() else {
                    continue;
                };
                assert!(
                    shown.contains(&format!("--{long}").as_str()),
                    "{} --{long}: {shown:?}",
                    command.get_name()
                );
            }
        }
    }

    #[test]
    fn words_by_their_place() {
        for (line, expected) in [
            ("sp", "spawn"),
            ("stop --gr", "--grace"),
            ("spawn web1 -", ""),
            ("spawn web1 ls --", ""),
            ("spawn -- web1 --", ""),
            ("kill job TER", "TERM"),
            ("kill job TERM KIL", ""),
            ("kill job SIGTER", "SIGTERM"),
            ("kill job ter", "term"),
            ("kill job sigter", "sigterm"),
            ("kill -w 5s job TER", "TERM"),
            ("kill job -w 5s TER", "TERM"),
            ("kill -s TER", "TERM"),
            ("kill -sTER", "-sTERM"),
            ("kill --signal=TER", "--signal=TERM"),
            ("kill --then KIL", "KILL"),
            ("kill -TER", "-TERM"),
            ("kill job -USR", "-USR1 -USR2"),
            (
                "kill -l EM",
                if cfg!(target_os = "linux") { "" } else { "EMT" },
            ),
            ("kill -l --os freebsd EM", "EMT"),
            ("kill --os darwin -l INF", "INFO"),
            ("kill -l TERM KIL", ""),
            ("kill --via p", "pid"),
            ("kill --target ", "group process tree"),
            (
                "kill --os linux job RTMIN+1",
                "RTMIN+1 RTMIN+10 RTMIN+11 RTMIN+12 RTMIN+13 RTMIN+14 RTMIN+15",
            ),
            ("ps --state st", "starting stopped"),
            ("ps --state running,l", "running,lost"),
            ("tail -n ", ""),
            ("nonsense ", ""),
            ("--help ", ""),
        ] {
            assert_eq!(offered(line), expected, "{line}");
        }
        assert!(!offered("kill job ").contains("RTM"));
        assert!(offered("spawn local ./Cargo.").contains("./Cargo.toml"));
        assert_eq!(offered("spawn web1 ./Cargo."), "");
    }

    #[test]
    fn hosts_of_a_configuration() {
        let config = "\
            # Host comment\n\
            Host web1 web2  # and a remark\n\
            HOST=db1\n\
            \thost \"db2\" !db3 *.example db?\n\
            HostName nothost\n\
            Match host nothost\n\
            Hostile x\n\
            Host\n";
        assert_eq!(aliases(config), ["web1", "web2", "db1", "db2"]);
        let names = || ["web1", "we-b", "we$b"].map(str::to_owned).to_vec();
        assert_eq!(
            values(&matching_hosts(names(), OsStr::new("we"))),
            "web1 we-b"
        );
    }

    #[test]
    fn a_candidate_is_a_line() {
        let candidate = described("a:b", "web1: x\nmore".to_owned());
        assert_eq!(line(&candidate).as_deref(), Some("a:b\tweb1: x\n"));
        assert_eq!(line(&Candidate::new("a\nb")), None);
    }
}
