//! What can be read from a key file without a passphrase: its format, whether it is encrypted, and its public half if
//! that is not encrypted.
//!
//! libssh2 reports the same error for a wrong passphrase, a missing one and a damaged file, so the head of the file is
//! read here. PuTTY's format is not handled.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::key::{Fields, PublicKey};

/// A longer file is not a key (ssh itself stops at 1 MB; a 16384-bit RSA key has 13 kB).
const MAX_FILE_BYTES: u64 = 64 << 10;

/// What an `IdentityFile` and the `.pub` beside it hold.
#[derive(Clone, Default)]
pub(super) struct KeyFile {
    pub(super) private: Option<PrivateKey>,
    /// From the file or, if it can't be read there, from the `.pub` beside it.
    pub(super) public: Option<PublicKey>,
}

/// A private key; never shown.
#[derive(Clone)]
pub(super) struct PrivateKey {
    pub(super) text: String,
    /// Whether a passphrase is needed.
    pub(super) encrypted: bool,
}

/// `path` with `suffix` after its last character.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Reads an identity. The private half may be missing if there is a `.pub` beside `path`.
pub(super) fn read(path: &Path) -> io::Result<KeyFile> {
    let beside = || read_public(&with_suffix(path, ".pub"));
    let (text, mode) = match read_text(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let public = beside().ok_or(error)?;
            return Ok(KeyFile {
                private: None,
                public: Some(public),
            });
        }
        read => read?,
    };
    let mut key = inspect(text).ok_or_else(unknown)?;
    if key.private.is_some() {
        if mode & 0o077 != 0 {
            return Err(io::Error::other(format!(
                "others can read it (mode {:03o}); ssh refuses such a key too: chmod 600 it",
                mode & 0o777
            )));
        }
        let public = key.public.take().or_else(beside);
        key.public = public.filter(|key| !key.is_certificate());
    }
    Ok(key)
}

fn unknown() -> io::Error {
    io::Error::other("it is not a key in a known format")
}

/// Reads a `.pub` or certificate file; `None` if it is missing or something else.
pub(super) fn read_public(path: &Path) -> Option<PublicKey> {
    PublicKey::from_line(&read_text(path).ok()?.0)
}

/// The text of a regular file, and its mode if it is our own: as in ssh, the mode of other users' files is not checked.
fn read_text(path: &Path) -> io::Result<(String, u32)> {
    // Checked before opening: opening a FIFO would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let is_ours = metadata.uid() == nix::unistd::getuid().as_raw();
    let mode = if is_ours { metadata.mode() } else { 0 };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is longer than any key"));
    }
    Ok((String::from_utf8(bytes).map_err(|_| unknown())?, mode))
}

/// Determines what a file's text is.
pub(super) fn inspect(text: String) -> Option<KeyFile> {
    let Some((_, head)) = text.split_once("-----BEGIN ") else {
        return Some(KeyFile {
            private: None,
            public: Some(PublicKey::from_line(&text)?),
        });
    };
    let (label, body) = head.split_once("-----")?;
    let (encrypted, public) = match label {
        "OPENSSH PRIVATE KEY" => openssh_head(body.split_once("-----END ")?.0)?,
        "ENCRYPTED PRIVATE KEY" => (true, None),
        // RFC 1421 4.6.1.1: `Proc-Type: 4,ENCRYPTED`.
        _ if label.ends_with("PRIVATE KEY") => {
            let mut head = body.lines().take(3);
            let encrypted = head.any(|l| l.starts_with("Proc-Type:") && l.contains("ENCRYPTED"));
            (encrypted, None)
        }
        _ => return None,
    };
    let private = Some(PrivateKey { text, encrypted });
    Some(KeyFile { private, public })
}

/// Reads the unencrypted part of OpenSSH's own format (PROTOCOL.key): whether the rest is encrypted, and the public
/// key.
fn openssh_head(body: &str) -> Option<(bool, Option<PublicKey>)> {
    let packed: String = body.split_ascii_whitespace().collect();
    let decoded = STANDARD.decode(packed).ok()?;
    let mut fields = Fields(decoded.strip_prefix(b"openssh-key-v1\0")?);
    let cipher = fields.string()?;
    let _kdf = fields.string()?;
    let _kdf_options = fields.string()?;
    let public = match fields.number()? {
        1 => fields.string().and_then(PublicKey::from_blob),
        _ => None,
    };
    Some((cipher != b"none", public))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    const KINDS: [&str; 3] = ["ed25519", "rsa", "ecdsa"];

    /// Makes a small key: large RSA keys take long.
    fn make_key(kind: &str, path: &Path, passphrase: &str, format: &str) {
        let bits = if kind == "rsa" { "1024" } else { "256" };
        let words = ["-q", "-t", kind, "-b", bits, "-m", format, "-N", passphrase];
        keygen(&[&words[..], &["-f", path.to_str().unwrap()]].concat());
    }

    fn keygen(args: &[&str]) {
        let done = Command::new("ssh-keygen").args(args).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    #[test]
    fn the_head_tells_format_and_encryption() {
        let dir = tempfile::tempdir().unwrap();
        for kind in KINDS {
            for (format, passphrase) in [
                ("RFC4716", ""),
                ("RFC4716", "secret"),
                ("PEM", ""),
                ("PEM", "secret"),
                ("PKCS8", ""),
                ("PKCS8", "secret"),
            ] {
                if kind == "ed25519" && format != "RFC4716" {
                    continue;
                }
                let path = dir.path().join(format!("{kind}-{format}-{passphrase}"));
                make_key(kind, &path, passphrase, format);
                let expected = read_public(&with_suffix(&path, ".pub")).unwrap();
                let key = read(&path).unwrap();
                let encrypted = key.private.unwrap().encrypted;
                assert_eq!(encrypted, !passphrase.is_empty(), "{}", path.display());
                assert_eq!(key.public, Some(expected));
            }
        }
    }

    #[test]
    fn a_certificate_names_the_key_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        make_key("ed25519", &ca, "", "RFC4716");
        for kind in KINDS {
            let path = dir.path().join(kind);
            let public_path = dir.path().join(format!("{kind}.pub"));
            make_key(kind, &path, "", "RFC4716");
            keygen(&[
                "-q",
                "-s",
                ca.to_str().unwrap(),
                "-I",
                "id",
                public_path.to_str().unwrap(),
            ]);
            let certificate = read_public(&dir.path().join(format!("{kind}-cert.pub"))).unwrap();
            let public = read_public(&public_path).unwrap();
            assert!(certificate.is_certificate() && !public.is_certificate());
            assert_eq!(certificate.plain().unwrap(), public);
            assert_eq!(PublicKey::from_line(&public.to_line()).unwrap(), public);
        }
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        make_key("ed25519", &path, "", "RFC4716");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = |path: &Path| read(path).err().unwrap();
        assert!(error(&path).to_string().contains("(mode 640)"));
        fs::remove_file(&path).unwrap();
        assert!(read(&path).is_ok_and(|key| key.private.is_none()));
        let absent = error(&dir.path().join("none"));
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        assert!(error(dir.path()).to_string().contains("not a regular file"));
        for (text, unknown) in [
            ("", true),
            ("hello\n", true),
            ("-----BEGIN CERTIFICATE-----\nx\n", true),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
                true,
            ),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
                false,
            ),
        ] {
            assert_eq!(inspect(text.to_owned()).is_none(), unknown, "{text}");
        }
    }
}
