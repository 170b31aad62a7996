//! Reading `known_hosts` files, and adding a line to one.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::known_hosts::HASH_BYTES;
use super::{KnownHostsFile, NewEntry};

/// A `known_hosts` file of more bytes than this is refused rather than read in part: a line that revokes a
/// key may stand anywhere.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A `known_hosts` file that could not be read or written.
#[derive(Debug, Error)]
pub enum KnownHostsError {
    /// It is there but can't be read.
    #[error("cannot read the known hosts in {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is longer than [`MAX_FILE_BYTES`].
    #[error("{} is no known_hosts file: it has more than {} MiB", .path.display(), MAX_FILE_BYTES >> 20)]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The line could not be added.
    #[error("cannot add the host key to {}", .path.display())]
    Add {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Reads the files of `UserKnownHostsFile` and `GlobalKnownHostsFile`, in this order. The word `none`
/// stands for no file.
pub fn read_all<P: AsRef<Path>>(
    paths: impl IntoIterator<Item = P>,
) -> Result<Vec<KnownHostsFile>, KnownHostsError> {
    paths
        .into_iter()
        .filter(|path| path.as_ref() != Path::new("none"))
        .map(|path| read(path.as_ref()))
        .collect()
}

/// Reads one file. A missing one is empty.
pub fn read(path: &Path) -> Result<KnownHostsFile, KnownHostsError> {
    let text = match read_bounded(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(source) => {
            return Err(KnownHostsError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(KnownHostsError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(KnownHostsFile::parse(path, &text))
}

/// The file's bytes, but no more than one beyond the limit.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)?;
    Ok(text)
}

/// Appends a line to the file, its name hashed under `HashKnownHosts`. A missing file is made with mode
/// 0600, and its directory (`~/.ssh`) with 0700. Symbolic links are followed, as ssh does.
pub fn add(path: &Path, entry: &NewEntry, hash_known_hosts: bool) -> Result<(), KnownHostsError> {
    line(entry, hash_known_hosts)
        .and_then(|line| append(path, &line))
        .map_err(|source| KnownHostsError::Add {
            path: path.to_owned(),
            source,
        })
}

fn line(entry: &NewEntry, hash_known_hosts: bool) -> io::Result<String> {
    if !hash_known_hosts {
        return Ok(entry.line());
    }
    let mut salt = [0; HASH_BYTES];
    getrandom::fill(&mut salt).map_err(|error| io::Error::other(error.to_string()))?;
    entry
        .hashed_line(&salt)
        .ok_or_else(|| io::Error::other("the name can't be hashed"))
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        match DirBuilder::new().mode(0o700).create(parent) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let separator = if lacks_final_newline(&file, &file.metadata()?)? {
        "\n"
    } else {
        ""
    };
    // One write, so that two processes that add a line at once do not mix them.
    file.write_all(format!("{separator}{line}\n").as_bytes())
}

/// Whether the file's last line lacks its newline. Anything but a regular file (/dev/null) has no lines.
fn lacks_final_newline(file: &File, metadata: &Metadata) -> io::Result<bool> {
    let Some(last) = metadata.len().checked_sub(1).filter(|_| metadata.is_file()) else {
        return Ok(false);
    };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::key::tests::ed25519;
    use super::super::{Decision, HostName, StrictHostKeyChecking, decide};
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn web() -> HostName {
        HostName::new("web", 2222)
    }

    #[test]
    fn a_missing_file_is_empty_and_none_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("absent")).unwrap().entries.is_empty());
        assert!(read_all(["none"]).unwrap().is_empty());
        assert_eq!(read_all(["/dev/null", "none"]).unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path()).unwrap_err();
        assert!(matches!(error, KnownHostsError::Read { .. }));
        assert!(
            error
                .to_string()
                .contains(&dir.path().display().to_string())
        );
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/dev/zero is no known_hosts file: it has more than 16 MiB"
        );
    }

    #[test]
    fn an_added_line_is_found_again() {
        for hash in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(".ssh/known_hosts");
            let entry = web().entry_for(&ed25519(1)).unwrap();
            add(&path, &entry, hash).unwrap();
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.starts_with("|1|"), hash, "{text}");
            assert_eq!(text.contains("web"), !hash, "{text}");
            let files = [read(&path).unwrap()];
            let decision = decide(&files, &web(), &ed25519(1), StrictHostKeyChecking::Yes);
            assert!(matches!(decision, Decision::Accept { .. }), "{decision:?}");
        }
    }

    #[test]
    fn a_last_line_without_newline_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known_hosts");
        let entry = web().entry_for(&ed25519(1)).unwrap();
        let line = entry.line();
        for (before, after) in [
            ("", format!("{line}\n")),
            ("# mine\n", format!("# mine\n{line}\n")),
            ("# mine", format!("# mine\n{line}\n")),
        ] {
            fs::write(&path, before).unwrap();
            add(&path, &entry, false).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
    }

    #[test]
    fn links_are_followed_and_the_null_device_swallows() {
        let dir = tempfile::tempdir().unwrap();
        let entry = web().entry_for(&ed25519(1)).unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        add(&link, &entry, false).unwrap();
        assert_eq!(
            fs::read_to_string(&target).unwrap(),
            format!("{}\n", entry.line())
        );
        add(Path::new("/dev/null"), &entry, false).unwrap();
        let error = add(&dir.path().join("no/such/known_hosts"), &entry, false).unwrap_err();
        assert!(error.to_string().contains("no/such/known_hosts"), "{error}");
    }
}
