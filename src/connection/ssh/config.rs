//! What `ssh_config(5)` and the command line say about one destination.
//!
//! `ssh -G` reads the files, `Match` and `Include` with all; this module runs it, parses its answer
//! and expands what it leaves unexpanded. Where there is no `ssh` program, the options of the
//! command line are all there is. Everything but [`resolve`] is pure.
//!
//! Not handled: algorithm lists (`Ciphers`, `KexAlgorithms`, ...), `BindAddress`, `ControlMaster`
//! and forwarding. What matters for authentication and can't be honoured is kept in
//! [`Resolved::unsupported`], so that an error can name it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::tokens::{self, ExpandError, FOR_FILES, FOR_PROXY, Tokens};
use crate::escape::printable;
use crate::host::{Connect, Destination, Remote, parse_port};

/// How long `ssh -G` may take: a `Match exec` can hang.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// More than this is no configuration.
const OUTPUT_MAX: usize = 1 << 20;
/// `ConnectTimeout` where the configuration sets none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// One destination's configuration, every value expanded and typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The HOST word as typed, for messages.
    pub typed: String,
    /// `HostName`: what to connect to.
    pub host_name: String,
    /// `Port`.
    pub port: u16,
    /// `User`: who to log in as.
    pub user: String,
    /// `IdentityFile`, in order.
    pub identities: Vec<Identity>,
    /// `CertificateFile`, in order.
    pub certificates: Vec<PathBuf>,
    /// `IdentitiesOnly`.
    pub identities_only: bool,
    /// `IdentityAgent`, else `SSH_AUTH_SOCK`; none where there is no agent or it is `none`.
    pub agent: Option<PathBuf>,
    /// `UserKnownHostsFile`; the first is where new keys go. Empty for `none`.
    pub user_known_hosts: Vec<PathBuf>,
    /// `GlobalKnownHostsFile`.
    pub global_known_hosts: Vec<PathBuf>,
    /// `StrictHostKeyChecking`.
    pub strict_host_key_checking: StrictHostKeyChecking,
    /// `HostKeyAlias`: the name that host keys are looked up under.
    pub host_key_alias: Option<String>,
    /// `HashKnownHosts`.
    pub hash_known_hosts: bool,
    /// `ConnectTimeout`; see [`Resolved::connect_timeout`].
    pub connect_timeout_set: Option<Duration>,
    /// `ServerAliveInterval`; none for 0.
    pub server_alive_interval: Option<Duration>,
    /// `ServerAliveCountMax`.
    pub server_alive_count_max: u32,
    /// `TCPKeepAlive`.
    pub tcp_keep_alive: bool,
    /// `AddressFamily`.
    pub address_family: AddressFamily,
    /// `ProxyCommand` or `ProxyJump`.
    pub proxy: Option<Proxy>,
    /// `BatchMode`: nothing is asked.
    pub batch_mode: bool,
    /// `PubkeyAuthentication`.
    pub pubkey_authentication: bool,
    /// `PasswordAuthentication`.
    pub password_authentication: bool,
    /// `KbdInteractiveAuthentication`.
    pub kbd_interactive_authentication: bool,
    /// `PreferredAuthentications`, where set.
    pub preferred_authentications: Option<Vec<String>>,
    /// `NumberOfPasswordPrompts`.
    pub password_prompts: u32,
    /// Options in force that rsig can't honour and that bear on authentication.
    pub unsupported: Vec<String>,
    /// What the user should hear about in any case.
    pub warnings: Vec<String>,
}

impl Resolved {
    /// The time that connecting may take, from the first packet to the end of the key exchange.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout_set.unwrap_or(CONNECT_TIMEOUT)
    }

    /// Asks nothing from here on, as with `BatchMode yes`; a jump host's ssh does not either.
    pub fn set_batch(&mut self) {
        if let (false, Some(Proxy::Jump { args, .. })) = (self.batch_mode, &mut self.proxy) {
            args.splice(0..0, ["-o", "BatchMode=yes"].map(OsString::from));
        }
        self.batch_mode = true;
    }
}

/// One `IdentityFile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The private key, or its public half where an agent holds the private one.
    pub path: PathBuf,
    /// Named by the user; the others are ssh's own defaults, and silent when they don't exist.
    pub explicit: bool,
}

/// `StrictHostKeyChecking`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrictHostKeyChecking {
    /// Unknown keys are refused.
    Yes,
    /// The user decides about unknown keys.
    Ask,
    /// Unknown keys are added.
    AcceptNew,
    /// As `AcceptNew` here: a changed key is never accepted.
    No,
}

/// `AddressFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFamily {
    /// Both.
    Any,
    /// IPv4 alone.
    Inet,
    /// IPv6 alone.
    Inet6,
}

/// A program that carries the connection on its standard input and output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// A line for the user's shell.
    Command(String),
    /// The arguments of an `ssh` that connects through a jump host, as OpenSSH runs it.
    Jump {
        /// The jump host as configured, for messages.
        jump: String,
        /// What follows the program's name.
        args: Vec<OsString>,
    },
}

/// Why there is no configuration for a destination.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `local` has none.
    #[error("{0} is this machine: there is nothing to connect to")]
    Local(String),
    /// ssh refused the options or a file; its own words.
    #[error("ssh does not accept the configuration: {0}")]
    Refused(String),
    /// ssh was started and did not answer.
    #[error("ssh -G took longer than {} s (a Match exec that hangs?)", RESOLVE_TIMEOUT.as_secs())]
    TimedOut,
    /// More output than a configuration can have.
    #[error("ssh -G printed more than {OUTPUT_MAX} bytes")]
    TooLong,
    /// ssh could not be run, though it exists.
    #[error("can't run ssh -G")]
    Io(#[from] io::Error),
    /// A value that its option can't have.
    #[error("{key}: {value:?} is not valid")]
    BadValue {
        /// The option, in lower case as `ssh -G` prints it.
        key: &'static str,
        /// What it was set to.
        value: String,
    },
    /// A token, variable or `~user` that stands for nothing.
    #[error("{key} {value:?}: {source}")]
    Expand {
        /// The option, in lower case.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What is wrong with it.
        source: ExpandError,
    },
    /// An `-o` that is not `KEY=VALUE`, seen only without an ssh program.
    #[error("-o {0:?} is not KEY=VALUE")]
    BadOption(String),
    /// The local user is not in the password database.
    #[error("there is no entry for user id {0} in the password database")]
    NoUser(u32),
}

/// The configuration of `destination`, from `ssh -G` where there is an ssh program.
///
/// Takes about 5 ms and runs the `Match exec` commands of the user's configuration.
pub fn resolve(destination: &Destination) -> Result<Resolved, ConfigError> {
    let Some(remote) = destination.host.remote() else {
        return Err(ConfigError::Local(destination.host.to_string()));
    };
    let connect = &destination.connect;
    let mut warnings = Vec::new();
    let settings = match ask_ssh(remote, connect) {
        Ok(answer) => {
            warnings.extend(answer.warnings);
            Settings::parse(&answer.output)
        }
        Err(ConfigError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            if connect.config.is_some() {
                warnings.push("there is no ssh program here: -F is not read".to_owned());
            }
            Settings::from_options(remote, connect)?
        }
        Err(error) => return Err(error),
    };
    let mut resolved = build(
        &destination.host.to_string(),
        remote,
        connect,
        &settings,
        &Here::look()?,
    )?;
    resolved.identities.retain(|identity| {
        let exists = identity.path.exists();
        // `-i key` may name a key whose private half an agent holds.
        let public_only = !exists && with_suffix(&identity.path, ".pub").exists();
        if !exists && !public_only && identity.explicit {
            warnings.push(format!(
                "there is no identity file {}",
                identity.path.display()
            ));
        }
        exists || public_only
    });
    warnings.append(&mut resolved.warnings);
    resolved.warnings = warnings;
    Ok(resolved)
}

/// `path` with `suffix` after its last character.
pub(super) fn with_suffix(path: &std::path::Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

struct Answer {
    output: String,
    warnings: Vec<String>,
}

/// The arguments of `ssh -G` for a destination.
fn query_args(remote: &Remote, connect: &Connect) -> Vec<OsString> {
    // -T: no remark about a terminal. ControlPath comes back expanded and is not used here, so it
    // brings us %C, whose recipe changed between versions.
    let mut args: Vec<OsString> = ["-G", "-T", "-o", "ControlPath=%C"]
        .map(Into::into)
        .to_vec();
    let mut add = |flag: &str, value: OsString| args.extend([flag.into(), value]);
    if let Some(config) = &connect.config {
        add("-F", config.into());
    }
    if let Some(port) = connect.port.or(remote.port) {
        add("-p", port.to_string().into());
    }
    if let Some(user) = connect.user.as_ref().or(remote.user.as_ref()) {
        add("-l", user.into());
    }
    for identity in &connect.identities {
        // Not -i: that skips a key whose private half is with an agent.
        let mut option = OsString::from("IdentityFile=\"");
        option.push(identity);
        option.push("\"");
        add("-o", option);
    }
    if let Some(jump) = &connect.jump {
        add("-J", jump.into());
    }
    for option in &connect.options {
        add("-o", option.into());
    }
    args.extend(["--".into(), remote.name.clone().into()]);
    args
}

fn ask_ssh(remote: &Remote, connect: &Connect) -> Result<Answer, ConfigError> {
    let mut child = Command::new("ssh")
        .args(query_args(remote, connect))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let result = collect(&mut child, Instant::now() + RESOLVE_TIMEOUT);
    if result.is_err() {
        // It may have ended by itself meanwhile.
        drop(child.kill());
        drop(child.wait());
    }
    let (status, output, errors) = result?;
    let errors = String::from_utf8_lossy(&errors);
    let mut lines = errors
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    if !status.success() {
        let words: Vec<_> = lines.take(5).map(|line| printable(line, 300)).collect();
        return Err(ConfigError::Refused(if words.is_empty() {
            status.to_string()
        } else {
            words.join("; ")
        }));
    }
    let warnings = lines
        .by_ref()
        .take(10)
        .map(|line| printable(line, 300))
        .collect();
    Ok(Answer {
        output: String::from_utf8_lossy(&output).into_owned(),
        warnings,
    })
}

/// The child's status and what it wrote, read to the end within the deadline and the bound.
fn collect(
    child: &mut Child,
    deadline: Instant,
) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), ConfigError> {
    let output = read_in_background(child.stdout.take());
    let errors = read_in_background(child.stderr.take());
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut texts = Vec::new();
    for receiver in [output, errors] {
        let text = receiver
            .recv_timeout(left())
            .map_err(|_| ConfigError::TimedOut)??;
        if text.len() > OUTPUT_MAX {
            return Err(ConfigError::TooLong);
        }
        texts.push(text);
    }
    loop {
        if let Some(status) = child.try_wait()? {
            let errors = texts.pop().unwrap_or_default();
            return Ok((status, texts.pop().unwrap_or_default(), errors));
        }
        if left().is_zero() {
            return Err(ConfigError::TimedOut);
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

fn read_in_background(
    stream: Option<impl Read + Send + 'static>,
) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let result = match stream {
            Some(stream) => stream
                .take(OUTPUT_MAX as u64 + 1)
                .read_to_end(&mut text)
                .map(|_| text),
            None => Ok(text),
        };
        // Nobody listens any more after a time-out.
        drop(sender.send(result));
    });
    receiver
}

/// Option names in lower case and their values, in order.
#[derive(Debug, Default)]
struct Settings(BTreeMap<String, Vec<String>>);

impl Settings {
    /// Reads what `ssh -G` prints: `key value`, one per line.
    fn parse(output: &str) -> Self {
        let mut settings = Self::default();
        for line in output.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            settings.add(key, value);
        }
        settings
    }

    /// What the command line alone says, for a machine without an ssh program.
    fn from_options(remote: &Remote, connect: &Connect) -> Result<Self, ConfigError> {
        let mut settings = Self::default();
        if let Some(port) = connect.port.or(remote.port) {
            settings.add("port", &port.to_string());
        }
        if let Some(user) = connect.user.as_ref().or(remote.user.as_ref()) {
            settings.add("user", user);
        }
        for identity in &connect.identities {
            settings.add("identityfile", &identity.to_string_lossy());
        }
        if let Some(jump) = &connect.jump {
            settings.add("proxyjump", jump);
        }
        for option in &connect.options {
            let split = option.split_once(['=', ' ', '\t']);
            let (key, value) = split.ok_or_else(|| ConfigError::BadOption(option.clone()))?;
            let value = value.trim_start_matches(['=', ' ', '\t']).trim_end();
            let unquoted = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'));
            settings.add(key.trim(), unquoted.unwrap_or(value));
        }
        if !settings.0.contains_key("identityfile") {
            for name in DEFAULT_IDENTITIES {
                settings.add("identityfile", name);
            }
        }
        Ok(settings)
    }

    fn add(&mut self, key: &str, value: &str) {
        self.0
            .entry(key.to_ascii_lowercase())
            .or_default()
            .push(value.to_owned());
    }

    /// The first value, as in ssh the first one counts.
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.first().map(String::as_str)
    }

    /// The first value unless it is `none`.
    fn some(&self, key: &str) -> Option<&str> {
        self.get(key)
            .filter(|value| !value.is_empty() && !value.eq_ignore_ascii_case("none"))
    }

    fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    fn flag(&self, key: &'static str, unset: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(unset),
            Some("yes" | "true") => Ok(true),
            Some("no" | "false") => Ok(false),
            Some(value) => Err(bad_value(key, value)),
        }
    }

    fn number(&self, key: &'static str, unset: u32) -> Result<u32, ConfigError> {
        self.some(key).map_or(Ok(unset), |value| {
            value.parse().map_err(|_| bad_value(key, value))
        })
    }
}

fn bad_value(key: &'static str, value: &str) -> ConfigError {
    ConfigError::BadValue {
        key,
        value: value.to_owned(),
    }
}

/// What ssh tries unasked, in its order, as `ssh -G` prints it.
const DEFAULT_IDENTITIES: [&str; 7] = [
    "~/.ssh/id_rsa",
    "~/.ssh/id_ecdsa",
    "~/.ssh/id_ecdsa_sk",
    "~/.ssh/id_ed25519",
    "~/.ssh/id_ed25519_sk",
    "~/.ssh/id_xmss",
    "~/.ssh/id_dsa",
];

/// What this machine adds to a configuration.
struct Here {
    home: PathBuf,
    user: String,
    uid: u32,
    host: String,
    env: fn(&str) -> Option<String>,
    home_of: fn(&str) -> Option<PathBuf>,
}

impl Here {
    fn look() -> Result<Self, ConfigError> {
        let uid = nix::unistd::getuid();
        // Home is the password database's, as in ssh(1), not $HOME.
        let entry = nix::unistd::User::from_uid(uid).map_err(io::Error::from)?;
        let entry = entry.ok_or(ConfigError::NoUser(uid.as_raw()))?;
        let host = nix::unistd::gethostname().map_err(io::Error::from)?;
        Ok(Self {
            home: entry.dir,
            user: entry.name,
            uid: uid.as_raw(),
            host: host.to_string_lossy().into_owned(),
            env: |name| std::env::var(name).ok(),
            home_of: |name| {
                nix::unistd::User::from_name(name)
                    .ok()
                    .flatten()
                    .map(|user| user.dir)
            },
        })
    }
}

/// Expands the values of one option, and says which option when that fails.
struct Expander<'a> {
    tokens: Tokens,
    here: &'a Here,
}

impl Expander<'_> {
    fn path(&self, key: &'static str, value: &str) -> Result<PathBuf, ConfigError> {
        let expand = || {
            let text = tokens::variables(value, &self.here.env)?;
            let text = tokens::percent(&text, &self.tokens, FOR_FILES)?;
            tokens::tilde(&text, &self.here.home, &self.here.home_of)
        };
        expand().map_err(|source| ConfigError::Expand {
            key,
            value: value.to_owned(),
            source,
        })
    }

    fn text(&self, key: &'static str, value: &str, allowed: &str) -> Result<String, ConfigError> {
        tokens::percent(value, &self.tokens, allowed).map_err(|source| ConfigError::Expand {
            key,
            value: value.to_owned(),
            source,
        })
    }

    /// A list of paths on one line. `ssh -G` does not quote, so a word that begins no absolute
    /// path is taken for the rest of the one before it, as in `/Users/Jo Doe/known_hosts`.
    fn paths(&self, key: &'static str, value: Option<&str>) -> Result<Vec<PathBuf>, ConfigError> {
        let mut values: Vec<String> = Vec::new();
        for word in value
            .unwrap_or_default()
            .split(' ')
            .filter(|word| !word.is_empty())
        {
            match values.last_mut() {
                Some(last) if !word.starts_with(['/', '~', '$', '%']) => {
                    last.push(' ');
                    last.push_str(word);
                }
                _ => values.push(word.to_owned()),
            }
        }
        values.iter().map(|value| self.path(key, value)).collect()
    }
}

/// Turns settings into types. Looks at no file: absent default identities are still in.
fn build(
    typed: &str,
    remote: &Remote,
    connect: &Connect,
    settings: &Settings,
    here: &Here,
) -> Result<Resolved, ConfigError> {
    let port = match settings.get("port") {
        None => 22,
        Some(value) => parse_port(value).map_err(|_| bad_value("port", value))?,
    };
    let jump = settings.some("proxyjump");
    let mut expander = Expander {
        here,
        tokens: Tokens {
            hash: settings.some("controlpath").map(str::to_owned),
            home: here.home.to_string_lossy().into_owned(),
            host: settings.some("hostname").unwrap_or(&remote.name).to_owned(),
            uid: here.uid.to_string(),
            jump: jump.unwrap_or_default().to_owned(),
            key_alias: remote.name.clone(),
            local_host: here.host.clone(),
            typed: remote.name.clone(),
            port: port.to_string(),
            user: settings.some("user").unwrap_or(&here.user).to_owned(),
            local_user: here.user.clone(),
        },
    };
    let host_key_alias = settings
        .some("hostkeyalias")
        .map(|alias| expander.text("hostkeyalias", alias, FOR_FILES))
        .transpose()?;
    if let Some(alias) = &host_key_alias {
        expander.tokens.key_alias.clone_from(alias);
    }

    let batch_mode = settings.flag("batchmode", false)?;
    let (unsupported, warnings) = not_honoured(settings)?;
    Ok(Resolved {
        typed: typed.to_owned(),
        host_name: expander.tokens.host.clone(),
        port,
        user: expander.tokens.user.clone(),
        identities: identities(settings, &expander)?,
        certificates: settings
            .all("certificatefile")
            .iter()
            .filter(|value| !value.eq_ignore_ascii_case("none"))
            .map(|value| expander.path("certificatefile", value))
            .collect::<Result<_, _>>()?,
        identities_only: settings.flag("identitiesonly", false)?,
        agent: agent(settings, &expander)?,
        user_known_hosts: match settings.get("userknownhostsfile") {
            None => expander.paths(
                "userknownhostsfile",
                Some("~/.ssh/known_hosts ~/.ssh/known_hosts2"),
            )?,
            Some(_) => expander.paths("userknownhostsfile", settings.some("userknownhostsfile"))?,
        },
        global_known_hosts: match settings.get("globalknownhostsfile") {
            None => ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"]
                .map(PathBuf::from)
                .to_vec(),
            Some(_) => expander.paths(
                "globalknownhostsfile",
                settings.some("globalknownhostsfile"),
            )?,
        },
        strict_host_key_checking: strictness(settings)?,
        host_key_alias,
        hash_known_hosts: settings.flag("hashknownhosts", false)?,
        connect_timeout_set: seconds(settings, "connecttimeout")?,
        server_alive_interval: seconds(settings, "serveraliveinterval")?,
        server_alive_count_max: settings.number("serveralivecountmax", 3)?,
        tcp_keep_alive: settings.flag("tcpkeepalive", true)?,
        address_family: match settings.get("addressfamily") {
            None | Some("any") => AddressFamily::Any,
            Some("inet") => AddressFamily::Inet,
            Some("inet6") => AddressFamily::Inet6,
            Some(value) => return Err(bad_value("addressfamily", value)),
        },
        proxy: proxy(settings, connect, &expander, batch_mode)?,
        batch_mode,
        // Newer versions also print `unbound` and `host-bound`.
        pubkey_authentication: !matches!(
            settings.get("pubkeyauthentication"),
            Some("no" | "false")
        ),
        password_authentication: settings.flag("passwordauthentication", true)?,
        kbd_interactive_authentication: settings.flag("kbdinteractiveauthentication", true)?,
        preferred_authentications: settings.some("preferredauthentications").map(|list| {
            list.split(',')
                .map(|method| method.trim().to_owned())
                .collect()
        }),
        password_prompts: settings.number("numberofpasswordprompts", 3)?,
        unsupported,
        warnings,
    })
}

fn identities(settings: &Settings, expander: &Expander) -> Result<Vec<Identity>, ConfigError> {
    let mut identities: Vec<Identity> = Vec::new();
    for value in settings
        .all("identityfile")
        .iter()
        .filter(|value| !value.eq_ignore_ascii_case("none"))
    {
        let path = expander.path("identityfile", value)?;
        if !identities.iter().any(|identity| identity.path == path) {
            identities.push(Identity {
                path,
                explicit: !DEFAULT_IDENTITIES.contains(&value.as_str()),
            });
        }
    }
    Ok(identities)
}

fn agent(settings: &Settings, expander: &Expander) -> Result<Option<PathBuf>, ConfigError> {
    let variable = |name: &str| {
        (expander.here.env)(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    match settings.get("identityagent") {
        None | Some("SSH_AUTH_SOCK") => Ok(variable("SSH_AUTH_SOCK")),
        Some(value) if value.eq_ignore_ascii_case("none") => Ok(None),
        // A whole variable may be named without braces: ssh_config(5), IdentityAgent.
        Some(value) if value.starts_with('$') && !value.starts_with("${") => {
            Ok(variable(&value[1..]))
        }
        Some(value) => expander.path("identityagent", value).map(Some),
    }
}

fn strictness(settings: &Settings) -> Result<StrictHostKeyChecking, ConfigError> {
    match settings.get("stricthostkeychecking") {
        Some("yes" | "true") => Ok(StrictHostKeyChecking::Yes),
        None | Some("ask") => Ok(StrictHostKeyChecking::Ask),
        Some("accept-new") => Ok(StrictHostKeyChecking::AcceptNew),
        Some("no" | "false" | "off") => Ok(StrictHostKeyChecking::No),
        Some(value) => Err(bad_value("stricthostkeychecking", value)),
    }
}

/// A time in whole seconds, as `ssh -G` prints it; 0 and `none` are none.
fn seconds(settings: &Settings, key: &'static str) -> Result<Option<Duration>, ConfigError> {
    let seconds = settings.number(key, 0)?;
    Ok((seconds != 0).then(|| Duration::from_secs(seconds.into())))
}

/// Options in force that bear on authentication, and warnings about those that bear on safety.
fn not_honoured(settings: &Settings) -> Result<(Vec<String>, Vec<String>), ConfigError> {
    let mut unsupported = Vec::new();
    for key in ["GSSAPIAuthentication", "HostbasedAuthentication"] {
        if matches!(
            settings.get(&key.to_ascii_lowercase()),
            Some("yes" | "true")
        ) {
            unsupported.push(key.to_owned());
        }
    }
    if let Some(provider) = settings.some("pkcs11provider") {
        unsupported.push(format!("PKCS11Provider {provider}"));
    }
    if settings.flag("proxyusefdpass", false)? {
        unsupported.push("ProxyUseFdpass".to_owned());
    }
    let warnings = settings.some("revokedhostkeys").map(|file| {
        format!("RevokedHostKeys {file} is not read: list revoked keys as @revoked in known_hosts")
    });
    Ok((unsupported, warnings.into_iter().collect()))
}

fn proxy(
    settings: &Settings,
    connect: &Connect,
    expander: &Expander,
    batch_mode: bool,
) -> Result<Option<Proxy>, ConfigError> {
    if let Some(command) = settings.some("proxycommand") {
        return Ok(Some(Proxy::Command(expander.text(
            "proxycommand",
            command,
            FOR_PROXY,
        )?)));
    }
    let Some(jump) = settings.some("proxyjump") else {
        return Ok(None);
    };
    let jump = expander.text("proxyjump", jump, FOR_PROXY)?;
    let target = (expander.tokens.host.as_str(), expander.tokens.port.as_str());
    let args = jump_args(&jump, target, connect, batch_mode)
        .ok_or_else(|| bad_value("proxyjump", &jump))?;
    Ok(Some(Proxy::Jump { jump, args }))
}

/// The arguments of the `ssh` that stands in for a `ProxyJump`, as ssh.c makes them: the last of
/// the jump hosts is connected to, the ones before it become its own `-J`.
fn jump_args(
    jump: &str,
    target: (&str, &str),
    connect: &Connect,
    batch_mode: bool,
) -> Option<Vec<OsString>> {
    let (before, last) = jump
        .rsplit_once(',')
        .map_or((None, jump), |(before, last)| (Some(before), last));
    let last: Remote = last.parse().ok()?;
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |flag: &str, value: OsString| args.extend([flag.into(), value]);
    if let Some(config) = &connect.config {
        add("-F", config.into());
    }
    if let Some(user) = last.user {
        add("-l", user.into());
    }
    if let Some(port) = last.port {
        add("-p", port.to_string().into());
    }
    if let Some(before) = before {
        add("-J", before.into());
    }
    if batch_mode {
        add("-o", "BatchMode=yes".into());
    }
    add("-W", format!("[{}]:{}", target.0, target.1).into());
    args.extend(["--".into(), last.name.into()]);
    Some(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Here {
        Here {
            home: "/home/me".into(),
            user: "me".into(),
            uid: 1000,
            host: "desk.example".into(),
            env: |name| (name == "SSH_AUTH_SOCK" || name == "KEYS").then(|| format!("/env/{name}")),
            home_of: |name| (name == "bob").then(|| "/home/bob".into()),
        }
    }

    fn built(word: &str, connect: &Connect, output: &str) -> Result<Resolved, ConfigError> {
        let remote: Remote = word.parse().unwrap();
        build(word, &remote, connect, &Settings::parse(output), &here())
    }

    fn plain(output: &str) -> Resolved {
        built("web1", &Connect::default(), output).unwrap()
    }

    #[test]
    fn nothing_set_gives_the_defaults_of_ssh() {
        let resolved = plain("");
        assert_eq!(
            (
                resolved.host_name.as_str(),
                resolved.port,
                resolved.user.as_str()
            ),
            ("web1", 22, "me")
        );
        assert_eq!(resolved.connect_timeout(), Duration::from_secs(15));
        assert_eq!(
            resolved.strict_host_key_checking,
            StrictHostKeyChecking::Ask
        );
        assert_eq!(
            resolved.user_known_hosts[0],
            PathBuf::from("/home/me/.ssh/known_hosts")
        );
        assert_eq!(resolved.agent, Some("/env/SSH_AUTH_SOCK".into()));
        assert_eq!(resolved.proxy, None);
        assert!(resolved.password_authentication && resolved.kbd_interactive_authentication);
        assert!(!resolved.batch_mode && !resolved.identities_only);
    }

    #[test]
    fn values_get_their_types() {
        let resolved = plain(
            "hostname 10.0.0.9\nport 2222\nuser bob\nidentitiesonly yes\nstricthostkeychecking accept-new\n\
             connecttimeout 3\nserveraliveinterval 7\nserveralivecountmax 2\nhashknownhosts yes\n\
             pubkeyauthentication unbound\npasswordauthentication no\nkbdinteractiveauthentication no\n\
             preferredauthentications publickey,password\nnumberofpasswordprompts 1\nbatchmode yes\n\
             addressfamily inet\ntcpkeepalive no\nhostkeyalias %n.alias\n\
             userknownhostsfile /a/known /Users/Jo Doe/known\nglobalknownhostsfile none\n\
             gssapiauthentication yes\npkcs11provider /lib/p.so\nrevokedhostkeys /r\n",
        );
        assert_eq!(
            (resolved.host_name.as_str(), resolved.port),
            ("10.0.0.9", 2222)
        );
        assert_eq!(resolved.connect_timeout(), Duration::from_secs(3));
        assert_eq!(resolved.server_alive_interval, Some(Duration::from_secs(7)));
        assert_eq!(resolved.host_key_alias.as_deref(), Some("web1.alias"));
        assert_eq!(
            resolved.user_known_hosts,
            ["/a/known", "/Users/Jo Doe/known"].map(PathBuf::from)
        );
        assert_eq!(resolved.global_known_hosts, Vec::<PathBuf>::new());
        assert_eq!(resolved.address_family, AddressFamily::Inet);
        assert!(resolved.pubkey_authentication && resolved.identities_only && resolved.batch_mode);
        assert!(!resolved.password_authentication && !resolved.kbd_interactive_authentication);
        assert_eq!(
            resolved.preferred_authentications.unwrap(),
            ["publickey", "password"]
        );
        assert_eq!(
            resolved.unsupported,
            ["GSSAPIAuthentication", "PKCS11Provider /lib/p.so"]
        );
        assert_eq!(resolved.warnings.len(), 1);
    }

    #[test]
    fn identities_and_agents_are_expanded() {
        let resolved = plain(
            "user bob\nhostname h.example\nidentityfile ~/.ssh/%r_%h\nidentityfile ~/.ssh/id_rsa\n\
             identityfile ${KEYS}/k\nidentityfile ~bob/k\ncertificatefile %d/c\n",
        );
        let paths: Vec<_> = resolved
            .identities
            .iter()
            .map(|i| (i.path.to_str().unwrap(), i.explicit))
            .collect();
        assert_eq!(
            paths,
            [
                ("/home/me/.ssh/bob_h.example", true),
                ("/home/me/.ssh/id_rsa", false),
                ("/env/KEYS/k", true),
                ("/home/bob/k", true),
            ]
        );
        assert_eq!(resolved.certificates, [PathBuf::from("/home/me/c")]);
        for (value, expected) in [
            ("none", None),
            ("SSH_AUTH_SOCK", Some("/env/SSH_AUTH_SOCK")),
            ("$KEYS", Some("/env/KEYS")),
            ("$NOPE", None),
            ("~/agent.%u", Some("/home/me/agent.me")),
            ("${KEYS}/a", Some("/env/KEYS/a")),
        ] {
            assert_eq!(
                plain(&format!("identityagent {value}")).agent,
                expected.map(PathBuf::from),
                "{value}"
            );
        }
    }

    #[test]
    fn bad_values_are_named() {
        for (output, message) in [
            ("port 0", "port: \"0\" is not valid"),
            ("port 65536", "port: \"65536\" is not valid"),
            ("batchmode maybe", "batchmode: \"maybe\" is not valid"),
            (
                "identityfile %z",
                "identityfile \"%z\": %z means nothing here",
            ),
            (
                "identityfile ${NOPE}",
                "identityfile \"${NOPE}\": the environment has no NOPE",
            ),
            (
                "proxycommand nc %d",
                "proxycommand \"nc %d\": %d means nothing here",
            ),
            (
                "proxyjump -oProxyCommand=x",
                "proxyjump: \"-oProxyCommand=x\" is not valid",
            ),
            ("proxyjump a b", "proxyjump: \"a b\" is not valid"),
            (
                "stricthostkeychecking perhaps",
                "stricthostkeychecking: \"perhaps\" is not valid",
            ),
        ] {
            let error = built("web1", &Connect::default(), output).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn proxies_are_what_openssh_would_run() {
        assert_eq!(plain("proxycommand none").proxy, None);
        assert_eq!(plain("proxyjump none").proxy, None);
        let command = plain("hostname h\nproxycommand nc -x '%n' %h %p %%").proxy;
        assert_eq!(command, Some(Proxy::Command("nc -x 'web1' h 22 %".into())));
        let connect = Connect {
            config: Some("/c".into()),
            ..Connect::default()
        };
        for (output, expected) in [
            ("hostname h\nproxyjump gate", "-F /c -W [h]:22 -- gate"),
            (
                "hostname ::1\nport 5\nbatchmode yes\nproxyjump a:1,b@c,ssh://d@[::2]:7",
                "-F /c -l d -p 7 -J a:1,b@c -o BatchMode=yes -W [::1]:5 -- ::2",
            ),
        ] {
            let Some(Proxy::Jump { args, .. }) = built("web1", &connect, output).unwrap().proxy
            else {
                panic!("no jump");
            };
            assert_eq!(args.join(std::ffi::OsStr::new(" ")), expected);
        }
    }

    #[test]
    fn a_jump_host_asks_nothing_either_once_batch_is_set() {
        let mut resolved = plain("proxyjump gate");
        resolved.set_batch();
        resolved.set_batch();
        let Some(Proxy::Jump { args, .. }) = resolved.proxy else {
            panic!("no jump");
        };
        assert_eq!(
            args.join(std::ffi::OsStr::new(" ")),
            "-o BatchMode=yes -W [web1]:22 -- gate"
        );
    }

    #[test]
    fn the_command_line_is_enough_without_ssh() {
        let connect = Connect {
            identities: vec!["/k".into()],
            options: [
                "ConnectTimeout=4",
                "HostName h.example",
                "BatchMode = yes",
                "User=\"eve\"",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..Connect::default()
        };
        let remote: Remote = "bob@web1:23".parse().unwrap();
        let settings = Settings::from_options(&remote, &connect).unwrap();
        let resolved = build("bob@web1:23", &remote, &connect, &settings, &here()).unwrap();
        assert_eq!(
            (
                resolved.host_name.as_str(),
                resolved.port,
                resolved.user.as_str()
            ),
            ("h.example", 23, "bob")
        );
        assert_eq!(
            resolved.identities,
            [Identity {
                path: "/k".into(),
                explicit: true
            }]
        );
        assert_eq!(resolved.connect_timeout(), Duration::from_secs(4));
        assert!(resolved.batch_mode);
        let bare = Settings::from_options(&remote, &Connect::default()).unwrap();
        let defaults = build("w", &remote, &Connect::default(), &bare, &here())
            .unwrap()
            .identities;
        assert!(defaults.len() == DEFAULT_IDENTITIES.len() && defaults.iter().all(|i| !i.explicit));
    }

    #[test]
    fn ssh_is_asked_with_the_options_given() {
        let connect = Connect {
            port: Some(5),
            config: Some("/c".into()),
            jump: Some("gate".into()),
            identities: vec!["/a b".into()],
            options: vec!["BatchMode=yes".into()],
            ..Connect::default()
        };
        let args = query_args(&"bob@web1:23".parse().unwrap(), &connect);
        assert_eq!(
            args.join(std::ffi::OsStr::new(" ")),
            "-G -T -o ControlPath=%C -F /c -p 5 -l bob -o IdentityFile=\"/a b\" -J gate -o BatchMode=yes -- web1"
        );
    }
}
