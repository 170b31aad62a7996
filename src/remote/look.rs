//! The scripts that look at jobs, and that remove the files of finished ones.

use super::answer::{garbage, hear, patience};
use super::script::Script;
use super::seen::{Seen, Standing, indexed, job_line};
use crate::connection::Shell;
use crate::error::Failure;
use crate::escape::printable;

/// Asks a host how jobs stand, all of them in one script. `places`: see [`super::signal::JobPlan::job_dir`].
pub fn see(host: &str, shell: &mut dyn Shell, places: &[&str]) -> Result<Vec<Seen>, Failure> {
    let script = Script::see(places)?;
    let mut seen: Vec<Option<Seen>> = vec![None; places.len()];
    hear(
        host,
        shell,
        &script,
        Some(patience() * 2),
        &mut |line: &str| {
            let (index, job) = job_line(host, line, places.len())?;
            if let Some(slot) = seen.get_mut(index) {
                *slot = Some(job);
            }
            Ok(())
        },
    )?;
    all_answered(host, seen)
}

/// What became of a job's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They are gone, or there were none.
    Gone,
    /// They are there, in whole or in part, for the reason given.
    Kept(String),
    /// The job is not finished, or not this host's to judge.
    Refused(Seen),
}

/// Removes the files of finished jobs.
pub fn forget(host: &str, shell: &mut dyn Shell, places: &[&str]) -> Result<Vec<Removal>, Failure> {
    let script = Script::forget(places)?;
    let mut removals = vec![None; places.len()];
    hear(
        host,
        shell,
        &script,
        Some(patience() * 4),
        &mut |line: &str| {
            let (index, removal) = match indexed(line, places.len()) {
                Some(("gone", index, _)) => (index, Removal::Gone),
                Some(("kept", index, why)) => (index, Removal::Kept(printable(why, 300))),
                _ => job_line(host, line, places.len())
                    .map(|(index, seen)| (index, Removal::Refused(seen)))?,
            };
            if let Some(slot) = removals.get_mut(index) {
                *slot = Some(removal);
            }
            Ok(())
        },
    )?;
    all_answered(host, removals)
}

/// Which of a job's streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Its standard output.
    pub out: bool,
    /// Its standard error.
    pub err: bool,
}

/// Removes the files of finished jobs whose output has been read: `read` is what has been just now. Says how each
/// stood, and whether its files are gone.
pub fn forget_read(
    host: &str,
    shell: &mut dyn Shell,
    places: &[&str],
    read: Streams,
) -> Result<Vec<(Seen, bool)>, Failure> {
    let script = Script::forget_read(places, read)?;
    let mut answers: Vec<Option<(Seen, bool)>> = vec![None; places.len()];
    hear(
        host,
        shell,
        &script,
        Some(patience() * 4),
        &mut |line: &str| {
            match indexed(line, places.len()) {
                Some(("gone", index, _)) => {
                    if let Some(Some((_, gone))) = answers.get_mut(index) {
                        *gone = true;
                    }
                }
                _ => {
                    let (index, seen) = job_line(host, line, places.len())?;
                    let gone = seen.standing == Standing::Absent;
                    if let Some(slot) = answers.get_mut(index) {
                        *slot = Some((seen, gone));
                    }
                }
            }
            Ok(())
        },
    )?;
    all_answered(host, answers)
}

fn all_answered<T>(host: &str, answers: Vec<Option<T>>) -> Result<Vec<T>, Failure> {
    answers
        .into_iter()
        .collect::<Option<_>>()
        .ok_or_else(|| garbage(host, b"an answer for one of the jobs is missing"))
}
