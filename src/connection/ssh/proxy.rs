//! A `ProxyCommand` or `ProxyJump`: a child process that carries the connection.
//!
//! Its standard input and output are one socketpair. Its standard error is passed on line by line:
//! a keeper must not hold the terminal or pipe of the command that started it. `ProxyUseFdpass` is
//! not handled.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::config::Proxy;
use crate::escape::printable;

/// The longest line of a proxy's standard error.
const MAX_LINE_BYTES: u64 = 4096;
/// How long a proxy may take to end by itself or by TERM.
const GRACE: Duration = Duration::from_millis(200);

/// A running proxy; ended and reaped when dropped.
pub(super) struct ProxyProcess {
    child: Child,
    /// Whether it leads a process group of its own.
    leads_group: bool,
    /// The last line of its standard error, and the thread that passes them on.
    last_line: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
}

/// Starts `proxy`; the socket is our end of the connection.
///
/// With `batch` it gets a process group of its own, out of reach of the terminal's Ctrl-C. Without,
/// it stays in ours, since it may have to ask for a passphrase on the terminal itself.
pub(super) fn start(
    proxy: &Proxy,
    batch: bool,
    warn: fn(&str),
) -> io::Result<(OwnedFd, ProxyProcess)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(&proxy.program);
    command
        .args(&proxy.args)
        .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped());
    if batch {
        command.process_group(0);
    }
    let mut child = command.spawn()?;
    let last_line = Arc::new(Mutex::new(String::new()));
    let listener = child.stderr.take().map(|stderr| {
        let last_line = Arc::clone(&last_line);
        // Reads to the end, so that the proxy never blocks on its standard error.
        thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while let Ok(1..) = stderr
                .by_ref()
                .take(MAX_LINE_BYTES)
                .read_until(b'\n', &mut line)
            {
                let text = printable(line.trim_ascii(), 300);
                line.clear();
                if !text.is_empty() {
                    warn(&text);
                    *last_line.lock().unwrap_or_else(PoisonError::into_inner) = text;
                }
            }
        })
    });
    let process = ProxyProcess {
        child,
        leads_group: batch,
        last_line,
        listener,
    };
    Ok((ours.into(), process))
}

impl ProxyProcess {
    /// The last line of its standard error, once it has ended; empty where it said nothing.
    pub(super) fn last_line(&self) -> String {
        let deadline = Instant::now() + GRACE;
        // A process that it has left behind may hold the pipe open.
        while !self.listener.as_ref().is_none_or(JoinHandle::is_finished)
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(1));
        }
        let last_line = self.last_line.lock();
        last_line.unwrap_or_else(PoisonError::into_inner).clone()
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
        let pid = self.child.id().cast_signed();
        let target = if self.leads_group { -pid } else { pid };
        // ESRCH: it has just ended. The pid is ours until it is reaped.
        let _ = kill(Pid::from_raw(target), signal);
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            if self.ended().is_none() {
                self.signal(Signal::SIGKILL);
                drop(self.child.wait());
            }
        }
    }
}
