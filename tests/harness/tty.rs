//! A program on a terminal of its own: for prompts, tables, Ctrl-C.

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

/// The keys that end a line of input and send SIGINT.
pub const ENTER: &str = "\r";
pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";

/// Stdin, stdout and stderr of the program are this terminal, and it is its controlling one, so /dev/tty works
/// and Ctrl-C sends a SIGINT to its foreground process group. Killed on drop, and the terminal hangs up.
///
/// What is typed before a prompt has turned the echo off is echoed: [`wait_for`](Self::wait_for) the prompt first.
/// The program sets the echo and prints in an order of its own; for a secret, wait for
/// [`echoes`](Self::echoes) to become false.
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
        // openpty(3) would leave both ends open in every program that another test starts meanwhile.
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

    /// Types.
    #[track_caller]
    pub fn send(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .unwrap_or_else(|error| panic!("keys to {}: {error}", self.shown));
    }

    /// Another size; the foreground process group gets SIGWINCH.
    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.name, columns, rows);
    }

    /// Whether what is typed shows on the screen now.
    pub fn echoes(&self) -> bool {
        let settings =
            nix::sys::termios::tcgetattr(&self.keyboard).expect("a terminal has settings");
        settings
            .local_flags
            .contains(nix::sys::termios::LocalFlags::ECHO)
    }

    /// All bytes that the screen got, escape sequences and the echo of what was typed included.
    pub fn raw(&self) -> Vec<u8> {
        self.screen.bytes()
    }

    /// The same as text, without escape sequences and carriage returns. Nothing is drawn: what was overwritten
    /// is still there.
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

    /// Waits for its end and until nobody holds the terminal any more.
    ///
    /// # Panics
    /// When that takes longer than the limit.
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
        // Both fail only when it has been waited for already.
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

/// Takes out what ECMA-48 calls control sequences (`ESC [ ... letter`), operating system commands
/// (`ESC ] ... BEL`) and two-character escapes.
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
