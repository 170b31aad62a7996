//! A `ProxyCommand` or `ProxyJump`: a child process that carries the connection.
//!
//! Its standard input and output are one socketpair. Its standard error is read by us and passed
//! on as long as the connection is being made: a keeper must not hold the terminal or pipe of the
//! command that started it. `ProxyUseFdpass` is not handled.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::config::Proxy;

/// What is kept of a proxy's standard error until it is asked for.
const SAID_MAX: usize = 4096;
/// How long a proxy may take to end by itself or by TERM.
const GRACE: Duration = Duration::from_millis(200);

/// What a proxy has said on its standard error and nobody has taken yet.
#[derive(Default)]
struct Said {
    text: Vec<u8>,
    ended: bool,
}

impl Said {
    /// Takes the whole lines, and what is left at the end.
    fn take(&mut self) -> Vec<u8> {
        let end = self
            .text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let end = if self.ended { self.text.len() } else { end };
        self.text.drain(..end).collect()
    }
}

/// A running proxy; ended and reaped when dropped.
pub(super) struct ProxyProcess {
    child: Child,
    /// Whether it leads a process group of its own.
    leads_group: bool,
    said: Arc<Mutex<Said>>,
    last_line: Option<Vec<u8>>,
}

/// Starts `proxy`; the socket is our end of the connection.
///
/// With `batch` it gets a process group of its own, out of reach of the terminal's Ctrl-C. Without,
/// it stays in ours, since it may have to ask for a passphrase on the terminal itself.
pub(super) fn start(proxy: &Proxy, batch: bool) -> io::Result<(UnixStream, ProxyProcess)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = match proxy {
        Proxy::Command(line) => {
            let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
            let mut command = Command::new(shell.unwrap_or_else(|| "/bin/sh".into()));
            // As in ssh(1): no shell stays between us and the proxy.
            command.arg("-c").arg(format!("exec {line}"));
            command
        }
        Proxy::Jump { args, .. } => {
            let mut command = Command::new("ssh");
            command.args(args);
            command
        }
    };
    command
        .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped());
    if batch {
        command.process_group(0);
    }
    let mut child = command.spawn()?;
    let said = Arc::new(Mutex::new(Said::default()));
    if let Some(stderr) = child.stderr.take() {
        let said = Arc::clone(&said);
        thread::Builder::new()
            .name("ssh-proxy-stderr".into())
            .spawn(move || listen(stderr, &said))?;
    }
    Ok((
        ours,
        ProxyProcess {
            child,
            leads_group: batch,
            said,
            last_line: None,
        },
    ))
}

/// Reads to the end, so that the proxy never blocks on its standard error, and keeps the newest.
fn listen(mut stderr: impl Read, said: &Mutex<Said>) {
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut piece) {
        let text = &mut lock(said).text;
        text.extend_from_slice(piece.get(..length).unwrap_or_default());
        let surplus = text.len().saturating_sub(SAID_MAX);
        text.drain(..surplus);
    }
    lock(said).ended = true;
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    // Text and a flag: right even after a panic elsewhere.
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProxyProcess {
    /// The whole lines that it has said on its standard error since the last call.
    pub(super) fn lines(&mut self) -> Vec<Vec<u8>> {
        let whole = lock(&self.said).take();
        let lines: Vec<Vec<u8>> = whole
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        if let Some(last) = lines.last() {
            self.last_line = Some(last.clone());
        }
        lines
    }

    /// The last line of its standard error, once it has ended.
    pub(super) fn last_line(&mut self) -> Option<&[u8]> {
        let deadline = Instant::now() + GRACE;
        // A process that it has left behind may hold the pipe open.
        while !lock(&self.said).ended && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        self.lines();
        self.last_line.as_deref()
    }

    /// Its exit status, if it ends within a moment.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + GRACE;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                _ => return None,
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let Ok(pid) = i32::try_from(self.child.id()) else {
            return;
        };
        let target = if self.leads_group { -pid } else { pid };
        // ESRCH: it has just ended. The pid is ours until it is reaped.
        let _ = kill(Pid::from_raw(target), signal);
    }

    /// Ends and reaps it, in [`GRACE`] at most where it ignores TERM.
    pub(super) fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            if self.ended().is_none() {
                self.signal(Signal::SIGKILL);
                drop(self.child.wait());
            }
        }
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        self.end();
    }
}
