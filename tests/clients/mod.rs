//! The clients that the faces are driven by: programs that others have written.

#[cfg(feature = "mcp")]
mod mcp;

#[cfg(feature = "mcp")]
pub use mcp::Mcp;

use std::path::{Path, PathBuf};

use crate::harness::{Fixture, Invocation};

/// A program of the virtual environment that `tests/install-debian` makes.
///
/// # Panics
/// When it is not there.
pub fn python(program: &str) -> Invocation {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin").join(program);
    assert!(path.exists(), "{} is missing: run tests/install-debian", path.display());
    Invocation::of(path)
}

/// A file beside this one.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

impl Fixture {
    /// The words of a server's command, which reaches the host as all commands of the fixture do.
    pub fn server_words<'a>(&'a self, command: &'a str, options: &[&'a str]) -> Vec<&'a str> {
        let mut words = self.words(command, options, &[]);
        words.pop();
        words
    }
}
