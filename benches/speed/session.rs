//! What the rows share: a server, an rsig that knows it, and the commands to time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use super::harness::program_path;
use super::harness::scratch::Scratch;
use super::harness::{Fixture, Login, Proxy, Server};

/// Delay of the proxy each way: half the round trip.
const DELAY: Duration = Duration::from_millis(50);

/// How thoroughly to measure.
pub struct Session {
    pub quick: bool,
}

impl Session {
    /// Number of runs for each side.
    pub fn runs(&self, thorough: usize, quick: usize) -> usize {
        if self.quick { quick } else { thorough }
    }
}

/// A server, with a proxy in front of it or without.
pub struct Workspace {
    pub fixture: Fixture,
    pub proxy: Option<Proxy>,
}

impl Workspace {
    /// Starts a new sshd and sets up an rsig that knows it.
    pub fn start() -> Self {
        Self {
            fixture: Fixture::with(Some(Server::openssh(Login::Root).start())),
            proxy: None,
        }
    }

    /// Same, with a round trip of 100 ms between the two.
    pub fn behind_proxy() -> Self {
        let mut place = Self::start();
        place.slow_down();
        place
    }

    /// Adds a round trip of 100 ms between the two.
    pub fn slow_down(&mut self) {
        let port = self
            .fixture
            .server
            .as_ref()
            .expect("the place has a server")
            .port();
        let proxy = Proxy::start(port, DELAY);
        self.fixture.go_through(&proxy);
        self.proxy = Some(proxy);
    }

    /// Restores that delay on a proxy that was made faster.
    pub fn slow_down_again(&self) {
        self.proxy
            .as_ref()
            .expect("the place has a proxy")
            .set_delay(DELAY);
    }

    pub fn rsig(&self, words: &[&str]) -> Command {
        let rsig = &self.fixture.rsig;
        let mut command = clean(installed());
        command
            .args(words)
            .env("HOME", rsig.home())
            .env("RSIG_STATE_DIR", rsig.state())
            .current_dir(rsig.home());
        command.env("RSIG_KEEPER", if rsig.keeper { "1" } else { "0" });
        command
    }

    /// OpenSSH's client, with the same configuration.
    pub fn ssh(&self, line: &str) -> Command {
        let mut command = clean(program_path("ssh"));
        command
            .env("HOME", self.fixture.rsig.home())
            .args(&self.fixture.connect)
            .arg(&self.fixture.host)
            .arg(line);
        command
    }

    /// Starts a job that sleeps and ignores USR1.
    pub fn sleeper(&self) -> Job {
        self.job(&["env", "--ignore-signal=USR1", "sleep", "3600"])
    }

    pub fn job(&self, command: &[&str]) -> Job {
        let id = self.fixture.spawn(&[], command);
        Job {
            dir: self.fixture.jobs_dir().join(&id),
            id,
        }
    }
}

/// A job and its files.
pub struct Job {
    pub id: String,
    pub dir: PathBuf,
}

impl Job {
    pub fn pid(&self) -> String {
        let line = std::fs::read_to_string(self.dir.join("pid"))
            .expect("a job that has started has recorded its pid");
        line.split(' ').next().unwrap_or_default().to_owned()
    }
}

/// A copy of rsig, as an installation makes one: the programs it is compared with were installed too. A linker writes a
/// file into scattered pages, and such a file starts a sixth slower.
pub fn installed() -> &'static Path {
    static INSTALLED: LazyLock<(Scratch, PathBuf)> = LazyLock::new(|| {
        let scratch = Scratch::new();
        let program = scratch.path().join("rsig");
        std::fs::copy(env!("CARGO_BIN_EXE_rsig"), &program).expect("the directory is ours");
        (scratch, program)
    });
    &INSTALLED.1
}

fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8");
    command
}
