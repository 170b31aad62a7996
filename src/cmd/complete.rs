//! What a shell offers at the TAB key.
//!
//! The scripts in `completions/` hold no words of their own, so they can't drift from what rsig takes: they hand over
//! the words up to the cursor, the one being typed last, with [`VARIABLE`] naming the shell, and show what comes back.
//! Options and commands come from clap's definitions, jobs and hosts from the state file, which is only read. Nothing
//! here asks a host, and what goes wrong offers nothing.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;

use clap::{ArgMatches, ValueHint};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate as Candidate, complete};

use super::definition;
use super::values::{Hosts, OsWord};
use super::words::arrange;
use crate::error::exit;
use crate::escape::printable;
use crate::host::Host;
use crate::job::{Record, State};
use crate::signal::{self, Os};
use crate::state::{Store, Which};
use crate::terminal::{print_bytes, warn};

/// The variable that makes rsig answer a shell: its value is the shell's name.
pub const VARIABLE: &str = "RSIG_COMPLETE";
/// How many jobs are offered at most, the newest first.
const MOST_JOBS: u32 = 1000;
/// How much of a job's command its description shows.
const COMMAND: usize = 60;
/// The longest `~/.ssh/config` that is read for its hosts.
const LONGEST_CONFIG: u64 = 1 << 20;

/// A shell that rsig completes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    /// The shell of that name.
    pub fn of(name: &OsStr) -> Option<Self> {
        match name.to_str()? {
            "bash" => Some(Self::Bash),
            "zsh" => Some(Self::Zsh),
            "fish" => Some(Self::Fish),
            _ => None,
        }
    }

    /// What the shell has to source once.
    pub fn script(self) -> &'static str {
        match self {
            Self::Bash => include_str!("../../completions/rsig.bash"),
            Self::Zsh => include_str!("../../completions/_rsig"),
            Self::Fish => include_str!("../../completions/rsig.fish"),
        }
    }

    /// One candidate as the shell's script reads it: a line, with the description where the shell shows one.
    fn line(self, candidate: &Candidate) -> String {
        let value = candidate.get_value().to_string_lossy();
        let help = candidate
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let help = help.lines().next().unwrap_or_default();
        match self {
            Self::Bash => format!("{value}\n"),
            Self::Fish => format!("{value}\t{help}\n"),
            Self::Zsh => {
                let value = value.replace('\\', "\\\\").replace(':', "\\:");
                format!("{value}:{}\n", help.replace('\\', "\\\\"))
            }
        }
    }
}

/// Answers a shell at the TAB key, or gives it the script to source. Gives the exit status.
pub fn run(shell: &OsStr, words: Vec<OsString>) -> u8 {
    let Some(shell) = Shell::of(shell) else {
        warn(&format!(
            "{VARIABLE} names no shell that rsig completes for: bash, zsh or fish"
        ));
        return exit::USAGE;
    };
    let words: Vec<OsString> = words.into_iter().skip(1).collect();
    let text = if words.is_empty() {
        shell.script().to_owned()
    } else {
        answer(shell, words)
    };
    // A shell that has gone needs no answer.
    drop(print_bytes(false, text.as_bytes()));
    exit::DONE
}

/// What fits the last of the words behind `rsig`, a line each.
fn answer(shell: Shell, words: Vec<OsString>) -> String {
    let candidates = candidates(words);
    let whole = |candidate: &&Candidate| !candidate.get_value().to_string_lossy().contains('\n');
    candidates
        .iter()
        .filter(whole)
        .map(|candidate| shell.line(candidate))
        .collect()
}

fn candidates(mut words: Vec<OsString>) -> Vec<Candidate> {
    let Some(current) = words.pop() else {
        return Vec::new();
    };
    let mut before: Vec<OsString> = std::iter::once(OsString::from("rsig"))
        .chain(words)
        .collect();
    if let Some(verb) = before.get(1) {
        let definition = definition();
        // Only a command can be the first word.
        if definition.find_subcommand(verb).is_none() {
            return Vec::new();
        }
        arrange(&definition, &mut before);
    }
    let given = Given::of(&before);
    if let Some(dashed) = given.dashed_signals(&current) {
        return dashed;
    }
    // A dash alone: the long forms say more.
    let is_option = current.as_encoded_bytes().starts_with(b"-");
    before.push(if current == "-" { "--".into() } else { current });
    let here = std::env::current_dir().ok();
    let last = before.len() - 1;
    let mut candidates =
        complete(&mut given.definition(), before, last, here.as_deref()).unwrap_or_default();
    candidates.retain(|candidate| {
        let value = candidate.get_value();
        (is_option || !value.as_encoded_bytes().starts_with(b"-"))
            && !given.jobs.iter().any(|job| job == value)
    });
    candidates
}

/// What the words of `kill` stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    /// A job, and perhaps a signal behind it.
    #[default]
    JobAndSignal,
    /// Jobs: the signal is an option, or a word such as `-TERM`.
    Jobs,
    /// `-l`: a signal.
    List,
}

/// What the words before the cursor say.
#[derive(Debug, Default)]
struct Given {
    verb: String,
    /// The jobs named so far; with `kill`, the signal behind the job too.
    jobs: Vec<OsString>,
    form: Form,
    /// `kill --os`.
    os: Option<Os>,
    /// `rm --force` and `rm --forget` take unfinished jobs too.
    any_state: bool,
    /// `spawn local`.
    local: bool,
}

impl Given {
    fn of(words: &[OsString]) -> Self {
        let matches = definition().ignore_errors(true).try_get_matches_from(words);
        let Some((verb, given)) = matches.as_ref().ok().and_then(ArgMatches::subcommand) else {
            return Self::default();
        };
        let set = |id: &str| matches!(given.try_get_one::<bool>(id), Ok(Some(true)));
        // Every command has its jobs under one of these names.
        let jobs = ["jobs", "words"]
            .into_iter()
            .find_map(|id| given.try_get_raw(id).ok().flatten());
        Self {
            verb: verb.to_owned(),
            jobs: jobs.into_iter().flatten().map(OsStr::to_owned).collect(),
            form: match (set("list"), given.try_contains_id("signal")) {
                (true, _) => Form::List,
                (false, Ok(true)) => Form::Jobs,
                _ => Form::JobAndSignal,
            },
            os: given
                .try_get_one::<OsWord>("os")
                .ok()
                .flatten()
                .map(|os| Os::from(*os)),
            any_state: set("force") || set("forget"),
            local: given
                .try_get_one::<Hosts>("host")
                .ok()
                .flatten()
                .is_some_and(|Hosts(hosts)| hosts.iter().all(Host::is_local)),
        }
    }

    /// The definition of the command line, with what depends on the words before the cursor.
    fn definition(&self) -> clap::Command {
        let definition = definition();
        match self.verb.as_str() {
            "kill" => {
                let os = self.os();
                let words = match (self.form, self.jobs.len()) {
                    (Form::List, 0) | (Form::JobAndSignal, 1) => {
                        ArgValueCompleter::new(move |current: &OsStr| signals(os, current))
                    }
                    (Form::Jobs, _) | (Form::JobAndSignal, 0) => ArgValueCompleter::new(unfinished),
                    _ => ArgValueCompleter::new(|_: &OsStr| Vec::new()),
                };
                definition.mut_subcommand("kill", |kill| {
                    kill.mut_arg("words", |argument| argument.add(words))
                })
            }
            "rm" if self.any_state => definition.mut_subcommand("rm", |rm| {
                rm.mut_arg("jobs", |argument| argument.add(ArgValueCompleter::new(any)))
            }),
            // What is on this machine means something only here.
            "spawn" if self.local => definition.mut_subcommand("spawn", |spawn| {
                spawn.mut_arg("command", |argument| {
                    argument.value_hint(ValueHint::AnyPath)
                })
            }),
            _ => definition,
        }
    }

    /// The system whose signals are asked for: that of `--os`, of the job, or of this machine.
    fn os(&self) -> Os {
        let of_job = || {
            let word = self.jobs.first()?.to_str()?;
            Store::peek()?.resolve(word).ok()?.system()
        };
        self.os.or_else(of_job).unwrap_or_else(Os::here)
    }

    /// `kill -TE`: a signal as kill(1) takes it.
    fn dashed_signals(&self, current: &OsStr) -> Option<Vec<Candidate>> {
        let name = current.to_str()?.strip_prefix('-')?;
        let is_upper = name.starts_with(|letter: char| letter.is_ascii_uppercase());
        if self.verb != "kill" || self.form != Form::JobAndSignal || !is_upper {
            return None;
        }
        let offered = signals(self.os(), OsStr::new(name));
        let offered: Vec<_> = offered
            .into_iter()
            .map(|candidate| candidate.add_prefix("-"))
            .collect();
        // Else it is an option of ours in upper case, -F say.
        (!offered.is_empty()).then_some(offered)
    }
}

/// The unfinished jobs that fit: what can be signalled and waited for.
pub fn unfinished(current: &OsStr) -> Vec<Candidate> {
    jobs(Which::Unfinished, current)
}

/// The finished jobs that fit.
pub fn finished(current: &OsStr) -> Vec<Candidate> {
    jobs(Which::Finished, current)
}

/// All jobs that fit.
pub fn any(current: &OsStr) -> Vec<Candidate> {
    jobs(Which::All, current)
}

/// Names first, then ids.
fn jobs(which: Which, current: &OsStr) -> Vec<Candidate> {
    let find = || -> Option<Vec<Candidate>> {
        let beginning = current.to_str()?;
        let store = Store::peek()?;
        let records = store.fitting(which, beginning, MOST_JOBS).ok()?;
        let names = records.iter().filter_map(|record| {
            let name = record.name.as_ref()?;
            // A name stands for one job only; the others that had it go by their ids.
            let is_it = name.as_str().starts_with(beginning)
                && store
                    .named(name)
                    .is_ok_and(|named| named.is_some_and(|named| named.id == record.id));
            is_it.then(|| {
                described(
                    name.as_str(),
                    format!("{} {}", record.id, description(record)),
                )
            })
        });
        let ids = records
            .iter()
            .filter(|record| record.id.as_str().starts_with(beginning));
        let ids = ids.map(|record| described(record.id.as_str(), description(record)));
        Some(names.chain(ids).collect())
    };
    find().unwrap_or_default()
}

fn description(record: &Record) -> String {
    let state = match (record.state, record.exit_status) {
        (State::Exited, Some(status)) => format!("exited {status}"),
        (state, _) => state.to_string(),
    };
    format!(
        "{} {state}: {}",
        record.host(),
        printable(record.command.join(" "), COMMAND)
    )
}

fn described(value: &str, help: impl Into<String>) -> Candidate {
    Candidate::new(value).help(Some(help.into().into()))
}

/// The signals of this machine's system that fit.
pub fn signal(current: &OsStr) -> Vec<Candidate> {
    signals(Os::here(), current)
}

/// Written as the beginning is: with SIG or without, in upper case or lower.
fn signals(os: Os, current: &OsStr) -> Vec<Candidate> {
    let Some(typed) = current.to_str() else {
        return Vec::new();
    };
    let beginning = typed.to_ascii_uppercase();
    let (prefix, beginning) = match beginning.strip_prefix("SIG") {
        Some(rest) => ("SIG", rest),
        None => ("", beginning.as_str()),
    };
    let lower = typed.starts_with(|letter: char| letter.is_ascii_lowercase());
    let rows = signal::table(os).into_iter().filter(|row| {
        // There are too many real-time ones to show them unasked.
        row.name.starts_with(beginning) && (!beginning.is_empty() || !row.name.starts_with("RTM"))
    });
    rows.map(|row| {
        let name = format!("{prefix}{}", row.name);
        let name = if lower {
            name.to_ascii_lowercase()
        } else {
            name
        };
        described(
            &name,
            format!("{} {}: {}", row.number, row.action, row.description),
        )
    })
    .collect()
}

/// The states.
pub fn states() -> Vec<Candidate> {
    State::ALL
        .into_iter()
        .map(|state| Candidate::new(state.word()))
        .collect()
}

/// The hosts that jobs were started on, as they were typed.
pub fn recorded_host(current: &OsStr) -> Vec<Candidate> {
    let hosts = || Store::peek()?.hosts().ok();
    fitting_hosts(hosts().unwrap_or_default(), current)
}

/// The hosts of `~/.ssh/config`, this machine, and those that jobs were started on.
pub fn host(current: &OsStr) -> Vec<Candidate> {
    let mut candidates = recorded_host(current);
    candidates.extend(fitting_hosts(vec![Host::LOCAL.to_owned()], current));
    candidates.extend(configured_host(current));
    candidates.sort();
    candidates.dedup();
    candidates
}

/// The last of the hosts that are separated by commas.
pub fn hosts(current: &OsStr) -> Vec<Candidate> {
    let Some(typed) = current.to_str() else {
        return Vec::new();
    };
    let (before, last) = typed
        .rfind(',')
        .map_or(("", typed), |comma| typed.split_at(comma + 1));
    host(OsStr::new(last))
        .into_iter()
        .map(|candidate| candidate.add_prefix(before))
        .collect()
}

/// The last of the hosts in `-J`'s value.
pub fn jump(current: &OsStr) -> Vec<Candidate> {
    let Some(typed) = current.to_str() else {
        return Vec::new();
    };
    let (before, last) = typed
        .rfind(',')
        .map_or(("", typed), |comma| typed.split_at(comma + 1));
    let candidates = configured_host(OsStr::new(last)).into_iter();
    candidates
        .map(|candidate| candidate.add_prefix(before))
        .collect()
}

/// The hosts of `~/.ssh/config`, behind the user that was typed.
fn configured_host(current: &OsStr) -> Vec<Candidate> {
    let Some(typed) = current.to_str() else {
        return Vec::new();
    };
    let (user, name) = typed
        .rfind('@')
        .map_or(("", typed), |at| typed.split_at(at + 1));
    let read = || -> Option<String> {
        let path = PathBuf::from(std::env::var_os("HOME")?).join(".ssh/config");
        let metadata = fs::metadata(&path).ok()?;
        let readable = metadata.is_file() && metadata.len() <= LONGEST_CONFIG;
        readable
            .then(|| fs::read(path).ok())
            .flatten()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let hosts = read().map(|config| aliases(&config)).unwrap_or_default();
    let candidates = fitting_hosts(hosts, OsStr::new(name)).into_iter();
    candidates
        .map(|candidate| candidate.add_prefix(user))
        .collect()
}

/// Those that fit and that rsig would take.
fn fitting_hosts(hosts: Vec<String>, current: &OsStr) -> Vec<Candidate> {
    let Some(beginning) = current.to_str() else {
        return Vec::new();
    };
    let fits = |host: &String| host.starts_with(beginning) && host.parse::<Host>().is_ok();
    hosts.into_iter().filter(fits).map(Candidate::new).collect()
}

/// The names behind `Host` in a configuration of ssh (`ssh_config(5)`), patterns left out. Files that it includes are
/// not read.
fn aliases(config: &str) -> Vec<String> {
    let words = config.lines().filter_map(|line| {
        let line = line.trim_start();
        let end = line.find(|letter: char| letter.is_whitespace() || letter == '=')?;
        let (keyword, rest) = line.split_at(end);
        keyword.eq_ignore_ascii_case("host").then_some(rest)
    });
    let is_separator = |letter: char| letter.is_whitespace() || matches!(letter, '=' | '"');
    let names = words.flat_map(|rest| {
        rest.split(is_separator)
            .take_while(|word| !word.starts_with('#'))
    });
    names
        .filter(|name| !name.is_empty() && !name.contains(['*', '?', '!']))
        .map(str::to_owned)
        .collect()
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

    /// What is offered behind `rsig`, the last word being the one that is typed.
    fn offered(line: &str) -> String {
        values(&candidates(line.split(' ').map(OsString::from).collect()))
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
                "kill job RTMIN+1",
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
            values(&fitting_hosts(names(), OsStr::new("we"))),
            "web1 we-b"
        );
    }

    #[test]
    fn a_line_for_each_shell() {
        let candidate = described("a:b", "web1: x\nmore");
        for (shell, expected) in [
            (Shell::Bash, "a:b\n"),
            (Shell::Zsh, "a\\:b:web1: x\n"),
            (Shell::Fish, "a:b\tweb1: x\n"),
        ] {
            assert_eq!(shell.line(&candidate), expected);
            assert!(shell.script().contains(VARIABLE));
        }
    }
}
