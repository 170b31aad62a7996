//! `--timeout`: jobs that are ended after a time limit.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::scratch::write_file;
use crate::harness::{Fixture, Login, Server, Site, on_two_sites, poll_until};
use crate::jobs::{STEP_TIMEOUT, keys};
use crate::kit;

/// A job that ignores TERM.
const STUBBORN: [&str; 3] = [
    "perl",
    "-e",
    "$| = 1; $SIG{TERM} = 'IGNORE'; print qq(ready\n); sleep 1 while 1",
];

on_two_sites! {
    fn a_job_is_ended_when_its_time_is_over(f: &Fixture) {
        let start = Instant::now();
        let job = f.spawn(&["--timeout", "400ms"], &["sleep", "1000"]);
        f.rsig.run(&["wait", &job]).code(143).stdout_has("ended with status 143 (TERM), timed out");
        assert!(start.elapsed() >= Duration::from_millis(400));
        f.rsig.run(&["ps", &job]).ok().stdout_has("exited 143 (TERM), timed out");
        let listed = f.rsig.run(&["ps", "--json", &job]).ok().line();
        assert_eq!(keys(listed.trim_matches(['[', ']'])).len(), 19, "{listed}");
        f.await_no_processes();

        // A stopped job too, even if no client is connected.
        let job = f.spawn(&["--timeout", "8s"], &["sleep", "1000"]);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(f.process(&job).pid), nix::sys::signal::SIGSTOP).expect("it runs");
        f.rsig.run(&["keeper", "stop", "--all"]);
        if let Some(server) = &f.server {
            server.kill_connections();
        }
        poll_until("its end is recorded", STEP_TIMEOUT, || f.has_ended(&job));
        assert!(fs::read_to_string(f.file(&job, "status")).expect("readable").starts_with("143 "));
        f.await_no_processes();
        f.rsig.run(&["ps", &job]).ok().stdout_has("timed out");
    }

    fn one_that_does_not_end_by_term_is_killed(f: &Fixture) {
        let start = Instant::now();
        let job = f.spawn(&["--timeout", "8s"], &STUBBORN);
        f.await_written(&job, "ready\n");
        f.rsig.run(&["wait", &job]).code(137).stdout_has("timed out");
        let elapsed = start.elapsed();
        assert!(elapsed >= Duration::from_secs(18), "{elapsed:?}");
        f.await_no_processes();
    }

    fn one_that_ends_in_time_leaves_no_watchdog(f: &Fixture) {
        for (command, code) in [(&["true"][..], 0), (&["sh", "-c", "sleep 0.2; exit 7"], 7), (&["sh", "-c", "kill -TERM $$"], 143)] {
            let job = f.spawn(&["--timeout", "1h"], command);
            f.rsig.run(&["wait", &job]).code(code);
            assert!(!f.rsig.run(&["ps", &job]).ok().stdout().contains("timed out"));
            f.await_no_processes();
        }
        // The watchdog does not change the signals and open files that the job gets.
        let line = "grep -E '^Sig(Ign|Blk)' /proc/self/status; ls -m /proc/self/fd; exec sleep 1000";
        let jobs = [&[][..], &["--timeout", "1h"]].map(|options| f.spawn(options, &["sh", "-c", line]));
        for job in &jobs {
            poll_until("it has looked", STEP_TIMEOUT, || f.process(job).name == "sleep");
            assert!(f.supervisor(job).cmdline.contains("supervise"));
        }
        assert_eq!(f.written(&jobs[0]), f.written(&jobs[1]));
        f.rsig.run(&["kill", "-9", "-w", "20s", &jobs[0], &jobs[1]]).ok();
        f.await_no_processes();
        // A missing command is refused as usual, and no process stays behind.
        f.rsig.run(&f.words("spawn", &["--timeout", "1h"], &["no-such-command"])).code(1).stderr_has("not found");
        f.await_no_processes();
    }

    fn a_limit_and_its_files_in_the_foreground(f: &Fixture) {
        f.rsig.run(&f.words("run", &["--keep", "--timeout", "8s"], &["sh", "-c", "echo begun; exec sleep 1000"])).code(124).stdout_is("begun\n");
        f.rsig.run(&f.words("run", &["--timeout", "1h"], &["sh", "-c", "echo done; exit 4"])).code(4).stdout_is("done\n");
        f.await_no_processes();
        let records = kit::recorded(&f.rsig);
        assert_eq!(records.len(), 1);
        assert!(f.job_ids_on_host().contains(&records[0]));
        f.rsig.run(&["ps", "-a"]).ok().stdout_has("exited 143 (TERM), timed out");
    }
}

#[test]
fn what_is_asked_of_a_limit_is_checked_first() {
    let f = crate::harness::Site::Local.start();
    for (words, said) in [
        (&["--timeout", "5"][..], "5s"),
        (&["--timeout", "soon"], "5s"),
        (&["--timeout=-1s"], "5s"),
    ] {
        f.rsig
            .run(&f.words("spawn", words, &["true"]))
            .code(2)
            .stdout_is("")
            .stderr_has(said);
    }
    // Limits that expire at once, and a limit of zero.
    for limit in ["0s", "1ms", "1ns"] {
        let job = f.spawn(&["--timeout", limit], &["sleep", "1000"]);
        f.rsig
            .run(&["wait", &job])
            .code(143)
            .stdout_has("timed out");
    }
    f.await_no_processes();
}

/// A stray signal to the watchdog changes nothing, as with the supervisor.
#[test]
fn stray_signals_do_not_end_the_watch() {
    let f = crate::harness::Site::Local.start();
    let start = Instant::now();
    let job = f.spawn(&["--timeout", "4s"], &["sleep", "1000"]);
    let (process, supervisor) = (f.process(&job), f.supervisor(&job));
    let watchdog = f
        .processes()
        .into_iter()
        .find(|other| other.ppid == supervisor.pid && other.pid != process.pid);
    let watchdog = watchdog.expect("it is beside the job");
    // The watchdog creates this file after it has set its traps.
    poll_until("its traps are set", STEP_TIMEOUT, || {
        f.file(&job, "rs_watch").exists()
    });
    for signal in [
        nix::sys::signal::SIGTERM,
        nix::sys::signal::SIGHUP,
        nix::sys::signal::SIGUSR1,
    ] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(watchdog.pid), signal).expect("it runs");
    }
    f.rsig
        .run(&["wait", &job])
        .code(143)
        .stdout_has("timed out");
    assert!(
        start.elapsed() >= Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    let value: Value = f.json(&["history", "--json", "-n", "1"]).remove(0);
    assert_eq!(
        (&value["event"], &value["timed_out"]),
        (&"end".into(), &true.into())
    );
    f.await_no_processes();
}

#[test]
fn a_host_that_allows_no_more_processes_or_files_says_so() {
    let server = Server::openssh(Login::User).start();
    let mut f = Fixture::with(Some(server));
    let job = f.spawn(&[], &["sleep", "1000"]);
    for (limit, keeper) in [("-u 1", false), ("-u 1", true), ("-n 8", true)] {
        let line = format!("ulimit {limit}\n");
        write_file(&f.job_home().join(".bashrc"), &line, 0o644);
        f.rsig.keeper = keeper;
        f.rsig.run(&["keeper", "stop", "--all"]).ok();
        for (words, code) in [
            (&["tail", "-f", &job][..], 1),
            (&["kill", &job], 1),
            (&["ps", &job], 0),
            (&f.words("run", &[], &["true"]), 125),
        ] {
            let output = f.rsig.run(words);
            output
                .code(code)
                .stderr_has("server")
                .stderr_has(&format!("ulimit {}", &limit[..2]));
        }
    }
}

#[test]
fn a_start_that_a_limit_ends_names_it() {
    let f = Site::Local.start();
    for limit in ["-f 0", "-f 1", "-f 8"] {
        let prefix = format!("sh -c 'ulimit {limit}; exec \"$@\"' sh");
        for verb in ["spawn", "run"] {
            let output = f.rsig.run(&[verb, "--prefix", &prefix, "local", "true"]);
            let code = if verb == "run" { 125 } else { 1 };
            kit::assert_clear_message(output.code(code).stdout_is("").stderr_has("ulimit -a"));
        }
        poll_until("nothing is left", STEP_TIMEOUT, || {
            f.job_ids_on_host().is_empty()
        });
    }
    f.await_no_processes();
}
