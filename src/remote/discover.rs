//! The scripts that ask a host about jobs that this machine has no record of. The host's files are authoritative.

use serde::{Deserialize, Serialize};

use super::ObservedState;
use super::answer::{answer_timeout, run_script, unexpected};
use super::observation::{Observation, indexed, job_line};
use super::script::{Script, file};
use crate::connection::Shell;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::job::{Epoch, JobId, JobName, Record, State};

/// Maximum length of a job's description, in bytes; discover.sh skips files that are much longer.
const DESCRIPTION_MAX: usize = 15_000;

/// A job's description in its directory on the host, for clients that have no record of the job: one line of JSON in
/// plain ASCII.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub struct JobMetadata {
    id: String,
    name: Option<String>,
    command: Vec<String>,
    cwd: Option<String>,
    created_at: Epoch,
    #[serde(default)]
    ephemeral: bool,
}

impl JobMetadata {
    pub fn of(record: &Record) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.name.as_ref().map(|name| name.as_str().to_owned()),
            command: record.command.clone(),
            cwd: record.cwd.clone(),
            created_at: record.created_at,
            ephemeral: record.ephemeral,
        }
    }

    /// The line to write. The command and the directory are shortened if it would be too long.
    pub fn line(mut self) -> serde_json::Result<String> {
        let mut room = DESCRIPTION_MAX;
        loop {
            self.cut(room);
            let line = ascii(&serde_json::to_string(&self)?);
            if line.len() <= DESCRIPTION_MAX || room == 0 {
                return Ok(line);
            }
            room /= 2;
        }
    }

    /// Shortens the command to about `room` words, and each text to about `room` bytes.
    fn cut(&mut self, room: usize) {
        const MARK: &str = "…";
        // Many words make the line as long as one long word.
        if self.command.len() > room + 1 {
            self.command.truncate(room);
            self.command.push(MARK.to_owned());
        }
        for word in self
            .command
            .iter_mut()
            .chain(&mut self.cwd)
            .filter(|word| word.len() > room + MARK.len())
        {
            let whole = (0..=room).rev().find(|at| word.is_char_boundary(*at));
            word.truncate(whole.unwrap_or_default());
            word.push_str(MARK);
        }
    }
}

/// Escapes all characters of JSON that are not plain ASCII; they occur only in its strings.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if (' '..='~').contains(&character) {
            text.push(character);
        } else {
            let units = character
                .encode_utf16(&mut [0; 2])
                .iter()
                .map(|unit| format!("\\u{unit:04x}"))
                .collect::<String>();
            text.push_str(&units);
        }
    }
    text
}

/// The answer of a host about a job that this machine has no record of.
#[derive(Debug)]
pub struct DiscoveredJob {
    pub id: JobId,
    pub seen: Observation,
    meta: Option<JobMetadata>,
    dir: String,
}

impl DiscoveredJob {
    /// Updates the job's record with the answer.
    pub fn fill_in(self, record: &mut Record) {
        // A description with another id is ignored.
        if let Some(meta) = self.meta.filter(|meta| meta.id == record.id.as_str()) {
            record.name = meta.name.and_then(|name| name.parse::<JobName>().ok());
            record.command = meta.command;
            record.cwd = meta.cwd;
            record.created_at = meta.created_at;
            record.ephemeral = meta.ephemeral;
        } else if let Some(started_at) = self.seen.started_at {
            record.created_at = started_at;
        }
        if self.seen.observed == ObservedState::Elsewhere && self.seen.pid.is_some() {
            // The best that is known here.
            record.state = State::Running;
        }
        record.dir = Some(self.dir);
        self.seen.update(record);
    }
}

/// Asks a host about some jobs. `jobs_dir` is the directory of all jobs, if not the default in the home directory.
pub fn find(
    host: &str,
    shell: &mut dyn Shell,
    ids: &[JobId],
    jobs_dir: Option<&str>,
) -> Result<Vec<DiscoveredJob>, Failure> {
    let found = ask(
        host,
        shell,
        &Script::find_jobs(ids, jobs_dir)?,
        ids.to_vec(),
    )?;
    if found.len() == ids.len() {
        Ok(found)
    } else {
        Err(unexpected(
            host,
            b"an answer for one of the jobs is missing",
        ))
    }
}

/// Asks a host for all jobs of this user.
pub fn discover(
    host: &str,
    shell: &mut dyn Shell,
    jobs_dir: Option<&str>,
) -> Result<Vec<DiscoveredJob>, Failure> {
    ask(host, shell, &Script::discover(jobs_dir)?, Vec::new())
}

/// Reads a script's answers about the jobs with these ids, and about those that the script finds itself.
fn ask(
    host: &str,
    shell: &mut dyn Shell,
    script: &Script,
    mut ids: Vec<JobId>,
) -> Result<Vec<DiscoveredJob>, Failure> {
    let mut base = String::new();
    let mut meta = None;
    let mut found: Vec<DiscoveredJob> = Vec::new();
    let mut foreign = None;
    run_script(
        host,
        shell,
        script,
        Some(answer_timeout() * 4),
        &mut |line: &str| {
            let malformed = || unexpected(host, line.as_bytes());
            if let Some(path) = line.strip_prefix("base ") {
                path.clone_into(&mut base);
                return Ok(());
            }
            if let Some(path) = line.strip_prefix("foreign ") {
                foreign = Some(printable(path, 300));
                return Ok(());
            }
            // The jobs are reported one after the other.
            match indexed(line, found.len() + 1).filter(|(_, index, _)| *index == found.len()) {
                Some(("found", index, id)) if index == ids.len() => {
                    ids.push(id.parse().map_err(|_| malformed())?);
                }
                // An unreadable description is ignored.
                Some(("meta", _, text)) => meta = serde_json::from_str(text).ok(),
                Some(("job", index, _)) => {
                    let (_, seen) = job_line(host, line, index + 1)?;
                    let id = ids.get(index).cloned().ok_or_else(malformed)?;
                    found.push(DiscoveredJob {
                        dir: format!("{base}/{id}"),
                        id,
                        seen,
                        meta: meta.take(),
                    });
                }
                _ => return Err(malformed()),
            }
            Ok(())
        },
    )?;
    match foreign {
        None => Ok(found),
        Some(path) => {
            let message = format!(
                "{host}: {path} is writable by other users there, so nothing in it is trusted"
            );
            Err(Failure::new(Kind::Failed, message))
        }
    }
}

impl Script {
    /// Reports everything that the host knows about some jobs.
    pub(super) fn find_jobs(ids: &[JobId], jobs_dir: Option<&str>) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.set_base(jobs_dir)?;
        script.include(file!("discover"));
        script.call_each(
            "find_job",
            &ids.iter().map(JobId::as_str).collect::<Vec<_>>(),
        )?;
        Ok(script)
    }

    /// Reports all jobs.
    pub(super) fn discover(jobs_dir: Option<&str>) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.set_base(jobs_dir)?;
        script.include(file!("discover"));
        script.call("discover", &[])?;
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(command: &[&str]) -> (JobMetadata, String) {
        let destination = crate::host::Destination {
            host: "h".parse().unwrap(),
            connect: crate::host::Connect::default(),
        };
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let record = Record::new(
            JobId::random().unwrap(),
            "n".parse().ok(),
            destination,
            command,
        );
        let line = JobMetadata::of(&record).line().unwrap();
        (JobMetadata::of(&record), line)
    }

    #[test]
    fn a_description_is_plain_ascii_and_says_the_same() {
        let (meta, line) = described(&["a b", "ümläut ☃ 🦀", "\u{7f}\n\t\"\\", ""]);
        assert!(
            line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{line}"
        );
        assert_eq!(serde_json::from_str::<JobMetadata>(&line).unwrap(), meta);
    }

    #[test]
    fn a_description_is_never_long() {
        let long = "☃".repeat(100_000);
        for words in [
            vec!["x"; 100_000],
            vec![long.as_str()],
            vec![long.as_str(); 40],
            vec![""; 50_000],
        ] {
            let (_, line) = described(&words);
            assert!(line.len() <= DESCRIPTION_MAX, "{} bytes", line.len());
            let meta: JobMetadata = serde_json::from_str(&line).unwrap();
            assert!(meta.command.iter().any(|word| word.ends_with('…')));
        }
    }
}
