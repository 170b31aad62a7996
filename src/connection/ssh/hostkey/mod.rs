//! Whether a server's host key is the one that the user's `known_hosts` files vouch for.
//!
//! libssh2 has a check of its own, which is wrong where it matters: it accepts a `@revoked` key and a
//! changed key of `[host]:port` that equals the plain name's, knows no wildcards, negation or letter case,
//! and drops the rest of a file at one bad line. So the files are read and judged here, with the verdict
//! that ssh(1) gives, and a stricter one where ssh lets a doubtful key pass.
//!
//! - `key`: a host key as it goes over the wire, and its fingerprint
//! - `name`: the name under which a host is looked up, and what stands in the first field of a line
//! - `known_hosts`: the text of a `known_hosts` file, parsed
//! - `decision`: the verdict on a key, as a table apart from all I/O
//! - `file`: reading the files, and adding a line to one
//! - `message`: what the user is asked and told
//!
//! Stricter than ssh: a changed or revoked key is refused whatever `StrictHostKeyChecking` says, also when
//! it is revoked under the plain name of a host on another port; a marker may end with a tab; a `known_hosts`
//! file that can't be read is an error; and no line is recorded whose name would match other hosts.
//!
//! Not handled: host certificates (`@cert-authority` lines are named as unsupported), `CheckHostIP`,
//! `KnownHostsCommand`, `RevokedHostKeys`, `VerifyHostKeyDNS`, `UpdateHostKeys`, and
//! `NoHostAuthenticationForLocalhost`. Nothing here reads the configuration or talks to a terminal.

mod decision;
mod file;
mod key;
mod known_hosts;
mod message;
mod name;
#[cfg(test)]
mod verdicts;

pub use decision::{Decision, IfUnknown, StrictHostKeyChecking, decide, preferred_key_types};
pub use file::{KnownHostsError, add, read_all};
pub use key::HostKey;
pub use known_hosts::{KnownHostsFile, NewEntry};
pub use message::{HostKeyProblem, WhyRefused, answer, question};
pub use name::HostName;
