//! `ssh_tail`: reads the last lines of a job's output, or the lines after a cursor, and optionally waits for new ones.
//!
//! A line is complete once its newline is written or the job has ended. A line longer than [`LINE_MAX`] is split, so
//! that output without newlines can be read too.

use std::cell::RefCell;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rmcp::schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answer::{JobAnswer, Problem};
use super::{Tool, ToolCall, wait};
use crate::cmd::pattern::Pattern;
use crate::cmd::tail::{Request, Tailed, tail};
use crate::error::Failure;
use crate::job::{JobWord, Record};
use crate::remote::Stream;
use crate::remote::output::{StartPosition as Start, position};
use crate::servers::operations::await_line;

/// Maximum length of a line, in bytes; longer lines are split.
const LINE_MAX: usize = 16 << 10;
/// Maximum output read per stream and call, in bytes.
const STREAM_MAX: usize = 32 << 10;
/// Maximum number of lines per call.
const LINES_MAX: usize = 5000;

#[derive(Clone, Copy, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(crate = "rmcp::schemars", inline)]
enum Streams {
    #[default]
    Both,
    Stdout,
    Stderr,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct Tail {
    /// The job: its id, its name, a unique prefix of its id, or HOST/ID
    job_id: String,
    /// Give the lines after this position: the cursor of the previous answer, or "start" for the beginning of the output.
    /// Without it, the last lines are given
    cursor: Option<String>,
    /// If there is no such line yet, wait up to this many milliseconds for one, 30000 at most
    #[serde(default)]
    wait_ms: u64,
    /// Wait up to wait_ms until a line of the output matches this extended regular expression, then read. The output is
    /// searched from its beginning
    wait_for: Option<String>,
    /// Return at most this many lines
    #[serde(default = "max_lines")]
    max_lines: usize,
    /// Which of the job's streams
    #[serde(default)]
    stream: Streams,
}

fn max_lines() -> usize {
    200
}

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars", inline)]
struct OutputLine {
    /// stdout or stderr
    stream: &'static str,
    /// Without its newline
    text: String,
}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    #[serde(flatten)]
    job: JobAnswer,
    /// The lines of standard output, then those of standard error
    lines: Vec<OutputLine>,
    /// What to pass as cursor next time to get the lines after these
    cursor: Option<String>,
    /// How many bytes of output before these lines were left out, or were removed by log_max
    omitted_bytes: u64,
    /// The line that matches wait_for, wherever in the output it is; null if there is none yet
    matched: Option<String>,
    /// Whether there are more lines after these: call again with the cursor
    more: bool,
    /// Whether the job was running when its output was read
    still_running: Option<bool>,
    /// The job's exit status if it has ended: 128+n when signal n ended it
    exit_status: Option<u8>,
}

impl Tool for Tail {
    type Answer = Answer;
    const NAME: &'static str = "ssh_tail";
    const TITLE: &'static str = "Read a job's output";
    const DESCRIPTION: &'static str = "Read the output of a job line by line, even long after it has ended. Without a \
        cursor, the last lines are given, and omitted_bytes says how much comes before them. To follow a job, pass the \
        cursor of each answer to the next call, with wait_ms of up to 30000: it returns as soon as there is a new line, \
        the job has ended, or the time is up. With wait_for, it waits for a line that matches, such as what a server prints when it is \
        ready. If more is true, call again at once. To read all of a long output, begin \
        with the cursor \"start\".";
    const READ_ONLY: bool = true;

    fn is_long(&self) -> bool {
        self.wait_ms > 0
    }

    fn call(self, call: &mut ToolCall<'_>, answer: &mut Answer) -> Result<(), Problem> {
        let mut until = Instant::now() + wait(self.wait_ms);
        let (record, word) = answer.job.find(call.context, &self.job_id)?;
        let id = record.id.as_str();
        let cursor = match self.cursor.as_deref() {
            None => None,
            Some("start") => Some([0, 0]),
            Some(cursor) => Some(parse_cursor(id, cursor).ok_or_else(|| {
                Failure::usage("cursor: not from an answer of ssh_tail about this job")
            })?),
        };
        answer.cursor = self.cursor;
        if let Some(pattern) = &self.wait_for {
            let pattern = Pattern::parse(pattern)
                .map_err(|error| Failure::usage(format!("wait_for: {error}")))?;
            let found = await_line(call.context, &word, &pattern, until, call.gone)?;
            answer.matched = found.map(|found| shown(&found.line));
            until = Instant::now();
        }
        let mut reader = Reader {
            call,
            word: &word,
            streams: self.stream,
            texts: Default::default(),
        };
        let record = reader.read(cursor, until)?;
        let ended = record.state.is_finished();
        answer.still_running = Some(!ended);
        answer.exit_status = record.exit_status;
        let mut texts = reader.texts;
        // Each stream gets half of the lines, plus what the other stream does not use of its half.
        let max = self.max_lines.clamp(1, LINES_MAX);
        let [out, err] = texts.each_ref().map(|text| text.lines(ended).len());
        let maxima = [max - err.min(max / 2), max - out.min(max - max / 2)];
        let mut next = [0, 0];
        for (index, stream) in ["stdout", "stderr"].into_iter().enumerate() {
            let (text, max) = (&mut texts[index], maxima[index]);
            if cursor.is_none() {
                text.skip_lines([out, err][index].saturating_sub(max), ended);
                answer.omitted_bytes += text.begin;
            } else {
                answer.omitted_bytes += text.gone;
            }
            let lines = text.lines(ended);
            answer.more |= text.cut || lines.len() > max;
            next[index] = text.begin;
            for line in lines.into_iter().take(max) {
                next[index] += line.len() as u64;
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                let text = String::from_utf8_lossy(line).into_owned();
                answer.lines.push(OutputLine { stream, text });
            }
        }
        answer.cursor = Some(cursor_text(id, next));
        Ok(())
    }
}

/// A line, truncated to `LINE_MAX` bytes.
fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line.get(..LINE_MAX).unwrap_or(line)).into_owned()
}

fn cursor_text(job: &str, [out, err]: [u64; 2]) -> String {
    URL_SAFE_NO_PAD.encode(format!("{job} {out} {err}"))
}

fn parse_cursor(job: &str, text: &str) -> Option<[u64; 2]> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let positions = text.strip_prefix(job)?.strip_prefix(' ')?;
    let (out, err) = positions.split_once(' ')?;
    Some([position(out)?, position(err)?])
}

struct Reader<'a, 'b> {
    call: &'a mut ToolCall<'b>,
    word: &'a JobWord,
    streams: Streams,
    /// Standard output and standard error.
    texts: [Text; 2],
}

impl Reader<'_, '_> {
    /// Reads until there is a line, the job has ended, the deadline has passed or the client is gone.
    fn read(&mut self, cursor: Option<[u64; 2]>, until: Instant) -> Result<Record, Failure> {
        let mut start = Start::LastBytes(STREAM_MAX as u64);
        if let Some(cursor) = cursor {
            self.begin(cursor);
            start = self.end();
        }
        loop {
            let Tailed { record, begin, .. } = self.pass(self.streams, start, None)?;
            if let Start::LastBytes(_) = start {
                self.begin(begin);
                self.texts.iter_mut().for_each(Text::skip_partial_line);
            } else if self.texts[0].cut && self.streams == Streams::Both {
                // Standard error follows standard output, so it was cut off too.
                self.texts[1].bytes.clear();
                self.pass(Streams::Stderr, self.end(), None)?;
            }
            let is_over = || Instant::now() >= until || self.call.gone.is_cancelled();
            if self.has_line() || record.state.is_finished() || is_over() {
                return Ok(record);
            }
            self.pass(self.streams, self.end(), Some(until))?;
            if self.has_line() || Instant::now() >= until {
                return Ok(record);
            }
            start = self.end();
        }
    }

    /// Reads the present output; with `until`, follows the output until there is a line.
    fn pass(
        &mut self,
        streams: Streams,
        from: Start,
        until: Option<Instant>,
    ) -> Result<Tailed, Failure> {
        let texts = RefCell::new(&mut self.texts);
        let enough = || {
            let is_full = |text: &Text| text.cut || until.is_some() && text.has_line();
            let is_over = |until| Instant::now() >= until || self.call.gone.is_cancelled();
            texts.borrow().iter().any(is_full) || until.is_some_and(is_over)
        };
        let request = Request {
            out: streams != Streams::Stderr,
            err: streams != Streams::Stdout,
            from,
            follow: until.is_some(),
            brief: true,
            enough: Some(&enough),
            gone: &|gone| {
                let index = usize::from(gone.stream == Stream::Err);
                texts.borrow_mut()[index].jump(gone.position, gone.bytes);
            },
        };
        tail(
            self.call.context,
            self.word,
            &request,
            &mut |stream, bytes| {
                texts.borrow_mut()[usize::from(stream == Stream::Err)].take(bytes);
                Ok(())
            },
        )
    }

    fn begin(&mut self, begin: [u64; 2]) {
        for (text, begin) in self.texts.iter_mut().zip(begin) {
            text.begin = begin;
        }
    }

    fn end(&self) -> Start {
        let [out, err] = self.texts.each_ref().map(Text::end);
        Start::Behind { out, err }
    }

    fn has_line(&self) -> bool {
        self.texts.iter().any(Text::has_line)
    }
}

/// The part of a stream that was read.
#[derive(Default)]
struct Text {
    /// The position of the first byte in the stream.
    begin: u64,
    bytes: Vec<u8>,
    /// The stream has more output than fits.
    cut: bool,
    /// The following output comes after a gap, so it is left for the next call.
    closed: bool,
    /// Number of bytes before the first one that are gone.
    gone: u64,
}

impl Text {
    fn take(&mut self, bytes: &[u8]) {
        if self.closed {
            return;
        }
        let room = STREAM_MAX.saturating_sub(self.bytes.len());
        self.cut |= bytes.len() > room;
        self.bytes.extend(bytes.iter().take(room));
    }

    /// Continues at `position`, after `gone` bytes that are gone. The end of an incomplete line is lost, so the line is
    /// dropped.
    fn jump(&mut self, position: u64, gone: u64) {
        if self.cut || self.has_line() {
            (self.cut, self.closed) = (true, true);
            return;
        }
        self.gone += gone + self.bytes.len() as u64;
        self.bytes.clear();
        self.begin = position;
    }

    fn end(&self) -> u64 {
        self.begin + self.bytes.len() as u64
    }

    fn has_line(&self) -> bool {
        !self.lines(false).is_empty()
    }

    /// The complete lines, with their newlines.
    fn lines(&self, ended: bool) -> Vec<&[u8]> {
        let parts = self.bytes.split_inclusive(|byte| *byte == b'\n');
        let mut lines: Vec<_> = parts.flat_map(|line| line.chunks(LINE_MAX)).collect();
        let is_partial = |line: &mut &[u8]| line.len() < LINE_MAX && !line.ends_with(b"\n");
        if !ended || self.cut {
            lines.pop_if(is_partial);
        }
        lines
    }

    fn skip_lines(&mut self, count: usize, ended: bool) {
        let lines = self.lines(ended);
        let size = lines.iter().take(count).map(|line| line.len()).sum();
        self.skip(size);
    }

    /// Skips the rest of a line that began before the text.
    fn skip_partial_line(&mut self) {
        let end = self.bytes.iter().position(|byte| *byte == b'\n');
        if self.begin > 0 {
            self.skip(end.map_or(0, |end| end + 1));
        }
    }

    fn skip(&mut self, size: usize) {
        self.begin += size as u64;
        self.bytes.drain(..size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_end_is_several() {
        let mut text = Text::default();
        text.take(&vec![b'x'; LINE_MAX + 1]);
        assert_eq!(text.lines(false), [&vec![b'x'; LINE_MAX][..]]);
        assert_eq!(text.lines(true).last(), Some(&&b"x"[..]));
        text.take(b"\n\nhalf");
        assert_eq!(text.lines(false)[1..], [&b"x\n"[..], b"\n"]);
        text.skip_lines(1, false);
        assert_eq!((text.begin, text.lines(true).len()), (LINE_MAX as u64, 3));
        text.take(&vec![b'y'; STREAM_MAX]);
        assert!(text.cut && text.bytes.len() == STREAM_MAX);
    }

    #[test]
    fn a_cursor_is_of_one_job() {
        let job = "abcdefgh";
        let text = cursor_text(job, [7, 1 << 53]);
        assert_eq!(parse_cursor(job, &text), Some([7, 1 << 53]));
        assert_eq!(parse_cursor("abcdefgj", &text), None);
        for bad in ["", "12", "é", &text[1..], &text[..text.len() - 3]] {
            assert_eq!(parse_cursor(job, bad), None, "{bad}");
        }
        // Positions are summed, so large ones are rejected.
        for positions in [[(1 << 53) + 1, 0], [0, u64::MAX]] {
            let text = cursor_text(job, positions);
            assert_eq!(parse_cursor(job, &text), None, "{positions:?}");
        }
    }
}
