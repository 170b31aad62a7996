//! The values of options: what is written in them, as types.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cmd::spawn::is_variable;
use crate::host::{Host, HostError};
use crate::remote::output::From as Start;

/// The longest time that is taken: a clock can't be set further than it goes.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The words of a command in front of a shell.
#[derive(Clone, Debug)]
pub struct Prefix(pub Vec<String>);

/// Splits a prefix like a shell's words, without expansion.
pub fn prefix(text: &str) -> Result<Prefix, String> {
    match shlex::split(text) {
        Some(words) if !words.is_empty() => Ok(Prefix(words)),
        Some(_) => Err("a prefix needs at least one word".to_owned()),
        None => Err("a quote is not closed".to_owned()),
    }
}

/// Reads a duration in humantime's words.
pub fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(format!(
            "a duration needs a unit: {text}s, {text}m or {text}ms"
        ));
    }
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => Err("longer than a hundred years".to_owned()),
        Err(error) => Err(format!("{error}; write it as 5s, 500ms or '1m 30s'")),
    }
}

/// Reads `-o`'s value, which ssh takes as `KEY=VALUE` and as `KEY VALUE`.
pub fn ssh_option(text: &str) -> Result<String, String> {
    let key = text.split(['=', ' ', '\t']).next().unwrap_or_default();
    let known_form = !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && key.len() < text.len();
    if known_form && !text.contains(['\n', '\0']) {
        Ok(text.to_owned())
    } else {
        Err("an option of ssh_config(5) is written as KEY=VALUE".to_owned())
    }
}

/// Reads `-e`'s value: bytes, since an environment is.
#[derive(Clone, Debug)]
pub struct Variables;

impl TypedValueParser for Variables {
    type Value = (String, Option<OsString>);

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let bytes = value.as_bytes();
        let (name, content) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => (
                bytes.get(..at),
                bytes
                    .get(at + 1..)
                    .map(|rest| OsString::from_vec(rest.to_vec())),
            ),
            None => (Some(bytes), None),
        };
        let name = name.unwrap_or_default();
        if let Some(name) = std::str::from_utf8(name)
            .ok()
            .filter(|name| is_variable(name))
        {
            return Ok((name.to_owned(), content));
        }
        let mut error = clap::Error::new(ErrorKind::ValueValidation).with_cmd(command);
        if let Some(argument) = argument {
            error.insert(
                ContextKind::InvalidArg,
                ContextValue::String(argument.to_string()),
            );
        }
        // Only the name: the value may be a secret.
        let shown = crate::escape::printable(name, 80);
        error.insert(ContextKind::InvalidValue, ContextValue::String(shown));
        Err(error)
    }
}

/// The hosts of `spawn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts(pub Vec<Host>);

impl FromStr for Hosts {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        text.split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// The value of `tail -n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines(pub Start);

impl FromStr for Lines {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix('+')) {
            ("all", _) => Ok(Self(Start::Byte(1))),
            (_, Some(number)) => Ok(Self(Start::Line(count(number)?))),
            (number, None) => Ok(Self(Start::LastLines(count(
                number.strip_prefix('-').unwrap_or(number),
            )?))),
        }
    }
}

/// The value of `tail -c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub Start);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('+') {
            Some(number) => Ok(Self(Start::Byte(count(number)?))),
            None => Ok(Self(Start::LastBytes(count(
                text.strip_prefix('-').unwrap_or(text),
            )?))),
        }
    }
}

/// The value of `serve --listen`: a port of this machine that no other can reach.
#[cfg(feature = "serve")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub std::net::SocketAddr);

#[cfg(feature = "serve")]
impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<std::net::SocketAddr>() {
            Ok(address) if [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()].contains(&address.ip()) => {
                Ok(Self(address))
            }
            _ => {
                Err("it listens on 127.0.0.1:PORT or [::1]:PORT alone; to reach it from another machine, forward the \
                      port: ssh -L 5000:127.0.0.1:5000 HOST, or the socket: ssh -L 5000:SOCKET HOST"
                    .to_owned())
            }
        }
    }
}

/// A count that the arithmetic of every shell can hold.
fn count(text: &str) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(count) if digits && count <= 1 << 53 => Ok(count),
        _ => Err("not a count".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("5").unwrap_err().contains("5s"));
        for bad in [
            "",
            "1.5",
            "-5s",
            "5 parsecs",
            "1000years",
            "99999999999999999999s",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn places_in_a_log() {
        assert_eq!("all".parse(), Ok(Lines(Start::Byte(1))));
        assert_eq!("+3".parse(), Ok(Lines(Start::Line(3))));
        assert_eq!("3".parse(), Ok(Lines(Start::LastLines(3))));
        assert_eq!("-3".parse(), Ok(Lines(Start::LastLines(3))));
        assert_eq!("+3".parse(), Ok(Place(Start::Byte(3))));
        assert_eq!("3".parse(), Ok(Place(Start::LastBytes(3))));
        for bad in ["", "+", "x", "+-3", "1e3", "99999999999999999999"] {
            assert!(
                bad.parse::<Lines>().is_err() && bad.parse::<Place>().is_err(),
                "{bad:?}"
            );
        }
    }
}
