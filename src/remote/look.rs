//! The scripts that report the states of jobs, and that remove the files of finished ones.

use super::answer::{answer_timeout, run_script, unexpected};
use super::observation::{Observation, ObservedState, indexed, job_line};
use super::script::{Script, file, flag};
use crate::connection::Shell;
use crate::error::Failure;
use crate::escape::printable;

/// Gets the states of jobs, all in one script. `places`: see [`crate::job::Record::job_dir`].
pub fn see(
    host: &str,
    shell: &mut dyn Shell,
    places: &[&str],
) -> Result<Vec<Observation>, Failure> {
    of_each(
        host,
        shell,
        &Script::see(places)?,
        places.len(),
        |seen, line| {
            let (index, job) = job_line(host, line, places.len())?;
            put(seen, index, job);
            Ok(())
        },
    )
}

/// What became of a job's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They are removed, or there were none.
    Gone,
    /// They still exist, entirely or in part, for this reason.
    Kept(String),
    /// Not removed: the job has not ended, or its state can't be determined on this host.
    Refused(Observation),
}

/// Removes the files of finished jobs.
pub fn forget(host: &str, shell: &mut dyn Shell, places: &[&str]) -> Result<Vec<Removal>, Failure> {
    let jobs = places.len();
    of_each(
        host,
        shell,
        &Script::forget(places)?,
        jobs,
        |removals, line| {
            let (index, removal) = match indexed(line, jobs) {
                Some(("gone", index, _)) => (index, Removal::Gone),
                Some(("kept", index, why)) => (index, Removal::Kept(printable(why, 300))),
                _ => job_line(host, line, jobs)
                    .map(|(index, seen)| (index, Removal::Refused(seen)))?,
            };
            put(removals, index, removal);
            Ok(())
        },
    )
}

/// A set of a job's output streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamSelection {
    pub out: bool,
    pub err: bool,
}

/// Removes the files of finished jobs whose output has been read; `read` says which streams were read just now. Returns
/// the state of each job, and whether its files are gone.
pub fn forget_read(
    host: &str,
    shell: &mut dyn Shell,
    places: &[&str],
    read: StreamSelection,
) -> Result<Vec<(Observation, bool)>, Failure> {
    let (script, jobs) = (Script::forget_read(places, read)?, places.len());
    of_each(
        host,
        shell,
        &script,
        jobs,
        |answers: &mut [Option<(Observation, bool)>], line| {
            if let Some(("gone", index, _)) = indexed(line, jobs) {
                if let Some(Some((_, gone))) = answers.get_mut(index) {
                    *gone = true;
                }
                return Ok(());
            }
            let (index, seen) = job_line(host, line, jobs)?;
            let gone = seen.observed == ObservedState::Absent;
            put(answers, index, (seen, gone));
            Ok(())
        },
    )
}

/// Runs a script that gives an answer for each of `jobs` jobs.
pub(super) fn of_each<T>(
    host: &str,
    shell: &mut dyn Shell,
    script: &Script,
    jobs: usize,
    mut on_line: impl FnMut(&mut [Option<T>], &str) -> Result<(), Failure>,
) -> Result<Vec<T>, Failure> {
    let mut answers: Vec<Option<T>> = (0..jobs).map(|_| None).collect();
    let listener = &mut |line: &str| on_line(&mut answers, line);
    run_script(host, shell, script, Some(answer_timeout() * 4), listener)?;
    all(host, answers)
}

/// The answers for all jobs; fails if one is missing.
pub(super) fn all<T>(host: &str, answers: Vec<Option<T>>) -> Result<Vec<T>, Failure> {
    answers
        .into_iter()
        .collect::<Option<_>>()
        .ok_or_else(|| unexpected(host, b"an answer for one of the jobs is missing"))
}

pub(super) fn put<T>(answers: &mut [Option<T>], index: usize, answer: T) {
    if let Some(slot) = answers.get_mut(index) {
        *slot = Some(answer);
    }
}

impl Script {
    /// Reports the states of jobs.
    pub(super) fn see(places: &[&str]) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("see"));
        script.call_each("see", places)?;
        Ok(script)
    }

    /// Removes the files of finished jobs.
    pub(super) fn forget(places: &[&str]) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("forget"));
        script.call_each("forget", places)?;
        Ok(script)
    }

    /// Removes the files of finished jobs whose output has been read.
    pub(super) fn forget_read(places: &[&str], read: StreamSelection) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("forget"));
        for (index, place) in places.iter().enumerate() {
            script.call(
                "forget_read",
                &[&index.to_string(), place, flag(read.out), flag(read.err)],
            )?;
        }
        Ok(script)
    }
}
