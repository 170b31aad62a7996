//! Reads what a script says, inside its frame.
//!
//! What comes from a host is not trusted: every line, the noise before the answer and the time it may take are
//! bounded, and only the nonce of the script marks its beginning and its end.

use std::io;
use std::time::{Duration, Instant};

use memchr::memmem;

use super::no_shell::{NO_FORK, no_shell};
use super::script::{Nonce, Script};
use crate::clock;
use crate::connection::{Chunk, Shell};
use crate::error::{Failure, Kind};
use crate::escape::printable;

/// How much a login may say before the answer begins.
const NOISE_MAX: usize = 1 << 20;
/// For as long as it takes: a wait is begun anew after this time.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// The longest mark.
const MARK_MAX: usize = 64;
/// The longest line of an answer.
const LINE_MAX: usize = 64 << 10;
/// The most that an answer may hold in all; 100,000 jobs fit.
const ANSWER_MAX: usize = 16 << 20;
/// How much of a host's own words a message shows, in characters.
const SHOWN: usize = 300;
/// How long a script may take to be sent, and to begin its answer: a slow login's time.
pub fn patience() -> Duration {
    clock::long(Duration::from_secs(30))
}
/// How long it may say nothing before that.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The buffer that output is read into.
const BUFFER: usize = 256 << 10;

/// How often a reading that may be called off looks whether it was.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// Ends the stream and leaves the shell to others.
pub(super) const QUIT: &str = "quit\n";
/// What asks a script for a sign of life, after how long a silence, and how often before its shell is given up.
pub(super) const PING: &[u8] = b"ping\n";
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PINGS_MAX: u32 = 3;

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the frame: whatever the login says.
    Noise,
    /// Between begin and data or end.
    Lines,
    /// Between data and end.
    Data,
    /// After the end.
    Over,
}

/// Which of a job's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All was said.
    Whole,
    /// A log became shorter while it was followed.
    Cut,
    /// The job ended: how, in the script's words.
    Ended(String),
    /// The client asked for a pause: the job goes on.
    Paused,
}

/// What takes the parts of an answer.
pub trait Listener {
    /// A line, without its end.
    fn line(&mut self, line: &str) -> Result<(), Failure>;

    /// Bytes of a job's output.
    fn data(&mut self, stream: Stream, _bytes: &[u8]) -> Result<(), Failure> {
        Err(Failure::new(
            Kind::Failed,
            format!("unexpected data in an answer ({stream:?})"),
        ))
    }

    /// The script takes lines from now on.
    fn begun(&mut self) {}

    /// The job's time limit or its tether could not end it.
    fn unkept(&mut self) {}

    /// How much of a job's input its host has.
    fn have(&mut self, words: &str) -> Result<(), Failure> {
        Err(Failure::new(
            Kind::Failed,
            format!("unexpected words about input: {}", printable(words, 80)),
        ))
    }

    /// Where in which stream the data goes on.
    fn at(&mut self, _words: &str) -> Result<(), Failure> {
        Ok(())
    }

    /// Another command waits for the shell.
    fn wanted(&mut self) {}

    /// The last line for a script that reads lines.
    fn farewell(&mut self, _ending: &Ending) -> Option<&'static str> {
        None
    }

    /// What to send to the script now, if anything: asked after all that comes, and every [`Listener::pace`].
    fn reply(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// What asks a silent script for a sign of life.
    fn ping(&mut self) -> Option<&'static [u8]> {
        None
    }

    /// Whether enough was heard.
    fn is_done(&self) -> bool {
        false
    }

    /// How long to wait for the script before it is asked for a reply again; else until something comes.
    fn pace(&self) -> Option<Duration> {
        None
    }
}

impl<F: FnMut(&str) -> Result<(), Failure>> Listener for F {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        self(line)
    }
}

/// One stream of the shell, cut into the parts of the frame.
struct Framed {
    phase: Phase,
    /// What introduces each mark: a byte that is rare in text, so that text is not held back for it, and the nonce.
    mark: Vec<u8>,
    /// Bytes that may be the beginning of a mark or of a line.
    held: Vec<u8>,
    noise: usize,
    /// The beginning of the noise, for the error message.
    said: Vec<u8>,
    /// Which of the job's streams the data belongs to.
    stream: Stream,
    /// Somebody else is to go on from here.
    paused: bool,
    ending: Ending,
}

impl Framed {
    fn new(nonce: &Nonce) -> Self {
        let mark = format!("\x01{} ", nonce.as_str()).into_bytes();
        Self {
            phase: Phase::Noise,
            mark,
            held: vec![],
            noise: 0,
            said: vec![],
            stream: Stream::Out,
            paused: false,
            ending: Ending::Whole,
        }
    }

    /// Takes bytes in; passes data and lines on.
    fn feed(
        &mut self,
        host: &str,
        bytes: &[u8],
        listener: &mut dyn Listener,
    ) -> Result<(), Failure> {
        let joined;
        let mut rest = if self.held.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.held).as_slice(), bytes].concat();
            joined.as_slice()
        };
        while self.phase != Phase::Over {
            let Some(at) = memmem::find(rest, &self.mark) else {
                let keep = possible_mark(rest, &self.mark);
                let (sure, unsure) = rest.split_at(rest.len() - keep);
                let used = self.take(host, sure, listener, false)?;
                self.held = [sure.get(used..).unwrap_or_default(), unsure].concat();
                return self.bounded(host);
            };
            let (before, from_mark) = rest.split_at(at);
            let word = from_mark.get(self.mark.len()..).unwrap_or_default();
            let Some(end) = memchr::memchr(b'\n', word.get(..MARK_MAX).unwrap_or(word)) else {
                if word.len() >= MARK_MAX {
                    return Err(garbage(host, word));
                }
                self.held = rest.to_vec();
                return Ok(());
            };
            self.take(host, before, listener, true)?;
            let (word, after) = word.split_at(end);
            self.phase = match (self.phase, word) {
                (Phase::Noise, b"begin") => Phase::Lines,
                (Phase::Noise | Phase::Lines, b"data") => {
                    listener.begun();
                    Phase::Data
                }
                (Phase::Lines | Phase::Data, b"end") => Phase::Over,
                (Phase::Lines, b"next") => {
                    self.paused = true;
                    self.held = after.get(1..).unwrap_or_default().to_vec();
                    return Ok(());
                }
                (Phase::Data, b"err") => {
                    self.stream = Stream::Err;
                    Phase::Data
                }
                (Phase::Data, b"out") => {
                    self.stream = Stream::Out;
                    Phase::Data
                }
                (Phase::Data, b"cut") => {
                    self.ending = Ending::Cut;
                    Phase::Over
                }
                (Phase::Data, b"paused") => {
                    self.ending = Ending::Paused;
                    Phase::Over
                }
                (Phase::Data, b"here") => Phase::Data,
                (Phase::Data, b"unkept") => {
                    listener.unkept();
                    Phase::Data
                }
                (Phase::Data, word) if word.starts_with(b"at ") => {
                    listener.at(&String::from_utf8_lossy(&word[3..]))?;
                    Phase::Data
                }
                (Phase::Data, word) if word.starts_with(b"have ") => {
                    let text = String::from_utf8_lossy(word.get(5..).unwrap_or_default());
                    listener.have(&text)?;
                    Phase::Data
                }
                (Phase::Data, word) if word.starts_with(b"ended ") => {
                    self.ending = Ending::Ended(
                        String::from_utf8_lossy(word.get(6..).unwrap_or_default()).into_owned(),
                    );
                    Phase::Over
                }
                (_, b"done") => {
                    let message = format!(
                        "{host}: a script there ended before its answer was complete; {NO_FORK}, or it was killed"
                    );
                    return Err(Failure::new(Kind::Failed, message));
                }
                _ => return Err(garbage(host, word)),
            };
            rest = after.get(1..).unwrap_or_default();
        }
        Ok(())
    }

    /// Uses what certainly belongs to the phase, and says how many bytes that was. `whole`: no more of it will come.
    fn take(
        &mut self,
        host: &str,
        bytes: &[u8],
        listener: &mut dyn Listener,
        whole: bool,
    ) -> Result<usize, Failure> {
        match self.phase {
            Phase::Noise => {
                self.noise += bytes.len();
                let room = (4 * SHOWN).saturating_sub(self.said.len()).min(bytes.len());
                self.said
                    .extend_from_slice(bytes.get(..room).unwrap_or_default());
                Ok(bytes.len())
            }
            Phase::Lines => {
                let end = if whole {
                    bytes.len()
                } else {
                    memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1)
                };
                let lines = bytes.get(..end).unwrap_or_default();
                self.noise += lines.len();
                for line in lines
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                {
                    let text = std::str::from_utf8(line).map_err(|_| garbage(host, line))?;
                    listener.line(text)?;
                }
                Ok(end)
            }
            Phase::Data => {
                if !bytes.is_empty() {
                    listener.data(self.stream, bytes)?;
                }
                Ok(bytes.len())
            }
            Phase::Over => Ok(bytes.len()),
        }
    }

    /// Holds what has come against what a host may send.
    fn bounded(&self, host: &str) -> Result<(), Failure> {
        let flood = match self.phase {
            Phase::Noise => self.noise > NOISE_MAX,
            Phase::Lines => self.noise > NOISE_MAX + ANSWER_MAX || self.held.len() > LINE_MAX,
            Phase::Data | Phase::Over => false,
        };
        if flood {
            let message = format!(
                "{host} sends far more than an answer: {}",
                printable(&self.said, SHOWN)
            );
            return Err(Failure::new(Kind::Failed, message));
        }
        Ok(())
    }
}

/// How many of the last bytes could be the beginning of a mark.
fn possible_mark(bytes: &[u8], mark: &[u8]) -> usize {
    let longest = bytes.len().min(mark.len() - 1);
    (1..=longest)
        .rev()
        .find(|size| bytes.ends_with(mark.get(..*size).unwrap_or_default()))
        .unwrap_or(0)
}

/// What a host said that no script says.
pub fn garbage(host: &str, what: &[u8]) -> Failure {
    let said = printable(what, SHOWN);
    Failure::new(
        Kind::Failed,
        format!("{host} sent an unexpected reply: {said}"),
    )
}

/// Sends a script and hears its whole answer; see [`Hearing`].
pub fn hear(
    host: &str,
    shell: &mut dyn Shell,
    script: &Script,
    patience: Option<Duration>,
    listener: &mut dyn Listener,
) -> Result<Ending, Failure> {
    let mut hearing = Hearing::begin(host, shell, script)?;
    let ending = hearing.go_on(host, shell, patience, listener)?;
    hearing.be_whole(host).map(|()| ending)
}

/// An answer that is being heard, in one go or in several: a script may say where somebody else is to go on.
pub struct Hearing {
    started: Instant,
    out: Framed,
    /// The beginning of what the shell says on standard error, for messages.
    said: Vec<u8>,
    /// Why the script could not be sent.
    unsent: Option<io::Error>,
    /// How long nothing has come, and how often a sign of life was asked for since.
    silence: Duration,
    pings: u32,
}

fn broke(host: &str, error: &io::Error) -> Failure {
    let message = match error.kind() {
        io::ErrorKind::TimedOut => format!("{host}: no answer in time"),
        _ => format!("{host}: the connection broke: {error}"),
    };
    Failure::new(Kind::Unreachable, message)
}

impl Hearing {
    /// Sends a script.
    pub fn begin(host: &str, shell: &mut dyn Shell, script: &Script) -> Result<Self, Failure> {
        let started = Instant::now();
        // A shell that has ended, or is none, no longer reads: what it said is worth more than the broken pipe.
        let text = script.text(shell.primed());
        let unsent = match shell.send_script(&text, script.done(), started + patience()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Some(error),
            sent => sent.map_err(|error| broke(host, &error)).map(|()| None)?,
        };
        Ok(Self {
            started,
            out: Framed::new(script.nonce()),
            said: Vec::new(),
            unsent,
            silence: Duration::ZERO,
            pings: 0,
        })
    }

    /// Hears the answer to its end, or to where somebody else is to go on. `patience` is how long that may take;
    /// `None`: for as long as it lasts, once it has begun.
    pub fn go_on(
        &mut self,
        host: &str,
        shell: &mut dyn Shell,
        patience: Option<Duration>,
        listener: &mut dyn Listener,
    ) -> Result<Ending, Failure> {
        let mut buffer = vec![0; BUFFER];
        let mut deaf = false;
        if std::mem::take(&mut self.out.paused) {
            self.out.feed(host, &[], listener)?;
        }
        while !listener.is_done() && !self.is_over() {
            self.hear_once(host, shell, patience, listener, &mut buffer)?;
            self.look_alive(host, shell, patience, listener)?;
            if self.out.paused {
                return Ok(Ending::Whole);
            }
            if shell.is_wanted() {
                listener.wanted();
            }
            if let Some(reply) = listener.reply().filter(|_| !deaf) {
                // The other side takes it when it can. One that has ended has said why, and that is still to be read.
                match shell.write(&reply, Instant::now() + LONG) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => deaf = true,
                    written => written.map_err(|error| broke(host, &error))?,
                }
            }
        }
        if self.is_over() {
            if let Some(line) = listener.farewell(&self.out.ending).filter(|_| !deaf) {
                // A shell that is gone by now needs no farewell.
                drop(shell.write(line.as_bytes(), Instant::now() + LONG));
            }
            shell.check_in();
        }
        Ok(self.out.ending.clone())
    }

    /// Asks a script that goes on as long as it lasts for a sign of life, where nothing else would notice that its shell
    /// hangs.
    fn look_alive(
        &mut self,
        host: &str,
        shell: &mut dyn Shell,
        patience: Option<Duration>,
        listener: &mut dyn Listener,
    ) -> Result<(), Failure> {
        if self.silence < clock::long(PING_INTERVAL) * (self.pings + 1)
            || !self.is_watched(shell, patience)
        {
            return Ok(());
        }
        self.pings += 1;
        if self.pings > PINGS_MAX {
            let message = format!("{host}: the shell there has stopped responding");
            return Err(Failure::new(Kind::Unreachable, message));
        }
        match listener.ping() {
            Some(line) => shell
                .write(line, Instant::now() + LONG)
                .map_err(|error| broke(host, &error)),
            None => Ok(()),
        }
    }

    fn is_watched(&self, shell: &dyn Shell, patience: Option<Duration>) -> bool {
        shell.may_hang() && patience.is_none() && self.out.phase == Phase::Data
    }

    fn is_over(&self) -> bool {
        self.out.phase == Phase::Over
    }

    /// Refuses an answer that is to go on where nobody goes on: it has no end.
    pub(super) fn be_whole(&self, host: &str) -> Result<(), Failure> {
        if self.out.paused {
            return Err(garbage(host, b"next"));
        }
        Ok(())
    }

    /// Takes what comes next.
    fn hear_once(
        &mut self,
        host: &str,
        shell: &mut dyn Shell,
        limit: Option<Duration>,
        listener: &mut dyn Listener,
        buffer: &mut [u8],
    ) -> Result<(), Failure> {
        let is_watched = self.is_watched(shell, limit);
        let Self {
            started,
            out,
            said,
            unsent,
            silence,
            pings,
        } = self;
        let asked = Instant::now();
        let deadline = match limit {
            _ if out.phase == Phase::Noise => *started + clock::long(SILENCE_MAX),
            Some(limit) => *started + limit,
            None => Instant::now() + LONG,
        };
        let pace = listener.pace().unwrap_or(LONG);
        let pace = pace.min(if is_watched { PING_INTERVAL } else { LONG });
        let chunk = shell
            .read(buffer, deadline.min(asked + pace))
            .map_err(|error| broke(host, &error))?;
        if chunk == Chunk::Nothing {
            *silence += asked.elapsed();
        } else {
            (*silence, *pings) = (Duration::ZERO, 0);
        }
        match chunk {
            Chunk::Out(size) => out.feed(host, buffer.get(..size).unwrap_or_default(), listener),
            Chunk::Err(size) => {
                let room = (4 * SHOWN).saturating_sub(said.len()).min(size);
                said.extend_from_slice(buffer.get(..room).unwrap_or_default());
                Ok(())
            }
            Chunk::Nothing
                if Instant::now() < deadline || limit.is_none() && out.phase != Phase::Noise =>
            {
                Ok(())
            }
            Chunk::Nothing => {
                let said = words(&out.said, said);
                let message = format!("{host} accepted the login but did not respond{said}");
                Err(Failure::new(Kind::Silent, message))
            }
            Chunk::End if out.phase == Phase::Noise => {
                let why = unsent
                    .take()
                    .map(|error| format!(" ({error})"))
                    .unwrap_or_default();
                Err(no_shell(host, &why, &words(&out.said, said)))
            }
            Chunk::End => {
                let message = format!(
                    "{host}: connection lost while waiting for the reply{}",
                    words(&[], said)
                );
                Err(Failure::new(Kind::Unreachable, message))
            }
        }
    }
}

/// What a host said beside its answer, for a message.
fn words(out: &[u8], err: &[u8]) -> String {
    let said = if err.trim_ascii().is_empty() {
        out
    } else {
        err
    };
    let said = printable(said.trim_ascii(), SHOWN);
    if said.is_empty() {
        said
    } else {
        format!("; it says: {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Heard {
        lines: Vec<String>,
        data: Vec<u8>,
    }

    impl Listener for Heard {
        fn line(&mut self, line: &str) -> Result<(), Failure> {
            self.lines.push(line.to_owned());
            Ok(())
        }

        fn data(&mut self, _stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
            self.data.extend_from_slice(bytes);
            Ok(())
        }
    }

    /// What is heard of `text`, in pieces of `size` bytes.
    fn heard(nonce: &Nonce, text: &[u8], size: usize) -> Result<(Heard, Framed), Failure> {
        let mut framed = Framed::new(nonce);
        let mut heard = Heard::default();
        for piece in text.chunks(size) {
            framed.feed("h", piece, &mut heard)?;
        }
        Ok((heard, framed))
    }

    #[test]
    fn the_frame_is_found_wherever_the_pieces_are_cut() {
        let script = Script::see(&[]).unwrap();
        let nonce = script.nonce();
        let mark = format!("\x01{} ", nonce.as_str());
        // Data that looks like a mark for a while, and a last line without an end.
        let near = &mark[..mark.len() - 2];
        let text = format!(
            "hello\n\x01{mark}begin\none\ntwo\n{mark}data\n\x01\nx{near}y\n{near}{mark}end\nlater{mark}begin\n"
        );
        for size in 1..text.len() {
            let (heard, framed) = heard(nonce, text.as_bytes(), size).unwrap();
            assert_eq!(heard.lines, ["one", "two"], "pieces of {size}");
            assert_eq!(
                String::from_utf8(heard.data).unwrap(),
                format!("\x01\nx{near}y\n{near}"),
                "pieces of {size}"
            );
            assert_eq!((framed.phase, framed.ending), (Phase::Over, Ending::Whole));
        }
    }

    #[test]
    fn text_is_passed_on_at_once() {
        let script = Script::see(&[]).unwrap();
        let mark = format!("\x01{} ", script.nonce().as_str());
        let (heard, _) = heard(
            script.nonce(),
            format!("{mark}begin\n{mark}data\nline\n").as_bytes(),
            4096,
        )
        .unwrap();
        assert_eq!(heard.data, b"line\n");
    }

    #[test]
    fn somebody_else_goes_on_where_the_script_says_so() {
        let script = Script::see(&[]).unwrap();
        let mark = format!("\x01{} ", script.nonce().as_str());
        let text = format!("{mark}begin\none\n{mark}next\ntwo\n{mark}end\n");
        let (mut framed, mut heard) = (Framed::new(script.nonce()), Heard::default());
        framed.feed("h", text.as_bytes(), &mut heard).unwrap();
        assert_eq!(
            (heard.lines.as_slice(), framed.paused),
            (&["one".to_owned()][..], true)
        );
        let mut hearing = Hearing {
            started: Instant::now(),
            out: framed,
            said: vec![],
            unsent: None,
            silence: Duration::ZERO,
            pings: 0,
        };
        assert!(hearing.be_whole("h").is_err());
        hearing.out.paused = false;
        let mut framed = hearing.out;
        framed.feed("h", &[], &mut heard).unwrap();
        assert_eq!((heard.lines.len(), framed.phase), (2, Phase::Over));
    }

    #[test]
    fn standard_error_may_come_behind_a_mark() {
        #[derive(Default)]
        struct Told(Vec<(Stream, String)>);
        impl Listener for Told {
            fn line(&mut self, _line: &str) -> Result<(), Failure> {
                Ok(())
            }

            fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
                self.0
                    .push((stream, String::from_utf8_lossy(bytes).into_owned()));
                Ok(())
            }
        }
        let script = Script::see(&[]).unwrap();
        let mark = format!("\x01{} ", script.nonce().as_str());
        let text = format!("{mark}begin\n{mark}data\nout{mark}err\nerr{mark}end\n");
        let (mut framed, mut told) = (Framed::new(script.nonce()), Told::default());
        framed.feed("h", text.as_bytes(), &mut told).unwrap();
        assert_eq!(
            told.0,
            [
                (Stream::Out, "out".to_owned()),
                (Stream::Err, "err".to_owned())
            ]
        );
        assert_eq!(framed.phase, Phase::Over);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let script = Script::see(&[]).unwrap();
        let mark = format!("\x01{} ", script.nonce().as_str());
        for bad in [
            format!("{mark}dance\n"),
            format!("{mark}end\n"),
            format!("{mark}begin\n{mark}begin\n"),
            format!("{mark}begin\n{mark}{}", "x".repeat(100)),
            format!("{mark}begin\n{}", "x".repeat(LINE_MAX + 1)),
            "x".repeat(NOISE_MAX + 1),
            format!(
                "{mark}begin\n{}",
                "x\n".repeat(usize::midpoint(NOISE_MAX, ANSWER_MAX) + 1)
            ),
        ] {
            assert!(
                heard(script.nonce(), bad.as_bytes(), 1 << 16).is_err(),
                "{bad:.60}"
            );
        }
        assert!(
            heard(
                script.nonce(),
                &[mark.as_bytes(), b"begin\n\xff\n"].concat(),
                4096
            )
            .is_err()
        );
    }
}
