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
mod shell;
mod tcp;
mod tokens;
mod watchdog;

pub use connect::connect;

use super::{Policy, Shell, Transport};
use crate::error::{Failure, Kind};
use crate::host::Destination;

/// A connection to one host, and the host's name for messages.
struct Ssh {
    host: String,
    shells: shell::Shells,
}

/// Connects to a host.
pub fn open(destination: &Destination, policy: &Policy) -> Result<Box<dyn Transport>, Failure> {
    let connection = connect(destination, policy)?;
    Ok(Box::new(Ssh {
        host: destination.to_string(),
        shells: shell::Shells::new(connection),
    }))
}

impl Transport for Ssh {
    fn is_spent(&self) -> bool {
        self.shells.is_spent()
    }

    fn shell(&mut self) -> Result<Box<dyn Shell + '_>, Failure> {
        match self.shells.open() {
            Ok(shell) => Ok(Box::new(shell)),
            Err(error) => {
                let message = format!("{}: the server gives no channel: {error}", self.host);
                Err(Failure::new(Kind::Unreachable, message))
            }
        }
    }
}
