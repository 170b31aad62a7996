//! The script that searches the output of jobs for a line.

use std::time::Duration;

use super::answer::{Listener, Stream, answer_timeout, run_script, unexpected};
use super::observation::{Observation, indexed, job_line};
use super::script::{Script, file};
use crate::connection::Shell;
use crate::error::{Failure, Kind};
use crate::escape::printable;

/// Maximum length of a line that a host sends, in bytes; see search.sh.
const LINE_MAX: usize = 1 << 20;

/// A job whose output is to be searched.
pub struct Search {
    /// See [`crate::job::Record::job_dir`].
    pub place: String,
    /// The positions in both streams up to which they were searched before.
    pub at: [u64; 2],
}

/// A line that matches.
#[derive(Clone, Debug)]
pub struct FoundLine {
    pub stream: Stream,
    /// Without its newline.
    pub line: Vec<u8>,
}

/// The result of searching one job's output.
pub enum SearchResult {
    /// No line yet; the positions in both streams up to which they were searched.
    Open([u64; 2]),
    /// The job's state, and the line. Without a line, the output was searched to its end, or can't be searched.
    Over(Observation, Option<FoundLine>),
}

struct SearchListener<'a> {
    host: &'a str,
    seen: Vec<Option<Observation>>,
    open: Vec<Option<[u64; 2]>>,
    /// The job whose line follows as data, and that line.
    found: Option<(usize, FoundLine)>,
    refused: Option<String>,
}

impl Listener for SearchListener<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        let malformed = || unexpected(self.host, line.as_bytes());
        if let Some(why) = line.strip_prefix("bad ") {
            self.refused = Some(printable(why, 300));
            return Ok(());
        }
        match indexed(line, self.seen.len()) {
            Some(("found", index, word)) => {
                let stream = match word {
                    "out" => Stream::Out,
                    "err" => Stream::Err,
                    _ => return Err(malformed()),
                };
                self.found = Some((
                    index,
                    FoundLine {
                        stream,
                        line: vec![],
                    },
                ));
            }
            Some(("at", index, words)) => {
                let at = words
                    .split_once(' ')
                    .and_then(|(out, err)| Some([out.parse().ok()?, err.parse().ok()?]));
                self.open[index] = Some(at.ok_or_else(malformed)?);
            }
            _ => {
                let (index, seen) = job_line(self.host, line, self.seen.len())?;
                self.seen[index] = Some(seen);
            }
        }
        Ok(())
    }

    fn data(&mut self, _: Stream, bytes: &[u8]) -> Result<(), Failure> {
        match &mut self.found {
            Some((_, found)) if found.line.len() + bytes.len() <= LINE_MAX => {
                found.line.extend_from_slice(bytes);
                Ok(())
            }
            _ => Err(unexpected(self.host, b"more than a line")),
        }
    }
}

/// Searches the output of jobs for a line that matches an extended regular expression, until one is found or for `time`
/// at most. Returns the result for each job.
pub fn search(
    host: &str,
    shell: &mut dyn Shell,
    jobs: &[Search],
    regex: &str,
    time: Duration,
) -> Result<Vec<SearchResult>, Failure> {
    let script = Script::search(jobs, regex, time)?;
    let mut searching = SearchListener {
        host,
        seen: vec![None; jobs.len()],
        open: vec![None; jobs.len()],
        found: None,
        refused: None,
    };
    run_script(
        host,
        shell,
        &script,
        Some(answer_timeout() * 4 + time * 2),
        &mut searching,
    )?;
    if let Some(why) = searching.refused {
        let message = format!("{host}: the regular expression can't be used there: {why}");
        return Err(Failure::new(Kind::Failed, message));
    }
    // A line ends in a newline, unless it is cut short. It is empty if the part of the log that held it was removed in
    // the meantime.
    let found = searching.found.take_if(|(_, found)| !found.line.is_empty());
    let (index, found) = found.unzip();
    let mut found = found.map(|mut found| {
        found.line.pop_if(|byte| *byte == b'\n');
        found
    });
    let missing = || unexpected(host, b"nothing about the job");
    let answers = searching.seen.into_iter().zip(searching.open);
    answers
        .enumerate()
        .map(|(job, answer)| match answer {
            (Some(seen), _) if index == Some(job) => Ok(SearchResult::Over(seen, found.take())),
            (_, Some(at)) => Ok(SearchResult::Open(at)),
            (Some(seen), None) => Ok(SearchResult::Over(seen, None)),
            (None, None) => Err(missing()),
        })
        .collect()
}

impl Script {
    /// Searches the output of jobs.
    fn search(jobs: &[Search], regex: &str, time: Duration) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.set("regex", regex)?;
        script.include(file!("stream"));
        script.include(file!("search"));
        for (
            index,
            Search {
                place,
                at: [out, err],
            },
        ) in jobs.iter().enumerate()
        {
            let (index, out, err) = (index.to_string(), out.to_string(), err.to_string());
            script.call("search", &[&index, place, &out, &err])?;
        }
        script.call("find_line", &[&time.as_millis().to_string()])?;
        Ok(script)
    }
}
