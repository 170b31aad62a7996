//! Reads the answer of a script out of its frame.
//!
//! A host is not trusted: the length of each line, the output before the answer and the time are all limited, and only
//! the script's nonce marks the beginning and the end of the answer.

use std::io;
use std::time::{Duration, Instant};

use memchr::memmem;

use super::no_shell::{NO_FORK, no_shell};
use super::script::{Nonce, Script};
use crate::clock;
use crate::connection::{Chunk, Shell};
use crate::error::{Failure, Kind};
use crate::escape::printable;

/// Maximum output of a login before the answer, in bytes.
const NOISE_MAX: usize = 1 << 20;
/// Stands for no timeout. A read that reaches it is repeated.
const NO_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Maximum length of a mark after the nonce, in bytes.
const MARK_MAX: usize = 64;
/// Maximum length of a line of an answer, in bytes.
const LINE_MAX: usize = 64 << 10;
/// Maximum length of an answer, in bytes; 100,000 jobs fit.
const ANSWER_MAX: usize = 16 << 20;
/// Maximum length of a quotation of the host's output in a message, in characters.
const QUOTE_MAX: usize = 300;
/// Maximum time to send a script and to get its short answer, generous enough for a slow login.
pub fn answer_timeout() -> Duration {
    clock::scaled(Duration::from_secs(30))
}
/// Maximum time until the answer begins.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Size of the buffer for output, in bytes.
const BUFFER_SIZE: usize = 256 << 10;

/// Interval at which a read that can be cancelled checks whether it was.
pub(super) const CANCEL_POLL: Duration = Duration::from_millis(100);
/// Ends a stream, so that the shell can run other scripts.
pub(super) const QUIT: &str = "quit\n";
/// The ping for a streaming script: the line, the interval without output after which it is sent, and the number of
/// unanswered pings after which the shell counts as dead.
pub(super) const PING: &[u8] = b"ping\n";
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PINGS_MAX: u32 = 3;

/// The position within the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the frame: output of the login.
    Noise,
    /// Between `begin` and `data` or `end`.
    Lines,
    /// Between `data` and `end`.
    Data,
    /// After `end`.
    Over,
}

/// One of a job's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEnd {
    /// The answer is complete.
    Whole,
    /// A log was truncated or replaced while it was followed.
    Cut,
    /// The job ended; the text after `ended` says how.
    Ended(String),
    /// The client asked the stream to stop; the job still runs.
    Paused,
}

/// Receives the parts of an answer.
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

    /// The script reads lines from its input from now on.
    fn begun(&mut self) {}

    /// The job's time limit or its tether could not end the job.
    fn on_not_ended(&mut self) {}

    /// How much of the job's input the host has.
    fn on_input_received(&mut self, words: &str) -> Result<(), Failure> {
        Err(Failure::new(
            Kind::Failed,
            format!("unexpected input status: {}", printable(words, 80)),
        ))
    }

    /// The stream and the position of the data that follows.
    fn at(&mut self, _words: &str) -> Result<(), Failure> {
        Ok(())
    }

    /// Another command waits for the shell.
    fn on_shell_wanted(&mut self) {}

    /// The last line to send to a script that reads lines.
    fn last_line(&mut self, _ending: &AnswerEnd) -> Option<&'static str> {
        None
    }

    /// What to send to the script now, if anything. Called after each read, and at intervals of [`Listener::pace`].
    fn reply(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// The line that pings a script without output.
    fn ping(&mut self) -> Option<&'static [u8]> {
        None
    }

    /// Whether the rest of the answer is not needed.
    fn is_done(&self) -> bool {
        false
    }

    /// Maximum time to wait for output before [`Listener::reply`] is called again; `None` waits for output.
    fn pace(&self) -> Option<Duration> {
        None
    }
}

impl<F: FnMut(&str) -> Result<(), Failure>> Listener for F {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        self(line)
    }
}

/// Splits the shell's output into the parts of the frame.
struct FrameParser {
    phase: Phase,
    /// The bytes that begin each mark: a byte that is rare in text, so that text is seldom held back, and the nonce.
    mark: Vec<u8>,
    /// Bytes held back because they may begin a mark or an unfinished line.
    held_back: Vec<u8>,
    text_size: usize,
    /// The beginning of the output before the frame, for error messages.
    noise_head: Vec<u8>,
    /// The job's stream that the data belongs to.
    stream: Stream,
    /// The script has printed `next`: another listener takes over from here.
    paused: bool,
    ending: AnswerEnd,
}

impl FrameParser {
    fn new(nonce: &Nonce) -> Self {
        let mark = format!("\x01{} ", nonce.as_str()).into_bytes();
        Self {
            phase: Phase::Noise,
            mark,
            held_back: vec![],
            text_size: 0,
            noise_head: vec![],
            stream: Stream::Out,
            paused: false,
            ending: AnswerEnd::Whole,
        }
    }

    /// Processes bytes; passes data and lines to the listener.
    fn feed(
        &mut self,
        host: &str,
        bytes: &[u8],
        listener: &mut dyn Listener,
    ) -> Result<(), Failure> {
        let joined;
        let mut rest = if self.held_back.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.held_back).as_slice(), bytes].concat();
            joined.as_slice()
        };
        while self.phase != Phase::Over {
            let Some(at) = memmem::find(rest, &self.mark) else {
                let keep = possible_mark(rest, &self.mark);
                let (sure, unsure) = rest.split_at(rest.len() - keep);
                let used = self.take(host, sure, listener, false)?;
                self.held_back = [sure.get(used..).unwrap_or_default(), unsure].concat();
                return self.check_limits(host);
            };
            let (before, from_mark) = rest.split_at(at);
            let word = from_mark.get(self.mark.len()..).unwrap_or_default();
            let Some(end) = memchr::memchr(b'\n', word.get(..MARK_MAX).unwrap_or(word)) else {
                if word.len() >= MARK_MAX {
                    return Err(unexpected(host, word));
                }
                self.held_back = rest.to_vec();
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
                    self.held_back = after.get(1..).unwrap_or_default().to_vec();
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
                    self.ending = AnswerEnd::Cut;
                    Phase::Over
                }
                (Phase::Data, b"paused") => {
                    self.ending = AnswerEnd::Paused;
                    Phase::Over
                }
                (Phase::Data, b"here") => Phase::Data,
                (Phase::Data, b"unkept") => {
                    listener.on_not_ended();
                    Phase::Data
                }
                (Phase::Data, word) if word.starts_with(b"at ") => {
                    listener.at(&String::from_utf8_lossy(&word[3..]))?;
                    Phase::Data
                }
                (Phase::Data, word) if word.starts_with(b"have ") => {
                    let text = String::from_utf8_lossy(word.get(5..).unwrap_or_default());
                    listener.on_input_received(&text)?;
                    Phase::Data
                }
                (Phase::Data, word) if word.starts_with(b"ended ") => {
                    self.ending = AnswerEnd::Ended(
                        String::from_utf8_lossy(word.get(6..).unwrap_or_default()).into_owned(),
                    );
                    Phase::Over
                }
                (_, b"done") => {
                    let message = format!(
                        "{host}: the script there ended before its reply was complete; {NO_FORK}, or it was killed"
                    );
                    return Err(Failure::new(Kind::Failed, message));
                }
                _ => return Err(unexpected(host, word)),
            };
            rest = after.get(1..).unwrap_or_default();
        }
        Ok(())
    }

    /// Processes bytes that certainly belong to the current phase. Returns how many were used. With `whole`, a mark
    /// follows, so a last line without an end is complete.
    fn take(
        &mut self,
        host: &str,
        bytes: &[u8],
        listener: &mut dyn Listener,
        whole: bool,
    ) -> Result<usize, Failure> {
        match self.phase {
            Phase::Noise => {
                self.text_size += bytes.len();
                let room = (4 * QUOTE_MAX)
                    .saturating_sub(self.noise_head.len())
                    .min(bytes.len());
                self.noise_head
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
                self.text_size += lines.len();
                for line in lines
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                {
                    let text = std::str::from_utf8(line).map_err(|_| unexpected(host, line))?;
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

    /// Fails if the host sends more than the limits allow.
    fn check_limits(&self, host: &str) -> Result<(), Failure> {
        let flood = match self.phase {
            Phase::Noise => self.text_size > NOISE_MAX,
            Phase::Lines => {
                self.text_size > NOISE_MAX + ANSWER_MAX || self.held_back.len() > LINE_MAX
            }
            Phase::Data | Phase::Over => false,
        };
        if flood {
            let message = format!(
                "{host} sends far more than an answer: {}",
                printable(&self.noise_head, QUOTE_MAX)
            );
            return Err(Failure::new(Kind::Failed, message));
        }
        Ok(())
    }
}

/// Number of bytes at the end that may be the beginning of a mark.
fn possible_mark(bytes: &[u8], mark: &[u8]) -> usize {
    let longest = bytes.len().min(mark.len() - 1);
    (1..=longest)
        .rev()
        .find(|size| bytes.ends_with(mark.get(..*size).unwrap_or_default()))
        .unwrap_or(0)
}

/// The error for output that no script prints.
pub fn unexpected(host: &str, what: &[u8]) -> Failure {
    let said = printable(what, QUOTE_MAX);
    Failure::new(
        Kind::Failed,
        format!("{host} sent an unexpected reply: {said}"),
    )
}

/// Sends a script and reads its whole answer; see [`AnswerReader`].
pub fn run_script(
    host: &str,
    shell: &mut dyn Shell,
    script: &Script,
    timeout: Option<Duration>,
    listener: &mut dyn Listener,
) -> Result<AnswerEnd, Failure> {
    let mut hearing = AnswerReader::begin(host, shell, script)?;
    let ending = hearing.read_to_end(host, shell, timeout, listener)?;
    hearing.require_whole(host).map(|()| ending)
}

/// An answer that is being read. It can be read in several parts: a script can say where another listener takes over.
pub struct AnswerReader {
    started: Instant,
    out: FrameParser,
    /// The beginning of the shell's standard error, for messages.
    stderr_head: Vec<u8>,
    /// The error when the script could not be sent.
    send_error: Option<io::Error>,
    /// Time since the last output, and number of pings since.
    silence: Duration,
    pings: u32,
}

fn connection_failure(host: &str, error: &io::Error) -> Failure {
    let message = match error.kind() {
        io::ErrorKind::TimedOut => format!("{host}: no answer in time"),
        _ => format!("{host}: the connection broke: {error}"),
    };
    Failure::new(Kind::Unreachable, message)
}

impl AnswerReader {
    /// Sends a script.
    pub fn begin(host: &str, shell: &mut dyn Shell, script: &Script) -> Result<Self, Failure> {
        let started = Instant::now();
        // A shell that has ended, or a program that is not a shell, does not read its input. What it printed is more
        // useful than the broken pipe, so read that first.
        let text = script.text(shell.primed());
        let send_error = match shell.send_script(&text, script.done(), started + answer_timeout()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Some(error),
            sent => sent
                .map_err(|error| connection_failure(host, &error))
                .map(|()| None)?,
        };
        Ok(Self {
            started,
            out: FrameParser::new(script.nonce()),
            stderr_head: Vec::new(),
            send_error,
            silence: Duration::ZERO,
            pings: 0,
        })
    }

    /// Reads the answer to its end, or to where another listener takes over, within `timeout` from when the script was
    /// sent. `None` means no limit once the answer has begun.
    pub fn read_to_end(
        &mut self,
        host: &str,
        shell: &mut dyn Shell,
        timeout: Option<Duration>,
        listener: &mut dyn Listener,
    ) -> Result<AnswerEnd, Failure> {
        let mut buffer = vec![0; BUFFER_SIZE];
        let mut input_closed = false;
        if std::mem::take(&mut self.out.paused) {
            self.out.feed(host, &[], listener)?;
        }
        while !listener.is_done() && !self.is_over() {
            self.read_once(host, shell, timeout, listener, &mut buffer)?;
            self.ping_if_silent(host, shell, timeout, listener)?;
            if self.out.paused {
                return Ok(AnswerEnd::Whole);
            }
            if shell.is_wanted() {
                listener.on_shell_wanted();
            }
            if let Some(reply) = listener.reply().filter(|_| !input_closed) {
                // The script reads it when it can. A script that has ended has printed why, so continue to read.
                match shell.write(&reply, Instant::now() + NO_TIMEOUT) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => input_closed = true,
                    written => written.map_err(|error| connection_failure(host, &error))?,
                }
            }
        }
        if self.is_over() {
            if let Some(line) = listener
                .last_line(&self.out.ending)
                .filter(|_| !input_closed)
            {
                // The shell may be gone already; that is harmless.
                drop(shell.write(line.as_bytes(), Instant::now() + NO_TIMEOUT));
            }
            shell.check_in();
        }
        Ok(self.out.ending.clone())
    }

    /// Pings a script that runs without a timeout, where nothing else would notice that its shell hangs.
    fn ping_if_silent(
        &mut self,
        host: &str,
        shell: &mut dyn Shell,
        timeout: Option<Duration>,
        listener: &mut dyn Listener,
    ) -> Result<(), Failure> {
        if self.silence < clock::scaled(PING_INTERVAL) * (self.pings + 1)
            || !self.is_pinged(shell, timeout)
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
                .write(line, Instant::now() + NO_TIMEOUT)
                .map_err(|error| connection_failure(host, &error)),
            None => Ok(()),
        }
    }

    fn is_pinged(&self, shell: &dyn Shell, timeout: Option<Duration>) -> bool {
        shell.may_hang() && timeout.is_none() && self.out.phase == Phase::Data
    }

    fn is_over(&self) -> bool {
        self.out.phase == Phase::Over
    }

    /// Fails if the answer has no end because the script expects another listener to take over.
    pub(super) fn require_whole(&self, host: &str) -> Result<(), Failure> {
        if self.out.paused {
            return Err(unexpected(host, b"next"));
        }
        Ok(())
    }

    /// Reads and processes the next chunk.
    fn read_once(
        &mut self,
        host: &str,
        shell: &mut dyn Shell,
        timeout: Option<Duration>,
        listener: &mut dyn Listener,
        buffer: &mut [u8],
    ) -> Result<(), Failure> {
        let is_pinged = self.is_pinged(shell, timeout);
        let Self {
            started,
            out,
            stderr_head,
            send_error,
            silence,
            pings,
        } = self;
        let read_started = Instant::now();
        let deadline = match timeout {
            _ if out.phase == Phase::Noise => *started + clock::scaled(SILENCE_MAX),
            Some(timeout) => *started + timeout,
            None => Instant::now() + NO_TIMEOUT,
        };
        let pace = listener.pace().unwrap_or(NO_TIMEOUT);
        let pace = pace.min(if is_pinged { PING_INTERVAL } else { NO_TIMEOUT });
        let chunk = shell
            .read(buffer, deadline.min(read_started + pace))
            .map_err(|error| connection_failure(host, &error))?;
        if chunk == Chunk::Nothing {
            *silence += read_started.elapsed();
        } else {
            (*silence, *pings) = (Duration::ZERO, 0);
        }
        match chunk {
            Chunk::Out(size) => out.feed(host, buffer.get(..size).unwrap_or_default(), listener),
            Chunk::Err(size) => {
                let room = (4 * QUOTE_MAX).saturating_sub(stderr_head.len()).min(size);
                stderr_head.extend_from_slice(buffer.get(..room).unwrap_or_default());
                Ok(())
            }
            Chunk::Nothing
                if Instant::now() < deadline || timeout.is_none() && out.phase != Phase::Noise =>
            {
                Ok(())
            }
            Chunk::Nothing => {
                let said = quoted_output(&out.noise_head, stderr_head);
                let message = format!("{host} accepted the login but did not respond{said}");
                Err(Failure::new(Kind::Silent, message))
            }
            Chunk::End if out.phase == Phase::Noise => {
                // A broken pipe says no more than that the shell has ended.
                let why = send_error
                    .take()
                    .filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
                    .map(|error| format!(" ({error})"))
                    .unwrap_or_default();
                Err(no_shell(
                    host,
                    &why,
                    &quoted_output(&out.noise_head, stderr_head),
                ))
            }
            Chunk::End => {
                let message = format!(
                    "{host}: connection lost while waiting for the reply{}",
                    quoted_output(&[], stderr_head)
                );
                Err(Failure::new(Kind::Unreachable, message))
            }
        }
    }
}

/// A quotation of what the host printed outside the answer, for a message.
fn quoted_output(out: &[u8], err: &[u8]) -> String {
    let said = if err.trim_ascii().is_empty() {
        out
    } else {
        err
    };
    let said = printable(said.trim_ascii(), QUOTE_MAX);
    if said.is_empty() {
        said
    } else {
        format!("; its output: {said}")
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

    /// What the listener gets of `text` when it arrives in pieces of `size` bytes.
    fn heard(nonce: &Nonce, text: &[u8], size: usize) -> Result<(Heard, FrameParser), Failure> {
        let mut framed = FrameParser::new(nonce);
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
        // Data that begins like a mark, and a last line without an end.
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
            assert_eq!(
                (framed.phase, framed.ending),
                (Phase::Over, AnswerEnd::Whole)
            );
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
        let (mut framed, mut heard) = (FrameParser::new(script.nonce()), Heard::default());
        framed.feed("h", text.as_bytes(), &mut heard).unwrap();
        assert_eq!(
            (heard.lines.as_slice(), framed.paused),
            (&["one".to_owned()][..], true)
        );
        let mut hearing = AnswerReader {
            started: Instant::now(),
            out: framed,
            stderr_head: vec![],
            send_error: None,
            silence: Duration::ZERO,
            pings: 0,
        };
        assert!(hearing.require_whole("h").is_err());
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
        let (mut framed, mut told) = (FrameParser::new(script.nonce()), Told::default());
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
