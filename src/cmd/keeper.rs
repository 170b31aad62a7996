//! `keeper`: shows and ends the background connections.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use super::complete;
use super::values::Hosts;
use crate::connection::keeper::{client, path, protocol::Status};
use crate::error::{Failure, Kind, exit};
use crate::escape::printable;
use crate::hosts;
use crate::job::{Epoch, now};
use crate::terminal::{Output, Table, age};

/// Show the background connections to hosts, and end them
#[derive(Args, Debug)]
pub struct Keeper {
    #[command(subcommand)]
    command: KeeperCommand,
}

#[derive(Debug, Subcommand)]
enum KeeperCommand {
    /// List the keepers of this machine
    Status {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// End keepers; jobs run on, and the next command starts another keeper
    Stop {
        /// The keepers of these hosts
        #[arg(
            required_unless_present = "all",
            conflicts_with = "all",
            value_name = "HOST[,HOST]",
            add = ArgValueCompleter::new(complete::recorded_host)
        )]
        host: Option<Hosts>,
        /// All keepers
        #[arg(long)]
        all: bool,
    },
}

impl Keeper {
    pub fn run(self) -> Result<u8, Failure> {
        let mut out = Output::default();
        match self.command {
            KeeperCommand::Status { json } => {
                let keepers: Vec<Status> =
                    keepers()?.into_iter().map(|(_, status)| status).collect();
                if json {
                    out.json(&keepers);
                } else {
                    out.line(table(&keepers));
                }
            }
            KeeperCommand::Stop { host, .. } => stop(host.as_ref(), &mut out)?,
        }
        out.finish()?;
        Ok(exit::DONE)
    }
}

/// Ends all keepers, or those of the given hosts, whatever options they connect with.
fn stop(hosts: Option<&Hosts>, out: &mut Output) -> Result<(), Failure> {
    let wanted: Option<Vec<String>> = hosts.map(|hosts| {
        let hosts = Hosts::all(std::slice::from_ref(hosts));
        hosts.iter().map(ToString::to_string).collect()
    });
    let mut missing = wanted.clone().unwrap_or_default();
    for (socket, status) in keepers()? {
        if wanted
            .as_ref()
            .is_some_and(|wanted| !wanted.contains(&status.host))
        {
            continue;
        }
        client::stop(&socket).map_err(|error| {
            let message = format!("the keeper of {} can't be ended: {error}", status.host);
            Failure::new(Kind::Failed, message)
        })?;
        out.line(format_args!("{}: keeper {} ended", status.host, status.pid));
        missing.retain(|host| *host != status.host);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing = hosts::fold(missing.iter().map(String::as_str));
    let message = format!("{missing} has no keeper; `rsig keeper status` lists the keepers");
    Err(Failure::new(Kind::Failed, message))
}

/// This user's keepers on this machine. A keeper that does not respond is left out: it is gone, or of another version.
fn keepers() -> Result<Vec<(PathBuf, Status)>, Failure> {
    let sockets = path::all().map_err(|error| {
        let message = format!("the directory of the keepers can't be read: {error}");
        Failure::new(Kind::Failed, message)
    })?;
    let status = |socket: PathBuf| client::status(&socket).map(|status| (socket, status));
    Ok(sockets.into_iter().filter_map(status).collect())
}

fn table(keepers: &[Status]) -> Table {
    let mut table = Table::new([
        "HOST", "PID", "SINCE", "RELAYS", "CHANNELS", "COMMANDS", "IDLE",
    ]);
    for keeper in keepers {
        let taking = keeper
            .relays
            .iter()
            .filter(|(_, takes_signals)| *takes_signals)
            .count();
        let relays = match keeper.relays.len() {
            held if held == taking => held.to_string(),
            held => format!("{held} ({taking} take signals)"),
        };
        table.row([
            printable(&keeper.host, 255),
            keeper.pid.to_string(),
            age(now().saturating_sub(keeper.since)),
            relays,
            keeper.channels.to_string(),
            keeper.commands.to_string(),
            age(keeper.idle.try_into().unwrap_or(Epoch::MAX)),
        ]);
    }
    table
}
