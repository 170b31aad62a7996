//! Checks a server's host key against the user's `known_hosts` files.
//!
//! libssh2 has a check of its own, which is wrong where it matters: it accepts a `@revoked` key and a changed key of
//! `[host]:port` that equals the plain name's, does not handle wildcards, negation or letter case, and ignores the rest
//! of a file after one bad line. So the files are read and judged here, with the verdict that ssh(1) gives, or a
//! stricter one where ssh accepts a doubtful key.
//!
//! Stricter than ssh: a changed or revoked key is refused whatever `StrictHostKeyChecking` says, even if
//! it is revoked under the plain name of a host on another port; a marker may end with a tab; a `known_hosts`
//! file that can't be read is an error; and no line is recorded whose name would match other hosts.
//!
//! Not handled: host certificates (`@cert-authority` lines are named as unsupported), `CheckHostIP`,
//! `VerifyHostKeyDNS`, `UpdateHostKeys`, and `NoHostAuthenticationForLocalhost`.

#[cfg(fuzzing)]
pub mod fuzz;
mod known_hosts;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::Command;

pub use known_hosts::HostName;
use known_hosts::{KnownHost, Marker};

use super::config::Resolved;
use super::key::PublicKey;
use super::prompt::Prompter;
use super::query::output_within;
use super::tokens::FOR_COMMAND;
use crate::connection::Policy;
use crate::error::{Failure, Kind};
use crate::escape::printable;

const USER_FILES: &str = "~/.ssh/known_hosts ~/.ssh/known_hosts2";
const GLOBAL_FILES: &str = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2";
/// How many of the other names of a key the question lists, as in ssh.
const OTHER_NAMES_SHOWN: usize = 8;
/// How many times the question is asked until there is a valid answer.
const MAX_QUESTIONS: u32 = 5;
/// The host key algorithms of libssh2 1.11, in the order in which they are requested from an unknown host. Certificate
/// algorithms are left out: a server that has a certificate would present it instead of its plain key.
const ALGORITHMS: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
    "ssh-rsa",
];

/// What to do with an unknown host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StrictHostKeyChecking {
    Yes,
    Ask,
    AcceptNew,
    /// Same as `AcceptNew` here: a changed key is never accepted.
    No,
}

/// What the files say about a key.
#[derive(Debug)]
enum Verdict<'a> {
    Known(&'a KnownHost),
    Revoked(&'a KnownHost),
    /// The host is known with other keys only. Holds a line with one of them, of the same type if there is one.
    Changed(&'a KnownHost),
    /// No line decides. May hold a line with another key for the host's name without its port.
    Unknown(Option<&'a KnownHost>),
}

/// Judges the key that a host presents by the lines of the files, the user's before the system's.
///
/// The order is ssh's. Among the lines for `[host]:port`, one that revokes the key wins, then one that has it, then one
/// that has another. The plain name is looked up only if there is no key at all for `[host]:port`, and only the same
/// key (or its revocation) counts there: another key for the plain name leaves the host unknown, since it may well be
/// another server's.
fn verdict<'a>(lines: &'a [KnownHost], host: &HostName, key: &PublicKey) -> Verdict<'a> {
    match (verdict_on(lines, &host.name, key), &host.without_port) {
        (Verdict::Unknown(_), Some(plain)) => match verdict_on(lines, plain, key) {
            Verdict::Changed(line) => Verdict::Unknown(Some(line)),
            verdict => verdict,
        },
        (verdict, _) => verdict,
    }
}

fn verdict_on<'a>(lines: &'a [KnownHost], name: &str, key: &PublicKey) -> Verdict<'a> {
    let about: Vec<&KnownHost> = lines.iter().filter(|l| l.names.matches(name)).collect();
    let with_key = |marker| about.iter().find(|l| l.marker == marker && l.key == *key);
    if let Some(line) = with_key(Marker::Revoked) {
        return Verdict::Revoked(line);
    }
    if let Some(line) = with_key(Marker::None) {
        return Verdict::Known(line);
    }
    // Of several lines, the last one (which ssh names too), but preferably one of the same type, which the user can
    // compare.
    about
        .iter()
        .filter(|line| line.marker == Marker::None)
        .max_by_key(|line| line.key.kind == key.kind)
        .map_or(Verdict::Unknown(None), |line| Verdict::Changed(line))
}

/// The host key algorithms to request, of those `offered` by the library. Those for which a key of the host is known
/// come first: a server with several keys might otherwise present an unknown one.
fn preferred<'a>(lines: &[KnownHost], host: &HostName, offered: &[&'a str]) -> Vec<&'a str> {
    let kinds = |name: &str| -> Vec<&str> {
        let about: Vec<&KnownHost> = lines.iter().filter(|l| l.names.matches(name)).collect();
        let is_revoked = |key: &PublicKey| {
            let revokes = |line: &&KnownHost| line.marker == Marker::Revoked && line.key == *key;
            about.iter().any(revokes)
        };
        about
            .iter()
            .filter(|line| line.marker == Marker::None && !is_revoked(&line.key))
            .map(|line| line.key.kind.as_str())
            .collect()
    };
    let mut known = kinds(&host.name);
    if let (true, Some(plain)) = (known.is_empty(), &host.without_port) {
        known = kinds(plain);
    }
    // RFC 8332 3: an RSA key stays ssh-rsa, whatever it signs with.
    let kind_of = |algorithm: &str| match algorithm.strip_prefix("rsa-sha2-") {
        Some(_) => "ssh-rsa".to_owned(),
        None => algorithm.to_owned(),
    };
    let (first, rest): (Vec<&str>, Vec<&str>) = ALGORITHMS
        .iter()
        .filter_map(|algorithm| offered.iter().find(|offered| *offered == algorithm))
        .partition(|algorithm| known.contains(&kind_of(algorithm).as_str()));
    [first, rest].concat()
}

/// The known keys of one host, and how to handle a key that is not among them.
pub struct HostKeys<'a> {
    host: HostName,
    lines: Vec<KnownHost>,
    checking: StrictHostKeyChecking,
    /// The file to which new keys are added.
    file: Option<PathBuf>,
    config: &'a Resolved,
    policy: Policy,
}

impl<'a> HostKeys<'a> {
    /// Reads the files that the configuration names.
    pub fn read(config: &'a Resolved, policy: &Policy) -> Result<Self, Failure> {
        let user = config.path_list("userknownhostsfile", USER_FILES)?;
        let global = config.path_list("globalknownhostsfile", GLOBAL_FILES)?;
        let mut lines = Vec::new();
        for file in user.iter().chain(&global) {
            lines.extend(known_hosts::read(file)?);
        }
        for file in config.paths("revokedhostkeys")? {
            lines.extend(known_hosts::read_revoked(&file)?);
        }
        Ok(Self {
            host: match config.host_key_alias() {
                Some(alias) => HostName::alias(alias),
                None => HostName::new(&config.host_name, config.port),
            },
            lines,
            checking: match config.text("stricthostkeychecking") {
                Some("yes" | "true") => StrictHostKeyChecking::Yes,
                Some("accept-new") => StrictHostKeyChecking::AcceptNew,
                Some("no" | "false" | "off") => StrictHostKeyChecking::No,
                _ => StrictHostKeyChecking::Ask,
            },
            file: user.into_iter().next(),
            config,
            policy: *policy,
        })
    }

    /// The lines that a `KnownHostsCommand` prints for the host, or for the key that the host presents.
    fn ask_command(&self, key: Option<&PublicKey>) -> Result<Vec<KnownHost>, Failure> {
        let option = "KnownHostsCommand";
        let Some(command) = self.config.text("knownhostscommand") else {
            return Ok(Vec::new());
        };
        let failed = |reason: &str| {
            let message = format!("{option} {command:?} {reason}");
            Failure::new(Kind::HostKey, message)
        };
        let none = || "NONE".to_owned();
        let base64 = key.map(PublicKey::to_line);
        let base64 = base64.as_ref().and_then(|line| line.split_once(' '));
        let tokens = [
            ('f', key.map_or_else(none, PublicKey::fingerprint)),
            ('H', self.host.name.clone()),
            (
                'I',
                if key.is_some() { "HOSTNAME" } else { "ORDER" }.to_owned(),
            ),
            ('K', base64.map_or_else(none, |(_, text)| text.to_owned())),
            ('t', key.map_or_else(none, |key| key.kind.clone())),
        ];
        let words = shlex::split(command).ok_or_else(|| failed("has an open quote"))?;
        let words = words
            .iter()
            .map(|word| self.config.expand(option, word, FOR_COMMAND, &tokens));
        let words = words.collect::<Result<Vec<_>, _>>()?;
        let (program, args) = words.split_first().ok_or_else(|| failed("is empty"))?;
        let limit = self.config.connect_timeout();
        let output = output_within(Command::new(program).args(args), limit)
            .map_err(|error| failed(&format!("can't be run: {error}")))?;
        if !output.status.success() {
            return Err(failed(&format!("failed ({})", output.status)));
        }
        Ok(known_hosts::parse(Path::new(option), &output.stdout))
    }

    /// The algorithms to request, in libssh2's notation.
    pub fn preferred(&self, offered: &[&str]) -> Result<String, Failure> {
        let lines = [&self.lines[..], &self.ask_command(None)?].concat();
        Ok(preferred(&lines, &self.host, offered).join(","))
    }

    /// Checks whether the server's key (RFC 4253 6.6) is the host's. May ask the user about an unknown one.
    pub fn check(&mut self, key: &[u8], prompter: Prompter) -> Result<(), Failure> {
        let key = PublicKey::from_blob(key);
        self.lines.extend(self.ask_command(key.as_ref())?);
        let host = &self.host;
        let message = match key {
            None => format!("the server sent a malformed host key for {host}"),
            Some(key) => match verdict(&self.lines, host, &key) {
                Verdict::Known(line) => {
                    (self.policy.step)(&format!("{host}: {line} has its key"));
                    return Ok(());
                }
                Verdict::Revoked(line) => format!(
                    "the host key of {host} is revoked: {line} says that {} must not be accepted\n\
                     Someone may be using a stolen key. Ask the host's administrator, who has to give it \
                     a new one.",
                    key.label()
                ),
                Verdict::Changed(line) => changed(host, &key, line),
                Verdict::Unknown(other) => match self.unknown(&key, other, prompter) {
                    Ok(()) => return Ok(()),
                    Err(message) => message,
                },
            },
        };
        Err(Failure::new(Kind::HostKey, message))
    }

    fn unknown(
        &self,
        key: &PublicKey,
        other: Option<&KnownHost>,
        prompter: Prompter,
    ) -> Result<(), String> {
        use StrictHostKeyChecking::{AcceptNew, Ask, No, Yes};
        let hints = self.hints(other);
        let mut remedy = true;
        let why = match self.checking {
            Yes => "StrictHostKeyChecking is yes",
            _ if !self.host.can_be_recorded() => {
                remedy = false;
                "its name holds characters that can't stand in a known_hosts file (set a plain \
                 HostKeyAlias)"
            }
            AcceptNew | No => {
                self.add(key);
                return Ok(());
            }
            Ask => match self.ask(key, &hints, prompter) {
                Ok(true) => {
                    self.add(key);
                    return Ok(());
                }
                Ok(false) => {
                    remedy = false;
                    "you did not accept it"
                }
                Err(_) => "nobody can be asked (no terminal, or BatchMode)",
            },
        };
        let (host, label) = (&self.host, key.label());
        let mut text = format!("the host key of {host}, {label}, is not known, and {why}{hints}");
        match self.file.as_ref().filter(|_| self.host.can_be_recorded()) {
            _ if !remedy => {}
            Some(file) => text.push_str(&format!(
                "\nIf its administrator confirms this fingerprint, add this line to {}:\n    {}\n\
                 or connect once with ssh, or pass -o StrictHostKeyChecking=accept-new.",
                printable(file.to_string_lossy().as_bytes(), 1000),
                host.line(key)
            )),
            None => text.push_str(
                "\nIf its administrator confirms this fingerprint, add it to a known_hosts file and name \
                 that file with -o UserKnownHostsFile=FILE.",
            ),
        }
        Err(text)
    }

    /// Lines of the files that are related to an unknown host, described one per line.
    fn hints(&self, other: Option<&KnownHost>) -> String {
        let mut text = String::new();
        let is_authority = |line: &&KnownHost| {
            line.marker == Marker::CertAuthority && line.names.matches(&self.host.name)
        };
        if let Some(line) = self.lines.iter().find(is_authority) {
            text.push_str(&format!(
                "\n{line} names a certificate authority for it (@cert-authority), but host certificates \
                 are not supported: its plain key has to be known."
            ));
        }
        if let Some(line) = other {
            text.push_str(&format!(
                "\n{line} has another key for this name without the port."
            ));
        }
        text
    }

    fn add(&self, key: &PublicKey) {
        let Some(file) = &self.file else {
            return;
        };
        let (host, path) = (&self.host, file.display());
        let hash = self.config.is_on("hashknownhosts", false);
        (self.policy.warn)(&match known_hosts::add(file, host, key, hash) {
            Ok(()) => format!("{host}: its key was added to {path}"),
            Err(error) => format!(
                "{host}: its key is accepted this time only: can't add it to {path}: {error}"
            ),
        });
    }

    /// Whether the user accepts an unknown key.
    fn ask(&self, key: &PublicKey, hints: &str, prompter: Prompter) -> Result<bool, String> {
        let mut question = self.question(key, hints);
        for _ in 0..MAX_QUESTIONS {
            let given = prompter.ask(&question, true)?.unwrap_or_default();
            if let Some(answer) = answer(&given, &key.fingerprint()) {
                return Ok(answer);
            }
            "Please type 'yes', 'no' or the fingerprint: ".clone_into(&mut question);
        }
        Ok(false)
    }

    fn question(&self, key: &PublicKey, hints: &str) -> String {
        let has_key = |line: &&KnownHost| line.marker == Marker::None && line.key == *key;
        let others: Vec<&KnownHost> = self.lines.iter().filter(has_key).collect();
        let mut known_by = if others.is_empty() {
            "This key is not known by any other names.".to_owned()
        } else {
            "This key is known by these other names:".to_owned()
        };
        for line in others.iter().take(OTHER_NAMES_SHOWN) {
            known_by.push_str(&format!("\n    {line}: {}", line.names.text()));
        }
        if others.len() > OTHER_NAMES_SHOWN {
            known_by.push_str(&format!(
                "\n    ({} more)",
                others.len() - OTHER_NAMES_SHOWN
            ));
        }
        format!(
            "The authenticity of host '{}' can't be established.\n{} key fingerprint is {}.{hints}\n\
             {known_by}\nConnect to it and remember the key (yes/no/[fingerprint])? ",
            self.host,
            key.kind,
            key.fingerprint()
        )
    }
}

fn changed(host: &HostName, key: &PublicKey, line: &KnownHost) -> String {
    let known = line.key.label();
    let known_by = if line.key.kind == key.kind {
        format!("{line} has {known}")
    } else {
        format!("{line} knows it by a key of another type, {known}")
    };
    // Quotes the text for a POSIX shell.
    let quote = |text: &str| {
        shlex::try_quote(text).map_or_else(|_| text.to_owned(), std::convert::Into::into)
    };
    let remove = format!(
        "ssh-keygen -R {} -f {}",
        quote(&host.name),
        quote(&line.file)
    );
    format!(
        "the host key of {host} has changed: it is now {}, but {known_by}\n\
         Someone may be intercepting the connection, or the host was reinstalled. Ask its administrator \
         which key is right. If the new one is, remove the old one and connect again:\n    {}",
        key.label(),
        printable(&remove, 2000)
    )
}

/// The user's answer: yes (the word, or the exact fingerprint) or no (the word, or nothing). `None` means that the
/// question must be asked again.
fn answer(text: &str, fingerprint: &str) -> Option<bool> {
    let text = text.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("no") {
        Some(false)
    } else if text.eq_ignore_ascii_case("yes") || text == fingerprint {
        Some(true)
    } else {
        None
    }
}
