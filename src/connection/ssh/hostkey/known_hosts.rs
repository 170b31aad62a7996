//! The text of a `known_hosts` file, read as ssh reads it: line by line, a bad line passed over alone.
//!
//! Everything is bytes: a comment in Latin-1 or a stray control character harms its own line at most.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::HostKey;
use super::message::printable;
use super::name::{Names, hash_name};

/// The length of a SHA-1 sum, which is also that of the salt.
pub(super) const HASH_BYTES: usize = 20;

/// The random bytes of a hashed name.
pub type Salt = [u8; HASH_BYTES];

/// A place in a `known_hosts` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file, as configured.
    pub file: PathBuf,
    /// The line's number, from 1.
    pub line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}",
            printable(&self.file.to_string_lossy()),
            self.line
        )
    }
}

/// What a line says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// No marker: the key is the host's.
    HostKey,
    /// `@cert-authority`: the key signs host certificates.
    CertAuthority,
    /// `@revoked`: the key is never to be accepted.
    Revoked,
}

/// One good line.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub line: usize,
    pub marker: Marker,
    pub names: Names,
    pub key: HostKey,
}

/// A parsed `known_hosts` file.
#[derive(Clone, Debug)]
pub struct KnownHostsFile {
    path: PathBuf,
    pub(super) entries: Vec<Entry>,
}

impl KnownHostsFile {
    /// Parses the text of the file at `path`. Lines that say nothing usable are passed over.
    pub fn parse(path: &Path, text: &[u8]) -> Self {
        let entries = text
            .split(|&b| b == b'\n')
            .zip(1..)
            .filter_map(|(line, number)| read_line(line, number))
            .collect();
        Self {
            path: path.to_owned(),
            entries,
        }
    }

    pub(super) fn location(&self, entry: &Entry) -> Location {
        Location {
            file: self.path.clone(),
            line: entry.line,
        }
    }
}

/// A line: `[marker] names type base64 [comment]`, between them spaces or tabs.
fn read_line(line: &[u8], number: usize) -> Option<Entry> {
    // ssh reads C strings, and takes a carriage return for white space at the end of the base64 text.
    let line = line.split(|&b| b == 0).next()?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut fields = line
        .split(|&b| b == b' ' || b == b'\t')
        .filter(|field| !field.is_empty());

    let first = fields.next()?;
    if first.starts_with(b"#") {
        return None;
    }
    let (marker, names) = match first {
        b"@cert-authority" => (Marker::CertAuthority, fields.next()?),
        b"@revoked" => (Marker::Revoked, fields.next()?),
        _ => (Marker::HostKey, first),
    };
    if names.starts_with(b"@") {
        return None; // an unknown marker, or a second one
    }
    let type_name = fields.next()?;
    let key = HostKey::from_base64(fields.next()?).ok()?;
    is_type_of(type_name, &key).then_some(())?;
    Some(Entry {
        line: number,
        marker,
        names: Names::read(names)?,
        key,
    })
}

/// Whether the line's type field fits its key. The names of RSA's newer signatures stand for RSA keys too.
fn is_type_of(field: &[u8], key: &HostKey) -> bool {
    let type_name = key.type_name();
    field == type_name.as_bytes()
        || (type_name == "ssh-rsa" && matches!(field, b"rsa-sha2-256" | b"rsa-sha2-512"))
}

/// A line to add to a `known_hosts` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    name: String,
    key: String,
}

impl NewEntry {
    pub(super) fn new(name: &str, key: &HostKey) -> Self {
        Self {
            name: name.to_owned(),
            key: key.text(),
        }
    }

    /// The line with its name readable, without a newline.
    pub fn line(&self) -> String {
        format!("{} {}", self.name, self.key)
    }

    /// The line with its name hashed (`HashKnownHosts`), without a newline.
    pub fn hashed_line(&self, salt: &Salt) -> Option<String> {
        let hash = hash_name(&self.name, salt)?;
        let (salt, hash) = (STANDARD.encode(salt), STANDARD.encode(hash));
        Some(format!("|1|{salt}|{hash} {}", self.key))
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::{ed25519, rsa};
    use super::*;

    fn entries(text: &[u8]) -> Vec<(usize, Marker)> {
        KnownHostsFile::parse(Path::new("known_hosts"), text)
            .entries
            .iter()
            .map(|entry| (entry.line, entry.marker))
            .collect()
    }

    #[test]
    fn good_lines() {
        let key = ed25519(1).text();
        let cases: &[(&str, String, Marker)] = &[
            ("plain", format!("web {key}"), Marker::HostKey),
            (
                "comment",
                format!("web {key} root@web # x"),
                Marker::HostKey,
            ),
            (
                "tabs",
                format!("\t web\t{}\t", key.replace(' ', " \t")),
                Marker::HostKey,
            ),
            ("carriage return", format!("web {key}\r"), Marker::HostKey),
            ("NUL", format!("web {key}\0x"), Marker::HostKey),
            ("revoked", format!("@revoked web {key}"), Marker::Revoked),
            (
                "tab after marker",
                format!("@revoked\tweb {key}"),
                Marker::Revoked,
            ),
            (
                "authority",
                format!("@cert-authority * {key}"),
                Marker::CertAuthority,
            ),
            (
                "signature name",
                format!("web {}", rsa(1).text().replace("ssh-rsa", "rsa-sha2-512")),
                Marker::HostKey,
            ),
        ];
        for (what, line, marker) in cases {
            assert_eq!(entries(line.as_bytes()), [(1, *marker)], "{what}");
        }
    }

    #[test]
    fn bad_lines() {
        let key = ed25519(1).text();
        let base64 = key.split(' ').nth(1).unwrap();
        let cases: &[String] = &[
            String::new(),
            " \t".to_owned(),
            "\r".to_owned(),
            format!("# web {key}"),
            format!("  #web {key}"),
            "web".to_owned(),
            "web ssh-ed25519".to_owned(),
            format!("web {base64}"),
            format!("web ssh-rsa {base64}"),
            format!("web ssh-ed25519 {}", &base64[..base64.len() - 4]),
            format!("web ssh-ed25519 {base64}="),
            format!("web ssh-ed25519 -{base64}"),
            format!("web #{key}"),
            format!("@revoked {key}"),
            format!("@Revoked web {key}"),
            format!("@unknown web {key}"),
            format!("@revoked @revoked web {key}"),
            format!("|1|AAAA|BBBB {key}"),
            "web 1024 65537 1234567".to_owned(),
        ];
        for line in cases {
            assert_eq!(entries(line.as_bytes()), [], "{line:?}");
        }
    }

    #[test]
    fn a_bad_line_costs_only_itself() {
        let key = ed25519(1).text();
        let mut text = b"web ssh-ed25519 AAAA\n\xff\xfe\xff\n\n@oops x\n".to_vec();
        text.extend(vec![b'x'; 100_000]);
        text.extend(format!("\nweb {key} \u{fc}\n").as_bytes());
        text.extend([b"db ", key.as_bytes(), b" \xff\r\n"].concat());
        assert_eq!(entries(&text), [(6, Marker::HostKey), (7, Marker::HostKey)]);
    }

    #[test]
    fn what_is_added_is_read_back() {
        let entry = NewEntry::new("[web]:2222", &ed25519(1));
        for line in [entry.line(), entry.hashed_line(&[7; HASH_BYTES]).unwrap()] {
            let file = KnownHostsFile::parse(Path::new("known_hosts"), line.as_bytes());
            assert_eq!(file.entries.len(), 1, "{line}");
            assert!(file.entries[0].names.matches("[web]:2222"), "{line}");
            assert_eq!(file.entries[0].key, ed25519(1));
        }
    }
}
