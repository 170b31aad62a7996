//! Many jobs and many hosts: `spawn` on several hosts, jobs selected by pattern, `wait --any`, `--parallel`.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::tty::ENTER;
use crate::harness::{Login, Rsig, Server, Site, on_two_sites, poll_until};
use crate::jobs::{STEP_TIMEOUT, json_lines};
use crate::kit::{self, FixedReply, FixedServer};

/// Several servers and one rsig. The configuration names the servers s0, s1, ...
struct Farm {
    rsig: Rsig,
    servers: Vec<Server>,
    config: String,
}

impl Farm {
    fn start(logins: &[Login]) -> Self {
        let farm = Self {
            rsig: Rsig::new(),
            servers: logins
                .iter()
                .map(|login| Server::openssh(*login).start())
                .collect(),
            config: String::new(),
        };
        let config = farm
            .rsig
            .dir()
            .join("config")
            .into_os_string()
            .into_string()
            .expect("plain");
        let farm = Self { config, ..farm };
        farm.configure("");
        farm
    }

    /// Writes the configuration. `first` precedes the servers' entries, and so overrides them.
    fn configure(&self, first: &str) {
        let mut text = first.to_owned();
        for (number, server) in self.servers.iter().enumerate() {
            text +=
                &fs::read_to_string(server.ssh_config(&format!("s{number}"))).expect("readable");
        }
        fs::write(&self.config, text).expect("ours");
    }

    fn spawn<'a>(&'a self, hosts: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
        [&["spawn", "-F", &self.config, hosts, "--"], rest].concat()
    }
}

fn ids(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn host_of(rsig: &Rsig, job: &str) -> String {
    kit::job_json(rsig, job).expect("a job")["host"]
        .as_str()
        .expect("text")
        .to_owned()
}

/// The configuration of a host that accepts connections and never sends anything.
fn silent_host_config(sayer: &FixedServer) -> String {
    format!(
        "Host dead\nHostName 127.0.0.1\nPort {}\nConnectTimeout 1\n",
        sayer.port()
    )
}

#[test]
fn a_job_is_started_on_several_hosts() {
    let farm = Farm::start(&[Login::User, Login::Root, Login::User]);
    let start = Instant::now();
    let output = farm
        .rsig
        .run(&farm.spawn("s2,s0,local,s1", &["sleep", "1000"]));
    // The ids are in the order of the hosts, unless a host is slow: it holds the others back for at most a second.
    let in_turn = start.elapsed() < Duration::from_secs(1);
    let jobs = ids(&output.ok().stdout());
    let mut hosts: Vec<String> = jobs.iter().map(|job| host_of(&farm.rsig, job)).collect();
    let mut expected = ["s2", "s0", "local", "s1"];
    if !in_turn {
        hosts.sort_unstable();
        expected.sort_unstable();
    }
    assert_eq!(hosts, expected);
    let output = farm.rsig.run(&[
        "spawn",
        "-F",
        &farm.config,
        "--json",
        "--parallel",
        "1",
        "s1,s0",
        "true",
    ]);
    let told = json_lines(output.ok());
    assert_eq!(
        [&told[0]["host"], &told[1]["host"]],
        [&Value::from("s1"), &"s0".into()]
    );
    for job in &told {
        let id = job["id"].as_str().expect("an id");
        farm.rsig.run(&["wait", id]).ok();
    }

    farm.rsig
        .run(&["spawn", "-n", "one", "local,w[1-2]", "true"])
        .code(2)
        .stdout_is("")
        .stderr_has("-n");
    for hosts in [
        "local,",
        ",",
        "local,,local",
        "local,-x",
        "local,a;b",
        "w[1-",
        "w[2-1]",
        "w[1-99999]",
        "@none",
    ] {
        farm.rsig
            .run(&["spawn", hosts, "true"])
            .code(2)
            .stdout_is("");
    }
    farm.rsig
        .run(&["spawn", "--parallel", "0", "local", "true"])
        .code(2);

    // One command signals them all and waits for them.
    let output = farm
        .rsig
        .run(&["kill", "--all", "--yes", "--json", "-w", "20s"]);
    let mut told = json_lines(output.ok());
    told.retain(|told| told["sent"] == true);
    assert_eq!(told.len(), 4, "{output}");
    assert!(
        told.iter()
            .all(|told| told["exit_status"] == 143 && told["job"] == told["id"])
    );
    farm.rsig.run(&["rm", "--all"]).ok();
    assert_eq!(kit::recorded(&farm.rsig), [""; 0]);
}

#[test]
fn a_dead_host_holds_nobody() {
    let farm = Farm::start(&[Login::User, Login::User]);
    let sayer = FixedServer::start(FixedReply::Once(Vec::new()));
    // The dead host comes first, and takes longer than it can hold the other ids back. The file's longest timeout limits
    // how long ssh may take to read it.
    let dead = silent_host_config(&sayer).replace("Timeout 1", "Timeout 4");
    farm.configure(&format!("{dead}ConnectTimeout 15\n"));
    let slow = farm.rsig.run(&[
        "spawn",
        "-F",
        &farm.config,
        "dead,s[0-1],s1",
        "sleep",
        "1000",
    ]);
    let mut jobs = ids(&slow.code(255).stderr_has("dead").stdout());
    assert_eq!(jobs.len(), 2, "{slow}");
    // Either host may be so slow that the other id is not held back for it.
    jobs.sort_by_cached_key(|job| host_of(&farm.rsig, job));
    assert_eq!(
        [host_of(&farm.rsig, &jobs[0]), host_of(&farm.rsig, &jobs[1])],
        ["s0", "s1"]
    );
    let running = farm.rsig.spawn_process(&[
        "spawn",
        "-F",
        &farm.config,
        "-o",
        "ConnectTimeout=20",
        "dead,s0",
        "true",
    ]);
    poll_until(
        "an id comes while the first host is waited for",
        Duration::from_secs(15),
        || running.stdout_so_far().len() == 9,
    );
    drop(running);
    let events: Vec<Value> = json_lines(&farm.rsig.run(&["history", "--json"]));
    assert!(
        events
            .iter()
            .any(|event| event["event"] == "not_started" && event["host"] == "dead")
    );

    // A host that dies later: its jobs are reported as errors, and the other hosts are handled.
    farm.configure(&format!(
        "Host s0\nHostName 127.0.0.1\nPort {}\nConnectTimeout 1\nConnectTimeout 15\n",
        sayer.port()
    ));
    farm.rsig.run(&["keeper", "stop", "--all"]);
    for words in [
        &["kill", "--host", "s[0-1]", "-s", "WINCH"][..],
        &["kill", "-s", "WINCH", "--wait", "100ms", &jobs[0], &jobs[1]],
        &["kill", "--parallel", "1", "-s", "WINCH", &jobs[0], &jobs[1]],
    ] {
        let output = farm.rsig.run(words);
        output
            .code(255)
            .stdout_has(&format!("{} on s1: WINCH sent", jobs[1]))
            .stderr_has("s0");
    }
    farm.rsig.run(&["stop", "--host", "s1"]).ok();
    farm.rsig
        .run(&["wait", "--timeout", "3s", &jobs[0], &jobs[1]])
        .code(124)
        .stdout_has(&jobs[1])
        .stderr_has("s0");
    farm.rsig
        .run(&["rm", "--host", "s[1,0]"])
        .ok()
        .stdout_has(&jobs[1]);
    farm.configure("");
    assert_eq!(kit::state(&farm.rsig, &jobs[0]), "running");
}

/// `--parallel` limits connecting only: a long wait for one host does not delay the requests to others.
#[test]
fn a_wait_for_many_hosts_sees_each_end() {
    let farm = Farm::start(&[Login::User, Login::User]);
    let slow = farm
        .rsig
        .run(&farm.spawn("s0", &["sleep", "1000"]))
        .ok()
        .line();
    let quick = farm
        .rsig
        .run(&farm.spawn("s1", &["sh", "-c", "sleep 0.3; exit 4"]))
        .ok()
        .line();
    let start = Instant::now();
    farm.rsig
        .run(&["wait", "--any", "--parallel", "1", &slow, &quick])
        .code(4)
        .stdout_has(&quick);
    farm.rsig
        .run(&["wait", "--timeout", "4s", "--parallel", "1", &slow, &quick])
        .code(124)
        .stdout_has(&slow);
    farm.rsig
        .run(&[
            "kill",
            "--parallel",
            "1",
            "--wait",
            "500ms",
            "-s",
            "WINCH",
            &slow,
        ])
        .code(124);
    assert!(start.elapsed() < STEP_TIMEOUT, "{:?}", start.elapsed());
}

on_two_sites! {
    fn jobs_are_picked_by_name_and_host(f: &Fixture) {
        let named = |name: &str| f.spawn(&["-n", name], &["sleep", "1000"]);
        let (one, two, other) = (named("train-1"), named("train-2"), named("serve"));
        let here = f.rsig.run(&["spawn", "-n", "train-3", "local", "sleep", "1000"]).ok().line();
        let picked = |words: &[&str]| {
            let output = f.rsig.run(&[words, &["--json"]].concat());
            let mut ids: Vec<String> = json_lines(output.ok()).iter().map(|told| told["id"].as_str().expect("an id").to_owned()).collect();
            ids.sort();
            ids
        };
        let sorted = |ids: &[&String]| {
            let mut ids: Vec<String> = ids.iter().map(|id| (*id).clone()).collect();
            ids.sort();
            ids
        };
        assert_eq!(picked(&["kill", "-0", "--all"]), sorted(&[&one, &two, &other, &here]));
        assert_eq!(picked(&["kill", "-WINCH", "--name", "train-?"]), sorted(&[&one, &two, &here]));
        assert_eq!(picked(&["kill", "-s", "WINCH", "--name", "[!t]*"]), sorted(&[&other]));
        assert!(picked(&["kill", "-s", "WINCH", "--host", "local", "--name", "train-[0-9]"]).contains(&here));
        let there = picked(&["kill", "-s", "WINCH", "--host", &f.host, "--name", "train-*"]);
        assert_eq!(there, if f.is_remote() { sorted(&[&one, &two]) } else { sorted(&[&one, &two, &here]) });
        assert_eq!(picked(&["stop", "--name", "*-2"]), sorted(&[&two]));
        assert_eq!(picked(&["kill", "--all", "--host", &f.host, "--name", "serve", "--yes", "-w", "20s"]), sorted(&[&other]));

        // No job matches: this is reported, but is not a failure.
        for words in [&["kill", "--name", "nobody*"][..], &["stop", "--host", "elsewhere"], &["wait", "--name", "serve"], &["rm", "--name", "nobody"]] {
            f.rsig.run(words).ok().stdout_is("").stderr_has("nothing was done");
            f.rsig.run(&[words, &["-q"]].concat()).ok().stdout_is("").stderr_is_empty();
        }
        // Only finished jobs are removed.
        let removed = ids(&f.rsig.run(&["rm", "--host", &f.host]).ok().stdout());
        assert_eq!(sorted(&removed.iter().collect::<Vec<_>>()), sorted(&[&two, &other]));
        f.rsig.run(&["wait", "--timeout", "2s", "--all"]).code(124).stdout_has(&one).stdout_has(&here);
        f.rsig.run(&["kill", "--name", "train-*", "-s", "KILL", "-w", "20s"]).ok();
        f.await_no_processes();
    }

    fn a_picked_job_that_has_ended_is_passed_over(f: &Fixture) {
        for words in [&["kill", "--all", "--yes"][..], &["kill", "--host", &f.host, "-w", "20s"], &["stop", "--name", "gated"]] {
            let (job, gate) = f.spawn_gated(&["-n", "gated"], 3);
            gate.open();
            poll_until("it has ended", STEP_TIMEOUT, || f.has_ended(&job));
            let output = f.rsig.run(&[words, &["--json"]].concat());
            let told = json_lines(output.ok().stderr_is_empty()).remove(0);
            assert_eq!([&told["sent"], &told["still_running"], &told["error"]], [&Value::from(false), &false.into(), &Value::Null]);
            // A job that is named explicitly is still an error.
            f.rsig.run(&["kill", &job]).code(4);
        }
        let (job, gate) = f.spawn_gated(&[], 3);
        gate.open();
        poll_until("it has ended", STEP_TIMEOUT, || f.has_ended(&job));
        f.rsig.run(&["kill", "--all", "--yes"]).ok().stdout_has(&format!("{job} on {}: it had already ended", f.host));
    }

    fn the_first_end_is_enough_for_any(f: &Fixture) {
        let slow = f.spawn(&[], &["sleep", "1000"]);
        let (job, gate) = f.spawn_gated(&[], 6);
        let wait = f.rsig.spawn_process(&["wait", "--any", "--all"]);
        gate.open();
        wait.wait().code(6).stdout_is(&format!("{job} on {}: ended with status 6\n", f.host));
        f.rsig.run(&["wait", "--any", &slow, &job]).code(6);
        f.rsig.run(&["wait", "--any", "--timeout", "200ms", &slow]).code(124);
        assert_eq!(f.state(&slow), "running");
        f.rsig.run(&["kill", &slow, "-w", "20s"]).ok();
        f.await_no_processes();
    }
}

/// Relays report both ends, and the report of the first does not wait for the second.
#[test]
fn an_end_that_a_relay_tells_of_is_told_at_once() {
    let f = Site::OpenSshUser.start_with_keeper();
    let ((slow, slow_gate), (quick, quick_gate)) = (f.spawn_gated(&[], 5), f.spawn_gated(&[], 6));
    let keeper = || f.json(&["keeper", "status", "--json"]).remove(0)[0].clone();
    let takes_signals = |relay: &&Value| relay[1] == true;
    poll_until("both are held", STEP_TIMEOUT, || {
        keeper()["relays"]
            .as_array()
            .is_some_and(|relays| relays.iter().filter(takes_signals).count() == 2)
    });
    let wait = f.rsig.spawn_process(&["wait", &slow, &quick]);
    let any = f.rsig.spawn_process(&["wait", "--any", &slow, &quick]);
    poll_until("both wait", STEP_TIMEOUT, || {
        keeper()["commands"].as_u64() >= Some(2)
    });
    quick_gate.open();
    wait.wait_for_stdout(&format!("{quick} on server: ended with status 6"));
    any.wait().code(6);
    slow_gate.open();
    wait.wait()
        .code(6)
        .stdout_has(&format!("{slow} on server: ended with status 5"));
}

#[test]
fn all_is_asked_about() {
    let f = Site::Local.start();
    let jobs = [
        f.spawn(&[], &["sleep", "1000"]),
        f.spawn(&[], &["sleep", "1000"]),
    ];
    for words in [
        &["kill", "--all"][..],
        &["kill", "--all", "--host", "local", "-9"],
        &["stop", "--all"],
    ] {
        f.rsig
            .run(words)
            .code(2)
            .stdout_is("")
            .stderr_has("--yes")
            .stderr_has("2 jobs");
    }
    for (answer, code) in [("n", 1), ("", 1), ("yess", 1)] {
        let mut tty = f.rsig.command(&["kill", "--all"]).tty(100, 30);
        tty.wait_for("Send TERM to 2 jobs? [y/N]");
        assert!(
            jobs.iter()
                .all(|job| tty.text().contains(&format!("{job} on local: sleep 1000"))),
            "{}",
            tty.text()
        );
        tty.send(answer);
        tty.send(ENTER);
        assert_eq!(tty.wait().code(), Some(code), "{}", tty.text());
    }
    assert!(jobs.iter().all(|job| f.state(job) == "running"));
    let mut tty = f.rsig.command(&["stop", "--all"]).tty(100, 30);
    tty.wait_for("[y/N]");
    tty.send("y");
    tty.send(ENTER);
    assert_eq!(tty.wait().code(), Some(0), "{}", tty.text());
    f.await_no_processes();
}

#[test]
fn jobs_are_named_or_picked() {
    let rsig = Rsig::new();
    for words in [
        &["kill", "--all", "TERM"][..],
        &["kill", "--all", "job", "-s", "TERM"],
        &["kill", "--name", "a b"],
        &["kill", "--name", ""],
        &["kill", "--host", "a;b"],
        &["kill", "-l", "--all"],
        &["stop", "--all", "job"],
        &["wait", "--name", "x", "job"],
        &["wait", "--any"],
        &["rm", "--all", "--force"],
        &["kill", "--parallel", "many", "--all"],
    ] {
        let output = rsig.run(words);
        kit::assert_clear_message(output.code(2).stdout_is(""));
    }
    assert!(!rsig.state().join("jobs.db").exists());
}
