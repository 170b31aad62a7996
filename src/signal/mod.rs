//! Signals: the words that users type for them, and their meaning on a job's host.
//!
//! The meaning of a number depends on the host (10 is USR1 on Linux, BUS on macOS and FreeBSD), so a
//! word is first parsed as a [`SignalWord`] and becomes a [`Signal`] only once the host's system is
//! known. This module does not send signals, and does not know the other words of a shell's `trap`
//! (`EXIT`, `DEBUG`, ...).

mod os;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

pub use os::Os;
use table::{NamedSignal, RealTime};
pub use table::{Row, table};

/// A signal as the user named it. Its meaning depends on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SignalWord(Word);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Word {
    Number(u8),
    Name(&'static str),
    RealTime(RealTime),
}

/// A signal of one host's system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signal {
    name: Name,
    number: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Name {
    Plain(&'static str),
    RealTime(RealTime),
}

/// Why a word is not a signal, or not one on a system.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadSignal {
    #[error("a signal can't be empty; `rsig kill -l` lists them all")]
    Empty,
    #[error("'{word}' is not a signal{}; `rsig kill -l` lists them all", did_you_mean(*.near))]
    Unknown {
        /// Escaped and truncated.
        word: String,
        near: Option<&'static str>,
    },
    #[error(
        "no system has a signal {0}: numbers run from 0 to 128 \
         (for an exit status, ask `rsig kill -l STATUS`)"
    )]
    TooHigh(String),
    #[error("{os} has no signal {word}{}", where_listed(*.os))]
    Lacking { os: Os, word: SignalWord },
    #[error(
        "{0} does not mean the same on every system, and rsig does not know this one: give a name \
         that all have, or 0, 1, 2, 3, 6, 9, 14 or 15"
    )]
    Uncommon(SignalWord),
    #[error("0 is not a signal: sent to a job, it only asks whether the job is still there")]
    NoRowForZero,
    #[error("the number and the effect of {0} on this system are not known to rsig")]
    NoRow(SignalWord),
}

fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(String::new, |name| format!(" (did you mean {name}?)"))
}

fn where_listed(os: Os) -> String {
    os.option().map_or_else(String::new, |option| {
        format!("; `rsig kill -l --os {option}` lists those it has")
    })
}

impl SignalWord {
    pub const TERM: Self = Self(Word::Name("TERM"));
    pub const KILL: Self = Self(Word::Name("KILL"));

    /// Whether it is 0, which sends nothing and only checks whether the job exists.
    pub fn is_existence_check(self) -> bool {
        matches!(self.0, Word::Number(0))
    }

    /// Whether it is KILL, whose number is the same on every system.
    pub fn is_kill(self) -> bool {
        matches!(self.0, Word::Name("KILL") | Word::Number(9))
    }

    /// The signal that this word means on `os`.
    pub fn on(self, os: Os) -> Result<Signal, BadSignal> {
        match self.0 {
            Word::Number(0) => Some(Signal::EXISTENCE_CHECK),
            Word::Number(number) => Signal::numbered(number, os),
            Word::Name(name) => NamedSignal::named(name, os).map(|known| Signal::known(known, os)),
            Word::RealTime(place) => table::real_time(os)
                .and_then(|range| place.number(&range))
                .and_then(|number| Signal::numbered(number, os)),
        }
        .ok_or(match os {
            Os::Other => BadSignal::Uncommon(self),
            _ => BadSignal::Lacking { os, word: self },
        })
    }
}

impl FromStr for SignalWord {
    type Err = BadSignal;

    fn from_str(word: &str) -> Result<Self, BadSignal> {
        if word.is_empty() {
            return Err(BadSignal::Empty);
        }
        if is_number(word) {
            return match word.parse() {
                Ok(number @ 0..=128) => Ok(Self(Word::Number(number))),
                _ => Err(BadSignal::TooHigh(shown(word))),
            };
        }
        let upper = word.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(known) = table::names().find(|known| *known == name) {
            return Ok(Self(Word::Name(known)));
        }
        if let Some(place) = RealTime::parse(name) {
            return Ok(Self(Word::RealTime(place)));
        }
        Err(BadSignal::Unknown {
            word: shown(word),
            near: table::names().find(|known| strsim::osa_distance(known, name) <= 1),
        })
    }
}

impl fmt::Display for SignalWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Word::Number(number) => number.fmt(f),
            Word::Name(name) => f.pad(name),
            Word::RealTime(place) => place.fmt(f),
        }
    }
}

impl Signal {
    const EXISTENCE_CHECK: Self = Self {
        name: Name::Plain("0"),
        number: Some(0),
    };

    fn known(known: &NamedSignal, os: Os) -> Self {
        Self {
            name: Name::Plain(known.name),
            number: known.number(os),
        }
    }

    fn numbered(number: u8, os: Os) -> Option<Self> {
        if let Some(known) = NamedSignal::numbered(number, os) {
            return Some(Self::known(known, os));
        }
        let range = table::real_time(os)?;
        range.contains(&number).then(|| Self {
            name: Name::RealTime(RealTime::nearest(number, &range)),
            number: Some(number),
        })
    }

    /// The number on the host, 0 for the existence check. `None` if rsig does not know the host's
    /// system, so that the signal is sent by name.
    pub fn number(&self) -> Option<u8> {
        self.number
    }

    /// The name without `SIG`: `TERM`, `RTMIN+3`; `0` for the existence check.
    pub fn name(&self) -> String {
        self.to_string()
    }

    /// The argument after the dash in a shell's `kill -X`: the name, or the number on the host if some
    /// shell lacks the name.
    pub fn wire(&self) -> String {
        let by_number = match self.name {
            Name::Plain(name) => table::NAMES_SHELLS_LACK.contains(&name),
            Name::RealTime(_) => true,
        };
        match self.number {
            Some(number) if by_number => number.to_string(),
            _ => self.name(),
        }
    }

    /// The name in an SSH `signal` request, for the six signals that servers deliver and a relay can
    /// acknowledge. RFC 4254 6.9 lists more, but OpenSSH refuses them, and KILL would end the relay.
    pub fn channel_name(&self) -> Option<&'static str> {
        match self.name {
            Name::Plain(name @ ("HUP" | "INT" | "QUIT" | "TERM" | "USR1" | "USR2")) => Some(name),
            _ => None,
        }
    }

    /// Whether it is signal 0, which sends nothing and only checks whether the job exists.
    pub fn is_existence_check(&self) -> bool {
        *self == Self::EXISTENCE_CHECK
    }

    /// Whether it is TSTP, TTIN or TTOU, which by default do nothing to a job: a job leads its own
    /// session, so its process group is orphaned (POSIX, general terminal interface).
    pub fn stops_only_interactively(&self) -> bool {
        matches!(self.name, Name::Plain("TSTP" | "TTIN" | "TTOU"))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Name::Plain(name) => f.pad(name),
            Name::RealTime(place) => place.fmt(f),
        }
    }
}

/// The row that `rsig kill -l WORD` shows, for a name, a number, or an exit status from 129 on. A
/// shell reports such a status for a command that was ended by signal `status - 128`.
pub fn row_for(os: Os, word: &str) -> Result<Row, BadSignal> {
    let word = match number_in_status(word) {
        Some(number) => SignalWord(Word::Number(number)),
        None => word.parse()?,
    };
    let signal = word.on(os)?;
    table(os)
        .into_iter()
        .find(|row| Some(row.number) == signal.number)
        .ok_or(if signal.is_existence_check() {
            BadSignal::NoRowForZero
        } else {
            BadSignal::NoRow(word)
        })
}

fn number_in_status(word: &str) -> Option<u8> {
    let status: u8 = word.parse().ok().filter(|_| is_number(word))?;
    status.checked_sub(128).filter(|number| *number > 0)
}

/// The name of signal n, if `status` is 128+n and `os` has a signal n.
pub fn name_of_exit_status(os: Os, status: u32) -> Option<String> {
    let number = u8::try_from(status.checked_sub(128)?).ok()?;
    Signal::numbered(number, os).map(|signal| signal.name())
}

/// Parses a signal argument in the form of kill(1): `-9`, `-KILL`, `-SIGKILL`, `-RTMIN+3`. Names must
/// be in upper case, so that an option in lower case is never taken for a signal.
pub fn dashed(argument: &str) -> Option<SignalWord> {
    let word = argument.strip_prefix('-')?;
    let upper = !word.bytes().any(|byte| byte.is_ascii_lowercase());
    word.parse().ok().filter(|_| upper)
}

/// Whether a word is all digits; `u8::from_str` would accept `+9` too.
fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// A word for a message: truncated, with control characters escaped.
fn shown(word: &str) -> String {
    const SHOWN_MAX: usize = 32;
    let mut shown: String = word
        .chars()
        .take(SHOWN_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if word.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}
