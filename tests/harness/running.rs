//! Programs in a clean environment: starts them, talks to them, and asserts their output and status.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::poll_until;
use super::programs::program_path;
use super::tty::Tty;

/// Timeout of a program unless [`Invocation::limit`] sets another.
pub const LIMIT: Duration = Duration::from_secs(60);

pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to run, with its arguments, environment and input.
///
/// Its environment is `PATH`, `LANG=C.UTF-8`, the coverage tool's `LLVM_PROFILE_FILE` if set, and what
/// [`env`](Self::env) adds. All signals have their default action, however cargo was started (nohup, `&`, a CI runner);
/// only 32 and 33, which libc reserves, may be ignored. It starts in `/` unless [`cwd`](Self::cwd) sets another
/// directory; its stdin is /dev/null.
#[must_use = "it starts with run, start or tty"]
pub struct Invocation {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    input: Input,
    limit: Duration,
}

enum Input {
    Null,
    Open,
    Bytes(Vec<u8>),
}

impl Invocation {
    pub fn of(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            input: Input::Null,
            limit: LIMIT,
        }
    }

    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.args.push(word.as_ref().to_owned());
        self
    }

    pub fn args(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args
            .extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Adds a variable, or replaces the one of that name.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = dir.into();
        self
    }

    /// Sets its whole standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Leaves its standard input open for [`Running::write`].
    pub fn stdin_open(mut self) -> Self {
        self.input = Input::Open;
        self
    }

    /// Sets how long it may run before it is killed and the test fails.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it until it has ended and its stdout and stderr are closed. A background process that keeps one of them
    /// open would hang `$(...)` in a script; here it fails the test after the timeout.
    #[track_caller]
    pub fn run(self) -> Output {
        self.start().wait()
    }

    /// Starts it; the guard kills it on drop.
    #[track_caller]
    pub fn start(self) -> Running {
        let mut command = self.command(&[]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if matches!(self.input, Input::Null) {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{self} can't be started: {error}"));
        let stdout = Captured::from(child.stdout.take().expect("stdout is a pipe"));
        let stderr = Captured::from(child.stderr.take().expect("stderr is a pipe"));
        let mut stdin = child.stdin.take();
        let shown = self.to_string();
        if let Input::Bytes(bytes) = self.input
            && let Some(mut pipe) = stdin.take()
        {
            // A program may end without reading its input. That is not an error here.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        Running {
            child,
            shown,
            stdin,
            stdout,
            stderr,
            limit: self.limit,
        }
    }

    /// Starts it on a new terminal of this size, which becomes its controlling terminal: see [`Tty`].
    #[track_caller]
    pub fn tty(self, columns: u16, rows: u16) -> Tty {
        // setsid --ctty execs the program: the process stays the same, and leads a session on that terminal.
        let mut command = self.command(&["setsid", "--ctty"]);
        command.env("TERM", "xterm");
        Tty::start(command, self.to_string(), columns, rows, self.limit)
    }

    fn command(&self, before: &[&str]) -> Command {
        handle_ignored_signals();
        // Each of these execs the next, so the process ends up being the program.
        let mut words = before
            .iter()
            .map(OsStr::new)
            .chain([self.program.as_os_str()])
            .chain(self.args.iter().map(OsString::as_os_str));
        let mut command = Command::new(words.next().expect("there is a program"));
        command
            .args(words)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8");
        if let Some(file) = std::env::var_os("LLVM_PROFILE_FILE") {
            command.env("LLVM_PROFILE_FILE", file);
        }
        command
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(&self.cwd);
        command
    }
}

/// Handles the signals that this process inherited as ignored. In a program that this process starts, a handled signal
/// has its default action again; an ignored one would stay ignored (execve(2)). The standard library resets PIPE.
fn handle_ignored_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
        let ignored = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .expect("the mask of ignored signals");
        for number in (1..=64).filter(|number| ignored >> (number - 1) & 1 == 1) {
            if number != Signal::SIGPIPE as i32 {
                // Fails only for the signals that libc reserves.
                drop(signal_hook::flag::register(number, Arc::default()));
            }
        }
    });
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Path::new(&self.program)
            .file_name()
            .unwrap_or(&self.program);
        write!(f, "`{}", name.display())?;
        for word in &self.args {
            write!(f, " {}", word.display())?;
        }
        f.write_str("`")
    }
}

/// Words to put before a command, so that it runs with another program as this machine's `/bin/sh`.
pub fn with_system_shell(shell: &Path) -> Vec<OsString> {
    let line = r#"/bin/mount --bind "$0" "$(/usr/bin/readlink -f /bin/sh)" && exec "$@""#;
    let words = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "/bin/sh",
        "-c",
        line,
    ]
    .map(OsString::from);
    words
        .into_iter()
        .chain([shell.as_os_str().to_owned()])
        .collect()
}

/// A running program. On drop it is killed, but not its children: they are killed with their scratch directory.
pub struct Running {
    child: Child,
    shown: String,
    stdin: Option<ChildStdin>,
    stdout: Captured,
    stderr: Captured,
    limit: Duration,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Signals the process, not its group.
    ///
    /// # Panics
    /// If it has ended and was waited for.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.pid()), signal)
            .unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.shown));
    }

    /// Writes to its standard input, see [`Invocation::stdin_open`].
    #[track_caller]
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("its stdin was left open");
        stdin
            .write_all(bytes.as_ref())
            .and_then(|()| stdin.flush())
            .unwrap_or_else(|error| panic!("stdin of {}: {error}", self.shown));
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Standard output so far.
    pub fn stdout_so_far(&self) -> Vec<u8> {
        self.stdout.bytes()
    }

    /// Standard error so far.
    pub fn stderr_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }

    /// Waits until its standard output contains `text`.
    #[track_caller]
    pub fn wait_for_stdout(&self, text: &str) {
        poll_until(
            &format!("{} prints {text:?}", self.shown),
            self.limit,
            || String::from_utf8_lossy(&self.stdout.bytes()).contains(text),
        );
    }

    /// Waits until its standard error contains `text`.
    #[track_caller]
    pub fn wait_for_stderr(&self, text: &str) {
        poll_until(&format!("{} says {text:?}", self.shown), self.limit, || {
            self.stderr_so_far().contains(text)
        });
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Closes its standard input, then waits until it has ended and its output is closed.
    ///
    /// # Panics
    /// If that takes longer than the timeout. The message contains the output so far.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        self.stdin = None;
        let deadline = Instant::now() + self.limit;
        loop {
            let ended = self
                .child
                .try_wait()
                .expect("the child is ours to wait for");
            if let Some(status) = ended
                && self.stdout.is_finished()
                && self.stderr.is_finished()
            {
                return Output {
                    shown: self.shown.clone(),
                    status,
                    stdout: self.stdout.bytes(),
                    stderr: self.stderr_so_far(),
                };
            }
            if Instant::now() > deadline {
                let what = if ended.is_some() {
                    "has ended, but something else still holds its stdout or stderr"
                } else {
                    "still runs"
                };
                let stdout = String::from_utf8_lossy(&self.stdout.bytes()).into_owned();
                let stderr = self.stderr_so_far();
                panic!(
                    "{} {what} after {:?}\nstdout: {stdout}\nstderr: {stderr}",
                    self.shown, self.limit
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it was already waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program's output and exit status. The assertions return it, so they can be chained.
pub struct Output {
    shown: String,
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

impl Output {
    pub fn status(&self) -> ExitStatus {
        self.status
    }

    /// Standard output as bytes.
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// Standard output, which must be UTF-8.
    #[track_caller]
    pub fn stdout(&self) -> String {
        String::from_utf8(self.stdout.clone())
            .unwrap_or_else(|_| panic!("stdout is not UTF-8: {self}"))
    }

    /// The single line of standard output, without the newline.
    #[track_caller]
    pub fn line(&self) -> String {
        let text = self.stdout();
        match text.strip_suffix('\n') {
            Some(line) if !line.contains('\n') => line.to_owned(),
            _ => panic!("stdout is not one line: {self}"),
        }
    }

    pub fn stderr(&self) -> &str {
        &self.stderr
    }

    /// Asserts exit status 0.
    #[track_caller]
    pub fn ok(&self) -> &Self {
        self.code(0)
    }

    /// Asserts an exit status. A process ended by a signal has none.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Asserts that a signal ended the process.
    #[track_caller]
    pub fn ended_by(&self, signal: Signal) -> &Self {
        assert_eq!(self.status.signal(), Some(signal as i32), "{self}");
        self
    }

    #[track_caller]
    pub fn stdout_is(&self, text: &str) -> &Self {
        assert_eq!(self.stdout(), text, "{self}");
        self
    }

    #[track_caller]
    pub fn stdout_has(&self, text: &str) -> &Self {
        assert!(
            self.stdout_text().contains(text),
            "stdout lacks {text:?}: {self}"
        );
        self
    }

    #[track_caller]
    pub fn stderr_has(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "stderr lacks {text:?}: {self}");
        self
    }

    #[track_caller]
    pub fn stderr_lacks(&self, text: &str) -> &Self {
        assert!(!self.stderr.contains(text), "stderr has {text:?}: {self}");
        self
    }

    #[track_caller]
    pub fn stderr_is_empty(&self) -> &Self {
        assert!(self.stderr.is_empty(), "{self}");
        self
    }

    fn stdout_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.shown,
            self.status,
            self.stdout_text(),
            self.stderr
        )
    }
}

/// Bytes that a thread reads until the other side closes.
#[derive(Clone)]
pub struct Captured(Arc<Mutex<Stream>>);

#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    finished: bool,
}

impl Captured {
    pub fn from(mut source: impl Read + Send + 'static) -> Self {
        let captured = Self(Arc::default());
        let stream = captured.clone();
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            // A terminal whose other side was closed gives EIO, so every error counts as the end.
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                stream.lock().bytes.extend_from_slice(&buffer[..count]);
            }
            stream.lock().finished = true;
        });
        captured
    }

    /// A copy of the bytes read so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    pub fn is_finished(&self) -> bool {
        self.lock().finished
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
