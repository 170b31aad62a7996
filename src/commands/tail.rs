//! `tail`: passes a job's output on.

use std::ffi::OsStr;

use anyhow::Result;

use super::{Context, not_there, resolve_one};
use crate::error::{Failure, Kind};
use crate::remote::output::{From, Sink, Wanted, read};
use crate::remote::{Seen, Standing};
use crate::transport::{Line, Policy};

/// What to show of a job's output.
pub struct Request {
    /// Its standard output.
    pub out: bool,
    /// Its standard error.
    pub err: bool,
    /// Where to begin.
    pub from: From,
    /// Go on until the job ends.
    pub follow: bool,
}

/// Passes a job's output on to `sink`.
///
/// # Errors
/// When there is no such job, its host can't be asked, its log is not there any more, or `sink` fails.
pub fn tail(context: &mut Context, word: &OsStr, request: &Request, sink: &mut Sink<'_>) -> Result<()> {
    let mut record = resolve_one(context, word)?;
    let destination = record.destination.clone();
    // What may be much gets a connection of its own: the keeper's is for short things.
    let policy = Policy { keeper: context.policy.keeper && is_short(request), ..context.policy };
    let mut line = Line::new(&destination, &policy);
    let host = line.host();
    let place = record.dir.clone().unwrap_or_else(|| record.id.to_string());
    let wanted =
        Wanted { place: &place, out: request.out, err: request.err, from: request.from, follow: request.follow };
    let read = read(&host, line.shell()?.as_mut(), &wanted, sink)?;
    let label = record.label();
    if record.is_unmet() && read.seen.standing == Standing::Absent {
        return Err(not_there(&record).into());
    }
    if let Some(failure) = unreadable(&label, &read.seen) {
        return Err(failure.into());
    }
    read.seen.update(&mut record);
    context.store.update([&record])?;
    if read.cut {
        let message =
            format!("{label}: its log was cut short while it was followed; what was written since is not shown");
        return Err(Failure::new(Kind::Failed, message).into());
    }
    Ok(())
}

/// Whether what is asked for is certainly not much.
fn is_short(request: &Request) -> bool {
    let few = match request.from {
        From::LastLines(count) => count <= 1000,
        From::LastBytes(count) => count <= 256 << 10,
        From::Line(_) | From::Byte(_) => false,
    };
    few && !request.follow
}

/// Why the host has no output of the job to give.
fn unreadable(label: &str, seen: &Seen) -> Option<Failure> {
    let (kind, why) = match seen.standing {
        Standing::Absent => (Kind::Failed, "its files are not on the host; it never started, or they were removed"),
        Standing::Foreign => (Kind::Failed, "others could have written to its directory there, so it is not read"),
        _ => return None,
    };
    Some(Failure::new(kind, format!("{label}: {why}")))
}
