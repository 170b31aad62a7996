//! Accounts of one server: root and, for [`Login::User`], a throwaway user, with homes in the server's directory.
//!
//! `libnss_wrapper.so`, preloaded into the server, makes it read these files instead of /etc/passwd; the system's own
//! accounts are not touched. Sessions do not inherit the library (both servers create a new environment for a session),
//! so a program in a session finds its home and shell in `$HOME` and `$SHELL`, but not through getpwuid(3).

use std::fs;
use std::path::{Path, PathBuf};

use super::claim::{Claim, claim};
use super::programs::{program_path, tool};
use super::scratch::{Scratch, give_to, write_file};

/// Which account a server accepts logins for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    Root,
    /// An unprivileged user whose id is not used by anything else on the machine.
    User,
}

/// The account's login shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    Sh,
    Bash,
    Zsh,
    Fish,
    Tcsh,
    Mksh,
}

impl Shell {
    pub const ALL: [Self; 6] = [
        Self::Sh,
        Self::Bash,
        Self::Zsh,
        Self::Fish,
        Self::Tcsh,
        Self::Mksh,
    ];

    fn path(self) -> PathBuf {
        let name = match self {
            Self::Sh => "sh",
            Self::Bash => "bash",
            Self::Zsh => "zsh",
            Self::Fish => "fish",
            Self::Tcsh => "tcsh",
            Self::Mksh => "mksh",
        };
        // Dropbear accepts only shells listed in /etc/shells, and Debian lists all but fish with their /bin path.
        let path = program_path(name);
        if self == Self::Fish {
            path
        } else {
            Path::new("/bin").join(name)
        }
    }
}

/// The account that logs in.
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub home: PathBuf,
    files: PathBuf,
    _claim: Option<Claim>,
}

impl Account {
    /// Creates the account and its files in a new directory, which the server uses too.
    pub fn create(login: Login, shell: Shell, password: Option<&str>) -> (Self, Scratch) {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the test servers need root: run the tests as root"
        );
        let (name, uid, claim) = match login {
            Login::Root => ("root".to_owned(), 0, None),
            Login::User => {
                let claim = claim("user", 61_000..64_000, |_| true);
                (
                    format!("u{}", claim.number()),
                    u32::from(claim.number()),
                    Some(claim),
                )
            }
        };
        let scratch = if uid == 0 {
            Scratch::new()
        } else {
            Scratch::of_user(uid)
        };
        let home = scratch.subdir("home", 0o700);
        give_to(&home, uid);
        let root_home = if uid == 0 {
            home.clone()
        } else {
            scratch.subdir("root", 0o700)
        };

        let files = scratch.subdir("accounts", 0o755);
        let password = password.map_or_else(|| "*".to_owned(), hash);
        let shell = shell.path();
        // The hash is also in the passwd file: PAM looks it up in shadow with a call that is not wrapped.
        let line = |name: &str, uid: u32, home: &Path| {
            format!(
                "{name}:{password}:{uid}:{uid}::{}:{}\n",
                home.display(),
                shell.display()
            )
        };
        let mut passwd = line("root", 0, &root_home);
        passwd += "sshd:*:102:65534::/run/sshd:/usr/sbin/nologin\n";
        passwd += "nobody:*:65534:65534::/nonexistent:/usr/sbin/nologin\n";
        let mut group = String::from("root:*:0:\nnogroup:*:65534:\n");
        let mut shadow = format!("root:{password}:19000:0:99999:7:::\n");
        if uid != 0 {
            passwd += &line(&name, uid, &home);
            group.extend([name.as_str(), ":*:", &uid.to_string(), ":\n"]);
            shadow.extend([name.as_str(), ":", &password, ":19000:0:99999:7:::\n"]);
        }
        write_file(&files.join("passwd"), &passwd, 0o644);
        write_file(&files.join("group"), &group, 0o644);
        write_file(&files.join("shadow"), &shadow, 0o600);
        (
            Self {
                name,
                uid,
                home,
                files,
                _claim: claim,
            },
            scratch,
        )
    }

    /// Variables that make a server use these accounts.
    pub fn server_environment(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("LD_PRELOAD", wrapper()),
            ("NSS_WRAPPER_PASSWD", self.files.join("passwd")),
            ("NSS_WRAPPER_GROUP", self.files.join("group")),
            ("NSS_WRAPPER_SHADOW", self.files.join("shadow")),
        ]
    }

    /// Writes a file in the account's home. The account owns it and the directories created for it.
    pub fn write(&self, name: &str, content: &str, mode: u32) {
        write_file(&self.home.join(name), content, mode);
        let first = Path::new(name)
            .components()
            .next()
            .expect("a file has a name");
        give_to(&self.home.join(first), self.uid);
    }

    /// Authorizes one more public key.
    pub fn authorize(&self, public: &str) {
        let file = self.home.join(".ssh/authorized_keys");
        let mut keys = fs::read_to_string(file).unwrap_or_default();
        keys += public.trim_end();
        keys.push('\n');
        self.write(".ssh/authorized_keys", &keys, 0o600);
    }
}

fn wrapper() -> PathBuf {
    let triplet = format!(
        "/usr/lib/{}-linux-gnu/libnss_wrapper.so",
        std::env::consts::ARCH
    );
    [
        triplet.as_str(),
        "/usr/lib64/libnss_wrapper.so",
        "/usr/lib/libnss_wrapper.so",
    ]
    .into_iter()
    .map(PathBuf::from)
    .find(|path| path.exists())
    .expect("libnss_wrapper.so is missing: apt-get install libnss-wrapper")
}

/// Returns a crypt(3) hash. Perl is part of every Debian system.
fn hash(password: &str) -> String {
    tool("perl")
        .args(["-e", r#"print crypt(<STDIN>, "\$6\$rsigtests\$"), "\n""#])
        .stdin(password)
        .run()
        .ok()
        .line()
}
