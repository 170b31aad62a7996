//! The state directory: its location, and checks that only this user has access.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{User, geteuid};

use super::failure::explain;
use crate::error::{Failure, Kind};

/// Name of the file that is locked while the state file is created. Also used to test whether the file system supports
/// locks.
pub const LOCK: &str = "lock";

/// `RSIG_STATE_DIR`, or `$XDG_STATE_HOME/rsig`, or `~/.local/state/rsig`.
pub fn state_directory() -> Result<PathBuf, Failure> {
    if let Some(directory) = variable("RSIG_STATE_DIR") {
        return std::path::absolute(directory).map_err(|error| {
            let why = explain(&error);
            failed(format!(
                "RSIG_STATE_DIR can't be made an absolute path: {why}"
            ))
        });
    }
    if let Some(directory) = absolute("XDG_STATE_HOME") {
        return check_home_owner(&directory, directory.join("rsig"));
    }
    let home = home().ok_or_else(|| {
        failed("no place for the state file: this user has no home directory; set HOME or RSIG_STATE_DIR")
    })?;
    check_home_owner(&home, home.join(".local/state/rsig"))
}

/// The path in an environment variable, unless empty.
pub fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

pub fn absolute(name: &str) -> Option<PathBuf> {
    variable(name).filter(|directory| directory.is_absolute())
}

/// The user's home directory: `$HOME`, or the one in the password database.
pub fn home() -> Option<PathBuf> {
    absolute("HOME").or_else(|| {
        let user = User::from_uid(geteuid()).ok().flatten();
        user.map(|user| user.dir)
    })
}

/// Refuses to create a directory in another user's home as root. Under sudo, HOME may still be the invoking user's,
/// who could not use what root creates there.
fn check_home_owner(home: &Path, directory: PathBuf) -> Result<PathBuf, Failure> {
    let owner = fs::metadata(home).map_or(0, |metadata| metadata.uid());
    if !geteuid().is_root() || owner == 0 || directory.exists() {
        return Ok(directory);
    }
    Err(failed(format!(
        "the home directory {} belongs to another user (uid {owner}): with sudo use `sudo -H`, or name a directory for the \
         state file in RSIG_STATE_DIR",
        home.display()
    )))
}

/// Creates the directory if it does not exist. Returns why it can't be created, if so. Only this user gets access,
/// whatever the umask or the default ACL.
pub fn make(directory: &Path) -> Result<Option<String>, Failure> {
    match fs::symlink_metadata(directory) {
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unusable(directory, "read", &error)),
    }
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o700)));
    Ok(made
        .err()
        .map(|error| unusable(directory, "made", &error).message))
}

/// Refuses a directory that is not this user's or to which other users have access.
pub fn check(directory: &Path) -> Result<(), Failure> {
    let metadata =
        fs::symlink_metadata(directory).map_err(|error| unusable(directory, "read", &error))?;
    let shown = directory.display();
    let message = if metadata.is_symlink() {
        format!(
            "the state directory {shown} is a symbolic link: name the directory itself in RSIG_STATE_DIR"
        )
    } else if !metadata.is_dir() {
        format!(
            "the state directory {shown} is not a directory: remove it, or name another in RSIG_STATE_DIR"
        )
    } else if metadata.uid() != geteuid().as_raw() {
        format!(
            "the state directory {shown} belongs to another user (uid {}): run rsig as that user, with sudo use \
             `sudo -H`, or name a directory of your own in RSIG_STATE_DIR",
            metadata.uid()
        )
    } else if metadata.mode() & 0o077 != 0 {
        format!("others have access to the state directory {shown}: run `chmod 700 '{shown}'`")
    } else {
        return Ok(());
    };
    Err(failed(message))
}

/// Opens a file for writing, and creates it if it does not exist. Only this user gets access, whatever the umask or the
/// default ACL.
pub fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Refuses a file system without file locks: SQLite would mistake the error for another writer, and wait.
pub fn check_locks(directory: &Path) -> Result<(), Failure> {
    let path = directory.join(LOCK);
    let Ok(file) = open_private(&path).or_else(|_| File::open(&path)) else {
        // Nothing can be written here; whatever needs to write reports it.
        return Ok(());
    };
    #[allow(clippy::cast_possible_truncation, reason = "they are small")]
    let lock = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
        #[cfg(target_os = "freebsd")]
        l_sysid: 0,
    };
    // Lustre without `flock` returns ENOSYS, NFS without a lock daemon ENOLCK.
    match fcntl(&file, FcntlArg::F_SETLK(&lock)) {
        Err(Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL) => {
            Err(failed(format!(
                "the file system of the state directory {} has no file locks; set RSIG_STATE_DIR to a directory elsewhere",
                directory.display()
            )))
        }
        _ => Ok(()),
    }
}

fn unusable(directory: &Path, verb: &str, error: &io::Error) -> Failure {
    let (shown, why) = (directory.display(), explain(error));
    let owner = directory
        .ancestors()
        .find_map(|parent| Some((parent, fs::metadata(parent).ok()?.uid())))
        .filter(|(_, uid)| {
            error.kind() == io::ErrorKind::PermissionDenied && *uid != geteuid().as_raw()
        });
    let owner = owner.map_or_else(String::new, |(parent, uid)| {
        format!("{} belongs to another user (uid {uid}): ", parent.display())
    });
    failed(format!(
        "the state directory {shown} can't be {verb}: {owner}{why}"
    ))
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::new(Kind::Failed, message)
}
