//! The hosts that may be used (`--allow-host`): a limit that the operator of a server sets, and that every command
//! obeys.
//!
//! A pattern is matched against the host as typed, part by part, before any configuration is read. Where an alias
//! leads, and as which user, is up to ssh_config and to the operator who set the limit.

use std::fmt;
use std::str::FromStr;

use crate::glob;
use crate::host::{Host, Remote};

/// A pattern for hosts: `local`, or `[USER@]HOST[:PORT]`, with `*` and `?` in each part. A part that the pattern lacks
/// must be absent: `web*` matches neither `root@web1` nor `web1:2222`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    user: Option<String>,
    name: String,
    port: Option<String>,
    /// The name is matched against the whole host as typed: a container, or a host of the `ssh` program.
    whole: bool,
}

/// The word is not a valid host pattern.
#[derive(Debug, thiserror::Error)]
#[error("a pattern for hosts is `local` or [USER@]HOST[:PORT], with * and ? in any part")]
pub struct BadHostPattern;

impl FromStr for HostPattern {
    type Err = BadHostPattern;

    fn from_str(text: &str) -> Result<Self, BadHostPattern> {
        if let Some((scheme, _)) = text.split_once("://") {
            let good = ["docker", "podman", "kubectl", "openssh"].contains(&scheme)
                && text.chars().all(|letter| letter.is_ascii_graphic());
            return if good {
                Ok(Self {
                    user: None,
                    name: text.to_owned(),
                    port: None,
                    whole: true,
                })
            } else {
                Err(BadHostPattern)
            };
        }
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        let (name, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, Some(port.strip_prefix(':').ok_or(BadHostPattern)?)),
            None => rest
                .split_once(':')
                .map_or((rest, None), |(name, port)| (name, Some(port))),
        };
        let is_of = |part: &str, more: &str| {
            let good = |letter: char| {
                letter.is_alphanumeric() || "._+-*?".contains(letter) || more.contains(letter)
            };
            !part.is_empty() && part.chars().all(good)
        };
        let good = is_of(name, ":")
            && user.is_none_or(|user| is_of(user, "@"))
            && port.is_none_or(|port| is_of(port, ""));
        if !good {
            return Err(BadHostPattern);
        }
        Ok(Self {
            user: user.map(str::to_owned),
            name: name.to_owned(),
            port: port.map(str::to_owned),
            whole: false,
        })
    }
}

impl HostPattern {
    fn fits(&self, host: &Host) -> bool {
        let remote = host.remote().filter(|_| !self.whole);
        let Some(Remote { user, name, port }) = remote else {
            // A container or `openssh://` host matches only patterns with its scheme.
            return self.user.is_none()
                && self.port.is_none()
                && self.whole != host.is_local()
                && fits(&self.name, &host.to_string());
        };
        // `ssh://local` is another machine: the pattern `local` does not match it.
        let named_local =
            name == Host::LOCAL && user.is_none() && port.is_none() && self.name == Host::LOCAL;
        let part = |pattern: Option<&String>, part: Option<&str>| match (pattern, part) {
            (None, None) => true,
            (Some(pattern), Some(part)) => fits(pattern, part),
            _ => false,
        };
        let port = port.map(|port| port.to_string());
        !named_local
            && fits(&self.name, name)
            && part(self.user.as_ref(), user.as_deref())
            && part(self.port.as_ref(), port.as_deref())
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    let characters = |text: &str| text.chars().collect::<Vec<char>>();
    glob::matches(&characters(pattern), &characters(text))
}

/// The hosts that may be used: all, unless there are patterns.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts(Vec<HostPattern>);

impl AllowedHosts {
    /// The hosts that match one of the patterns; all hosts if there are none.
    #[cfg_attr(
        not(any(feature = "mcp", feature = "serve")),
        allow(dead_code, reason = "servers limit their clients")
    )]
    pub fn new(patterns: Vec<HostPattern>) -> Self {
        Self(patterns)
    }

    /// Whether a host may be used.
    pub fn has(&self, host: &Host) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.fits(host))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(formatter, "{user}@")?;
        }
        if self.name.contains(':') && !self.whole {
            write!(formatter, "[{}]", self.name)
        } else {
            formatter.write_str(&self.name)
        }?;
        self.port
            .as_ref()
            .map_or(Ok(()), |port| write!(formatter, ":{port}"))
    }
}

impl fmt::Display for AllowedHosts {
    /// The patterns, for a message.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<String> = self.0.iter().map(HostPattern::to_string).collect();
        formatter.write_str(&patterns.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_to_fit() {
        for (pattern, hosts, others) in [
            (
                "web*",
                &["web1", "web", "ssh://web1"][..],
                &["root@web1", "web1:22", "web1@evil", "xweb1", "local"][..],
            ),
            ("w?b", &["wab"], &["wb", "waab"]),
            ("*", &["local", "web1", "[::1]"], &["root@web1", "web1:22"]),
            (
                "local",
                &["local"],
                &["ssh://local", "root@local", "local:22"],
            ),
            (
                "deploy@*.example:*",
                &["deploy@a.example:2222"],
                &["a.example:22", "deploy@a.example", "x@a.example:22"],
            ),
            ("*@web1", &["a@web1", "a@b@web1"], &["web1"]),
            (
                "[fe80::*]:22",
                &["[fe80::1]:22"],
                &["[fe80::1]", "[fe81::1]:22"],
            ),
            ("a*b*c", &["abc", "axbxbc"], &["ab", "axc"]),
            (
                "docker://web*",
                &["docker://web1"],
                &["web1", "podman://web1", "local"],
            ),
            (
                "kubectl://dev/*",
                &["kubectl://dev/a"],
                &["kubectl://prod/a", "kubectl://a"],
            ),
            ("*", &["local"], &["docker://web1", "openssh://web1"]),
        ] {
            let allowed = AllowedHosts::new(vec![pattern.parse().unwrap()]);
            assert_eq!(allowed.to_string(), pattern);
            for host in hosts {
                assert!(allowed.has(&host.parse().unwrap()), "{pattern} {host}");
            }
            for host in others {
                assert!(!allowed.has(&host.parse().unwrap()), "{pattern} {host}");
            }
        }
        assert!(AllowedHosts::default().has(&"root@web1:22".parse().unwrap()));
        for bad in [
            "", "@web1", "web1:", "a b", "[::1", "web/1", "[::1]x", "web[12]",
        ] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }
}
