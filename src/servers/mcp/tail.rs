//! `ssh_tail`: the lines of a job's output, numbered, and waiting for new ones.
//!
//! A line is one once it has its end, or the job has. One of more than [`LINE`] bytes counts as several, so that output
//! without line ends can be read too.

use std::cell::Cell;
use std::time::Instant;

use rmcp::schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answer::Problem;
use super::order::{Line, Order, Place, Places};
use super::{Call, Length, Tool};
use crate::cmd::tail::{Request, tail};
use crate::error::{Failure, Kind};
use crate::job::Record;
use crate::remote::Stream as Log;
use crate::remote::output::From as Start;
use crate::servers::one::{ask_one, job};

/// The longest line, in bytes.
const LINE: usize = 16 << 10;
/// How much text an answer holds at most, unless its first line alone is longer.
const ANSWER: usize = 512 << 10;
/// The most lines that can be asked for at once.
const MOST: u64 = 5000;

pub struct Tail;

#[derive(Clone, Copy, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(crate = "rmcp::schemars", inline)]
enum Streams {
    #[default]
    Both,
    Stdout,
    Stderr,
}

impl Streams {
    fn logs(self) -> &'static [Log] {
        match self {
            Self::Both => &[Log::Out, Log::Err],
            Self::Stdout => &[Log::Out],
            Self::Stderr => &[Log::Err],
        }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "rmcp::schemars")]
pub struct Params {
    /// The job: its id, its name, the unique beginning of its id, or HOST/ID
    job_id: String,
    /// Give the lines behind this one; pass last_line_no of the answer before on
    #[serde(default)]
    since_line_no: u64,
    /// Where there is no such line yet, wait so many milliseconds for one, 30000 at most
    #[serde(default)]
    wait_ms: u64,
    /// How many lines to give at most
    #[serde(default = "max_lines")]
    max_lines: u64,
    /// Which of the job's streams
    #[serde(default)]
    stream: Streams,
}

fn max_lines() -> u64 {
    200
}

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars", inline)]
struct Numbered {
    line_no: u64,
    /// stdout or stderr
    stream: &'static str,
    /// Without its line end
    text: String,
}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
pub struct Answer {
    job_id: Option<String>,
    host: Option<String>,
    lines: Vec<Numbered>,
    /// What to pass as since_line_no the next time
    last_line_no: u64,
    /// Whether the job still ran when its output was read
    still_running: Option<bool>,
    /// The job's exit status if it has ended: 128+n when signal n ended it
    exit_status: Option<u8>,
}

impl Tool for Tail {
    type Params = Params;
    type Answer = Answer;
    const NAME: &'static str = "ssh_tail";
    const TITLE: &'static str = "Read a job's output";
    const DESCRIPTION: &'static str = "Read the output of a job line by line, also long after it has ended. To follow a \
        job, call it again and again with since_line_no set to the last_line_no before and wait_ms of up to 30000: it \
        returns as soon as there is a new line, the job has ended, or the time is up. When an answer has max_lines lines, \
        or is long, there may be more: call again. Lines of both streams are numbered in the order in which they were \
        first read, and keep their numbers.";
    const READ_ONLY: bool = true;
    const IDEMPOTENT: bool = true;

    fn length(params: &Params) -> Length {
        if params.wait_ms > 0 {
            Length::Long
        } else {
            Length::Short
        }
    }

    fn call(call: &mut Call, params: Params, answer: &mut Answer) -> Result<(), Problem> {
        let until = Instant::now() + super::wait(params.wait_ms);
        answer.job_id = Some(params.job_id.clone());
        answer.last_line_no = params.since_line_no;
        let (mut record, word) = job(&call.context, &params.job_id)?;
        answer.host = Some(record.host().to_string());
        if record.is_unmet() {
            // With a record, its lines can be numbered.
            record = ask_one(&mut call.context, &word)?.record;
            call.context.store.adopt([&record]);
        }
        let order = Order::parse(&call.context.store.lines(&record.id)?);
        // A number that no line has yet can only be a mistake: what comes is shown.
        let since = params.since_line_no.min(order.total());
        let most = params.max_lines.clamp(1, MOST);
        let mut reader = Reader {
            call,
            word: &word,
            logs: params.stream.logs(),
            start: order.place(since),
        };
        let (mut record, mut lines) = reader.read(since, most)?;
        let is_new = |lines: &[Line]| {
            lines
                .iter()
                .any(|line| order.number(line).is_none_or(|number| number > since))
        };
        if !is_new(&lines) && !record.state.is_finished() && until > Instant::now() {
            reader.await_more(&lines, until)?;
            (record, lines) = reader.read(since, most)?;
        }
        let mut order = order;
        call.context.store.change_lines(&record.id, |kept| {
            order = Order::parse(kept);
            order.learn(&lines);
            order.to_string()
        });
        answer.tell(&record, numbered(&order, lines, since, most));
        answer.last_line_no = answer.lines.last().map_or(since, |line| line.line_no);
        Ok(())
    }
}

impl Answer {
    fn tell(&mut self, record: &Record, lines: Vec<Numbered>) {
        self.job_id = Some(record.id.to_string());
        self.still_running = Some(!record.state.is_finished());
        self.exit_status = record.exit_status;
        self.lines = lines;
    }
}

/// Those of the lines that are asked for.
fn numbered(order: &Order, lines: Vec<Line>, since: u64, most: u64) -> Vec<Numbered> {
    let with_number = |line: Line| {
        let line_no = order.number(&line)?;
        let stream = if line.stream == Log::Out {
            "stdout"
        } else {
            "stderr"
        };
        Some(Numbered {
            line_no,
            stream,
            text: line.text,
        })
    };
    let mut lines: Vec<Numbered> = lines
        .into_iter()
        .filter_map(with_number)
        .filter(|line| line.line_no > since)
        .collect();
    lines.sort_by_key(|line| line.line_no);
    let mut size = 0;
    let mut fits = |line: &Numbered| {
        size += line.text.len();
        size <= ANSWER || size == line.text.len()
    };
    let room = lines.iter().take_while(|line| fits(line)).count();
    lines.truncate(room.min(usize::try_from(most).unwrap_or(usize::MAX)));
    lines
}

/// Reads a job's logs from a place on.
struct Reader<'a> {
    call: &'a mut Call,
    word: &'a std::ffi::OsStr,
    logs: &'static [Log],
    start: Places,
}

impl Reader<'_> {
    /// What is there, and how the job stood before it was read. Of each log so many lines as it may take to give `most`
    /// behind number `since`, whichever stream those are of.
    fn read(&mut self, since: u64, most: u64) -> Result<(Record, Vec<Line>), Problem> {
        let known = since.saturating_sub(self.start.out.lines + self.start.err.lines);
        let mut first: Option<Record> = None;
        let mut lines = Vec::new();
        for log in self.logs {
            let mut splitter = Splitter::new(*log, self.start.of(*log), known + most);
            let record = match self.pass(
                &[*log],
                self.start,
                false,
                &mut splitter,
                &|_: &Splitter| false,
            ) {
                // A job that was to be forgotten once it is read may be by now.
                Err(failure) if failure.kind == Kind::NotFound && first.is_some() => break,
                record => record?,
            };
            if record.state.is_finished()
                && first.as_ref().is_none_or(|first| first.state.is_finished())
            {
                splitter.conclude();
            }
            first.get_or_insert(record);
            lines.append(&mut splitter.lines);
        }
        first
            .map(|record| (record, lines))
            .ok_or_else(|| Problem::unexpected("no stream was asked for"))
    }

    /// Waits until there is a line behind those, the job has ended, the time is up, or nobody waits for it any more.
    fn await_more(&mut self, lines: &[Line], until: Instant) -> Result<(), Problem> {
        let mut from = self.start;
        for line in lines {
            let place = from.of_mut(line.stream);
            *place = Place {
                lines: line.index,
                bytes: place.bytes + line.bytes,
            };
        }
        let gone = self.call.gone.clone();
        // Whose lines they are does not matter here.
        let mut splitter = Splitter::new(Log::Out, Place::default(), 1);
        let over = |_: &Splitter| Instant::now() >= until || gone.is_so();
        Ok(self
            .pass(self.logs, from, true, &mut splitter, &over)
            .map(drop)?)
    }

    fn pass(
        &mut self,
        logs: &[Log],
        from: Places,
        follow: bool,
        splitter: &mut Splitter,
        over: &dyn Fn(&Splitter) -> bool,
    ) -> Result<Record, Failure> {
        let splitter = std::cell::RefCell::new(splitter);
        let full = Cell::new(false);
        let enough = || full.get() || over(&splitter.borrow());
        let request = Request {
            out: logs.contains(&Log::Out),
            err: logs.contains(&Log::Err),
            from: Start::Behind {
                out: from.out.bytes,
                err: from.err.bytes,
            },
            follow,
            brief: true,
            enough: Some(&enough),
        };
        let sink = &mut |_: Log, bytes: &[u8]| -> Result<(), Failure> {
            let mut splitter = splitter.borrow_mut();
            splitter.take(bytes);
            full.set(splitter.is_full());
            Ok(())
        };
        Ok(tail(&mut self.call.context, self.word, &request, sink)?)
    }
}

/// Cuts bytes into lines, so many at most.
struct Splitter {
    stream: Log,
    index: u64,
    most: u64,
    held: Vec<u8>,
    lines: Vec<Line>,
}

impl Splitter {
    fn new(stream: Log, place: Place, most: u64) -> Self {
        Self {
            stream,
            index: place.lines,
            most,
            held: Vec::new(),
            lines: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.lines.len() as u64 >= self.most
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !self.is_full() {
            let room = LINE.saturating_sub(self.held.len());
            let (part, ends) = match memchr::memchr(b'\n', bytes) {
                Some(at) if at < room => (at + 1, true),
                _ => (bytes.len().min(room), bytes.len() >= room),
            };
            self.held
                .extend_from_slice(bytes.get(..part).unwrap_or_default());
            bytes = bytes.get(part..).unwrap_or_default();
            if !ends {
                return;
            }
            self.end_line();
        }
    }

    /// No more will come: what is held is a line too.
    fn conclude(&mut self) {
        if !self.held.is_empty() && !self.is_full() {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        self.index += 1;
        let bytes = std::mem::take(&mut self.held);
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let text = String::from_utf8_lossy(text).into_owned();
        self.lines.push(Line {
            stream: self.stream,
            index: self.index,
            bytes: bytes.len() as u64,
            text,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]], most: u64) -> (Vec<(u64, u64, String)>, bool) {
        let mut splitter = Splitter::new(Log::Out, Place { lines: 7, bytes: 0 }, most);
        pieces.iter().for_each(|piece| splitter.take(piece));
        let full = splitter.is_full();
        splitter.conclude();
        (
            splitter
                .lines
                .into_iter()
                .map(|line| (line.index, line.bytes, line.text))
                .collect(),
            full,
        )
    }

    #[test]
    fn lines_are_cut_wherever_the_pieces_end() {
        let expected = vec![
            (8, 3, "ab".to_owned()),
            (9, 1, String::new()),
            (10, 1, "c".to_owned()),
        ];
        assert_eq!(split(&[b"ab\n\nc"], 9), (expected.clone(), false));
        assert_eq!(
            split(&[b"a", b"b", b"\n", b"\n", b"c"], 9),
            (expected.clone(), false)
        );
        assert_eq!(
            split(&[b"ab\n\nc\n"], 2),
            (expected.get(..2).unwrap().to_vec(), true)
        );
    }

    #[test]
    fn a_line_without_end_is_several() {
        let long = vec![b'x'; LINE * 2 + 1];
        let sizes: Vec<u64> = split(&[&long], 9)
            .0
            .into_iter()
            .map(|(_, bytes, _)| bytes)
            .collect();
        assert_eq!(sizes, [LINE as u64, LINE as u64, 1]);
        // Of exactly so many bytes with its end, it is one.
        let mut exact = vec![b'x'; LINE - 1];
        exact.extend_from_slice(b"\ny\n");
        assert_eq!(split(&[&exact], 9).0.len(), 2);
    }
}
