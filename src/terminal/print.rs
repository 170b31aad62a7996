//! Writing to standard output and standard error.

use std::fmt::Display;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::fd::AsFd;

use nix::errno::Errno;
use serde::Serialize;

use crate::error::{Failure, Kind};
use crate::sys;

/// Standard output. An error is reported only by [`Self::finish`], so that a command whose reader is gone still does
/// its work.
#[derive(Default)]
pub struct Output {
    error: Option<io::Error>,
}

impl Output {
    pub fn line(&mut self, text: impl Display) {
        self.bytes(format!("{text}\n").as_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        if self.error.is_none() {
            self.error = write(bytes).err();
        }
    }

    pub fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    pub fn json(&mut self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(text),
            Err(error) => self.error = self.error.take().or(Some(error.into())),
        }
    }

    /// Returns the error, if any. If the reader closed the pipe, the process ends by SIGPIPE, like cat(1).
    pub fn finish(self) -> Result<(), Failure> {
        self.error
            .map_or(Ok(()), |error| Err(output_failure(&error)))
    }
}

/// Fails if standard output was closed at the start: the standard library replaces it with /dev/null.
fn check_open() -> io::Result<()> {
    if sys::process::is_stdout_closed() {
        Err(Errno::EBADF.into())
    } else {
        Ok(())
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    check_open()?;
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// The failure to write to standard output.
pub fn output_failure(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        // Rust programs ignore SIGPIPE; its default action ends the process silently.
        drop(signal_hook::low_level::emulate_default_handler(
            signal_hook::consts::SIGPIPE,
        ));
    }
    Failure::new(
        Kind::Failed,
        format!("standard output can't be written: {error}"),
    )
}

/// Writes bytes unchanged and unbuffered. The standard library's stdout would split each piece into two writes, up to
/// its last newline and the rest.
pub fn print_bytes(error_stream: bool, bytes: &[u8]) -> io::Result<()> {
    if error_stream {
        write_all(&io::stderr().lock(), bytes)
    } else {
        check_open()?;
        write_all(&io::stdout().lock(), bytes)
    }
}

fn write_all(stream: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(stream, bytes) {
            Ok(size) => bytes = bytes.get(size..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Prints a message for the user on standard error. Errors are ignored: standard error may be closed.
pub fn warn(text: &str) {
    drop(writeln!(io::stderr().lock(), "rsig: {text}"));
}

/// Whether the user can be asked: standard input and standard error are a terminal.
pub fn is_on_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a yes-or-no question. Anything but a yes is a no, even a read error.
pub fn ask(question: &str) -> bool {
    let mut terminal = io::stderr().lock();
    let mut answer = String::new();
    let asked = terminal
        .write_all(question.as_bytes())
        .and_then(|()| terminal.flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    asked.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Whether to use colour on standard output: only on a terminal, and never with `NO_COLOR` (no-color.org).
pub fn is_coloured() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}

/// The width of the terminal in columns, if standard output is a terminal.
pub fn width() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout())
        .map(|(width, _)| usize::from(width.0))
        .filter(|width| *width > 0)
}
