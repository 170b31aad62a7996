//! The program under test, with a home and state of its own.

use std::path::{Path, PathBuf};

use super::procs::Process;
use super::programs::tool;
use super::running::{Invocation, Output, Running, with_system_shell};
use super::scratch::Scratch;

/// A user's machine: its own `HOME` and `RSIG_STATE_DIR`, nothing inherited.
///
/// On drop all processes started with this home (keepers, jobs on `local`) are killed and the directories removed. `ssh
/// -G` takes the home from the password database, not from here: give `-F` on everything that connects.
pub struct Rsig {
    home: PathBuf,
    state: PathBuf,
    /// Whether commands use a keeper, which is the default outside the tests.
    pub keeper: bool,
    /// Divisor for rsig's waits of ten seconds and more.
    pub clock: u32,
    shell: Option<PathBuf>,
    path: Option<PathBuf>,
    scratch: Scratch,
}

impl Rsig {
    pub fn new() -> Self {
        let scratch = Scratch::new();
        Self {
            home: scratch.subdir("home", 0o700),
            state: scratch.subdir("state", 0o700),
            keeper: false,
            clock: 1,
            shell: None,
            path: None,
            scratch,
        }
    }

    /// Makes `/bin/sh` this program, for rsig and for what it starts on `local`. Each command gets a mount namespace of
    /// its own, which ends with the last of its processes.
    pub fn with_shell(mut self, shell: PathBuf) -> Self {
        self.shell = Some(shell);
        self
    }

    /// Sets `PATH` to this directory alone.
    pub fn with_path(mut self, directory: PathBuf) -> Self {
        self.path = Some(directory);
        self
    }

    /// Moves the state to a directory of this name, below the test's own directory.
    pub fn with_state(mut self, name: &str) -> Self {
        self.state = self.scratch.subdir(name, 0o700);
        self
    }

    /// Home of rsig's user, and of jobs on `local`.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// `RSIG_STATE_DIR`.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A directory for the test's own files, mode 0755.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// rsig with these arguments, not started yet. Its working directory is its home.
    pub fn command(&self, words: &[&str]) -> Invocation {
        let program = env!("CARGO_BIN_EXE_rsig");
        let invocation = match &self.shell {
            None => Invocation::of(program),
            Some(shell) => tool("unshare")
                .args(with_system_shell(shell).into_iter().skip(1))
                .arg(program),
        };
        let invocation = match &self.path {
            None => invocation,
            Some(path) => invocation.env("PATH", path),
        };
        self.within(invocation.args(words))
    }

    /// Sets up any program with the environment that [`command`](Self::command) gives to rsig, for programs that start
    /// rsig themselves.
    pub fn within(&self, invocation: Invocation) -> Invocation {
        invocation
            .env("HOME", &self.home)
            .env("RSIG_STATE_DIR", &self.state)
            .env("RSIG_KEEPER", if self.keeper { "1" } else { "0" })
            .env("RSIG_TEST_CLOCK", self.clock.to_string())
            .cwd(&self.home)
    }

    /// Runs rsig to its end, at most 60 s.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).run()
    }

    /// Starts rsig; the guard kills it on drop.
    #[track_caller]
    pub fn spawn_process(&self, words: &[&str]) -> Running {
        self.command(words).start()
    }

    /// Running processes that were started with this home: rsig itself, keepers, jobs on `local`.
    pub fn processes(&self) -> Vec<Process> {
        self.scratch.processes()
    }
}
