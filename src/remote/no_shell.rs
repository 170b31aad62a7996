//! Finds out why a host gave no shell, from the messages of the programs that should have started it.

use crate::error::{Failure, Kind};

/// Parts of messages, in lower case, that a prefix or a login prints when it gives no shell, and what they mean.
const NO_SHELL: [(&str, Kind, &str); 19] = [
    ("cannot fork", Kind::NoShell, NO_FORK),
    ("can't fork", Kind::NoShell, NO_FORK),
    ("fork: ", Kind::NoShell, NO_FORK),
    ("fork failed", Kind::NoShell, NO_FORK),
    (
        "no such container",
        Kind::NoContainer,
        "there is no such container",
    ),
    (
        "no container with name",
        Kind::NoContainer,
        "there is no such container",
    ),
    (
        "(notfound)",
        Kind::NoContainer,
        "there is no such pod or container",
    ),
    (
        "container not found",
        Kind::NoContainer,
        "there is no such pod or container",
    ),
    (
        "container is not valid for pod",
        Kind::NoContainer,
        "there is no such container in the pod",
    ),
    (
        "is not running",
        Kind::NoContainer,
        "the container is not running",
    ),
    (
        "on running containers",
        Kind::NoContainer,
        "the container is not running",
    ),
    (
        "container state improper",
        Kind::NoContainer,
        "the container is not running",
    ),
    (
        "cannot connect to",
        Kind::NoContainer,
        "the container runtime can't be reached",
    ),
    (
        "unable to connect to",
        Kind::NoContainer,
        "the container runtime can't be reached",
    ),
    (
        "connection refused",
        Kind::NoContainer,
        "the container runtime can't be reached",
    ),
    (
        "connection to the server",
        Kind::NoContainer,
        "the container runtime can't be reached",
    ),
    ("password is required", Kind::NoShell, NO_PASSWORD),
    ("/bin/sh: no such file", Kind::NoShell, NO_SH),
    ("\"/bin/sh\": ", Kind::NoShell, NO_SH),
];
/// Printed by the shell itself, so the script in its subshell has not begun.
pub(super) const NO_FORK: &str =
    "no more processes could be started there (`ulimit -u` shows the limit)";
const NO_PASSWORD: &str = "sudo needs a password and can't ask for one here: it is run as `sudo -n`, which needs a \
    NOPASSWD rule in sudoers(5)";
const NO_SH: &str = "there is no /bin/sh, which rsig needs";

/// The error for a shell that ended before the answer began.
pub(super) fn no_shell(host: &str, why: &str, said: &str) -> Failure {
    let lower = said.to_lowercase();
    // A shell's message about a line of its script: "/bin/sh: 50: ", "/bin/sh: line 50: ".
    let is_line =
        |rest: &str| rest.starts_with("line ") || rest.starts_with(|c: char| c.is_ascii_digit());
    match NO_SHELL.iter().find(|(words, ..)| lower.contains(words)) {
        Some((_, kind, meaning)) => Failure::new(*kind, format!("{host}: {meaning}{said}")),
        None if lower.split("/bin/sh: ").skip(1).any(is_line) => {
            let message = format!(
                "{host}: /bin/sh ended before it answered; the limit on open files may have been reached there (`ulimit -n` shows it){said}"
            );
            Failure::new(Kind::NoShell, message)
        }
        None => {
            // A shell may print nothing if a fork fails, for example where the script checks for a tool.
            let guess = if said.is_empty() {
                "a forced command or a --prefix without a shell, no shell access, or no more processes or open files \
                 allowed there, see `ulimit -u` and `ulimit -n`?"
            } else {
                "forced command or --prefix, or no shell access?"
            };
            let message =
                format!("{host} did not start /bin/sh for this user{why} ({guess}){said}");
            Failure::new(Kind::NoShell, message)
        }
    }
}
