//! The name under which a host is looked up, and what the first field of a `known_hosts` line says of it
//! (sshd(8), "`SSH_KNOWN_HOSTS` FILE FORMAT").

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha1::Sha1;

use super::known_hosts::{NewEntry, Salt};
use super::message::printable;
use super::{HostKey, known_hosts::HASH_BYTES};

/// ssh's default port, for which a name stands in `known_hosts` without a port.
const DEFAULT_PORT: u16 = 22;

/// OpenSSH compares no pattern of this length or more: a line that holds one matches nothing.
const PATTERN_LIMIT: usize = 1023;

/// A host as ssh looks it up: `HostKeyAlias` if there is one, else `host` or `[host]:port`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    looked_up: String,
    /// The name without its port, which counts where the name with the port is unknown.
    without_port: Option<String>,
}

impl HostName {
    /// A host by name or address, as `ssh -G` prints its `hostname`, and its port.
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.to_ascii_lowercase();
        if port == DEFAULT_PORT {
            return Self {
                looked_up: host,
                without_port: None,
            };
        }
        Self {
            looked_up: format!("[{host}]:{port}"),
            without_port: Some(host),
        }
    }

    /// A host by its `HostKeyAlias` (tokens expanded): that alone, whatever the port.
    pub fn alias(alias: &str) -> Self {
        Self {
            looked_up: alias.to_ascii_lowercase(),
            without_port: None,
        }
    }

    /// What is looked up first.
    pub fn as_str(&self) -> &str {
        &self.looked_up
    }

    /// What is looked up where the first is unknown: the same host without its port.
    pub(super) fn without_port(&self) -> Option<&str> {
        self.without_port.as_deref()
    }

    /// The line that makes `key` known for this host, or none where the name has a character that is
    /// syntax in `known_hosts`: the line would match other hosts, or never this one.
    pub fn entry_for(&self, key: &HostKey) -> Option<NewEntry> {
        let name = self.without_port().unwrap_or(&self.looked_up);
        let is_syntax =
            |c: char| c.is_whitespace() || c.is_control() || "@?*#[]|'\"\\,!".contains(c);
        if name.is_empty() || name.contains(is_syntax) {
            return None;
        }
        Some(NewEntry::new(&self.looked_up, key))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.looked_up))
    }
}

/// The first field of a line: which hosts it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Patterns, separated by commas, in lower case.
    Patterns(Vec<u8>),
    /// `|1|salt|hash`: the HMAC-SHA1 of one name.
    Hashed { salt: Salt, hash: Salt },
}

impl Names {
    /// Reads the field. None for a hash that is none: the line is passed over.
    pub fn read(field: &[u8]) -> Option<Self> {
        if !field.starts_with(b"|") {
            return Some(Self::Patterns(field.to_ascii_lowercase()));
        }
        let mut parts = field.strip_prefix(b"|1|")?.splitn(2, |&b| b == b'|');
        Some(Self::Hashed {
            salt: hash_part(parts.next()?)?,
            hash: hash_part(parts.next()?)?,
        })
    }

    /// Whether the line is about the host of this name, which is in lower case.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Patterns(list) => list_matches(list, name.as_bytes()),
            Self::Hashed { salt, hash } => hash_name(name, salt).is_some_and(|own| own == *hash),
        }
    }

    /// The names for a message.
    pub fn text(&self) -> String {
        match self {
            Self::Patterns(list) => printable(&String::from_utf8_lossy(list)),
            Self::Hashed { .. } => "[hashed name]".to_owned(),
        }
    }
}

/// The HMAC-SHA1 of a name with the salt as its key, as in a hashed line.
pub(super) fn hash_name(name: &str, salt: &Salt) -> Option<Salt> {
    // An HMAC takes a key of any length, so there always is one.
    let mut mac = Hmac::<Sha1>::new_from_slice(salt).ok()?;
    mac.update(name.as_bytes());
    Some(mac.finalize().into_bytes().into())
}

fn hash_part(text: &[u8]) -> Option<[u8; HASH_BYTES]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Whether a pattern fits, and no negated one does: `!` before a pattern wins, wherever it stands.
fn list_matches(list: &[u8], name: &[u8]) -> bool {
    let mut matched = false;
    for pattern in list.split(|&b| b == b',') {
        let (negated, pattern) = match pattern.strip_prefix(b"!") {
            Some(rest) => (true, rest),
            None => (false, pattern),
        };
        if pattern.len() >= PATTERN_LIMIT {
            return false;
        }
        if pattern_matches(pattern, name) {
            if negated {
                return false;
            }
            matched = true;
        }
    }
    matched
}

/// `*` stands for any bytes, also none, and `?` for one. Goes back to the last `*` only, so that its time
/// is bounded by the product of the two lengths.
fn pattern_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while let Some(&byte) = name.get(n) {
        match pattern.get(p) {
            Some(b'*') => {
                last_star = Some((p, n));
                p += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == byte => {
                p += 1;
                n += 1;
            }
            _ => {
                // Let the last star swallow one byte more.
                let Some((star, from)) = last_star else {
                    return false;
                };
                last_star = Some((star, from + 1));
                p = star + 1;
                n = from + 1;
            }
        }
    }
    pattern.iter().skip(p).all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::ed25519;
    use super::*;

    #[test]
    fn lookups() {
        let plain = HostName::new("Web1.Example", 22);
        assert_eq!(
            (plain.as_str(), plain.without_port()),
            ("web1.example", None)
        );
        let port = HostName::new("::1", 2222);
        assert_eq!(
            (port.as_str(), port.without_port()),
            ("[::1]:2222", Some("::1"))
        );
        let alias = HostName::alias("Web");
        assert_eq!((alias.as_str(), alias.without_port()), ("web", None));
    }

    #[test]
    fn a_name_that_is_syntax_gets_no_line() {
        for name in [
            "", "*", "web?", "a,b", "!a", "a b", "a\nb", "[a]", "|1|", "@revoked", "a\tb",
        ] {
            assert_eq!(
                HostName::alias(name).entry_for(&ed25519(1)),
                None,
                "{name:?}"
            );
            assert_eq!(
                HostName::new(name, 2222).entry_for(&ed25519(1)),
                None,
                "{name:?}"
            );
        }
        assert!(
            HostName::new("fe80::1%eth0", 2222)
                .entry_for(&ed25519(1))
                .is_some()
        );
    }

    #[test]
    fn lists_of_patterns() {
        let long = "x".repeat(PATTERN_LIMIT);
        let cases: &[(&str, &str, bool)] = &[
            ("web", "web", true),
            ("web", "web1", false),
            ("web1", "web", false),
            ("WEB", "web", true),
            ("a,web,b", "web", true),
            ("*", "web", true),
            ("*", "", true),
            ("", "", true),
            ("w*", "web", true),
            ("*b", "web", true),
            ("w*b", "web", true),
            ("w**b", "wb", true),
            ("w*e*b*", "web", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*ab", "aab", true),
            ("*ab*ab", "abxab", true),
            ("we?", "web", true),
            ("we?", "we", false),
            ("???", "web", true),
            ("????", "web", false),
            ("*,!web", "web", false),
            ("!web,*", "web", false),
            ("!web,*", "db", true),
            ("!web", "db", false),
            ("!w*,web", "web", false),
            ("!!web,*", "web", true),
            (",,", "web", false),
            ("[web]:2222", "[web]:2222", true),
            ("[web]:*", "[web]:2222", true),
            ("[*]:2222", "[web]:2222", true),
            ("web", "[web]:2222", false),
            ("[web]:22", "web", false),
        ];
        for (list, name, matches) in cases {
            let names = Names::read(list.as_bytes()).unwrap();
            assert_eq!(names.matches(name), *matches, "{list:?} {name:?}");
        }
        let names = Names::read(format!("web,{long}").as_bytes()).unwrap();
        assert!(!names.matches("web"));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let names = Names::read("*a".repeat(500).as_bytes()).unwrap();
        assert!(!names.matches(&"a".repeat(499)));
        assert!(names.matches(&"a".repeat(500)));
    }

    #[test]
    fn hashed_names() {
        // Written by `ssh-keygen -H`.
        let names =
            Names::read(b"|1|T6Pk0JZsY9KGBTxA+djeRLgQPPk=|21gizQaWJP3Jbr6on1UntLiOSHE=").unwrap();
        assert!(names.matches("[web1.example]:2222"));
        assert!(!names.matches("web1.example"));
        for bad in ["|", "|1", "|1|", "|1||", "|2|a|b", "|1|AAAA|AAAA", "|1|!|!"] {
            assert_eq!(Names::read(bad.as_bytes()), None, "{bad}");
        }
    }
}
