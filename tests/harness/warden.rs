//! The directory that holds everything of this test process, and a small shell, the warden, that cleans up once the
//! process has ended, however it ended.
//!
//! Normally `Drop` cleans up, even if a test panics. It does not run if the process is killed, nor for statics: then
//! the warden cleans up. It notices the end by a closed pipe. A parent-death signal would not do: it is tied to the
//! thread that started the child, and each test has its own thread.

use std::collections::hash_map::RandomState;
use std::fmt::Display;
use std::hash::BuildHasher;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::programs::program_path;

static WARDEN: LazyLock<Warden> = LazyLock::new(Warden::start);

struct Warden {
    base: PathBuf,
    line: Mutex<ChildStdin>,
}

/// The directory of this test process. Its path is short (sockets are below it), its mode 0755 (homes of unprivileged
/// accounts are below it), and it is directly in /dev/shm or /tmp.
pub fn base() -> &'static Path {
    &WARDEN.base
}

/// Makes the warden kill every process of this user when the test process ends, unless the user is released before.
pub fn watch_user(uid: u32) {
    tell(uid).expect("the warden takes a user id");
}

/// To be called before another test process can claim the user id.
pub fn release_user(uid: u32) {
    // An error means that the warden is gone.
    let _ = tell(format_args!("-{uid}"));
}

fn tell(text: impl Display) -> io::Result<()> {
    let mut line = WARDEN.line.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(line, "{text}")
}

/// /dev/shm if programs can be executed there and it has room, since tests create many thousand small files; else /tmp.
fn parent() -> &'static str {
    const ROOM: u64 = 2 << 30;
    let fits = statvfs("/dev/shm").is_ok_and(|shm| {
        !shm.flags().contains(FsFlags::ST_NOEXEC)
            && shm.blocks_available() * shm.fragment_size() >= ROOM
    });
    if fits { "/dev/shm" } else { "/tmp" }
}

impl Warden {
    // It outlives this process, so only init can wait for it.
    #[allow(clippy::zombie_processes)]
    fn start() -> Self {
        let random = RandomState::new().hash_one(0) & 0xff_ffff;
        let base = PathBuf::from(format!(
            "{}/rsig-{:x}-{random:06x}",
            parent(),
            std::process::id()
        ));
        let mut child = Command::new(program_path("sh"))
            .args(["-c", include_str!("warden.sh"), "warden"])
            .arg(&base)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let mut answer = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut answer)
                .expect("the warden answers");
        }
        assert_eq!(
            answer,
            "ready\n",
            "the warden could not make {}",
            base.display()
        );
        let line = child.stdin.take().expect("the warden's stdin is a pipe");
        Self {
            base,
            line: Mutex::new(line),
        }
    }
}
