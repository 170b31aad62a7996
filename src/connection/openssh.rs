//! `openssh://`: the `ssh` program connects, once for each keeper (`ssh -M`), and each shell is an `ssh -S` over that
//! connection.
//!
//! For what the built-in client does not support: Kerberos, FIDO keys, PKCS#11, host certificates.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Policy;
use crate::error::{Failure, Kind, reason};
use crate::escape::printable;
use crate::host::{Destination, Location, Remote};
use crate::sys;

/// How long the connection stays open after the keeper was killed, in seconds.
const PERSIST_SECONDS: u32 = 60;
/// The time to connect if the user sets none, as for other hosts.
const CONNECT_TIMEOUT: &str = "ConnectTimeout=15";
/// How much of ssh's standard error is kept, in bytes.
const STDERR_MAX: u64 = 64 << 10;
/// Options that switch off what neither the connection nor its shells may do, whatever the configuration says.
const BASE_OPTIONS: [&str; 6] = [
    "-o",
    "ClearAllForwardings=yes",
    "-o",
    "PermitLocalCommand=no",
    "-o",
    "RemoteCommand=none",
];

/// A background `ssh` that holds a connection.
pub struct Master {
    socket: PathBuf,
    /// The arguments that say where to connect, and how.
    connection_args: Vec<String>,
    name: String,
}

/// The remote part of a destination, if it is `openssh://`.
fn remote(destination: &Destination) -> Option<&Remote> {
    match destination.host.location() {
        Location::OpenSsh(remote) => Some(remote),
        _ => None,
    }
}

impl Master {
    /// Connects. ssh asks its questions on the user's terminal. `None` if the destination is not `openssh://`.
    pub fn connect(
        destination: &Destination,
        socket: PathBuf,
        policy: &Policy,
    ) -> Result<Option<Self>, Failure> {
        let Some(remote) = remote(destination) else {
            return Ok(None);
        };
        let master = Self {
            socket,
            connection_args: connection_args(destination, remote),
            name: remote.name.clone(),
        };
        let mut command = master.ssh();
        command.args([
            "-f",
            "-N",
            "-M",
            "-o",
            &format!("ControlPersist={PERSIST_SECONDS}"),
        ]);
        if policy.batch {
            command.args(["-o", "BatchMode=yes"]);
        }
        if let Some(jump) = &destination.connect.jump {
            command.args(["-J", jump]);
        }
        master.add_connection_args(&mut command);
        // ssh uses the first value of an option, so the user's options come first.
        command.args(["-o", "ServerAliveInterval=10"]);
        if !master.has_timeout() {
            command.args(["-o", CONNECT_TIMEOUT]);
        }
        command.args(["--", &master.name]);
        (policy.step)(&format!("{destination}: starting ssh -M"));
        let failed = |error: io::Error| {
            let message = match error.kind() {
                io::ErrorKind::NotFound => {
                    format!(
                        "{destination}: ssh is needed to reach it and was not found on this machine"
                    )
                }
                _ => format!("{destination}: ssh can't be started: {}", reason(&error)),
            };
            Failure::new(Kind::Failed, message)
        };
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(failed)?;
        let mut messages = Vec::new();
        if let Some(err) = child.stderr.take() {
            // ssh closes its standard error when it goes to the background.
            err.take(STDERR_MAX)
                .read_to_end(&mut messages)
                .map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        let messages = String::from_utf8_lossy(&messages);
        if status.success() {
            return Ok(Some(master));
        }
        Err(refusal(destination, &messages))
    }

    /// Whether the user's configuration limits the time to connect.
    fn has_timeout(&self) -> bool {
        let mut query = self.ssh();
        self.add_connection_args(&mut query);
        query.args(["-G", "--", &self.name]).stdout(Stdio::piped());
        // If ssh can't tell, it says why when it connects.
        query.output().is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout);
            let mut values = text
                .lines()
                .filter_map(|line| line.strip_prefix("connecttimeout "));
            values.any(|value| value != "none")
        })
    }

    /// The command that runs a shell on the host.
    pub fn shell(&self, destination: &Destination) -> Command {
        let mut command = self.ssh();
        // If the connection is gone, ssh must not make one of its own.
        command.args([
            "-T",
            "-o",
            "BatchMode=yes",
            "-o",
            "ControlMaster=no",
            "-o",
            "ProxyCommand=false",
        ]);
        self.add_connection_args(&mut command);
        // No word contains a NUL, since all come from arguments.
        let words = shlex::try_join(destination.shell()).unwrap_or_default();
        command.args(["--", &self.name, &format!("exec {words}")]);
        command
    }

    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.arg("-S").arg(&self.socket).args(BASE_OPTIONS);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        sys::process::start_clean(&mut command);
        command
    }

    fn add_connection_args(&self, command: &mut Command) {
        command.args(&self.connection_args);
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let mut command = self.ssh();
        self.add_connection_args(&mut command);
        command.args(["-O", "exit", "--", &self.name]);
        // If ssh has ended already, this fails, which is harmless.
        drop(command.stderr(Stdio::null()).status());
        drop(std::fs::remove_file(&self.socket));
    }
}

/// The options of the command line except for the jump hosts, which a shell does not need.
fn connection_args(destination: &Destination, remote: &Remote) -> Vec<String> {
    let connect = &destination.connect;
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut words = Vec::new();
    let mut add = |option: &str, value: Option<String>| {
        words.extend(
            value
                .into_iter()
                .flat_map(|value| [option.to_owned(), value]),
        );
    };
    add("-F", connect.config.as_deref().map(path));
    add(
        "-p",
        connect.port.or(remote.port).map(|port| port.to_string()),
    );
    add("-l", connect.user.clone().or_else(|| remote.user.clone()));
    for identity in &connect.identities {
        add("-i", Some(path(identity)));
    }
    for option in &connect.options {
        add("-o", Some(option.clone()));
    }
    words
}

/// Why ssh did not connect.
fn refusal(destination: &Destination, messages: &str) -> Failure {
    let lower = messages.to_lowercase();
    let kinds = [
        ("host key verification failed", Kind::HostKey),
        ("permission denied", Kind::Auth),
        ("too many authentication failures", Kind::Auth),
        ("could not resolve hostname", Kind::Unresolved),
        ("bad configuration option", Kind::Failed),
    ];
    let kind = kinds.iter().find(|(words, _)| lower.contains(words));
    let kind = kind.map_or(Kind::Unreachable, |(_, kind)| *kind);
    let last = messages.lines().rev().find(|line| !line.trim().is_empty());
    let last = printable(last.unwrap_or("it ended without a message"), 300);
    Failure::new(kind, format!("{destination}: ssh: {last}"))
}
