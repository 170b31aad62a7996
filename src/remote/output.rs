//! The script that passes a job's output on.

use std::time::Duration;

use super::answer::{Ending, LOOK, Listener, PING, QUIT, Stream, garbage, hear};
use super::script::{Form, Script, file};
use super::seen::{Note, Seen, Standing, job_line};
use crate::connection::Shell;
use crate::error::Failure;

/// Where in a log to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With the last so many lines.
    LastLines(u64),
    /// With this line, counted from 1.
    Line(u64),
    /// With the last so many bytes.
    LastBytes(u64),
    /// With this byte, counted from 1.
    Byte(u64),
    /// Behind so many bytes of each stream, which are there.
    #[cfg_attr(
        not(feature = "mcp"),
        allow(dead_code, reason = "cursors are such places")
    )]
    Behind {
        /// Of standard output.
        out: u64,
        /// Of standard error.
        err: u64,
    },
}

impl From {
    /// The words of the script.
    pub fn words(self) -> (&'static str, u64) {
        match self {
            Self::LastLines(count) => ("lines", count),
            Self::Line(number) => ("line", number.max(1)),
            Self::LastBytes(count) => ("bytes", count),
            Self::Byte(number) => ("byte", number.max(1)),
            Self::Behind { .. } => ("resume", 0),
        }
    }

    /// In whichever files are there.
    fn positions(self) -> Option<At> {
        match self {
            Self::Behind { out, err } => Some(At {
                out,
                err,
                inodes: [0, 0],
            }),
            _ => None,
        }
    }
}

/// What to read.
pub struct Wanted<'a> {
    /// The job: see [`super::signal::JobPlan::job_dir`].
    pub place: &'a str,
    /// Its standard output.
    pub out: bool,
    /// Its standard error.
    pub err: bool,
    /// Where to begin, in each.
    pub from: From,
    /// Go on until the job ends.
    pub follow: bool,
    /// Ends the reading for now once it holds: it goes on over another connection.
    pub pause: Option<&'a (dyn Fn() -> bool + 'a)>,
    /// Ends the reading once it holds.
    pub enough: Option<&'a (dyn Fn() -> bool + 'a)>,
}

impl Wanted<'_> {
    /// Whether no more is wanted.
    pub fn is_enough(&self) -> bool {
        self.enough.is_some_and(|enough| enough())
    }
}

/// What is left out of a stream before its first byte, since it was not written yet when the script looked.
#[derive(Clone, Copy, Debug, Default)]
struct Skip {
    lines: u64,
    bytes: u64,
}

impl Skip {
    /// The rest of `bytes` behind what is left out.
    fn apply<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        if self.bytes > 0 {
            let size = usize::try_from(self.bytes)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            self.bytes -= size as u64;
            bytes = bytes.get(size..).unwrap_or_default();
        }
        while self.lines > 0 {
            match memchr::memchr(b'\n', bytes) {
                Some(at) => bytes = bytes.get(at + 1..).unwrap_or_default(),
                None => return &[],
            }
            self.lines -= 1;
        }
        bytes
    }
}

/// How the reading of a log ended.
#[derive(Clone, Debug)]
pub struct Read {
    /// How the job stood when it began.
    pub seen: Seen,
    /// There is more to read: see [`Wanted::pause`].
    pub paused: bool,
    /// The log was followed and became shorter: what came after is not known.
    pub cut: bool,
    /// The positions in both streams of the first bytes that were wanted.
    pub begin: [u64; 2],
}

/// What takes a job's output: which stream, and the bytes.
pub type Sink<'a> = dyn FnMut(Stream, &[u8]) -> Result<(), Failure> + 'a;

/// The positions in both streams, and in which files they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct At {
    pub(super) out: u64,
    pub(super) err: u64,
    pub(super) inodes: [u64; 2],
}

/// How far a log has been read: from here it can be gone on with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// None before the host has said where it begins.
    at: Option<At>,
    out: Skip,
    err: Skip,
    /// Where it began in both streams.
    begin: [u64; 2],
}

struct Reading<'a> {
    host: &'a str,
    sink: &'a mut Sink<'a>,
    seen: Option<Seen>,
    progress: &'a mut Progress,
    wanted: &'a Wanted<'a>,
    pausing: bool,
    shell_wanted: bool,
}

impl Listener for Reading<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        if let Some(fields) = line.strip_prefix("from ") {
            let numbers: Option<Vec<u64>> =
                fields.split(' ').map(|word| word.parse().ok()).collect();
            let Some(
                &[
                    out,
                    out_lines,
                    out_bytes,
                    err,
                    err_lines,
                    err_bytes,
                    out_inode,
                    err_inode,
                ],
            ) = numbers.as_deref()
            else {
                return Err(garbage(self.host, line.as_bytes()));
            };
            if self.progress.at.is_none() {
                self.progress.begin = [out, err];
                self.progress.at = Some(At {
                    out,
                    err,
                    inodes: [out_inode, err_inode],
                });
                self.progress.out = Skip {
                    lines: out_lines,
                    bytes: out_bytes,
                };
                self.progress.err = Skip {
                    lines: err_lines,
                    bytes: err_bytes,
                };
            }
        } else {
            self.seen = Some(job_line(self.host, line, 1)?.1);
        }
        Ok(())
    }

    fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        let at = self.progress.at.get_or_insert_default();
        let (skip, position) = match stream {
            Stream::Out => (&mut self.progress.out, &mut at.out),
            Stream::Err => (&mut self.progress.err, &mut at.err),
        };
        let wanted = skip.apply(bytes);
        if !wanted.is_empty() {
            (self.sink)(stream, wanted)?;
        }
        *position += bytes.len() as u64;
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.seen.is_some() && self.wanted.is_enough()
    }

    fn pace(&self) -> Option<Duration> {
        self.wanted.enough.or(self.wanted.pause).map(|_| LOOK)
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        let pauses = self
            .wanted
            .pause
            .is_some_and(|pause| self.shell_wanted || pause());
        if self.pausing || !pauses {
            return None;
        }
        self.pausing = true;
        Some(QUIT.as_bytes().to_vec())
    }

    fn ping(&mut self) -> Option<&'static [u8]> {
        (self.wanted.follow && !self.pausing).then_some(PING)
    }

    fn wanted(&mut self) {
        self.shell_wanted = true;
    }

    fn farewell(&mut self, ending: &Ending) -> Option<&'static str> {
        // Where there is no job, no script follows it.
        let follows = self.wanted.follow && *ending != Ending::Whole;
        (follows && !self.pausing).then_some(QUIT)
    }
}

/// Reads a job's output; where `progress` is of an earlier call, what came after that.
pub fn read(
    host: &str,
    shell: &mut dyn Shell,
    wanted: &Wanted,
    progress: &mut Progress,
    sink: &mut Sink<'_>,
) -> Result<Read, Failure> {
    let script = Script::tail(wanted, progress.at.or(wanted.from.positions()).as_ref())?;
    // The sink is borrowed anew, since a Reading needs one lifetime for all of its references.
    let mut pass = |stream: Stream, bytes: &[u8]| sink(stream, bytes);
    let mut reading = Reading {
        host,
        sink: &mut pass,
        seen: None,
        progress,
        wanted,
        pausing: false,
        shell_wanted: false,
    };
    let ending = hear(host, shell, &script, None, &mut reading)?;
    let seen = reading
        .seen
        .ok_or_else(|| garbage(host, b"nothing about the job"))?;
    let has_log = !matches!(
        seen.standing,
        Standing::Absent | Standing::Foreign | Standing::Away
    ) && seen.note != Some(Note::NoDirectory);
    if has_log && reading.progress.at.is_none() {
        return Err(garbage(host, b"nothing about the job's output"));
    }
    Ok(Read {
        seen,
        paused: ending == Ending::Paused,
        cut: ending == Ending::Cut,
        begin: reading.progress.begin,
    })
}

impl Script {
    /// Passes a job's output on.
    pub(super) fn tail(wanted: &Wanted, resume: Option<&At>) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.add_tail(wanted, resume)?;
        Ok(script)
    }

    /// The same as the last part of a script about jobs.
    pub(super) fn add_tail(&mut self, wanted: &Wanted, resume: Option<&At>) -> Result<(), Failure> {
        let streams = match (wanted.out, wanted.err) {
            (true, false) => "out",
            (false, true) => "err",
            _ => "out err",
        };
        let (from, count) = wanted.from.words();
        let from = if resume.is_some() { "resume" } else { from };
        let at = resume.copied().unwrap_or_default();
        self.set("out_from", at.out.to_string())?;
        self.set("err_from", at.err.to_string())?;
        self.set("inodes", format!("{} {}", at.inodes[0], at.inodes[1]))?;
        self.set("place", wanted.place)?;
        self.set("streams", streams)?;
        self.set("from", from)?;
        self.set("count", count.to_string())?;
        self.set("follow", if wanted.follow { "1" } else { "0" })?;
        if wanted.follow {
            self.form = Form::Stream;
        }
        self.include(file!("stream"));
        self.include(file!("tail"));
        Ok(())
    }
}
