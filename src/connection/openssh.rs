//! `openssh://`: the `ssh` program connects, once for each keeper (`ssh -M`), and each shell is an `ssh -S` over that.
//!
//! For what the built-in client lacks: Kerberos, FIDO keys, PKCS#11, host certificates.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Policy;
use crate::error::{Failure, Kind, reason};
use crate::escape::printable;
use crate::host::{Destination, Place, Remote};
use crate::sys;

/// How long the connection stays when the keeper was killed, in seconds.
const PERSIST: u32 = 60;
/// How much of what ssh says is kept.
const SAID_MAX: u64 = 64 << 10;
/// What neither the connection nor its shells are to do, whatever the configuration says.
const PLAIN: [&str; 6] = [
    "-o",
    "ClearAllForwardings=yes",
    "-o",
    "PermitLocalCommand=no",
    "-o",
    "RemoteCommand=none",
];

/// An `ssh` in the background that holds a connection.
pub struct Master {
    socket: PathBuf,
    /// The words of the command line that say where to connect, and how.
    way: Vec<String>,
    name: String,
}

/// The destination's parts, where it is one of these.
fn remote(destination: &Destination) -> Option<&Remote> {
    match destination.host.place() {
        Place::OpenSsh(remote) => Some(remote),
        _ => None,
    }
}

impl Master {
    /// Connects, and asks on the user's terminal what ssh asks; `None` where ssh is not to connect.
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
            way: way(destination, remote),
            name: remote.name.clone(),
        };
        let mut command = master.ssh();
        command.args(["-f", "-N", "-M", "-o", &format!("ControlPersist={PERSIST}")]);
        if policy.batch {
            command.args(["-o", "BatchMode=yes"]);
        }
        if let Some(jump) = &destination.connect.jump {
            command.args(["-J", jump]);
        }
        master.add_way(&mut command);
        // In this order, the first value counts: what was given does.
        command.args(["-o", "ServerAliveInterval=10"]);
        command.args(["--", &master.name]);
        (policy.step)(&format!("{destination}: starting ssh -M"));
        let failed = |error: io::Error| {
            let message = match error.kind() {
                io::ErrorKind::NotFound => {
                    format!("{destination}: ssh is needed to get there, and not found here")
                }
                _ => format!("{destination}: ssh can't be started: {}", reason(&error)),
            };
            Failure::new(Kind::Failed, message)
        };
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(failed)?;
        let mut said = Vec::new();
        if let Some(err) = child.stderr.take() {
            // It lets go of its standard error when it goes to the background.
            err.take(SAID_MAX).read_to_end(&mut said).map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        let said = String::from_utf8_lossy(&said);
        if status.success() {
            return Ok(Some(master));
        }
        Err(refusal(destination, &said))
    }

    /// The command that is a shell on the host.
    pub fn shell(&self, destination: &Destination) -> Command {
        let mut command = self.ssh();
        // Without the connection it would make one of its own.
        command.args([
            "-T",
            "-o",
            "BatchMode=yes",
            "-o",
            "ControlMaster=no",
            "-o",
            "ProxyCommand=false",
        ]);
        self.add_way(&mut command);
        // A NUL is in none of the words: they come from an argument.
        let words = shlex::try_join(destination.shell()).unwrap_or_default();
        command.args(["--", &self.name, &format!("exec {words}")]);
        command
    }

    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.arg("-S").arg(&self.socket).args(PLAIN);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        sys::process::start_clean(&mut command);
        command
    }

    fn add_way(&self, command: &mut Command) {
        command.args(&self.way);
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let mut command = self.ssh();
        self.add_way(&mut command);
        command.args(["-O", "exit", "--", &self.name]);
        // One that has ended needs no end.
        drop(command.stderr(Stdio::null()).status());
        drop(std::fs::remove_file(&self.socket));
    }
}

/// The options of the command line but for the jump hosts, which a shell has no use for.
fn way(destination: &Destination, remote: &Remote) -> Vec<String> {
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

/// Why ssh has not connected.
fn refusal(destination: &Destination, said: &str) -> Failure {
    let lower = said.to_lowercase();
    let kinds = [
        ("host key verification failed", Kind::HostKey),
        ("permission denied", Kind::Auth),
        ("too many authentication failures", Kind::Auth),
        ("could not resolve hostname", Kind::Unresolved),
        ("bad configuration option", Kind::Failed),
    ];
    let kind = kinds.iter().find(|(words, _)| lower.contains(words));
    let kind = kind.map_or(Kind::Unreachable, |(_, kind)| *kind);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    let last = printable(last.unwrap_or("it ended without a word"), 300);
    Failure::new(kind, format!("{destination}: ssh: {last}"))
}
