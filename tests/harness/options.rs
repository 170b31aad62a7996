//! What a test can ask of a server before it starts.

use std::path::PathBuf;

use super::accounts::{Login, Shell};
use super::daemon::Kind;
use super::keys::Type;
use super::server::Server;

/// How a server is to be; it begins with [`Server::openssh`] or [`Server::dropbear`].
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

    /// The login shell; bash unless told otherwise.
    pub fn shell(mut self, shell: Shell) -> Self {
        self.shell = shell;
        self
    }

    /// The program that is `/bin/sh` in its sessions.
    pub fn system_shell(mut self, shell: PathBuf) -> Self {
        self.system_shell = Some(shell);
        self
    }

    /// The types of its host keys; ed25519 alone unless told otherwise.
    pub fn host_keys(mut self, types: &[Type]) -> Self {
        self.host_keys = types.to_vec();
        self
    }

    /// Takes this password besides the key. For OpenSSH by the method `password`.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// OpenSSH: takes this password by the method `keyboard-interactive` alone, through PAM.
    pub fn keyboard_interactive(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.keyboard_interactive = true;
        self
    }

    /// OpenSSH: lines for `sshd_config`, before ours, so that they win (`{dir}` is the server's directory).
    /// What begins with the first `Match` comes after ours.
    pub fn config(mut self, lines: &str) -> Self {
        assert_eq!(self.kind, Kind::OpenSsh, "dropbear has options only: arg");
        self.config += lines;
        self.config.push('\n');
        self
    }

    /// One more word of the server's command line (`{dir}` is its directory).
    pub fn arg(mut self, word: &str) -> Self {
        self.args.push(word.to_owned());
        self
    }

    /// Variables of the server's own.
    pub fn env(mut self, variables: impl IntoIterator<Item = (&'static str, PathBuf)>) -> Self {
        self.env.extend(variables);
        self
    }

    /// A file in the account's home, `.bashrc` say, mode 0644.
    ///
    /// Which one a shell reads for a command: bash `.bashrc` (Debian's does under sshd), zsh `.zshenv`,
    /// fish `.config/fish/config.fish`, tcsh `.tcshrc`; sh and mksh none. `.profile` only at a login without command.
    pub fn home_file(mut self, name: &str, content: &str) -> Self {
        self.home_files.push((name.to_owned(), content.to_owned()));
        self
    }

    /// A file in the server's directory, for `{dir}/name` in [`config`](Self::config): a `Banner`, say. Mode 0644.
    pub fn file(mut self, name: &str, content: &str) -> Self {
        self.files.push((name.to_owned(), content.to_owned()));
        self
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// When it is not installed (the message names the Debian package), when the tests do not run as root, and
    /// with its log when it ends at once.
    #[track_caller]
    pub fn start(self) -> Server {
        Server::start(self)
    }
}
