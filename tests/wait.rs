//! `rsig wait`: waits as long as it takes, and exits with the job's own status.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Fixture, Process, Site, on_two_sites, poll_until};
use crate::jobs::{JOB_KEYS, STEP_TIMEOUT, json_lines, keys, pick};

on_two_sites! {
    fn exits_as_the_job_does(f: &Fixture) {
        // An end by a signal can't be told from `exit 128+n`.
        let cases = [(0, ""), (3, ""), (124, ""), (125, ""), (127, ""), (137, " (KILL)"), (143, " (TERM)"), (255, "")];
        let jobs = cases.map(|(status, _)| f.spawn(&["-c"], &[&format!("exit {status}")]));
        for (job, (status, signal)) in jobs.iter().zip(cases) {
            let line = format!("{job} on {}: ended with status {status}{signal}\n", f.host);
            f.rsig.run(&["wait", job]).code(status).stdout_is(&line).stderr_is_empty();
            // Again, from the record alone.
            f.rsig.run(&["wait", "-q", job]).code(status).stdout_is("");
        }
        // Of several jobs, the last one named counts.
        f.rsig.run(&["wait", &jobs[1], &jobs[0]]).code(0);
        f.rsig.run(&["wait", &jobs[0], &jobs[1]]).code(3);
    }

    fn blocks_until_the_jobs_end_and_tells_each_as_it_ends(f: &Fixture) {
        let (slow, slow_gate) = f.spawn_gated(&["-n", "slow"], 5);
        let (fast, fast_gate) = f.spawn_gated(&[], 6);
        let start = Instant::now();
        f.rsig.run(&["wait", "--timeout", "5s", &slow, &fast]).code(124).stdout_has("still running");
        assert!(start.elapsed() >= Duration::from_secs(5));

        let mut wait = f.rsig.spawn_process(&["wait", "--json", "slow", &fast]);
        fast_gate.open();
        wait.wait_for_stdout("\n");
        assert!(!wait.has_ended());
        f.rsig.run(&["wait", "--timeout", "10ms", &slow, &fast]).code(124);
        slow_gate.open();
        let output = wait.wait();
        let told = json_lines(output.code(6).stderr_is_empty());
        let fields = |told| pick(told, ["id", "state", "exit_status"]);
        assert_eq!(fields(&told[0]), json!([fast, "exited", 6]));
        assert_eq!(fields(&told[1]), json!([slow, "exited", 5]));
        assert_eq!(keys(output.stdout().lines().next().expect("a line")), JOB_KEYS);
    }

    fn a_wait_that_is_interrupted_leaves_the_job_alone(f: &Fixture) {
        let (job, gate) = f.spawn_gated(&[], 5);
        let is_awaited = || {
            if f.rsig.keeper {
                f.rsig.run(&["keeper", "status", "--json"]).ok().stdout().contains("\"commands\":1")
            } else {
                f.processes().iter().any(|process| process.cmdline.ends_with("/bin/sh -s"))
            }
        };
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            poll_until("nothing waits on the host", STEP_TIMEOUT, || !is_awaited());
            let wait = f.rsig.spawn_process(&["wait", &job, "-v"]);
            poll_until("it waits on the host", STEP_TIMEOUT, is_awaited);
            wait.signal(signal);
            let status = wait.wait().status();
            assert!(!status.success(), "{status}");
        }
        assert_eq!(f.state(&job), "running");
        gate.open();
        f.rsig.run(&["wait", &job]).code(5);
        f.await_no_processes();
    }

    fn what_cannot_be_awaited_has_statuses_of_its_own(f: &Fixture) {
        let lost = f.spawn(&[], &["sleep", "1000"]);
        let supervisor = f.supervisor(&lost);
        for process in [supervisor, f.process(&lost)] {
            process.kill();
        }
        f.rsig.run(&["wait", &lost]).code(125).stdout_has("lost");
        f.rsig.run(&["wait", "nosuchjob"]).code(125).stdout_is("").stderr_has("nosuchjob");
        let (job, gate) = f.spawn_gated(&[], 0);
        f.rsig.run(&["wait", "--timeout", "10ms", &job, &lost, "nosuchjob"]).code(124);
        gate.open();
        f.rsig.run(&["wait", &lost, &job]).code(125);
        f.rsig.run(&["wait", &job, "nosuchjob"]).code(125);
        f.rsig.run(&["wait", "--timeout", "5", &job]).code(2).stderr_has("5s");
        f.rsig.run(&["wait"]).code(2);
    }
}

/// Waits until the shells of the last command have gone.
#[track_caller]
fn await_no_script(f: &Fixture) {
    let is_script = |process: &Process| process.cmdline.ends_with("/bin/sh -s");
    poll_until("the last command's script has gone", STEP_TIMEOUT, || {
        !f.processes().iter().any(is_script)
    });
}

/// A wait outlasts the connection it began with.
#[test]
fn a_wait_goes_on_when_its_connection_breaks() {
    let f = Site::OpenSshRoot.start();
    let server = f.server.as_ref().expect("a server");
    let (job, gate) = f.spawn_gated(&[], 9);
    await_no_script(&f);
    let mut wait = f.rsig.spawn_process(&["wait", &job]);
    poll_until("it waits on the host", STEP_TIMEOUT, || {
        f.processes()
            .iter()
            .any(|process| process.ppid != 1 && process.cmdline == "/bin/sh -s")
    });
    server.kill_connections();
    poll_until("it is connected again", STEP_TIMEOUT, || {
        !server.connections().is_empty()
    });
    assert!(!wait.has_ended());
    gate.open();
    wait.wait().code(9);
}

/// A wait outlasts the server too, within its timeout.
fn outlasts_its_server(keeper: bool) {
    let mut f = Site::OpenSshUser.start();
    f.rsig.keeper = keeper;
    let (job, gate) = f.spawn_gated(&[], 9);
    if !keeper {
        await_no_script(&f);
    }
    let wait = f.rsig.spawn_process(&["wait", &job]);
    poll_until("it waits on the host", STEP_TIMEOUT, || {
        let shells = f
            .processes()
            .iter()
            .filter(|process| process.ppid != 1 && process.cmdline == "/bin/sh -s")
            .count();
        let asked = || {
            f.rsig
                .run(&["keeper", "status", "--json"])
                .ok()
                .stdout()
                .contains("\"commands\":1")
        };
        shells > 0 && (!keeper || asked())
    });
    f.server.as_mut().expect("a server").stop();
    wait.wait_for_stderr("still waiting");
    f.rsig.run(&["wait", "--timeout", "1s", &job]).code(124);
    f.server.as_mut().expect("a server").restart();
    gate.open();
    let output = wait.wait();
    output.code(9).stderr_has("server: in contact again");
    assert_eq!(output.stderr().matches("still waiting").count(), 1);
}

#[test]
fn a_wait_outlasts_its_server() {
    outlasts_its_server(false);
}

#[test]
fn a_wait_by_a_keeper_outlasts_its_server() {
    outlasts_its_server(true);
}

#[test]
fn statuses_from_0_to_255_come_back() {
    let f = Site::Local.start();
    for status in (0..256).step_by(5) {
        let job = f.spawn(&["-c"], &[&format!("exit {status}")]);
        f.rsig.run(&["wait", "-q", &job]).code(status);
    }
}
