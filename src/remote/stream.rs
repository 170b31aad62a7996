//! The script that runs as long as a job in the foreground: it transfers the job's output, its input and the
//! heartbeats, all over one shell.

use std::time::Duration;

use super::answer::{
    AnswerEnd, AnswerReader, CANCEL_POLL, Listener, PING, QUIT, Stream, unexpected,
};
use super::observation::job_line;
use super::output::stream_position;
use super::script::{Form, Script, file};
use crate::connection::Shell;
use crate::error::{Failure, Kind};
use crate::job::{EndedBy, Epoch, Record, State, now};

/// Maximum time that the last line waits for other threads to finish writing.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// How much of the two streams has been delivered, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    pub out: u64,
    pub err: u64,
}

/// How a job ended, as reported by its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobEnd {
    pub state: State,
    pub exit_status: Option<u8>,
    /// By the host's clock.
    pub finished_at: Option<Epoch>,
    pub ended_by: Option<EndedBy>,
    /// Why some of its output is missing, if it is.
    pub loss: Option<OutputLoss>,
}

/// Why some of a job's output is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputLoss {
    /// The host's disk was full.
    DiskFull,
    /// A dd(1) that stores the output was killed. Anything that it had just read is lost.
    WriterKilled,
}

impl JobEnd {
    /// Records the end in the job's record.
    pub fn update(&self, record: &mut Record) {
        record.state = self.state;
        record.exit_status = self.exit_status;
        record.finished_at = self.finished_at;
        record.ended_by = self.ended_by;
        record.timed_out = self.ended_by == Some(EndedBy::Timeout);
        record.checked_at = Some(now());
    }
}

/// The client that has the job in the foreground.
pub trait Runner {
    /// The script reads lines from its input from now on.
    fn begun(&mut self) {}

    /// Takes output.
    fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure>;

    /// The position at which a stream begins, if only a part of it is transferred.
    fn at(&mut self, _stream: Stream, _position: u64) {}

    /// The host has `total` bytes of the input, and room for `room` more.
    fn have(&mut self, _total: u64, _room: u64) {}

    /// The job's time limit or its tether could not end the job.
    fn unkept(&mut self) {}

    /// Sends the script a line that pings it.
    fn ping(&mut self, line: &[u8]);

    /// Whether the stream is to continue over another connection.
    fn wants_pause(&self) -> bool;

    /// Sends the script the last line. Gives up if another thread is writing for as long as `patience`. Returns whether
    /// the line was sent.
    fn finish(&mut self, line: &str, patience: Duration) -> bool;

    /// Whether the host may remove the files of the job, which has ended and whose output was delivered.
    fn may_forget(&mut self, end: &JobEnd) -> bool;
}

/// The line that tells the script that everything before these positions is delivered.
pub fn ack(positions: Positions) -> Vec<u8> {
    format!("ack {} {}\n", positions.out, positions.err).into_bytes()
}

/// The line, with data, that sends the next bytes of the input.
pub fn input(bytes: &[u8]) -> Vec<u8> {
    [format!("in {}\n", bytes.len()).as_bytes(), bytes].concat()
}

/// The line that ends the input after `total` bytes.
pub fn end_of_input(total: u64) -> Vec<u8> {
    format!("eof {total}\n").into_bytes()
}

/// The line that asks how much of the input the host has, and how much more fits.
pub const ROOM: &[u8] = b"room\n";

struct StreamListener<'a> {
    host: &'a str,
    runner: &'a mut dyn Runner,
    pausing: bool,
    wanted: bool,
}

impl Listener for StreamListener<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        job_line(self.host, line, 1).map(drop)
    }

    fn begun(&mut self) {
        // Not earlier: if the script found no job, lines sent to it would be run by its shell as commands.
        self.runner.begun();
    }

    fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        self.runner.data(stream, bytes)
    }

    fn on_input_received(&mut self, words: &str) -> Result<(), Failure> {
        let numbers = words
            .split_once(' ')
            .and_then(|(total, room)| Some((total.parse().ok()?, room.parse::<i64>().ok()?)));
        let (total, room) = numbers.ok_or_else(|| unexpected(self.host, words.as_bytes()))?;
        self.runner.have(total, u64::try_from(room).unwrap_or(0));
        Ok(())
    }

    fn on_not_ended(&mut self) {
        self.runner.unkept();
    }

    fn at(&mut self, words: &str) -> Result<(), Failure> {
        let (stream, at) =
            stream_position(words).ok_or_else(|| unexpected(self.host, words.as_bytes()))?;
        self.runner.at(stream, at);
        Ok(())
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        if self.pausing || !(self.wanted || self.runner.wants_pause()) {
            return None;
        }
        self.pausing = self.runner.finish(QUIT, Duration::ZERO);
        None
    }

    fn ping(&mut self) -> Option<&'static [u8]> {
        self.runner.ping(PING);
        None
    }

    fn on_shell_wanted(&mut self) {
        self.wanted = true;
    }

    fn pace(&self) -> Option<Duration> {
        Some(CANCEL_POLL)
    }

    fn last_line(&mut self, ending: &AnswerEnd) -> Option<&'static str> {
        if !self.pausing {
            let forgets = match ending {
                AnswerEnd::Ended(words) => {
                    end(words).is_some_and(|end| self.runner.may_forget(&end))
                }
                _ => false,
            };
            let line = if forgets { "forget\n" } else { QUIT };
            // A shell that did not get this line is not used again.
            self.runner.finish(line, FAREWELL_MAX);
        }
        None
    }
}

/// Transfers a job's output from `positions` to its end. Returns `None` if the runner wanted a pause.
///
/// Fails with [`Kind::Unreachable`] if the connection broke; another call can then continue.
pub fn stream(
    host: &str,
    shell: &mut dyn Shell,
    place: &str,
    positions: Positions,
    runner: &mut dyn Runner,
) -> Result<Option<JobEnd>, Failure> {
    let script = Script::stream(place, positions.out, positions.err)?;
    let mut hearing = AnswerReader::begin(host, shell, &script)?;
    follow_started(host, shell, &mut hearing, runner)
}

/// The same for a job that has just been started, in the answer of the script that started it.
pub fn follow_started(
    host: &str,
    shell: &mut dyn Shell,
    hearing: &mut AnswerReader,
    runner: &mut dyn Runner,
) -> Result<Option<JobEnd>, Failure> {
    let mut streaming = StreamListener {
        host,
        runner,
        pausing: false,
        wanted: false,
    };
    match hearing.read_to_end(host, shell, None, &mut streaming)? {
        AnswerEnd::Ended(words) => end(&words)
            .map(Some)
            .ok_or_else(|| unexpected(host, words.as_bytes())),
        AnswerEnd::Paused => Ok(None),
        AnswerEnd::Whole | AnswerEnd::Cut => Err(Failure::new(
            Kind::Failed,
            format!("{host}: the job's directory is not there any more"),
        )),
    }
}

/// Parses `STATE CODE EPOCH`, with ` full` or ` torn` if output is missing.
fn end(words: &str) -> Option<JobEnd> {
    let words: Vec<&str> = words.split(' ').collect();
    let (state, code, at, loss) = match words.as_slice() {
        [state, code, at] => (state, code, at, None),
        [state, code, at, "full"] => (state, code, at, Some(OutputLoss::DiskFull)),
        [state, code, at, "torn"] => (state, code, at, Some(OutputLoss::WriterKilled)),
        _ => return None,
    };
    let ended_by = match *state {
        "expired" => Some(EndedBy::Timeout),
        "untied" => Some(EndedBy::Tether),
        _ => None,
    };
    let state = match *state {
        "exited" | "expired" | "untied" => State::Exited,
        "lost" => State::Lost,
        _ => State::Unknown,
    };
    Some(JobEnd {
        state,
        exit_status: code.parse().ok(),
        finished_at: at.parse().ok(),
        ended_by,
        loss,
    })
}

impl Script {
    /// Transfers a spooled job's output.
    pub(super) fn stream(place: &str, out_at: u64, err_at: u64) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.form = Form::Stream;
        script.set("place", place)?;
        script.include(file!("stream"));
        script.call("run_along", &[&out_at.to_string(), &err_at.to_string()])?;
        Ok(script)
    }
}
