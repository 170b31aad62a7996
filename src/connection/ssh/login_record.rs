//! Remembers how the last login succeeded, so that this is tried first: each refused key costs a round trip. The record
//! is kept beside the keepers' sockets. An outdated record costs no more than a refused key.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::identities::Candidate;
use super::key::PublicKey;

/// How a login succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginRecord {
    /// The method (RFC 4252); empty if the server required no authentication.
    pub(super) method: String,
    /// The key's fingerprint.
    pub(super) key: Option<String>,
}

impl LoginRecord {
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// Writes the record, unless it has not changed. Errors are ignored: without a record, the next login only takes a
    /// little longer.
    pub fn save(&self, file: &Path, last: Option<&Self>) {
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
