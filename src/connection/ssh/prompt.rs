//! Asks the user for passphrases, passwords and confirmations.
//!
//! As in ssh(1): on the terminal with the echo off, or through `SSH_ASKPASS`, by the rules of `SSH_ASKPASS_REQUIRE` and
//! `DISPLAY` (or `WAYLAND_DISPLAY`). Only one question at a time is asked on a terminal, however many keepers are
//! connecting.
//!
//! Not handled: memory that held a secret is not wiped (the SSH library keeps copies too).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, ttyname};

/// Where OpenSSH's default askpass program is on most systems.
const DEFAULT_ASKPASS: &str = "/usr/bin/ssh-askpass";
/// The longest answer: what a terminal line takes (`MAX_CANON` is 4096 on Linux).
const MAX_ANSWER_BYTES: usize = 4096;
const CTRL_C: u8 = 0x03;
const CTRL_Z: u8 = 0x1a;

/// The terminal's settings from before the current question.
static SAVED_TERMIOS: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether any process is asking a question on the terminal, or the terminal is not ours. Nothing else may be written
/// to it then.
pub fn is_asking() -> bool {
    let usual = LocalFlags::ECHO | LocalFlags::ISIG;
    open_terminal().is_ok_and(|terminal| {
        tcgetattr(&terminal).is_ok_and(|now| !now.local_flags.contains(usual))
            || tcgetpgrp(&terminal).is_ok_and(|group| group != getpgrp())
    })
}

/// Held during a question, so that no other process asks on the same terminal.
fn lock_terminal() -> Option<Flock<File>> {
    let name = ttyname(io::stderr()).ok()?;
    Flock::lock(File::open(name).ok()?, FlockArg::LockExclusive).ok()
}

/// Restores the terminal's settings from before the question. Also for a process that exits during one.
pub fn restore_terminal() {
    let before = SAVED_TERMIOS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let (Some(before), Ok(terminal)) = (before, open_terminal()) {
        // If the terminal is gone (HUP), there is nothing to restore.
        let _ = tcsetattr(terminal.as_fd(), SetArg::TCSADRAIN, &before);
    }
}

/// Where a question is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Medium {
    Terminal,
    Askpass(String),
}

/// As in OpenSSH's readpass.c.
fn medium(env: impl Fn(&str) -> Option<String>, has_terminal: bool) -> Option<Medium> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let has_display = set("DISPLAY").or_else(|| set("WAYLAND_DISPLAY")).is_some();
    let require = set("SSH_ASKPASS_REQUIRE").map(|value| value.to_ascii_lowercase());
    let (allowed, preferred) = match require.as_deref() {
        Some("force") => (true, true),
        Some("prefer") => (has_display, has_display),
        Some("never") => (false, false),
        _ => (has_display, false),
    };
    if has_terminal && !preferred {
        return Some(Medium::Terminal);
    }
    let program = set("SSH_ASKPASS").unwrap_or_else(|| DEFAULT_ASKPASS.to_owned());
    allowed.then_some(Medium::Askpass(program))
}

fn open_terminal() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/tty")
}

/// Asks the user questions, unless `batch` (`BatchMode`) forbids it.
#[derive(Clone, Copy)]
pub struct Prompter {
    pub batch: bool,
}

impl Prompter {
    fn medium(self) -> Result<Medium, String> {
        if self.batch {
            return Err("BatchMode allows no prompt".to_owned());
        }
        let medium = medium(|name| std::env::var(name).ok(), open_terminal().is_ok());
        medium.ok_or_else(|| {
            "there is no terminal to ask on, and no SSH_ASKPASS that may be used".to_owned()
        })
    }

    /// Whether a question can be asked at all. An error says why not.
    pub fn available(self) -> Result<(), String> {
        self.medium().map(drop)
    }

    /// Asks a question; `None` if the user does not answer. An error says why nothing can be asked.
    pub fn ask(self, question: &str, echo: bool) -> Result<Option<String>, String> {
        let _lock = lock_terminal();
        match self.medium()? {
            Medium::Terminal => ask_on_terminal(question, echo)
                .map_err(|error| format!("can't ask on the terminal: {error}")),
            Medium::Askpass(program) => ask_program(&program, question)
                .map_err(|error| format!("can't run {program:?} (SSH_ASKPASS): {error}")),
        }
    }

    /// Asks for a secret, without echo.
    pub fn secret(self, question: &str) -> Result<String, String> {
        let answer = self.ask(question, false)?;
        answer.ok_or_else(|| "the question was not answered".to_owned())
    }
}

fn ask_program(program: &str, question: &str) -> io::Result<Option<String>> {
    let output = Command::new(program)
        .arg(question)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let line = output.stdout.split(|b| matches!(b, b'\n' | b'\r')).next();
    let line = line.unwrap_or_default();
    let is_answer = output.status.success() && line.len() <= MAX_ANSWER_BYTES;
    Ok(String::from_utf8(line.to_vec()).ok().filter(|_| is_answer))
}

fn ask_on_terminal(question: &str, echo: bool) -> io::Result<Option<String>> {
    let terminal = open_terminal()?;
    let before = tcgetattr(terminal.as_fd())?;
    let mut asking = before.clone();
    asking.local_flags.set(LocalFlags::ECHO, echo);
    // The newline is echoed, so that later output starts on its own line.
    asking.local_flags.insert(LocalFlags::ECHONL);
    // Ctrl-C and Ctrl-Z end the line and are read as characters, so that the terminal can be restored before their
    // signals are sent.
    asking.local_flags.remove(LocalFlags::ISIG);
    asking.control_chars[SpecialCharacterIndices::VEOL as usize] = CTRL_C;
    asking.control_chars[SpecialCharacterIndices::VEOL2 as usize] = CTRL_Z;
    // What was typed before the question was not meant as a secret.
    let when = if echo {
        SetArg::TCSADRAIN
    } else {
        SetArg::TCSAFLUSH
    };
    loop {
        *SAVED_TERMIOS.lock().unwrap_or_else(PoisonError::into_inner) = Some(before.clone());
        let answer = tcsetattr(terminal.as_fd(), when, &asking)
            .map_err(io::Error::from)
            // A spinner may have left something on the line.
            .and_then(|()| write!(&terminal, "\r\x1b[K{question}"))
            .and_then(|()| read_line(&terminal));
        restore_terminal();
        let mut answer = answer?;
        let signal = match answer.pop() {
            Some(b'\n') => {
                let text = String::from_utf8(answer);
                return text.map(Some).map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, "the answer is not UTF-8")
                });
            }
            Some(CTRL_C) => Signal::SIGINT,
            Some(CTRL_Z) => Signal::SIGTSTP,
            _ => {
                (&terminal).write_all(b"\n")?;
                return Ok(None);
            }
        };
        (&terminal).write_all(b"\n")?;
        // To the whole process group, as the terminal would have done.
        kill(Pid::from_raw(0), signal)?;
        if signal == Signal::SIGINT {
            return Ok(None);
        }
    }
}

/// Reads a line with the character that ended it; empty at the end of the input.
fn read_line(mut terminal: &File) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !matches!(answer.last(), Some(&(b'\n' | CTRL_C | CTRL_Z))) {
        match terminal.read(&mut byte) {
            Ok(0) => return Ok(Vec::new()),
            Ok(_) => answer.extend_from_slice(&byte),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > MAX_ANSWER_BYTES {
            let reason = "the answer is too long";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_question_is_that_of_ssh() {
        let askpass = || Some(Medium::Askpass("/ask".into()));
        let terminal = || Some(Medium::Terminal);
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
            let env = |name: &str| match name {
                "DISPLAY" => display.then(|| ":0".to_owned()),
                "SSH_ASKPASS" => Some("/ask".to_owned()),
                "SSH_ASKPASS_REQUIRE" => require.map(str::to_owned),
                _ => None,
            };
            assert_eq!(
                medium(env, has_terminal),
                expected,
                "{display} {require:?} {has_terminal}"
            );
        }
        let bare = |name: &str| (name == "WAYLAND_DISPLAY").then(|| "w".to_owned());
        let default = Some(Medium::Askpass(DEFAULT_ASKPASS.into()));
        assert_eq!(medium(bare, false), default);
    }

    #[test]
    fn an_askpass_program_answers_with_its_first_line() {
        let answer = ask_program("/bin/echo", "what?").unwrap();
        assert_eq!(answer.as_deref(), Some("what?"));
        assert_eq!(ask_program("/bin/false", "?").unwrap(), None);
        assert!(ask_program("/nowhere", "?").is_err());
        let batch = Prompter { batch: true };
        assert!(batch.available().unwrap_err().contains("BatchMode"));
    }
}
