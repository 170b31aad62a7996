//! What is listened on: a Unix socket in the state directory, or a port of the loopback.
//!
//! Of servers on the socket there is one at a time, by a lock that ends with its process, however that ends. Whoever has
//! it may remove a socket that an earlier one has left behind.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::state::state_directory;

/// The socket in the state directory.
const SOCKET: &str = "serve.sock";
/// The file whose lock the server on it holds.
const LOCK: &str = "serve.lock";

/// What is listened on.
pub enum Listener {
    Socket(OwnSocket),
    Port(TcpListener),
}

/// Who has connected.
pub enum Peer {
    Socket(UnixStream),
    Port(TcpStream),
}

impl Listener {
    /// The next one to connect.
    pub async fn accept(&self) -> io::Result<Peer> {
        match self {
            Self::Socket(own) => own
                .listener
                .accept()
                .await
                .map(|(stream, _)| Peer::Socket(stream)),
            Self::Port(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Peer::Port(stream))
            }
        }
    }
}

/// The socket, which is removed in the end.
pub struct OwnSocket {
    listener: UnixListener,
    path: PathBuf,
    #[allow(dead_code, reason = "locked for as long as it is open")]
    lock: File,
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Where it is gone already, there is nothing left to do.
        drop(fs::remove_file(&self.path));
    }
}

/// Listens on the Unix socket of the state directory, and says where that is.
pub fn on_socket() -> Result<(Listener, PathBuf)> {
    let directory = state_directory()?;
    let path = directory.join(SOCKET);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(directory.join(LOCK))
        .with_context(|| format!("{} can't be opened", directory.join(LOCK).display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => bail!(
            "another `rsig serve` listens on {} already: use that one, or end it first; one with --listen can run beside it",
            path.display()
        ),
        Err(fs::TryLockError::Error(error)) => {
            return Err(error)
                .with_context(|| format!("{} can't be locked", directory.join(LOCK).display()));
        }
    }
    clear(&path)?;
    let bound = bind(&directory, &path).with_context(|| {
        let shown = path.display();
        format!("the socket {shown} can't be made (where its path is too long, set RSIG_STATE_DIR to a shorter one)")
    });
    Ok((
        Listener::Socket(OwnSocket {
            listener: bound?,
            path: path.clone(),
            lock,
        }),
        path,
    ))
}

/// Removes the socket that an earlier server has left behind.
fn clear(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)
            .with_context(|| format!("the stale socket {} can't be removed", path.display())),
        Ok(_) => bail!(
            "{} is in the place of the server's socket, and is none: move it away",
            path.display()
        ),
    }
}

/// Binds under another name and moves the socket into its place, so that it is never there with another mode.
fn bind(directory: &Path, path: &Path) -> io::Result<UnixListener> {
    let new = directory.join(format!("{SOCKET}.{}", std::process::id()));
    drop(fs::remove_file(&new));
    let listener = UnixListener::bind(&new)?;
    let placed = fs::set_permissions(&new, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&new, path));
    if placed.is_err() {
        drop(fs::remove_file(&new));
    }
    placed.map(|()| listener)
}

/// Listens on a port of this machine alone, and says which: port 0 is any that is free.
pub async fn on_port(address: SocketAddr) -> Result<(Listener, SocketAddr)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} can't be listened on"))?;
    let address = listener.local_addr()?;
    Ok((Listener::Port(listener), address))
}
