//! This machine as a host: scripts go to a `/bin/sh -s` that is a child process of the command or of a keeper.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use memchr::memmem;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

use super::openssh::Master;
use super::{Chunk, Shell, ShellInput};
use crate::error::{Failure, Kind, reason};
use crate::host::Destination;
use crate::sys;

/// Starts a shell.
pub fn shell(destination: &Destination) -> Result<Box<dyn Shell>, Failure> {
    let mut child = start(&mut command(destination), Stdio::piped).map_err(|error| {
        let program = destination.shell().first().copied().unwrap_or_default();
        let message = match error.kind() {
            ErrorKind::NotFound => {
                format!("{destination}: {program} is needed to reach it and was not found on this machine")
            }
            _ => format!(
                "{destination}: {program} can't be started: {}",
                reason(&error)
            ),
        };
        Failure::new(Kind::Failed, message)
    })?;
    let (input, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    Ok(Box::new(LocalShell {
        child,
        input: Arc::new(Mutex::new(input)),
        out,
        err,
        may_hang: destination.has_prefix(),
    }))
}

/// Starts a shell that runs a script even if this process ends. Its output is discarded.
pub fn start_script(destination: &Destination, script: &str) {
    if let Ok(mut child) = start(&mut command(destination), Stdio::null)
        && let Some(mut input) = child.stdin.take()
    {
        // A shell that has ended can't run the script.
        let _ = input.write_all(script.as_bytes());
    }
}

fn command(destination: &Destination) -> Command {
    let mut words = destination.shell().into_iter();
    let mut command = Command::new(words.next().unwrap_or("/bin/sh"));
    command.args(words);
    for (name, value) in destination.environment() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn start(command: &mut Command, output: fn() -> Stdio) -> io::Result<Child> {
    command
        // The terminal's Ctrl-C and Ctrl-Z must reach rsig only.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(output())
        .stderr(output());
    sys::process::start_clean(command);
    command.spawn()
}

/// Starts the shells of a keeper's pool, each as the command that started the keeper would have started it.
pub struct Launcher {
    destination: Destination,
    /// The connection that the shells use, if the destination is `openssh://`.
    master: Option<Master>,
    directory: PathBuf,
    mask: Mode,
}

/// The last thing that a process is sent before it is used, and the reply of its shell.
pub const READY: (&[u8], &[u8]) = (b"printf '\\001%s\\n' rsig-ready\n", b"\x01rsig-ready\n");
/// How much a prefix may print before its shell is ready, in bytes.
const NOISE_MAX: usize = 64 << 10;

impl Launcher {
    /// Records the directory and the umask of this process, which is about to leave them.
    pub fn new(destination: &Destination, master: Option<Master>) -> io::Result<Self> {
        let mask = umask(Mode::empty());
        umask(mask);
        let directory = if destination.inherits_environment() {
            std::env::current_dir()?
        } else {
            PathBuf::from("/")
        };
        Ok(Self {
            destination: destination.clone(),
            master,
            directory,
            mask,
        })
    }

    pub fn start(&self) -> io::Result<Process> {
        let mut command = match &self.master {
            Some(master) => master.shell(&self.destination),
            None => command(&self.destination),
        };
        command.current_dir(&self.directory);
        sys::process::with_umask(&mut command, self.mask);
        let mut child = start(&mut command, Stdio::piped)?;
        let process = Process {
            input: child.stdin.take(),
            out: child.stdout.take(),
            err: child.stderr.take(),
            child: Some(child),
            noise: Vec::new(),
            unread: Vec::new(),
        };
        for fd in process.fds().into_iter().flatten() {
            let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(process)
    }
}

/// A shell with non-blocking pipes.
pub struct Process {
    child: Option<Child>,
    input: Option<ChildStdin>,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    /// Output before the reply to [`READY`], and output that was received together with that reply.
    noise: Vec<u8>,
    unread: Vec<u8>,
}

impl Process {
    /// Its standard input, output and error, as far as they are open.
    pub fn fds(&self) -> [Option<BorrowedFd<'_>>; 3] {
        [
            self.input.as_ref().map(AsFd::as_fd),
            self.out.as_ref().map(AsFd::as_fd),
            self.err.as_ref().map(AsFd::as_fd),
        ]
    }

    /// Succeeds once the shell has replied to [`READY`].
    pub fn await_shell(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        while self.read(true, buffer).is_ok_and(|size| size > 0) {}
        loop {
            let size = self.read(false, buffer)?;
            self.noise
                .extend_from_slice(buffer.get(..size).unwrap_or_default());
            if let Some(at) = memmem::find(&self.noise, READY.1) {
                self.unread = self.noise.split_off(at + READY.1.len());
                self.noise = Vec::new();
                return Ok(());
            }
            if size == 0 || self.noise.len() > NOISE_MAX {
                return Err(io::Error::other("no shell was started"));
            }
        }
    }

    /// As read(2): 0 is the end of the stream.
    pub fn read(&mut self, error_stream: bool, buffer: &mut [u8]) -> io::Result<usize> {
        if !error_stream && !self.unread.is_empty() {
            let size = self.unread.len().min(buffer.len());
            for (to, from) in buffer.iter_mut().zip(self.unread.drain(..size)) {
                *to = from;
            }
            return Ok(size);
        }
        let result = match (&mut self.out, &mut self.err) {
            (Some(out), _) if !error_stream => out.read(buffer),
            (_, Some(err)) if error_stream => err.read(buffer),
            _ => Ok(0),
        };
        match result {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                Err(ErrorKind::WouldBlock.into())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(error),
            Ok(1..) => result,
            _ if error_stream => {
                self.err = None;
                Ok(0)
            }
            _ => {
                self.out = None;
                Ok(0)
            }
        }
    }

    /// Writes as much as the pipe takes. If the shell has ended, the bytes are dropped.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = match &mut self.input {
            Some(input) => input.write(bytes),
            None => Ok(bytes.len()),
        };
        match result {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                Err(ErrorKind::WouldBlock.into())
            }
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.input = None;
                Ok(bytes.len())
            }
            other => other,
        }
    }

    pub fn has_exited(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    pub fn kill(&mut self) {
        // The child leads a process group. It can't be killed if it belongs to another user.
        let group = self
            .child
            .as_ref()
            .and_then(|child| child.id().try_into().ok());
        if let Some(group) = group.map(Pid::from_raw) {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }

    pub fn close_input(&mut self) {
        self.input = None;
    }

    pub fn at_end(&self) -> bool {
        self.out.is_none() && self.err.is_none() && self.unread.is_empty()
    }

    /// Starts a thread that waits for the process, which has closed its streams and may take its time to exit.
    pub fn reap(&mut self) -> io::Result<()> {
        self.input = None;
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || child.wait())
            .map(drop)
    }
}

struct LocalShell {
    child: Child,
    input: Arc<Mutex<Option<ChildStdin>>>,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    may_hang: bool,
}

fn write(input: &Mutex<Option<ChildStdin>>, bytes: &[u8]) -> io::Result<()> {
    let mut input = input.lock().unwrap_or_else(PoisonError::into_inner);
    input
        .as_mut()
        .ok_or(ErrorKind::BrokenPipe)?
        .write_all(bytes)
}

impl Shell for LocalShell {
    fn may_hang(&self) -> bool {
        self.may_hang
    }

    fn write(&mut self, bytes: &[u8], _until: Instant) -> io::Result<()> {
        write(&self.input, bytes)
    }

    fn input(&self) -> io::Result<ShellInput> {
        let (input, heartbeat_input) = (Arc::clone(&self.input), Arc::clone(&self.input));
        Ok(ShellInput::new(
            // The last line never finds the pipe full: the script reads its input whenever its output is read.
            Box::new(move |bytes, _| write(&input, bytes)),
            Box::new(move |every| {
                let input = Arc::clone(&heartbeat_input);
                let send_heartbeats = move || {
                    loop {
                        std::thread::sleep(every);
                        if write(&input, b"\n").is_err() {
                            return;
                        }
                    }
                };
                // Without a thread, no heartbeats are sent, and the tether ends the job.
                drop(std::thread::Builder::new().spawn(send_heartbeats));
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
            // Only a stream that poll reported is read, so neither read blocks.
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

impl LocalShell {
    /// Waits for the end of the process. Returns whether it has ended, or can't be waited for.
    fn ends_within(&mut self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl Drop for LocalShell {
    /// A script ends with its input. A shell that does not end is killed, so that no process is left behind.
    fn drop(&mut self) {
        drop(
            self.input
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        (self.out, self.err) = (None, None);
        // Its last script may still be removing the files of a job.
        if !self.ends_within(Duration::from_secs(10)) {
            let group = Pid::from_raw(self.child.id().cast_signed());
            let _ = killpg(group, Signal::SIGKILL);
            // A process of another user (sudo) can't be killed, and is left.
            self.ends_within(Duration::from_millis(200));
        }
    }
}
