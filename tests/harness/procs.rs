//! Running processes, and which of them belong to a directory or user of the tests.
//!
//! A process belongs to a directory if one of these is inside it: a value in the process's environment (HOME, for
//! example), its working directory, an open file. A process also belongs if it runs as the throwaway user, or descends
//! from one that belongs. One mark alone is not enough: sshd overwrites its environment with its title, a keeper has no
//! file open and works in `/`, and a container's root (no `CAP_SYS_PTRACE`) can read nothing but the user of another
//! user's process. Zombies do not count.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{STEP_TIMEOUT, poll_until};

/// A process as shown in /proc, proc(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub ppid: i32,
    pub uid: u32,
    /// The kernel's name for the process, at most 15 bytes: the program's name, unless the process changed it.
    pub name: String,
    /// Arguments, joined with spaces.
    pub cmdline: String,
    state: char,
    start_time: u64,
}

impl Process {
    /// Finds the process with this id. None if it has ended.
    pub fn find(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let (head, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let uid = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:\t"))?
            .split('\t')
            .next()?;
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        let process = Self {
            pid,
            ppid: fields.get(1)?.parse().ok()?,
            uid: uid.parse().ok()?,
            name: head.split_once('(')?.1.to_owned(),
            cmdline: cmdline.trim_end().to_owned(),
            state: fields.first()?.chars().next()?,
            start_time: fields.get(19)?.parse().ok()?,
        };
        (!matches!(process.state, 'Z' | 'X')).then_some(process)
    }

    /// Whether this same process still runs: same id, same start time.
    pub fn runs(&self) -> bool {
        Self::find(self.pid).is_some_and(|now| now.start_time == self.start_time)
    }

    /// Signals this process, not its group.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        assert!(
            self.signal_if_runs(signal),
            "{signal} to {self}: it has ended"
        );
    }

    /// Signals this process if it still runs. While many tests run, the number of one that has ended is soon another's.
    pub fn signal_if_runs(&self, signal: Signal) -> bool {
        self.runs() && kill(Pid::from_raw(self.pid), signal).is_ok()
    }

    /// Kills it and waits until it is gone.
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        poll_until("it is gone", STEP_TIMEOUT, || !self.runs());
    }

    /// Whether a signal has stopped the process.
    pub fn is_stopped(&self) -> bool {
        self.state == 'T'
    }

    fn bears_mark_of(&self, dir: &Path) -> bool {
        let proc = format!("/proc/{}", self.pid);
        let proc = Path::new(&proc);
        let path_within =
            |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
        // A thread of this test process may be between fork and exec and still have our files open.
        if fs::read_link(proc.join("exe"))
            .is_ok_and(|exe| Some(exe) == std::env::current_exe().ok())
        {
            return false;
        }
        let named = match fs::read(proc.join("environ")) {
            Ok(environ) => environ.split(|&byte| byte == 0).any(|entry| {
                let value = entry
                    .splitn(2, |&byte| byte == b'=')
                    .nth(1)
                    .unwrap_or_default();
                Path::new(OsStr::from_bytes(value)).starts_with(dir)
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self
                .cmdline
                .split(' ')
                .any(|word| Path::new(word).starts_with(dir)),
            Err(_) => false,
        };
        named
            || path_within(&proc.join("cwd"))
            || fs::read_dir(proc.join("fd"))
                .is_ok_and(|files| files.flatten().any(|file| path_within(&file.path())))
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (of {}, uid {}, {}): {}",
            self.pid, self.ppid, self.uid, self.state, self.cmdline
        )?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        for mask in ["ShdPnd", "SigBlk", "SigIgn"] {
            let line = status.lines().find(|line| line.starts_with(mask));
            write!(f, " {}", line.unwrap_or_default())?;
        }
        Ok(())
    }
}

/// All processes that have not ended.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is there");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Process::find)
        .collect()
}

/// Processes that belong to `dir` or to `user`, without this one.
pub fn belonging_to(dir: &Path, user: Option<u32>) -> Vec<Process> {
    let myself = std::process::id().cast_signed();
    let (mut ours, mut others): (Vec<_>, Vec<_>) = all()
        .into_iter()
        .filter(|process| process.pid != myself)
        .partition(|process| Some(process.uid) == user || process.bears_mark_of(dir));
    // The number of one that has ended meanwhile may be that of another test's process, with children.
    let pids = |processes: &[Process]| -> HashSet<i32> {
        let running = processes.iter().filter(|process| process.runs());
        running.map(|process| process.pid).collect()
    };
    let mut parents = pids(&ours);
    loop {
        let (children, rest): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|process| parents.contains(&process.ppid));
        if children.is_empty() {
            return ours;
        }
        parents = pids(&children);
        ours.extend(children);
        others = rest;
    }
}

/// Sends SIGKILL to what `find` returns until it returns nothing. If processes still survive after `limit`, returns
/// them as the error.
pub fn kill_until_none(
    limit: Duration,
    find: impl Fn() -> Vec<Process>,
) -> Result<(), Vec<Process>> {
    // Starts after the first call, which may take long on a busy machine.
    let mut deadline = None;
    loop {
        let found = find();
        if found.is_empty() {
            return Ok(());
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + limit);
        if Instant::now() > deadline {
            return Err(found);
        }
        for process in &found {
            // A survivor shows up in the next round.
            process.signal_if_runs(Signal::SIGKILL);
        }
        while Instant::now() < deadline && found.iter().any(Process::runs) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// One process per line, for a failed assertion.
pub fn listing(processes: &[Process]) -> String {
    processes
        .iter()
        .map(Process::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}
