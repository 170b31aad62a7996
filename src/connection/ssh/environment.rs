//! The variables that each shell on a host is given, as ssh(1) does it: `SendEnv` and `SetEnv` of `ssh_config(5)`.
//!
//! Which of them a server takes is its own affair (`AcceptEnv` of `sshd_config(5)`).

use std::os::unix::ffi::OsStringExt as _;

use super::config::{self, Resolved};
use super::sources::Answer;
use crate::glob;
use crate::host::Destination;

/// The most that a name and its value may have, in bytes: libssh2 sends no longer packet.
const VARIABLE_MAX: usize = 32 << 10;

/// A name and its value.
pub type Variable = (Vec<u8>, Vec<u8>);

/// The patterns of `SendEnv`. None of a configuration that is not valid, which the keeper reports.
pub fn send_patterns(destination: &Destination, answer: &Answer) -> Vec<String> {
    config::resolve(destination, answer.clone())
        .map(|(config, _)| patterns(&config))
        .unwrap_or_default()
}

fn patterns(config: &Resolved) -> Vec<String> {
    // Without an ssh program, one value holds all patterns of an option.
    let values = config.all("sendenv").iter();
    let words = values.flat_map(|value| value.split_ascii_whitespace());
    words.map(str::to_owned).collect()
}

/// What this process has of them, sorted by name.
pub fn sent(patterns: &[String]) -> Vec<Variable> {
    if patterns.is_empty() {
        return Vec::new();
    }
    let fits = |name: &[u8]| {
        // No shell is ever given a job's secret.
        name != b"RSIG_COOKIE"
            && patterns
                .iter()
                .any(|pattern| glob::matches(pattern.as_bytes(), name))
    };
    let mut variables: Vec<Variable> = std::env::vars_os()
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .filter(|(name, value)| fits(name) && name.len() + value.len() <= VARIABLE_MAX)
        .collect();
    variables.sort_unstable();
    variables
}

/// All that is sent, in ssh's order: the last of a name counts.
pub(super) fn variables(config: &Resolved) -> Vec<Variable> {
    let set = config.all("setenv").iter();
    let set = set.filter_map(|variable| variable.split_once('='));
    let set = set.map(|(name, value)| (name.into(), value.into()));
    sent(&patterns(config)).into_iter().chain(set).collect()
}
