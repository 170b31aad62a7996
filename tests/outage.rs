//! `rsig wait` while its host can't be reached: it keeps waiting, and says so once.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Fixture, Login, Rsig, Running, Server, Site, poll_until};

use crate::jobs::{STEP_TIMEOUT, json_lines};
use crate::kit::{FixedReply, FixedServer, config_for, interrupted, record_on};

fn stop_server(f: &mut Fixture) {
    f.server.as_mut().expect("a server").stop();
}

fn restart_server(f: &mut Fixture) {
    f.server.as_mut().expect("a server").restart();
}

/// Asserts that the command says once that it is waiting, and once that the host is in contact again.
#[track_caller]
fn assert_said_once(stderr: &str) {
    for said in ["still waiting", "in contact again"] {
        assert_eq!(stderr.matches(said).count(), 1, "{stderr}");
    }
}

#[test]
fn a_wait_begins_before_its_host_is_there() {
    let mut f = Site::OpenSshUser.start();
    let (job, gate) = f.spawn_gated(&[], 5);
    let here = f.rsig.run(&["spawn", "-c", "local", "exit 3"]).ok().line();
    let there = format!("server/{job}");
    stop_server(&mut f);
    let one = f.rsig.spawn_process(&["wait", &job]);
    let both = f.rsig.spawn_process(&["wait", "--json", &here, &job]);
    let by_host = f
        .rsig
        .command(&["wait", "--timeout", "60s"])
        .args(&f.connect)
        .arg(&there)
        .env("RSIG_STATE_DIR", f.rsig.dir().join("other-state"))
        .start();
    // Ends that can be learned are reported meanwhile, and one is enough for --any.
    both.wait_for_stdout(&here);
    f.rsig.run(&["wait", "--any", &job, &here]).code(3);
    for wait in [&one, &both, &by_host] {
        wait.wait_for_stderr("still waiting");
    }
    restart_server(&mut f);
    gate.open();
    for wait in [one, both, by_host] {
        let output = wait.wait();
        assert_said_once(output.code(5).stderr());
    }
}

#[test]
fn the_time_runs_out_while_a_host_is_gone() {
    let mut f = Site::OpenSshUser.start();
    let (job, _gate) = f.spawn_gated(&[], 0);
    let lost = f.spawn(&[], &["sleep", "1000"]);
    for process in [f.supervisor(&lost), f.process(&lost)] {
        process.kill();
    }
    f.rsig.run(&["wait", &lost]).code(125);
    stop_server(&mut f);
    let output = f.rsig.run(&["wait", "--json", "--timeout", "5s", &job]);
    assert_eq!(json_lines(output.code(124))[0]["state"], "unknown");
    output.stderr_has("still waiting").stderr_has("not known");
    for words in [&["--any"][..], &["-q"]] {
        let wait = f.rsig.command(&["wait", "--timeout", "500ms", &job, &lost]);
        wait.args(words).run().code(124).stdout_is("");
    }
}

#[test]
fn a_silent_host_keeps_no_wait_beyond_its_time() {
    let rsig = Rsig::new();
    let silent = FixedServer::start(FixedReply::Once(vec![]));
    let config = config_for(&rsig, "silent", silent.port(), "");
    record_on(&rsig, "00000000", "silent", &config);
    let start = Instant::now();
    rsig.run(&["wait", "--timeout", "500ms", "00000000"])
        .code(124)
        .stderr_has("not known");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_login_that_is_refused_and_a_name_that_does_not_exist_end_a_wait() {
    let server = Server::openssh(Login::User).start();
    let rsig = Rsig::new();
    let file = |name: &str, lines: &str| {
        let path = rsig.dir().join(name);
        let own = fs::read_to_string(server.ssh_config(name)).expect("a configuration");
        fs::write(&path, format!("Host {name}\n{lines}\n{own}")).expect("a directory of ours");
        path.into_os_string().into_string().expect("UTF-8")
    };
    let none = rsig.dir().join("none");
    let cases = [
        ("keyless", "User nobody-here".to_owned()),
        ("strange", format!("UserKnownHostsFile {}", none.display())),
        ("nameless", "HostName nowhere.invalid".to_owned()),
        ("behind", "ProxyJump nowhere.invalid".to_owned()),
    ];
    for (number, (name, lines)) in cases.into_iter().enumerate() {
        let id = format!("0000000{number}");
        record_on(&rsig, &id, name, &file(name, &lines));
        let output = rsig.run(&["wait", &id]);
        output.code(255).stderr_has(name).stderr_lacks("waiting");
    }
}

#[test]
fn a_signal_ends_a_wait_for_a_host_that_is_gone() {
    let rsig = Rsig::new();
    let silent = FixedServer::start(FixedReply::Once(vec![]));
    let config = config_for(&rsig, "silent", silent.port(), "");
    record_on(&rsig, "00000000", "silent", &config);
    let config = config_for(&rsig, "closed", 1, "");
    record_on(&rsig, "00000001", "closed", &config);
    let is_asked = |wait: &Running, job: &str| {
        if job == "00000001" {
            wait.wait_for_stderr("still waiting");
        } else {
            poll_until("it connects", STEP_TIMEOUT, || rsig.processes().len() > 1);
        }
    };
    for (job, signal) in [
        ("00000000", Signal::SIGINT),
        ("00000001", Signal::SIGINT),
        ("00000001", Signal::SIGTERM),
    ] {
        let wait = rsig.spawn_process(&["wait", job]);
        is_asked(&wait, job);
        let start = Instant::now();
        wait.signal(signal);
        let status = wait.wait().status();
        // Less than to wait for a connection, 15 s.
        assert!(start.elapsed() < Duration::from_secs(14));
        assert!(signal != Signal::SIGINT || interrupted(status), "{status}");
    }
}

#[test]
fn a_wait_outlasts_a_home_that_is_not_mounted() {
    let f = Site::Local.start();
    let (job, gate) = f.spawn_gated(&[], 6);
    let other = f.spawn(&["-c"], &["exit 2"]);
    let (jobs, aside) = (f.jobs_dir(), f.job_home().join("aside"));
    f.rsig.run(&["wait", &other]).code(2);
    f.supervisor(&job);
    let process = f.process(&job);
    fs::rename(&jobs, &aside).expect("on one disk");
    gate.open();
    poll_until("it has ended", STEP_TIMEOUT, || !process.runs());
    let output = f.rsig.run(&["wait", "--timeout", "3s", &job]);
    output.code(124).stderr_has("mounted");
    let wait = f.rsig.spawn_process(&["wait", &job]);
    wait.wait_for_stderr("still waiting");
    let _ = fs::remove_dir_all(&jobs);
    fs::rename(&aside, &jobs).expect("on one disk");
    let output = wait.wait();
    assert_said_once(output.code(6).stderr());
}

#[test]
fn a_server_that_takes_the_login_and_says_nothing_costs_its_time_once() {
    for keeper in [true, false] {
        let server = Server::openssh(Login::User).config("ForceCommand sleep 1000");
        let mut f = Fixture::with(Some(server.start()));
        f.rsig.keeper = keeper;
        // A timeout of 15 s becomes 3 s.
        f.rsig.clock = 5;
        let config = f.connect[1].clone();
        record_on(&f.rsig, "00000000", "server", &config);
        let cases: [(&[&str], i32); 8] = [
            (&["spawn", "-F", &config, "server", "true"], 255),
            (&["run", "-F", &config, "server", "true"], 255),
            (&["ps", "00000000"], 0),
            (&["kill", "00000000"], 255),
            (&["kill", "--wait", "60s", "00000000"], 255),
            (&["tail", "00000000"], 255),
            (&["tail", "-f", "00000000"], 255),
            (&["rm", "00000000"], 255),
        ];
        std::thread::scope(|scope| {
            for (words, status) in cases {
                let f = &f;
                scope.spawn(move || {
                    let begun = Instant::now();
                    let output = f.rsig.run(words);
                    let took = begun.elapsed();
                    output
                        .code(status)
                        .stderr_has("server accepted the login but did not respond");
                    let range = Duration::from_millis(2900)..Duration::from_secs(15);
                    assert!(range.contains(&took), "{took:?}: {output}");
                });
            }
        });
        let wait = f.rsig.spawn_process(&["wait", "00000000"]);
        wait.wait_for_stderr("did not respond");
        wait.signal(Signal::SIGINT);
        assert!(interrupted(wait.wait().status()));
    }
}
