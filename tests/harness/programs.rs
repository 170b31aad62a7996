//! System programs that the tests start, each with its Debian package.
//!
//! Every program is looked up here, and `tests/install-debian` installs all the packages. A test compares the two
//! lists.

use std::fs;
use std::path::{Path, PathBuf};

use super::running::{Invocation, PATH};

const PROGRAMS: [(&str, &str); 61] = [
    ("bash", "bash"),
    ("busybox", "busybox"),
    ("cat", "coreutils"),
    ("cc", "gcc"),
    ("cksum", "coreutils"),
    ("clush", "clustershell"),
    ("curl", "curl"),
    ("dash", "dash"),
    ("date", "coreutils"),
    ("dd", "coreutils"),
    ("dropbear", "dropbear-bin"),
    ("dropbearkey", "dropbear-bin"),
    ("elvish", "elvish"),
    ("env", "coreutils"),
    ("fish", "fish"),
    ("flock", "util-linux"),
    ("grep", "grep"),
    ("head", "coreutils"),
    ("install", "coreutils"),
    ("kadmin.local", "krb5-admin-server"),
    ("kdb5_util", "krb5-kdc"),
    ("kinit", "krb5-user"),
    ("krb5kdc", "krb5-kdc"),
    ("ldd", "libc-bin"),
    ("ls", "coreutils"),
    ("mkdir", "coreutils"),
    ("mkfifo", "coreutils"),
    ("mksh", "mksh"),
    ("mv", "coreutils"),
    ("nodeset", "clustershell"),
    ("nsenter", "util-linux"),
    ("perl", "perl"),
    ("podman", "podman"),
    ("prlimit", "util-linux"),
    ("printf", "coreutils"),
    ("ps", "procps"),
    ("python3", "python3"),
    ("readlink", "coreutils"),
    ("rm", "coreutils"),
    ("runc", "runc"),
    ("sed", "sed"),
    ("setpriv", "util-linux"),
    ("sh", "dash"),
    ("shellcheck", "shellcheck"),
    ("sleep", "coreutils"),
    ("ssh", "openssh-client"),
    ("ssh-add", "openssh-client"),
    ("ssh-agent", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("sshd", "openssh-server"),
    ("stty", "coreutils"),
    ("su", "util-linux"),
    ("sudo", "sudo"),
    ("tail", "coreutils"),
    ("tcsh", "tcsh"),
    ("tmux", "tmux"),
    ("tr", "coreutils"),
    ("uname", "coreutils"),
    ("unshare", "util-linux"),
    ("wc", "coreutils"),
    ("zsh", "zsh"),
];

/// Other packages that the tests need: a preloaded library, the tool that creates the Python clients' environment, and
/// what `.ci/run` starts and links.
const OTHER_PACKAGES: [&str; 5] = [
    "libnss-wrapper",
    "python3-venv",
    "groff",
    "libssl-dev",
    "pkg-config",
];

/// A system program, by its name in the table.
///
/// # Panics
/// If it is missing.
pub fn tool(program: &str) -> Invocation {
    Invocation::of(program_path(program))
}

/// Path of a system program. Panics as [`tool`] does.
pub fn program_path(program: &str) -> PathBuf {
    assert!(
        PROGRAMS.iter().any(|(name, _)| *name == program),
        "{program} is not in the table of tests/harness/programs.rs"
    );
    PATH.split(':')
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{program} is missing: run tests/install-debian"))
}

#[test]
fn what_tests_start_is_installed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = fs::read_to_string(root.join("tests/install-debian")).expect("the script");
    let (_, list) = script
        .split_once("--no-install-recommends")
        .expect("a list of packages");
    let list = list.split("\n\n").next().unwrap_or_default();
    let mut installed: Vec<&str> = list
        .split_whitespace()
        .filter(|word| *word != "\\")
        .collect();
    let mut needed: Vec<&str> = PROGRAMS
        .iter()
        .map(|(_, package)| *package)
        .chain(OTHER_PACKAGES)
        .collect();
    installed.sort_unstable();
    needed.sort_unstable();
    needed.dedup();
    assert_eq!(
        installed, needed,
        "tests/install-debian, and the tables here"
    );
}

/// No test starts a program without looking it up in the table.
#[test]
fn programs_are_looked_up_in_one_place() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut directories = vec![tests];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)
            .expect("our own directory")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("text");
                assert!(
                    !["Command::new", "Invocation::of"]
                        .iter()
                        .any(|start| text.contains(&format!("{start}(\""))),
                    "{} starts a program by its name alone",
                    path.display()
                );
            }
        }
    }
}
