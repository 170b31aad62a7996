//! Asking the user for passphrases, passwords and a yes or no.
//!
//! As in ssh(1): on the terminal with the echo off, or through `SSH_ASKPASS`, by the rules of
//! `SSH_ASKPASS_REQUIRE` and `DISPLAY` (or `WAYLAND_DISPLAY`). The terminal is put right again when
//! a signal ends or stops the process in the middle. Only one question is asked at a time, however
//! many hosts are being connected to.
//!
//! Not handled: memory that held a secret is not wiped (the SSH library below keeps copies too).

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};

/// Where OpenSSH's default askpass program is on most systems.
const ASKPASS_DEFAULT: &str = "/usr/bin/ssh-askpass";
/// The longest answer: what a terminal line takes (`MAX_CANON` is 4096 on Linux).
const ANSWER_MAX: usize = 4096;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether a question is being asked, and the terminal is not to be written to by others.
pub fn is_asking() -> bool {
    matches!(
        ONE_AT_A_TIME.try_lock(),
        Err(std::sync::TryLockError::WouldBlock)
    )
}

/// A passphrase or password; shown as dots.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, to hand to the SSH library.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(...)")
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// `BatchMode`.
    #[error("nothing is asked in BatchMode")]
    Batch,
    /// Neither a terminal nor an askpass program.
    #[error("there is no terminal to ask on, and no SSH_ASKPASS that may be used")]
    Nowhere,
    /// The user ended the input or closed the askpass window.
    #[error("the question was not answered")]
    Cancelled,
    /// A signal came that the application handles itself (see [`signals_are_handled`]).
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
    /// The askpass program can't be run.
    #[error("can't run {program:?} (SSH_ASKPASS): {source}")]
    Askpass {
        /// The program's name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The terminal failed.
    #[error("can't ask on the terminal: {0}")]
    Terminal(#[from] io::Error),
}

/// Who answers questions. Questions are plain text, safe to show.
pub trait Prompter {
    /// Whether a question can be asked at all.
    fn available(&self) -> Result<(), PromptError>;

    /// Asks for a secret; nothing is echoed.
    fn secret(&mut self, question: &str) -> Result<Secret, PromptError>;

    /// Asks for a line that may be seen.
    fn line(&mut self, question: &str) -> Result<String, PromptError>;
}

/// Answers no question: `BatchMode`, and every place without a user.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Prompter for Nobody {
    fn available(&self) -> Result<(), PromptError> {
        Err(PromptError::Batch)
    }

    fn secret(&mut self, _: &str) -> Result<Secret, PromptError> {
        Err(PromptError::Batch)
    }

    fn line(&mut self, _: &str) -> Result<String, PromptError> {
        Err(PromptError::Batch)
    }
}

/// Where a question goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Terminal,
    Askpass(String),
}

/// The environment that decides where a question goes, as in OpenSSH's readpass.c.
#[derive(Clone, Debug, Default)]
struct Surroundings {
    display: bool,
    require: Option<String>,
    askpass: Option<String>,
    terminal: bool,
}

impl Surroundings {
    fn look() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            display: set("DISPLAY").or_else(|| set("WAYLAND_DISPLAY")).is_some(),
            require: set("SSH_ASKPASS_REQUIRE"),
            askpass: set("SSH_ASKPASS"),
            terminal: open_terminal().is_ok(),
        }
    }

    fn place(&self) -> Option<Place> {
        let (mut allowed, mut preferred) = (self.display, false);
        match self
            .require
            .as_deref()
            .map(str::to_ascii_lowercase)
            .as_deref()
        {
            Some("force") => (allowed, preferred) = (true, true),
            Some("prefer") => preferred = allowed,
            Some("never") => allowed = false,
            _ => {}
        }
        if self.terminal && !preferred {
            return Some(Place::Terminal);
        }
        allowed.then(|| {
            Place::Askpass(
                self.askpass
                    .clone()
                    .unwrap_or_else(|| ASKPASS_DEFAULT.to_owned()),
            )
        })
    }
}

fn open_terminal() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/tty")
}

/// The user at the terminal, or behind `SSH_ASKPASS`.
#[derive(Clone, Copy, Debug, Default)]
pub struct User;

impl User {
    fn ask(question: &str, echo: bool) -> Result<String, PromptError> {
        // A panic while a question was open leaves nothing behind that could be wrong.
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        match Surroundings::look().place() {
            Some(Place::Terminal) => ask_on_terminal(question, echo),
            Some(Place::Askpass(program)) => ask_program(program, question),
            None => Err(PromptError::Nowhere),
        }
    }
}

impl Prompter for User {
    fn available(&self) -> Result<(), PromptError> {
        Surroundings::look()
            .place()
            .map(drop)
            .ok_or(PromptError::Nowhere)
    }

    fn secret(&mut self, question: &str) -> Result<Secret, PromptError> {
        Self::ask(question, false).map(Secret)
    }

    fn line(&mut self, question: &str) -> Result<String, PromptError> {
        Self::ask(question, true)
    }
}

fn ask_program(program: String, question: &str) -> Result<String, PromptError> {
    let done = Command::new(&program)
        .arg(question)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| PromptError::Askpass { program, source })?;
    if !done.status.success() {
        return Err(PromptError::Cancelled);
    }
    let text = String::from_utf8(done.stdout).map_err(|_| PromptError::Cancelled)?;
    let line = text.split(['\n', '\r']).next().unwrap_or_default();
    if line.len() > ANSWER_MAX {
        Err(PromptError::Cancelled)
    } else {
        Ok(line.to_owned())
    }
}

/// The signals that would leave the terminal without its echo.
const SIGNALS: [i32; 5] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP];

/// What happens to the signals of [`SIGNALS`] in this process once a question has been asked.
struct Signals {
    /// While true, a signal does what it does by default. False during a question.
    default: Arc<AtomicBool>,
    came: [Arc<AtomicBool>; SIGNALS.len()],
}

static HANDLED_ELSEWHERE: AtomicBool = AtomicBool::new(false);
static REGISTERED: OnceLock<Result<Signals, io::ErrorKind>> = OnceLock::new();

/// To be called by an application before it handles INT, TERM, HUP, QUIT or TSTP itself: from then
/// on this module never lets their default action happen, and a question that one of them
/// interrupts ends with [`PromptError::Interrupted`], the terminal put right.
pub fn signals_are_handled() {
    HANDLED_ELSEWHERE.store(true, Ordering::SeqCst);
    if let Some(Ok(signals)) = REGISTERED.get() {
        signals.default.store(false, Ordering::SeqCst);
    }
}

impl Signals {
    /// Registers once per process. A handler can't be taken back to the default action by safe
    /// code, so it stays and emulates that action outside questions.
    fn registered() -> io::Result<&'static Self> {
        let result = REGISTERED.get_or_init(|| Self::register().map_err(|error| error.kind()));
        result.as_ref().map_err(|kind| io::Error::from(*kind))
    }

    fn register() -> io::Result<Self> {
        let signals = Self {
            default: Arc::new(AtomicBool::new(false)),
            came: std::array::from_fn(|_| Arc::new(AtomicBool::new(false))),
        };
        for (signal, came) in SIGNALS.iter().zip(&signals.came) {
            signal_hook::flag::register_conditional_default(*signal, Arc::clone(&signals.default))?;
            signal_hook::flag::register(*signal, Arc::clone(came))?;
        }
        Ok(signals)
    }

    /// From here to the drop of the result, the signals are only noted.
    fn note(&self) -> Noted<'_> {
        self.default.store(false, Ordering::SeqCst);
        self.came
            .iter()
            .for_each(|came| came.store(false, Ordering::SeqCst));
        Noted(self)
    }
}

struct Noted<'a>(&'a Signals);

impl Noted<'_> {
    fn came(&self) -> Option<i32> {
        let all = SIGNALS.iter().zip(&self.0.came);
        all.filter(|(_, came)| came.swap(false, Ordering::SeqCst))
            .map(|(signal, _)| *signal)
            .next()
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.0
            .default
            .store(!HANDLED_ELSEWHERE.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

/// A terminal whose echo is off until this is dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal.as_fd())?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        // The end of the line is echoed, so that what follows starts on its own.
        quiet.local_flags.insert(LocalFlags::ECHONL);
        // What was typed ahead was not meant as an answer.
        tcsetattr(terminal.as_fd(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // The terminal may be gone (HUP): nothing to put right then.
        let _ = tcsetattr(self.terminal.as_fd(), SetArg::TCSAFLUSH, &self.before);
    }
}

/// What came of reading one answer.
enum Reply {
    Line(String),
    Signal(i32),
    End,
}

fn ask_on_terminal(question: &str, echo: bool) -> Result<String, PromptError> {
    let terminal = open_terminal()?;
    let signals = Signals::registered()?;
    loop {
        let noted = signals.note();
        let quiet = if echo {
            None
        } else {
            Some(Quiet::new(&terminal)?)
        };
        (&terminal).write_all(question.as_bytes())?;
        let read = read_line(&terminal, &noted);
        drop(quiet);
        drop(noted);
        match read? {
            Reply::Line(line) => return Ok(line),
            Reply::End => {
                (&terminal).write_all(b"\n")?;
                return Err(PromptError::Cancelled);
            }
            Reply::Signal(signal) => {
                (&terminal).write_all(b"\n").ok();
                if HANDLED_ELSEWHERE.load(Ordering::SeqCst) && signal != SIGTSTP {
                    return Err(PromptError::Interrupted(signal));
                }
                // Ends the process, or stops it: then the question is asked again afterwards.
                signal_hook::low_level::emulate_default_handler(signal)?;
            }
        }
    }
}

fn read_line(terminal: &File, noted: &Noted) -> io::Result<Reply> {
    let mut answer = Vec::new();
    loop {
        if let Some(signal) = noted.came() {
            return Ok(Reply::Signal(signal));
        }
        // Another thread may get the signal, so the wait is cut into slices.
        match poll(
            &mut [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(100_u8),
        ) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut byte = [0];
        match (&*terminal).read(&mut byte) {
            Ok(0) => return Ok(Reply::End),
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => answer.extend_from_slice(&byte),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > ANSWER_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is too long",
            ));
        }
    }
    String::from_utf8(answer)
        .map(Reply::Line)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the answer is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_question_is_that_of_ssh() {
        let askpass = || Some(Place::Askpass("/ask".into()));
        let terminal = || Some(Place::Terminal);
        for (display, require, has_terminal, expected) in [
            (false, None, true, terminal()),
            (false, None, false, None),
            (true, None, true, terminal()),
            (true, None, false, askpass()),
            (true, Some("never"), false, None),
            (true, Some("never"), true, terminal()),
            (true, Some("prefer"), true, askpass()),
            (false, Some("prefer"), true, terminal()),
            (false, Some("prefer"), false, None),
            (false, Some("force"), true, askpass()),
            (false, Some("FORCE"), false, askpass()),
            (true, Some("nonsense"), true, terminal()),
        ] {
            let surroundings = Surroundings {
                display,
                require: require.map(str::to_owned),
                askpass: Some("/ask".into()),
                terminal: has_terminal,
            };
            assert_eq!(surroundings.place(), expected, "{surroundings:?}");
        }
        let bare = Surroundings {
            display: true,
            ..Surroundings::default()
        };
        assert_eq!(bare.place(), Some(Place::Askpass(ASKPASS_DEFAULT.into())));
    }

    #[test]
    fn an_askpass_program_answers_with_its_first_line() {
        assert_eq!(ask_program("/bin/echo".into(), "what?").unwrap(), "what?");
        assert!(matches!(
            ask_program("/bin/false".into(), "?"),
            Err(PromptError::Cancelled)
        ));
        assert!(matches!(
            ask_program("/nowhere".into(), "?"),
            Err(PromptError::Askpass { .. })
        ));
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret("hunter2".to_owned())), "Secret(...)");
    }
}
