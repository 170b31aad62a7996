//! The way to a host over SSH.

mod auth;
mod config;
pub mod connect;
mod handshake;
mod hostkey;
mod key;
mod keyfile;
pub mod prompt;
mod proxy;
mod tcp;
mod tokens;
mod watchdog;

pub use connect::connect;
