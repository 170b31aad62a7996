//! What let us in the last time, so that it is tried first: keys that are refused cost a round trip each. It is kept beside
//! the keepers' sockets. A wrong memory costs no more than such a key.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::identities::Candidate;
use super::key::PublicKey;

/// How a server let us in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The method, RFC 4252; empty where the server asks for none.
    pub(super) method: String,
    /// The key's fingerprint.
    pub(super) key: Option<String>,
}

impl Entry {
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// Without it, the next login takes a little longer.
    pub fn keep(&self, file: &Path, last: Option<&Self>) {
        if last == Some(self) {
            return;
        }
        let temporary = file.with_extension(std::process::id().to_string());
        let written = serde_json::to_vec(self)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, file));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }

    pub(super) fn is_by(&self, key: &Candidate) -> bool {
        let fingerprint = key.public.as_ref().map(PublicKey::fingerprint);
        self.key.is_some() && self.key == fingerprint
    }
}
