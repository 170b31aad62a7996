//! Real SSH servers on 127.0.0.1: OpenSSH's sshd(8) and dropbear(8).

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};

use super::accounts::{Account, Login};
use super::claim::{Claim, claim};
use super::daemon::{self, Kind};
use super::keys::{self, Format, Key, Type};
use super::options::Options;
use super::poll_until;
use super::procs::{self, Process};
use super::programs::{program_path, tool};
use super::proxy::Proxy;
use super::running::{Invocation, Output, with_system_shell};
use super::scratch::Scratch;

const WAIT_MAX: Duration = super::STEP_TIMEOUT;
/// Below the kernel's range for outgoing connections, so that a port is still free after a stop.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A server, running or stopped. On drop the server and everything that ran in its sessions are killed, and its
/// directory is removed.
///
/// - A session's `HOME` is [`home`](Self::home), for root too. getpwuid(3) does not know the throwaway user in a
///   session (`id -un` and `whoami` fail), see [`Account`].
/// - Jobs belong to the server as long as they keep their `HOME`, descend from a process that does, or run as the
///   throwaway user. A job of root's that sheds all of that (`env -i` in another directory, parent ended) is not found.
/// - `/run/sshd`, which sshd needs and Debian's service creates at its start, is created if missing and not removed.
pub struct Server {
    process: Option<Child>,
    options: Options,
    // Dropped before the account: it kills all processes of the account's user, whose id must not be claimed by another
    // server before that.
    scratch: Scratch,
    account: Account,
    port: Claim,
    host_keys: Vec<String>,
    client_key: Key,
}

impl Server {
    pub fn openssh(login: Login) -> Options {
        Options::new(Kind::OpenSsh, login)
    }

    pub fn dropbear(login: Login) -> Options {
        Options::new(Kind::Dropbear, login)
    }

    /// See [`Options::start`].
    #[track_caller]
    pub(super) fn start(options: Options) -> Self {
        options.kind.program();
        let (account, scratch) =
            Account::create(options.login, options.shell, options.password.as_deref());
        // Without listen(2): a child of another test that has not called exec yet would keep a listener open.
        let port = claim("port", PORTS, |port| !listens(port));
        for (name, content) in &options.home_files {
            account.write(name, content, 0o644);
        }
        for (name, content) in &options.files {
            scratch.file(name, content, 0o644);
        }
        let client_key = keys::generate(
            &scratch.path().join("client_key"),
            Type::Ed25519,
            "",
            Format::OpenSsh,
        );
        account.authorize(&client_key.public);
        let make = |&key| options.kind.host_key(key, scratch.path());
        let host_keys = options.host_keys.iter().map(make).collect();
        if options.kind == Kind::OpenSsh {
            let config = daemon::sshd_config(&options, scratch.path(), port.number());
            scratch.file("sshd_config", &config, 0o644);
        }
        let mut server = Self {
            process: None,
            options,
            account,
            port,
            host_keys,
            client_key,
            scratch,
        };
        server.restart();
        server
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// User name for the login.
    pub fn user(&self) -> &str {
        &self.account.name
    }

    pub fn uid(&self) -> u32 {
        self.account.uid
    }

    /// The account's home.
    pub fn home(&self) -> &Path {
        &self.account.home
    }

    /// The server's own directory, readable by the account.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Public host keys, each as `TYPE BASE64 ...`.
    pub fn host_keys(&self) -> &[String] {
        &self.host_keys
    }

    /// The key that is authorized; it has no passphrase.
    pub fn client_key(&self) -> &Key {
        &self.client_key
    }

    /// The server's log since its first start.
    pub fn log(&self) -> String {
        let log = fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Authorizes one more public key: a line of `authorized_keys`, which may have options before the key.
    pub fn add_authorized(&self, public: &str) {
        self.account.authorize(public);
    }

    /// Writes an `ssh_config` file for `-F` that knows only this server, as `alias`, with its key and host keys.
    pub fn ssh_config(&self, alias: &str) -> PathBuf {
        self.write_ssh_config(alias, self.port(), "")
    }

    /// Same, with more lines for this host. They come first and so win (`Port`, `User`, `ProxyJump`).
    pub fn ssh_config_with(&self, alias: &str, lines: &str) -> PathBuf {
        self.write_ssh_config(alias, self.port(), lines)
    }

    /// Same, through a proxy.
    pub fn ssh_config_through(&self, alias: &str, proxy: &Proxy) -> PathBuf {
        self.write_ssh_config(alias, proxy.port(), "")
    }

    /// The system's `ssh` to this server. The command is still to be added, as one more word.
    pub fn ssh(&self) -> Invocation {
        let config = self.ssh_config("server");
        let home = self.dir().join("client");
        fs::create_dir_all(&home).expect("our own directory is writable");
        tool("ssh")
            .env("HOME", home)
            .arg("-F")
            .arg(config)
            .arg("server")
    }

    /// Runs a command line in the account's login shell.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        self.ssh().arg(line).run()
    }

    /// Processes that run in its sessions or were left by them, without the server's own.
    pub fn processes(&self) -> Vec<Process> {
        self.all_processes()
            .into_iter()
            .filter(|process| !self.options.kind.owns(process))
            .collect()
    }

    /// The server's processes for its open connections. One connection has one or two of them.
    pub fn connections(&self) -> Vec<Process> {
        let listener = self
            .process
            .as_ref()
            .map(|process| process.id().cast_signed());
        let mut found = self.all_processes();
        found.retain(|process| self.options.kind.owns(process) && Some(process.pid) != listener);
        found
    }

    /// Ends all connections by SIGKILL to the server's processes for them. The processes in the sessions live on until
    /// they notice.
    pub fn kill_connections(&self) {
        procs::kill_until_none(WAIT_MAX, || self.connections())
            .unwrap_or_else(|left| panic!("these outlived SIGKILL:\n{}", procs::listing(&left)));
    }

    /// Stops the server and all connections. Processes that the sessions left running live on.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Errors mean that it has ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
        self.kill_connections();
    }

    /// Starts the server again on the same port with the same keys. If it runs, it is stopped first.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("a log file");
        // A real machine's server does not inherit the ignored signals and open files of this process (nohup, a CI
        // runner). Dropbear passes inherited open files on to its sessions.
        let mut command = Command::new(program_path("perl"));
        command
            .args([
                "-MPOSIX",
                "-e",
                "POSIX::close($_) for 3 .. 1023; exec @ARGV",
                "env",
                "--default-signal",
            ])
            .args(
                self.options
                    .system_shell
                    .as_deref()
                    .map(with_system_shell)
                    .unwrap_or_default(),
            )
            .arg(self.options.kind.program())
            .args(daemon::arguments(&self.options, self.dir(), self.port()));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.account.server_environment())
            .envs(self.options.env.iter().cloned());
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut process = command.spawn().expect("perl starts");
        let port = self.port();
        let mut ended = None;
        poll_until("the server listens", WAIT_MAX, || {
            ended = process.try_wait().expect("the server is our child");
            ended.is_some() || listens(port)
        });
        self.process = Some(process);
        if let Some(status) = ended {
            panic!(
                "{:?} ended at once, {status}:\n{}",
                self.options.kind,
                self.log()
            );
        }
    }

    fn all_processes(&self) -> Vec<Process> {
        self.scratch.processes()
    }

    fn log_file(&self) -> PathBuf {
        self.dir().join("log")
    }

    fn write_ssh_config(&self, alias: &str, port: u16, lines: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // New files each time, so that no test writes a file that another one reads.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let known: Vec<_> = self
            .host_keys
            .iter()
            .map(|key| format!("[127.0.0.1]:{port} {key}"))
            .collect();
        let known_hosts = self.scratch.file(
            &format!("known_hosts-{number}"),
            &(known.join("\n") + "\n"),
            0o644,
        );
        let config = format!(
            "Host {alias}\n{lines}\n\
             HostName 127.0.0.1\n\
             Port {port}\n\
             User {}\n\
             IdentityFile {}\n\
             IdentitiesOnly yes\n\
             UserKnownHostsFile {}\n\
             GlobalKnownHostsFile none\n\
             StrictHostKeyChecking yes\n",
            self.user(),
            self.client_key.private.display(),
            known_hosts.display(),
        );
        self.scratch
            .file(&format!("ssh_config-{number}"), &config, 0o644)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(40);
            eprintln!(
                "--- {:?}'s log, its last lines\n{}\n---",
                self.options.kind,
                lines[last..].join("\n")
            );
            let listing = procs::listing(&self.processes());
            eprintln!("--- Its processes, and their signals\n{listing}\n---");
        }
        if let Some(mut process) = self.process.take() {
            // Errors mean that it has ended by itself. Everything else is removed with the scratch directory.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Whether a port has a listener. If so, the port can't be bound; if not, any number of sockets with `SO_REUSEADDR` can
/// be bound to it (socket(7)). A connection instead would show in the server's log, and count towards its
/// `MaxStartups`.
fn listens(port: u16) -> bool {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("it may be reused");
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)) == Err(Errno::EADDRINUSE)
}
