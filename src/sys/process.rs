//! Starting a child process that inherits nothing by accident.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

/// The highest descriptor that is closed one by one where the system has no call that closes them all.
const DESCRIPTORS: i32 = 1024;

/// Makes a child start as a login would start it: every signal at its default and none blocked (nohup, a CI runner or
/// `&` in a script may have had rsig started with some ignored), and no descriptor above standard error. Where a job runs
/// rsig, the child is not marked as one of the job's processes.
pub fn start_clean(command: &mut Command) {
    command.env_remove("RSIG_COOKIE");
    // SAFETY: the closure runs between fork and exec in the child of a process that may have threads, where only
    // async-signal-safe functions may be called (signal-safety(7)): signal, sigemptyset, sigprocmask, close and fcntl
    // are on that list, close_range is a bare system call, and nothing allocates.
    unsafe {
        command.pre_exec(|| {
            for signal in 1..=64 {
                // Refused for KILL and STOP, and for the two that the C library keeps: nothing to undo there.
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

/// Has a child start with a umask of its own.
pub fn with_umask(command: &mut Command, mask: nix::sys::stat::Mode) {
    // SAFETY: as in `start_clean`; umask is on that list.
    unsafe {
        command.pre_exec(move || {
            libc::umask(mask.bits());
            Ok(())
        });
    }
}

/// Has a child get TERM when the thread that starts it ends, as far as the system can do that.
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

/// Leaves the terminal, the process group and the directory of whoever started this process.
pub fn detach() -> io::Result<()> {
    nix::unistd::setsid()?;
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    Ok(())
}

/// Puts /dev/null in the place of the standard streams, so that nobody who reads them waits for this process.
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

/// Marks every descriptor above 2; closing them here would take the pipe by which a failed exec is reported.
unsafe fn close_on_exec() {
    // SAFETY: both calls take plain numbers and touch no memory of ours.
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
        for descriptor in 3..DESCRIPTORS {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// Whether rsig was started with a signal ignored, as nohup(1) does it.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, the call only writes the present one to where the pointer shows, and it is read only
    // when the call says that it was written.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Takes back what rsig may have inherited: with CHLD ignored, no program that it starts could be waited for (wait(2)).
pub fn be_waiting_parent() {
    // SAFETY: the default action is no handler, so nothing of ours runs in a signal's context.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// Whether rsig was started with a closed standard output.
pub fn is_stdout_closed() -> bool {
    STDOUT_CLOSED.load(Ordering::Relaxed)
}

static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before `main`, and before the standard library opens /dev/null in the place of closed standard streams.
// SAFETY: the entries of this section are called once, with C's calling convention, before `main`; this one makes a
// system call and stores a flag, and needs nothing of the standard library's runtime.
#[used]
#[cfg_attr(
    target_vendor = "apple",
    unsafe(link_section = "__DATA,__mod_init_func")
)]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static LOOK_AT_STDOUT: extern "C" fn() = {
    extern "C" fn look() {
        // SAFETY: the call takes plain numbers.
        let flags = unsafe { libc::fcntl(1, libc::F_GETFD) };
        STDOUT_CLOSED.store(flags == -1, Ordering::Relaxed);
    }
    look
};
