//! `rsig mcp`, driven by a client of another implementation.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::clients::Mcp;
use crate::harness::{
    Fixture, Login, Process, Proxy, Scratch, Server, Site, on_two_sites, poll_until,
};
use crate::jobs::{JOB_KEYS, LISTENER, STEP_TIMEOUT, pick};
use crate::keepers::{await_warm_relay, keeper_pids, with_keeper};
use crate::kit;

/// Starts a job from a shell command line.
#[track_caller]
fn spawn(mcp: &mut Mcp, f: &Fixture, line: &str) -> String {
    let answer = mcp.call("ssh_spawn", json!({ "host": f.host, "command": line }));
    answer["job_id"].as_str().expect("an id").to_owned()
}

/// The stream and text of each line.
fn lines(answer: &Value) -> Vec<Value> {
    let lines = answer["lines"].as_array().expect("lines").iter();
    lines.map(|line| pick(line, ["stream", "text"])).collect()
}

/// Waits until no job is left on the host. If the host is this machine, the client and its server stay.
#[track_caller]
fn await_no_job(f: &Fixture) {
    let is_jobs =
        |process: &Process| process.cmdline.contains("sleep") || process.cmdline.starts_with("sh ");
    poll_until("no job is left", STEP_TIMEOUT, || {
        !f.processes().iter().any(is_jobs)
    });
}

#[test]
fn a_server_says_what_it_can() {
    let f = Site::Local.start();
    let mut mcp = Mcp::start(&f, &[]);
    let hello = mcp.request(&json!({ "do": "hello" }));
    assert_eq!(
        pick(&hello["server_info"], ["name", "version"]),
        json!(["rsig", env!("CARGO_PKG_VERSION")])
    );
    let instructions = hello["instructions"].as_str().expect("instructions");
    let tools = mcp.request(&json!({ "do": "tools" }));
    let told: Vec<Value> = tools
        .as_array()
        .expect("tools")
        .iter()
        .map(|tool| {
            let name = tool["name"].as_str().expect("a name");
            assert!(
                instructions.contains(name)
                    && tool["description"]
                        .as_str()
                        .is_some_and(|text| text.len() > 100)
            );
            assert_eq!(tool["input_schema"]["additionalProperties"], false);
            let properties = tool["input_schema"]["properties"]
                .as_object()
                .expect("properties");
            let parameters: Vec<Value> = properties
                .iter()
                .map(|(name, schema)| json!([name, schema.get("default")]))
                .collect();
            let hints = pick(&tool["annotations"], ["read_only_hint", "destructive_hint"]);
            json!([name, tool["input_schema"]["required"], parameters, hints])
        })
        .collect();
    assert_eq!(
        told,
        [
            json!([
                "ssh_signal",
                ["job_id"],
                [
                    ["job_id", null],
                    ["signal", "TERM"],
                    ["use_channel", true],
                    ["use_pid_fallback", true],
                    ["wait_ms", 0]
                ],
                [false, true]
            ]),
            json!([
                "ssh_spawn",
                ["host", "command"],
                [
                    ["command", null],
                    ["cwd", null],
                    ["env", {}],
                    ["host", null],
                    ["log_max", null],
                    ["merge", false],
                    ["name", null],
                    ["stdin_open", false],
                    ["timeout", null]
                ],
                [false, false]
            ]),
            json!([
                "ssh_send_stdin",
                ["job_id"],
                [
                    ["eof", false],
                    ["job_id", null],
                    ["newline", true],
                    ["text", null]
                ],
                [false, false]
            ]),
            json!([
                "ssh_tail",
                ["job_id"],
                [
                    ["cursor", null],
                    ["job_id", null],
                    ["max_lines", 200],
                    ["stream", "both"],
                    ["wait_for", null],
                    ["wait_ms", 0]
                ],
                [true, false]
            ]),
            json!([
                "ssh_list_jobs",
                null,
                [["host", null], ["include_finished", true]],
                [true, false]
            ]),
            json!([
                "ssh_remove_job",
                ["job_id"],
                [["force", false], ["job_id", null]],
                [false, true]
            ]),
            json!([
                "ssh_exec",
                ["host", "command"],
                [["command", null], ["host", null], ["timeout_ms", 60000]],
                [false, true]
            ]),
        ]
    );
    mcp.close();
}

on_two_sites! {
    fn a_job_is_started_followed_and_ended(f: &Fixture) {
        let mut mcp = Mcp::start(f, &[]);
        let order = json!({
            "host": f.host,
            "command": "pwd; echo \"$COLOUR\"; echo oops >&2; printf half; read -r x <gate; echo ' line'; exec sleep 1000",
            "cwd": "sub dir",
            "env": { "COLOUR": "deep 'red'" },
            "name": "train",
        });
        let place = f.job_home().join("sub dir");
        std::fs::create_dir(&place).expect("the home is writable");
        nix::unistd::mkfifo(&place.join("gate"), nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("a FIFO");
        std::os::unix::fs::chown(&place, f.server.as_ref().map(Server::uid), None).expect("ours");
        let started = mcp.call("ssh_spawn", order.clone());
        let job = started["job_id"].as_str().expect("an id").to_owned();
        assert_eq!(started["pid"], f.process(&job).pid);
        f.await_written(&job, &format!("{}\ndeep 'red'\nhalf", place.display()));
        assert!(mcp.call_fails("ssh_spawn", order, "bad_param").contains("train"));

        // A line is complete once its newline is written.
        let first = mcp.call("ssh_tail", json!({ "job_id": "train" }));
        let text = place.display().to_string();
        let known = [json!(["stdout", text]), json!(["stdout", "deep 'red'"]), json!(["stderr", "oops"])];
        assert_eq!(lines(&first), known);
        let rest = ["omitted_bytes", "more", "still_running", "exit_status", "job_id"];
        assert_eq!(pick(&first, rest), json!([0, false, true, null, job]));
        let begun = Instant::now();
        let cursor = &first["cursor"];
        let none = mcp.call("ssh_tail", json!({ "job_id": job, "cursor": cursor, "wait_ms": 300 }));
        assert_eq!(pick(&none, ["lines", "cursor"]), json!([[], cursor]));
        assert!(begun.elapsed() >= Duration::from_millis(300));
        mcp.request(&json!({
            "do": "begin", "tool": "ssh_tail", "arguments": { "job_id": job, "cursor": cursor, "wait_ms": 30000 }
        }));
        std::fs::write(place.join("gate"), "\n").expect("the job reads it");
        let more = mcp.call("ssh_tail", json!({ "job_id": job, "cursor": cursor, "wait_ms": 30000 }));
        assert_eq!(lines(&more), [json!(["stdout", "half line"])]);
        let some = mcp.call("ssh_tail", json!({ "job_id": job, "cursor": "start", "max_lines": 2 }));
        assert_eq!((lines(&some), &some["more"]), (vec![known[0].clone(), known[2].clone()], &true.into()));
        let some = mcp.call("ssh_tail", json!({ "job_id": job, "cursor": some["cursor"], "max_lines": 1 }));
        assert_eq!((lines(&some), &some["more"]), (known[1..2].to_vec(), &true.into()));
        let last = mcp.call("ssh_tail", json!({ "job_id": job, "stream": "stdout", "max_lines": 1 }));
        let before = text.len() + "\ndeep 'red'\n".len();
        assert_eq!((lines(&last), &last["omitted_bytes"]), (lines(&more), &before.into()));
        let of_one = mcp.call("ssh_tail", json!({ "job_id": job, "stream": "stderr" }));
        assert_eq!(lines(&of_one), known[2..]);

        let listed = mcp.call("ssh_list_jobs", json!({ "host": f.host, "include_finished": false }));
        assert_eq!(pick(&listed["jobs"][0], ["id", "state", "name"]), json!([job, "running", "train"]));
        assert_eq!(listed["jobs"][0].as_object().map(serde_json::Map::len), Some(JOB_KEYS.len()));
        assert_eq!(mcp.call("ssh_list_jobs", json!({ "host": "elsewhere" }))["jobs"], json!([]));

        let there = mcp.call("ssh_signal", json!({ "job_id": job, "signal": 0 }));
        assert_eq!(pick(&there, ["still_running", "sent"]), json!([true, false]));
        assert!(mcp.call_fails("ssh_remove_job", json!({ "job_id": job }), "unexpected").contains("not ended"));
        if f.signal_route() == "channel" {
            await_warm_relay(f, &job);
        }
        let sent = mcp.call("ssh_signal", json!({ "job_id": "train", "signal": "sigterm", "wait_ms": 20000 }));
        assert_eq!(
            sent,
            json!({
                "ok": true, "job_id": job, "host": f.host, "signal": "SIGTERM", "signal_number": 15, "sent": true,
                "sent_via_channel": f.signal_route() == "channel", "sent_via_pid": f.signal_route() == "pid", "pid": started["pid"],
                "exit_status": 143, "still_running": false, "error": null,
            })
        );
        let again = mcp.call("ssh_signal", json!({ "job_id": job }));
        assert_eq!(pick(&again, ["ok", "sent", "exit_status", "still_running"]), json!([true, false, 143, false]));
        let over = mcp.call("ssh_tail", json!({ "job_id": job, "cursor": more["cursor"], "wait_ms": 30000 }));
        assert_eq!(pick(&over, ["still_running", "exit_status"]), json!([false, 143]));
        assert_eq!(lines(&over), [json!(null); 0]);
        mcp.call("ssh_remove_job", json!({ "job_id": job }));
        mcp.call_fails("ssh_tail", json!({ "job_id": job }), "not_found");
        assert_eq!(f.job_ids_on_host(), [""; 0]);
        mcp.close();
        f.await_no_processes();
    }

    fn a_job_is_talked_to(f: &Fixture) {
        let mut mcp = Mcp::start(f, &[]);
        let arguments = json!({ "host": f.host, "command": ["sh", "-c", "while read line; do echo \"got $line\"; done"], "stdin_open": true });
        let job = mcp.call("ssh_spawn", arguments)["job_id"].clone();
        let none = mcp.call("ssh_tail", json!({ "job_id": job, "wait_for": "^got", "wait_ms": 200 }));
        assert_eq!(none["matched"], json!(null));
        for text in ["one", "two"] {
            mcp.call("ssh_send_stdin", json!({ "job_id": job, "text": text }));
        }
        let some = mcp.call("ssh_tail", json!({ "job_id": job, "wait_for": "^got t.o$", "wait_ms": 30000 }));
        assert_eq!((&some["matched"], lines(&some).len()), (&json!("got two"), 2));
        mcp.call_fails("ssh_tail", json!({ "job_id": job, "wait_for": "(" }), "bad_param");
        mcp.call_fails("ssh_send_stdin", json!({ "job_id": job }), "bad_param");
        mcp.call("ssh_send_stdin", json!({ "job_id": job, "text": "last\n", "newline": false, "eof": true }));
        mcp.call_fails("ssh_send_stdin", json!({ "job_id": job, "text": "x" }), "unexpected");
        let last = mcp.call("ssh_tail", json!({ "job_id": job, "wait_for": "never", "wait_ms": 30000 }));
        assert_eq!((&last["matched"], &last["exit_status"], lines(&last).len()), (&json!(null), &json!(0), 3));
        mcp.close();
    }

    fn a_command_is_run_to_its_end(f: &Fixture) {
        let mut mcp = Mcp::start(f, &[]);
        let ran = mcp.call("ssh_exec", json!({ "host": f.host, "command": "echo out; echo err >&2; exit 3" }));
        assert_eq!(
            ran,
            json!({
                "ok": true, "host": f.host, "stdout": "out\n", "stderr": "err\n", "stdout_cut": false, "stderr_cut": false,
                "exit_status": 3, "timed_out": false, "job_id": null, "error": null,
            })
        );
        // The timeout ends the whole process group.
        let line = "(sleep 1000; echo no) & echo begun; wait";
        let late = mcp.call("ssh_exec", json!({ "host": f.host, "command": line, "timeout_ms": 5000 }));
        assert_eq!(pick(&late, ["stdout", "exit_status", "timed_out"]), json!(["begun\n", 143, true]));
        await_no_job(f);
        poll_until("its files are removed", STEP_TIMEOUT, || f.job_ids_on_host().is_empty());
        // Of a long output, the end is returned; the rest can still be read.
        let much = mcp.call("ssh_exec", json!({ "host": f.host, "command": "seq 1 30000" }));
        let text = much["stdout"].as_str().expect("text");
        assert!(text.ends_with("29999\n30000\n") && text.len() == 64 << 10 && much["stdout_cut"] == true);
        let job = much["job_id"].as_str().expect("it is kept");
        let all = mcp.call("ssh_tail", json!({ "job_id": job, "cursor": "start", "max_lines": 1000 }));
        assert_eq!((&all["lines"][999]["text"], &all["more"]), (&"1000".into(), &true.into()));
        mcp.call("ssh_remove_job", json!({ "job_id": job }));
        mcp.close();
    }
}

#[test]
fn every_kind_of_error_is_an_answer() {
    let mut f = Site::OpenSshUser.start();
    let mut mcp = Mcp::start(&f, &["--allow-host", "server", "--allow-host", "nohost.*"]);
    let job = spawn(&mut mcp, &f, "exec sleep 1000");
    for (tool, arguments, word) in [
        ("ssh_signal", json!({}), "job_id"),
        (
            "ssh_signal",
            json!({ "job_id": job, "target": "tree" }),
            "target",
        ),
        (
            "ssh_signal",
            json!({ "job_id": job, "wait_ms": -1 }),
            "wait_ms",
        ),
        (
            "ssh_signal",
            json!({ "job_id": job, "wait_ms": "5s" }),
            "wait_ms",
        ),
        (
            "ssh_signal",
            json!({ "job_id": job, "signal": "FOO" }),
            "FOO",
        ),
        (
            "ssh_signal",
            json!({ "job_id": job, "signal": 1.5 }),
            "signal",
        ),
        ("ssh_signal", json!({ "job_id": job, "signal": 99 }), "99"),
        (
            "ssh_signal",
            json!({ "job_id": job, "signal": "INFO" }),
            "INFO",
        ),
        (
            "ssh_signal",
            json!({ "job_id": job, "signal": 0, "wait_ms": 1 }),
            "wait_ms",
        ),
        (
            "ssh_signal",
            json!({ "job_id": job, "use_channel": false, "use_pid_fallback": false }),
            "use_channel",
        ),
        (
            "ssh_spawn",
            json!({ "host": "server", "command": " " }),
            "command",
        ),
        (
            "ssh_spawn",
            json!({ "host": "-oProxyCommand=x", "command": "true" }),
            "host",
        ),
        (
            "ssh_spawn",
            json!({ "host": "server", "command": "true", "identity": "x" }),
            "identity",
        ),
        (
            "ssh_spawn",
            json!({ "host": "server", "command": "true", "name": "a b" }),
            "name",
        ),
        (
            "ssh_spawn",
            json!({ "host": "server", "command": "true", "env": { "A=B": "s3cret" } }),
            "env",
        ),
        (
            "ssh_spawn",
            json!({ "host": "local", "command": "true" }),
            "server, nohost.*",
        ),
        (
            "ssh_exec",
            json!({ "host": "root@server", "command": "true" }),
            "root@server",
        ),
        (
            "ssh_exec",
            json!({ "host": "server", "command": "true", "timeout_ms": 0 }),
            "timeout_ms",
        ),
        (
            "ssh_tail",
            json!({ "job_id": job, "stream": "stdin" }),
            "stdin",
        ),
        (
            "ssh_tail",
            json!({ "job_id": job, "cursor": "12" }),
            "cursor",
        ),
        ("ssh_list_jobs", json!({ "host": "a b" }), "host"),
    ] {
        let message = mcp.call_fails(tool, arguments, "bad_param");
        assert!(
            message.contains(word) && !message.contains("s3cret"),
            "{message}"
        );
    }
    // A job of a host that is not allowed is not found.
    let here = f.rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();
    let there = format!("local/{here}");
    for (tool, word) in [
        ("ssh_signal", "nosuchjob"),
        ("ssh_tail", "x/y"),
        ("ssh_remove_job", ""),
        ("ssh_signal", &here),
        ("ssh_tail", &there),
    ] {
        mcp.call_fails(tool, json!({ "job_id": word }), "not_found");
    }
    assert_eq!(
        mcp.call("ssh_list_jobs", json!({}))["jobs"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    let refused = mcp.request(&json!({ "do": "call", "tool": "ssh_nothing", "arguments": {} }));
    assert!(
        refused["refused"]
            .as_str()
            .is_some_and(|text| text.contains("ssh_exec")),
        "{refused}"
    );

    mcp.call_fails(
        "ssh_signal",
        json!({ "job_id": job, "use_pid_fallback": false }),
        "delivery_failed",
    );
    mcp.call_fails(
        "ssh_exec",
        json!({ "host": "nohost.invalid", "command": "true" }),
        "delivery_failed",
    );
    // A job that has not reported its pid yet.
    std::fs::rename(f.file(&job, "pid"), f.file(&job, "not yet")).expect("ours");
    kit::database(&f.rsig)
        .execute(
            "UPDATE jobs SET record = json_set(record, '$.pid', NULL, '$.os', NULL, '$.state', 'starting') WHERE id = ?1",
            [&job],
        )
        .expect("an update");
    mcp.call_fails("ssh_signal", json!({ "job_id": job }), "no_pid");
    std::fs::rename(f.file(&job, "not yet"), f.file(&job, "pid")).expect("ours");
    mcp.call_fails("ssh_remove_job", json!({ "job_id": job }), "unexpected");

    f.server.as_mut().expect("a server").stop();
    for tool in ["ssh_signal", "ssh_tail", "ssh_remove_job"] {
        assert!(
            mcp.call_fails(tool, json!({ "job_id": job }), "delivery_failed")
                .contains("server")
        );
    }
    let listed = mcp.call("ssh_list_jobs", json!({}));
    assert_eq!(
        (
            &listed["jobs"][0]["state"],
            listed["warnings"].as_array().map(Vec::len)
        ),
        (&"unknown".into(), Some(1))
    );
    mcp.close();
}

#[test]
fn every_face_sees_the_same_jobs() {
    let f = Site::OpenSshUser.start();
    let mut first = Mcp::start(&f, &[]);
    let mut second = Mcp::start(&f, &[]);
    let job = spawn(
        &mut first,
        &f,
        "echo 1; echo 2 >&2; echo 3; exec sleep 1000",
    );
    f.await_written(&job, "1\n3\n");
    let read = lines(&first.call("ssh_tail", json!({ "job_id": job })));
    let some = first.call("ssh_tail", json!({ "job_id": job, "stream": "stdout" }));
    first.close();
    assert_eq!(
        read,
        [
            json!(["stdout", "1"]),
            json!(["stdout", "3"]),
            json!(["stderr", "2"])
        ]
    );
    assert_eq!(
        lines(&second.call(
            "ssh_tail",
            json!({ "job_id": job, "cursor": some["cursor"] })
        )),
        read[2..]
    );
    // Another server, and the command line.
    let mut third = Mcp::start(&f, &[]);
    assert_eq!(
        lines(&third.call("ssh_tail", json!({ "job_id": job }))),
        read
    );
    f.rsig.run(&["kill", &job, "HUP", "-w", "20s"]).ok();
    let ended = third.call("ssh_signal", json!({ "job_id": job }));
    assert_eq!(pick(&ended, ["sent", "exit_status"]), json!([false, 129]));
    // A job that is known only to its host.
    f.rsig.run(&["rm", "--forget", &job]).ok();
    let there = format!("server/{job}");
    assert_eq!(
        lines(&third.call("ssh_tail", json!({ "job_id": there }))),
        read
    );
    assert_eq!(
        lines(&third.call(
            "ssh_tail",
            json!({ "job_id": there, "cursor": some["cursor"] })
        )),
        read[2..]
    );
    third.call("ssh_remove_job", json!({ "job_id": there }));
    assert_eq!(f.job_ids_on_host(), [""; 0]);
}

/// Each line is returned exactly once, while the job writes.
#[test]
fn a_long_output_is_read_by_its_cursors() {
    let f = Site::OpenSshUser.start_with_keeper();
    let mut mcp = Mcp::start(&f, &[]);
    let line = "for i in $(seq 1 9000); do echo out $i; echo err $i >&2; done; printf last; exec sleep 1000";
    let job = spawn(&mut mcp, &f, line);
    let (mut cursor, mut texts) = (json!("start"), Vec::new());
    while texts.len() < 18_000 {
        let arguments =
            json!({ "job_id": job, "cursor": cursor, "wait_ms": 20000, "max_lines": 1500 });
        let answer = mcp.call("ssh_tail", arguments);
        assert!(
            answer["lines"]
                .as_array()
                .is_some_and(|lines| lines.len() <= 1500 && !lines.is_empty())
        );
        texts.extend(
            lines(&answer)
                .iter()
                .map(|line| line[1].as_str().expect("text").to_owned()),
        );
        cursor = answer["cursor"].clone();
    }
    for word in ["out", "err"] {
        let of = texts.iter().filter(|text| text.starts_with(word));
        assert!(
            of.eq((1..=9000)
                .map(|number| format!("{word} {number}"))
                .collect::<Vec<_>>()
                .iter())
        );
    }
    // The last lines: each stream gets its share.
    poll_until("the rest is written", STEP_TIMEOUT, || {
        f.written(&job).ends_with("last")
    });
    let last = mcp.call("ssh_tail", json!({ "job_id": job, "max_lines": 3 }));
    assert_eq!(
        lines(&last),
        [
            json!(["stdout", "out 8999"]),
            json!(["stdout", "out 9000"]),
            json!(["stderr", "err 9000"])
        ]
    );
    assert_eq!(pick(&last, ["cursor", "more"]), json!([cursor, false]));
    assert_eq!(
        last["omitted_bytes"],
        f.written(&job).len() - "out 8999\nout 9000\nlast".len() + f.written(&job).len()
            - "err 9000\nlast".len()
    );
    mcp.call(
        "ssh_signal",
        json!({ "job_id": job, "signal": "KILL", "wait_ms": 20000 }),
    );
    let end = mcp.call("ssh_tail", json!({ "job_id": job, "cursor": cursor }));
    assert_eq!(lines(&end), [json!(["stdout", "last"])]);
    mcp.close();
}

#[test]
fn a_hundred_calls_side_by_side() {
    // A busy machine may need many connections at once. By default, sshd refuses some of more than ten (MaxStartups).
    let server = Server::openssh(Login::User).config("MaxStartups 100");
    let f = with_keeper(server.start());
    let job = f.spawn(&[], &["perl", "-e", LISTENER]);
    f.await_written(&job, "ready\n");
    let mut mcp = Mcp::start(&f, &[]);
    let signals = vec![("ssh_signal", json!({ "job_id": job, "signal": "USR1" })); 100];
    for answer in mcp.calls(&signals) {
        assert_eq!(answer["sent"], true, "{answer}");
    }
    // Each signal has arrived, exactly once.
    f.await_written(&job, &format!("ready\n{}", "USR1\n".repeat(100)));
    let cursor = mcp.call("ssh_tail", json!({ "job_id": job }))["cursor"].clone();
    let mixed: Vec<(&str, Value)> = (0..100)
        .map(|number| match number % 4 {
            0 => ("ssh_tail", json!({ "job_id": job, "cursor": "start" })),
            1 => ("ssh_list_jobs", json!({})),
            2 => (
                "ssh_tail",
                json!({ "job_id": job, "cursor": cursor, "wait_ms": 100 }),
            ),
            _ => ("ssh_signal", json!({ "job_id": job, "signal": 0 })),
        })
        .collect();
    for (answer, (tool, _)) in mcp.calls(&mixed).iter().zip(&mixed) {
        assert!(
            *tool != "ssh_signal" || answer["still_running"] == true,
            "{answer}"
        );
    }
    let runs: Vec<_> = (0..20)
        .map(|number| {
            (
                "ssh_exec",
                json!({ "host": f.host, "command": format!("echo {number}") }),
            )
        })
        .collect();
    for (number, answer) in mcp.calls(&runs).iter().enumerate() {
        assert_eq!(answer["stdout"], format!("{number}\n"), "{answer}");
    }
    mcp.close();
}

/// The script that starts a command also waits for its end, unless others need its session or its connection ends.
#[test]
fn a_command_is_heard_of_whatever_becomes_of_the_script_that_started_it() {
    let f = with_keeper(Server::openssh(Login::User).config("MaxSessions 1").start());
    let mut mcp = Mcp::start(&f, &[]);
    mcp.call("ssh_exec", json!({ "host": f.host, "command": "true" }));
    let keeper = keeper_pids(&f)[0];
    for (number, (host, last)) in [
        (f.host.as_str(), "true".to_owned()),
        ("local", format!("kill -9 {keeper}")),
    ]
    .into_iter()
    .enumerate()
    {
        let gate = f.job_home().join(format!("gate{number}"));
        let line = format!(
            "echo begun; until [ -e '{0}' ]; do touch '{0}.waits'; sleep 0.05; done; seq 1 5; echo err >&2; exit 7",
            gate.display()
        );
        let then = format!(
            "until [ -e '{0}.waits' ]; do sleep 0.05; done; {last}; touch '{0}'",
            gate.display()
        );
        let answers = mcp.calls(&[
            ("ssh_exec", json!({ "host": f.host, "command": line })),
            ("ssh_exec", json!({ "host": host, "command": then })),
        ]);
        assert_eq!(
            pick(&answers[0], ["stdout", "stderr", "exit_status", "job_id"]),
            json!(["begun\n1\n2\n3\n4\n5\n", "err\n", 7, null])
        );
        assert_eq!(answers[1]["exit_status"], 0, "{}", answers[1]);
    }
    poll_until("their files are removed", STEP_TIMEOUT, || {
        f.job_ids_on_host().is_empty()
    });
    mcp.close();
}

/// On a stuck connection, the answer arrives in time (time limit and ConnectTimeout) and contains the job's id.
#[test]
fn a_stuck_line_is_answered_in_time() {
    for (options, limit) in [(&[][..], 28), (&["-o", "ConnectTimeout=6"], 22)] {
        let mut f = Site::OpenSshUser.start_with_keeper();
        let proxy = Proxy::start(f.server.as_ref().expect("a server").port(), Duration::ZERO);
        f.go_through(&proxy);
        let mut mcp = Mcp::start(&f, options);
        let arguments = |line: &str| json!({ "host": f.host, "command": line, "timeout_ms": 3000 });
        let mut first = arguments("true");
        first["timeout_ms"] = 60000.into();
        mcp.call("ssh_exec", first);
        proxy.hold_both();
        let begun = Instant::now();
        let order =
            json!({ "do": "call", "tool": "ssh_exec", "arguments": arguments("sleep 1000") });
        let answer = mcp.request(&order)["answer"].clone();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(limit), "{took:?}");
        assert_eq!(answer["error"]["kind"], "delivery_failed", "{answer}");
        let job = answer["job_id"].as_str().expect("an id");
        assert_eq!(job.len(), 8, "{answer}");
        // A request that arrives only now is cancelled.
        proxy.release();
        // The server removes the record if it learns the end of the job, or that there is none.
        poll_until("the request is cancelled or over", STEP_TIMEOUT, || {
            f.file(job, "gone").exists()
                || f.has_ended(job)
                || !kit::recorded(&f.rsig).iter().any(|id| id == job)
        });
        poll_until("nothing of it runs", STEP_TIMEOUT, || {
            f.processes()
                .iter()
                .all(|process| process.cmdline != "sleep 1000")
        });
        mcp.kill();
    }
}

#[test]
fn a_client_that_vanishes_takes_the_server_and_no_job_with_it() {
    let f = Site::OpenSshUser.start();
    let mut mcp = Mcp::start(&f, &[]);
    let job = spawn(&mut mcp, &f, "exec sleep 1000");
    let (server, process) = (mcp.server(), f.process(&job));
    let waits = [
        ("ssh_tail", json!({ "job_id": job, "wait_ms": 30000 })),
        (
            "ssh_exec",
            json!({ "host": f.host, "command": "exec sleep 999" }),
        ),
        (
            "ssh_signal",
            json!({ "job_id": job, "signal": "CONT", "wait_ms": 30000 }),
        ),
    ];
    for (tool, arguments) in waits {
        mcp.request(&json!({ "do": "begin", "tool": tool, "arguments": arguments }));
    }
    let runs = || {
        f.processes()
            .into_iter()
            .find(|process| process.cmdline == "sleep 999")
    };
    poll_until("the command runs", STEP_TIMEOUT, || runs().is_some());
    mcp.kill();
    poll_until("the server ends", STEP_TIMEOUT, || !server.runs());
    assert!(process.runs() && runs().is_some());
    f.rsig.run(&["rm", "--force", &job]).ok();
    let left = f.rsig.run(&["ps", "-q"]).ok().line();
    f.rsig.run(&["rm", "--force", &left]).ok();
    f.await_no_processes();
}

#[test]
fn a_call_that_is_given_up_leaves_the_job_alone() {
    let f = Site::Local.start();
    let mut mcp = Mcp::start(&f, &[]);
    mcp.request(&json!({
        "do": "begin", "tool": "ssh_exec", "arguments": { "host": "local", "command": "exec sleep 999" }
    }));
    poll_until("the command runs", STEP_TIMEOUT, || {
        f.processes()
            .iter()
            .any(|process| process.cmdline == "sleep 999")
    });
    mcp.request(&json!({ "do": "cancel" }));
    let listed = mcp.call("ssh_list_jobs", json!({}));
    assert_eq!(listed["jobs"][0]["state"], "running");
    let job = listed["jobs"][0]["id"].as_str().expect("an id");
    // The process that waited for the job has ended by itself, and only the job is left.
    mcp.call(
        "ssh_signal",
        json!({ "job_id": job, "signal": "KILL", "wait_ms": 20000 }),
    );
    mcp.close();
    f.await_no_processes();
}

#[test]
fn nothing_but_the_protocol_is_on_standard_output() {
    let f = Site::OpenSshUser.start();
    let config = f.connect.last().expect("-F CONFIG");
    // A helper that would supply a password if it were called, and a login that would need one.
    let scratch = Scratch::new();
    let asked = scratch.path().join("asked");
    let helper = scratch.file(
        "askpass",
        &format!("#!/bin/sh\n: >{}\necho x\n", asked.display()),
        0o755,
    );
    let call = |id: u32, host: &str| {
        json!({
            "jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": { "name": "ssh_exec", "arguments": { "host": host, "command": "echo noise" } },
        })
    };
    let hello = json!({
        "jsonrpc": "2.0", "id": 0, "method": "initialize",
        "params": { "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } },
    });
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let words = [
        "mcp",
        "-v",
        "-F",
        config,
        "-o",
        "PreferredAuthentications=password",
        "-o",
        "PubkeyAuthentication=no",
    ];
    let mut server = f
        .rsig
        .command(&words)
        .env("SSH_ASKPASS", &helper)
        .env("SSH_ASKPASS_REQUIRE", "force");
    server = server.env("DISPLAY", ":0").stdin_open();
    let mut server = server.start();
    for message in [
        hello,
        ready,
        call(1, "server"),
        call(2, "local"),
        json!("no message"),
    ] {
        server.write(format!("{message}\n"));
    }
    poll_until("both calls are answered", STEP_TIMEOUT, || {
        String::from_utf8_lossy(&server.stdout_so_far())
            .lines()
            .count()
            >= 3
    });
    let output = server.wait();
    let text = output.ok().stderr_has("server: ").stdout();
    let answers: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(
        answers.iter().all(|answer| answer["jsonrpc"] == "2.0"),
        "{text}"
    );
    let result = |id: u32| {
        let answer = answers
            .iter()
            .find(|answer| answer["id"] == id)
            .expect("an answer");
        answer["result"]["structuredContent"].clone()
    };
    assert_eq!(result(1)["error"]["kind"], "delivery_failed");
    assert_eq!(result(2)["stdout"], "noise\n");
    assert!(!asked.exists());
    f.rsig
        .run(&["mcp", "--allow-host", "a b"])
        .code(2)
        .stdout_is("")
        .stderr_has("--allow-host");
}

/// A signal to the server ends it at once, but no job.
#[test]
fn a_server_that_is_ended_leaves_jobs_alone() {
    let f = Site::Local.start();
    let mut mcp = Mcp::start(&f, &[]);
    let job = spawn(&mut mcp, &f, "exec sleep 1000");
    let (server, process): (Process, Process) = (mcp.server(), f.process(&job));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.pid), Signal::SIGTERM)
        .expect("it runs");
    poll_until("the server ends", STEP_TIMEOUT, || !server.runs());
    assert!(process.runs());
    mcp.kill();
}
