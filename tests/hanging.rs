//! A host behind a program that hangs silently, as podman-exec(1) and docker-exec(1) sometimes do when their container
//! is restarted. SIGSTOP simulates this: nothing is read or written any more, and no stream ends.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::harness::{Process, Rsig, STEP_TIMEOUT, poll_until};

/// A prefix, so that there is a program in front of the shell.
const PREFIX: [&str; 2] = ["--prefix", "env BEHIND=1"];

fn rsig(keeper: bool) -> Rsig {
    let mut rsig = Rsig::new();
    rsig.keeper = keeper;
    rsig.clock = 3;
    rsig
}

/// Stops the shells of keepers and commands, and returns them.
fn hang(rsig: &Rsig) -> Vec<Process> {
    let processes = rsig.processes();
    let is_rsig = |pid: i32| {
        let mut rsig = processes.iter().filter(|process| process.name == "rsig");
        rsig.any(|process| process.pid == pid)
    };
    let mut shells: Vec<Process> = processes
        .iter()
        .filter(|process| process.cmdline == "/bin/sh -s" && is_rsig(process.ppid))
        .cloned()
        .collect();
    assert!(!shells.is_empty(), "{processes:?}");
    // Each leads a process group. One of a private keeper may be ending.
    shells
        .retain(|shell| shell.runs() && killpg(Pid::from_raw(shell.pid), Signal::SIGSTOP).is_ok());
    assert!(!shells.is_empty());
    shells
}

fn spawn(rsig: &Rsig, line: &str) -> String {
    let words = [&["spawn"][..], &PREFIX, &["-c", "local", line]].concat();
    rsig.run(&words).ok().line()
}

fn await_gone(shells: &[Process]) {
    poll_until("the hanging shells are gone", STEP_TIMEOUT, || {
        !shells.iter().any(Process::runs)
    });
}

/// Number of private keepers through which a job is followed. Their sockets' names begin with `p`; the script that
/// follows, in a child of its shell, sleeps between two looks.
fn private_followers(rsig: &Rsig) -> usize {
    let all = rsig.processes();
    let parent = |of: &Process| all.iter().find(|one| one.pid == of.ppid);
    let is_private = |one: &&Process| {
        let socket = one.cmdline.rsplit('/').next();
        one.cmdline.contains("keeper-serve") && socket.is_some_and(|name| name.starts_with('p'))
    };
    let is_follower = |keeper: &&Process| {
        let mut sleeps = all.iter().filter(|one| one.name == "sleep");
        sleeps.any(|sleep| {
            let shells = std::iter::successors(parent(sleep), |&one| {
                parent(one).filter(|_| one.cmdline == "/bin/sh -s")
            });
            shells.last().is_some_and(|last| last.pid == keeper.pid)
        })
    };
    all.iter().filter(is_private).filter(is_follower).count()
}

/// However many signals are on their way to a host that hangs, the run ends in time.
#[test]
fn signals_to_a_host_that_hangs_do_not_hold_up_the_end() {
    let mut rsig = Rsig::new();
    rsig.keeper = true;
    let prefix = r#"sh -c 'if [ -e hangs ]; then exec sleep 1000; fi; exec "$@"' sh"#;
    let words = [
        "run",
        "--grace",
        "1s",
        "--prefix",
        prefix,
        "-c",
        "local",
        "echo up; sleep 1000",
    ];
    let run = rsig.spawn_process(&words);
    run.wait_for_stdout("up\n");
    fs::write(rsig.home().join("hangs"), "").expect("our own directory");
    hang(&rsig);
    let start = Instant::now();
    for _ in 0..3 {
        run.signal(Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(600));
    }
    run.wait().code(143).stderr_has("how it ended is not known");
    // 1 s of grace and 15 s for a connection. Each of the signals waits for as long.
    assert!(start.elapsed() < Duration::from_secs(28));
}

#[test]
fn a_shell_that_hangs_is_not_used() {
    let rsig = rsig(true);
    let counted = rsig.home().join("counted");
    let job = spawn(&rsig, "echo x >>counted; exec sleep 1000");
    let hung = hang(&rsig);
    spawn(&rsig, "echo x >>counted; exec sleep 1000");
    poll_until("both have run", STEP_TIMEOUT, || {
        fs::read_to_string(&counted).is_ok_and(|text| text == "x\nx\n")
    });
    await_gone(&hung);
    let hung = hang(&rsig);
    rsig.run(&["kill", &job, "--wait", "30s"]).ok();
    await_gone(&hung);
    let hung = hang(&rsig);
    rsig.run(&["ps"]).ok().stdout_has("running");
    await_gone(&hung);
    rsig.run(&["stop", "--all", "--yes"]).ok();
}

#[test]
fn a_keeper_leaves_no_process_that_hangs() {
    let rsig = rsig(true);
    let job = spawn(&rsig, "exec sleep 1000");
    let hung = hang(&rsig);
    rsig.run(&["keeper", "stop", "--all"]).ok();
    await_gone(&hung);
    rsig.run(&["stop", &job]).ok();
}

#[test]
fn what_follows_goes_on_when_its_shell_hangs() {
    for keeper in [true, false] {
        let rsig = rsig(keeper);
        let go = rsig.home().join("go");
        let line = "echo first; until [ -e go ]; do sleep 0.05; done; echo second; exit 7";
        let job = spawn(&rsig, line);
        let follower = rsig.spawn_process(&["tail", "-f", &job]);
        follower.wait_for_stdout("first\n");
        let words = [&["run"][..], &PREFIX, &["-c", "local", line]].concat();
        let run = rsig.spawn_process(&words);
        run.wait_for_stdout("first\n");
        // After two seconds, the streams move to private keepers. None must be between two shells.
        if keeper {
            poll_until("both have moved", STEP_TIMEOUT, || {
                private_followers(&rsig) == 2
            });
        }
        hang(&rsig);
        run.wait_for_stderr("connecting again");
        follower.wait_for_stderr("connecting again");
        run.wait_for_stderr("connected again");
        fs::write(&go, "").expect("our own directory");
        run.wait().code(7).stdout_is("first\nsecond\n");
        follower.wait().ok().stdout_is("first\nsecond\n");
        rsig.run(&["wait", &job]).code(7);
    }
}

#[test]
fn a_wait_notices_that_its_shell_hangs() {
    for keeper in [true, false] {
        let mut rsig = rsig(keeper);
        rsig.clock = 2;
        let job = spawn(&rsig, "until [ -e go ]; do sleep 0.05; done; exit 7");
        let wait = rsig.spawn_process(&["wait", &job]);
        poll_until("its shell waits", STEP_TIMEOUT, || {
            let all = rsig.processes();
            let is_shell = |pid| {
                all.iter()
                    .any(|one| one.pid == pid && one.cmdline == "/bin/sh -s")
            };
            all.iter()
                .any(|one| one.name == "sleep" && is_shell(one.ppid))
        });
        hang(&rsig);
        let start = Instant::now();
        fs::write(rsig.home().join("go"), "").expect("our own directory");
        wait.wait().code(7).stdout_has("status 7");
        assert!(start.elapsed() < Duration::from_secs(16), "{keeper}");
    }
}
