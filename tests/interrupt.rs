//! Signals that end a command, including as the first process of a container and while a start is in progress.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::procs::all;
use crate::harness::{Direction, Fixture, Proxy, Running, Site, idle_shells, poll_until, tool};
use crate::jobs::STEP_TIMEOUT;
use crate::keepers::keeper_pids;
use crate::kit::{FixedReply, FixedServer, config_for, interrupted, recorded};

/// How long an interrupted command may take: less than to wait for a connection (15 s).
const END_MAX: Duration = Duration::from_secs(14);

/// rsig as the first process of a PID namespace.
fn as_first_process(f: &Fixture, words: &[&str]) -> Running {
    let unshare = tool("unshare").args(["--fork", "--pid", "--mount-proc"]);
    f.rsig
        .within(unshare.arg(env!("CARGO_BIN_EXE_rsig")).args(words))
        .stdin_open()
        .start()
}

#[test]
fn the_first_process_of_a_container_ends_by_signals() {
    let f = Site::OpenSshUser.start();
    let job = f.spawn(
        &[],
        &["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"],
    );
    f.server.as_ref().expect("a server").kill_connections();
    let silent = FixedServer::start(FixedReply::Once(vec![]));
    let config = config_for(&f.rsig, "silent", silent.port(), "");
    let cases: [(&[&str], Signal, i32); 7] = [
        (&["wait", &job], Signal::SIGINT, 130),
        (&["wait", &job], Signal::SIGTERM, 143),
        (&["tail", "-f", &job], Signal::SIGTERM, 143),
        (&["kill", "--wait", "60s", &job], Signal::SIGINT, 130),
        (
            &["ps", "-F", &config, "--host", "silent", "--discover"],
            Signal::SIGTERM,
            143,
        ),
        (
            &["spawn", "-F", &config, "silent", "true"],
            Signal::SIGINT,
            130,
        ),
        (&["mcp"], Signal::SIGTERM, 143),
    ];
    for (words, signal, status) in cases {
        let mut running = as_first_process(&f, words);
        let mut first = None;
        poll_until("it handles signals", STEP_TIMEOUT, || {
            first = all()
                .into_iter()
                .find(|process| process.ppid == running.pid() && process.name == "rsig");
            let caught = |pid: i32| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
                let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
                mask.is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
            };
            first.as_ref().is_some_and(|process| caught(process.pid))
        });
        assert!(!running.has_ended(), "{words:?}");
        let begun = Instant::now();
        first.expect("it was found").signal(signal);
        poll_until("it ends", STEP_TIMEOUT, || running.has_ended());
        running.wait().code(status);
        assert!(begun.elapsed() < END_MAX, "{words:?}");
    }
}

/// Starts a job over a connection that hangs from the moment the start is sent.
fn stuck_spawn(f: &Fixture, proxy: &Proxy) -> Running {
    let server = f.server.as_ref().expect("a server");
    poll_until("a shell waits", STEP_TIMEOUT, || {
        !idle_shells(&server.processes()).is_empty()
    });
    proxy.hold_both();
    let passed = proxy.bytes(Direction::ToServer);
    let arrived = proxy.arrived(Direction::ToServer);
    let line = ": >started; exec sleep 1000";
    let spawn = f
        .rsig
        .spawn_process(&f.words("spawn", &["-n", "stuck", "-c"], &[line]));
    // Data that is sent waits in the proxy.
    poll_until("the job is recorded", STEP_TIMEOUT, || {
        !recorded(&f.rsig).is_empty()
    });
    // A start has more bytes than this, and what a keeper may send for the relay of an earlier job has fewer.
    poll_until("its start is sent", STEP_TIMEOUT, || {
        proxy.arrived(Direction::ToServer) > arrived + 6000
    });
    assert_eq!(passed, proxy.bytes(Direction::ToServer));
    spawn
}

#[test]
fn an_interrupted_spawn_says_what_may_still_start() {
    let f = Site::OpenSshUser.start_with_keeper();
    let (f, proxy) = f.through_proxy();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        f.rsig.run(&f.words("spawn", &[], &["true"])).ok();
        f.rsig.run(&["rm", "--lost", "--force", "--all"]);
        f.await_no_processes();
        for id in recorded(&f.rsig) {
            f.rsig.run(&["wait", &id]);
            f.rsig.run(&["rm", &id]).ok();
        }
        let spawn = stuck_spawn(&f, &proxy);
        let begun = Instant::now();
        spawn.signal(signal);
        let output = spawn.wait();
        assert!(begun.elapsed() < END_MAX);
        assert!(signal != Signal::SIGINT || interrupted(output.status()));
        let id = recorded(&f.rsig).pop().expect("it may start");
        output
            .stdout_is("")
            .stderr_has(&id)
            .stderr_has("may still start")
            .stderr_has("rsig stop");
        // The keeper cancels the start as soon as it can.
        proxy.release();
        poll_until("it has gone", Duration::from_secs(30), || {
            ["lost", "exited"].contains(&f.state(&id).as_str())
        });
        f.await_no_processes();
        f.rsig.run(&["rm", &id]).ok();
    }
}

#[test]
fn a_spawn_that_is_interrupted_while_it_connects_starts_nothing() {
    let (f, proxy) = Site::OpenSshUser.start().through_proxy();
    proxy.hold_both();
    for (words, signal) in [
        (&["-n", "a"][..], Signal::SIGINT),
        (&["-n", "a"], Signal::SIGTERM),
        (&[], Signal::SIGHUP),
    ] {
        let spawn = f
            .rsig
            .spawn_process(&f.words("spawn", words, &["touch", "started"]));
        poll_until("the job is recorded", STEP_TIMEOUT, || {
            !recorded(&f.rsig).is_empty()
        });
        spawn.signal(signal);
        spawn.wait().stdout_is("").stderr_is_empty();
        assert_eq!(recorded(&f.rsig), Vec::<String>::new());
    }
    proxy.release();
    f.rsig.run(&f.words("spawn", &["-n", "a"], &["true"])).ok();
    assert!(!f.job_home().join("started").exists());
}

/// A prefix that creates the file `asked` before it passes a script on, and waits for the file `go`.
const SLOW_PREFIX: &str = r#"sh -c 'while IFS= read -r line; do
    case $line in rs_nonce=*) : >"$HOME/asked"; until [ -e "$HOME/go" ]; do sleep 0.02; done ;; esac
    printf "%s\n" "$line"
done | "$@"' sh"#;

#[test]
fn a_start_behind_a_slow_prefix_is_cancelled() {
    let f = Site::Local.start();
    let words = ["spawn", "--prefix", SLOW_PREFIX, "local", "sleep", "1000"];
    let spawn = f.rsig.spawn_process(&words);
    poll_until("the host was asked", STEP_TIMEOUT, || {
        f.job_home().join("asked").exists()
    });
    spawn.signal(Signal::SIGTERM);
    let output = spawn.wait();
    let id = recorded(&f.rsig).pop().expect("it may start");
    output.stdout_is("").stderr_has(&id);
    // The keeper kills its shells in the end, at worst while one is starting the job.
    poll_until("its keeper has ended", STEP_TIMEOUT, || {
        keeper_pids(&f).is_empty()
    });
    fs::write(f.job_home().join("go"), "").expect("the home is writable");
    poll_until("it has gone", STEP_TIMEOUT, || {
        ["lost", "exited"].contains(&f.state(&id).as_str())
    });
    f.await_no_processes();
}

/// A setsid(1) for which a supervisor takes its time: it creates the file `asked`, and waits for the file `go`.
const SLOW_SETSID: &str = r#"#!/bin/sh
PATH=${PATH#*:}
wait=
case $* in *supervise*) wait=': >"$HOME/asked"; until [ -e "$HOME/go" ]; do sleep 0.02; done;' ;; esac
exec setsid sh -c "$wait"' exec "$@"' sh "$@"
"#;

#[test]
fn a_job_that_begins_after_its_start_was_cancelled_does_not_run() {
    let f = Site::OpenSshUser.start_with_keeper();
    let bin = f.job_home().join("slow");
    fs::create_dir(&bin).expect("our own directory");
    let write = tool("sh").args(["-c", "cat >\"$0\"; chmod 755 \"$0\""]);
    let write = write.arg(bin.join("setsid")).stdin(SLOW_SETSID);
    write.run().ok();
    let path = std::env::var("PATH").expect("a path");
    let prefix = format!("env PATH={}:{path}", bin.display());
    let line = ": >ran; exec sleep 1000";
    let words = f.words("spawn", &["--prefix", &prefix, "-c"], &[line]);
    let spawn = f.rsig.spawn_process(&words);
    poll_until("the host was asked", STEP_TIMEOUT, || {
        f.job_home().join("asked").exists()
    });
    spawn.signal(Signal::SIGTERM);
    spawn.wait().stdout_is("");
    let mut jobs = fs::read_dir(f.jobs_dir()).expect("it was created");
    let dir = jobs.next().expect("a job").expect("readable").path();
    poll_until("it is cancelled", STEP_TIMEOUT, || {
        dir.join("cancelled").exists()
    });
    fs::write(f.job_home().join("go"), "").expect("the home is writable");
    f.await_no_processes();
    assert!(!f.job_home().join("ran").exists());
}

#[test]
fn an_id_that_can_not_be_printed_is_on_standard_error() {
    let f = Site::Local.start();
    let spawn = format!("{} spawn local true", env!("CARGO_BIN_EXE_rsig"));
    // The id would fit into the pipe of a reader that has not ended yet.
    let to_nobody = format!(
        "{{ until [ -e gone ]; do sleep 0.01; done; {spawn}; }} | {{ exec <&-; : >gone; }}"
    );
    for (line, status) in [
        (format!("{spawn} >/dev/full"), 1),
        (format!("{spawn} >&-"), 1),
        (to_nobody, 141),
    ] {
        let line = format!("set -o pipefail; {line}");
        let output = f.rsig.within(tool("bash").args(["-c", &line])).run();
        let id = recorded(&f.rsig).pop().expect("it was started");
        output.code(status).stdout_is("").stderr_has(&id);
        f.rsig.run(&["wait", &id]).ok();
        f.rsig.run(&["rm", &id]).ok();
    }
}

#[test]
fn output_that_can_not_be_printed_is_not_success() {
    let f = Site::Local.start();
    let program = env!("CARGO_BIN_EXE_rsig");
    let job = f.spawn(&[], &["echo", "out"]);
    f.rsig.run(&["wait", &job]).ok();
    let (tail, follow) = (format!("tail {job}"), format!("tail -f {job}"));
    for to in [">/dev/full", ">&-"] {
        for (words, status) in [(&*tail, 1), (&follow, 1), ("run local echo out", 125)] {
            let line = format!("{program} {words} {to}");
            let output = f.rsig.within(tool("bash").args(["-c", &line])).run();
            output
                .code(status)
                .stderr_has("standard output can't be written");
        }
    }
}
