//! Differences between OpenSSH's sshd(8) and dropbear(8): programs, host keys, arguments, configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::keys::{self, Format, Type};
use super::options::Options;
use super::procs::Process;
use super::programs::{program_path, tool};
use super::running::Invocation;
use super::scratch::Scratch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    OpenSsh,
    Dropbear,
}

impl Kind {
    /// Path of the installed server.
    ///
    /// # Panics
    /// If it is not installed. The message names the Debian package.
    pub fn program(self) -> PathBuf {
        match self {
            Self::OpenSsh => program_path("sshd"),
            Self::Dropbear => program_path("dropbear"),
        }
    }

    /// Creates a host key in `dir` and returns its public half.
    pub fn host_key(self, key: Type, dir: &Path) -> String {
        let path = host_key_path(dir, key);
        if self == Self::OpenSsh {
            return keys::generate(&path, key, "", Format::OpenSsh).public;
        }
        tool("dropbearkey")
            .args(["-t", key.name(), "-f"])
            .arg(&path)
            .run()
            .ok();
        let shown = tool("dropbearkey")
            .arg("-y")
            .arg("-f")
            .arg(&path)
            .run()
            .ok()
            .stdout();
        let is_key = |line: &&str| line.starts_with("ssh-") || line.starts_with("ecdsa-");
        shown
            .lines()
            .find(is_key)
            .expect("dropbearkey shows the public key")
            .to_owned()
    }

    /// Whether a process is one of the server's own: the listener, or one that handles a connection.
    pub fn owns(self, process: &Process) -> bool {
        match self {
            // Since 9.8 and 10.0, connections are handled by separate programs.
            Self::OpenSsh => matches!(process.name.as_str(), "sshd" | "sshd-session" | "sshd-auth"),
            Self::Dropbear => process.name == "dropbear",
        }
    }
}

/// Arguments that keep the server in the foreground and make it log to `dir/log`.
pub fn arguments(options: &Options, dir: &Path, port: u16) -> Vec<String> {
    let here = dir.display();
    let mut words = match options.kind {
        // A relative path after -E would be resolved from `/`.
        Kind::OpenSsh => ["-D", "-f", "{dir}/sshd_config", "-E", "{dir}/log"]
            .map(str::to_owned)
            .to_vec(),
        Kind::Dropbear => {
            let address = format!("127.0.0.1:{port}");
            let mut words = ["-F", "-E", "-p", &address, "-P", "{dir}/pid"]
                .map(str::to_owned)
                .to_vec();
            for &key in &options.host_keys {
                words.extend([
                    "-r".to_owned(),
                    host_key_path(dir, key).display().to_string(),
                ]);
            }
            words
        }
    };
    words.extend(options.args.iter().cloned());
    words
        .iter()
        .map(|word| word.replace("{dir}", &here.to_string()))
        .collect()
}

/// Text of `sshd_config`. The first value of a keyword counts, so the test's own lines come first.
pub fn sshd_config(options: &Options, dir: &Path, port: u16) -> String {
    let yes_no = |condition| if condition { "yes" } else { "no" };
    let by_password = options.password.is_some() && !options.keyboard_interactive;
    let (first, matches) = options.config.split_at(first_match(&options.config));
    let mut lines = vec![
        first.to_owned(),
        format!(
            "ListenAddress {}\nPort {port}\nPidFile none",
            options.address
        ),
        "LogLevel VERBOSE\nUseDNS no\nPrintMotd no\nPrintLastLog no".to_owned(),
        "PermitRootLogin yes\nSubsystem sftp internal-sftp".to_owned(),
        format!("UsePAM {}", yes_no(options.keyboard_interactive)),
        format!(
            "KbdInteractiveAuthentication {}",
            yes_no(options.keyboard_interactive)
        ),
        format!("PasswordAuthentication {}", yes_no(by_password)),
    ];
    for &key in &options.host_keys {
        lines.push(format!("HostKey {}", host_key_path(dir, key).display()));
    }
    if *KNOWS_PENALTIES {
        lines.push("PerSourcePenalties no".to_owned());
    }
    lines.push(matches.to_owned());
    lines
        .join("\n")
        .replace("{dir}", &dir.display().to_string())
}

fn host_key_path(dir: &Path, key: Type) -> PathBuf {
    dir.join(format!("host_key_{}", key.name()))
}

/// Whether sshd knows `PerSourcePenalties`. OpenSSH 9.8 added it; an older sshd refuses to start with it.
static KNOWS_PENALTIES: LazyLock<bool> = LazyLock::new(|| {
    // sshd refuses to run without its privilege separation directory and a host key.
    fs::create_dir_all("/run/sshd").expect("/run/sshd can be made");
    let scratch = Scratch::new();
    let key = keys::generate(
        &scratch.path().join("key"),
        Type::Ed25519,
        "",
        Format::OpenSsh,
    );
    let shown = Invocation::of(Kind::OpenSsh.program())
        .args(["-T", "-f", "/dev/null", "-h"])
        .arg(key.private)
        .run()
        .ok()
        .stdout();
    shown
        .lines()
        .any(|line| line.starts_with("persourcepenalties"))
});

/// Position of the first `Match` line of an `sshd_config`, else the end of the text.
fn first_match(config: &str) -> usize {
    let mut start = 0;
    for line in config.split_inclusive('\n') {
        if line.trim_start().to_ascii_lowercase().starts_with("match ") {
            break;
        }
        start += line.len();
    }
    start
}
