//! Words of the command line: hosts, ranges and groups, jobs, names, signals, durations, sizes and prefixes.
//!
//! The first line is the word. Each further line is a group of the configuration file: its name, `=`, and its members,
//! separated by spaces.

use std::collections::{BTreeMap, BTreeSet};

use crate::answer::assert_plain;
use crate::cmd::values;
use crate::connection::ssh;
use crate::glob;
use crate::host::{Connect, Destination, Host, Location, Remote, parse_jobs_dir, parse_port};
use crate::hosts::{self, HOSTS_MAX};
use crate::job::{JobId, JobName, JobWord, State};
use crate::signal::{self, Os, SignalWord};

const SYSTEMS: [Os; 5] = [Os::Linux, Os::Darwin, Os::FreeBSD, Os::Bsd, Os::Other];
/// Maximum number of hosts that are folded again, and of hosts that are checked one by one.
const FOLD_MAX: usize = 300;
const CHECK_MAX: usize = 10;

pub fn host_word(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (word, groups) = text.split_once('\n').unwrap_or((&text, ""));
    let groups: BTreeMap<&str, Vec<String>> = groups
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, members)| (name, members.split(' ').map(str::to_owned).collect()))
        .collect();
    range(word, &groups);
    host(word);
    job(word);
    signal(word);
    value(word);
    pattern(data);
}

fn range(word: &str, groups: &BTreeMap<&str, Vec<String>>) {
    let hosts = match hosts::expand(word, &|name| groups.get(name).cloned()) {
        Ok(hosts) => hosts,
        Err(why) => return assert_plain(&why),
    };
    assert!(hosts.len() <= HOSTS_MAX);
    let each: BTreeSet<&str> = hosts.iter().map(String::as_str).collect();
    assert_eq!(each.len(), hosts.len());
    if hosts.len() > FOLD_MAX || hosts.iter().any(|host| host.parse::<Host>().is_err()) {
        return;
    }
    hosts.iter().take(CHECK_MAX).for_each(|word| host(word));
    let folded = hosts::fold(each.iter().copied());
    // The folded form stands for the same hosts, without any group.
    let again = hosts::expand(&folded, &|_| None).expect("hosts");
    let again: BTreeSet<&str> = again.iter().map(String::as_str).collect();
    assert_eq!(again, each, "{folded}");
}

fn host(word: &str) {
    let host = match word.parse::<Host>() {
        Ok(host) => host,
        Err(error) => return assert_plain(&error.to_string()),
    };
    assert_eq!(host.to_string(), word);
    assert_plain(word);
    let json = serde_json::to_string(&host).expect("JSON");
    assert_eq!(serde_json::from_str::<Host>(&json).expect("a host"), host);
    if let Location::Ssh(remote) | Location::OpenSsh(remote) = host.location() {
        check_parts(remote);
        ssh::fuzz::host_name(&remote.name, remote.port.unwrap_or(22));
    }
    // A container's own variables are left out: they would be read each time.
    let destination = Destination {
        host,
        connect: Connect {
            prefix: values::prefix(word).map_or(Vec::new(), |prefix| prefix.0),
            ..Connect::default()
        },
    };
    let words = destination.shell();
    let joined = shlex::try_join(words.iter().copied()).expect("no NUL");
    assert_eq!(shlex::split(&joined).expect("words"), words);
    assert!(words.ends_with(&["/bin/sh", "-s"]));
    let _ = (
        destination.prefix(),
        destination.has_sudo(),
        destination.starts_in_shell_dir(),
    );
}

/// Asserts that the parts of a host, put together, parse as the same host.
fn check_parts(remote: &Remote) {
    let mut word = "ssh://".to_owned();
    if let Some(user) = &remote.user {
        // The user of a URI is percent-decoded.
        word += &format!("{}@", user.replace('%', "%25"));
    }
    if remote.name.contains(':') {
        word += &format!("[{}]", remote.name);
    } else {
        word += &remote.name;
    }
    if let Some(port) = remote.port {
        word += &format!(":{port}");
    }
    assert_eq!(word.parse::<Remote>().as_ref(), Ok(remote), "{word}");
    for part in remote.user.iter().chain([&remote.name]) {
        assert!(!part.is_empty() && !part.starts_with('-'));
        assert!(
            !part.contains(|c: char| c.is_whitespace() || c.is_control() || "'\"`$;&|".contains(c))
        );
    }
}

fn job(word: &str) {
    match JobWord::parse(word) {
        Ok(parsed) => {
            assert_eq!(parsed.as_str(), word);
            if let Some((host, id)) = parsed.host_and_id() {
                assert_eq!(format!("{host}/{id}"), word);
            }
        }
        Err(error) => assert_plain(&error.to_string()),
    }
    if let Ok(id) = word.parse::<JobId>() {
        assert_eq!(id.as_str(), word);
    }
    if let Ok(name) = word.parse::<JobName>() {
        assert!(name.as_str() == word && word.len() <= 64);
        assert!(!word.contains(['/', '@', ',', '*']));
    }
    if let Ok(state) = word.parse::<State>() {
        assert_eq!(state.to_string(), word);
    }
}

fn signal(word: &str) {
    let parsed = match word.parse::<SignalWord>() {
        Ok(parsed) => parsed,
        Err(error) => return assert_plain(&error.to_string()),
    };
    assert_eq!(parsed.to_string().parse().as_ref(), Ok(&parsed));
    if let Some(dashed) = signal::dashed(&format!("-{word}")) {
        assert_eq!(dashed, parsed);
    }
    for os in SYSTEMS {
        match parsed.on(os) {
            Ok(signal) => {
                // The signal's own name is the same signal on that system.
                let again = signal.name().parse::<SignalWord>().expect("a signal");
                assert_eq!(again.on(os), Ok(signal));
                assert!(!signal.wire().is_empty());
                if let Some(number) = signal.number().filter(|number| *number > 0) {
                    let status = 128 + u32::from(number);
                    assert_eq!(signal::name_of_exit_status(os, status), Some(signal.name()));
                }
            }
            Err(error) => assert_plain(&error.to_string()),
        }
        if let Err(error) = signal::row_for(os, word) {
            assert_plain(&error.to_string());
        }
    }
}

fn value(word: &str) {
    if let Ok(duration) = values::duration(word) {
        assert!(duration <= values::DURATION_MAX);
        let shown = humantime::format_duration(duration).to_string();
        assert_eq!(values::duration(&shown), Ok(duration));
        // Deadlines are computed from durations.
        let _ = std::time::Instant::now() + duration * 2;
    }
    if let Ok(max) = values::log_max(word) {
        assert!((64 << 10..=1 << 40).contains(&max.bytes));
        assert_eq!(values::log_max(&max.word), Ok(max));
    }
    if let Ok(prefix) = values::prefix(word) {
        assert!(!prefix.0.is_empty());
        let joined = shlex::try_join(prefix.0.iter().map(String::as_str));
        if let Ok(joined) = joined {
            assert_eq!(values::prefix(&joined).expect("words").0, prefix.0);
        }
    }
    for start in [values::lines(word), values::bytes(word)]
        .into_iter()
        .flatten()
    {
        let (_, count) = start.words();
        assert!(count <= 1 << 53);
    }
    if let Ok(option) = values::ssh_option(word) {
        assert!(!option.starts_with('-') && !option.contains('\n'));
    }
    if let Ok(port) = parse_port(word) {
        assert_eq!(port.to_string().parse(), Ok(port));
    }
    if let Ok(directory) = parse_jobs_dir(word) {
        assert!(directory.starts_with('/') && !directory.ends_with('/'));
    }
    let _ = values::is_variable(word);
}

/// Matches the first half of the data, as a pattern, against the second half. The result must agree with the plain
/// definition.
fn pattern(data: &[u8]) {
    let (pattern, text) = data.split_at(data.len() / 2);
    let fits = glob::matches(pattern, text);
    if data.len() <= 16 {
        assert_eq!(fits, by_definition(pattern, text));
    }
}

fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], rest) => rest.is_empty(),
        ([b'*', others @ ..], _) => (0..=text.len()).any(|at| by_definition(others, &text[at..])),
        ([b'?', others @ ..], [_, rest @ ..]) => by_definition(others, rest),
        ([one, others @ ..], [other, rest @ ..]) => one == other && by_definition(others, rest),
        (_, []) => false,
    }
}
