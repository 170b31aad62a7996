//! The result of a start request. If the answer was lost, the host is asked whether the job runs.

use std::time::{Duration, Instant};

use crate::connection::HostConnection;
use crate::error::{Failure, Kind};
use crate::job::Record;
use crate::remote::{Observation, ObservedState, look};

/// A job that was started.
pub struct Spawned {
    pub record: Record,
    /// A warning for the user.
    pub warning: Option<String>,
}

/// The result of a start request.
pub enum LaunchResult {
    Runs(Spawned),
    NotStarted(Record, Failure),
    /// It is not known whether the job runs.
    Unsure(Failure),
}

/// Maximum number of times the host is asked about a start whose answer was lost, and the pause in between.
const LOOKS_MAX: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(300);
/// Time after which no further look begins: a host that does not respond takes a long time to fail.
pub(super) const LOOKING_MAX: Duration = Duration::from_secs(10);

/// Whether the host, asked over a new connection, has no such job.
pub(super) fn is_absent(connection: &mut HostConnection<'_>, place: &str) -> bool {
    connection.close();
    let host = connection.host();
    let seen = connection
        .shell()
        .and_then(|mut shell| look::see(&host, shell.as_mut(), &[place]));
    seen.is_ok_and(|seen| {
        matches!(
            seen.as_slice(),
            [Observation {
                observed: ObservedState::Absent,
                ..
            }]
        )
    })
}

/// Finds out whether a job runs or was never started, after the host gave no conclusive answer.
pub(super) fn after_lost_answer(
    connection: &mut HostConnection<'_>,
    mut record: Record,
    failure: Failure,
) -> LaunchResult {
    let (host, place) = (connection.host(), record.job_dir());
    let mut seen = None;
    let began = Instant::now();
    for attempt in 0..LOOKS_MAX {
        connection.close();
        let answer = connection
            .shell()
            .and_then(|mut shell| look::see(&host, shell.as_mut(), &[&place]));
        seen = match answer {
            Ok(mut seen) => seen.pop(),
            Err(failure) if failure.kind.is_outage() => None,
            // The answer would be the same again.
            Err(_) => break,
        };
        // A job that is about to start, or whose request may still be on its way, is given time.
        match seen.as_ref().map(|seen| seen.observed) {
            None | Some(ObservedState::Starting | ObservedState::Absent)
                if attempt + 1 < LOOKS_MAX && began.elapsed() < LOOKING_MAX =>
            {
                std::thread::sleep(LOOK_PAUSE);
            }
            _ => break,
        }
    }
    match seen {
        Some(seen) if seen.observed == ObservedState::Absent => {
            LaunchResult::NotStarted(record, failure)
        }
        Some(seen)
            if !matches!(
                seen.observed,
                ObservedState::Starting
                    | ObservedState::Elsewhere
                    | ObservedState::DirMissing
                    | ObservedState::Untrusted
            ) =>
        {
            seen.update(&mut record);
            LaunchResult::Runs(Spawned {
                record,
                warning: None,
            })
        }
        _ => unsure(&record, &failure),
    }
}

pub(super) fn unsure(record: &Record, failure: &Failure) -> LaunchResult {
    let message = format!(
        "{failure}. Whether the job started is not known: `rsig ps {}` will tell once {} answers again",
        record.id, record.destination
    );
    LaunchResult::Unsure(Failure::new(Kind::Unconfirmed, message))
}
