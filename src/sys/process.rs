//! Process setup: children that inherit nothing by accident, detaching, and the state that rsig itself inherited.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

/// Where no system call covers all descriptors at once, only those below this are marked, one by one.
const DESCRIPTOR_LIMIT: i32 = 1024;

/// Makes a child start as from a login: every signal at its default and none blocked (nohup, a CI runner or `&` in a
/// script may have started rsig with some ignored), and no descriptor above standard error. If rsig itself runs inside
/// a job, the child is not marked as one of the job's processes.
pub fn start_clean(command: &mut Command) {
    command.env_remove("RSIG_COOKIE");
    // SAFETY: the closure runs between fork and exec in the child of a process that may have threads, where only
    // async-signal-safe functions may be called (signal-safety(7)): signal, sigemptyset, sigprocmask, close and fcntl
    // are on that list, close_range is a bare system call, and nothing allocates.
    unsafe {
        command.pre_exec(|| {
            for signal in 1..=64 {
                // Fails for KILL, STOP and the two signals that the C library reserves: nothing to reset there.
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            close_on_exec();
            Ok(())
        });
    }
}

/// Makes a child start with the umask `mask`.
pub fn with_umask(command: &mut Command, mask: nix::sys::stat::Mode) {
    // SAFETY: as in `start_clean`; umask is on that list.
    unsafe {
        command.pre_exec(move || {
            libc::umask(mask.bits());
            Ok(())
        });
    }
}

/// Makes a child receive TERM when the thread that starts it ends (Linux only).
pub fn end_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: as in `start_clean`; prctl is a bare system call that takes plain numbers.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Leaves the terminal, the process group and the directory in which this process was started, and sets the umask to
/// 077.
pub fn detach() -> io::Result<()> {
    nix::unistd::setsid()?;
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    Ok(())
}

/// Replaces the standard streams with /dev/null, so that a program that reads them does not wait for this process.
pub fn close_standard_streams() -> io::Result<()> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Marks every descriptor above 2 close-on-exec. Closing them here would close the pipe that reports a failed exec.
unsafe fn close_on_exec() {
    // SAFETY: both calls take plain numbers and access no memory of ours.
    unsafe {
        #[cfg(target_os = "linux")]
        if libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) == 0
        {
            return;
        }
        for descriptor in 3..DESCRIPTOR_LIMIT {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// Whether rsig was started with `signal` ignored, as by nohup(1).
pub fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, the call only writes the current one through the pointer, and it is read only if
    // the call succeeded.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Resets an inherited disposition: with CHLD ignored, rsig could not wait for its children (wait(2)).
pub fn reset_sigchld() {
    // SAFETY: the default action is not a handler, so none of our code runs in signal context.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// Whether rsig was started with its standard output closed.
pub fn is_stdout_closed() -> bool {
    STDOUT_CLOSED.load(Ordering::Relaxed)
}

static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before `main`, and before the standard library opens /dev/null in place of closed standard streams.
// SAFETY: the entries of this section are called once, with C's calling convention, before `main`; this one makes a
// system call and stores a flag, and does not need the standard library's runtime.
#[used]
#[cfg_attr(
    target_vendor = "apple",
    unsafe(link_section = "__DATA,__mod_init_func")
)]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static CHECK_STDOUT: extern "C" fn() = {
    extern "C" fn check() {
        // SAFETY: the call takes plain numbers.
        let flags = unsafe { libc::fcntl(1, libc::F_GETFD) };
        STDOUT_CLOSED.store(flags == -1, Ordering::Relaxed);
    }
    check
};
