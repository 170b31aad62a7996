//! The HOST word of the command line, and the connection options.
//!
//! `ssh -G` passes `host:22` unsplit and rejects `ssh://user@[::1]:99`, so the word is split here,
//! before any other program sees it. Names end up in configuration tokens such as `%h`, which a
//! `ProxyCommand` passes to a shell and an `IdentityFile` puts into a path. So the characters that
//! ssh(1) refuses in names are refused here too.

mod container;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use container::{Container, Endpoint};

use crate::error::Failure;

/// Maximum length of a host or user name, in characters (RFC 1035 2.3.4 allows 255 octets for a host).
const NAME_MAX: usize = 255;

/// A host as the user named it: this machine, a container, or a host reached over SSH.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host {
    typed: String,
    place: Location,
}

/// Where a host is and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    Local,
    Container(Container),
    /// Reached by the built-in SSH client.
    Ssh(Remote),
    /// Reached by the `ssh` program.
    OpenSsh(Remote),
}

/// The parts of a HOST word that is not `local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Remote {
    /// The user before `@`, if any.
    pub user: Option<String>,
    /// An alias in `ssh_config(5)`, a host name, or an address without brackets.
    pub name: String,
    /// The port after `:`, if any.
    pub port: Option<u16>,
}

/// Why a word is not a valid host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    EmptyHost,
    #[error("the user before '@' is empty")]
    EmptyUser,
    /// Other programs would take `-x` for an option.
    #[error("a {0} must not begin with '-'")]
    LeadingDash(&'static str),
    /// A character that is special to a shell, or not allowed in a name.
    #[error("a {what} must not hold {character:?}")]
    BadCharacter {
        /// `host` or `user`.
        what: &'static str,
        /// The first bad character.
        character: char,
    },
    #[error("the {0} is longer than {NAME_MAX} characters")]
    TooLong(&'static str),
    /// `%` not followed by two hexadecimal digits.
    #[error("{0:?}: in a URI, '%' stands before two hexadecimal digits; write %25 for '%'")]
    BadEscape(String),
    /// Not a whole number from 1 to 65535.
    #[error("{0:?} is not a port (1 to 65535)")]
    BadPort(String),
    /// `::1` without brackets: it would be ambiguous where the port begins.
    #[error("put an IPv6 address in brackets: [{0}]")]
    BareIpv6(String),
    /// `[` without `]`, or text in brackets that is not an address.
    #[error("{0:?} is not an IPv6 address in brackets")]
    BadBrackets(String),
}

impl Host {
    /// The word for this machine.
    pub const LOCAL: &'static str = "local";

    /// Whether the word is `local`.
    pub fn is_local(&self) -> bool {
        self.place == Location::Local
    }

    pub fn location(&self) -> &Location {
        &self.place
    }

    /// The parts of the word, if the host is reached by the built-in SSH client.
    pub fn remote(&self) -> Option<&Remote> {
        match &self.place {
            Location::Ssh(remote) => Some(remote),
            _ => None,
        }
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(typed: &str) -> Result<Self, HostError> {
        let place = if typed == Self::LOCAL {
            Location::Local
        } else if let Some(destination) = typed.strip_prefix("openssh://") {
            Location::OpenSsh(destination.parse()?)
        } else if let Some(container) = Container::parse(typed)? {
            Location::Container(container)
        } else {
            Location::Ssh(typed.parse()?)
        };
        Ok(Self {
            typed: typed.to_owned(),
            place,
        })
    }
}

impl FromStr for Remote {
    type Err = HostError;

    fn from_str(typed: &str) -> Result<Self, HostError> {
        let uri = typed.strip_prefix("ssh://");
        let rest = uri.map_or(typed, |rest| rest.strip_suffix('/').unwrap_or(rest));
        // A user may be user@domain, so the last '@' counts, as in ssh(1).
        let (user, rest) = match rest.rsplit_once('@') {
            Some(("", _)) => return Err(HostError::EmptyUser),
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let decode = |user: &str| match uri {
            Some(_) => percent_decode(user).ok_or_else(|| HostError::BadEscape(user.to_owned())),
            None => Ok(user.to_owned()),
        };
        let user = user.map(decode).transpose()?;
        if let Some(user) = &user {
            check_name("user", user, REFUSED_IN_USER)?;
        }
        let (name, port) = split_port(rest)?;
        Ok(Self {
            user,
            name: name.to_owned(),
            port: port.map(parse_port).transpose()?,
        })
    }
}

/// Decodes the user of a URI (RFC 3986 2.1). ssh(1) decodes no other part of the URI either.
fn percent_decode(user: &str) -> Option<String> {
    let mut parts = user.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        if !code.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend(rest.bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Splits `name[:port]` or `[address][:port]` and checks the name.
fn split_port(rest: &str) -> Result<(&str, Option<&str>), HostError> {
    if let Some(inner) = rest.strip_prefix('[') {
        let bad = || HostError::BadBrackets(rest.to_owned());
        let (address, after) = inner.split_once(']').ok_or_else(bad)?;
        if !is_ipv6(address) {
            return Err(bad());
        }
        return match after.strip_prefix(':') {
            Some(port) => Ok((address, Some(port))),
            None if after.is_empty() => Ok((address, None)),
            None => Err(bad()),
        };
    }
    if is_ipv6(rest) {
        return Err(HostError::BareIpv6(rest.to_owned()));
    }
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (rest, None),
    };
    if name.is_empty() {
        return Err(HostError::EmptyHost);
    }
    check_name("host", name, REFUSED_IN_HOST)?;
    let is_bad_part = |part| matches!(part, "" | "." | "..");
    if name.contains('/') && name.split('/').any(is_bad_part) {
        let (what, character) = ("host", '/');
        return Err(HostError::BadCharacter { what, character });
    }
    Ok((name, port))
}

/// Characters special to a shell, as in ssh.c, and `,`, which separates hosts here.
const REFUSED_IN_USER: &str = "'`\";&<>|(){}$,[]";
/// The same plus the backslash.
const REFUSED_IN_HOST: &str = "'`\";&<>|(){}$,[]\\";

/// Whether `text` is an IPv6 address, with or without a zone id (`fe80::1%eth0`).
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    let is_zone = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    address.parse::<std::net::Ipv6Addr>().is_ok() && !zone.is_empty() && zone.chars().all(is_zone)
}

fn check_name(what: &'static str, name: &str, refused: &str) -> Result<(), HostError> {
    if name.starts_with('-') {
        return Err(HostError::LeadingDash(what));
    }
    if name.chars().count() > NAME_MAX {
        return Err(HostError::TooLong(what));
    }
    let is_bad = |c: char| !(c.is_alphanumeric() || c.is_ascii_graphic()) || refused.contains(c);
    // As in ssh.c: a backslash at the end would escape the character after the name.
    match name.chars().find(|c| is_bad(*c)) {
        None if name.ends_with('\\') => Some('\\'),
        found => found,
    }
    .map_or(Ok(()), |character| {
        Err(HostError::BadCharacter { what, character })
    })
}

/// Parses the value of `--jobs-dir`.
pub fn parse_jobs_dir(text: &str) -> Result<String, String> {
    let path = text.trim_end_matches('/');
    if path.starts_with('/') && !path.contains('\n') {
        Ok(path.to_owned())
    } else {
        Err("it must be an absolute path on the job's host, other than /".to_owned())
    }
}

/// Parses a port: digits only, 1 to 65535.
pub fn parse_port(text: &str) -> Result<u16, HostError> {
    let digits_only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits_only && port != 0 => Ok(port),
        _ => Err(HostError::BadPort(text.to_owned())),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.typed)
    }
}

impl TryFrom<String> for Host {
    type Error = HostError;

    fn try_from(typed: String) -> Result<Self, HostError> {
        typed.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.typed
    }
}

/// The connection options of the command line, with ssh(1)'s meanings. A job's record keeps them, so
/// later commands only need the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connect {
    /// `-p`; overrides a port in the HOST word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `-l`; overrides a user in the HOST word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `-i`, in the order given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<PathBuf>,
    /// `-F`; `none` has a special meaning to ssh(1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    /// `-J`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jump: Option<String>,
    /// `-o`, each `KEY=VALUE` as typed, in the order given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// `--prefix` and `--sudo`: the words of a command that runs `/bin/sh -s` on the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefix: Vec<String>,
    /// `--jobs-dir`: where jobs' files are kept on the host, if not in the home directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs_dir: Option<String>,
    /// The settings that select the machine of a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Endpoint>,
}

impl Connect {
    /// Makes the paths of `-i` and `-F` absolute, so that they stay valid in another directory. Paths inside `-o` stay
    /// as typed.
    pub fn absolute(mut self, cwd: impl Fn() -> io::Result<PathBuf>) -> io::Result<Self> {
        let paths = self.identities.iter_mut().chain(&mut self.config);
        // `none` has a special meaning to ssh; paths that begin with one of these characters are expanded later.
        let is_relative = |path: &Path| {
            let bytes = path.as_os_str().as_encoded_bytes();
            path.is_relative()
                && bytes != b"none"
                && !matches!(bytes.first(), Some(b'~' | b'%' | b'$'))
        };
        for path in paths.filter(|path| is_relative(path)) {
            *path = cwd()?.join(&path);
        }
        Ok(self)
    }

    /// Checks the user of `-l` by the same rules as a user in the HOST word.
    pub fn check(&self) -> Result<(), HostError> {
        match self.user.as_deref() {
            Some("") => Err(HostError::EmptyUser),
            Some(user) => check_name("user", user, REFUSED_IN_USER),
            None => Ok(()),
        }
    }
}

/// Everything that determines where a connection goes and how. Keepers are looked up by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Destination {
    pub host: Host,
    #[serde(default)]
    pub connect: Connect,
}

impl Destination {
    /// For a container, reads the settings that select its machine, and fails if SSH options are given.
    pub fn new(host: Host, connect: Connect) -> Result<Self, Failure> {
        let Location::Container(container) = host.location() else {
            return Ok(Self { host, connect });
        };
        let chosen = Some(container.choose());
        let Connect {
            prefix, jobs_dir, ..
        } = connect.clone();
        let kept = Connect {
            prefix,
            jobs_dir,
            ..Connect::default()
        };
        if connect != kept {
            return Err(Failure::usage(format!(
                "{host}: -p, -l, -i, -F, -J and -o are for hosts that are reached over SSH"
            )));
        }
        let connect = Connect { chosen, ..kept };
        Ok(Self { host, connect })
    }

    /// The command that runs on the host and reads the scripts.
    pub fn shell(&self) -> Vec<&str> {
        static NONE_CHOSEN: Endpoint = Endpoint {
            variables: BTreeMap::new(),
            context: None,
            namespace: None,
        };
        let chosen = self.connect.chosen.as_ref().unwrap_or(&NONE_CHOSEN);
        let mut words = match self.host.location() {
            Location::Container(container) => container.words(chosen),
            _ => Vec::new(),
        };
        words.extend(self.connect.prefix.iter().map(String::as_str));
        words.extend(["/bin/sh", "-s"]);
        words
    }

    /// The variables to set, or to unset if `None`, for the first word of [`Self::shell`].
    pub fn environment(&self) -> Vec<(&'static str, Option<&str>)> {
        match (self.host.location(), &self.connect.chosen) {
            (Location::Container(container), Some(chosen)) => {
                container.environment(chosen).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The prefix, quoted for a shell, if there is one.
    pub fn prefix(&self) -> Option<String> {
        let words = self.connect.prefix.iter().map(String::as_str);
        // Quoting fails only on a NUL, and arguments contain none.
        (!self.connect.prefix.is_empty()).then(|| shlex::try_join(words).unwrap_or_default())
    }

    /// The place to pass to the scripts on the host for a job whose directory is not known.
    pub fn place_of(&self, id: &str) -> String {
        match &self.connect.jobs_dir {
            Some(jobs_dir) => format!("{jobs_dir}/{id}"),
            None => id.to_owned(),
        }
    }

    /// Whether jobs are processes of this machine that this process can see.
    pub fn is_plain_local(&self) -> bool {
        self.host.is_local() && self.connect.prefix.is_empty()
    }

    /// Whether shells are started by a prefix or by a container program.
    pub fn has_prefix(&self) -> bool {
        self.shell() != ["/bin/sh", "-s"]
    }

    /// Whether shells are child processes on this machine, without SSH.
    pub fn is_process(&self) -> bool {
        matches!(
            self.host.location(),
            Location::Local | Location::Container(_)
        )
    }

    /// Whether jobs start in the shell's directory instead of the home directory.
    pub fn starts_in_shell_dir(&self) -> bool {
        self.host.remote().is_none() && !self.is_plain_local()
    }

    /// Whether shells inherit the directory, environment, umask and limits of the command that starts them.
    pub fn inherits_environment(&self) -> bool {
        self.host.is_local()
    }

    /// Whether the prefix switches the user, with sudo or doas.
    pub fn has_sudo(&self) -> bool {
        let is_sudo = |word: &String| matches!(word.rsplit('/').next(), Some("sudo" | "doas"));
        self.connect.prefix.iter().any(is_sudo)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps, reason = "a host may have none")]
    fn remote(user: Option<&str>, name: &str, port: Option<u16>) -> Option<Remote> {
        Some(Remote {
            user: user.map(str::to_owned),
            name: name.to_owned(),
            port,
        })
    }

    #[test]
    fn words_that_name_a_host() {
        for (typed, expected) in [
            ("local", None),
            ("web1", remote(None, "web1", None)),
            ("web1:2222", remote(None, "web1", Some(2222))),
            ("bob@web1", remote(Some("bob"), "web1", None)),
            (
                "bob@corp.example@web1:22",
                remote(Some("bob@corp.example"), "web1", Some(22)),
            ),
            (
                "ssh://bob@web1:65535",
                remote(Some("bob"), "web1", Some(65535)),
            ),
            ("ssh://web1", remote(None, "web1", None)),
            ("[::1]", remote(None, "::1", None)),
            ("[::1]:99", remote(None, "::1", Some(99))),
            (
                "ssh://u@[fe80::2]:99",
                remote(Some("u"), "fe80::2", Some(99)),
            ),
            ("10.0.0.1:22", remote(None, "10.0.0.1", Some(22))),
            ("local:22", remote(None, "local", Some(22))),
            ("bob@local", remote(Some("bob"), "local", None)),
            ("ssh://local", remote(None, "local", None)),
            ("ssh://bob@web1/", remote(Some("bob"), "web1", None)),
            (
                "ssh://bob%40corp.example@web1",
                remote(Some("bob@corp.example"), "web1", None),
            ),
            ("bob%40@web1", remote(Some("bob%40"), "web1", None)),
            ("CORP\\bob@web1", remote(Some("CORP\\bob"), "web1", None)),
            ("[fe80::1%eth0]", remote(None, "fe80::1%eth0", None)),
            (
                "bob@[fe80::1%eth0]:99",
                remote(Some("bob"), "fe80::1%eth0", Some(99)),
            ),
            ("prod/web", remote(None, "prod/web", None)),
            ("a=b#c~d%e", remote(None, "a=b#c~d%e", None)),
            (
                "db_2.gr\u{fc}n.example",
                remote(None, "db_2.gr\u{fc}n.example", None),
            ),
        ] {
            let host: Host = typed.parse().unwrap();
            assert_eq!(host.remote().cloned(), expected, "{typed}");
            assert_eq!(host.to_string(), typed);
            assert_eq!(host.is_local(), typed == "local");
        }
    }

    #[test]
    fn words_that_do_not() {
        use HostError::*;
        for (typed, expected) in [
            ("", EmptyHost),
            ("ssh://", EmptyHost),
            ("ssh://100%@web1", BadEscape("100%".into())),
            ("ssh://b%+1@web1", BadEscape("b%+1".into())),
            (":22", EmptyHost),
            ("bob@", EmptyHost),
            ("@web1", EmptyUser),
            ("-oProxyCommand=x", LeadingDash("host")),
            ("bob@-web", LeadingDash("host")),
            ("-l@web", LeadingDash("user")),
            ("web1:0", BadPort("0".into())),
            ("web1:65536", BadPort("65536".into())),
            ("web1:", BadPort(String::new())),
            ("web1:+22", BadPort("+22".into())),
            ("web1:22:33", BadPort("22:33".into())),
            ("[::1]:x", BadPort("x".into())),
            ("::1", BareIpv6("::1".into())),
            ("[::1", BadBrackets("[::1".into())),
            ("[web1]:22", BadBrackets("[web1]:22".into())),
            ("[::1]22", BadBrackets("[::1]22".into())),
            ("[fe80::1%]", BadBrackets("[fe80::1%]".into())),
            ("[fe80::1%$(x)]", BadBrackets("[fe80::1%$(x)]".into())),
            ("fe80::1%eth0", BareIpv6("fe80::1%eth0".into())),
        ] {
            assert_eq!(typed.parse::<Host>(), Err(expected), "{typed}");
        }
        for character in " \t\n\0\x1b\u{202e}\u{a0}'\"`$;&|<>(){}[],\\".chars() {
            let user = match character {
                '\\' => "bob\\@web".to_owned(),
                _ => format!("b{character}b@web"),
            };
            for (what, typed) in [("host", format!("we{character}b")), ("user", user)] {
                assert_eq!(
                    typed.parse::<Host>(),
                    Err(BadCharacter { what, character }),
                    "{typed:?}"
                );
            }
        }
        for typed in ["../..", "/web", "web/", "a/./b", "a//b"] {
            let (what, character) = ("host", '/');
            let expected = Err(BadCharacter { what, character });
            assert_eq!(typed.parse::<Host>(), expected, "{typed}");
        }
        assert_eq!("x".repeat(256).parse::<Host>(), Err(TooLong("host")));
    }

    #[test]
    fn paths_are_made_absolute_once() {
        let connect = Connect {
            identities: ["key", "/abs/key", "~/key", "%d/key", "${HOME}/key"]
                .map(PathBuf::from)
                .to_vec(),
            config: Some("conf".into()),
            options: vec!["IdentityFile=rel".into()],
            ..Connect::default()
        }
        .absolute(|| Ok("/home/ada".into()))
        .unwrap();
        let identities = [
            "/home/ada/key",
            "/abs/key",
            "~/key",
            "%d/key",
            "${HOME}/key",
        ]
        .map(PathBuf::from);
        assert_eq!(connect.identities, identities);
        assert_eq!(connect.config.as_deref(), Some(Path::new("/home/ada/conf")));
        assert_eq!(connect.options, ["IdentityFile=rel"]);
        let nowhere = || Err(io::Error::other("no directory"));
        assert_eq!(connect.clone().absolute(nowhere).unwrap(), connect);
        let none = Connect {
            config: Some("none".into()),
            ..Connect::default()
        };
        assert_eq!(none.clone().absolute(nowhere).unwrap(), none);
    }

    #[test]
    fn a_user_of_its_own_option_is_checked_too() {
        for (user, good) in [
            ("bob", true),
            ("", false),
            ("-x", false),
            ("a b", false),
            ("$(x)", false),
        ] {
            let connect = Connect {
                user: Some(user.into()),
                ..Connect::default()
            };
            assert_eq!(connect.check().is_ok(), good, "{user}");
        }
    }
}
