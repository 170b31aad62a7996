//! The message for a refused login, which helps the user to find the cause.

use super::auth::{INTERACTIVE, Login, MAX_FAILURES, PASSWORD, method_order};
use super::identities::Candidate;

impl Login<'_> {
    /// Says who was refused, what the server accepts, what was tried and what was not, and what to do.
    pub(super) fn refusal(&self) -> String {
        let server = self.server.as_deref().unwrap_or_default();
        let mut text = format!("{} port {} refused the login", self.who(), self.config.port);
        if self.steps > 0 {
            text.push_str(" after a first step that it accepted");
        }
        for (what, items) in [
            ("it takes", server),
            ("tried:", &self.tried),
            ("not tried:", &self.not_tried(server)),
        ] {
            if !items.is_empty() {
                text.push_str(&format!("; {what} {}", items.join(", ")));
            }
        }
        text.push_str(if !self.keys.is_empty() || self.failures >= MAX_FAILURES {
            "; name the right key with -i and -o IdentitiesOnly=yes: servers end a session after a few tries"
        } else if self.tried.is_empty() {
            "; name a key with -i, start an agent, or log in with ssh once to see what it uses"
        } else {
            "; check the user name and that the key is in the host's authorized_keys"
        });
        text
    }

    fn not_tried(&self, server: &[String]) -> Vec<String> {
        let mut items = self.remarks.clone();
        let too_many = |key: &Candidate| format!("{} (too many failed tries)", key.label);
        items.extend(self.keys.iter().map(too_many));
        for method in [INTERACTIVE, PASSWORD] {
            let has = |names: &[String]| names.iter().any(|name| name == method);
            if !has(server) || has(&self.tried) {
                continue;
            }
            if !method_order(self.config).contains(&method) {
                items.push(format!("{method} (switched off by the configuration)"));
            } else if let Err(error) = self.prompter.available() {
                items.push(format!("{method} ({error})"));
            }
        }
        // Each option with the beginning of the server's method that it is for. An empty one stands for every method.
        for (option, method) in [
            ("GSSAPIAuthentication", "gssapi"),
            ("HostbasedAuthentication", "hostbased"),
            ("PKCS11Provider", ""),
            ("ProxyUseFdpass", ""),
        ] {
            let key = option.to_ascii_lowercase();
            let is_set = self.config.text(&key).is_some() && self.config.is_on(&key, false);
            if is_set && server.iter().any(|offered| offered.starts_with(method)) {
                items.push(format!("{option} (not supported by rsig)"));
            }
        }
        items
    }
}
