//! The lines of `known_hosts` files (sshd(8), "`SSH_KNOWN_HOSTS` FILE FORMAT"), and which hosts they match.
//!
//! Everything is bytes: a comment in Latin-1 or a stray control character spoils only its own line.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha1::Sha1;

use super::super::key::PublicKey;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::glob;

/// A longer file is refused instead of read in part: a line that revokes a key may be anywhere.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// OpenSSH does not compare patterns of this length or more: a line that holds one matches nothing.
const PATTERN_LIMIT: usize = 1023;
/// Length of a SHA-1 hash, and of its salt.
const HASH_BYTES: usize = 20;
const DEFAULT_PORT: u16 = 22;
/// How much of a path or of a list of names is shown.
const SHOWN_MAX: usize = 1000;

/// A host as ssh looks it up: `HostKeyAlias` if there is one, else `host` or `[host]:port`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    pub(super) name: String,
    /// The name without its port, which counts if the name with the port is unknown.
    pub(super) without_port: Option<String>,
}

impl HostName {
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.to_ascii_lowercase();
        if port == DEFAULT_PORT {
            return Self::alias(&host);
        }
        Self {
            name: format!("[{host}]:{port}"),
            without_port: Some(host),
        }
    }

    /// A host by its `HostKeyAlias`, whatever the port.
    pub fn alias(alias: &str) -> Self {
        Self {
            name: alias.to_ascii_lowercase(),
            without_port: None,
        }
    }

    /// Whether a line with this name would match only this host: none of its characters is syntax.
    pub(super) fn can_be_recorded(&self) -> bool {
        let name = self.without_port.as_deref().unwrap_or(&self.name);
        let is_syntax =
            |c: char| c.is_whitespace() || c.is_control() || "@?*#[]|'\"\\,!".contains(c);
        !name.is_empty() && !name.contains(is_syntax)
    }

    /// The line that makes `key` known for this host, without a newline.
    pub(super) fn line(&self, key: &PublicKey) -> String {
        format!("{} {}", self.name, key.to_line())
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.name, SHOWN_MAX))
    }
}

/// What a line says about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// The key is the host's.
    None,
    /// `@cert-authority`: the key signs host certificates.
    CertAuthority,
    /// `@revoked`: the key must not be accepted.
    Revoked,
}

/// A valid line.
#[derive(Clone, Debug)]
pub(super) struct KnownHost {
    pub(super) file: String,
    pub(super) number: usize,
    pub(super) marker: Marker,
    pub(super) names: Names,
    pub(super) key: PublicKey,
}

impl fmt::Display for KnownHost {
    /// File and line number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", printable(&self.file, SHOWN_MAX), self.number)
    }
}

/// The lines of a file's text, in order. Lines that are not valid are skipped.
pub(super) fn parse(path: &Path, text: &[u8]) -> Vec<KnownHost> {
    let file = path.to_string_lossy();
    text.split(|&b| b == b'\n')
        .zip(1..)
        .filter_map(|(line, number)| {
            let (marker, names, key) = read_line(line)?;
            Some(KnownHost {
                file: file.to_string(),
                number,
                marker,
                names,
                key,
            })
        })
        .collect()
}

/// A line: `[marker] names type base64 [comment]`, separated by spaces or tabs.
fn read_line(line: &[u8]) -> Option<(Marker, Names, PublicKey)> {
    // ssh reads C strings, and accepts a carriage return as white space after the base64 text.
    let line = line.split(|&b| b == 0).next()?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut fields = line
        .split(|&b| b == b' ' || b == b'\t')
        .filter(|field| !field.is_empty());

    let (marker, names) = match fields.next()? {
        b"@cert-authority" => (Marker::CertAuthority, fields.next()?),
        b"@revoked" => (Marker::Revoked, fields.next()?),
        first => (Marker::None, first),
    };
    // A comment, an unknown marker or a second marker.
    if names.starts_with(b"#") && marker == Marker::None || names.starts_with(b"@") {
        return None;
    }
    let kind = fields.next()?;
    let key = PublicKey::from_base64(fields.next()?)?;
    // The names of RSA's newer signatures stand for RSA keys too.
    let fits = kind == key.kind.as_bytes()
        || (key.kind == "ssh-rsa" && matches!(kind, b"rsa-sha2-256" | b"rsa-sha2-512"));
    fits.then_some((marker, Names::read(names)?, key))
}

/// The first field of a line: which hosts the line is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Patterns, separated by commas, in lower case.
    Patterns(Vec<u8>),
    /// `|1|salt|hash`: the HMAC-SHA1 of one name.
    Hashed([[u8; HASH_BYTES]; 2]),
}

impl Names {
    fn read(field: &[u8]) -> Option<Self> {
        if !field.starts_with(b"|") {
            return Some(Self::Patterns(field.to_ascii_lowercase()));
        }
        let mut parts = field
            .strip_prefix(b"|1|")?
            .splitn(2, |&b| b == b'|')
            .map(|part| STANDARD.decode(part).ok()?.try_into().ok());
        Some(Self::Hashed([parts.next()??, parts.next()??]))
    }

    /// Whether the line is for the host of this name, which must be in lower case.
    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Patterns(list) => list_matches(list, name.as_bytes()),
            Self::Hashed([salt, hash]) => hash_name(name, salt).is_some_and(|own| own == *hash),
        }
    }

    /// The names for a message.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Patterns(list) => printable(list, SHOWN_MAX),
            Self::Hashed(_) => "[hashed name]".to_owned(),
        }
    }
}

fn hash_name(name: &str, salt: &[u8]) -> Option<[u8; HASH_BYTES]> {
    // An HMAC takes a key of any length, so this does not fail.
    let mut mac = Hmac::<Sha1>::new_from_slice(salt).ok()?;
    mac.update(name.as_bytes());
    Some(mac.finalize().into_bytes().into())
}

/// Whether a pattern matches and no negated one does: a pattern with `!` wins, wherever it is in the list.
fn list_matches(list: &[u8], name: &[u8]) -> bool {
    let patterns = || list.split(|&b| b == b',');
    if patterns()
        .any(|pattern| pattern.strip_prefix(b"!").unwrap_or(pattern).len() >= PATTERN_LIMIT)
    {
        return false;
    }
    let fits = |pattern: &[u8]| glob::matches(pattern, name);
    !patterns().any(|pattern| pattern.strip_prefix(b"!").is_some_and(fits))
        && patterns().any(|pattern| !pattern.starts_with(b"!") && fits(pattern))
}

fn failed(what: &str, path: &Path, reason: &str) -> Failure {
    let path = printable(path.to_string_lossy().as_bytes(), SHOWN_MAX);
    Failure::new(
        Kind::HostKey,
        format!("can't read the {what} {path}: {reason}"),
    )
}

/// The text of a file; `None` if there is no such file.
fn read_text(what: &str, path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    // Checked before opening: opening a FIFO would wait for a writer.
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        return Err(failed(what, path, "it is a pipe"));
    }
    let mut text = Vec::new();
    let result =
        File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text));
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(what, path, &error.to_string())),
        Ok(_) if text.len() as u64 > MAX_FILE_BYTES => {
            Err(failed(what, path, "it has more than 16 MiB"))
        }
        Ok(_) => Ok(Some(text)),
    }
}

/// The lines of a file. A missing file has none.
pub(super) fn read(path: &Path) -> Result<Vec<KnownHost>, Failure> {
    let text = read_text("known_hosts file", path)?;
    Ok(parse(path, &text.unwrap_or_default()))
}

/// The keys of a `RevokedHostKeys` file, as lines that revoke them for every host. As in ssh, every host is refused if
/// the file can't be read.
pub(super) fn read_revoked(path: &Path) -> Result<Vec<KnownHost>, Failure> {
    let what = "RevokedHostKeys file";
    let text = read_text(what, path)?.ok_or_else(|| failed(what, path, "there is no such file"))?;
    revoked(path, &text)
}

/// Parses the text of such a file.
pub(super) fn revoked(path: &Path, text: &[u8]) -> Result<Vec<KnownHost>, Failure> {
    let what = "RevokedHostKeys file";
    if text.starts_with(b"SSHKRL\n\0") {
        let reason =
            "it is a key revocation list (KRL), which is not supported (list the keys as text)";
        return Err(failed(what, path, reason));
    }
    let mut lines = Vec::new();
    for (line, number) in text.split(|&b| b == b'\n').zip(1..) {
        let line = String::from_utf8_lossy(line.trim_ascii());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = PublicKey::from_line(&line)
            .ok_or_else(|| failed(what, path, &format!("line {number} is not a public key")))?;
        lines.push(KnownHost {
            file: path.to_string_lossy().into_owned(),
            number,
            marker: Marker::Revoked,
            names: Names::Patterns(b"*".to_vec()),
            key,
        });
    }
    Ok(lines)
}

/// Appends a line that makes `key` known, with the name hashed if `hashed` (`HashKnownHosts`). A missing file is
/// created with mode 0600, and its directory (`~/.ssh`) with 0700. Symbolic links are followed, as by ssh.
pub(super) fn add(path: &Path, host: &HostName, key: &PublicKey, hashed: bool) -> io::Result<()> {
    let line = if hashed {
        let mut salt = [0; HASH_BYTES];
        getrandom::fill(&mut salt).map_err(|error| io::Error::other(error.to_string()))?;
        let hash = hash_name(&host.name, &salt).ok_or(ErrorKind::InvalidInput)?;
        let (salt, hash) = (STANDARD.encode(salt), STANDARD.encode(hash));
        format!("|1|{salt}|{hash} {}", key.to_line())
    } else {
        host.line(key)
    };
    if let Some(parent) = path.parent().filter(|path| !path.as_os_str().is_empty()) {
        match DirBuilder::new().mode(0o700).create(parent) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let mut last = *b"\n";
    let metadata = file.metadata()?;
    // Anything but a regular file (/dev/null) has no last line.
    if metadata.is_file() && metadata.len() > 0 {
        file.read_exact_at(&mut last, metadata.len() - 1)?;
    }
    let separator = if last == *b"\n" { "" } else { "\n" };
    // One write, so that lines that two processes add at once do not mix.
    file.write_all(format!("{separator}{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::super::key::tests::{ed25519, rsa};
    use super::super::{Verdict, verdict};
    use super::*;

    fn entries(text: &[u8]) -> Vec<(usize, Marker)> {
        parse(Path::new("known_hosts"), text)
            .iter()
            .map(|line| (line.number, line.marker))
            .collect()
    }

    fn web() -> HostName {
        HostName::new("web", 2222)
    }

    #[test]
    fn good_lines() {
        let key = ed25519(1).to_line();
        let cases: &[(&str, String, Marker)] = &[
            ("plain", format!("web {key}"), Marker::None),
            ("comment", format!("web {key} root@web # x"), Marker::None),
            (
                "tabs",
                format!("\t web\t{}\t", key.replace(' ', " \t")),
                Marker::None,
            ),
            ("carriage return", format!("web {key}\r"), Marker::None),
            ("NUL", format!("web {key}\0x"), Marker::None),
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
                format!(
                    "web {}",
                    rsa(1).to_line().replace("ssh-rsa", "rsa-sha2-512")
                ),
                Marker::None,
            ),
        ];
        for (what, line, marker) in cases {
            assert_eq!(entries(line.as_bytes()), [(1, *marker)], "{what}");
        }
    }

    #[test]
    fn bad_lines() {
        let key = ed25519(1).to_line();
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
        let key = ed25519(1).to_line();
        let mut text = b"web ssh-ed25519 AAAA\n\xff\xfe\xff\n\n@oops x\n".to_vec();
        text.extend(vec![b'x'; 100_000]);
        text.extend(format!("\nweb {key} \u{fc}\n").as_bytes());
        text.extend([b"db ", key.as_bytes(), b" \xff\r\n"].concat());
        assert_eq!(entries(&text), [(6, Marker::None), (7, Marker::None)]);
    }

    #[test]
    fn a_name_that_is_syntax_gets_no_line() {
        for name in [
            "", "*", "web?", "a,b", "!a", "a b", "a\nb", "[a]", "|1|", "@revoked", "a\tb",
        ] {
            assert!(!HostName::alias(name).can_be_recorded(), "{name:?}");
            assert!(!HostName::new(name, 2222).can_be_recorded(), "{name:?}");
        }
        assert!(HostName::new("fe80::1%eth0", 2222).can_be_recorded());
    }

    #[test]
    fn lists_of_patterns() {
        let cases: &[(&str, &str, bool)] = &[
            ("WEB", "web", true),
            ("a,web,b", "web", true),
            ("*,!web", "web", false),
            ("!web,*", "web", false),
            ("!web,*", "db", true),
            ("!web", "db", false),
            ("!w*,web", "web", false),
            ("!!web,*", "web", true),
            (",,", "web", false),
            ("[web]:*", "[web]:2222", true),
            ("[*]:2222", "[web]:2222", true),
            ("web", "[web]:2222", false),
            ("[web]:22", "web", false),
        ];
        for (list, name, matches) in cases {
            let names = Names::read(list.as_bytes()).unwrap();
            assert_eq!(names.matches(name), *matches, "{list:?} {name:?}");
        }
        let long = format!("web,{}", "x".repeat(PATTERN_LIMIT));
        assert!(!Names::read(long.as_bytes()).unwrap().matches("web"));
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

    #[test]
    fn files_that_are_missing_or_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("absent")).unwrap().is_empty());
        assert!(read(Path::new("/dev/null")).unwrap().is_empty());
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
        let error = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(
            error.contains("/dev/zero: it has more than 16 MiB"),
            "{error}"
        );
    }

    #[test]
    fn revoked_keys_are_listed_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked");
        let read = |text: &[u8]| {
            fs::write(&path, text).unwrap();
            read_revoked(&path).map_err(|failure| failure.message)
        };
        let text = format!("# stolen\n\n {} old web\n", ed25519(1).to_line());
        let lines = read(text.as_bytes()).unwrap();
        assert!(matches!(
            verdict(&lines, &web(), &ed25519(1)),
            Verdict::Revoked(line) if line.number == 3
        ));
        assert!(matches!(
            verdict(&lines, &web(), &ed25519(2)),
            Verdict::Unknown(None)
        ));
        for (text, said) in [
            (
                &b"SSHKRL\n\0\0\0\0\x01"[..],
                "(KRL), which is not supported",
            ),
            (b"\nssh-ed25519 AAAA\n", "line 2 is not a public key"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.contains(said), "{message}");
        }
        assert!(read_revoked(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let message = read(&path).unwrap_err().message;
        assert!(message.ends_with("pipe: it is a pipe"), "{message}");
        assert!(read_revoked(&path).is_err());
    }

    #[test]
    fn an_added_line_is_found_again() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for hash in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(".ssh/known_hosts");
            add(&path, &web(), &ed25519(1), hash).unwrap();
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.starts_with("|1|"), hash, "{text}");
            assert_eq!(text.contains("[web]"), !hash, "{text}");
            let lines = read(&path).unwrap();
            assert!(matches!(
                verdict(&lines, &web(), &ed25519(1)),
                Verdict::Known(_)
            ));
        }
    }

    #[test]
    fn a_last_line_without_newline_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known_hosts");
        let line = web().line(&ed25519(1));
        for (before, after) in [
            ("", format!("{line}\n")),
            ("# mine\n", format!("# mine\n{line}\n")),
            ("# mine", format!("# mine\n{line}\n")),
        ] {
            fs::write(&path, before).unwrap();
            add(&path, &web(), &ed25519(1), false).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
    }

    #[test]
    fn links_are_followed_and_the_null_device_swallows() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        add(&link, &web(), &ed25519(1), false).unwrap();
        assert!(
            fs::read_to_string(&target)
                .unwrap()
                .starts_with("[web]:2222 ")
        );
        add(Path::new("/dev/null"), &web(), &ed25519(1), false).unwrap();
        let absent = dir.path().join("no/such/known_hosts");
        assert!(add(&absent, &web(), &ed25519(1), false).is_err());
    }
}
