//! Picking jobs by what they have in common, in place of naming each.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;

use crate::host::Host;
use crate::job::Record;
use crate::state::{Store, Which};

/// A pattern for names: `*`, `?`, `[a-z]`, `[!a-z]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

/// The word is no pattern that a name could fit.
#[derive(Debug, thiserror::Error)]
#[error("a pattern for names is made of letters, digits, '.', '_', '-', '*', '?' and [...]")]
pub struct BadPattern;

impl FromStr for NamePattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let good = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-*?[]!^".contains(&byte));
        if good && !text.is_empty() && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadPattern)
        }
    }
}

impl NamePattern {
    /// As SQLite's GLOB has it, which negates with `^`.
    fn glob(&self) -> String {
        self.0.replace("[!", "[^")
    }
}

/// What the jobs have in common. Without any of it: all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// They are on one of these hosts, named as when they were started.
    pub hosts: Vec<Host>,
    /// Their names fit this.
    pub name: Option<NamePattern>,
}

impl Selection {
    /// The jobs of the state file that fit, the oldest first.
    pub fn of(&self, store: &Store, which: Which) -> Result<Vec<Record>> {
        let mut records = match &self.name {
            Some(pattern) => store.named_like(which, &pattern.glob())?,
            None => store.list(which)?,
        };
        records.retain(|record| self.hosts.is_empty() || self.hosts.contains(record.host()));
        Ok(records)
    }
}

impl fmt::Display for Selection {
    /// What comes behind "jobs".
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        if !hosts.is_empty() {
            write!(formatter, " on {}", hosts.join(" or "))?;
        }
        if let Some(pattern) = &self.name {
            write!(formatter, " with a name like {}", pattern.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_hold_what_names_hold() {
        for good in ["*", "train-*", "web[0-9]?", "[!a]*", "a.b_c"] {
            assert!(good.parse::<NamePattern>().is_ok(), "{good:?}");
        }
        for bad in ["", "a b", "a/b", "{a,b}", "$(id)", "a'", &"*".repeat(65)] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad:?}");
        }
        assert_eq!("[!a-c]*".parse::<NamePattern>().unwrap().glob(), "[^a-c]*");
    }
}
