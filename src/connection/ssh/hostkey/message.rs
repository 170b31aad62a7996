//! What the user is asked and told about a host key. Every text names the host, the key by type and
//! fingerprint, the file and line, and what to do next.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::decision::Hints;
use super::key::{Fingerprint, KeyLabel};
use super::known_hosts::Location;
use super::{HostKey, HostName};

/// How many of the other names of a key the question lists, as in ssh.
const OTHER_NAMES_SHOWN: usize = 8;

/// Why a host is not connected to.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostKeyProblem {
    /// What the server sent is no key.
    #[error(
        "the host key of {host} is malformed: the server there does not speak SSH as it should"
    )]
    Malformed {
        /// The host.
        host: HostName,
    },
    /// A line says that the key must not be accepted.
    #[error(
        "the host key of {host} is revoked: {at} says that {key} must not be accepted\n\
         Someone may be using a stolen key. Ask the host's administrator, who has to give it a new one."
    )]
    Revoked {
        /// The host.
        host: HostName,
        /// The key that it has shown.
        key: KeyLabel,
        /// The line that revokes it.
        at: Location,
    },
    /// The host is known by another key.
    #[error("{}", changed(.host, .key, .known, .at))]
    Changed {
        /// The host.
        host: HostName,
        /// The key that it has shown.
        key: KeyLabel,
        /// The key that it is known by.
        known: KeyLabel,
        /// The line with that key.
        at: Location,
    },
    /// No file has the host, and it was not accepted as new.
    #[error("{}", unknown(.host, .key, *.why, .hints, .remedy.as_ref()))]
    Unknown {
        /// The host.
        host: HostName,
        /// The key that it has shown.
        key: KeyLabel,
        /// What kept it from being accepted.
        why: WhyRefused,
        /// What else the files hold.
        hints: Box<Hints>,
        /// The line that would make it known, if the host's name allows one.
        remedy: Option<Remedy>,
    },
}

impl HostKeyProblem {
    /// An unknown host that is refused. `user_file` is the first `UserKnownHostsFile`, if there is one.
    pub fn unknown(
        host: &HostName,
        key: &HostKey,
        why: WhyRefused,
        hints: Hints,
        user_file: Option<&Path>,
    ) -> Self {
        let remedy = host
            .entry_for(key)
            .zip(user_file)
            .map(|(entry, file)| Remedy {
                line: entry.line(),
                file: file.to_owned(),
            });
        Self::Unknown {
            host: host.clone(),
            key: key.label(),
            why,
            hints: Box::new(hints),
            remedy,
        }
    }
}

/// The line that makes a host known, and the file that it belongs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The line, without a newline.
    pub line: String,
    /// The user's `known_hosts` file.
    pub file: PathBuf,
}

/// Why an unknown host is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyRefused {
    /// `StrictHostKeyChecking yes`.
    StrictChecking,
    /// There is no terminal to ask on, or `BatchMode` forbids it.
    NoTerminal,
    /// The user said no.
    Declined,
    /// The host's name holds characters that are syntax in a `known_hosts` file.
    NameCannotBeRecorded,
}

impl fmt::Display for WhyRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StrictChecking => "StrictHostKeyChecking is yes",
            Self::NoTerminal => "nobody can be asked (no terminal, or BatchMode)",
            Self::Declined => "you did not accept it",
            Self::NameCannotBeRecorded => {
                "its name holds characters that can't stand in a known_hosts file \
                 (set a plain HostKeyAlias)"
            }
        })
    }
}

fn changed(host: &HostName, key: &KeyLabel, known: &KeyLabel, at: &Location) -> String {
    let known_by = if known.type_name == key.type_name {
        format!("{at} has {known}")
    } else {
        format!("{at} knows it by a key of another type, {known}")
    };
    let remove = printable(&format!(
        "ssh-keygen -R {} -f {}",
        shell_word(host.as_str()),
        shell_word(&at.file.to_string_lossy()),
    ));
    format!(
        "the host key of {host} has changed: it is now {key}, but {known_by}\n\
         Someone may be intercepting the connection, or the host was set up anew. Ask its administrator \
         which key is right. If the new one is, remove the old one and connect again:\n    {remove}"
    )
}

fn unknown(
    host: &HostName,
    key: &KeyLabel,
    why: WhyRefused,
    hints: &Hints,
    remedy: Option<&Remedy>,
) -> String {
    let mut lines = vec![format!(
        "the host key of {host}, {key}, is not known, and {why}"
    )];
    lines.extend(hint_lines(hints));
    match (why, remedy) {
        (WhyRefused::Declined | WhyRefused::NameCannotBeRecorded, _) => {}
        (_, Some(Remedy { line, file })) => {
            let file = printable(&file.to_string_lossy());
            lines.extend([
                format!("If its administrator confirms this fingerprint, add this line to {file}:"),
                format!("    {line}"),
                "or connect once with ssh, or pass -o StrictHostKeyChecking=accept-new.".to_owned(),
            ]);
        }
        (_, None) => lines.push(
            "If its administrator confirms this fingerprint, add it to a known_hosts file and name that \
             file with -o UserKnownHostsFile=FILE."
                .to_owned(),
        ),
    }
    lines.join("\n")
}

/// The question that an unknown host raises on a terminal. It ends without a newline.
pub fn question(host: &HostName, key: &KeyLabel, hints: &Hints) -> String {
    let KeyLabel {
        type_name,
        fingerprint,
    } = key;
    let mut lines = vec![
        format!("The authenticity of host '{host}' can't be established."),
        format!("{type_name} key fingerprint is {fingerprint}."),
    ];
    lines.extend(hint_lines(hints));
    if hints.other_names.is_empty() {
        lines.push("This key is not known by any other names.".to_owned());
    } else {
        lines.push("This key is known by these other names:".to_owned());
        let shown = hints.other_names.iter().take(OTHER_NAMES_SHOWN);
        lines.extend(shown.map(|other| format!("    {}: {}", other.at, other.names)));
        let more = hints.other_names.len().saturating_sub(OTHER_NAMES_SHOWN);
        if more > 0 {
            lines.push(format!("    ({more} more)"));
        }
    }
    lines.push("Connect to it and remember the key (yes/no/[fingerprint])? ".to_owned());
    lines.join("\n")
}

/// What the user has answered: yes (the word, or the very fingerprint), no (the word, or nothing), or
/// None, so that the question has to be put again.
pub fn answer(text: &str, fingerprint: &Fingerprint) -> Option<bool> {
    let text = text.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("no") {
        Some(false)
    } else if text.eq_ignore_ascii_case("yes") || text == fingerprint.as_str() {
        Some(true)
    } else {
        None
    }
}

fn hint_lines(hints: &Hints) -> impl Iterator<Item = String> {
    let authority = hints.cert_authority.as_ref().map(|at| {
        format!(
            "{at} names a certificate authority for it (@cert-authority), but host certificates are not \
             supported: its plain key has to be known."
        )
    });
    let other_key = hints
        .other_key_without_port
        .as_ref()
        .map(|at| format!("{at} has another key for this name without the port."));
    authority.into_iter().chain(other_key)
}

/// A word that a POSIX shell reads as this text.
fn shell_word(text: &str) -> String {
    shlex::try_quote(text).map_or_else(|_| text.to_owned(), Into::into)
}

/// The text with its control characters escaped.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::decision::OtherName;
    use super::super::key::tests::{ed25519, rsa};
    use super::*;

    fn web() -> HostName {
        HostName::new("web", 2222)
    }

    fn at(line: usize) -> Location {
        Location {
            file: "/home/me/.ssh/known_hosts".into(),
            line,
        }
    }

    #[test]
    fn answers() {
        let fingerprint = ed25519(1).fingerprint();
        let other = ed25519(2).fingerprint();
        for (text, expected) in [
            ("yes", Some(true)),
            (" YES\r\n", Some(true)),
            (fingerprint.as_str(), Some(true)),
            ("no", Some(false)),
            ("No\n", Some(false)),
            ("", Some(false)),
            ("\n", Some(false)),
            ("y", None),
            ("yes please", None),
            (other.as_str(), None),
            (&fingerprint.as_str().to_lowercase(), None),
        ] {
            assert_eq!(answer(text, &fingerprint), expected, "{text:?}");
        }
    }

    #[test]
    fn a_changed_key_names_both_keys_the_line_and_the_command() {
        let problem = |known: &HostKey| HostKeyProblem::Changed {
            host: web(),
            key: ed25519(1).label(),
            known: known.label(),
            at: at(12),
        };
        let (new, old) = (ed25519(1).label(), ed25519(2).label());
        assert_eq!(
            problem(&ed25519(2)).to_string(),
            format!(
                "the host key of [web]:2222 has changed: it is now {new}, but \
                 /home/me/.ssh/known_hosts:12 has {old}\n\
                 Someone may be intercepting the connection, or the host was set up anew. Ask its \
                 administrator which key is right. If the new one is, remove the old one and connect again:\n    \
                 ssh-keygen -R '[web]:2222' -f /home/me/.ssh/known_hosts"
            )
        );
        let text = problem(&rsa(1)).to_string();
        assert!(text.contains("another type, ssh-rsa SHA256:"), "{text}");
    }

    #[test]
    fn an_unknown_host_comes_with_the_line_to_paste() {
        let file = Path::new("/home/me/.ssh/known_hosts");
        let text = |why| {
            let hints = Hints::default();
            HostKeyProblem::unknown(&web(), &ed25519(1), why, hints, Some(file)).to_string()
        };
        let refused = text(WhyRefused::NoTerminal);
        let line = web().entry_for(&ed25519(1)).unwrap().line();
        assert!(
            refused.contains(&format!("known_hosts:\n    {line}\n")),
            "{refused}"
        );
        assert!(refused.contains("accept-new"), "{refused}");
        assert!(!text(WhyRefused::Declined).contains(&line));
    }

    #[test]
    fn the_question_shows_what_ssh_shows() {
        let key = ed25519(1).label();
        let plain = question(&web(), &key, &Hints::default());
        assert!(plain.starts_with("The authenticity of host '[web]:2222' can't be established.\n"));
        assert!(plain.contains(&format!(
            "ssh-ed25519 key fingerprint is {}.\n",
            key.fingerprint
        )));
        assert!(plain.contains("not known by any other names"));
        let other = |line| OtherName {
            at: at(line),
            names: "db".to_owned(),
        };
        let hints = Hints {
            cert_authority: Some(at(1)),
            other_key_without_port: Some(at(2)),
            other_names: (3..13).map(other).collect(),
        };
        let full = question(&web(), &key, &hints);
        for part in [
            "known_hosts:1 names",
            "known_hosts:2 has",
            "known_hosts:10: db\n    (2 more)",
        ] {
            assert!(full.contains(part), "{part}: {full}");
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let host = HostName::alias("web\x1b[2J\n");
        let problem = HostKeyProblem::Malformed { host };
        assert!(!problem.to_string().contains(char::is_control), "{problem}");
        let at = Location {
            file: "a\x07b".into(),
            line: 1,
        };
        assert_eq!(at.to_string(), "a\\u{7}b:1");
    }
}
