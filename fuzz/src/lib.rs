//! What the fuzz targets run: rsig's own modules, and a function for each target.

#![allow(
    dead_code,
    unused_imports,
    reason = "a program's modules are more than its parsers"
)]

mod answer;
mod config_file;
mod host_word;

/// What src/main.rs declares, but for the servers. Its modules find each other at the root.
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

/// What commands and keepers say to each other. The first bit chooses frames of either side, or what a keeper does.
pub fn keeper(data: &[u8]) {
    match data {
        [choice, data @ ..] if choice & 1 == 0 => connection::keeper::fuzz::frames(data),
        [_, data @ ..] => connection::keeper::fuzz::steps(data),
        [] => {}
    }
}

/// Files of host keys and of keys, and keys of servers.
pub fn hosts_file(data: &[u8]) {
    connection::ssh::fuzz::known_hosts(data);
    connection::ssh::fuzz::keys(data);
}

/// What ssh says of a configuration, and a server before its version. The first byte chooses.
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
