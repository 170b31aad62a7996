//! The way to a host over SSH.

mod auth;
mod config;
pub mod connect;
mod handshake;
mod hostkey;
mod keyfile;
mod known;
pub mod prompt;
mod proxy;
mod shell;
mod tcp;
mod tokens;
mod watchdog;

use connect::{ConnectError, Note};

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

/// Connects and authenticates.
pub fn connect(destination: &Destination, policy: &Policy) -> Result<connect::Connection, Failure> {
    let notes = |note: Note<'_>| match note {
        Note::Warning(text) => (policy.warn)(text),
        Note::Step(text) => (policy.step)(text),
    };
    let host_keys = |resolved: &config::Resolved| -> Box<dyn connect::HostKeyCheck + '_> {
        Box::new(known::KnownHosts::new(resolved, &notes))
    };
    let policy = connect::Policy {
        batch: policy.batch,
    };
    connect::connect(destination, policy, &host_keys, &mut prompt::User, &notes).map_err(failure)
}

fn failure(error: ConnectError) -> Failure {
    match error {
        ConnectError::Unreachable(message) => Failure::new(Kind::Unreachable, message),
        ConnectError::Auth(message) => Failure::new(Kind::Auth, message),
        ConnectError::HostKey(message) => Failure::new(Kind::HostKey, message),
    }
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
