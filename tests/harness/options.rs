//! Options that a test can set on a server before it starts.

use std::path::PathBuf;

use super::accounts::{Login, Shell};
use super::daemon::Kind;
use super::keys::Type;
use super::server::Server;

/// Options of a server. Created with [`Server::openssh`] or [`Server::dropbear`].
#[must_use = "it starts with start"]
#[derive(Clone)]
pub struct Options {
    pub(super) kind: Kind,
    pub(super) address: &'static str,
    pub(super) login: Login,
    pub(super) shell: Shell,
    pub(super) system_shell: Option<PathBuf>,
    pub(super) host_keys: Vec<Type>,
    pub(super) password: Option<String>,
    pub(super) keyboard_interactive: bool,
    pub(super) config: String,
    pub(super) args: Vec<String>,
    pub(super) home_files: Vec<(String, String)>,
    pub(super) files: Vec<(String, String)>,
    pub(super) env: Vec<(&'static str, PathBuf)>,
}

impl Options {
    pub(super) fn new(kind: Kind, login: Login) -> Self {
        Self {
            kind,
            address: "127.0.0.1",
            login,
            shell: Shell::Bash,
            system_shell: None,
            host_keys: vec![Type::Ed25519],
            password: None,
            keyboard_interactive: false,
            config: String::new(),
            args: Vec::new(),
            home_files: Vec::new(),
            files: Vec::new(),
            env: Vec::new(),
        }
    }

    /// OpenSSH: listens on all addresses of this machine.
    #[allow(dead_code, reason = "for the benches")]
    pub fn everywhere(mut self) -> Self {
        self.address = "0.0.0.0";
        self
    }

    /// Login shell; the default is bash.
    pub fn shell(mut self, shell: Shell) -> Self {
        self.shell = shell;
        self
    }

    /// Program that is `/bin/sh` in the server's sessions.
    pub fn system_shell(mut self, shell: PathBuf) -> Self {
        self.system_shell = Some(shell);
        self
    }

    /// Types of the host keys; the default is ed25519 alone.
    pub fn host_keys(mut self, types: &[Type]) -> Self {
        self.host_keys = types.to_vec();
        self
    }

    /// Accepts this password in addition to the key. OpenSSH accepts it with the method `password`.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// OpenSSH: accepts this password only with the method `keyboard-interactive`, through PAM.
    pub fn keyboard_interactive(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.keyboard_interactive = true;
        self
    }

    /// OpenSSH: lines for `sshd_config`, placed before ours so that they win (`{dir}` is the server's directory). Lines
    /// from the first `Match` on are placed after ours.
    pub fn config(mut self, lines: &str) -> Self {
        assert_eq!(self.kind, Kind::OpenSsh, "dropbear has options only: arg");
        self.config += lines;
        self.config.push('\n');
        self
    }

    /// Appends one word to the server's command line (`{dir}` is its directory).
    pub fn arg(mut self, word: &str) -> Self {
        self.args.push(word.to_owned());
        self
    }

    /// Adds variables to the server's environment.
    pub fn env(mut self, variables: impl IntoIterator<Item = (&'static str, PathBuf)>) -> Self {
        self.env.extend(variables);
        self
    }

    /// Adds a file to the account's home, for example `.bashrc`, mode 0644.
    ///
    /// Files that a shell reads before a command: bash `.bashrc` (Debian's bash does so under sshd), zsh `.zshenv`,
    /// fish `.config/fish/config.fish`, tcsh `.tcshrc`; sh and mksh none. `.profile` is read only at a login without a
    /// command.
    pub fn home_file(mut self, name: &str, content: &str) -> Self {
        self.home_files.push((name.to_owned(), content.to_owned()));
        self
    }

    /// Adds a file to the server's directory, mode 0644, for `{dir}/name` in [`config`](Self::config): a `Banner`, for
    /// example.
    pub fn file(mut self, name: &str, content: &str) -> Self {
        self.files.push((name.to_owned(), content.to_owned()));
        self
    }

    /// Starts the server and waits until it listens.
    ///
    /// # Panics
    /// If it is not installed (the message names the Debian package), if the tests do not run as root, or if it ends at
    /// once (the message contains its log).
    #[track_caller]
    pub fn start(self) -> Server {
        Server::start(self)
    }
}
