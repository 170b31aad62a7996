//! SSH keys, made with ssh-keygen(1).

use std::fs;
use std::path::{Path, PathBuf};

use super::programs::tool;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Ed25519,
    /// 2048 bits: may take a second to generate.
    Rsa,
    /// On the curve nistp256.
    Ecdsa,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenSsh,
    /// The old format. Ed25519 keys do not have it: ssh-keygen silently writes the OpenSSH format.
    Pem,
}

/// A key pair in two files. The public key's file has the private key's name with `.pub` appended.
#[derive(Clone, Debug)]
pub struct Key {
    pub private: PathBuf,
    /// One line as in `authorized_keys`, without a newline.
    pub public: String,
    /// Empty for no passphrase.
    pub passphrase: String,
}

impl Type {
    /// As `ssh-keygen -t` and `dropbearkey -t` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::Rsa => "rsa",
            Self::Ecdsa => "ecdsa",
        }
    }
}

/// Generates a key pair at `path`. An empty passphrase means none.
pub fn generate(path: &Path, key_type: Type, passphrase: &str, format: Format) -> Key {
    let mut words = vec![
        "-q",
        "-t",
        key_type.name(),
        "-C",
        "rsig-test",
        "-N",
        passphrase,
    ];
    if key_type == Type::Rsa {
        words.extend(["-b", "2048"]);
    }
    if format == Format::Pem {
        words.extend(["-m", "PEM"]);
    }
    tool("ssh-keygen")
        .args(words)
        .arg("-f")
        .arg(path)
        .run()
        .ok();
    Key {
        private: path.to_owned(),
        public: read_trimmed(&path.with_extension("pub")),
        passphrase: passphrase.to_owned(),
    }
}

/// Signs `key` with `authority` for a login as `principal`, and returns the path of the certificate.
pub fn certify(authority: &Key, key: &Key, principal: &str) -> PathBuf {
    tool("ssh-keygen")
        .args([
            "-q",
            "-I",
            "rsig-test",
            "-n",
            principal,
            "-P",
            &authority.passphrase,
            "-s",
        ])
        .arg(&authority.private)
        .arg(key.private.with_extension("pub"))
        .run()
        .ok();
    let mut name = key.private.clone().into_os_string();
    name.push("-cert.pub");
    PathBuf::from(name)
}

fn read_trimmed(path: &Path) -> String {
    let text = fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{} can't be read: {error}", path.display()));
    text.trim_end().to_owned()
}
