//! A directory for one server, client or agent, and the processes that belong to it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::procs::{self, Process};
use super::{STEP_TIMEOUT, warden};

static NEXT: AtomicU32 = AtomicU32::new(1);

/// On drop its processes are killed and the directory is removed. The test fails if a process survives.
pub struct Scratch {
    dir: PathBuf,
    user: Option<u32>,
}

impl Scratch {
    /// Creates an empty directory, mode 0755.
    pub fn new() -> Self {
        Self::create(None)
    }

    /// Creates a directory for a throwaway account: all processes of this user belong to it too.
    pub fn of_user(uid: u32) -> Self {
        warden::watch_user(uid);
        Self::create(Some(uid))
    }

    fn create(user: Option<u32>) -> Self {
        let dir = warden::base().join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        make_dir(&dir, 0o755);
        Self { dir, user }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Creates a directory in it.
    pub fn subdir(&self, name: &str, mode: u32) -> PathBuf {
        let dir = self.dir.join(name);
        make_dir(&dir, mode);
        dir
    }

    /// Writes a file in it. Parent directories are created as needed.
    pub fn file(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.dir.join(name);
        write_file(&path, content, mode);
        path
    }

    /// Processes that belong to it, see [`procs`].
    pub fn processes(&self) -> Vec<Process> {
        procs::belonging_to(&self.dir, self.user)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let killed = procs::kill_until_none(STEP_TIMEOUT, || self.processes());
        if let (Ok(()), Some(uid)) = (&killed, self.user) {
            warden::release_user(uid);
        }
        let removed = fs::remove_dir_all(&self.dir);
        // A second panic would abort the whole test binary and hide the first one.
        if std::thread::panicking() {
            return;
        }
        if let Err(survivors) = killed {
            panic!("these outlived SIGKILL:\n{}", procs::listing(&survivors));
        }
        if let Err(error) = removed {
            panic!("{} can't be removed: {error}", self.dir.display());
        }
    }
}

/// Creates a directory with exactly this mode, whatever the umask.
pub fn make_dir(dir: &Path, mode: u32) {
    fs::create_dir(dir).unwrap_or_else(|error| panic!("{} can't be made: {error}", dir.display()));
    set_mode(dir, mode);
}

/// Writes a file with exactly this mode. Parent directories are created as needed.
pub fn write_file(path: &Path, content: &str, mode: u32) {
    let parent = path.parent().expect("a file has a parent");
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, content))
        .unwrap_or_else(|error| panic!("{} can't be written: {error}", path.display()));
    set_mode(path, mode);
}

/// Changes the owner of a file or a whole directory (uid and gid alike).
pub fn give_to(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid))
        .unwrap_or_else(|error| panic!("{} can't be given to {uid}: {error}", path.display()));
    if path.is_dir() {
        for entry in fs::read_dir(path)
            .expect("our own directory is readable")
            .flatten()
        {
            give_to(&entry.path(), uid);
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .unwrap_or_else(|error| panic!("the mode of {} can't be set: {error}", path.display()));
}
