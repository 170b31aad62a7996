//! A program on a new terminal: for prompts, tables, Ctrl-C.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};

use super::poll_until;
use super::programs::tool;
use super::running::Captured;

/// Keys that end a line of input, send SIGINT, and end the input.
pub const ENTER: &str = "\r";
pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";

/// A program whose stdin, stdout and stderr are this terminal. It is also the controlling terminal, so /dev/tty works
/// and Ctrl-C sends SIGINT to the foreground process group. On drop the program is killed and the terminal hangs up.
///
/// Input that is typed before a prompt has turned echo off is echoed, so [`wait_for`](Self::wait_for) the prompt first.
/// A program may print its prompt before or after it changes the echo; for a secret, wait until
/// [`echoes`](Self::echoes) is false.
pub struct Tty {
    child: Child,
    shown: String,
    keyboard: PtyMaster,
    screen: Captured,
    name: PathBuf,
    limit: Duration,
}

impl Tty {
    /// Starts a command that makes its stdin its controlling terminal.
    #[track_caller]
    pub(super) fn start(
        mut command: Command,
        shown: String,
        columns: u16,
        rows: u16,
        limit: Duration,
    ) -> Self {
        // openpty(3) would leave both ends open in programs that other tests start at the same time.
        let keyboard =
            posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a terminal");
        grantpt(&keyboard).expect("the terminal is ours");
        unlockpt(&keyboard).expect("the terminal is ours");
        let name = PathBuf::from(ptsname_r(&keyboard).expect("a terminal has a name"));
        let side = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&name)
            .unwrap_or_else(|error| panic!("{} can't be opened: {error}", name.display()));
        set_size(&name, columns, rows);
        let stream = || Stdio::from(side.try_clone().expect("a descriptor can be duplicated"));
        command.stdin(stream()).stdout(stream()).stderr(stream());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{shown} can't be started: {error}"));
        let reader = keyboard
            .as_fd()
            .try_clone_to_owned()
            .expect("a descriptor can be duplicated");
        let screen = Captured::from(File::from(reader));
        Self {
            child,
            shown,
            keyboard,
            screen,
            name,
            limit,
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Types these keys.
    #[track_caller]
    pub fn send(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .unwrap_or_else(|error| panic!("keys to {}: {error}", self.shown));
    }

    /// Changes the size. The foreground process group gets SIGWINCH.
    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.name, columns, rows);
    }

    /// Whether the terminal echoes input now.
    pub fn echoes(&self) -> bool {
        let settings =
            nix::sys::termios::tcgetattr(&self.keyboard).expect("a terminal has settings");
        settings
            .local_flags
            .contains(nix::sys::termios::LocalFlags::ECHO)
    }

    /// All bytes the screen received, including escape sequences and echoed input.
    pub fn raw(&self) -> Vec<u8> {
        self.screen.bytes()
    }

    /// The same as text, without escape sequences and carriage returns. Nothing is drawn: overwritten text is still in
    /// it.
    pub fn text(&self) -> String {
        without_escapes(&String::from_utf8_lossy(&self.raw()))
    }

    /// Waits until the screen shows `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let shown = &self.shown;
        let deadline = Instant::now() + self.limit;
        while !self.text().contains(text) {
            assert!(
                Instant::now() < deadline,
                "{shown} never showed {text:?} but:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the program has ended and no process has the terminal open.
    ///
    /// # Panics
    /// If that takes longer than the timeout.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let (child, screen) = (&mut self.child, &self.screen);
        poll_until(
            &format!("{} ends and its terminal is free", self.shown),
            self.limit,
            || {
                status = status.or(child.try_wait().expect("the child is ours to wait for"));
                status.is_some() && screen.is_finished()
            },
        );
        status.expect("it has ended")
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        // Errors mean that it was already waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: &std::path::Path, columns: u16, rows: u16) {
    tool("stty")
        .arg("-F")
        .arg(terminal)
        .args(["cols", &columns.to_string(), "rows", &rows.to_string()])
        .run()
        .ok();
}

/// Removes what ECMA-48 calls control sequences (`ESC [ ... letter`), operating system commands (`ESC ] ... BEL`) and
/// two-character escapes.
fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\r' => {}
            '\x1b' => match characters.next() {
                Some('[') => drop(characters.find(|c| ('@'..='~').contains(c))),
                Some(']') => drop(characters.find(|c| matches!(c, '\x07' | '\x1b'))),
                _ => {}
            },
            _ => plain.push(character),
        }
    }
    plain
}
