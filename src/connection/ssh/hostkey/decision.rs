//! The verdict on a host key: known, revoked, changed or unknown, and what the policy makes of an
//! unknown one. A pure function of the parsed files, so that its tests are tables.
//!
//! The order is ssh's. Among the lines about `[host]:port`, one that revokes the key wins, then one that
//! has it, then one that has another. Only where there is no key at all for `[host]:port` is the plain name
//! looked at, and there only the same key (or its revocation) counts: another key for the plain name
//! leaves the host unknown, since it may well be another server's.

use std::str::FromStr;

use thiserror::Error;

use super::key::KeyLabel;
use super::known_hosts::Location;
use super::known_hosts::{Entry, Marker};
use super::{HostKey, HostName, KnownHostsFile, NewEntry, WhyRefused};

/// `ssh_config(5)` `StrictHostKeyChecking`: what becomes of a host that no file knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrictHostKeyChecking {
    /// Refuse it.
    Yes,
    /// Ask the user.
    Ask,
    /// Add its key and go on.
    AcceptNew,
    /// As `AcceptNew`. A changed or revoked key, which ssh would let pass here, is refused all the same.
    No,
}

/// A value that `StrictHostKeyChecking` doesn't have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("StrictHostKeyChecking is {0:?}, which is none of yes, accept-new, no and ask")]
pub struct UnknownPolicy(String);

impl FromStr for StrictHostKeyChecking {
    type Err = UnknownPolicy;

    /// Reads the value as a user writes it, or as `ssh -G` prints it.
    fn from_str(value: &str) -> Result<Self, UnknownPolicy> {
        match value.to_ascii_lowercase().as_str() {
            "yes" | "true" => Ok(Self::Yes),
            "ask" => Ok(Self::Ask),
            "accept-new" => Ok(Self::AcceptNew),
            "no" | "false" | "off" => Ok(Self::No),
            _ => Err(UnknownPolicy(value.to_owned())),
        }
    }
}

/// What to do about the key that a host has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is the host's: go on.
    Accept {
        /// The line that vouches for it.
        at: Location,
    },
    /// It must never be accepted: refuse.
    Revoked {
        /// The line that revokes it.
        at: Location,
    },
    /// The host is known by other keys only: refuse.
    Changed {
        /// A line with another key: of the same type where there is one.
        at: Location,
        /// The key in that line.
        known: KeyLabel,
    },
    /// No line tells.
    Unknown {
        /// What the policy says.
        then: IfUnknown,
        /// What else the files hold that the user should know.
        hints: Hints,
    },
}

/// What the policy makes of an unknown host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfUnknown {
    /// Ask the user; after a yes, add this line and go on. Without a terminal: refuse.
    Ask(NewEntry),
    /// Add this line and go on.
    AcceptNew(NewEntry),
    /// Refuse.
    Refuse(WhyRefused),
}

/// What the files hold around an unknown host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// A `@cert-authority` line that is about the host: certificates are not supported.
    pub cert_authority: Option<Location>,
    /// A line with another key for the host's name without its port.
    pub other_key_without_port: Option<Location>,
    /// Other hosts that have this very key.
    pub other_names: Vec<OtherName>,
}

/// A line that has the key under other names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherName {
    /// Where.
    pub at: Location,
    /// The names, ready to be shown.
    pub names: String,
}

/// Judges the key that a host has shown by the `known_hosts` files, the user's before the system's.
pub fn decide(
    files: &[KnownHostsFile],
    host: &HostName,
    key: &HostKey,
    policy: StrictHostKeyChecking,
) -> Decision {
    match verdict(files, host.as_str(), key) {
        Verdict::Revoked(at) => return Decision::Revoked { at },
        Verdict::Same(at) => return Decision::Accept { at },
        Verdict::Other { at, known } => return Decision::Changed { at, known },
        Verdict::None => {}
    }
    let mut hints = Hints {
        cert_authority: cert_authority(files, host.as_str()),
        other_key_without_port: None,
        other_names: other_names(files, key),
    };
    if let Some(plain) = host.without_port() {
        match verdict(files, plain, key) {
            Verdict::Revoked(at) => return Decision::Revoked { at },
            Verdict::Same(at) => return Decision::Accept { at },
            Verdict::Other { at, .. } => hints.other_key_without_port = Some(at),
            Verdict::None => {}
        }
    }
    let then = if_unknown(host.entry_for(key), policy);
    Decision::Unknown { then, hints }
}

fn if_unknown(entry: Option<NewEntry>, policy: StrictHostKeyChecking) -> IfUnknown {
    use StrictHostKeyChecking::{AcceptNew, Ask, No, Yes};
    match (policy, entry) {
        (Yes, _) => IfUnknown::Refuse(WhyRefused::StrictChecking),
        (_, None) => IfUnknown::Refuse(WhyRefused::NameCannotBeRecorded),
        (Ask, Some(entry)) => IfUnknown::Ask(entry),
        (AcceptNew | No, Some(entry)) => IfUnknown::AcceptNew(entry),
    }
}

/// What the lines about one name say of a key.
enum Verdict {
    Revoked(Location),
    Same(Location),
    Other { at: Location, known: KeyLabel },
    None,
}

fn verdict(files: &[KnownHostsFile], name: &str, key: &HostKey) -> Verdict {
    let lines: Vec<_> = lines_about(files, name).collect();
    let with_key = |marker| {
        lines
            .iter()
            .find(|(_, entry)| entry.marker == marker && entry.key == *key)
            .map(|(file, entry)| file.location(entry))
    };
    if let Some(at) = with_key(Marker::Revoked) {
        return Verdict::Revoked(at);
    }
    if let Some(at) = with_key(Marker::HostKey) {
        return Verdict::Same(at);
    }
    // Of several, the last one (which ssh names too), but rather one that the user can compare.
    let other = lines
        .iter()
        .filter(|(_, entry)| entry.marker == Marker::HostKey)
        .max_by_key(|(_, entry)| entry.key.type_name() == key.type_name());
    match other {
        Some((file, entry)) => Verdict::Other {
            at: file.location(entry),
            known: entry.key.label(),
        },
        None => Verdict::None,
    }
}

/// The lines that are about the host of this name, in the order of the files.
fn lines_about<'a>(
    files: &'a [KnownHostsFile],
    name: &'a str,
) -> impl Iterator<Item = (&'a KnownHostsFile, &'a Entry)> {
    all_lines(files).filter(move |(_, entry)| entry.names.matches(name))
}

fn all_lines(files: &[KnownHostsFile]) -> impl Iterator<Item = (&KnownHostsFile, &Entry)> {
    files
        .iter()
        .flat_map(|file| file.entries.iter().map(move |entry| (file, entry)))
}

fn cert_authority(files: &[KnownHostsFile], name: &str) -> Option<Location> {
    lines_about(files, name)
        .find(|(_, entry)| entry.marker == Marker::CertAuthority)
        .map(|(file, entry)| file.location(entry))
}

/// Every line that has the key: of an unknown host, so all of them are about others.
fn other_names(files: &[KnownHostsFile], key: &HostKey) -> Vec<OtherName> {
    all_lines(files)
        .filter(|(_, entry)| entry.marker == Marker::HostKey && entry.key == *key)
        .map(|(file, entry)| OtherName {
            at: file.location(entry),
            names: entry.names.text(),
        })
        .collect()
}

/// The host key algorithms that libssh2 1.11 has, in the order in which an unknown host is asked for them.
/// Certificate algorithms are left out: a server that has one would show it in place of its plain key.
const ALGORITHMS: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
    "ssh-rsa",
];

/// The host key algorithms to offer a server, those first for which a key of the host is known: else a
/// server with several keys would show one that nobody knows, and look changed.
pub fn preferred_key_types(files: &[KnownHostsFile], host: &HostName) -> Vec<&'static str> {
    let mut known = usable_keys(files, host.as_str());
    if let (true, Some(plain)) = (known.is_empty(), host.without_port()) {
        known = usable_keys(files, plain);
    }
    let is_known = |algorithm: &&str| {
        let wanted = key_type_of(algorithm);
        known.iter().any(|key| key.type_name() == wanted)
    };
    let (mut first, rest): (Vec<_>, Vec<_>) = ALGORITHMS.into_iter().partition(is_known);
    first.extend(rest);
    first
}

/// The keys of the host of this name, without the revoked ones.
fn usable_keys<'a>(files: &'a [KnownHostsFile], name: &'a str) -> Vec<&'a HostKey> {
    let lines: Vec<_> = lines_about(files, name).map(|(_, entry)| entry).collect();
    let is_revoked = |key: &HostKey| {
        lines
            .iter()
            .any(|entry| entry.marker == Marker::Revoked && entry.key == *key)
    };
    lines
        .iter()
        .filter(|entry| entry.marker == Marker::HostKey && !is_revoked(&entry.key))
        .map(|entry| &entry.key)
        .collect()
}

/// The type of the key that an algorithm signs with (RFC 8332 3: RSA keys stay `ssh-rsa`).
fn key_type_of(algorithm: &str) -> &str {
    match algorithm {
        "rsa-sha2-512" | "rsa-sha2-256" => "ssh-rsa",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::key::tests::{ed25519, rsa};
    use super::*;

    fn file(name: &str, text: &str) -> KnownHostsFile {
        let text = text
            .replace("{server}", &ed25519(1).text())
            .replace("{other}", &ed25519(2).text())
            .replace("{rsa}", &rsa(1).text());
        KnownHostsFile::parse(Path::new(name), text.as_bytes())
    }

    fn at(file: &str, line: usize) -> Location {
        Location {
            file: file.into(),
            line,
        }
    }

    fn web() -> HostName {
        HostName::new("web", 2222)
    }

    fn judge(files: &[KnownHostsFile], policy: StrictHostKeyChecking) -> Decision {
        decide(files, &web(), &ed25519(1), policy)
    }

    // Most of the table stands in tests/hostkeys.rs, held against ssh itself.

    #[test]
    fn only_an_unknown_host_depends_on_the_policy() {
        use StrictHostKeyChecking::{AcceptNew, Ask, No, Yes};
        let known = file("a", "[web]:2222 {server}\n");
        let changed = file("b", "[web]:2222 {other}\n");
        let revoked = file("c", "@revoked * {server}\n");
        for policy in [Yes, Ask, AcceptNew, No] {
            assert_eq!(
                judge(&[changed.clone(), known.clone()], policy),
                Decision::Accept { at: at("a", 1) }
            );
            assert_eq!(
                judge(&[known.clone(), revoked.clone()], policy),
                Decision::Revoked { at: at("c", 1) }
            );
            assert_eq!(
                judge(std::slice::from_ref(&changed), policy),
                Decision::Changed {
                    at: at("b", 1),
                    known: ed25519(2).label()
                }
            );
        }
        let entry = web().entry_for(&ed25519(1)).unwrap();
        for (policy, then) in [
            (Yes, IfUnknown::Refuse(WhyRefused::StrictChecking)),
            (Ask, IfUnknown::Ask(entry.clone())),
            (AcceptNew, IfUnknown::AcceptNew(entry.clone())),
            (No, IfUnknown::AcceptNew(entry.clone())),
        ] {
            let hints = Hints::default();
            assert_eq!(judge(&[], policy), Decision::Unknown { then, hints });
        }
    }

    #[test]
    fn an_unknown_host_comes_with_hints() {
        let files = [file(
            "k",
            "web {other}\n@cert-authority *:2222 {rsa}\nDb,DB2 {server}\n@revoked x {server}\n",
        )];
        let Decision::Unknown { hints, .. } = judge(&files, StrictHostKeyChecking::Ask) else {
            panic!("not unknown");
        };
        let expected = Hints {
            cert_authority: Some(at("k", 2)),
            other_key_without_port: Some(at("k", 1)),
            other_names: vec![OtherName {
                at: at("k", 3),
                names: "db,db2".to_owned(),
            }],
        };
        assert_eq!(hints, expected);
    }

    #[test]
    fn a_changed_key_is_compared_with_one_of_its_type() {
        let files = [file("k", "[web]:2222 {other}\n[web]:2222 {rsa}\n")];
        let expected = Decision::Changed {
            at: at("k", 1),
            known: ed25519(2).label(),
        };
        assert_eq!(judge(&files, StrictHostKeyChecking::Yes), expected);
    }

    #[test]
    fn known_types_come_first() {
        let default = ALGORITHMS.to_vec();
        let rsa_first = [&ALGORITHMS[4..], &ALGORITHMS[..4]].concat();
        let cases: &[(&str, &str, &[&str])] = &[
            ("nothing known", "", &default),
            ("ed25519", "[web]:2222 {other}\n", &default),
            ("rsa", "[web]:2222 {rsa}\n", &rsa_first),
            ("without the port", "web {rsa}\n", &rsa_first),
            (
                "port before none",
                "web {rsa}\n[web]:2222 {other}\n",
                &default,
            ),
            ("revoked", "[web]:2222 {rsa}\n@revoked * {rsa}\n", &default),
            ("authority", "@cert-authority * {rsa}\n", &default),
            ("of another host", "db {rsa}\n", &default),
            (
                "both",
                "[web]:2222 {rsa}\n[web]:2222 {server}\n",
                &[&ALGORITHMS[..1], &ALGORITHMS[4..], &ALGORITHMS[1..4]].concat(),
            ),
        ];
        for (what, text, expected) in cases {
            assert_eq!(
                preferred_key_types(&[file("k", text)], &web()),
                *expected,
                "{what}"
            );
        }
    }

    #[test]
    fn policies_are_read() {
        for (text, policy) in [
            ("true", StrictHostKeyChecking::Yes),
            ("YES", StrictHostKeyChecking::Yes),
            ("ask", StrictHostKeyChecking::Ask),
            ("accept-new", StrictHostKeyChecking::AcceptNew),
            ("false", StrictHostKeyChecking::No),
            ("off", StrictHostKeyChecking::No),
            ("no", StrictHostKeyChecking::No),
        ] {
            assert_eq!(text.parse(), Ok(policy), "{text}");
        }
        assert!("maybe".parse::<StrictHostKeyChecking>().is_err());
    }
}
