//! The environment variables that each shell on a host is given, as by ssh(1): `SendEnv` and `SetEnv` of
//! `ssh_config(5)`.
//!
//! The server decides which of them it accepts (`AcceptEnv` of `sshd_config(5)`).

use std::os::unix::ffi::OsStringExt as _;

use super::config::{self, Resolved};
use super::sources::Answer;
use crate::glob;
use crate::host::Destination;

/// Maximum length of a name and its value together, in bytes: libssh2 sends no longer packet.
const VARIABLE_MAX: usize = 32 << 10;

/// A name and its value.
pub type Variable = (Vec<u8>, Vec<u8>);

/// The patterns of `SendEnv`. Empty if the configuration is invalid, which the keeper reports.
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

/// The variables of this process that match, sorted by name.
pub fn sent(patterns: &[String]) -> Vec<Variable> {
    if patterns.is_empty() {
        return Vec::new();
    }
    let fits = |name: &[u8]| {
        // A job's secret is never given to a shell.
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

/// All variables to send, in ssh's order. Of several with one name, the last one counts.
pub(super) fn variables(config: &Resolved) -> Vec<Variable> {
    let set = config.all("setenv").iter();
    let set = set.filter_map(|variable| variable.split_once('='));
    let set = set.map(|(name, value)| (name.into(), value.into()));
    sent(&patterns(config)).into_iter().chain(set).collect()
}
