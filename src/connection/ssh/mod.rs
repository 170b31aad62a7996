//! Connects to a host over SSH.
//!
//! libssh2 speaks the protocol; the decisions are made here. The configuration is the output of `ssh -G`, and a
//! ProxyJump is a child process `ssh -W`, as in OpenSSH.

mod agent;
mod auth;
mod config;
pub mod connect;
mod environment;
#[cfg(fuzzing)]
pub mod fuzz;
mod handshake;
mod hostkey;
mod identities;
mod interactive;
mod key;
mod keyfile;
mod link;
mod login_record;
pub mod prompt;
mod proxy;
mod query;
mod refusal;
mod sources;
mod tcp;
mod tokens;

pub use config::CONNECT_TIMEOUT;
pub use connect::connect;
pub use environment::{Variable, send_patterns, sent};
pub use query::ask;
pub use sources::{Answer, Sources};
