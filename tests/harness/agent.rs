//! A throwaway ssh-agent(1).

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::keys::Key;
use super::programs::tool;
use super::running::{Invocation, Running};
use super::scratch::Scratch;
use super::{STEP_TIMEOUT, poll_until};

/// Stopped on drop.
pub struct Agent {
    socket: PathBuf,
    _process: Running,
    scratch: Scratch,
}

impl Agent {
    /// Starts an agent without keys.
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let socket = scratch.path().join("agent");
        let process = tool("ssh-agent")
            .env("HOME", scratch.path())
            .args(["-D", "-a"])
            .arg(&socket)
            .start();
        poll_until("ssh-agent listens", STEP_TIMEOUT, || {
            UnixStream::connect(&socket).is_ok()
        });
        Self {
            socket,
            _process: process,
            scratch,
        }
    }

    /// For `SSH_AUTH_SOCK` or `IdentityAgent`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Adds a key. A key with a passphrase is added without a prompt.
    pub fn add(&self, key: &Key) {
        let copy = self.scratch.path().join("key");
        fs::copy(&key.private, &copy).expect("the key file is readable");
        tool("ssh-keygen")
            .args(["-q", "-p", "-N", "", "-P", &key.passphrase, "-f"])
            .arg(&copy)
            .run()
            .ok();
        self.ssh_add().arg("-q").arg(&copy).run().ok();
        fs::remove_file(&copy).expect("our own file can be removed");
    }

    /// Public keys in the agent, one per line.
    pub fn list(&self) -> String {
        let listed = self.ssh_add().arg("-L").run();
        if listed.status().code() == Some(1) {
            String::new()
        } else {
            listed.ok().stdout()
        }
    }

    fn ssh_add(&self) -> Invocation {
        tool("ssh-add")
            .env("SSH_AUTH_SOCK", &self.socket)
            .env("HOME", self.scratch.path())
    }
}
