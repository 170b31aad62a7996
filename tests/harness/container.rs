//! A podman container that holds only busybox. Its storage belongs to the test.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::STEP_TIMEOUT;
use super::procs::Process;
use super::programs::{program_path, tool};
use super::rsig::Rsig;
use super::running::{Invocation, Output};
use super::scratch::Scratch;

/// Removed on drop.
pub struct Container {
    pub name: String,
    scratch: Scratch,
}

impl Container {
    #[track_caller]
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let dir = scratch.path().display().to_string();
        // No image, no network, no systemd: this works on every machine that can start a process in namespaces.
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{dir}/graph\"\nrunroot = \"{dir}/run\"\n"
        );
        scratch.file("storage.conf", &storage, 0o644);
        let engine = format!(
            "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
             lock_type = \"file\"\ntmp_dir = \"{dir}/tmp\"\n"
        );
        scratch.file("containers.conf", &engine, 0o644);
        let container = Self {
            // A fixed name: podman's own files in /dev/shm and /run/lock have no other mark.
            name: "box".to_owned(),
            scratch,
        };
        container.make_root();
        container.launch();
        container
    }

    /// The directory used as the container's root.
    pub fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    fn make_root(&self) {
        let root = self.root();
        for name in ["bin", "etc", "proc", "root", "tmp", "dev", "sys"] {
            fs::create_dir_all(root.join(name)).expect("our own directory");
        }
        let busybox = root.join("bin/busybox");
        // By a process of its own: a child of another test that has not called exec yet would keep a file open for
        // writing, and it could not be run (ETXTBSY).
        let copy = |from: &Path, to: &Path| {
            tool("install").args([from, to]).run().ok();
        };
        copy(&program_path("busybox"), &busybox);
        // Debian's busybox-static does not need them.
        let libraries = tool("ldd").arg(&busybox).run().stdout();
        for library in libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let path = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("it has one")).expect("our own directory");
            copy(Path::new(library), &path);
        }
        let applets = tool("busybox").arg("--list").run().ok().stdout();
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).expect("our own directory");
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("our own");
        fs::write(root.join("etc/group"), "root:x:0:\n").expect("our own");
    }

    /// Starts the container from its root.
    #[track_caller]
    pub fn launch(&self) {
        let root = self.root();
        let root = root.to_str().expect("our paths are UTF-8");
        let mark = format!("MARK={}", self.scratch.path().display());
        self.podman(&[
            "run",
            "-d",
            "--name",
            &self.name,
            "--network",
            "none",
            "--ipc",
            "host",
            "--ulimit",
            "nofile=20000:20000",
            "--ulimit",
            "nproc=10000:10000",
            "-e",
            &mark,
            "--rootfs",
            root,
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
        ])
        .ok();
    }

    /// Runs podman with this container's storage.
    #[track_caller]
    pub fn podman(&self, words: &[&str]) -> Output {
        self.within(tool("podman").args(words)).run()
    }

    /// Variables that make podman use this container's storage.
    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        let file = |name: &str| self.scratch.path().join(name);
        [
            ("CONTAINERS_STORAGE_CONF", file("storage.conf")),
            ("CONTAINERS_CONF", file("containers.conf")),
        ]
    }

    /// Adds these variables to a program that starts podman itself.
    pub fn within(&self, invocation: Invocation) -> Invocation {
        let environment = self.environment();
        environment
            .into_iter()
            .fold(invocation, |invocation, (name, value)| {
                invocation.env(name, value)
            })
    }

    /// rsig with these variables.
    pub fn rsig(&self, rsig: &Rsig, words: &[&str]) -> Invocation {
        self.within(rsig.command(words))
    }

    /// Processes in the container, and podman's own.
    pub fn processes(&self) -> Vec<Process> {
        self.scratch.processes()
    }

    /// The container's job directories, as a path on this machine.
    pub fn jobs_dir(&self) -> PathBuf {
        self.root().join(Path::new("root/.local/state/rsig/jobs"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let removed = self
            .within(tool("podman").args(["rm", "-f", "-t", "0", "-a"]))
            .run();
        assert!(
            std::thread::panicking() || removed.status().success(),
            "the container can't be removed: {removed}"
        );
        // The process that tells podman of a shell's end still writes to the storage.
        let end = Instant::now() + STEP_TIMEOUT;
        while !self.processes().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
