//! rsig's own modules, and a function for each fuzz target.

#![allow(
    dead_code,
    unused_imports,
    reason = "a program's modules are more than its parsers"
)]

mod answer;
mod config_file;
mod host_word;

/// The modules that src/main.rs declares, without the servers. They find each other at the crate's root.
#[path = "../../src"]
mod src {
    pub mod clock;
    pub mod cmd;
    pub mod connection;
    pub mod delivery;
    pub mod error;
    pub mod escape;
    pub mod glob;
    pub mod host;
    pub mod hosts;
    pub mod job;
    pub mod remote;
    pub mod signal;
    pub mod state;
    pub mod sys;
    pub mod terminal;
}
use src::{
    clock, cmd, connection, delivery, error, escape, glob, host, hosts, job, remote, signal, state,
    sys, terminal,
};

pub use answer::answer;
pub use config_file::config_file;
pub use host_word::host_word;

/// The protocol between commands and keepers. The lowest bit of the first byte chooses frames in both directions, or
/// actions of a keeper.
pub fn keeper(data: &[u8]) {
    match data {
        [choice, data @ ..] if choice & 1 == 0 => connection::keeper::fuzz::frames(data),
        [_, data @ ..] => connection::keeper::fuzz::steps(data),
        [] => {}
    }
}

/// Files of host keys, key files, and servers' keys.
pub fn hosts_file(data: &[u8]) {
    connection::ssh::fuzz::known_hosts(data);
    connection::ssh::fuzz::keys(data);
}

/// The output of `ssh -G` and `ssh -v -G`, the expansion of values, and what a server sends before its version line.
/// The first byte chooses.
pub fn ssh_config(data: &[u8]) {
    let [choice, data @ ..] = data else {
        return;
    };
    let text = String::from_utf8_lossy(data);
    match choice % 5 {
        0 => connection::ssh::fuzz::configuration(&text, true),
        1 => connection::ssh::fuzz::configuration(&text, false),
        2 => connection::ssh::fuzz::sources(&text),
        3 => connection::ssh::fuzz::expansion(&text),
        _ => connection::ssh::fuzz::preamble(data),
    }
}
