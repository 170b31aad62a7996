//! The program under test with a home and state of its own.

use std::path::{Path, PathBuf};

use super::procs::Process;
use super::programs::tool;
use super::running::{Invocation, Output, Running, with_system_shell};
use super::scratch::Scratch;

/// One user's machine, so to speak: own `HOME` and `RSIG_STATE_DIR`, nothing inherited.
///
/// On drop what was started with this home (keepers, jobs on `local`) is killed and the directories removed.
/// `ssh -G` takes the home from the password database, not from here: give `-F` on everything that connects.
pub struct Rsig {
    home: PathBuf,
    state: PathBuf,
    /// Whether commands go by a keeper, as they do by default outside the tests.
    pub keeper: bool,
    /// What rsig's waits of ten seconds and more are divided by.
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

    /// From now on `/bin/sh` is this program to rsig and to what it starts on `local`: each command gets a mount
    /// namespace of its own, which is gone with the last of its processes.
    pub fn with_shell(mut self, shell: PathBuf) -> Self {
        self.shell = Some(shell);
        self
    }

    /// From now on `PATH` is this directory alone.
    pub fn with_path(mut self, directory: PathBuf) -> Self {
        self.path = Some(directory);
        self
    }

    /// From now on its state is in a directory of this name, in one of the test's own.
    pub fn with_state(mut self, name: &str) -> Self {
        self.state = self.scratch.subdir(name, 0o700);
        self
    }

    /// The home of its user, and of jobs on `local`.
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

    /// rsig with these words, to be given more options and then run or started. It works in its home.
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

    /// Any program in the surroundings that [`command`](Self::command) gives to rsig, for those that start it themselves.
    pub fn within(&self, invocation: Invocation) -> Invocation {
        invocation
            .env("HOME", &self.home)
            .env("RSIG_STATE_DIR", &self.state)
            .env("RSIG_KEEPER", if self.keeper { "1" } else { "0" })
            .env("RSIG_TEST_CLOCK", self.clock.to_string())
            .cwd(&self.home)
    }

    /// Runs rsig to its end, 60 s at most.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).run()
    }

    /// Starts rsig; the guard kills it on drop.
    #[track_caller]
    pub fn spawn_process(&self, words: &[&str]) -> Running {
        self.command(words).start()
    }

    /// Everything that was started with this home and still runs: rsig itself, keepers, jobs on `local`.
    pub fn processes(&self) -> Vec<Process> {
        self.scratch.processes()
    }
}
