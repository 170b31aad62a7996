//! The edge of the servers: from the words of the command line to what they may do.

use anyhow::Result;

use super::args as cli;
use super::dispatch::{connect, context};
use crate::cmd::Context;
use crate::cmd::allowed::AllowedHosts;
use crate::error::exit;
use crate::servers::{self, Limits};

#[cfg(feature = "mcp")]
pub fn mcp(arguments: cli::Mcp) -> Result<u8> {
    use std::io::IsTerminal as _;
    if std::io::stdin().is_terminal() {
        crate::terminal::note(
            "this speaks the Model Context Protocol, to a client that starts it; see rsig-mcp(1)",
        );
    }
    servers::mcp::serve(limits(arguments.server)?)?;
    Ok(exit::DONE)
}

#[cfg(feature = "serve")]
pub fn serve(arguments: cli::Serve) -> Result<u8> {
    servers::serve::serve(
        limits(arguments.server)?,
        arguments.listen.map(|listen| listen.0),
    )?;
    Ok(exit::DONE)
}

fn limits(arguments: cli::ServerArgs) -> Result<Limits> {
    let connect = connect(arguments.connect)?;
    let allowed = AllowedHosts::new(arguments.allow_host);
    let reach = arguments.reach;
    Ok(Limits::new(move || {
        Ok(Context {
            connect: connect.clone(),
            allowed: allowed.clone(),
            ..context(reach)?
        })
    }))
}
