//! `mcp` and `serve`: start the servers.

use clap::Args;

use super::allowed::{AllowedHosts, HostPattern};
use super::args::{ConnectArgs, ConnectionOptions};
use super::context::Context;
use crate::error::{Failure, exit};
use crate::servers::{self, Workers};

/// What a server may do for its clients, and how it reaches hosts.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Use only hosts that match: `local`, or [USER@]HOST[:PORT] with * and ? in any part; repeatable. A part that the
    /// pattern lacks must be absent
    #[arg(long, value_name = "GLOB")]
    allow_host: Vec<HostPattern>,
    #[command(flatten)]
    reach: ConnectionOptions,
    #[command(
        flatten,
        next_help_heading = "Connecting (to every host that a client names)"
    )]
    connect: ConnectArgs,
}

impl ServerArgs {
    fn workers(self) -> Result<Workers, Failure> {
        let connect = self.connect.connect()?;
        let allowed = AllowedHosts::new(self.allow_host);
        let reach = self.reach;
        Ok(Workers::new(move || {
            Ok(Context {
                connect: connect.clone(),
                allowed: allowed.clone(),
                ..reach.context()?
            })
        }))
    }
}

/// Serve agents: the Model Context Protocol on standard input and output
#[cfg(feature = "mcp")]
#[derive(Args, Debug)]
pub struct Mcp {
    #[command(flatten)]
    server: ServerArgs,
}

#[cfg(feature = "mcp")]
impl Mcp {
    pub fn run(self) -> Result<u8, Failure> {
        use std::io::IsTerminal as _;
        if std::io::stdin().is_terminal() {
            crate::terminal::warn(
                "this speaks the Model Context Protocol, to a client that starts it; see rsig-mcp(1)",
            );
        }
        servers::mcp::serve(self.server.workers()?)?;
        Ok(exit::DONE)
    }
}

/// Serve programs: HTTP on a Unix socket, or on a port of this machine only
#[cfg(feature = "serve")]
#[derive(Args, Debug)]
pub struct Serve {
    /// Listen on this address of this machine instead of the Unix socket; requests then need the token in the file
    /// `serve.token` of the state directory, which is created if it is missing
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = super::values::listen)]
    listen: Option<std::net::SocketAddr>,
    #[command(flatten)]
    server: ServerArgs,
}

#[cfg(feature = "serve")]
impl Serve {
    pub fn run(self) -> Result<u8, Failure> {
        servers::serve::serve(self.server.workers()?, self.listen)?;
        Ok(exit::DONE)
    }
}
