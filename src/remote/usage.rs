//! The script that reports the states of jobs and measures what they use.

use super::look::{of_each, put};
use super::observation::{Observation, indexed, job_line, optional};
use super::script::{Script, file};
use crate::connection::Shell;
use crate::error::Failure;

/// The interval between the two samples that CPU use is computed from, in seconds.
const SAMPLE_INTERVAL: &str = "0.5";

/// What all processes of a job use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub cpu_percent: Option<f64>,
    pub cpu_seconds: f64,
    pub rss_bytes: Option<u64>,
    pub processes: u32,
}

impl Usage {
    /// Parses the fields after `use INDEX`.
    fn parse(fields: &str) -> Option<Self> {
        let words: Vec<&str> = fields.split(' ').collect();
        let &[spent, resident, processes, tenths] = words.as_slice() else {
            return None;
        };
        Some(Self {
            cpu_percent: optional::<u32>(tenths)?.map(|tenths| f64::from(tenths) / 10.0),
            cpu_seconds: seconds(spent.parse().ok()?),
            rss_bytes: optional(resident)?,
            processes: processes.parse().ok()?,
        })
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "exact for the first 285,000 years"
)]
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// Gets the states of jobs and what they use, all in one script. `places`: see [`crate::job::Record::job_dir`].
pub fn measure(
    host: &str,
    shell: &mut dyn Shell,
    places: &[&str],
) -> Result<Vec<(Observation, Option<Usage>)>, Failure> {
    let (script, jobs) = (Script::measure(places)?, places.len());
    of_each(host, shell, &script, jobs, |answers, line| {
        take_line(host, line, answers)
    })
}

/// Processes a line of the script.
pub(super) fn take_line(
    host: &str,
    line: &str,
    answers: &mut [Option<(Observation, Option<Usage>)>],
) -> Result<(), Failure> {
    let used = indexed(line, answers.len()).filter(|(word, ..)| *word == "use");
    if let Some((_, index, fields)) = used
        && let Some(Some((_, usage))) = answers.get_mut(index)
        && let Some(used) = Usage::parse(fields)
    {
        *usage = Some(used);
        return Ok(());
    }
    let (index, seen) = job_line(host, line, answers.len())?;
    put(answers, index, (seen, None));
    Ok(())
}

impl Script {
    /// Reports the states of jobs and what they use.
    pub(super) fn measure(places: &[&str]) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("usage"));
        script.call_each("examine", places)?;
        script.call("usage", &[SAMPLE_INTERVAL])?;
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_strictly() {
        let usage = |cpu_percent, rss_bytes| Usage {
            cpu_percent,
            cpu_seconds: 61.25,
            rss_bytes,
            processes: 3,
        };
        for (fields, expected) in [
            ("61250 4096 3 1255", Some(usage(Some(125.5), Some(4096)))),
            ("61250 - 3 -", Some(usage(None, None))),
            ("", None),
            ("61250 4096 3", None),
            ("61250 4096 3 1255 1", None),
            ("-1 4096 3 1255", None),
            ("- 4096 3 1255", None),
            ("61250 4.5 3 1255", None),
            ("61250 4096 3 nan", None),
            ("61250 4096 - 1", None),
        ] {
            assert_eq!(Usage::parse(fields), expected, "{fields:?}");
        }
        // A job's usage follows its state.
        let mut answers = vec![None, None];
        assert!(take_line("h", "use 0 1 1 1 1", &mut answers).is_err());
        let line = "job 0 running - - - 5 5 1 Linux 7 b m web";
        take_line("h", line, &mut answers).unwrap();
        take_line("h", "use 0 1 1 1 1", &mut answers).unwrap();
        assert!(matches!(&answers[0], Some((_, Some(usage))) if usage.processes == 1));
        assert!(take_line("h", "use 2 1 1 1 1", &mut answers).is_err());
    }
}
