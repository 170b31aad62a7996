//! The script that lists a job's processes.

use super::answer::{answer_timeout, run_script, unexpected};
use super::observation::{Observation, job_line};
use super::script::{Script, file};
use crate::connection::Shell;
use crate::error::Failure;

/// A job's state, and the pids of its process group; none once its first process has ended. `place`: see
/// [`super::signal::JobPlan::job_dir`].
pub fn pids(
    host: &str,
    shell: &mut dyn Shell,
    place: &str,
) -> Result<(Observation, Vec<u32>), Failure> {
    let script = Script::pids(place)?;
    let (mut seen, mut pids) = (None, Vec::new());
    run_script(
        host,
        shell,
        &script,
        Some(answer_timeout() * 2),
        &mut |line: &str| {
            match line.strip_prefix("process ") {
                Some(pid) => pids.push(pid.parse().map_err(|_| unexpected(host, line.as_bytes()))?),
                None => seen = Some(job_line(host, line, 1)?.1),
            }
            Ok(())
        },
    )?;
    let seen = seen.ok_or_else(|| unexpected(host, b"nothing about the job"))?;
    Ok((seen, pids))
}

impl Script {
    /// Lists a job's processes.
    pub(super) fn pids(place: &str) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("pids"));
        script.call_each("pids", &[place])?;
        Ok(script)
    }
}
