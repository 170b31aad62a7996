//! The bearer token for requests to a port, since any user of this machine can connect to a port.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use subtle::ConstantTimeEq as _;

use crate::job::random_hex;
use crate::state::state_directory;

/// Name of the token file in the state directory.
const FILE: &str = "serve.token";
/// Minimum length of a token, in characters.
const TOKEN_MIN: usize = 32;
/// Maximum length of a token, in characters.
const TOKEN_MAX: usize = 1024;

/// Without `Debug` or `Display`, so that no message shows the token.
pub struct Token(Vec<u8>);

impl Token {
    /// Compares in constant time.
    pub fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

/// Reads the token in the state directory, or creates one of 256 random bits. Returns the file's path too.
pub fn load() -> Result<(Token, PathBuf)> {
    let path = state_directory()?.join(FILE);
    if let Err(error) = fs::symlink_metadata(&path)
        && error.kind() == io::ErrorKind::NotFound
    {
        make(&path).with_context(|| format!("the token {} can't be created", path.display()))?;
    }
    let token = read(&path).with_context(|| {
        format!(
            "the token {} can't be used; remove it, and `rsig serve --listen` creates another",
            path.display()
        )
    })?;
    Ok((token, path))
}

/// Writes a temporary file and links it into place, so that no other server reads a partial token.
fn make(path: &Path) -> Result<()> {
    let secret = random_hex::<32>()?;
    let new = path.with_extension(format!("token.{}", std::process::id()));
    drop(fs::remove_file(&new));
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    let linked = file
        .write_all(format!("{secret}\n").as_bytes())
        .and_then(|()| fs::hard_link(&new, path));
    fs::remove_file(&new)?;
    match linked {
        // Another server was faster; its token is used.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => Ok(linked?),
    }
}

fn read(path: &Path) -> Result<Token> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            bail!("it is a symbolic link")
        }
        opened => opened?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("it is not a regular file");
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        bail!("it belongs to another user (uid {})", metadata.uid());
    }
    if metadata.mode() & 0o077 != 0 {
        bail!(
            "other users have access to it and may know it (mode {:o}, not 600)",
            metadata.mode() & 0o777
        );
    }
    let mut text = Vec::new();
    file.take(TOKEN_MAX as u64 + 1).read_to_end(&mut text)?;
    let token = text.trim_ascii();
    if !(TOKEN_MIN..=TOKEN_MAX).contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
        bail!("it must hold one word of {TOKEN_MIN} to {TOKEN_MAX} printable characters");
    }
    Ok(Token(token.to_vec()))
}
