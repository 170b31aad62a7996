//! Writing to standard output and standard error.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::fd::AsFd;

use anyhow::Result;
use nix::errno::Errno;

/// Prints a line to standard output.
pub fn print(text: impl std::fmt::Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Passes bytes on as they are, with nothing held back: the standard library's own stdout would write each piece in two,
/// up to its last newline and the rest.
pub fn print_bytes(error_stream: bool, bytes: &[u8]) -> io::Result<()> {
    if error_stream {
        write_all(&io::stderr().lock(), bytes)
    } else {
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

/// Tells the user something on standard error. Where that is closed there is nobody to tell.
pub fn warn(text: &str) {
    drop(writeln!(io::stderr().lock(), "rsig: {text}"));
}

/// Whether there is somebody to ask: standard input and standard error are a terminal.
pub fn is_on_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a yes; everything else is a no.
pub fn ask(question: &str) -> io::Result<bool> {
    let mut terminal = io::stderr().lock();
    terminal.write_all(question.as_bytes())?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

/// A step on the way, for `-v`.
pub fn note(text: &str) {
    warn(text);
}

/// Ends rsig as cat ends whose reader has gone, if that is what the error says.
pub fn die_of_broken_pipe(error: &anyhow::Error) {
    let broken = error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    });
    if broken {
        // Rust ignores PIPE; by its default it ends the process quietly.
        drop(signal_hook::low_level::emulate_default_handler(
            signal_hook::consts::SIGPIPE,
        ));
    }
}

/// Whether standard output takes colour: only a terminal does, and never with `NO_COLOR` (no-color.org).
pub fn is_coloured() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}

/// The width of the terminal, where standard output is one.
pub fn width() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout())
        .map(|(width, _)| usize::from(width.0))
        .filter(|width| *width > 0)
}
