//! The configuration file: defaults for options, groups of hosts, and hosts with names that the user chose.
//!
//! Keys of `[defaults]` other than connection options are checked by the command line, which knows the options.
//! Everything else is checked here, when the file is read.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::unistd::geteuid;
use toml::de::{DeTable, DeValue};

use super::directory::{absolute, home, variable};
use crate::error::Failure;
use crate::escape::printable;
use crate::host::{Connect, Destination, Host, Location, parse_jobs_dir, parse_port};

/// Maximum size of the file, in bytes.
const SIZE_MAX: u64 = 1 << 20;
/// The keys for connection options, in `[defaults]` and in `[hosts.NAME]`.
const CONNECT_KEYS: [&str; 9] = [
    "user", "port", "identity", "config", "jump", "option", "prefix", "sudo", "jobs-dir",
];

/// A key of the file, with its values.
#[derive(Debug)]
pub struct Setting {
    /// `defaults`, `groups` or `hosts.NAME`.
    pub section: String,
    pub key: String,
    /// A single value, or the items of a list.
    pub values: Vec<String>,
    pub line: usize,
}

#[derive(Debug, Default)]
pub struct Config {
    pub path: PathBuf,
    pub settings: Vec<Setting>,
    defaults: Connect,
    hosts: HashMap<String, (Host, Connect)>,
}

impl Config {
    /// The configuration of this process, read once.
    pub fn current() -> Result<&'static Self, Failure> {
        static CURRENT: OnceLock<Result<Config, Failure>> = OnceLock::new();
        let read = CURRENT.get_or_init(|| match variable("RSIG_CONFIG") {
            Some(path) => Self::read(path, true),
            None => {
                default_path().map_or_else(|| Ok(Self::default()), |path| Self::read(path, false))
            }
        });
        read.as_ref().map_err(Clone::clone)
    }

    fn read(path: PathBuf, is_named: bool) -> Result<Self, Failure> {
        let text = match text(&path) {
            Ok(Some(text)) => text,
            Ok(None) if !is_named => String::new(),
            Ok(None) => {
                let message = format!("RSIG_CONFIG: there is no {}", path.display());
                return Err(Failure::usage(message));
            }
            Err(why) => {
                let message = format!("the configuration file {} {why}", path.display());
                return Err(Failure::usage(message));
            }
        };
        let path = std::path::absolute(&path).unwrap_or(path);
        Self::parse(path, &text)
    }

    pub(crate) fn parse(path: PathBuf, text: &str) -> Result<Self, Failure> {
        let mut config = Self {
            path,
            ..Self::default()
        };
        let settings = settings(text);
        config.settings = settings.map_err(|(line, why)| config.failure(line, &why))?;
        let mut defaults = Connect::default();
        let mut hosts: HashMap<String, (Option<Host>, Connect)> = HashMap::new();
        for setting in &config.settings {
            let fails =
                |why: String| config.failure(setting.line, &format!("{}: {why}", setting.key));
            match setting.section.strip_prefix("hosts.") {
                Some(name) => {
                    let (host, connect) = hosts.entry(name.to_owned()).or_default();
                    if setting.key == "host" {
                        *host = Some(single_value(setting).and_then(parse_host).map_err(fails)?);
                    } else if is_connect_key(&setting.key) {
                        set(connect, setting).map_err(fails)?;
                    } else {
                        return Err(config.unknown(setting));
                    }
                }
                None if setting.section == "defaults" && is_connect_key(&setting.key) => {
                    set(&mut defaults, setting).map_err(fails)?;
                }
                None => {}
            }
        }
        let directory = || Ok(config.path.parent().unwrap_or(Path::new("/")).to_owned());
        let absolute = |connect: Connect| connect.absolute(directory).unwrap_or_default();
        config.hosts = hosts
            .into_iter()
            .filter_map(|(name, (host, connect))| {
                let host = host.or_else(|| name.parse().ok())?;
                Some((name, (host, absolute(connect))))
            })
            .collect();
        let defaults = absolute(defaults);
        config.defaults = defaults;
        Ok(config)
    }

    /// A usage error at a line of the file.
    pub fn failure(&self, line: usize, why: &str) -> Failure {
        Failure::usage(format!("{}:{line}: {why}", self.path.display()))
    }

    /// The usage error for an unknown key.
    pub fn unknown(&self, setting: &Setting) -> Failure {
        let (key, section) = (printable(&setting.key, 80), printable(&setting.section, 80));
        self.failure(setting.line, &format!("unknown key {key} in [{section}]"))
    }

    /// The defaults of options other than connection options.
    pub fn defaults(&self) -> impl Iterator<Item = &Setting> {
        let own =
            |setting: &&Setting| setting.section == "defaults" && !is_connect_key(&setting.key);
        self.settings.iter().filter(own)
    }

    /// The members of a group.
    pub fn group(&self, name: &str) -> Option<Vec<String>> {
        let is_it = |setting: &&Setting| setting.section == "groups" && setting.key == name;
        self.settings
            .iter()
            .find(is_it)
            .map(|setting| setting.values.clone())
    }

    /// The names of all groups, with their `@`, and of all hosts.
    pub fn names(&self) -> Vec<String> {
        let groups = self
            .settings
            .iter()
            .filter(|setting| setting.section == "groups");
        let groups = groups.map(|setting| format!("@{}", setting.key));
        groups.chain(self.hosts.keys().cloned()).collect()
    }

    /// The host that a word stands for.
    pub fn host(&self, word: &Host) -> Host {
        let named = self.hosts.get(&word.to_string());
        named.map_or_else(|| word.clone(), |(host, _)| host.clone())
    }

    /// The destination of a HOST word. The command line overrides `[hosts.NAME]`, which overrides `[defaults]`.
    pub fn destination(&self, word: &Host, given: &Connect) -> Result<Destination, Failure> {
        let mut connect = given.clone();
        if let Some((_, own)) = self.hosts.get(&word.to_string()) {
            // The prefix of `[hosts.NAME]` comes before the prefix of the command line.
            let prefix = own.prefix.iter().chain(&given.prefix).cloned().collect();
            connect = Connect {
                prefix,
                ..merge(connect, own)
            };
        }
        let host = self.host(word);
        // A host that is not reached over SSH takes no SSH options.
        connect = if matches!(host.location(), Location::Local | Location::Container(_)) {
            let Connect {
                prefix, jobs_dir, ..
            } = self.defaults.clone();
            merge(
                connect,
                &Connect {
                    prefix,
                    jobs_dir,
                    ..Connect::default()
                },
            )
        } else {
            merge(connect, &self.defaults)
        };
        Destination::new(host, connect)
    }
}

/// Fills the unset options of `first` from `second`.
fn merge(mut first: Connect, second: &Connect) -> Connect {
    first.port = first.port.or(second.port);
    first.user = first.user.or_else(|| second.user.clone());
    first.config = first.config.or_else(|| second.config.clone());
    first.jump = first.jump.or_else(|| second.jump.clone());
    first.jobs_dir = first.jobs_dir.or_else(|| second.jobs_dir.clone());
    if first.identities.is_empty() {
        first.identities.clone_from(&second.identities);
    }
    // ssh uses the first value of a keyword.
    first.options.extend_from_slice(&second.options);
    if first.prefix.is_empty() {
        first.prefix.clone_from(&second.prefix);
    }
    first
}

fn default_path() -> Option<PathBuf> {
    let directory = absolute("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")));
    directory.map(|directory| directory.join("rsig/config.toml"))
}

/// The text of the file, if it exists, or why it can't be used. The file must belong to this user or root, because its
/// prefixes are executed.
fn text(path: &Path) -> Result<Option<String>, String> {
    let unreadable = |error: std::io::Error| format!("can't be read: {error}");
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
        opened => opened.map_err(unreadable)?,
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    if metadata.is_file() {
        if ![0, geteuid().as_raw()].contains(&metadata.uid()) {
            return Err(format!(
                "belongs to another user (uid {}): with sudo use `sudo -H`, or name another file in RSIG_CONFIG",
                metadata.uid()
            ));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err("can be written to by others: run `chmod go-w` on it".to_owned());
        }
    }
    let mut text = String::new();
    file.take(SIZE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > SIZE_MAX {
        return Err("is larger than 1 MB".to_owned());
    }
    Ok(Some(text))
}

fn is_connect_key(key: &str) -> bool {
    CONNECT_KEYS.contains(&key)
}

/// All settings of the file, sorted by line; or the line of an error and its description.
fn settings(text: &str) -> Result<Vec<Setting>, (usize, String)> {
    let line = |at: usize| text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (line(at), error.message().to_owned())
    })?;
    let mut settings = Vec::new();
    let mut add = |section: &str, table: &DeTable<'_>| {
        for (key, value) in table {
            let at = line(key.span().start);
            let values = values(value.get_ref()).ok_or_else(|| {
                let key = printable(key.get_ref().as_bytes(), 80);
                (
                    at,
                    format!("{key}: neither a string, a number, true or false, nor a list of them"),
                )
            })?;
            settings.push(Setting {
                section: section.to_owned(),
                key: key.get_ref().to_string(),
                values,
                line: at,
            });
        }
        Ok(())
    };
    for (key, value) in table.get_ref() {
        let (name, at) = (key.get_ref().as_ref(), line(key.span().start));
        let shown = printable(name, 80);
        match (name, value.get_ref()) {
            ("defaults" | "groups", DeValue::Table(table)) => add(name, table)?,
            ("hosts", DeValue::Table(hosts)) => {
                for (host, value) in hosts {
                    let (name, at) = (host.get_ref().as_ref(), line(host.span().start));
                    let fails =
                        |why: String| (at, format!("[hosts.{}]: {why}", printable(name, 80)));
                    let DeValue::Table(table) = value.get_ref() else {
                        return Err(fails("not a table".to_owned()));
                    };
                    if parse_host(name).map_err(fails)?.is_local() {
                        return Err(fails("local is this machine".to_owned()));
                    }
                    add(&format!("hosts.{name}"), table)?;
                }
            }
            ("defaults" | "groups" | "hosts", _) => {
                return Err((at, format!("{shown}: not a table")));
            }
            _ => {
                return Err((
                    at,
                    format!("unknown key {shown}: there are [defaults], [groups] and [hosts.NAME]"),
                ));
            }
        }
    }
    settings.sort_by_key(|setting| setting.line);
    Ok(settings)
}

fn values(value: &DeValue<'_>) -> Option<Vec<String>> {
    Some(match value {
        DeValue::String(text) => vec![text.to_string()],
        DeValue::Integer(number) => vec![number.to_string()],
        DeValue::Boolean(word) => vec![word.to_string()],
        DeValue::Array(items) => {
            let items = items.iter().map(|item| match item.get_ref() {
                DeValue::Array(_) => None,
                item => values(item),
            });
            items.collect::<Option<Vec<_>>>()?.concat()
        }
        _ => return None,
    })
}

fn parse_host(word: &str) -> Result<Host, String> {
    word.parse().map_err(|error| format!("{error}"))
}

fn single_value(setting: &Setting) -> Result<&str, String> {
    match setting.values.as_slice() {
        [value] => Ok(value),
        _ => Err("one value is expected".to_owned()),
    }
}

/// Sets a connection option.
fn set(connect: &mut Connect, setting: &Setting) -> Result<(), String> {
    let text = || single_value(setting).map(str::to_owned);
    match setting.key.as_str() {
        "user" => connect.user = Some(text()?),
        "port" => {
            connect.port =
                Some(parse_port(single_value(setting)?).map_err(|error| error.to_string())?);
        }
        "identity" => connect.identities = setting.values.iter().map(PathBuf::from).collect(),
        "jobs-dir" => connect.jobs_dir = Some(parse_jobs_dir(single_value(setting)?)?),
        "config" => connect.config = Some(text()?.into()),
        "jump" => connect.jump = Some(text()?),
        "option" => connect.options.clone_from(&setting.values),
        "prefix" => {
            let words = match setting.values.as_slice() {
                [line] => shlex::split(line).ok_or("a quote is not closed")?,
                words => words.to_vec(),
            };
            // The prefix goes before sudo, in whichever order the keys are read.
            connect.prefix.splice(0..0, words);
        }
        _ => match single_value(setting)? {
            "false" => {}
            user => {
                connect
                    .prefix
                    .extend(["sudo", "-n", "-H"].map(str::to_owned));
                if user != "true" {
                    connect.prefix.extend(["-u".to_owned(), user.to_owned()]);
                }
            }
        },
    }
    connect.check().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, Failure> {
        Config::parse("/etc/rsig.toml".into(), text)
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, said) in [
            (
                "[default]\nparallel = 3",
                "rsig.toml:1: unknown key default",
            ),
            (
                "\n[hosts.db]\nhots = \"x\"",
                "rsig.toml:3: unknown key hots in [hosts.db]",
            ),
            ("[defaults]\nparallel = ", "rsig.toml:2: "),
            ("[defaults]\nparallel = 1\nparallel = 2", "rsig.toml:3: "),
            (
                "[defaults]\ngrace = 2020-01-01",
                "rsig.toml:2: grace: neither",
            ),
            ("[hosts.db]\nport = 0", "rsig.toml:2: port: "),
            ("[hosts.db]\nuser = \"-x\"", "rsig.toml:2: user: "),
            (
                "[hosts.db]\nhost = [\"a\", \"b\"]",
                "rsig.toml:2: host: one value",
            ),
            ("[hosts.db]\nhost = \"a;b\"", "rsig.toml:2: host: "),
            ("[hosts.db]\nprefix = \"'\"", "rsig.toml:2: prefix: a quote"),
            (
                "[hosts.db]\njobs-dir = \"x\"",
                "rsig.toml:2: jobs-dir: it must be an absolute",
            ),
            ("[hosts.\"-x\"]\n", "rsig.toml:1: [hosts.-x]: "),
            ("[hosts.local]\nport = 1", "[hosts.local]: local"),
            ("hosts = 1", "hosts: not a table"),
            ("[hosts]\ndb = 1", "[hosts.db]: not a table"),
            ("[groups]\nweb = [[\"a\"]]", "rsig.toml:2: web: neither"),
        ] {
            let failure = config(text).map(drop).unwrap_err();
            assert!(failure.message.contains(said), "{text}: {failure}");
        }
    }

    #[test]
    fn the_way_to_a_host() {
        let config = config(
            "[defaults]\nuser = \"all\"\nidentity = \"id\"\noption = [\"A=1\"]\nprefix = \"nice\"\n\
             [hosts.db]\nhost = \"db1.example\"\nport = 2222\nuser = \"app\"\noption = \"B=2\"\n\
             sudo = true\nprefix = \"env X=1\"\n[hosts.here]\nhost = \"local\"\nsudo = \"app\"\n[hosts.alone]\n",
        )
        .unwrap();
        let shown = |word: &str, given: Connect| {
            let destination = config.destination(&word.parse().unwrap(), &given).unwrap();
            let connect = destination.connect.clone();
            let identities = connect
                .identities
                .iter()
                .map(|path| path.display().to_string());
            format!(
                "{destination} {:?} {:?} {} {} {}",
                connect.port,
                connect.user.unwrap_or_default(),
                identities.collect::<String>(),
                connect.options.join(" "),
                connect.prefix.join(" ")
            )
        };
        let given = || Connect {
            user: Some("me".into()),
            options: vec!["C=3".into()],
            prefix: vec!["strace".into()],
            ..Connect::default()
        };
        let none = Connect::default;
        for (said, expected) in [
            (shown("web", none()), "web None \"all\" /etc/id A=1 nice"),
            (
                shown("web", given()),
                "web None \"me\" /etc/id C=3 A=1 strace",
            ),
            (
                shown("db", none()),
                "db1.example Some(2222) \"app\" /etc/id B=2 A=1 env X=1 sudo -n -H",
            ),
            (
                shown("db", given()),
                "db1.example Some(2222) \"me\" /etc/id C=3 B=2 A=1 env X=1 sudo -n -H strace",
            ),
            (shown("here", none()), "local None \"\"   sudo -n -H -u app"),
            (shown("local", none()), "local None \"\"   nice"),
            (
                shown("docker://web", none()),
                "docker://web None \"\"   nice",
            ),
        ] {
            assert_eq!(said, expected);
        }
    }
}
