//! The way to a host over SSH.

mod agent;
mod auth;
mod config;
pub mod connect;
mod entry;
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
