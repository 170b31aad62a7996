//! Parsers of option values.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::TypedValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::escape::printable;
use crate::host::Host;
use crate::hosts;
use crate::remote::output::StartPosition as Start;
use crate::remote::start::LogMax;
use crate::signal::Os;
use crate::state::Config;

/// Longest duration accepted, a hundred years: added to the current time, it stays within the range of any clock.
pub const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Bounds of `--log-max`, in bytes.
const LOG_MIN: u64 = 64 << 10;
const LOG_MAX: u64 = 1 << 40;

/// An operating system with a signal table of its own.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OsWord {
    Linux,
    Darwin,
    Freebsd,
}

impl From<OsWord> for Os {
    fn from(word: OsWord) -> Self {
        match word {
            OsWord::Linux => Self::Linux,
            OsWord::Darwin => Self::Darwin,
            OsWord::Freebsd => Self::FreeBSD,
        }
    }
}

/// The words of a command that starts the host's shell (`--prefix`).
#[derive(Clone, Debug)]
pub struct Prefix(pub Vec<String>);

/// Splits a prefix into words as a shell would, without expansion.
pub fn prefix(text: &str) -> Result<Prefix, String> {
    match shlex::split(text) {
        Some(words) if !words.is_empty() => Ok(Prefix(words)),
        Some(_) => Err("a prefix needs at least one word".to_owned()),
        None => Err("a quote is not closed".to_owned()),
    }
}

/// Parses a duration in humantime's format.
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
        Ok(duration) if duration <= DURATION_MAX => Ok(duration),
        Ok(_) => Err("longer than a hundred years".to_owned()),
        Err(error) => Err(format!("{error}; write it as 5s, 500ms or '1m 30s'")),
    }
}

/// Parses the value of `-o`, which ssh accepts as `KEY=VALUE` and as `KEY VALUE`.
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

/// Whether a word is a valid name of an environment variable.
pub fn is_variable(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Parses `KEY[=VALUE]` of `-e`; the value may be any bytes.
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
        // Only the name is shown: the value may be a secret.
        let shown = printable(name, 80);
        error.insert(ContextKind::InvalidValue, ContextValue::String(shown));
        Err(error)
    }
}

/// The configuration file, which was found valid when the command line was parsed.
pub fn configured() -> &'static Config {
    static NONE: LazyLock<Config> = LazyLock::new(Config::default);
    Config::current().unwrap_or(&NONE)
}

/// The hosts that a HOST word expands to: see [`hosts::expand`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(pub Vec<Host>);

impl FromStr for Hosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let config = Config::current().map_err(|failure| failure.message)?;
        let words = hosts::expand(text, &|name| config.group(name))?;
        if words.is_empty() {
            return Err("the group is empty".to_owned());
        }
        let host = |word: &String| {
            word.parse().map_err(|error| match error {
                error if word == text => format!("{error}"),
                error => format!("{}: {error}", printable(word, 80)),
            })
        };
        words.iter().map(host).collect::<Result<_, _>>().map(Self)
    }
}

impl Hosts {
    /// The hosts of a repeatable option, with the names of the configuration file replaced by the hosts they stand for.
    pub fn all(options: &[Self]) -> Vec<Host> {
        let words = options.iter().flat_map(|hosts| &hosts.0);
        words.map(|word| configured().host(word)).collect()
    }
}

/// Parses the value of `tail -n`.
pub fn lines(text: &str) -> Result<Start, String> {
    match (text, text.strip_prefix('+')) {
        ("all", _) => Ok(Start::Byte(1)),
        (_, Some(number)) => count(number).map(Start::Line),
        (number, None) => count(number.strip_prefix('-').unwrap_or(number)).map(Start::LastLines),
    }
}

/// Parses the value of `tail -c`.
pub fn bytes(text: &str) -> Result<Start, String> {
    match text.strip_prefix('+') {
        Some(number) => count(number).map(Start::Byte),
        None => count(text.strip_prefix('-').unwrap_or(text)).map(Start::LastBytes),
    }
}

/// Parses the value of `spawn --log-max`.
pub fn log_max(text: &str) -> Result<LogMax, String> {
    let word = text.to_ascii_uppercase();
    let digits = word.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let shift = match word.get(digits.len()..) {
        Some("K") => 10,
        Some("M") => 20,
        Some("G") => 30,
        Some("") => {
            return Err(format!("a size needs a unit: {text}K, {text}M or {text}G"));
        }
        _ => return Err("not a size: write it as 512K, 16M or 1G".to_owned()),
    };
    match count(digits)? {
        number if number > LOG_MAX >> shift => Err("more than 1024G".to_owned()),
        number if number << shift < LOG_MIN => Err("less than 64K".to_owned()),
        number => Ok(LogMax {
            bytes: number << shift,
            word,
        }),
    }
}

/// Parses the value of `serve --listen`: a loopback address and port, which other machines can't reach.
#[cfg(feature = "serve")]
pub fn listen(text: &str) -> Result<std::net::SocketAddr, String> {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    match text.parse::<SocketAddr>() {
        Ok(address)
            if address.ip() == Ipv4Addr::LOCALHOST || address.ip() == Ipv6Addr::LOCALHOST =>
        {
            Ok(address)
        }
        _ => Err(
            "it listens on 127.0.0.1:PORT or [::1]:PORT only; to reach it from another machine, forward the port: \
             ssh -L 5000:127.0.0.1:5000 HOST, or the socket: ssh -L 5000:SOCKET HOST"
                .to_owned(),
        ),
    }
}

/// Parses a count that the arithmetic of every shell can represent.
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
    fn sizes_need_a_unit_and_a_use() {
        let bytes = |text| log_max(text).map(|max| max.bytes);
        assert_eq!(bytes("16M"), Ok(16 << 20));
        assert_eq!(bytes("64k"), Ok(64 << 10));
        assert_eq!(bytes("1024G"), Ok(1 << 40));
        assert_eq!(log_max("1g").unwrap().word, "1G");
        assert!(bytes("16").unwrap_err().contains("16M"));
        for bad in [
            "", "M", "-1M", "1.5M", "16 M", "16MM", "16T", "63K", "0G", "1025G",
        ] {
            assert!(bytes(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn starts_in_a_log() {
        assert_eq!(lines("all"), Ok(Start::Byte(1)));
        assert_eq!(lines("+3"), Ok(Start::Line(3)));
        assert_eq!(lines("3"), Ok(Start::LastLines(3)));
        assert_eq!(lines("-3"), Ok(Start::LastLines(3)));
        assert_eq!(bytes("+3"), Ok(Start::Byte(3)));
        assert_eq!(bytes("3"), Ok(Start::LastBytes(3)));
        for bad in ["", "+", "x", "+-3", "1e3", "99999999999999999999"] {
            assert!(lines(bad).is_err() && bytes(bad).is_err(), "{bad:?}");
        }
    }
}
