//! What a key file says about itself before any passphrase: its format, whether it is encrypted,
//! and its public half where that is in the clear.
//!
//! libssh2 reports a wrong passphrase, a missing one and a damaged file as one and the same error,
//! so the head of the file is read here. PuTTY's format is not handled.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::key::{Fields, PublicKey};

/// More than this is no key (ssh itself stops at 1 MB; a 16384-bit RSA key has 13 kB).
const FILE_MAX: u64 = 64 << 10;

/// What a file of an `IdentityFile` holds.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum KeyFile {
    /// A private key.
    Private {
        /// The file's text; never shown.
        text: String,
        /// Whether a passphrase is needed.
        encrypted: bool,
        /// The public half: from the file or, where that hides it, from the `.pub` beside it.
        public: Option<PublicKey>,
    },
    /// The public half alone: an agent may hold the other.
    Public(PublicKey),
}

/// Why a file is no key that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyFileError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it is longer than any key")]
    TooLong,
    #[error("others can read it (mode {0:03o}); ssh refuses such a key too: chmod 600 it")]
    Exposed(u32),
    #[error("it is not a key in a format that is known here")]
    Unknown,
}

/// Reads an identity. `path` may also have no private half beside its `.pub`.
pub(super) fn read(path: &Path) -> Result<KeyFile, KeyFileError> {
    let beside = || read_public(&super::config::with_suffix(path, ".pub"));
    let (text, mode) = match read_text(path) {
        Err(KeyFileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            return beside().map(KeyFile::Public).ok_or(KeyFileError::Io(error));
        }
        other => other?,
    };
    match inspect(text).ok_or(KeyFileError::Unknown)? {
        KeyFile::Private { .. } if mode & 0o077 != 0 => Err(KeyFileError::Exposed(mode & 0o777)),
        KeyFile::Private {
            text,
            encrypted,
            public: None,
        } => Ok(KeyFile::Private {
            text,
            encrypted,
            public: beside().filter(|key| !key.is_certificate()),
        }),
        key => Ok(key),
    }
}

/// A `.pub` or certificate file; none where there is none or it is something else.
pub(super) fn read_public(path: &Path) -> Option<PublicKey> {
    PublicKey::from_line(&read_text(path).ok()?.0)
}

/// The text of a regular file, and its mode when it is ours (sshd's check leaves others' alone).
fn read_text(path: &Path) -> Result<(String, u32), KeyFileError> {
    // Asked by name first: opening a FIFO would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(KeyFileError::NotAFile);
    }
    let file = File::open(path)?;
    let about = file.metadata()?;
    let mode = if about.uid() == nix::unistd::getuid().as_raw() {
        about.mode()
    } else {
        0
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(KeyFileError::TooLong);
    }
    Ok((
        String::from_utf8(bytes).map_err(|_| KeyFileError::Unknown)?,
        mode,
    ))
}

/// Tells what a file's text is.
fn inspect(text: String) -> Option<KeyFile> {
    let Some(start) = text.find("-----BEGIN ") else {
        return PublicKey::from_line(&text).map(KeyFile::Public);
    };
    let head = text.get(start..)?;
    let (label, body) = head.strip_prefix("-----BEGIN ")?.split_once("-----")?;
    let (encrypted, public) = match label {
        "OPENSSH PRIVATE KEY" => openssh_head(body.split_once("-----END ")?.0)?,
        "ENCRYPTED PRIVATE KEY" => (true, None),
        // RFC 1421 4.6.1.1: `Proc-Type: 4,ENCRYPTED`.
        _ if label.ends_with("PRIVATE KEY") => (
            body.lines()
                .take(3)
                .any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED")),
            None,
        ),
        _ => return None,
    };
    Some(KeyFile::Private {
        text,
        encrypted,
        public,
    })
}

/// Reads the clear part of OpenSSH's own format (PROTOCOL.key): whether it is encrypted, and the
/// public key.
fn openssh_head(body: &str) -> Option<(bool, Option<PublicKey>)> {
    let packed: String = body.split_ascii_whitespace().collect();
    let decoded = STANDARD.decode(packed).ok()?;
    let mut fields = Fields(decoded.strip_prefix(b"openssh-key-v1\0")?);
    let cipher = fields.string()?;
    let _kdf = fields.string()?;
    let _kdf_options = fields.string()?;
    let public = if fields.number()? == 1 {
        fields.string().and_then(PublicKey::from_blob)
    } else {
        None
    };
    Some((cipher != b"none", public))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    fn keygen(args: &[&str]) {
        let done = Command::new("ssh-keygen").args(args).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    #[test]
    fn the_head_tells_format_and_encryption() {
        let dir = tempfile::tempdir().unwrap();
        for kind in ["ed25519", "rsa", "ecdsa"] {
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
                keygen(&[
                    "-q",
                    "-t",
                    kind,
                    "-m",
                    format,
                    "-N",
                    passphrase,
                    "-f",
                    path.to_str().unwrap(),
                ]);
                let expected =
                    read_public(&super::super::config::with_suffix(&path, ".pub")).unwrap();
                let KeyFile::Private {
                    encrypted, public, ..
                } = read(&path).unwrap()
                else {
                    panic!("no key")
                };
                assert_eq!(encrypted, !passphrase.is_empty(), "{}", path.display());
                assert_eq!(public, Some(expected));
            }
        }
    }

    #[test]
    fn a_certificate_names_the_key_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        keygen(&["-q", "-t", "ed25519", "-N", "", "-f", ca.to_str().unwrap()]);
        for kind in ["ed25519", "rsa", "ecdsa"] {
            let path = dir.path().join(kind);
            let public_path = dir.path().join(format!("{kind}.pub"));
            keygen(&["-q", "-t", kind, "-N", "", "-f", path.to_str().unwrap()]);
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
        keygen(&[
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-f",
            path.to_str().unwrap(),
        ]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::Exposed(0o640))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(read(&path), Ok(KeyFile::Public(_))));
        assert!(matches!(
            read(&dir.path().join("none")),
            Err(KeyFileError::Io(_))
        ));
        assert!(matches!(read(dir.path()), Err(KeyFileError::NotAFile)));
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
