//! The secret that a request to a port has to bring: any user of this machine can connect to a port.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use subtle::ConstantTimeEq as _;

use crate::job::random_hex;
use crate::state::state_directory;

/// The file in the state directory where it stands alone.
const FILE: &str = "serve.token";
/// The shortest one that is taken, in characters.
const SHORTEST: usize = 32;
/// The longest.
const LONGEST: usize = 1024;

/// A secret, which no message shows.
pub struct Token(Vec<u8>);

impl Token {
    /// Whether what a client brings is this one, in a time that says nothing of how much of it is right.
    pub fn is(&self, brought: &[u8]) -> bool {
        self.0.ct_eq(brought).into()
    }
}

/// The token of the state directory, made of 256 random bits when there is none; and where it is.
pub fn load() -> Result<(Token, PathBuf)> {
    let path = state_directory()?.join(FILE);
    if let Err(error) = fs::symlink_metadata(&path)
        && error.kind() == io::ErrorKind::NotFound
    {
        make(&path).with_context(|| format!("the token {} can't be made", path.display()))?;
    }
    let token = read(&path).with_context(|| {
        format!(
            "the token {} can't be used; remove it, and the next `rsig serve --listen` makes another",
            path.display()
        )
    })?;
    Ok((token, path))
}

/// Writes it to a file that is nobody's yet, and links that into place: no other server finds half of one.
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
        // Another server was faster: its token is as good.
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
            "others have access to it, so it may be known to them (mode {:o}, not 600)",
            metadata.mode() & 0o777
        );
    }
    let mut text = Vec::new();
    file.take(LONGEST as u64 + 1).read_to_end(&mut text)?;
    let token = text.trim_ascii();
    if !(SHORTEST..=LONGEST).contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
        bail!("it does not hold {SHORTEST} to {LONGEST} printable characters alone");
    }
    Ok(Token(token.to_vec()))
}
