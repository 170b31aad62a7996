//! The keys to offer a server, in order: the configured identities (through the agent if it holds the key, so that no
//! passphrase is needed), the agent's other keys, and default identities that are encrypted.

use std::collections::VecDeque;
use std::fmt;
use std::io::ErrorKind;

use super::agent::AgentKey;
use super::config::Resolved;
use super::key::PublicKey;
use super::keyfile::{self, KeyFile, PrivateKey, with_suffix};
use crate::error::Failure;

/// One key to offer.
#[derive(Clone)]
pub(super) struct Candidate {
    /// A path or an agent's comment, safe to show.
    pub(super) label: String,
    /// Named by `IdentityFile` or a default identity, not just found in the agent.
    pub(super) configured: bool,
    /// The key or certificate to offer. If it is not known, libssh2 computes it.
    pub(super) public: Option<PublicKey>,
    /// `None` if the agent signs.
    pub(super) private: Option<PrivateKey>,
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// A configured identity that could be read.
pub(super) struct Configured {
    path: String,
    explicit: bool,
    key: KeyFile,
    /// Certificates that were found for it.
    certificates: Vec<PublicKey>,
}

/// Reads the configured identities and the certificates that belong to them.
pub(super) fn read(
    config: &Resolved,
    warn: fn(&str),
    remarks: &mut Vec<String>,
) -> Result<Vec<Configured>, Failure> {
    let mut certificates = Vec::new();
    for path in config.paths("certificatefile")? {
        match keyfile::read_public(&path).filter(PublicKey::is_certificate) {
            Some(certificate) => certificates.push(certificate),
            None => remarks.push(format!("{}: no readable certificate", path.display())),
        }
    }
    let mut configured = Vec::new();
    for identity in config.identities()? {
        let path = identity.path.display().to_string();
        let key = match keyfile::read(&identity.path) {
            Ok(key) => key,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if identity.explicit {
                    warn(&format!("there is no identity file {path}"));
                }
                continue;
            }
            Err(error) => {
                remarks.push(format!("{path}: {error}"));
                continue;
            }
        };
        // As ssh does: each CertificateFile, and `-cert.pub` beside the key.
        let beside = keyfile::read_public(&with_suffix(&identity.path, "-cert.pub"));
        let mut fitting: Vec<PublicKey> = Vec::new();
        for certificate in certificates.iter().cloned().chain(beside) {
            let fits = certificate.is_certificate()
                && key.public.is_some()
                && certificate.plain() == key.public;
            if fits && !fitting.contains(&certificate) {
                fitting.push(certificate);
            }
        }
        configured.push(Configured {
            path,
            explicit: identity.explicit,
            key,
            certificates: fitting,
        });
    }
    Ok(configured)
}

/// The keys to offer, in order. Those that can't be used are noted in `remarks`.
pub(super) fn plan(
    configured: Vec<Configured>,
    held: &[AgentKey],
    only_configured: bool,
    remarks: &mut Vec<String>,
) -> VecDeque<Candidate> {
    let (mut first, mut last) = (VecDeque::new(), Vec::new());
    let mut used: Vec<&PublicKey> = Vec::new();
    let by_agent = |label: String, configured, key: &PublicKey| Candidate {
        label,
        configured,
        public: Some(key.clone()),
        private: None,
    };
    for identity in configured {
        let path = &identity.path;
        let public = identity.key.public.as_ref().and_then(PublicKey::plain);
        // Through the agent, a certificate before the plain key.
        let mut with_agent: Vec<&PublicKey> = held
            .iter()
            .map(|held| &held.key)
            .filter(|key| public.is_some() && key.plain() == public)
            .collect();
        with_agent.sort_by_key(|key| !key.is_certificate());
        for key in &with_agent {
            first.push_back(by_agent(format!("{path} (agent)"), true, key));
        }
        let in_agent = with_agent.iter().any(|key| Some(*key) == public.as_ref());
        used.extend(&with_agent);
        let Some(private) = identity.key.private else {
            if with_agent.is_empty() {
                remarks.push(format!(
                    "{path}: only the public half is here, and no agent holds the private one"
                ));
            }
            continue;
        };
        if public.as_ref().is_some_and(PublicKey::is_hardware) {
            if !in_agent {
                remarks.push(format!(
                    "{path}: a security key works through an agent only (ssh-add {path})"
                ));
            }
            continue;
        }
        let encrypted = private.encrypted;
        let from_file = |label: String, public| Candidate {
            label,
            configured: true,
            public,
            private: Some(private.clone()),
        };
        for certificate in identity.certificates {
            let candidate = from_file(format!("{path} (certificate)"), Some(certificate));
            if encrypted && in_agent {
                last.push(candidate);
            } else {
                first.push_back(candidate);
            }
        }
        if !in_agent {
            let candidate = from_file(path.clone(), public);
            // A default identity should not cost a passphrase while the agent has other keys.
            if encrypted && !identity.explicit {
                last.push(candidate);
            } else {
                first.push_back(candidate);
            }
        }
    }
    if !only_configured {
        for held in held.iter().filter(|held| !used.contains(&&held.key)) {
            let label = format!("{:?} (agent)", held.comment);
            first.push_back(by_agent(label, false, &held.key));
        }
    }
    first.extend(last);
    first
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::{blob, ed25519};
    use super::*;

    fn configured(path: &str, public: &PublicKey, private: Option<bool>) -> Configured {
        let private = private.map(|encrypted| PrivateKey {
            text: String::new(),
            encrypted,
        });
        Configured {
            path: path.to_owned(),
            explicit: !path.contains("default"),
            key: KeyFile {
                private,
                public: Some(public.clone()),
            },
            certificates: Vec::new(),
        }
    }

    fn held(key: &PublicKey) -> AgentKey {
        AgentKey {
            key: key.clone(),
            comment: "held".to_owned(),
        }
    }

    fn labels(keys: VecDeque<Candidate>) -> Vec<String> {
        keys.into_iter().map(|key| key.label).collect()
    }

    #[test]
    fn configured_keys_come_first_and_needless_passphrases_last() {
        let all = |only_configured| {
            let identities = vec![
                configured("/default-locked", &ed25519(1), Some(true)),
                configured("/plain", &ed25519(2), Some(false)),
                configured("/in-agent", &ed25519(3), Some(true)),
                configured("/named-locked", &ed25519(4), Some(true)),
            ];
            let agent = [held(&ed25519(9)), held(&ed25519(3))];
            labels(plan(identities, &agent, only_configured, &mut Vec::new()))
        };
        let mut expected = vec![
            "/plain",
            "/in-agent (agent)",
            "/named-locked",
            "\"held\" (agent)",
            "/default-locked",
        ];
        assert_eq!(all(false), expected);
        expected.remove(3);
        assert_eq!(all(true), expected);
    }

    #[test]
    fn keys_that_cannot_be_used_are_remarked_on() {
        let kind = "sk-ssh-ed25519@openssh.com";
        let hardware = PublicKey::from_blob(&blob(kind, &[&[1; 32], b"ssh:"])).unwrap();
        for (identity, said) in [
            (configured("/k", &ed25519(1), None), "only the public half"),
            (
                configured("/k", &hardware, Some(false)),
                "a security key works through an agent only",
            ),
        ] {
            let mut remarks = Vec::new();
            assert!(plan(vec![identity], &[], false, &mut remarks).is_empty());
            assert!(
                remarks.len() == 1 && remarks[0].contains(said),
                "{remarks:?}"
            );
        }
        let half = configured("/k", &hardware, None);
        let keys = plan(vec![half], &[held(&hardware)], true, &mut Vec::new());
        assert_eq!(labels(keys), ["/k (agent)"]);
    }
}
