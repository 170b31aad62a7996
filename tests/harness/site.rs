//! The places where a job can run, for tests that apply to all of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::accounts::Login;
use super::procs::Process;
use super::proxy::Proxy;
use super::rsig::Rsig;
use super::server::Server;

/// The command that rsig makes a server run.
const SHELL: &str = "/bin/sh -s";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    Local,
    /// This machine, behind a prefix that changes nothing.
    Prefix,
    OpenSshRoot,
    OpenSshUser,
    DropbearRoot,
}

/// rsig and a place where its jobs run. Fields may be changed, for example `connect` to go through a proxy.
pub struct Fixture {
    // Dropped first, so that keepers end before their server does.
    pub rsig: Rsig,
    pub server: Option<Server>,
    /// Name of the host on the command line.
    pub host: String,
    /// Options needed to connect, to be placed right after the command's name.
    pub connect: Vec<String>,
    pub site: Site,
}

impl Site {
    pub const ALL: [Self; 5] = [
        Self::Local,
        Self::Prefix,
        Self::OpenSshRoot,
        Self::OpenSshUser,
        Self::DropbearRoot,
    ];

    #[track_caller]
    pub fn start(self) -> Fixture {
        let server = match self {
            Self::Local | Self::Prefix => None,
            Self::OpenSshRoot => Some(Server::openssh(Login::Root).start()),
            Self::OpenSshUser => Some(Server::openssh(Login::User).start()),
            Self::DropbearRoot => Some(Server::dropbear(Login::Root).start()),
        };
        Fixture::of(self, server)
    }
}

impl Site {
    /// Same, but commands go through a keeper.
    #[track_caller]
    pub fn start_with_keeper(self) -> Fixture {
        let mut fixture = self.start();
        fixture.rsig.keeper = true;
        fixture
    }
}

impl Fixture {
    /// A fixture for a server that the test has started with its own options; `local` without a server.
    pub fn with(server: Option<Server>) -> Self {
        Self::of(
            server.as_ref().map_or(Site::Local, |_| Site::OpenSshRoot),
            server,
        )
    }

    fn of(site: Site, server: Option<Server>) -> Self {
        let host = if server.is_some() { "server" } else { "local" };
        let config = server.as_ref().map(|server| server.ssh_config(host));
        let mut connect = config.map_or_else(Vec::new, options);
        if site == Site::Prefix {
            connect.extend(["--prefix", "env"].map(str::to_owned));
        }
        Self {
            rsig: Rsig::new(),
            server,
            host: host.to_owned(),
            connect,
            site,
        }
    }

    /// Makes rsig reach the server through a proxy from now on.
    ///
    /// # Panics
    /// On `local`.
    pub fn go_through(&mut self, proxy: &Proxy) {
        let server = self
            .server
            .as_ref()
            .expect("a proxy needs a server behind it");
        self.connect = options(server.ssh_config_through(&self.host, proxy));
    }

    /// Puts a proxy between rsig and the server.
    pub fn through_proxy(mut self) -> (Self, Proxy) {
        let server = self.server.as_ref().expect("a server to stand before");
        let proxy = Proxy::start(server.port(), Duration::ZERO);
        self.go_through(&proxy);
        (self, proxy)
    }

    /// Words of a command that names the host: `COMMAND OPTIONS CONNECT... HOST`, then `rest`.
    pub fn words<'a>(
        &'a self,
        command: &'a str,
        options: &[&'a str],
        rest: &[&'a str],
    ) -> Vec<&'a str> {
        let mut words = vec![command];
        words.extend(options);
        words.extend(self.connect.iter().map(String::as_str));
        words.push(&self.host);
        words.extend(rest);
        words
    }

    /// Spawns a job and returns its id.
    ///
    /// # Panics
    /// If rsig fails, or prints anything but one well-formed id.
    #[track_caller]
    pub fn spawn(&self, options: &[&str], command: &[&str]) -> String {
        let rest: Vec<&str> = std::iter::once("--")
            .chain(command.iter().copied())
            .collect();
        let id = self
            .rsig
            .run(&self.words("spawn", options, &rest))
            .ok()
            .line();
        let of_alphabet =
            |c: char| c.is_ascii_digit() || (c.is_ascii_lowercase() && !"ilou".contains(c));
        assert!(
            id.len() == 8 && id.chars().all(of_alphabet),
            "not a job id: {id:?}"
        );
        self.await_relay(&id);
        id
    }

    /// Waits some seconds for the keeper to hold a job's relay, which it opens once the job runs and no command has come
    /// for a moment. Not every keeper has a session to spare for one.
    pub fn await_relay(&self, id: &str) {
        if !self.rsig.keeper || self.signal_route() != "channel" {
            return;
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(3);
        while std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(200));
            let status = self.rsig.run(&["keeper", "status", "--json"]).ok().stdout();
            if status.contains(id) {
                return;
            }
        }
    }

    /// The directory in which jobs start.
    pub fn job_home(&self) -> &Path {
        self.server.as_ref().map_or(self.rsig.home(), Server::home)
    }

    /// The directory of the host's job directories.
    pub fn jobs_dir(&self) -> PathBuf {
        self.job_home().join(".local/state/rsig/jobs")
    }

    /// Processes that run on the host for its jobs: jobs, supervisors and relays; neither the server nor rsig. With a
    /// keeper, the idle shells of its pool are left out.
    pub fn processes(&self) -> Vec<Process> {
        let mut found = self
            .server
            .as_ref()
            .map_or_else(|| self.rsig.processes(), Server::processes);
        found.retain(|process| process.name != "rsig");
        if self.rsig.keeper {
            let idle = idle_shells(&found);
            found.retain(|process| !idle.contains(&process.pid));
        }
        found
    }

    /// How a signal reaches a job's group where the server may pass signals on.
    pub fn signal_route(&self) -> &'static str {
        // OpenSSH before 10 does not pass signals on for root.
        let honoured = matches!(self.site, Site::OpenSshUser | Site::DropbearRoot);
        if self.rsig.keeper && honoured {
            "channel"
        } else {
            "pid"
        }
    }
}

/// Pids of the shells that wait for a script: those that have no children and are not a shell's child, as a relay's
/// second shell is.
pub fn idle_shells(all: &[Process]) -> Vec<i32> {
    let shells: Vec<&Process> = all
        .iter()
        .filter(|process| process.cmdline == SHELL)
        .collect();
    let is_parent = |shell: &Process| all.iter().any(|process| process.ppid == shell.pid);
    let is_child = |shell: &Process| shells.iter().any(|parent| parent.pid == shell.ppid);
    shells
        .iter()
        .filter(|shell| !is_parent(shell) && !is_child(shell))
        .map(|shell| shell.pid)
        .collect()
}

fn options(config: PathBuf) -> Vec<String> {
    let config = config
        .into_os_string()
        .into_string()
        .expect("our paths are UTF-8");
    vec!["-F".to_owned(), config]
}

/// Runs each test on every [`Site`]. For tests whose result may depend on the server: paths of signals, shells, relays,
/// channels, logins. A test becomes a module with its name, which contains a test for each site.
///
/// ```ignore
/// on_every_site! {
///     fn a_job_ends_with_its_own_status(f: &Fixture) {
///         let job = f.spawn(&[], &["false"]);
///         f.rsig.run(&["wait", &job]).code(1);
///     }
/// }
/// ```
macro_rules! on_every_site {
    ($($tests:tt)+) => {
        $crate::harness::on_sites! {
            {
                on_local: Local.start;
                on_local_by_a_keeper: Prefix.start_with_keeper;
                on_openssh_as_root: OpenSshRoot.start;
                on_openssh_as_user: OpenSshUser.start;
                on_dropbear_as_root: DropbearRoot.start;
                on_openssh_by_a_keeper: OpenSshUser.start_with_keeper;
            }
            $($tests)+
        }
    };
}
pub(crate) use on_every_site;

/// Runs each test on `local` and on OpenSSH through a keeper. For tests whose result does not depend on the server:
/// claims, states, offsets in logs, trees, names, records. If `RSIG_TEST_SITES` is `all`, it runs them on the other
/// sites too.
macro_rules! on_two_sites {
    ($($tests:tt)+) => {
        $crate::harness::on_sites! {
            {
                on_local: Local.start;
                on_local_by_a_keeper: Prefix.start_with_keeper if all_sites;
                on_openssh_as_root: OpenSshRoot.start if all_sites;
                on_openssh_as_user: OpenSshUser.start if all_sites;
                on_dropbear_as_root: DropbearRoot.start if all_sites;
                on_openssh_by_a_keeper: OpenSshUser.start_with_keeper;
            }
            $($tests)+
        }
    };
}
pub(crate) use on_two_sites;

/// Runs each test on every site, through a keeper, like [`on_every_site`].
macro_rules! on_every_kept_site {
    ($($tests:tt)+) => {
        $crate::harness::on_sites! {
            {
                on_local: Local.start_with_keeper;
                on_local_by_a_keeper: Prefix.start_with_keeper;
                on_openssh_as_root: OpenSshRoot.start_with_keeper;
                on_openssh_as_user: OpenSshUser.start_with_keeper;
                on_dropbear_as_root: DropbearRoot.start_with_keeper;
            }
            $($tests)+
        }
    };
}
pub(crate) use on_every_kept_site;

/// Defines a module for each test, with a test for each site of a list.
macro_rules! on_sites {
    ($sites:tt $($(#[$meta:meta])* fn $name:ident($fixture:ident: &Fixture) $body:block)+) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, clippy::wildcard_imports)]
            use super::*;

            fn check($fixture: &$crate::harness::Fixture) $body

            $crate::harness::check_on! $sites
        }
    )+};
}
pub(crate) use on_sites;

/// Defines the tests of one such module.
macro_rules! check_on {
    ($($test:ident: $site:ident.$start:ident $(if $condition:ident)?;)+) => {$(
        #[test]
        fn $test() {
            $(if !$crate::harness::site::$condition() {
                return;
            })?
            check(&$crate::harness::Site::$site.$start());
        }
    )+};
}
pub(crate) use check_on;

/// Whether tests run on all sites, even where the server should make no difference.
pub fn all_sites() -> bool {
    std::env::var_os("RSIG_TEST_SITES").is_some_and(|sites| sites == "all")
}
