//! The expansions that `ssh -G` does not make: `%` tokens, `${VAR}` and `~`, as in TOKENS and ENVIRONMENT VARIABLES of
//! `ssh_config(5)`. An error is a sentence that says what is wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tokens of a `ProxyCommand` and a `ProxyJump`.
pub(super) const FOR_PROXY: &str = "hnpr";
/// The tokens of identity and certificate files, agents and known-hosts files.
pub(super) const FOR_FILES: &str = "CdhijkLlnpru";
/// The tokens of a `KnownHostsCommand`.
pub(super) const FOR_COMMAND: &str = "CdfHhIijKkLlnprtu";

/// The value of each token on one connection.
pub(super) type Tokens = BTreeMap<char, String>;

/// `text` with each `%x` of `allowed` replaced and `%%` as one `%`.
pub(super) fn percent(text: &str, tokens: &Tokens, allowed: &str) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            expanded.push(character);
            continue;
        }
        let value = match characters.next() {
            None => return Err("a lone % at the end (write %% for one)".to_owned()),
            Some('%') => "%",
            Some(token) => tokens
                .get(&token)
                .filter(|_| allowed.contains(token))
                .ok_or_else(|| format!("%{token} is not valid here"))?,
        };
        expanded.push_str(value);
    }
    Ok(expanded)
}

/// `text` with each `${NAME}` replaced by that variable.
pub(super) fn variables(text: &str, env: fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').ok_or("${ without }")?;
        expanded.push_str(before);
        expanded.push_str(&env(name).ok_or_else(|| format!("the environment has no {name}"))?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// `~` and `~/path` under `home`, `~name/path` under that user's home, anything else as it is.
pub(super) fn tilde(text: &str, home: &Path) -> Result<PathBuf, String> {
    let Some(rest) = text.strip_prefix('~') else {
        return Ok(PathBuf::from(text));
    };
    let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
    let base = if name.is_empty() {
        home.to_owned()
    } else {
        let user = nix::unistd::User::from_name(name).ok().flatten();
        user.ok_or_else(|| format!("there is no user {name}"))?.dir
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

    #[test]
    fn tokens_stand_for_their_values() {
        let tokens: Tokens = [('d', "/home/me"), ('h', "%p"), ('p', "2222"), ('r', "bob")]
            .map(|(token, value)| (token, value.to_owned()))
            .into();
        for (text, expected) in [
            ("plain", Ok("plain")),
            ("%d/.ssh/%r@%h:%p", Ok("/home/me/.ssh/bob@%p:2222")),
            ("%%h %%", Ok("%h %")),
            ("%x", Err("%x is not valid here")),
            ("%C", Err("%C is not valid here")),
            ("half%", Err("a lone % at the end (write %% for one)")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(percent(text, &tokens, FOR_FILES), expected, "{text}");
        }
        assert_eq!(percent("%p", &tokens, FOR_PROXY).unwrap(), "2222");
        assert!(percent("%d", &tokens, FOR_PROXY).is_err());
    }

    #[test]
    fn variables_come_from_the_environment() {
        let env = |name: &str| (name == "KEYS").then(|| "/k".to_owned());
        for (text, expected) in [
            ("${KEYS}/id", Ok("/k/id")),
            ("a${KEYS}b${KEYS}", Ok("a/kb/k")),
            ("$KEYS", Ok("$KEYS")),
            ("${NOPE}", Err("the environment has no NOPE")),
            ("${KEYS", Err("${ without }")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(variables(text, env), expected, "{text}");
        }
    }

    #[test]
    fn tilde_is_a_home() {
        let root = nix::unistd::User::from_name("root").unwrap().unwrap().dir;
        for (text, expected) in [
            ("~", Some("/home/me".into())),
            ("~/.ssh/id", Some("/home/me/.ssh/id".into())),
            ("~//id", Some("/home/me/id".into())),
            ("~root/id", Some(root.join("id"))),
            ("~root", Some(root.clone())),
            ("/a/~/b", Some("/a/~/b".into())),
            ("~no-such-user/id", None),
        ] {
            assert_eq!(tilde(text, Path::new("/home/me")).ok(), expected, "{text}");
        }
    }
}
