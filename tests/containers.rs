//! Containers: jobs behind a prefix that takes long to start, through a keeper that holds its shells.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::harness::container::Container;
use crate::harness::scratch::{make_dir, write_file};
use crate::harness::{Output, Rsig, Running, STEP_TIMEOUT, poll_until};
use crate::jobs::json_lines;
use crate::keepers::kill9;
use crate::kit::assert_clear_message;

/// How long shells that are not kept may take to end. A keeper closes even unused ones after 20 s.
const SHELL_END_MAX: Duration = Duration::from_secs(15);

/// rsig, and a container that it reaches with a prefix.
struct ContainerSite {
    // Dropped first, so that keepers end before their container does.
    rsig: Rsig,
    container: Container,
}

impl ContainerSite {
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

    /// Number of processes on this machine that run shells in the container.
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
    let place = ContainerSite::new();
    let job = place.spawn(&[
        "sh",
        "-c",
        "trap 'echo term; exit 7' TERM; echo begun; while :; do sleep 0.1; done",
    ]);
    let shown = place.job(&job);
    assert_eq!(
        [&shown["state"], &shown["host"], &shown["prefix"]],
        ["running", "local", "podman exec -i box"]
    );
    assert!(place.container.jobs_dir().join(&job).join("out").is_file());
    poll_until("it has begun", STEP_TIMEOUT, || {
        place.run(&["tail", &job]).ok().stdout() == "begun\n"
    });
    let follower = place.start(&["tail", "-f", &job]);
    follower.wait_for_stdout("begun\n");
    place.run(&["kill", &job, "STOP"]).ok();
    poll_until("it is stopped", STEP_TIMEOUT, || {
        place.job(&job)["state"] == "stopped"
    });
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
    let place = ContainerSite::new();
    let words = ContainerSite::words(
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
    // Far more than a pipe and the keeper's queues hold, over a separate connection.
    let words = ContainerSite::words(
        "run",
        &[],
        &["--", "sh", "-c", "head -c 30000000 /dev/zero"],
    );
    assert_eq!(place.run(&words).ok().stdout().len(), 30_000_000);
    let long = place.start(&ContainerSite::words(
        "run",
        &[],
        &[
            "--",
            "sh",
            "-c",
            "trap 'echo off; exit 9' INT; echo on; while :; do sleep 0.1; done",
        ],
    ));
    long.wait_for_stdout("on\n");
    long.signal(nix::sys::signal::Signal::SIGINT);
    long.wait().code(9).stdout_is("on\noff\n");
    poll_until("nothing is left of them", STEP_TIMEOUT, || {
        fs::read_dir(place.container.jobs_dir())
            .is_ok_and(|jobs| jobs.flatten().all(|job| job.path().join("gone").exists()))
    });
}

#[test]
fn commands_share_the_shells_of_one_keeper() {
    let place = ContainerSite::new();
    let job = place.spawn(&["sleep", "1000"]);
    let has_one_shell = || place.clients() == 1;
    poll_until("it has one shell", SHELL_END_MAX, has_one_shell);
    for _ in 0..10 {
        place.run(&["kill", &job, "0"]).ok();
        place.run(&["ps", &job]).ok();
        place
            .run(&ContainerSite::words("run", &[], &["--", "true"]))
            .ok();
    }
    poll_until("one shell was enough", SHELL_END_MAX, has_one_shell);
    // Two commands at once need two shells, and no more than two are kept.
    let words = ContainerSite::words("run", &[], &["--", "sh", "-c", "echo on; read line"]);
    let long = place
        .container
        .rsig(&place.rsig, &words)
        .stdin_open()
        .start();
    long.wait_for_stdout("on\n");
    place.run(&["kill", "-w", "20s", &job]).ok();
    // By now, the run may have a private keeper, with a shell of its own.
    poll_until("there are three shells at most", SHELL_END_MAX, || {
        place.clients() <= 3
    });
    // Its `read` finds the end of the input.
    long.wait().code(1);
    poll_until("one keeper with two shells is left", SHELL_END_MAX, || {
        let keepers = place.run(&["keeper", "status", "--json"]).ok().line();
        let keepers: Value = serde_json::from_str(&keepers).expect("JSON");
        keepers.as_array().map(Vec::len) == Some(1) && place.clients() <= 2
    });
    place.run(&["keeper", "stop", "--all"]).ok();
    poll_until("its shells are gone", STEP_TIMEOUT, || place.clients() == 0);
}

#[test]
fn what_a_killed_keeper_was_doing_is_found_out() {
    let place = ContainerSite::new();
    let job = place.spawn(&[
        "sh",
        "-c",
        "trap 'echo usr1' USR1; : >/tmp/up; while :; do sleep 0.1; done",
    ]);
    poll_until("its trap is set", STEP_TIMEOUT, || {
        place.container.root().join("tmp/up").exists()
    });
    for round in 1..4 {
        let keeper = place
            .rsig
            .processes()
            .into_iter()
            .find(|process| process.cmdline.contains("keeper-serve"));
        keeper.expect("a keeper").kill();
        place.run(&["kill", &job, "USR1"]).ok();
        poll_until("the signal is there once", STEP_TIMEOUT, || {
            place.run(&["tail", &job]).ok().stdout() == "usr1\n".repeat(round)
        });
    }
    // A shell that dies in the middle of a script is handled like a broken connection.
    let follower = place.start(&["tail", "-f", &job]);
    follower.wait_for_stdout(&"usr1\n".repeat(3));
    for process in place.container.processes() {
        if process.cmdline == "/bin/sh -s" {
            kill9(process.pid);
        }
    }
    place.run(&["kill", &job, "USR1"]).ok();
    follower.wait_for_stdout(&"usr1\n".repeat(4));
    place.run(&["stop", "--grace", "8s", &job]).ok();
}

#[test]
fn a_container_that_cannot_be_used_is_said() {
    let place = ContainerSite::new();
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
        assert_clear_message(place.run(&words).code(255).stderr_has("no such container"));
    }
    fs::remove_file(place.container.root().join("bin/sh")).expect("our own");
    assert_clear_message(
        place
            .run(&ContainerSite::words("run", &[], &["true"]))
            .code(125)
            .stderr_has("no /bin/sh"),
    );
    place.container.podman(&["kill", "box"]).ok();
    poll_until("it has ended", STEP_TIMEOUT, || {
        place
            .container
            .podman(&["ps", "-q"])
            .ok()
            .stdout()
            .is_empty()
    });
    assert_clear_message(
        place
            .run(&ContainerSite::words("run", &[], &["true"]))
            .code(255)
            .stderr_has("not running"),
    );
    poll_until("no keeper is left that can't be used", STEP_TIMEOUT, || {
        !place
            .rsig
            .processes()
            .iter()
            .any(|process| process.cmdline.contains("keeper-serve"))
    });
    let missing = ["run", "--prefix", "no-such-program", "local", "true"];
    assert_clear_message(place.run(&missing).code(125).stderr_has("no-such-program"));
}

/// A `kubectl` that enters the container through its namespaces, and a `docker` that is podman. Each logs its arguments
/// and the variables that select the machine. Returns a `PATH` with both in front.
fn stand_ins(place: &ContainerSite) -> String {
    let dir = place.rsig.dir().join("bin");
    let log = place.rsig.dir().join("log");
    let pid = place
        .container
        .podman(&["inspect", "-f", "{{.State.Pid}}", "box"])
        .ok()
        .line();
    let log = log.display();
    let kubectl = format!(
        "#!/bin/sh\necho \"kubectl $KUBECONFIG $*\" >>{log}\n[ \"$1 $2\" = 'exec -i' ] || exit 1\nshift 2\n\
         while :; do case $1 in --context | --namespace | -c) shift 2 ;; --) break ;; *) pod=$1; shift ;; esac; done\n\
         [ \"$pod\" = web-0 ] || {{ echo \"Error from server (NotFound): pods \\\"$pod\\\" not found\" >&2; exit 1; }}\n\
         shift\ncd /\nexec env -i HOME=/root PATH=/bin MARK={} nsenter -t {pid} -m -u -i -n -p -r -w -- \"$@\"\n",
        place.container.root().display()
    );
    let docker = format!(
        "#!/bin/sh\necho \"docker $DOCKER_HOST/$DOCKER_CONTEXT $*\" >>{log}\nexec podman \"$@\"\n"
    );
    for (name, text) in [("kubectl", kubectl), ("docker", docker)] {
        write_file(&dir.join(name), &text, 0o755);
    }
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display())
}

#[test]
fn a_container_is_a_host() {
    let place = ContainerSite::new();
    let path = stand_ins(&place);
    let rsig = |words: &[&str]| place.container.rsig(&place.rsig, words).env("PATH", &path);
    let another = place.rsig.dir().join("other");
    make_dir(&another, 0o700);
    for host in [
        "podman://box",
        "docker://box",
        "kubectl://web-0",
        "kubectl://dev/web-0",
        "kubectl:///web-0/app",
    ] {
        let words = ["run", host, "--", "sh", "-c", "cat; pwd; exit 3"];
        rsig(&words)
            .stdin("in\n")
            .run()
            .code(3)
            .stdout_is("in\n/\n");
        let job = rsig(&[
            "spawn",
            "-n",
            "train",
            host,
            "--",
            "sh",
            "-c",
            "echo on; exec sleep 1000",
        ])
        .run()
        .ok()
        .line();
        let there = format!("{host}/{job}");
        // Through the record, and through what the host itself knows.
        poll_until("it is on", STEP_TIMEOUT, || {
            rsig(&["tail", &job]).run().ok().stdout() == "on\n"
        });
        rsig(&["tail", &there]).run().ok().stdout_is("on\n");
        rsig(&["kill", "train", "STOP"])
            .run()
            .ok()
            .stdout_has(&format!("{job} (train) on {host}: STOP sent"));
        rsig(&["kill", &there, "CONT"]).run().ok();
        let found = rsig(&["ps", "--host", host, "--discover", "--json"])
            .run()
            .ok()
            .line();
        let found: Value = serde_json::from_str(&found).expect("JSON");
        assert_eq!(
            [&found[0]["id"], &found[0]["host"], &found[0]["prefix"]],
            [&job.as_str().into(), &Value::from(host), &Value::Null]
        );
        rsig(&["kill", "-w", "20s", &there])
            .env("RSIG_STATE_DIR", &another)
            .run()
            .ok()
            .stdout_has("143");
        rsig(&["wait", "train"]).run().code(143);
        rsig(&["rm", &job]).run().ok();
    }
    // The prefix runs inside the container, and is part of the place.
    let words = [
        "run",
        "--prefix",
        "env INSIDE=1",
        "podman://box",
        "--",
        "sh",
        "-c",
        "echo $INSIDE",
    ];
    rsig(&words).run().ok().stdout_is("1\n");
    for (host, said) in [
        ("podman://none", "no such container"),
        ("kubectl://none", "no such pod"),
        ("docker://none", "no such container"),
    ] {
        assert_clear_message(
            rsig(&["run", host, "true"])
                .run()
                .code(255)
                .stderr_has(said),
        );
    }
    place.rsig.run(&["keeper", "stop", "--all"]).ok();
    for (typed, offered) in [
        ("dock", "docker://\t\n"),
        ("docker://", "docker://box\t\n"),
        ("podman://b", "podman://box\t\n"),
        ("podman://x", ""),
        ("kubectl://no-such-verb", ""),
    ] {
        let words = ["run", typed];
        // A program that takes longer than two seconds is not waited for.
        poll_until(&format!("{typed} is completed"), STEP_TIMEOUT, || {
            let output = rsig(&words).env("RSIG_COMPLETE", "bash").run();
            output.ok().stdout() == offered
        });
    }
}

#[test]
fn what_chooses_the_machine_is_kept() {
    let place = ContainerSite::new();
    let path = stand_ins(&place);
    let rsig = |words: &[&str]| place.container.rsig(&place.rsig, words).env("PATH", &path);
    let log = place.rsig.dir().join("log");
    let last = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().last().unwrap_or_default().to_owned()
    };
    let docker = place.rsig.home().join(".docker/config.json");
    write_file(&docker, r#"{"currentContext":"far"}"#, 0o600);
    let kube = place.rsig.dir().join("kube");
    let config = |context: &str| {
        format!(
            "contexts:\n- context:\n    namespace: apps\n  name: prod\ncurrent-context: {context}\n"
        )
    };
    write_file(&kube, &config("prod"), 0o600);
    let first = [
        (
            vec!["docker://box"],
            ("DOCKER_HOST", "unix:///a"),
            "docker unix:///a/ exec -i box",
        ),
        (
            vec!["docker://box"],
            ("UNRELATED", "1"),
            "docker /far exec -i box",
        ),
        (
            vec!["kubectl://web-0"],
            ("KUBECONFIG", kube.to_str().expect("UTF-8")),
            "exec -i --context prod --namespace apps web-0 --",
        ),
    ];
    let jobs = first.map(|(host, (name, value), expected)| {
        let words = [&["spawn"][..], &host, &["--", "sleep", "1000"]].concat();
        let job = rsig(&words).env(name, value).run().ok().line();
        assert!(last().contains(expected), "{} {expected}", last());
        (job, expected)
    });
    // All of these settings have changed since, and no keeper is connected.
    place.rsig.run(&["keeper", "stop", "--all"]).ok();
    write_file(&docker, r#"{"currentContext":"near"}"#, 0o600);
    write_file(&kube, &config("dev"), 0o600);
    for (job, expected) in &jobs {
        rsig(&["kill", "-w", "20s", job])
            .env("DOCKER_HOST", "unix:///b")
            .env("DOCKER_CONTEXT", "c")
            .env("KUBECONFIG", "/no")
            .run()
            .ok();
        assert!(last().contains(expected), "{} {expected}", last());
        assert!(!last().contains("/no"));
    }
}

#[test]
fn options_of_ssh_are_for_ssh() {
    let rsig = Rsig::new();
    for option in [
        ["-p", "22"],
        ["-l", "bob"],
        ["-i", "key"],
        ["-F", "none"],
        ["-J", "jump"],
        ["-o", "Port=22"],
    ] {
        for host in ["docker://web", "podman://web", "kubectl://ns/pod/web"] {
            let words = [&["spawn"][..], &option, &[host, "true"]].concat();
            assert_clear_message(rsig.run(&words).code(2).stderr_has(host));
        }
    }
    for host in [
        "docker://",
        "docker://-v",
        "docker://a/b",
        "kubectl://a/b/c/d",
        "podman://a;b",
        "openssh://",
        "openssh://-oX=y",
    ] {
        assert_clear_message(rsig.run(&["run", host, "true"]).code(2).stdout_is(""));
    }
    assert_eq!(fs::read_dir(rsig.state()).expect("it is there").count(), 0);
}

#[test]
fn a_container_that_has_begun_again_has_lost_its_jobs() {
    let place = ContainerSite::new();
    let host = "podman://box";
    let job = place
        .run(&["spawn", host, "--", "sleep", "1000"])
        .ok()
        .line();
    for again in [false, true] {
        let job = place
            .run(&["spawn", host, "--", "sleep", "1000"])
            .ok()
            .line();
        if again {
            // A container of the same name, without the files of the old one.
            place.container.podman(&["rm", "-f", "-t", "0", "box"]).ok();
            fs::remove_dir_all(place.container.root().join("root/.local")).expect("our own");
            place.container.launch();
        } else {
            place.container.podman(&["restart", "-t", "0", "box"]).ok();
        }
        // Process ids start over, so another process may get the job's pid.
        let others: Vec<String> = (0..20)
            .map(|_| {
                place
                    .run(&["spawn", host, "--", "sleep", "1000"])
                    .ok()
                    .line()
            })
            .collect();
        let told = json_lines(place.run(&["kill", "--json", &job]).code(125)).remove(0);
        assert_eq!(
            [&told["sent"], &told["error"]["kind"]],
            [&Value::from(false), &Value::from("lost")]
        );
        assert!(
            told["error"]["message"]
                .as_str()
                .expect("a message")
                .contains("began again"),
            "{told}"
        );
        place
            .run(&["wait", &job])
            .code(125)
            .stdout_has("began again");
        assert_eq!(place.job(&job)["state"], "lost");
        for other in &others {
            assert_eq!(place.job(other)["state"], "running");
        }
        place
            .run(
                &[
                    &["stop", "--grace", "8s"][..],
                    &others.iter().map(String::as_str).collect::<Vec<_>>(),
                ]
                .concat(),
            )
            .ok();
    }
    place.run(&["kill", &job]).code(125);
}

#[cfg(all(feature = "mcp", feature = "serve"))]
#[test]
fn the_servers_reach_a_container() {
    use crate::contrib::examples::example;

    let place = ContainerSite::new();
    let words = ["podman://box", "echo out; echo err >&2; exit 3"];
    let client = example(&place.rsig, "mcp_client.py", &words);
    let output = place.container.within(client).run();
    output.code(3).stdout_is("out\n").stderr_has("err\n");
    let server = place.start(&["serve"]);
    server.wait_for_stderr("listening on");
    let socket = place.rsig.state().join("serve.sock");
    let socket = socket.to_str().expect("UTF-8");
    let words = [socket, "podman://box", "exec sleep 1000"];
    let output = example(&place.rsig, "http_client.py", &words).run();
    output.ok().stdout_has("exit status 143\n");
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.wait();
}
