//! The configuration of one destination, from `ssh_config(5)` and the command line.
//!
//! `ssh -G` reads the files, `Match` and `Include` included; this module parses its output and expands what it leaves
//! unexpanded. A value is parsed where it is used. Without an `ssh` program, only the options of the command line
//! apply.
//!
//! Not handled: algorithm lists (`Ciphers`, `KexAlgorithms`, ...), `ControlMaster` and forwarding.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::User;

use super::sources::Answer;
use super::tokens::{self, FOR_FILES, FOR_PROXY, Tokens};
use crate::error::{Failure, Kind};
use crate::host::{Connect, Destination, Remote, parse_port};

/// `ConnectTimeout` if the configuration sets none.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The identities that ssh tries by default, in its order, as `ssh -G` prints them.
const DEFAULT_IDENTITIES: [&str; 7] = [
    "~/.ssh/id_rsa",
    "~/.ssh/id_ecdsa",
    "~/.ssh/id_ecdsa_sk",
    "~/.ssh/id_ed25519",
    "~/.ssh/id_ed25519_sk",
    "~/.ssh/id_xmss",
    "~/.ssh/id_dsa",
];

/// The failure for an invalid configuration.
pub(super) fn invalid(reason: impl Display) -> Failure {
    Failure::new(Kind::Unreachable, reason.to_string())
}

/// One destination's configuration.
pub struct Resolved {
    /// The HOST word as typed, for messages.
    pub typed: String,
    /// `HostName`: the name or address to connect to.
    pub host_name: String,
    pub port: u16,
    /// `User`: the user to log in as.
    pub user: String,
    /// `BatchMode`: the user is not asked anything.
    pub batch_mode: bool,
    /// `ServerAliveInterval`; `None` for 0.
    pub server_alive_interval: Option<Duration>,
    options: Options,
    tokens: Tokens,
    local: LocalContext,
    /// `-F`, which a jump host's ssh gets too.
    config_file: Option<PathBuf>,
}

/// What a configuration takes from this machine.
struct LocalContext {
    /// The home directory is that of the password database, as in ssh(1), not $HOME.
    user: User,
    host: String,
    env: fn(&str) -> Option<String>,
}

/// One `IdentityFile`.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// The private key, or its public half if an agent holds the private one.
    pub path: PathBuf,
    /// Named by the user. The others are ssh's own defaults, which are skipped silently if they don't exist.
    pub explicit: bool,
}

/// A program that carries the connection on its standard input and output.
#[derive(Debug, PartialEq, Eq)]
pub struct Proxy {
    /// For messages.
    pub name: String,
    pub program: OsString,
    pub args: Vec<OsString>,
}

/// Option names in lower case and their values, in order.
#[derive(Default)]
struct Options(BTreeMap<String, Vec<String>>);

impl Options {
    /// Parses the output of `ssh -G`: `key value`, one per line.
    fn parse(output: &str) -> Self {
        let mut options = Self::default();
        for line in output.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            options.add(key, value);
        }
        options
    }

    /// The options of the command line alone, for a machine without an ssh program.
    fn from_command_line(remote: &Remote, connect: &Connect) -> Result<Self, Failure> {
        let mut options = Self::default();
        let port = connect.port.or(remote.port).map(|port| port.to_string());
        for (key, value) in [
            ("port", port.as_ref()),
            ("user", connect.user.as_ref().or(remote.user.as_ref())),
            ("proxyjump", connect.jump.as_ref()),
        ] {
            value.iter().for_each(|value| options.add(key, value));
        }
        for identity in &connect.identities {
            options.add("identityfile", &identity.to_string_lossy());
        }
        for option in &connect.options {
            let (key, value) = split_option(option)
                .ok_or_else(|| invalid(format!("-o {option:?} is not KEY=VALUE")))?;
            options.add(key, value);
        }
        if !options.0.contains_key("identityfile") {
            for name in DEFAULT_IDENTITIES {
                options.add("identityfile", name);
            }
        }
        Ok(options)
    }

    fn add(&mut self, key: &str, value: &str) {
        let values = self.0.entry(key.to_ascii_lowercase()).or_default();
        values.push(value.to_owned());
    }

    fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// The first value, which is the one that counts, as in ssh.
    fn get(&self, key: &str) -> Option<&str> {
        self.all(key).first().map(String::as_str)
    }

    /// The first value unless it is `none`.
    fn some(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !is_none(value))
    }

    fn is_on(&self, key: &str, unset: bool) -> bool {
        match self.get(key) {
            None => unset,
            Some(value) => !matches!(value, "no" | "false"),
        }
    }

    /// A time in whole seconds, as `ssh -G` prints it. `None` for 0, for `none` and, as in ssh, for what an int can't
    /// hold.
    fn seconds(&self, key: &str) -> Option<Duration> {
        let seconds: i32 = self.some(key)?.parse().ok()?;
        let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
        seconds.map(Duration::from_secs)
    }
}

fn is_none(value: &str) -> bool {
    value.is_empty() || value.eq_ignore_ascii_case("none")
}

/// Key and value of an `-o`.
pub(super) fn split_option(option: &str) -> Option<(&str, &str)> {
    let (key, value) = option.split_once(['=', ' ', '\t'])?;
    let value = value.trim_start_matches(['=', ' ', '\t']).trim_end();
    let unquoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    Some((key.trim(), unquoted.unwrap_or(value)))
}

/// The configuration of `destination`, and warnings for the user.
pub fn resolve(
    destination: &Destination,
    answer: Answer,
) -> Result<(Resolved, Vec<String>), Failure> {
    let (host, connect) = (&destination.host, &destination.connect);
    let Some(remote) = host.remote() else {
        return Err(invalid("this machine has no SSH configuration"));
    };
    let user = user()?;
    let (options, warnings) = match answer.text {
        Some(text) => (Options::parse(&text), answer.warnings),
        None => {
            let warning = "ssh not found; ignoring -F".to_owned();
            let warnings = connect.config.iter().map(|_| warning.clone()).collect();
            (Options::from_command_line(remote, connect)?, warnings)
        }
    };
    let host_name = nix::unistd::gethostname().unwrap_or_default();
    let local = LocalContext {
        user,
        host: host_name.to_string_lossy().into_owned(),
        env: |name| std::env::var(name).ok(),
    };
    let resolved = Resolved::new(host.to_string(), remote, connect, options, local)?;
    Ok((resolved, warnings))
}

pub(super) fn user() -> Result<User, Failure> {
    let uid = nix::unistd::getuid();
    User::from_uid(uid).ok().flatten().ok_or_else(|| {
        invalid(format!(
            "there is no entry for user id {uid} in the password database"
        ))
    })
}

impl Resolved {
    fn new(
        typed: String,
        remote: &Remote,
        connect: &Connect,
        options: Options,
        local: LocalContext,
    ) -> Result<Self, Failure> {
        let port = match options.get("port") {
            None => 22,
            Some(value) => {
                parse_port(value).map_err(|_| invalid(format!("port: {value:?} is not valid")))?
            }
        };
        let text = |key: &str, unset: &str| options.some(key).unwrap_or(unset).to_owned();
        let host_name = text("hostname", &remote.name);
        let user = text("user", &local.user.name);
        let label = local.host.split('.').next().unwrap_or_default();
        let mut tokens: Tokens = [
            ('d', local.user.dir.to_string_lossy().into_owned()),
            ('h', host_name.clone()),
            ('i', local.user.uid.to_string()),
            ('j', text("proxyjump", "")),
            ('k', remote.name.clone()),
            ('L', label.to_owned()),
            ('l', local.host.clone()),
            ('n', remote.name.clone()),
            ('p', port.to_string()),
            ('r', user.clone()),
            ('u', local.user.name.clone()),
        ]
        .into();
        tokens.extend(
            options
                .some("controlpath")
                .map(|hash| ('C', hash.to_owned())),
        );
        if let Some(alias) = options.some("hostkeyalias") {
            let alias = tokens::percent(alias, &tokens, FOR_FILES)
                .map_err(|reason| invalid(format!("hostkeyalias {alias:?}: {reason}")))?;
            tokens.insert('k', alias);
        }
        Ok(Self {
            typed,
            host_name,
            port,
            user,
            batch_mode: options.is_on("batchmode", false),
            server_alive_interval: options.seconds("serveraliveinterval"),
            options,
            tokens,
            local,
            config_file: connect.config.clone(),
        })
    }

    /// The first value of an option (in lower case, as `ssh -G` prints it) unless it is `none`.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.options.some(key)
    }

    /// All values of an option, as `ssh -G` prints them.
    pub fn all(&self, key: &str) -> &[String] {
        self.options.all(key)
    }

    pub fn is_on(&self, key: &str, unset: bool) -> bool {
        self.options.is_on(key, unset)
    }

    pub fn number(&self, key: &str, unset: u32) -> u32 {
        let value = self.text(key).and_then(|value| value.parse().ok());
        value.unwrap_or(unset)
    }

    /// How long connecting may take, from the first packet to the end of the key exchange.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout_set().unwrap_or(CONNECT_TIMEOUT)
    }

    /// `ConnectTimeout`, if it is set.
    pub fn connect_timeout_set(&self) -> Option<Duration> {
        self.options.seconds("connecttimeout")
    }

    /// `HostKeyAlias`: the name under which host keys are looked up.
    pub fn host_key_alias(&self) -> Option<&str> {
        let alias = self.text("hostkeyalias");
        alias.and_then(|_| self.tokens.get(&'k').map(String::as_str))
    }

    /// Expands the tokens of one option's value. `more` holds tokens that not every option has.
    pub fn expand(
        &self,
        key: &str,
        value: &str,
        allowed: &str,
        more: &[(char, String)],
    ) -> Result<String, Failure> {
        let mut tokens = self.tokens.clone();
        tokens.extend(more.iter().cloned());
        tokens::percent(value, &tokens, allowed)
            .map_err(|reason| invalid(format!("{key} {value:?}: {reason}")))
    }

    /// Expands a path: variables, tokens and `~`.
    fn path(&self, key: &str, value: &str) -> Result<PathBuf, Failure> {
        let expand = || {
            let text = tokens::variables(value, self.local.env)?;
            let text = tokens::percent(&text, &self.tokens, FOR_FILES)?;
            tokens::tilde(&text, &self.local.user.dir)
        };
        expand().map_err(|reason: String| invalid(format!("{key} {value:?}: {reason}")))
    }

    /// The paths of an option that may be given several times.
    pub fn paths(&self, key: &str) -> Result<Vec<PathBuf>, Failure> {
        let values = self.options.all(key).iter().filter(|value| !is_none(value));
        values.map(|value| self.path(key, value)).collect()
    }

    /// A list of paths on one line. `ssh -G` does not quote, so a word that does not start like an absolute path is
    /// taken as a part of the path before it, as in `/Users/Jo Doe/known_hosts`.
    pub fn path_list(&self, key: &str, unset: &str) -> Result<Vec<PathBuf>, Failure> {
        let value = self.options.get(key).unwrap_or(unset);
        let mut values: Vec<String> = Vec::new();
        for word in value.split(' ').filter(|word| !is_none(word)) {
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

    /// `IdentityFile`, in order. The files are not opened, so absent ones are included.
    pub fn identities(&self) -> Result<Vec<Identity>, Failure> {
        let mut identities: Vec<Identity> = Vec::new();
        for value in self.options.all("identityfile") {
            if is_none(value) {
                continue;
            }
            let path = self.path("identityfile", value)?;
            if !identities.iter().any(|identity| identity.path == path) {
                let explicit = !DEFAULT_IDENTITIES.contains(&value.as_str());
                identities.push(Identity { path, explicit });
            }
        }
        Ok(identities)
    }

    /// `IdentityAgent`, else `SSH_AUTH_SOCK`; `None` if there is no agent or the value is `none`.
    pub fn agent(&self) -> Result<Option<PathBuf>, Failure> {
        let variable = |name: &str| (self.local.env)(name).filter(|path| !path.is_empty());
        let value = self.options.get("identityagent").unwrap_or("SSH_AUTH_SOCK");
        if is_none(value) {
            return Ok(None);
        }
        // A variable as the whole value needs no braces: ssh_config(5), IdentityAgent.
        match value.strip_prefix('$') {
            Some(name) if !name.starts_with('{') => Ok(variable(name).map(PathBuf::from)),
            None if value == "SSH_AUTH_SOCK" => Ok(variable(value).map(PathBuf::from)),
            _ => self.path("identityagent", value).map(Some),
        }
    }

    /// `ProxyCommand` or `ProxyJump`.
    pub fn proxy(&self) -> Result<Option<Proxy>, Failure> {
        if let Some(command) = self.text("proxycommand") {
            let command = self.expand("proxycommand", command, FOR_PROXY, &[])?;
            let shell = (self.local.env)("SHELL").filter(|shell| !shell.is_empty());
            return Ok(Some(Proxy {
                name: "the ProxyCommand".to_owned(),
                program: shell.unwrap_or_else(|| "/bin/sh".to_owned()).into(),
                // `exec`, as in ssh(1): no shell stays between us and the proxy.
                args: vec!["-c".into(), format!("exec {command}").into()],
            }));
        }
        let Some(jump) = self.text("proxyjump") else {
            return Ok(None);
        };
        let jump = self.expand("proxyjump", jump, FOR_PROXY, &[])?;
        let args = self
            .jump_args(&jump)
            .ok_or_else(|| invalid(format!("proxyjump: {jump:?} is not valid")))?;
        Ok(Some(Proxy {
            name: format!("the jump host {jump}"),
            program: "ssh".into(),
            args,
        }))
    }

    /// The arguments of the `ssh` for a `ProxyJump`, as ssh.c makes them: it connects to the last jump host, and the
    /// ones before become its own `-J`.
    fn jump_args(&self, jump: &str) -> Option<Vec<OsString>> {
        let (before, last) = match jump.rsplit_once(',') {
            Some((before, last)) => (Some(before), last),
            None => (None, jump),
        };
        let last: Remote = last.parse().ok()?;
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |flag: &str, value: OsString| args.extend([flag.into(), value]);
        if let Some(config) = &self.config_file {
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
        if self.batch_mode {
            add("-o", "BatchMode=yes".into());
        }
        add("-W", format!("[{}]:{}", self.host_name, self.port).into());
        args.extend(["--".into(), last.name.into()]);
        Some(args)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn local() -> LocalContext {
        let mut user = User::from_uid(0.into()).unwrap().unwrap();
        user.name = "me".to_owned();
        user.dir = "/home/me".into();
        LocalContext {
            user,
            host: "desk.example".into(),
            env: |name| (name == "SSH_AUTH_SOCK" || name == "KEYS").then(|| format!("/env/{name}")),
        }
    }

    fn built(word: &str, connect: &Connect, output: &str) -> Result<Resolved, Failure> {
        let remote: Remote = word.parse().unwrap();
        Resolved::new(
            word.to_owned(),
            &remote,
            connect,
            Options::parse(output),
            local(),
        )
    }

    /// The configuration of `web1` for this output of `ssh -G`.
    pub fn plain(output: &str) -> Resolved {
        built("web1", &Connect::default(), output).unwrap()
    }

    #[test]
    fn nothing_set_gives_the_defaults_of_ssh() {
        let config = plain("");
        assert_eq!(
            (config.host_name.as_str(), config.port, config.user.as_str()),
            ("web1", 22, "me")
        );
        assert_eq!(config.connect_timeout(), Duration::from_secs(15));
        assert_eq!(config.agent().unwrap(), Some("/env/SSH_AUTH_SOCK".into()));
        assert_eq!(config.proxy().unwrap(), None);
        assert!(!config.batch_mode && !config.is_on("identitiesonly", false));
    }

    #[test]
    fn values_get_their_types() {
        let config = plain(
            "hostname 10.0.0.9\nport 2222\nuser bob\nidentitiesonly yes\nconnecttimeout 3\n\
             serveraliveinterval 7\npubkeyauthentication unbound\npasswordauthentication no\n\
             numberofpasswordprompts 1\nbatchmode yes\nhostkeyalias %n.alias\n\
             userknownhostsfile /a/known /Users/Jo Doe/known\nglobalknownhostsfile none\n",
        );
        assert_eq!((config.host_name.as_str(), config.port), ("10.0.0.9", 2222));
        assert_eq!(config.connect_timeout(), Duration::from_secs(3));
        assert_eq!(config.server_alive_interval, Some(Duration::from_secs(7)));
        // Times that ssh rejects are not accepted either, as no clock can be set beyond its range.
        let config_of = |seconds: &str| plain(&format!("connecttimeout {seconds}\n"));
        for (seconds, limit) in [
            ("0", 15),
            ("2147483647", 2_147_483_647),
            ("2147483648", 15),
            ("18446744073709551615", 15),
        ] {
            let limit = Duration::from_secs(limit);
            assert_eq!(config_of(seconds).connect_timeout(), limit, "{seconds}");
        }
        assert_eq!(config.host_key_alias(), Some("web1.alias"));
        assert_eq!(
            config.path_list("userknownhostsfile", "").unwrap(),
            ["/a/known", "/Users/Jo Doe/known"].map(PathBuf::from)
        );
        let global = config.path_list("globalknownhostsfile", "/x").unwrap();
        assert_eq!(global, Vec::<PathBuf>::new());
        assert!(config.is_on("pubkeyauthentication", false) && config.batch_mode);
        assert!(!config.is_on("passwordauthentication", true));
        assert_eq!(config.number("numberofpasswordprompts", 3), 1);
    }

    #[test]
    fn identities_and_agents_are_expanded() {
        let config = plain(
            "user bob\nhostname h.example\nidentityfile ~/.ssh/%r_%h\nidentityfile ~/.ssh/id_rsa\n\
             identityfile ${KEYS}/k\nidentityfile none\ncertificatefile %d/c\n",
        );
        let paths: Vec<_> = config
            .identities()
            .unwrap()
            .iter()
            .map(|i| (i.path.display().to_string(), i.explicit))
            .collect();
        assert_eq!(
            paths,
            [
                ("/home/me/.ssh/bob_h.example".to_owned(), true),
                ("/home/me/.ssh/id_rsa".to_owned(), false),
                ("/env/KEYS/k".to_owned(), true),
            ]
        );
        let certificates = config.paths("certificatefile").unwrap();
        assert_eq!(certificates, [PathBuf::from("/home/me/c")]);
        for (value, expected) in [
            ("none", None),
            ("SSH_AUTH_SOCK", Some("/env/SSH_AUTH_SOCK")),
            ("$KEYS", Some("/env/KEYS")),
            ("$NOPE", None),
            ("~/agent.%u", Some("/home/me/agent.me")),
            ("${KEYS}/a", Some("/env/KEYS/a")),
        ] {
            let agent = plain(&format!("identityagent {value}")).agent().unwrap();
            assert_eq!(agent, expected.map(PathBuf::from), "{value}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        let error = |output: &str| {
            let config = built("web1", &Connect::default(), output)?;
            config.identities()?;
            config.proxy()
        };
        for (output, message) in [
            ("port 0", "port: \"0\" is not valid"),
            ("port 65536", "port: \"65536\" is not valid"),
            (
                "identityfile %z",
                "identityfile \"%z\": %z is not valid here",
            ),
            (
                "identityfile ${NOPE}",
                "identityfile \"${NOPE}\": the environment has no NOPE",
            ),
            (
                "proxycommand nc %d",
                "proxycommand \"nc %d\": %d is not valid here",
            ),
            (
                "proxyjump -oProxyCommand=x",
                "proxyjump: \"-oProxyCommand=x\" is not valid",
            ),
            ("proxyjump a b", "proxyjump: \"a b\" is not valid"),
        ] {
            assert_eq!(error(output).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn proxies_are_what_openssh_would_run() {
        let args = |config: &Resolved| {
            let proxy = config.proxy().unwrap();
            proxy.map(|proxy| proxy.args.join(" ".as_ref()).into_string().unwrap())
        };
        assert_eq!(args(&plain("proxycommand none")), None);
        assert_eq!(args(&plain("proxyjump none")), None);
        assert_eq!(
            args(&plain("hostname h\nproxycommand nc -x '%n' %h %p %%")).unwrap(),
            "-c exec nc -x 'web1' h 22 %"
        );
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
            let config = built("web1", &connect, output).unwrap();
            assert_eq!(args(&config).unwrap(), expected);
        }
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
        let options = Options::from_command_line(&remote, &connect).unwrap();
        let config = Resolved::new(String::new(), &remote, &connect, options, local()).unwrap();
        assert_eq!(
            (config.host_name.as_str(), config.port, config.user.as_str()),
            ("h.example", 23, "bob")
        );
        let identities = config.identities().unwrap();
        assert!(identities.len() == 1 && identities[0].explicit);
        assert_eq!(config.connect_timeout(), Duration::from_secs(4));
        assert!(config.batch_mode);
        let bare = Options::from_command_line(&remote, &Connect::default()).unwrap();
        assert_eq!(bare.all("identityfile"), DEFAULT_IDENTITIES);
    }
}
