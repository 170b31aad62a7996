//! Clients that drive rsig: programs by other authors, and scripts that use their libraries.

#[cfg(feature = "mcp")]
mod mcp;

#[cfg(feature = "mcp")]
pub use mcp::Mcp;

use std::path::{Path, PathBuf};

use crate::harness::Invocation;

/// A program of the virtual environment that `tests/install-debian` creates.
///
/// # Panics
/// If it is missing.
pub fn python(program: &str) -> Invocation {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/venv/bin")
        .join(program);
    assert!(
        path.exists(),
        "{} is missing: run tests/install-debian",
        path.display()
    );
    Invocation::of(path)
}

/// A file in this directory.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

#[cfg(any(feature = "mcp", feature = "serve"))]
impl crate::harness::Fixture {
    /// The arguments of a server command that reaches the host as all commands of the fixture do.
    pub fn server_words<'a>(&'a self, command: &'a str, options: &[&'a str]) -> Vec<&'a str> {
        let mut words = self.words(command, options, &[]);
        words.pop();
        words
    }
}
