//! The scripts around a job that runs in the foreground: its output as it comes, its input, and its tether.

use std::time::Duration;

use super::answer::{Ending, Hearing, Listener, Stream, garbage, hear, patience};
use super::script::Script;
use super::seen::{Seen, job_line};
use crate::connection::Shell;
use crate::error::{Failure, Kind};
use crate::job::{Epoch, State};

/// How many bytes are delivered before the host is told that it can delete them.
const ACKNOWLEDGED: u64 = 8 << 20;

/// How far the two streams have been passed on, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Standard output.
    pub out: u64,
    /// Standard error.
    pub err: u64,
}

/// How a job ended, as its stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Exited, or lost.
    pub state: State,
    /// Its exit status.
    pub exit_status: Option<u8>,
    /// When, by the host's clock.
    pub finished_at: Option<Epoch>,
    /// It ran into its time limit, and was ended for that.
    pub timed_out: bool,
    /// The host's disk was full: some of the output is lost.
    pub disk_full: bool,
}

/// What takes the output.
pub type Sink<'a> = dyn FnMut(Stream, &[u8]) -> Result<(), Failure> + 'a;

struct Streaming<'a> {
    host: &'a str,
    sink: &'a mut Sink<'a>,
    positions: &'a mut Positions,
    acknowledged: u64,
    seen: Option<Seen>,
}

impl Listener for Streaming<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.seen = Some(job_line(self.host, line, 1)?.1);
        Ok(())
    }

    fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        (self.sink)(stream, bytes)?;
        match stream {
            Stream::Out => self.positions.out += bytes.len() as u64,
            Stream::Err => self.positions.err += bytes.len() as u64,
        }
        Ok(())
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        let Positions { out, err } = *self.positions;
        if out + err < self.acknowledged + ACKNOWLEDGED {
            return None;
        }
        self.acknowledged = out + err;
        Some(format!("{out} {err}\n").into_bytes())
    }
}

/// Passes a spooled job's output on from `positions` on, until it ends. The positions move with what the sink has taken.
pub fn stream(
    host: &str,
    shell: &mut dyn Shell,
    place: &str,
    positions: &mut Positions,
    sink: &mut Sink<'_>,
) -> Result<End, Failure> {
    let script = Script::stream(place, positions.out, positions.err)?;
    let mut hearing = Hearing::begin(host, shell, &script, true)?;
    go_on(host, shell, &mut hearing, positions, sink)
}

/// The same for a job that has just been started, by the script that did that.
pub fn go_on(
    host: &str,
    shell: &mut dyn Shell,
    hearing: &mut Hearing,
    positions: &mut Positions,
    sink: &mut Sink<'_>,
) -> Result<End, Failure> {
    let acknowledged = positions.out + positions.err;
    let mut pass = |stream: Stream, bytes: &[u8]| sink(stream, bytes);
    let mut streaming = Streaming {
        host,
        sink: &mut pass,
        positions,
        acknowledged,
        seen: None,
    };
    match hearing.go_on(host, shell, None, &mut streaming)? {
        Ending::Ended(words) => end(&words).ok_or_else(|| garbage(host, words.as_bytes())),
        Ending::Whole | Ending::Cut => Err(Failure::new(
            Kind::Failed,
            format!("{host}: the job's directory is not there any more"),
        )),
    }
}

/// `STATE CODE EPOCH`, and ` full` where the disk was.
fn end(words: &str) -> Option<End> {
    let words: Vec<&str> = words.split(' ').collect();
    let (state, code, at, disk_full) = match words.as_slice() {
        [state, code, at] => (state, code, at, false),
        [state, code, at, "full"] => (state, code, at, true),
        _ => return None,
    };
    let timed_out = *state == "expired";
    let state = match *state {
        "exited" | "expired" => State::Exited,
        "lost" => State::Lost,
        _ => State::Unknown,
    };
    Some(End {
        state,
        exit_status: code.parse().ok(),
        finished_at: at.parse().ok(),
        timed_out,
        disk_full,
    })
}

/// What is written into a job's input.
pub trait Source {
    /// The host has so many bytes: these need not be sent again.
    fn has(&mut self, total: u64);

    /// The next bytes to send, if there are any soon.
    fn next(&mut self) -> Option<Vec<u8>>;

    /// Whether nothing more is to be sent.
    fn is_done(&self) -> bool;
}

struct Receiving<'a> {
    host: &'a str,
    source: &'a mut dyn Source,
    begun: bool,
}

impl Listener for Receiving<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        let total = line
            .strip_prefix("have ")
            .and_then(|total| total.parse().ok());
        self.source
            .has(total.ok_or_else(|| garbage(self.host, line.as_bytes()))?);
        self.begun = true;
        Ok(())
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        // What is sent before the script is ready would be taken by the shell.
        if self.begun { self.source.next() } else { None }
    }

    fn is_done(&self) -> bool {
        self.source.is_done()
    }

    fn pace(&self) -> Option<Duration> {
        // The source waits, for a moment, instead.
        self.begun.then_some(Duration::ZERO)
    }
}

/// Sends a job's input, for as long as there is any.
pub fn receive(
    host: &str,
    shell: &mut dyn Shell,
    place: &str,
    source: &mut dyn Source,
) -> Result<(), Failure> {
    let script = Script::receive(place)?;
    let mut receiving = Receiving {
        host,
        source,
        begun: false,
    };
    hear(host, shell, &script, None, false, &mut receiving).map(drop)
}

/// Keeps a job's tether by a shell that somebody else sends beats to. `held` hears when that has begun.
pub fn hold(
    host: &str,
    shell: &mut dyn Shell,
    place: &str,
    held: &mut dyn FnMut(),
) -> Result<(), Failure> {
    let mut line = |_: &str| {
        held();
        Ok(())
    };
    hear(host, shell, &Script::beat(place)?, None, false, &mut line).map(drop)
}

/// Says that a job's input is whole with so many bytes, once all of them are there.
pub fn finish(host: &str, shell: &mut dyn Shell, place: &str, total: u64) -> Result<u64, Failure> {
    let script = Script::finish(place, total)?;
    let mut have = 0;
    hear(
        host,
        shell,
        &script,
        Some(patience() * 2),
        false,
        &mut |line: &str| {
            let total = line
                .strip_prefix("have ")
                .and_then(|total| total.parse().ok());
            have = total.ok_or_else(|| garbage(host, line.as_bytes()))?;
            Ok(())
        },
    )?;
    Ok(have)
}
