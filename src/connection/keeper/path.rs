//! The paths of keepers: one socket for each destination, in a directory that no other user can enter.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::protocol::VERSION;
use crate::connection::ssh::{Sources, sent};
use crate::host::Destination;

/// Maximum length of a socket's path: the smallest `sun_path` of any system (unix(7); 104 on macOS and the BSDs), less
/// the suffix that the name has while the socket is bound.
const PATH_MAX: usize = 90;

/// The two parts of a socket's name, in bytes before hex encoding: one stands for the destination, the other for what
/// its shells inherit or are sent.
const DESTINATION_LEN: usize = 7;
const ENVIRONMENT_LEN: usize = 3;

/// The paths of one keeper.
#[derive(Clone, Debug)]
pub struct KeeperPath {
    /// The socket.
    pub socket: PathBuf,
    /// Locked while a keeper is being started.
    pub lock: PathBuf,
}

impl KeeperPath {
    /// The paths of a keeper whose shells are processes of this machine. The name depends on what was typed, on the
    /// machine, since home directories may be shared, and, if jobs inherit from their command, on what they inherit.
    pub fn of(destination: &Destination) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let mut destination = destination.clone();
        // The jobs directory makes no difference to a shell.
        destination.connect.jobs_dir = None;
        hash.update(serde_json::to_vec(&destination)?);
        hash.update(machine());
        hash.update(VERSION);
        let hash = hash.finalize();
        let begin = hex(hash.get(..DESTINATION_LEN).unwrap_or_default());
        let name = if destination.inherits_environment() {
            begin + &hex(inherited()?.get(..ENVIRONMENT_LEN).unwrap_or_default())
        } else {
            begin
                + &hex(hash
                    .get(DESTINATION_LEN..DESTINATION_LEN + ENVIRONMENT_LEN)
                    .unwrap_or_default())
        };
        Ok(Self::in_directory(&directory()?, &name))
    }

    fn in_directory(directory: &Path, name: &str) -> Self {
        Self {
            socket: directory.join(name),
            lock: directory.join(format!(
                "{}.lock",
                name.get(..2 * DESTINATION_LEN).unwrap_or(name)
            )),
        }
    }

    /// The other keepers of the same destination: their shells have a different environment.
    pub fn siblings(&self) -> io::Result<Vec<Self>> {
        let own = self.socket.file_name().and_then(|name| name.to_str());
        let begin = own
            .and_then(|name| name.get(..2 * DESTINATION_LEN))
            .unwrap_or_default();
        let directory = directory()?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let name = entry?.file_name();
            if let Some(name) = name.to_str()
                && name.len() == 2 * (DESTINATION_LEN + ENVIRONMENT_LEN)
                && name.starts_with(begin)
                && Some(name) != own
            {
                found.push(Self::in_directory(&directory, name));
            }
        }
        Ok(found)
    }

    /// The paths of a private keeper: in a temporary directory if the keepers' directory can't be used.
    pub fn private() -> io::Result<(Self, Option<TempDir>)> {
        let random = crate::job::random_hex::<7>().map_err(io::Error::other)?;
        let name = format!("p{random}");
        let place = directory().map(|directory| Self::in_directory(&directory, &name));
        if let Ok(place) = place
            && place.probe().is_ok()
        {
            return Ok((place, None));
        }
        let temporary = tempfile::Builder::new().prefix("rsig-").tempdir()?;
        Ok((Self::in_directory(temporary.path(), &name), Some(temporary)))
    }

    /// Fails if no socket can be created: the directory is read-only, or its file system is full.
    pub fn probe(&self) -> io::Result<()> {
        let probe = self
            .socket
            .with_extension(format!("{}", std::process::id()));
        drop(UnixListener::bind(&probe)?);
        fs::remove_file(&probe)
    }

    /// Takes the lock. `None` if another command holds it.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.lock)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// A path for the socket of an `ssh -M`, next to the keeper's. ssh first binds it under a name that is 17 characters
/// longer.
pub fn control_socket(keeper: &Path) -> io::Result<PathBuf> {
    let random = crate::job::random_hex::<4>().map_err(io::Error::other)?;
    Ok(keeper.with_file_name(format!("{random}.m")))
}

/// What ssh last reported about a destination's configuration, so that a warm command need not query ssh.
///
/// It is kept for what was typed, this machine (home directories may be shared) and this network namespace.
pub struct KnownConfiguration {
    directory: PathBuf,
    name: String,
}

#[derive(Serialize, Deserialize)]
struct Configuration {
    digest: String,
    /// The patterns of `SendEnv`. The values of variables are never written to disk.
    send: Vec<String>,
    sources: Sources,
}

impl KnownConfiguration {
    pub fn of(destination: &Destination) -> io::Result<Self> {
        let destination = serde_json::to_vec(destination)?;
        Ok(Self {
            directory: directory()?,
            name: hash_name(&[
                &destination,
                &machine(),
                &network_namespace().to_le_bytes(),
                VERSION.as_bytes(),
            ]),
        })
    }

    fn file(&self) -> PathBuf {
        self.directory.join(format!("{}.configuration", self.name))
    }

    /// The file that records how the last login there succeeded.
    pub fn entry(&self) -> PathBuf {
        self.directory.join(format!("{}.entry", self.name))
    }

    /// The paths of its keeper; `None` if ssh has to be queried.
    pub fn keeper(&self) -> Option<KeeperPath> {
        let text = fs::read(self.file()).ok()?;
        let known: Configuration = serde_json::from_slice(&text).ok()?;
        known
            .sources
            .are_current()
            .then(|| self.keeper_of(&known.digest, &known.send))
    }

    /// Records what ssh reported.
    pub fn record_configuration(
        &self,
        digest: String,
        send: Vec<String>,
        sources: Sources,
    ) -> KeeperPath {
        let place = self.keeper_of(&digest, &send);
        let temporary = self.file().with_extension(std::process::id().to_string());
        let written = serde_json::to_vec(&Configuration {
            digest,
            send,
            sources,
        })
        .map_err(io::Error::from)
        .and_then(|text| fs::write(&temporary, text))
        .and_then(|()| fs::rename(&temporary, self.file()));
        if written.is_err() {
            // Then the next command queries ssh again.
            let _ = fs::remove_file(&temporary);
        }
        place
    }

    fn keeper_of(&self, digest: &str, send: &[String]) -> KeeperPath {
        let configuration = hash_name(&[self.name.as_bytes(), digest.as_bytes()]);
        let variables = sent(send);
        let variables: Vec<&[u8]> = variables
            .iter()
            .flat_map(|(name, value)| [name.as_slice(), value])
            .collect();
        let (begin, end) = (
            configuration.get(..2 * DESTINATION_LEN),
            hash_name(&variables),
        );
        let name = begin.unwrap_or_default().to_owned()
            + end.get(..2 * ENVIRONMENT_LEN).unwrap_or_default();
        KeeperPath::in_directory(&self.directory, &name)
    }
}

/// Hashes the parts into a name.
fn hash_name(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hex(hash
        .finalize()
        .get(..DESTINATION_LEN + ENVIRONMENT_LEN)
        .unwrap_or_default())
}

/// The same address may be another host in another namespace. 0 on systems without namespaces.
fn network_namespace() -> u64 {
    fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino())
}

/// The sockets of all keepers.
pub fn all() -> io::Result<Vec<PathBuf>> {
    let mut sockets = Vec::new();
    if !crate::state::state_directory()
        .map_err(io::Error::other)?
        .is_dir()
    {
        return Ok(sockets);
    }
    for entry in fs::read_dir(directory()?)? {
        let path = entry?.path();
        if path.extension().is_none() {
            sockets.push(path);
        }
    }
    sockets.sort();
    Ok(sockets)
}

/// `keepers` in the state directory; if its path is too long for a socket, a directory of this user elsewhere.
fn directory() -> io::Result<PathBuf> {
    let state = crate::state::state_directory().map_err(io::Error::other)?;
    let usual = state.join("keepers");
    if usual.as_os_str().len() + 1 + 2 * (DESTINATION_LEN + ENVIRONMENT_LEN) <= PATH_MAX {
        return ensure_private(&usual);
    }
    let parent = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|directory| directory.is_absolute());
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let name = hex(digest.get(..4).unwrap_or_default());
    let parent = parent.unwrap_or_else(|| PathBuf::from("/tmp"));
    ensure_private(&parent.join(format!("rsig-{}-{name}", nix::unistd::geteuid())))
}

/// Creates a directory for this user alone, or checks that an existing one is.
fn ensure_private(directory: &Path) -> io::Result<PathBuf> {
    match DirBuilder::new()
        .mode(0o700)
        .recursive(false)
        .create(directory)
    {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(directory)?;
    let ours = metadata.is_dir()
        && metadata.uid() == nix::unistd::geteuid().as_raw()
        && metadata.mode() & 0o077 == 0;
    if ours {
        Ok(directory.to_owned())
    } else {
        Err(io::Error::other(format!(
            "{} must be a directory that only this user can use",
            directory.display()
        )))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A digest of what a job on this machine inherits from its command: the directory, the environment, the umask and the
/// limits; also the namespaces and the control group, since a keeper's shells are in those of the keeper.
fn inherited() -> io::Result<Vec<u8>> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    };
    let here = fs::metadata(".")?;
    add(std::env::current_dir()?.as_os_str().as_encoded_bytes());
    add(&here.dev().to_le_bytes());
    add(&here.ino().to_le_bytes());
    // This variable is removed from the environment of every shell.
    for (name, value) in std::env::vars_os().filter(|(name, _)| name != "RSIG_COOKIE") {
        add(name.as_encoded_bytes());
        add(value.as_encoded_bytes());
    }
    add(&fs::read("/proc/self/limits")?);
    add(&fs::read("/proc/self/cgroup")?);
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find(|line| line.starts_with("Umask:"));
    add(mask.ok_or(io::ErrorKind::Unsupported)?.as_bytes());
    for space in ["mnt", "net", "pid", "user", "uts", "ipc"] {
        let link = fs::read_link(format!("/proc/self/ns/{space}"))?;
        add(link.as_os_str().as_encoded_bytes());
    }
    Ok(hash.finalize().to_vec())
}

/// Identifies this machine among those that share the home directory.
fn machine() -> Vec<u8> {
    fs::read("/etc/machine-id")
        .or_else(|_| fs::read("/var/lib/dbus/machine-id"))
        .unwrap_or_else(|_| {
            nix::unistd::gethostname()
                .map(|name| name.as_encoded_bytes().to_vec())
                .unwrap_or_default()
        })
}

/// Whether the peer of a connection is a process of this user.
pub fn is_ours(stream: &UnixStream) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let peer = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)
        .map(|credentials| credentials.uid());
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let peer = nix::unistd::getpeereid(stream).map(|(user, _)| user.as_raw());
    peer.is_ok_and(|uid| uid == nix::unistd::geteuid().as_raw())
}
