//! The script that stays with a job in the foreground: its output as it comes, its input, and its heartbeats, all over one
//! shell.

use std::time::Duration;

use super::answer::{Ending, Hearing, LOOK, Listener, PING, QUIT, Stream, garbage};
use super::output::stream_position;
use super::script::{Form, Script, file};
use super::seen::job_line;
use crate::connection::Shell;
use crate::error::{Failure, Kind};
use crate::job::{EndedBy, Epoch, Record, State, now};

/// How long the last line may wait for other threads.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// How far the two streams have been passed on, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    pub out: u64,
    pub err: u64,
}

/// How a job ended, as its stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub state: State,
    pub exit_status: Option<u8>,
    /// By the host's clock.
    pub finished_at: Option<Epoch>,
    pub ended_by: Option<EndedBy>,
    /// Why some of its output is missing, if it is.
    pub loss: Option<Loss>,
}

/// Why some of a job's output is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The host's disk was full.
    DiskFull,
    /// A dd(1) that writes it there was killed. What it had just read is lost, if it had read anything.
    WriterKilled,
}

impl End {
    /// Takes it into the job's record.
    pub fn update(&self, record: &mut Record) {
        record.state = self.state;
        record.exit_status = self.exit_status;
        record.finished_at = self.finished_at;
        record.ended_by = self.ended_by;
        record.timed_out = self.ended_by == Some(EndedBy::Timeout);
        record.checked_at = Some(now());
    }
}

/// Who has the job in the foreground.
pub trait Runner {
    /// The script takes lines from now on.
    fn begun(&mut self) {}

    /// Takes output.
    fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure>;

    /// Where a stream begins that is given in part.
    fn at(&mut self, _stream: Stream, _position: u64) {}

    /// The host has `total` bytes of the input, and room for so many more.
    fn have(&mut self, _total: u64, _room: u64) {}

    /// The job's time limit or its tether could not end it.
    fn unkept(&mut self) {}

    /// Says a line that asks the script for a sign of life.
    fn ping(&mut self, line: &[u8]);

    /// Whether the stream is to go on over another connection.
    fn wants_pause(&self) -> bool;

    /// Says the last line to the script, unless another thread is saying something for as long as `patience`. Returns
    /// whether it was said.
    fn finish(&mut self, line: &str, patience: Duration) -> bool;

    /// Whether the host may forget the job, which has ended, and all of whose output was taken.
    fn forgets(&mut self, end: &End) -> bool;
}

/// A line of what a client says to the script: all before these positions is delivered.
pub fn ack(positions: Positions) -> Vec<u8> {
    format!("ack {} {}\n", positions.out, positions.err).into_bytes()
}

/// The next bytes of the input.
pub fn input(bytes: &[u8]) -> Vec<u8> {
    [format!("in {}\n", bytes.len()).as_bytes(), bytes].concat()
}

/// The input ends after `total` bytes.
pub fn end_of_input(total: u64) -> Vec<u8> {
    format!("eof {total}\n").into_bytes()
}

/// Asks how much input is there, and how much more may come.
pub const ROOM: &[u8] = b"room\n";

struct Streaming<'a> {
    host: &'a str,
    runner: &'a mut dyn Runner,
    pausing: bool,
    wanted: bool,
}

impl Listener for Streaming<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        job_line(self.host, line, 1).map(drop)
    }

    fn begun(&mut self) {
        // Not before: a script that found no job would leave what is said to it to its shell, as commands.
        self.runner.begun();
    }

    fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        self.runner.data(stream, bytes)
    }

    fn have(&mut self, words: &str) -> Result<(), Failure> {
        let numbers = words
            .split_once(' ')
            .and_then(|(total, room)| Some((total.parse().ok()?, room.parse::<i64>().ok()?)));
        let (total, room) = numbers.ok_or_else(|| garbage(self.host, words.as_bytes()))?;
        self.runner.have(total, u64::try_from(room).unwrap_or(0));
        Ok(())
    }

    fn unkept(&mut self) {
        self.runner.unkept();
    }

    fn at(&mut self, words: &str) -> Result<(), Failure> {
        let (stream, at) =
            stream_position(words).ok_or_else(|| garbage(self.host, words.as_bytes()))?;
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

    fn wanted(&mut self) {
        self.wanted = true;
    }

    fn pace(&self) -> Option<Duration> {
        Some(LOOK)
    }

    fn farewell(&mut self, ending: &Ending) -> Option<&'static str> {
        if !self.pausing {
            let forgets = match ending {
                Ending::Ended(words) => end(words).is_some_and(|end| self.runner.forgets(&end)),
                _ => false,
            };
            let line = if forgets { "forget\n" } else { QUIT };
            // A shell to which it was not said is not used again.
            self.runner.finish(line, FAREWELL_MAX);
        }
        None
    }
}

/// Passes a job's output on from `positions` to its end. `None` where the runner wanted a pause.
///
/// [`Kind::Unreachable`] when the connection broke: to be gone on with by another call.
pub fn stream(
    host: &str,
    shell: &mut dyn Shell,
    place: &str,
    positions: Positions,
    runner: &mut dyn Runner,
) -> Result<Option<End>, Failure> {
    let script = Script::stream(place, positions.out, positions.err)?;
    let mut hearing = Hearing::begin(host, shell, &script)?;
    go_on(host, shell, &mut hearing, runner)
}

/// The same for a job that has just been started, by the script that did that.
pub fn go_on(
    host: &str,
    shell: &mut dyn Shell,
    hearing: &mut Hearing,
    runner: &mut dyn Runner,
) -> Result<Option<End>, Failure> {
    let mut streaming = Streaming {
        host,
        runner,
        pausing: false,
        wanted: false,
    };
    match hearing.go_on(host, shell, None, &mut streaming)? {
        Ending::Ended(words) => end(&words)
            .map(Some)
            .ok_or_else(|| garbage(host, words.as_bytes())),
        Ending::Paused => Ok(None),
        Ending::Whole | Ending::Cut => Err(Failure::new(
            Kind::Failed,
            format!("{host}: the job's directory is not there any more"),
        )),
    }
}

/// `STATE CODE EPOCH`, and ` full` or ` torn` where output is missing.
fn end(words: &str) -> Option<End> {
    let words: Vec<&str> = words.split(' ').collect();
    let (state, code, at, loss) = match words.as_slice() {
        [state, code, at] => (state, code, at, None),
        [state, code, at, "full"] => (state, code, at, Some(Loss::DiskFull)),
        [state, code, at, "torn"] => (state, code, at, Some(Loss::WriterKilled)),
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
    Some(End {
        state,
        exit_status: code.parse().ok(),
        finished_at: at.parse().ok(),
        ended_by,
        loss,
    })
}

impl Script {
    /// Passes a spooled job's output on.
    pub(super) fn stream(place: &str, out_at: u64, err_at: u64) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.form = Form::Stream;
        script.set("place", place)?;
        script.include(file!("stream"));
        script.call("run_along", &[&out_at.to_string(), &err_at.to_string()])?;
        Ok(script)
    }
}
