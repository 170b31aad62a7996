//! Containers: jobs behind a prefix that takes long to start, by a keeper that holds its shells.

use std::fs;

use serde_json::Value;

use crate::harness::container::Container;
use crate::harness::{Output, Rsig, Running, SOON, poll_until};
use crate::jobs::json_lines;
use crate::keepers::kill9;
use crate::kit::clear_message;

/// rsig with a container, and a word that gets there.
struct Place {
    // Dropped first, so that keepers are gone before their container is.
    rsig: Rsig,
    container: Container,
}

impl Place {
    fn new() -> Self {
        let mut rsig = Rsig::new();
        rsig.keeper = true;
        Self {
            rsig,
            container: Container::start(),
        }
    }

    /// `VERB OPTIONS --prefix 'podman exec -i NAME' local REST`.
    fn words<'a>(verb: &'a str, options: &[&'a str], rest: &[&'a str]) -> Vec<&'a str> {
        let mut words = vec![verb];
        words.extend(options);
        words.extend(["--prefix", "podman exec -i box", "local"]);
        words.extend(rest);
        words
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> Output {
        self.container.rsig(&self.rsig, words).run()
    }

    #[track_caller]
    fn start(&self, words: &[&str]) -> Running {
        self.container.rsig(&self.rsig, words).start()
    }

    #[track_caller]
    fn spawn(&self, command: &[&str]) -> String {
        let words = Self::words("spawn", &[], &[&["--"], command].concat());
        self.run(&words).ok().line()
    }

    fn job(&self, id: &str) -> Value {
        let output = self.run(&["ps", "--json", id]).ok().line();
        serde_json::from_str::<Value>(&output).expect("JSON")[0].clone()
    }

    /// The programs that this machine runs for shells in the container.
    fn clients(&self) -> usize {
        let all = self.rsig.processes();
        let is_client = |cmdline: &str| cmdline.starts_with("podman exec");
        all.iter()
            .filter(|process| is_client(&process.cmdline))
            .count()
    }
}

#[test]
fn a_job_in_a_container_is_a_job() {
    let place = Place::new();
    let job = place.spawn(&[
        "sh",
        "-c",
        "echo begun; trap 'echo term; exit 7' TERM; while :; do sleep 0.1; done",
    ]);
    let shown = place.job(&job);
    assert_eq!(
        [&shown["state"], &shown["host"], &shown["prefix"]],
        ["running", "local", "podman exec -i box"]
    );
    assert!(place.container.jobs_dir().join(&job).join("out").is_file());
    poll_until("it has begun", SOON, || {
        place.run(&["tail", &job]).ok().stdout() == "begun\n"
    });
    let follower = place.start(&["tail", "-f", &job]);
    follower.wait_for_stdout("begun\n");
    place.run(&["kill", &job, "STOP"]).ok();
    assert_eq!(place.job(&job)["state"], "stopped");
    place.run(&["kill", &job, "CONT"]).ok();
    let told = json_lines(place.run(&["kill", "--json", "-w", "20s", &job]).ok()).remove(0);
    assert_eq!(
        [&told["via"], &told["exit_status"], &told["still_running"]],
        [&Value::from("pid"), &7.into(), &false.into()]
    );
    follower.wait().ok().stdout_is("begun\nterm\n");
    place.run(&["wait", &job]).code(7);
    place.run(&["kill", &job]).code(4);
    place.run(&["rm", &job]).ok();
    assert_eq!(
        fs::read_dir(place.container.jobs_dir())
            .expect("it is there")
            .count(),
        0
    );
}

#[test]
fn a_run_in_a_container_passes_everything_on() {
    let place = Place::new();
    let words = Place::words(
        "run",
        &[],
        &["--", "sh", "-c", "cat; pwd; echo oops >&2; exit 3"],
    );
    let output = place
        .container
        .rsig(&place.rsig, &words)
        .stdin("in\n")
        .run();
    output.code(3).stdout_is("in\n/\n").stderr_has("oops");
    // Much more than a pipe and the keeper's queues hold, over a connection of its own.
    let words = Place::words(
        "run",
        &[],
        &["--", "sh", "-c", "head -c 30000000 /dev/zero"],
    );
    assert_eq!(place.run(&words).ok().stdout().len(), 30_000_000);
    let long = place.start(&Place::words(
        "run",
        &[],
        &[
            "--",
            "sh",
            "-c",
            "echo on; trap 'echo off; exit 9' INT; while :; do sleep 0.1; done",
        ],
    ));
    long.wait_for_stdout("on\n");
    long.signal(nix::sys::signal::Signal::SIGINT);
    long.wait().code(9).stdout_is("on\noff\n");
    poll_until("nothing is left of them", SOON, || {
        fs::read_dir(place.container.jobs_dir())
            .is_ok_and(|jobs| jobs.flatten().all(|job| job.path().join("gone").exists()))
    });
}

#[test]
fn commands_share_the_shells_of_one_keeper() {
    let place = Place::new();
    let job = place.spawn(&["sleep", "1000"]);
    let clients = place.clients();
    assert_eq!(clients, 1);
    for _ in 0..10 {
        place.run(&["kill", &job, "0"]).ok();
        place.run(&["ps", &job]).ok();
        place.run(&Place::words("run", &[], &["--", "true"])).ok();
    }
    assert_eq!(place.clients(), 1);
    // Two at once need two, and no more stay than that.
    let long = place.start(&Place::words(
        "run",
        &[],
        &["--", "sh", "-c", "echo on; read line"],
    ));
    long.wait_for_stdout("on\n");
    place.run(&["kill", "-w", "20s", &job]).ok();
    let keepers: Value =
        serde_json::from_str(&place.run(&["keeper", "status", "--json"]).ok().line())
            .expect("JSON");
    assert_eq!(keepers.as_array().map(Vec::len), Some(1));
    // One of them may be the run's own by now.
    assert!(place.clients() <= 2);
    place.run(&["keeper", "stop", "--all"]).ok();
    poll_until("its shells are gone", SOON, || place.clients() == 0);
}

#[test]
fn what_a_killed_keeper_was_doing_is_found_out() {
    let place = Place::new();
    let job = place.spawn(&[
        "sh",
        "-c",
        "trap 'echo usr1' USR1; while :; do sleep 0.1; done",
    ]);
    for round in 1..4 {
        let keeper = place
            .rsig
            .processes()
            .into_iter()
            .find(|process| process.cmdline.contains("keeper-serve"));
        keeper.expect("a keeper").kill();
        place.run(&["kill", &job, "USR1"]).ok();
        poll_until("the signal is there once", SOON, || {
            place.run(&["tail", &job]).ok().stdout() == "usr1\n".repeat(round)
        });
    }
    // A shell in the middle of a script is lost as a connection is.
    let follower = place.start(&["tail", "-f", &job]);
    follower.wait_for_stdout(&"usr1\n".repeat(3));
    for process in place.container.processes() {
        if process.cmdline == "/bin/sh -s" {
            kill9(process.pid);
        }
    }
    place.run(&["kill", &job, "USR1"]).ok();
    follower.wait_for_stdout(&"usr1\n".repeat(4));
    place.run(&["stop", "--grace", "1s", &job]).ok();
}

#[test]
fn a_container_that_cannot_be_used_is_said() {
    let place = Place::new();
    let at = |name: &str| {
        [
            "run".to_owned(),
            "--prefix".to_owned(),
            format!("podman exec -i {name}"),
            "local".to_owned(),
            "true".to_owned(),
        ]
    };
    let words = at("nowhere");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for _ in 0..2 {
        clear_message(place.run(&words).code(255).stderr_has("no such container"));
    }
    fs::remove_file(place.container.root().join("bin/sh")).expect("our own");
    clear_message(
        place
            .run(&Place::words("run", &[], &["true"]))
            .code(125)
            .stderr_has("no /bin/sh"),
    );
    place.container.podman(&["kill", "box"]).ok();
    poll_until("it has ended", SOON, || {
        place
            .container
            .podman(&["ps", "-q"])
            .ok()
            .stdout()
            .is_empty()
    });
    clear_message(
        place
            .run(&Place::words("run", &[], &["true"]))
            .code(255)
            .stderr_has("not running"),
    );
    poll_until("no keeper is left that can't be used", SOON, || {
        !place
            .rsig
            .processes()
            .iter()
            .any(|process| process.cmdline.contains("keeper-serve"))
    });
    let missing = ["run", "--prefix", "no-such-program", "local", "true"];
    clear_message(place.run(&missing).code(125).stderr_has("no-such-program"));
}
