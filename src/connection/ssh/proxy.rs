//! A `ProxyCommand` or `ProxyJump`: a child process that carries the connection.
//!
//! Its standard input and output are one socketpair. Its standard error is passed on line by line:
//! a keeper must not hold the terminal or pipe of the command that started it. `ProxyUseFdpass` is
//! not handled.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

use super::config::Proxy;
use crate::escape::printable;
use crate::sys;

/// The longest line of a proxy's standard error.
const MAX_LINE_BYTES: u64 = 4096;
/// How long a proxy may take to exit by itself or after TERM.
const EXIT_WAIT_MAX: Duration = Duration::from_millis(200);

/// A running proxy; terminated and reaped when it is dropped.
pub(super) struct ProxyProcess {
    /// The child leads a process group of its own.
    child: Child,
    /// Whether the proxy may be lent the terminal.
    may_ask: Arc<AtomicBool>,
    /// The last line of the proxy's standard error, and the thread that passes the lines on.
    last_line: Arc<Mutex<String>>,
    stderr_thread: Option<JoinHandle<()>>,
}

/// Starts `proxy`. The socket is our end of the connection.
///
/// The proxy gets a process group of its own, out of reach of the terminal's Ctrl-C. With `may_ask` it is lent the
/// terminal when it has something to ask.
pub(super) fn start(
    proxy: &Proxy,
    may_ask: bool,
    warn: fn(&str),
) -> io::Result<(OwnedFd, ProxyProcess)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(&proxy.program);
    command
        .args(&proxy.args)
        .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .process_group(0);
    sys::process::end_with_parent(&mut command);
    let mut child = command.spawn()?;
    let may_ask = Arc::new(AtomicBool::new(may_ask));
    let (pid, lending) = (group_of(&child), Arc::clone(&may_ask));
    // Without the thread, a proxy that wants the terminal waits until the connection is given up.
    drop(thread::Builder::new().spawn(move || lend_terminal(pid, &lending)));
    let last_line = Arc::new(Mutex::new(String::new()));
    let forward_stderr = |stderr: ChildStderr| {
        let last_line = Arc::clone(&last_line);
        // Reads to the end, so that the proxy never blocks on its standard error.
        thread::Builder::new().spawn(move || {
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
    };
    let stderr_thread = child.stderr.take().map(forward_stderr).transpose()?;
    let process = ProxyProcess {
        child,
        may_ask,
        last_line,
        stderr_thread,
    };
    Ok((ours.into(), process))
}

fn group_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Makes a proxy the terminal's foreground process group and continues it whenever it was stopped because it was in the
/// background (SIGTTIN, SIGTTOU). Returns when the proxy has ended.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn lend_terminal(pid: Pid, may_ask: &AtomicBool) {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    while let Ok(status) = waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED) {
        let wants_terminal = matches!(
            status,
            WaitStatus::Stopped(_, Signal::SIGTTIN | Signal::SIGTTOU)
        );
        if wants_terminal && may_ask.load(Ordering::SeqCst) {
            give_terminal_to(pid);
            let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGCONT);
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn lend_terminal(_: Pid, _: &AtomicBool) {}

fn give_terminal_to(group: Pid) {
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTTOU);
    // A process that takes the terminal back is in the background, where SIGTTOU would stop it.
    let Ok(mask) = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK) else {
        return;
    };
    if let Ok(terminal) = File::open("/dev/tty") {
        let _ = tcsetpgrp(&terminal, group);
    }
    let _ = mask.thread_set_mask();
}

impl ProxyProcess {
    /// Takes the terminal back. To be called when the connection is made or given up.
    pub(super) fn take_terminal_back(&mut self) {
        let may_ask = self.may_ask.swap(false, Ordering::SeqCst);
        let foreground = File::open("/dev/tty")
            .ok()
            .and_then(|tty| tcgetpgrp(tty).ok());
        if may_ask && foreground == Some(group_of(&self.child)) {
            give_terminal_to(getpgrp());
            // The Ctrl-C that ended the proxy was meant for us too.
            let signal = self.ended().and_then(|status| status.signal());
            if signal == Some(Signal::SIGINT as i32) {
                let _ = kill(Pid::from_raw(0), Signal::SIGINT);
            }
        }
    }

    /// The last line of the proxy's standard error, once it has ended; empty if it printed nothing.
    pub(super) fn last_line(&self) -> String {
        let deadline = Instant::now() + EXIT_WAIT_MAX;
        // A process that the proxy has left behind may hold the pipe open.
        while !self
            .stderr_thread
            .as_ref()
            .is_none_or(JoinHandle::is_finished)
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(1));
        }
        let last_line = self.last_line.lock();
        last_line.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The proxy's exit status, if it ends within `EXIT_WAIT_MAX`.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + EXIT_WAIT_MAX;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                _ => return None,
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // ESRCH means that the proxy has just ended. The pid is ours until it is reaped.
        let _ = kill(Pid::from_raw(-group_of(&self.child).as_raw()), signal);
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
