//! The script that transfers a job's output.

use std::time::Duration;

use super::answer::{AnswerEnd, CANCEL_POLL, Listener, PING, QUIT, Stream, run_script, unexpected};
use super::observation::{JobNote, Observation, ObservedState, job_line};
use super::script::{Form, Script, file};
use crate::connection::Shell;
use crate::error::Failure;

/// Where in a log to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartPosition {
    /// At the last N lines.
    LastLines(u64),
    /// At this line, counted from 1.
    Line(u64),
    /// At the last N bytes.
    LastBytes(u64),
    /// At this byte, counted from 1.
    Byte(u64),
    /// After this many bytes of each stream, which exist.
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

impl StartPosition {
    /// The values of `from` and `count` in tail.sh.
    pub fn words(self) -> (&'static str, u64) {
        match self {
            Self::LastLines(count) => ("lines", count),
            Self::Line(number) => ("line", number.max(1)),
            Self::LastBytes(count) => ("bytes", count),
            Self::Byte(number) => ("byte", number.max(1)),
            Self::Behind { .. } => ("resume", 0),
        }
    }

    /// The positions of [`StartPosition::Behind`], in any files.
    fn positions(self) -> Option<FilePositions> {
        match self {
            Self::Behind { out, err } => Some(FilePositions {
                out,
                err,
                inodes: [0, 0],
            }),
            _ => None,
        }
    }
}

/// Maximum position in a stream: within the arithmetic of every shell, and far enough below the maximum of a u64 for
/// sums.
const POSITION_MAX: u64 = 1 << 53;

/// Parses a position in a stream, or a number of bytes or lines.
pub fn position(word: &str) -> Option<u64> {
    word.parse().ok().filter(|number| *number <= POSITION_MAX)
}

/// Parses `out POSITION` or `err POSITION`.
pub(super) fn stream_position(words: &str) -> Option<(Stream, u64)> {
    let (stream, number) = words.split_once(' ')?;
    let stream = match stream {
        "out" => Stream::Out,
        "err" => Stream::Err,
        _ => return None,
    };
    Some((stream, position(number)?))
}

/// What to read.
pub struct ReadRequest<'a> {
    /// The job's place: see [`super::signal::JobPlan::job_dir`].
    pub place: &'a str,
    /// Read standard output.
    pub out: bool,
    /// Read standard error.
    pub err: bool,
    /// Where to start, in each stream.
    pub from: StartPosition,
    /// Follow the output until the job ends.
    pub follow: bool,
    /// Pause at once, without data, if there are more bytes than this.
    pub most: Option<u64>,
    /// Pause once it returns true: the read continues over another connection.
    pub pause: Option<&'a (dyn Fn() -> bool + 'a)>,
    /// Stop once it returns true.
    pub enough: Option<&'a (dyn Fn() -> bool + 'a)>,
    /// Called for output that a ring no longer has.
    pub gone: &'a dyn Fn(&MissingOutput<'_>),
}

/// A job's log with `--log-max`: only the newest part is kept.
#[derive(Clone, Debug)]
pub struct Ring {
    /// The limit, as the user wrote it.
    pub max: String,
    /// The positions of the oldest bytes of both streams when the read began.
    #[cfg_attr(
        not(feature = "serve"),
        allow(dead_code, reason = "an answer's head has them")
    )]
    pub oldest: [u64; 2],
    /// Some output was never stored, because the host's disk was full.
    pub has_lost: bool,
}

impl Ring {
    /// Parses `MAX OUT ERR LOST`.
    fn parse(words: &str) -> Option<Self> {
        let words: Vec<&str> = words.split(' ').collect();
        let &[max, out, err, lost] = words.as_slice() else {
            return None;
        };
        let is_size = max.len() < 20 && max.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Some(Self {
            max: is_size.then(|| max.to_owned())?,
            oldest: [position(out)?, position(err)?],
            has_lost: lost == "1",
        })
    }
}

/// Output that was requested and that a ring no longer has.
#[derive(Clone, Copy)]
pub struct MissingOutput<'a> {
    /// See [`crate::job::Record::label`]; empty if no record is known.
    pub label: &'a str,
    #[cfg_attr(
        not(feature = "mcp"),
        allow(dead_code, reason = "cursors are made of them")
    )]
    pub stream: Stream,
    pub bytes: u64,
    /// The position at which the stream continues.
    #[cfg_attr(
        not(feature = "mcp"),
        allow(dead_code, reason = "cursors are made of them")
    )]
    pub position: u64,
    /// See [`Ring::max`].
    pub max: &'a str,
}

impl ReadRequest<'_> {
    /// Whether to stop reading.
    pub fn is_enough(&self) -> bool {
        self.enough.is_some_and(|enough| enough())
    }
}

/// How much of a stream to skip before its first requested byte, which had not been written yet when the script
/// started.
#[derive(Clone, Copy, Debug, Default)]
struct Skip {
    lines: u64,
    bytes: u64,
}

impl Skip {
    /// The rest of `bytes` after the skipped part.
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

/// The result of reading a log.
#[derive(Clone, Debug)]
pub struct ReadResult {
    /// The job's state when the read began.
    pub seen: Observation,
    /// There is more to read: see [`ReadRequest::pause`] and [`ReadRequest::most`].
    pub paused: bool,
    /// The log was truncated or replaced, so output after that is unknown.
    pub truncated: bool,
    /// The positions in both streams of the first requested bytes, or of the first bytes that a ring still had.
    pub begin: [u64; 2],
    pub ring: Option<Ring>,
}

/// Receives a job's output: the stream, and the bytes.
pub type Sink<'a> = dyn FnMut(Stream, &[u8]) -> Result<(), Failure> + 'a;

/// The positions in both streams, and the inodes of the files that they belong to.
#[derive(Clone, Copy, Debug, Default)]
pub struct FilePositions {
    pub(super) out: u64,
    pub(super) err: u64,
    pub(super) inodes: [u64; 2],
}

/// How far a log has been read, so that a later call can continue there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// `None` until the host has said where the output begins.
    at: Option<FilePositions>,
    out: Skip,
    err: Skip,
    /// The positions in both streams at which the output began.
    begin: [u64; 2],
}

struct OutputListener<'a> {
    host: &'a str,
    sink: &'a mut Sink<'a>,
    seen: Option<Observation>,
    ring: Option<Ring>,
    progress: &'a mut Progress,
    wanted: &'a ReadRequest<'a>,
    pausing: bool,
    shell_wanted: bool,
}

impl Listener for OutputListener<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        if let Some(fields) = line.strip_prefix("from ") {
            let words: Vec<&str> = fields.split(' ').collect();
            let (places, inodes) = words.split_at(words.len().min(6));
            let places: Option<Vec<u64>> = places.iter().map(|word| position(word)).collect();
            let inodes: Option<Vec<u64>> = inodes.iter().map(|word| word.parse().ok()).collect();
            let (
                Some(&[out, out_lines, out_bytes, err, err_lines, err_bytes]),
                Some(&[out_inode, err_inode]),
            ) = (places.as_deref(), inodes.as_deref())
            else {
                return Err(unexpected(self.host, line.as_bytes()));
            };
            if self.progress.at.is_none() {
                self.progress.begin = [out, err];
                self.progress.at = Some(FilePositions {
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
        } else if let Some(words) = line.strip_prefix("ring ") {
            let ring = Ring::parse(words).ok_or_else(|| unexpected(self.host, line.as_bytes()))?;
            self.ring = Some(ring);
        } else {
            self.seen = Some(job_line(self.host, line, 1)?.1);
        }
        Ok(())
    }

    fn at(&mut self, words: &str) -> Result<(), Failure> {
        let (stream, number) =
            stream_position(words).ok_or_else(|| unexpected(self.host, words.as_bytes()))?;
        let index = usize::from(stream == Stream::Err);
        let at = self.progress.at.get_or_insert_default();
        let (skip, position) = match stream {
            Stream::Out => (&mut self.progress.out, &mut at.out),
            Stream::Err => (&mut self.progress.err, &mut at.err),
        };
        if let Some(bytes) = number.checked_sub(*position).filter(|bytes| *bytes > 0) {
            skip.bytes = skip.bytes.saturating_sub(bytes);
            *position = number;
            self.progress.begin[index] = number;
            (self.wanted.gone)(&MissingOutput {
                label: "",
                stream,
                bytes,
                position: number,
                max: self.ring.as_ref().map_or("", |ring| &ring.max),
            });
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
        self.wanted
            .enough
            .or(self.wanted.pause)
            .map(|_| CANCEL_POLL)
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

    fn on_shell_wanted(&mut self) {
        self.shell_wanted = true;
    }

    fn last_line(&mut self, ending: &AnswerEnd) -> Option<&'static str> {
        // If there is no job, the script has ended by itself.
        let follows = self.wanted.follow && *ending != AnswerEnd::Whole;
        (follows && !self.pausing).then_some(QUIT)
    }
}

/// Reads a job's output, and continues an earlier call if `progress` is that of one.
pub fn read(
    host: &str,
    shell: &mut dyn Shell,
    wanted: &ReadRequest,
    progress: &mut Progress,
    sink: &mut Sink<'_>,
) -> Result<ReadResult, Failure> {
    let script = Script::tail(wanted, progress.at.or(wanted.from.positions()).as_ref())?;
    // The sink is reborrowed, since an `OutputListener` needs one lifetime for all of its references.
    let mut pass = |stream: Stream, bytes: &[u8]| sink(stream, bytes);
    let mut reading = OutputListener {
        host,
        sink: &mut pass,
        seen: None,
        ring: None,
        progress,
        wanted,
        pausing: false,
        shell_wanted: false,
    };
    let ending = run_script(host, shell, &script, None, &mut reading)?;
    let seen = reading
        .seen
        .ok_or_else(|| unexpected(host, b"nothing about the job"))?;
    let has_log = !matches!(
        seen.observed,
        ObservedState::Absent | ObservedState::Untrusted | ObservedState::DirMissing
    ) && seen.note != Some(JobNote::NoDirectory);
    if has_log && reading.progress.at.is_none() {
        return Err(unexpected(host, b"nothing about the job's output"));
    }
    Ok(ReadResult {
        seen,
        paused: ending == AnswerEnd::Paused,
        truncated: ending == AnswerEnd::Cut,
        begin: reading.progress.begin,
        ring: reading.ring,
    })
}

impl Script {
    /// Transfers a job's output.
    pub(super) fn tail(
        wanted: &ReadRequest,
        resume: Option<&FilePositions>,
    ) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.add_tail(wanted, resume)?;
        Ok(script)
    }

    /// Adds this as the last part of a script about jobs.
    pub(super) fn add_tail(
        &mut self,
        wanted: &ReadRequest,
        resume: Option<&FilePositions>,
    ) -> Result<(), Failure> {
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
        self.set(
            "most",
            wanted.most.map(|most| most.to_string()).unwrap_or_default(),
        )?;
        self.set("follow", if wanted.follow { "1" } else { "0" })?;
        if wanted.follow {
            self.form = Form::Stream;
        }
        self.include(file!("stream"));
        self.include(file!("tail"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_within_the_arithmetic_of_shells() {
        let wanted = ReadRequest {
            place: "p",
            out: true,
            err: true,
            from: StartPosition::Byte(1),
            follow: false,
            most: None,
            pause: None,
            enough: None,
            gone: &|_| (),
        };
        let last = POSITION_MAX;
        let beyond = POSITION_MAX + 1;
        for (line, good) in [
            ("from 5 0 0 0 0 0 1 1".to_owned(), true),
            (format!("from {last} {last} 0 0 0 0 1 {}", u64::MAX), true),
            (format!("from {beyond} 0 0 0 0 0 1 1"), false),
            (format!("from 0 0 0 {} 0 0 1 1", u64::MAX), false),
            (format!("from 0 0 {beyond} 0 0 0 1 1"), false),
            ("from 5 0 0 0 0 0 1".to_owned(), false),
            ("from 5 0 0 0 0 0 1 1 1".to_owned(), false),
            ("from".to_owned(), false),
            (format!("ring 16M {last} 0 0"), true),
            (format!("ring 16M 0 {beyond} 0"), false),
            (format!("at out {last}"), true),
            (format!("at err {beyond}"), false),
        ] {
            let mut progress = Progress::default();
            let mut reading = OutputListener {
                host: "h",
                sink: &mut |_, _| Ok(()),
                seen: None,
                ring: None,
                progress: &mut progress,
                wanted: &wanted,
                pausing: false,
                shell_wanted: false,
            };
            let read = match line.strip_prefix("at ") {
                Some(words) => reading.at(words),
                None => reading.line(&line),
            };
            assert_eq!(read.is_ok(), good, "{line}");
            reading.data(Stream::Out, b"ab").unwrap();
        }
    }
}
