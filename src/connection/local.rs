//! This machine as a host: the scripts go to a `/bin/sh -s` that is a child process.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};

use super::{Chunk, Shell, ShellInput};
use crate::error::{Failure, Kind};
use crate::host::Destination;
use crate::sys;

/// A new shell.
pub fn shell(destination: &Destination) -> Result<Box<dyn Shell>, Failure> {
    let mut child = start(destination, Stdio::piped)?;
    let (input, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    Ok(Box::new(LocalShell {
        child,
        input: Arc::new(Mutex::new(input)),
        out,
        err,
    }))
}

/// Starts a shell for a script whose answer nobody reads, whatever becomes of this process.
pub fn leave_script(destination: &Destination, script: &str) {
    if let Ok(mut child) = start(destination, Stdio::null)
        && let Some(mut input) = child.stdin.take()
    {
        // A shell that is gone can run nothing.
        let _ = input.write_all(script.as_bytes());
    }
}

fn start(destination: &Destination, output: fn() -> Stdio) -> Result<Child, Failure> {
    let words = destination.shell();
    let program = words.first().copied().unwrap_or("/bin/sh");
    let failed = |error| {
        let message = format!("{destination}: {program} can't be started: {error}");
        Failure::new(Kind::Failed, message)
    };
    let mut command = Command::new(program);
    command
        .args(words.iter().skip(1))
        // A terminal's Ctrl-C and Ctrl-Z are for rsig.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(output())
        .stderr(output());
    sys::process::start_clean(&mut command);
    command.spawn().map_err(failed)
}

struct LocalShell {
    child: Child,
    input: Arc<Mutex<Option<ChildStdin>>>,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
}

fn write(input: &Mutex<Option<ChildStdin>>, bytes: &[u8]) -> io::Result<()> {
    let mut input = input.lock().unwrap_or_else(PoisonError::into_inner);
    input
        .as_mut()
        .ok_or(ErrorKind::BrokenPipe)?
        .write_all(bytes)
}

impl Shell for LocalShell {
    fn write(&mut self, bytes: &[u8], _until: Instant) -> io::Result<()> {
        write(&self.input, bytes)
    }

    fn input(&self) -> io::Result<ShellInput> {
        let (input, beaten) = (Arc::clone(&self.input), Arc::clone(&self.input));
        Ok(ShellInput::new(
            Box::new(move |bytes| write(&input, bytes)),
            Box::new(move |every| {
                let input = Arc::clone(&beaten);
                std::thread::spawn(move || {
                    loop {
                        std::thread::sleep(every);
                        if write(&input, b"\n").is_err() {
                            return;
                        }
                    }
                });
            }),
        ))
    }

    fn read(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<Chunk> {
        loop {
            let streams = [
                self.out.as_ref().map(|out| out.as_fd()),
                self.err.as_ref().map(|err| err.as_fd()),
            ];
            let mut fds: Vec<PollFd> = streams
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            if fds.is_empty() {
                return Ok(Chunk::End);
            }
            if !super::wait(&mut fds, until)? {
                return Ok(Chunk::Nothing);
            }
            let ready = |fd: &PollFd| fd.any().unwrap_or(false);
            let out_ready = self.out.is_some() && fds.first().is_some_and(ready);
            drop(fds);
            // Only what poll named is read, so neither read waits.
            if let Some(out) = self.out.as_mut().filter(|_| out_ready) {
                match out.read(buffer)? {
                    0 => self.out = None,
                    size => return Ok(Chunk::Out(size)),
                }
            } else if let Some(err) = self.err.as_mut() {
                match err.read(buffer)? {
                    0 => self.err = None,
                    size => return Ok(Chunk::Err(size)),
                }
            }
        }
    }
}

impl Drop for LocalShell {
    /// Its script ends when its input does; one that does not is ended, so that none is left behind.
    fn drop(&mut self) {
        drop(
            self.input
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        (self.out, self.err) = (None, None);
        for _ in 0..200 {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(std::time::Duration::from_millis(1)),
                _ => return,
            }
        }
        // Failure means that it ended meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
