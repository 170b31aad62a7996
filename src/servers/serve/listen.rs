//! The listening socket: a Unix socket in the state directory, or a TCP port of the loopback interface.
//!
//! A file lock, which the system releases when its process ends, ensures that only one server uses the Unix socket. The
//! holder of the lock may remove a socket that an earlier server left behind.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::state::state_directory;

/// Name of the socket in the state directory.
const SOCKET: &str = "serve.sock";
/// Name of the lock file in the state directory.
const LOCK: &str = "serve.lock";

pub enum Listener {
    Socket(OwnSocket),
    Port(TcpListener),
}

/// A connection to a client.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    pub async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Socket(own) => Box::new(own.listener.accept().await?.0),
            Self::Port(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

/// The Unix socket. Its file is removed on drop.
pub struct OwnSocket {
    listener: UnixListener,
    path: PathBuf,
    #[expect(dead_code, reason = "locked for as long as it is open")]
    lock: File,
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

/// Listens on the Unix socket in the state directory. Returns the socket's path too.
pub fn on_socket() -> Result<(Listener, PathBuf)> {
    let directory = state_directory()?;
    let path = directory.join(SOCKET);
    let lock_path = directory.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&lock_path)
        .with_context(|| format!("{} can't be opened", lock_path.display()))?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => bail!(
            "another `rsig serve` is listening on {}: use it, or end it first; one with --listen can run beside it",
            path.display()
        ),
        locked => locked.with_context(|| format!("{} can't be locked", lock_path.display()))?,
    }
    remove_stale(&path)?;
    let listener = bind(&directory, &path).with_context(|| {
        let shown = path.display();
        format!("the socket {shown} can't be created (if its path is too long, set RSIG_STATE_DIR to a shorter one)")
    })?;
    let own = OwnSocket {
        listener,
        path: path.clone(),
        lock,
    };
    Ok((Listener::Socket(own), path))
}

/// Removes the socket that an earlier server left behind.
fn remove_stale(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)
            .with_context(|| format!("the stale socket {} can't be removed", path.display())),
        Ok(_) => bail!(
            "{} is in the place of the server's socket, but is not a socket: move it away",
            path.display()
        ),
    }
}

/// Binds to a temporary name, restricts the mode and renames, so that the socket never has a wider mode at `path`.
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

/// Listens on a loopback port. Returns the actual address, since port 0 means any free port.
pub async fn on_port(address: SocketAddr) -> Result<(Listener, SocketAddr)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address}"))?;
    let address = listener.local_addr()?;
    Ok((Listener::Port(listener), address))
}
