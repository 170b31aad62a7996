//! The expansions that `ssh -G` leaves to us: `%` tokens, `${VAR}` and `~`, as in TOKENS and
//! ENVIRONMENT VARIABLES of `ssh_config(5)`. Pure: what they stand for is passed in.

use std::path::{Path, PathBuf};

/// The tokens of a `ProxyCommand` and a `ProxyJump`.
pub(super) const FOR_PROXY: &str = "hnpr";
/// The tokens of identity and certificate files, agents and known-hosts files.
pub(super) const FOR_FILES: &str = "CdhijkLlnpru";

/// What the tokens stand for on one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    /// `%C`: ssh's hash of `%l%h%p%r%j`; none where no ssh program could be asked.
    pub(super) hash: Option<String>,
    /// `%d`: the local user's home directory.
    pub(super) home: String,
    /// `%h`: the host name to connect to.
    pub(super) host: String,
    /// `%i`: the local user's numeric id.
    pub(super) uid: String,
    /// `%j`: the ProxyJump, or nothing.
    pub(super) jump: String,
    /// `%k`: the HostKeyAlias, else the host as typed.
    pub(super) key_alias: String,
    /// `%l`: the local host name with its domain; `%L` is its first label.
    pub(super) local_host: String,
    /// `%n`: the host as typed.
    pub(super) typed: String,
    /// `%p`: the port.
    pub(super) port: String,
    /// `%r`: the remote user.
    pub(super) user: String,
    /// `%u`: the local user.
    pub(super) local_user: String,
}

impl Tokens {
    fn value(&self, token: char) -> Option<&str> {
        Some(match token {
            'C' => self.hash.as_deref()?,
            'd' => &self.home,
            'h' => &self.host,
            'i' => &self.uid,
            'j' => &self.jump,
            'k' => &self.key_alias,
            'L' => self.local_host.split('.').next().unwrap_or_default(),
            'l' => &self.local_host,
            'n' => &self.typed,
            'p' => &self.port,
            'r' => &self.user,
            'u' => &self.local_user,
            _ => return None,
        })
    }
}

/// Why a value of the configuration can't be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A token that does not exist, or not for this option.
    #[error("%{0} means nothing here")]
    Token(char),
    /// A `%` at the end.
    #[error("a lone % at the end (write %% for one)")]
    LonePercent,
    /// A variable that the environment lacks.
    #[error("the environment has no {0}")]
    Unset(String),
    /// `${` without `}`.
    #[error("${{ without }}")]
    OpenBrace,
    /// `~name/` of a user that does not exist.
    #[error("there is no user {0}")]
    NoUser(String),
}

/// `text` with each `%x` of `allowed` replaced and `%%` as one `%`.
pub(super) fn percent(text: &str, tokens: &Tokens, allowed: &str) -> Result<String, ExpandError> {
    let mut expanded = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            expanded.push(character);
            continue;
        }
        match characters.next() {
            None => return Err(ExpandError::LonePercent),
            Some('%') => expanded.push('%'),
            Some(token) if allowed.contains(token) => {
                expanded.push_str(tokens.value(token).ok_or(ExpandError::Token(token))?);
            }
            Some(token) => return Err(ExpandError::Token(token)),
        }
    }
    Ok(expanded)
}

/// `text` with each `${NAME}` replaced by that variable.
pub(super) fn variables(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').ok_or(ExpandError::OpenBrace)?;
        expanded.push_str(before);
        expanded.push_str(&env(name).ok_or_else(|| ExpandError::Unset(name.to_owned()))?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// `~` and `~/path` under `home`, `~name/path` under that user's home, anything else as it is.
pub(super) fn tilde(
    text: &str,
    home: &Path,
    home_of: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<PathBuf, ExpandError> {
    let Some(rest) = text.strip_prefix('~') else {
        return Ok(PathBuf::from(text));
    };
    let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
    let base = if name.is_empty() {
        home.to_owned()
    } else {
        home_of(name).ok_or_else(|| ExpandError::NoUser(name.to_owned()))?
    };
    let path = path.trim_start_matches('/');
    Ok(if path.is_empty() {
        base
    } else {
        base.join(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens {
            hash: Some("c0ffee".into()),
            home: "/home/me".into(),
            host: "web1.example".into(),
            uid: "1000".into(),
            jump: "gate".into(),
            key_alias: "alias".into(),
            local_host: "desk.example".into(),
            typed: "web1".into(),
            port: "2222".into(),
            user: "bob".into(),
            local_user: "me".into(),
        }
    }

    #[test]
    fn tokens_stand_for_their_values() {
        for (text, expected) in [
            ("plain", Ok("plain")),
            (
                "%d/.ssh/%r@%h:%p",
                Ok("/home/me/.ssh/bob@web1.example:2222"),
            ),
            (
                "%C %i %j %k %L %l %n %u %%",
                Ok("c0ffee 1000 gate alias desk desk.example web1 me %"),
            ),
            ("%%h", Ok("%h")),
            ("%x", Err(ExpandError::Token('x'))),
            ("half%", Err(ExpandError::LonePercent)),
        ] {
            assert_eq!(
                percent(text, &tokens(), FOR_FILES),
                expected.map(str::to_owned),
                "{text}"
            );
        }
        assert_eq!(
            percent("nc %h %p", &tokens(), FOR_PROXY).unwrap(),
            "nc web1.example 2222"
        );
        assert_eq!(
            percent("%d", &tokens(), FOR_PROXY),
            Err(ExpandError::Token('d'))
        );
        let unknown_hash = Tokens {
            hash: None,
            ..tokens()
        };
        assert_eq!(
            percent("%C", &unknown_hash, FOR_FILES),
            Err(ExpandError::Token('C'))
        );
        // A value is not expanded again.
        let tricky = Tokens {
            host: "%p".into(),
            ..tokens()
        };
        assert_eq!(percent("%h", &tricky, FOR_FILES).unwrap(), "%p");
    }

    #[test]
    fn variables_come_from_the_environment() {
        let env = |name: &str| (name == "KEYS").then(|| "/k".to_owned());
        for (text, expected) in [
            ("${KEYS}/id", Ok("/k/id")),
            ("a${KEYS}b${KEYS}", Ok("a/kb/k")),
            ("$KEYS", Ok("$KEYS")),
            ("${NOPE}", Err(ExpandError::Unset("NOPE".into()))),
            ("${KEYS", Err(ExpandError::OpenBrace)),
        ] {
            assert_eq!(variables(text, &env), expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn tilde_is_a_home() {
        let home_of = |name: &str| (name == "bob").then(|| PathBuf::from("/home/bob"));
        for (text, expected) in [
            ("~", Ok("/home/me")),
            ("~/.ssh/id", Ok("/home/me/.ssh/id")),
            ("~//id", Ok("/home/me/id")),
            ("~bob/id", Ok("/home/bob/id")),
            ("~bob", Ok("/home/bob")),
            ("/a/~/b", Ok("/a/~/b")),
            ("~eve/id", Err(ExpandError::NoUser("eve".into()))),
        ] {
            let expanded = tilde(text, Path::new("/home/me"), &home_of);
            assert_eq!(expanded, expected.map(PathBuf::from), "{text}");
        }
    }
}
