//! Public keys and certificates in the format of the protocol (RFC 4253 6.6), of `.pub` files and of `known_hosts`
//! lines. They are only compared byte by byte: no cryptography is done with them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};

/// More than any key in use has (an RSA key of 16384 bits: 2 kB). Limits how much a server can make us print.
const MAX_KEY_BYTES: usize = 16 * 1024;
/// RFC 4251 6.
const MAX_TYPE_CHARS: usize = 64;
const CERTIFICATE: &str = "-cert-v01@openssh.com";

/// Reads fields encoded as in RFC 4251 5, one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }

    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }

    /// The remaining strings; `None` if the rest is not a sequence of strings.
    fn strings(mut self) -> Option<Vec<&'a [u8]>> {
        let mut found = Vec::new();
        while !self.0.is_empty() {
            found.push(self.string()?);
        }
        Some(found)
    }
}

pub(super) fn put_string(blob: &mut Vec<u8>, text: &[u8]) {
    // Everything that is put in a blob was read from one, or is far below 4 GB.
    blob.extend(u32::try_from(text.len()).unwrap_or_default().to_be_bytes());
    blob.extend_from_slice(text);
}

/// A public key or a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicKey {
    /// `ssh-ed25519`, `ssh-rsa-cert-v01@openssh.com`, ...
    pub(super) kind: String,
    /// The whole key, its kind included.
    pub(super) blob: Vec<u8>,
}

impl PublicKey {
    pub(super) fn from_blob(blob: &[u8]) -> Option<Self> {
        let mut fields = Fields(blob);
        let kind = std::str::from_utf8(fields.string()?).ok()?;
        // The kind is written to messages and files without escaping.
        let is_kind = (1..=MAX_TYPE_CHARS).contains(&kind.len())
            && kind
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.@+".contains(&b));
        let is_key = blob.len() <= MAX_KEY_BYTES && is_kind && has_valid_fields(kind, fields);
        is_key.then(|| Self {
            kind: kind.to_owned(),
            blob: blob.to_owned(),
        })
    }

    /// Decodes base64. Padding is required, as by ssh.
    pub(super) fn from_base64(text: impl AsRef<[u8]>) -> Option<Self> {
        Self::from_blob(&STANDARD.decode(text).ok()?)
    }

    /// The first line of a `.pub` file: kind, base64, comment.
    pub(super) fn from_line(text: &str) -> Option<Self> {
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with('#'))?;
        let mut words = line.split_ascii_whitespace();
        let kind = words.next()?;
        Self::from_base64(words.next()?).filter(|key| key.kind == kind)
    }

    /// `kind base64`, as libssh2 and `known_hosts` expect it.
    pub(super) fn to_line(&self) -> String {
        format!("{} {}", self.kind, STANDARD.encode(&self.blob))
    }

    /// As `ssh-keygen -l` prints it.
    pub(super) fn fingerprint(&self) -> String {
        let digest = Sha256::digest(&self.blob);
        format!("SHA256:{}", STANDARD_NO_PAD.encode(digest))
    }

    /// Kind and fingerprint, for messages.
    pub(super) fn label(&self) -> String {
        format!("{} {}", self.kind, self.fingerprint())
    }

    pub(super) fn is_certificate(&self) -> bool {
        self.kind.ends_with(CERTIFICATE)
    }

    /// Whether the private half is on a security key: libssh2 can use it through an agent only.
    pub(super) fn is_hardware(&self) -> bool {
        self.kind.starts_with("sk-")
    }

    /// The key that a certificate certifies; the key itself if it is not a certificate. Fields as in OpenSSH's
    /// PROTOCOL.certkeys: kind, nonce, then the fields of the plain key.
    pub(super) fn plain(&self) -> Option<Self> {
        let Some(kind) = self.kind.strip_suffix(CERTIFICATE) else {
            return Some(self.clone());
        };
        let (kind, count) = match kind {
            "ssh-ed25519" => (kind.to_owned(), 1),
            "ssh-rsa" => (kind.to_owned(), 2),
            "sk-ssh-ed25519" => (format!("{kind}@openssh.com"), 2),
            "sk-ecdsa-sha2-nistp256" => (format!("{kind}@openssh.com"), 3),
            _ if kind.starts_with("ecdsa-sha2-") => (kind.to_owned(), 2),
            _ => return None,
        };
        let mut fields = Fields(&self.blob);
        fields.string()?;
        fields.string()?;
        let mut blob = Vec::new();
        put_string(&mut blob, kind.as_bytes());
        for _ in 0..count {
            put_string(&mut blob, fields.string()?);
        }
        Some(Self { kind, blob })
    }
}

/// Whether the fields of a key are right for its kind. A line that was truncated in pasting can still be valid base64.
/// Such a line must be skipped, as by ssh, and not be taken for a changed key, so the fields are checked for the kinds
/// that hosts have.
fn has_valid_fields(kind: &str, rest: Fields) -> bool {
    let strings = || rest.strings().unwrap_or_default();
    match kind {
        // RFC 8709 4: the key, 32 bytes
        "ssh-ed25519" => matches!(strings()[..], [key] if key.len() == 32),
        // RFC 4253 6.6: e, n; p, q, g, y
        "ssh-rsa" => strings().len() == 2,
        "ssh-dss" => strings().len() == 4,
        // RFC 5656 3.1: the curve's name, a point
        _ => match kind.strip_prefix("ecdsa-sha2-") {
            Some(curve) if !kind.ends_with(CERTIFICATE) => {
                matches!(strings()[..], [name, _point] if name == curve.as_bytes())
            }
            _ => true,
        },
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A well-formed blob of this kind with these fields.
    pub fn blob(kind: &str, fields: &[&[u8]]) -> Vec<u8> {
        let mut blob = Vec::new();
        for field in [kind.as_bytes()].iter().chain(fields) {
            put_string(&mut blob, field);
        }
        blob
    }

    /// An Ed25519 key made of one repeated byte.
    pub fn ed25519(byte: u8) -> PublicKey {
        PublicKey::from_blob(&blob("ssh-ed25519", &[&[byte; 32]])).unwrap()
    }

    /// A key with the form of an RSA key.
    pub fn rsa(byte: u8) -> PublicKey {
        PublicKey::from_blob(&blob("ssh-rsa", &[&[1, 0, 1], &[byte; 256]])).unwrap()
    }

    #[test]
    fn the_kind_comes_from_the_blob() {
        assert_eq!(ed25519(1).kind, "ssh-ed25519");
        assert_eq!(rsa(1).kind, "ssh-rsa");
        let point = blob("ecdsa-sha2-nistp256", &[b"nistp256", &[4; 65]]);
        let point = PublicKey::from_blob(&point).unwrap();
        assert_eq!(point.kind, "ecdsa-sha2-nistp256");
        let later = blob("ssh-newer@example.com", &[b"anything"]);
        assert!(PublicKey::from_blob(&later).is_some());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = blob("ssh-ed25519", &[&[1; 32]]);
        let cases: &[(&str, Vec<u8>)] = &[
            ("empty", Vec::new()),
            ("half a length", vec![0, 0]),
            ("length past the end", vec![0xff, 0xff, 0xff, 0xff, b'a']),
            ("no kind", blob("", &[&[1; 32]])),
            ("escape in the kind", blob("ssh-\x1b[2J", &[&[1; 32]])),
            ("newline in the kind", blob("ssh-rsa\nx", &[])),
            ("space in the kind", blob("ssh rsa", &[])),
            ("kind too long", blob(&"x".repeat(65), &[])),
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
            assert_eq!(PublicKey::from_blob(bytes), None, "{what}");
        }
    }

    #[test]
    fn the_fingerprint_is_the_one_of_ssh_keygen() {
        // Output of `ssh-keygen -l` for this line.
        let key = PublicKey::from_base64(
            "AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB",
        )
        .unwrap();
        assert_eq!(key, ed25519(1));
        assert_eq!(
            key.label(),
            "ssh-ed25519 SHA256:RXm/ruZ0eTzRXKwi1AQEDynB0VgHQ2ac9KPSFdf/YnA"
        );
    }
}
