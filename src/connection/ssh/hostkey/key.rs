//! A host key as it goes over the wire (RFC 4253 6.6), and the fingerprint that people compare.
//!
//! Keys are compared byte by byte, never computed with: libssh2 has verified the server's signature
//! before its key comes here.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// More than any key in use has (an RSA key of 16384 bits: 2 kB); bounds what a server makes us print.
const MAX_KEY_BYTES: usize = 16 * 1024;

/// Algorithm names have at most 64 characters (RFC 4251 6).
const MAX_TYPE_CHARS: usize = 64;

/// The public key of a host: the blob that the server sent or that a `known_hosts` line holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKey {
    type_name: String,
    blob: Vec<u8>,
}

/// Bytes that are not a public key of the type they claim to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the host key is malformed")]
pub struct MalformedKey;

impl HostKey {
    /// Reads a key blob, the type name from its first string.
    pub fn read(blob: &[u8]) -> Result<Self, MalformedKey> {
        if blob.len() > MAX_KEY_BYTES {
            return Err(MalformedKey);
        }
        let (type_name, fields) = split_string(blob).ok_or(MalformedKey)?;
        let type_name = std::str::from_utf8(type_name).map_err(|_| MalformedKey)?;
        if !is_type_name(type_name) || !has_its_fields(type_name, fields) {
            return Err(MalformedKey);
        }
        Ok(Self {
            type_name: type_name.to_owned(),
            blob: blob.to_owned(),
        })
    }

    /// Reads the base64 text of a `known_hosts` line (padded, as ssh demands).
    pub(super) fn from_base64(text: &[u8]) -> Result<Self, MalformedKey> {
        let blob = STANDARD.decode(text).map_err(|_| MalformedKey)?;
        Self::read(&blob)
    }

    /// The key's type: `ssh-ed25519`, `ssh-rsa`, `ecdsa-sha2-nistp256` and so on.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// The fingerprint as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = Sha256::digest(&self.blob);
        Fingerprint(format!("SHA256:{}", STANDARD_NO_PAD.encode(digest)))
    }

    /// Type and fingerprint, for messages.
    pub fn label(&self) -> KeyLabel {
        KeyLabel {
            type_name: self.type_name.clone(),
            fingerprint: self.fingerprint(),
        }
    }

    /// Type and base64, as in a `.pub` file and in the last fields of a `known_hosts` line.
    pub(super) fn text(&self) -> String {
        format!("{} {}", self.type_name, STANDARD.encode(&self.blob))
    }
}

/// `SHA256:` and the unpadded base64 of the key blob's SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The text, as the user would paste it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a message says of a key: its type and its fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyLabel {
    /// As in [`HostKey::type_name`].
    pub type_name: String,
    /// As in [`HostKey::fingerprint`].
    pub fingerprint: Fingerprint,
}

impl fmt::Display for KeyLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.type_name, self.fingerprint)
    }
}

/// The name goes into messages and files as it is, so only what algorithm names are made of.
fn is_type_name(name: &str) -> bool {
    (1..=MAX_TYPE_CHARS).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.@+".contains(&b))
}

/// A line that was cut short in pasting can still be good base64: for the types that hosts have, the
/// fields are counted, so that it is passed over as ssh does, and is not taken for a changed key.
fn has_its_fields(type_name: &str, rest: &[u8]) -> bool {
    let Some(curve) = type_name.strip_prefix("ecdsa-sha2-") else {
        return match type_name {
            // RFC 8709 4: the key, 32 bytes
            "ssh-ed25519" => {
                matches!(strings(rest).as_deref(), Some([key]) if key.len() == 32)
            }
            // RFC 4253 6.6: e, n; p, q, g, y
            "ssh-rsa" => strings(rest).is_some_and(|fields| fields.len() == 2),
            "ssh-dss" => strings(rest).is_some_and(|fields| fields.len() == 4),
            _ => true,
        };
    };
    // RFC 5656 3.1: the curve's name, a point
    matches!(strings(rest).as_deref(), Some([name, _point]) if *name == curve.as_bytes())
}

/// `bytes` as a sequence of strings that ends where the bytes do.
fn strings(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (string, rest) = split_string(bytes)?;
        found.push(string);
        bytes = rest;
    }
    Some(found)
}

/// One string of RFC 4251 5 (a big-endian length of 4 bytes, then the bytes), and what follows it.
fn split_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    rest.split_at_checked(length)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A well-formed blob of this type with these fields.
    pub fn blob(type_name: &str, fields: &[&[u8]]) -> Vec<u8> {
        let mut blob = Vec::new();
        for field in [type_name.as_bytes()].iter().chain(fields) {
            blob.extend(u32::try_from(field.len()).unwrap().to_be_bytes());
            blob.extend(*field);
        }
        blob
    }

    /// An Ed25519 key made of one repeated byte.
    pub fn ed25519(byte: u8) -> HostKey {
        HostKey::read(&blob("ssh-ed25519", &[&[byte; 32]])).unwrap()
    }

    /// An RSA key in form only.
    pub fn rsa(byte: u8) -> HostKey {
        HostKey::read(&blob("ssh-rsa", &[&[1, 0, 1], &[byte; 256]])).unwrap()
    }

    #[test]
    fn the_type_comes_from_the_blob() {
        assert_eq!(ed25519(1).type_name(), "ssh-ed25519");
        assert_eq!(rsa(1).type_name(), "ssh-rsa");
        let point = blob("ecdsa-sha2-nistp256", &[b"nistp256", &[4; 65]]);
        assert_eq!(
            HostKey::read(&point).unwrap().type_name(),
            "ecdsa-sha2-nistp256"
        );
        let later = blob("ssh-newer@example.com", &[b"anything"]);
        assert!(HostKey::read(&later).is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = blob("ssh-ed25519", &[&[1; 32]]);
        let cases: &[(&str, Vec<u8>)] = &[
            ("empty", Vec::new()),
            ("half a length", vec![0, 0]),
            ("length past the end", vec![0xff, 0xff, 0xff, 0xff, b'a']),
            ("no type", blob("", &[&[1; 32]])),
            ("escape in the type", blob("ssh-\x1b[2J", &[&[1; 32]])),
            ("newline in the type", blob("ssh-rsa\nx", &[])),
            ("space in the type", blob("ssh rsa", &[])),
            ("type too long", blob(&"x".repeat(65), &[])),
            ("cut short", good[..good.len() - 1].to_vec()),
            ("bytes to spare", [good.clone(), vec![0]].concat()),
            ("a key of 31 bytes", blob("ssh-ed25519", &[&[1; 31]])),
            (
                "ecdsa of another curve",
                blob("ecdsa-sha2-nistp256", &[b"nistp384", &[4; 65]]),
            ),
            ("rsa without n", blob("ssh-rsa", &[&[1, 0, 1]])),
            ("endless", blob("ssh-newer", &[&[0; MAX_KEY_BYTES]])),
        ];
        for (what, bytes) in cases {
            assert_eq!(HostKey::read(bytes), Err(MalformedKey), "{what}");
        }
    }

    #[test]
    fn the_fingerprint_is_the_one_of_ssh_keygen() {
        // ssh-keygen -l on this very line
        let key = HostKey::from_base64(
            b"AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB",
        )
        .unwrap();
        assert_eq!(key, ed25519(1));
        assert_eq!(
            key.label().to_string(),
            "ssh-ed25519 SHA256:RXm/ruZ0eTzRXKwi1AQEDynB0VgHQ2ac9KPSFdf/YnA"
        );
    }
}
