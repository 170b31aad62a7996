//! Queries `ssh -G` for the configuration of one destination.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::config::{CONNECT_TIMEOUT, invalid, split_option, user};
use super::sources::{self, Answer, Sources};
use crate::error::Failure;
use crate::escape::printable;
use crate::host::{Connect, Destination, Remote};

/// Queries ssh for a destination's configuration. Returns the answer and what it depends on.
///
/// Takes about 5 ms and runs the `Match exec` commands of the user's configuration.
pub fn ask(destination: &Destination) -> Result<(Answer, Sources), Failure> {
    let Some(remote) = destination.host.remote() else {
        return Err(invalid("this machine has no SSH configuration"));
    };
    let (connect, home) = (&destination.connect, user()?.dir);
    let answer = ask_ssh(remote, connect, &home)?;
    let text = answer.text.as_deref().unwrap_or_default();
    let canonical = |line: &str| {
        line.strip_prefix("canonicalizehostname ")
            .is_some_and(|value| !["false", "no", "none"].contains(&value))
    };
    let volatile = text.lines().any(canonical) || mentions(&answer.said, is_volatile);
    let sources = Sources::new(&answer.said, connect.config.as_deref(), &home, volatile);
    Ok((answer, sources))
}

/// Whether `kind` applies to any line of the files that ssh has read.
fn mentions(said: &str, kind: fn(&str) -> bool) -> bool {
    let has = |file: PathBuf| {
        let text = fs::read(file).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .to_ascii_lowercase()
            .lines()
            .any(|line| kind(line.trim_start()))
    };
    sources::read_files(said).any(has)
}

/// Whether the result of a line depends on a command or the network, and so can change while no file does.
fn is_volatile(line: &str) -> bool {
    line.starts_with("match") && (line.contains("exec") || line.contains("localnetwork"))
}

/// The arguments of `ssh -G` for a destination.
fn query_args(remote: &Remote, connect: &Connect) -> Vec<OsString> {
    // -T prevents a warning about the terminal. ControlPath is printed expanded and not used here, so it serves to get
    // %C, whose definition changed between versions.
    let mut args: Vec<OsString> = ["-G", "-T", "-o", "ControlPath=%C"]
        .map(Into::into)
        .to_vec();
    let mut add = |flag: &str, value: OsString| args.extend([flag.into(), value]);
    if let Some(config) = &connect.config {
        add("-F", config.into());
    }
    if let Some(port) = connect.port.or(remote.port) {
        add("-p", port.to_string().into());
    }
    if let Some(user) = connect.user.as_ref().or(remote.user.as_ref()) {
        add("-l", user.into());
    }
    for identity in &connect.identities {
        // Not -i, which skips a key whose private half is held by an agent.
        let mut option = OsString::from("IdentityFile=\"");
        option.push(identity);
        option.push("\"");
        add("-o", option);
    }
    if let Some(jump) = &connect.jump {
        add("-J", jump.into());
    }
    for option in &connect.options {
        add("-o", option.into());
    }
    args.extend(["--".into(), remote.name.clone().into()]);
    args
}

/// How long `ssh -G` may take, as a `Match exec` can hang: the `ConnectTimeout` of the command line, else the largest
/// in the configuration file (which of them applies is only known afterwards).
fn query_limit(connect: &Connect, home: &Path) -> Duration {
    let timeout = |line: &str| -> Option<u64> {
        let (key, value) = split_option(line.trim_start())?;
        let is_timeout = key.eq_ignore_ascii_case("ConnectTimeout");
        is_timeout.then(|| value.parse().ok())?.filter(|s| *s > 0)
    };
    let given = connect.options.iter().find_map(|option| timeout(option));
    let file = connect.config.clone();
    let file = file.unwrap_or_else(|| home.join(".ssh/config"));
    let in_file = || {
        fs::read_to_string(file)
            .ok()?
            .lines()
            .filter_map(timeout)
            .max()
    };
    given
        .or_else(in_file)
        .map_or(CONNECT_TIMEOUT, Duration::from_secs)
}

/// Runs a command without input to its end. It is killed after `limit`.
pub(super) fn output_within(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let (sender, receiver) = mpsc::channel();
    // The receiver is dropped at a timeout, so a failed send is harmless.
    let wait = move || drop(sender.send(child.wait_with_output()));
    if let Err(error) = std::thread::Builder::new().spawn(wait) {
        let _ = kill(pid, Signal::SIGKILL);
        return Err(error);
    }
    receiver.recv_timeout(limit).unwrap_or_else(|_| {
        // Not reaped yet: the thread is still waiting for it.
        let _ = kill(pid, Signal::SIGKILL);
        let reason = format!("took longer than {} s (ConnectTimeout)", limit.as_secs());
        Err(io::Error::new(ErrorKind::TimedOut, reason))
    })
}

/// The output of `ssh -v -G`, which names the files that ssh reads. As `-v` overrides `LogLevel`, ssh is queried again
/// without it if that option is set.
fn ask_ssh(remote: &Remote, connect: &Connect, home: &Path) -> Result<Answer, Failure> {
    let mut answer = ask_once(remote, connect, home, true)?;
    let is_log_level = |line: &str| line.starts_with("loglevel");
    let given = |option: &String| is_log_level(&option.to_ascii_lowercase());
    if connect.options.iter().any(given) || mentions(&answer.said, is_log_level) {
        answer.text = ask_once(remote, connect, home, false)?.text;
    } else if let Some(text) = &mut answer.text {
        *text = text.replace("\nloglevel DEBUG\n", "\nloglevel INFO\n");
    }
    Ok(answer)
}

fn ask_once(
    remote: &Remote,
    connect: &Connect,
    home: &Path,
    verbose: bool,
) -> Result<Answer, Failure> {
    let limit = query_limit(connect, home);
    let mut command = Command::new("ssh");
    if verbose {
        command.arg("-v");
    }
    let output = match output_within(command.args(query_args(remote, connect)), limit) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Answer::default()),
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            let reason = "does a Match exec hang?";
            return Err(invalid(format!("ssh -G {error}: {reason}")));
        }
        output => output.map_err(|error| invalid(format!("can't run ssh -G: {error}")))?,
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    let is_debug = |line: &str| line.starts_with("debug1: ") || line.starts_with("OpenSSH_");
    let lines = errors.lines().map(str::trim).filter(|l| !l.is_empty());
    let lines = lines.filter(|line| !is_debug(line));
    let said: Vec<String> = lines.take(10).map(|line| printable(line, 300)).collect();
    if !output.status.success() {
        let reason = if said.is_empty() {
            output.status.to_string()
        } else {
            said.join("; ")
        };
        let message = format!("ssh does not accept the configuration: {reason}");
        return Err(invalid(message));
    }
    Ok(Answer {
        text: Some(String::from_utf8_lossy(&output.stdout).into()),
        warnings: said,
        said: errors.into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_is_asked_with_the_options_given() {
        let connect = Connect {
            port: Some(5),
            config: Some("/c".into()),
            jump: Some("gate".into()),
            identities: vec!["/a b".into()],
            options: vec!["BatchMode=yes".into()],
            ..Connect::default()
        };
        let args = query_args(&"bob@web1:23".parse().unwrap(), &connect);
        assert_eq!(
            args.join(std::ffi::OsStr::new(" ")),
            "-G -T -o ControlPath=%C -F /c -p 5 -l bob -o IdentityFile=\"/a b\" -J gate -o BatchMode=yes -- web1"
        );
    }

    #[test]
    fn ssh_may_take_as_long_as_a_connection() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        fs::write(&config, "Host a\n  ConnectTimeout 20\nconnecttimeout=40\n").unwrap();
        let limit = |connect: &Connect| query_limit(connect, dir.path()).as_secs();
        assert_eq!(limit(&Connect::default()), 15);
        let in_file = Connect {
            config: Some(config),
            ..Connect::default()
        };
        assert_eq!(limit(&in_file), 40);
        let given = Connect {
            options: vec!["ConnectTimeout=3".into()],
            ..in_file
        };
        assert_eq!(limit(&given), 3);
    }
}
