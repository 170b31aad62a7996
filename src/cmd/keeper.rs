//! `keeper`: how the background connections stand, and their end.

use anyhow::{Context as _, Result};

use crate::connection::keeper::{self, protocol::Status};
use crate::error::{Failure, Kind};
use crate::host::Host;

/// Which keepers to end.
pub enum Which {
    /// Those of one host, whatever options they connect with.
    Of(Host),
    /// All.
    All,
}

/// How this user's keepers stand, on this machine.
pub fn status() -> Result<Vec<Status>> {
    Ok(keepers()?.into_iter().map(|(_, status)| status).collect())
}

/// Ends keepers, and says which. Their jobs run on.
pub fn stop(which: &Which) -> Result<Vec<Status>> {
    let mut stopped = Vec::new();
    for (socket, status) in keepers()? {
        let is_meant = match which {
            Which::Of(host) => status.host == host.to_string(),
            Which::All => true,
        };
        if is_meant {
            keeper::client::stop(&socket)
                .with_context(|| format!("the keeper of {} can't be ended", status.host))?;
            stopped.push(status);
        }
    }
    match which {
        Which::Of(host) if stopped.is_empty() => {
            let message =
                format!("no keeper of {host} runs; `rsig keeper status` lists those that do");
            Err(Failure::new(Kind::Failed, message).into())
        }
        _ => Ok(stopped),
    }
}

fn keepers() -> Result<Vec<(std::path::PathBuf, Status)>> {
    let sockets = keeper::place::all().context("the directory of the keepers can't be read")?;
    // One that does not answer is gone, or another version's.
    let status =
        |socket: std::path::PathBuf| keeper::client::status(&socket).map(|status| (socket, status));
    Ok(sockets.into_iter().filter_map(status).collect())
}
