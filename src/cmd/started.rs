//! What came of asking a host for a job. Where its answer was lost, the host is asked whether the job runs.

use std::time::{Duration, Instant};

use crate::connection::HostConnection;
use crate::error::{Failure, Kind};
use crate::job::Record;
use crate::remote::{Seen, Standing, look};

/// A job that was started.
pub struct Spawned {
    pub record: Record,
    /// What the user should know.
    pub warning: Option<String>,
}

/// What came of asking a host for a job.
pub enum Launched {
    /// It runs.
    Runs(Spawned),
    /// It was not started.
    NotStarted(Record, Failure),
    /// That can't be found out.
    Unsure(Failure),
}

/// How often the host is asked about a start whose answer was lost.
const LOOKS_MAX: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(300);
/// No further look begins after this time: a silent host takes long to give no answer.
pub(super) const LOOKING_MAX: Duration = Duration::from_secs(10);

/// Whether the host, asked over a new connection, knows nothing of a job.
pub(super) fn is_absent(connection: &mut HostConnection<'_>, place: &str) -> bool {
    connection.hang_up();
    let host = connection.host();
    let seen = connection
        .shell()
        .and_then(|mut shell| look::see(&host, shell.as_mut(), &[place]));
    seen.is_ok_and(|seen| {
        matches!(
            seen.as_slice(),
            [Seen {
                standing: Standing::Absent,
                ..
            }]
        )
    })
}

/// The host gave no answer that tells: looks whether the job runs, or never started.
pub(super) fn after_a_break(
    connection: &mut HostConnection<'_>,
    mut record: Record,
    failure: Failure,
) -> Launched {
    let (host, place) = (connection.host(), record.job_dir());
    let mut seen = None;
    let began = Instant::now();
    for attempt in 0..LOOKS_MAX {
        connection.hang_up();
        let answer = connection
            .shell()
            .and_then(|mut shell| look::see(&host, shell.as_mut(), &[&place]));
        seen = match answer {
            Ok(mut seen) => seen.pop(),
            Err(failure) if failure.kind.is_outage() => None,
            // It would say the same again.
            Err(_) => break,
        };
        // What is about to start, or may still be on its way there, is given time.
        match seen.as_ref().map(|seen| seen.standing) {
            None | Some(Standing::Starting | Standing::Absent)
                if attempt + 1 < LOOKS_MAX && began.elapsed() < LOOKING_MAX =>
            {
                std::thread::sleep(LOOK_PAUSE);
            }
            _ => break,
        }
    }
    match seen {
        Some(seen) if seen.standing == Standing::Absent => Launched::NotStarted(record, failure),
        Some(seen)
            if !matches!(
                seen.standing,
                Standing::Starting | Standing::Elsewhere | Standing::Away | Standing::Foreign
            ) =>
        {
            seen.update(&mut record);
            Launched::Runs(Spawned {
                record,
                warning: None,
            })
        }
        _ => unsure(&record, &failure),
    }
}

pub(super) fn unsure(record: &Record, failure: &Failure) -> Launched {
    let message = format!(
        "{failure}. Whether the job started is not known: `rsig ps {}` will tell once {} answers again",
        record.id, record.destination
    );
    Launched::Unsure(Failure::new(Kind::Unconfirmed, message))
}
