//! Selects jobs by host or name pattern instead of naming each.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::complete;
use super::values::Hosts;
use crate::error::Failure;
use crate::hosts;
use crate::job::Record;
use crate::state::{RecordFilter, Store};

/// A pattern for names: `*`, `?`, `[a-z]`, `[!a-z]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl FromStr for NamePattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-*?[]!^".contains(&byte));
        if good && !text.is_empty() && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "a pattern for names consists of letters, digits, '.', '_', '-', '*', '?' and [...]",
            )
        }
    }
}

impl NamePattern {
    /// The pattern for SQLite's GLOB, which negates with `^`.
    fn glob(&self) -> String {
        self.0.replace("[!", "[^")
    }
}

/// What selected jobs have in common.
#[derive(Args, Clone, Debug, Default)]
pub struct Criteria {
    /// Jobs started on these hosts (spelled as in `spawn`)
    #[arg(long, value_name = "HOST[,HOST]", add = ArgValueCompleter::new(complete::recorded_host))]
    pub host: Vec<Hosts>,
    /// Jobs whose name matches a pattern: *, ?, [a-z]
    #[arg(long = "name", value_name = "GLOB")]
    pub name_pattern: Option<NamePattern>,
}

impl Criteria {
    pub fn is_given(&self) -> bool {
        !self.host.is_empty() || self.name_pattern.is_some()
    }

    /// The jobs of the state file that match, the oldest first.
    pub fn pick(&self, store: &Store, which: RecordFilter) -> Result<Vec<Record>, Failure> {
        let mut records = match &self.name_pattern {
            Some(pattern) => store.named_like(which, &pattern.glob())?,
            None => store.list(which)?,
        };
        let hosts = Hosts::all(&self.host);
        records.retain(|record| self.host.is_empty() || hosts.contains(record.host()));
        Ok(records)
    }
}

impl fmt::Display for Criteria {
    /// The text that follows "jobs" in a message.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = Hosts::all(&self.host);
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        if !hosts.is_empty() {
            let folded = hosts::fold(hosts.iter().map(String::as_str));
            write!(formatter, " on {folded}")?;
        }
        if let Some(pattern) = &self.name_pattern {
            write!(formatter, " with a name like {}", pattern.0)?;
        }
        Ok(())
    }
}

/// The selectors of commands for unfinished jobs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Selecting jobs (instead of JOB)")]
pub struct Selectors {
    /// All unfinished jobs; with --host and --name, those that match both
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub picking: Criteria,
}

impl Selectors {
    pub fn is_given(&self) -> bool {
        self.all || self.picking.is_given()
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
