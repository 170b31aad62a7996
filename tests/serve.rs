//! `rsig serve`, driven by curl, by raw connections and by schemathesis.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::clients::{file, python};
use crate::harness::{Fixture, Invocation, Process, Running, Site, on_two_sites, poll_until, tool};
use crate::jobs::{JOB_KEYS, LISTENER, STEP_TIMEOUT, keys, pick};

/// A server, and what a client needs to know about it.
struct Http {
    /// The host, as requests name it.
    host: String,
    server: Running,
    base: String,
    /// Options that make curl reach the server.
    curl_options: Vec<String>,
}

impl Http {
    /// Starts a server on the socket.
    #[track_caller]
    fn start(f: &Fixture, options: &[&str]) -> Self {
        let server = f.rsig.spawn_process(&f.server_words("serve", options));
        server.wait_for_stderr("listening on");
        let socket = f.rsig.state().join("serve.sock").display().to_string();
        Self {
            host: f.host.clone(),
            server,
            base: "http://localhost".to_owned(),
            curl_options: vec!["--unix-socket".to_owned(), socket],
        }
    }

    /// Starts a server on a port. Requests carry the token.
    #[track_caller]
    fn on_port(f: &Fixture, address: &str, options: &[&str]) -> Self {
        let words = [&["--listen", address], options].concat();
        let server = f.rsig.spawn_process(&f.server_words("serve", &words));
        server.wait_for_stderr("listening on http://");
        let said = server.stderr_so_far();
        let address = said
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(';').next())
            .expect("an address");
        let header = format!("Authorization: Bearer {}", token(f));
        Self {
            host: f.host.clone(),
            server,
            base: format!("http://{address}"),
            curl_options: vec!["--header".to_owned(), header],
        }
    }

    fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// A call of curl. The last word is the path, the others are options.
    fn curl(&self, words: &[&str]) -> Invocation {
        let (path, options) = words.split_last().expect("a path");
        let curl = tool("curl").args(["--silent", "--show-error", "--globoff", "--max-time", "50"]);
        curl.args(&self.curl_options)
            .args(options)
            .arg(format!("{}{path}", self.base))
            .limit(STEP_TIMEOUT)
    }

    /// Returns the status and the body of the response.
    #[track_caller]
    fn ask(&self, words: &[&str]) -> (u16, Vec<u8>) {
        let output = self
            .curl(&[&["--write-out", "\n%{http_code}"], words].concat())
            .run();
        let bytes = output.ok().stdout_bytes();
        let at = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .expect("the status is the last line");
        (
            String::from_utf8_lossy(&bytes[at + 1..])
                .parse()
                .expect("a number"),
            bytes[..at].to_vec(),
        )
    }

    /// The same, with the body parsed as JSON.
    #[track_caller]
    fn json(&self, words: &[&str]) -> (u16, Value) {
        let (status, body) = self.ask(words);
        let parsed = serde_json::from_slice(&body);
        (
            status,
            parsed.unwrap_or_else(|error| {
                panic!("{words:?}: {error}: {}", String::from_utf8_lossy(&body))
            }),
        )
    }

    /// Returns the status and the error code of a refusal.
    #[track_caller]
    fn refusal(&self, words: &[&str]) -> (u16, String) {
        let (status, body) = self.json(words);
        assert!(
            body["message"]
                .as_str()
                .is_some_and(|message| message.len() > 8),
            "{body}"
        );
        (
            status,
            body["error"]
                .as_str()
                .unwrap_or_else(|| panic!("{words:?}: no error: {body}"))
                .to_owned(),
        )
    }

    #[track_caller]
    fn post(&self, body: &Value) -> (u16, Value) {
        self.json(&["--json", &body.to_string(), "/processes"])
    }

    /// Starts a job from a shell command line.
    #[track_caller]
    fn spawn(&self, line: &str) -> String {
        let (status, job) = self.post(&json!({ "host": self.host, "command": line }));
        assert_eq!(status, 201, "{job}");
        job["id"].as_str().expect("an id").to_owned()
    }

    /// Stops the server as a service manager would.
    #[track_caller]
    fn stop(self) {
        self.server.signal(Signal::SIGTERM);
        self.server.wait().ok().stdout_is("");
    }
}

fn token(f: &Fixture) -> String {
    fs::read_to_string(f.rsig.state().join("serve.token"))
        .expect("the token")
        .trim()
        .to_owned()
}

/// The process of the script that follows a job's log.
#[track_caller]
fn reader(f: &Fixture, job: &str) -> Process {
    let log = f.file(job, "out");
    let reads_log = |process: &Process| {
        let opened = fs::read_link(format!("/proc/{}/fd/6", process.pid));
        process.cmdline == "/bin/sh -s" && opened.is_ok_and(|file| file == log)
    };
    let mut found = None;
    poll_until("a log is followed", STEP_TIMEOUT, || {
        found = f.processes().into_iter().find(reads_log);
        found.is_some()
    });
    found.expect("it was found")
}

on_two_sites! {
    fn every_route_does_what_its_command_does(f: &Fixture) {
        let http = Http::start(f, &[]);
        assert_eq!(http.json(&["/"]), (200, json!({ "name": "rsig", "version": env!("CARGO_PKG_VERSION") })));
        assert_eq!(http.json(&["/processes"]), (200, json!([])));
        let line = "echo \"$COLOUR\"; echo oops >&2; sleep 1000 & wait";
        let order = json!({ "host": f.host, "command": line, "name": "train", "env": { "COLOUR": "red" }, "cwd": "/" });
        let (status, started) = http.post(&order);
        assert_eq!((status, &started["state"], &started["cwd"]), (201, &"running".into(), &"/".into()));
        let job = started["id"].as_str().expect("an id").to_owned();
        f.await_written(&job, "red\n");
        poll_until("stderr is written", STEP_TIMEOUT, || fs::read(f.file(&job, "err")).is_ok_and(|text| text == b"oops\n"));
        assert_eq!(http.refusal(&["--json", &order.to_string(), "/processes"]), (409, "name_taken".to_owned()));

        let (_, text) = http.ask(&["/processes/train"]);
        assert_eq!(keys(&String::from_utf8_lossy(&text)), JOB_KEYS);
        let same = |told: &Value| pick(told, ["id", "state", "command", "host", "pid"]);
        let expected = same(&f.job(&job));
        assert_eq!(same(&http.json(&["/processes/train"]).1), expected);
        assert_eq!(same(&http.json(&["/processes?running=true"]).1[0]), expected);
        f.await_child(&job, "sleep");
        let pids = http.json(&["/processes/train/_pids"]).1;
        let mut found: Vec<Value> = pids["pids"].as_array().expect("numbers").clone();
        found.sort_by_key(Value::as_i64);
        let first = f.process(&job).pid;
        let child = f.processes().into_iter().find(|process| process.ppid == first).expect("the sleep");
        let mut all = [first, child.pid];
        all.sort_unstable();
        assert_eq!(found, all);

        assert_eq!(http.ask(&["/processes/train/_log"]), (200, b"red\n".to_vec()));
        assert_eq!(http.ask(&["/processes/train/_log?stream=stderr&offset=2"]), (200, b"ps\n".to_vec()));
        assert_eq!(http.ask(&["/processes/train/_log?offset=100"]), (200, vec![]));
        let (status, head) = http.ask(&["--head", "/processes/train/_log?follow=true"]);
        assert!(status == 200 && String::from_utf8_lossy(&head).contains("application/octet-stream"));

        let ok = (200, json!({ "ok": true }));
        assert_eq!(http.json(&["-X", "POST", "/processes/train/_signal/0"]), ok);
        assert_eq!(http.json(&["-X", "POST", "/processes/train/_signal/sigcont"]), ok);
        assert_eq!(http.refusal(&["-X", "DELETE", "/processes/train"]), (409, "still_running".to_owned()));
        let waited = http.json(&["-X", "POST", "/processes/train/_signal/WINCH?wait=300ms"]);
        assert_eq!(waited, (200, json!({ "ok": true, "exit_status": null, "still_running": true })));
        let ended = json!({ "ok": true, "exit_status": 143, "still_running": false });
        assert_eq!(http.json(&["-X", "POST", "/processes/train/_signal/15?wait=20s"]), (200, ended.clone()));
        assert_eq!(http.json(&["-X", "POST", "/processes/train/_signal/15?wait=5s"]), (200, ended.clone()));
        assert_eq!(http.refusal(&["-X", "POST", "/processes/train/_signal/15"]), (409, "not_running".to_owned()));
        assert_eq!(http.json(&["/processes?running=true"]), (200, json!([])));
        assert_eq!(http.json(&["/processes"]).1[0]["exit_status"], 143);
        assert_eq!(http.json(&["/processes/train/_pids"]), (200, json!({ "ok": true, "pids": [] })));
        assert_eq!(http.json(&["-X", "DELETE", "/processes/train"]), ok);
        assert_eq!(http.refusal(&["/processes/train"]), (404, "not_found".to_owned()));

        // A job without open input, and one whose input is sent.
        let deaf = http.spawn("exec sleep 1000");
        let path = format!("/processes/{deaf}/_stdin");
        assert_eq!(http.refusal(&["--json", r#"{"text": ""}"#, &path]), (409, "not_open".to_owned()));
        assert_eq!(http.json(&["-X", "DELETE", &format!("/processes/{deaf}?force=true")]), ok);
        let cat = json!({ "host": f.host, "command": "cat", "stdin_open": true });
        let cat = http.post(&cat).1["id"].as_str().expect("an id").to_owned();
        let path = format!("/processes/{cat}/_stdin");
        let send = |body: &str| http.json(&["--json", body, &path]);
        assert_eq!(send(r#"{"text": "one", "newline": true}"#), ok);
        assert_eq!(send(r#"{"text": "two", "eof": true}"#), ok);
        f.rsig.run(&["wait", &cat]).ok();
        assert_eq!(f.written(&cat), "one\ntwo");
        assert_eq!(http.refusal(&["--json", r#"{"text": ""}"#, &path]), (409, "not_running".to_owned()));
        assert_eq!(http.json(&["-X", "DELETE", &format!("/processes/{cat}")]), ok);

        // A job that ignores TERM, its command given as words; and a job that is ended in order to be removed.
        let stubborn = json!({ "host": f.host, "command": ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"] });
        let job = http.post(&stubborn).1["id"].as_str().expect("an id").to_owned();
        f.await_written(&job, "ready\n");
        let killed = json!({ "ok": true, "exit_status": 137, "still_running": false });
        assert_eq!(http.json(&["-X", "POST", &format!("/processes/{job}/_stop?grace=5s")]), (200, killed));
        let other = http.spawn("exec sleep 1000");
        assert_eq!(http.json(&["-X", "DELETE", &format!("/processes/{}%2F{other}?force=true", f.host)]), ok);
        assert_eq!(http.json(&["-X", "DELETE", &format!("/processes/{job}")]), ok);
        assert_eq!(f.job_ids_on_host(), [""; 0]);
        http.stop();
        f.await_no_processes();
    }

    fn a_line_is_waited_for(f: &Fixture) {
        let http = Http::start(f, &[]);
        let gate = f.job_home().join("gate");
        let job = http.spawn(&format!("echo one; until [ -e {} ]; do sleep 0.01; done; echo ready 7 >&2; exec sleep 1000", gate.display()));
        f.await_written(&job, "one\n");
        let path = |query: &str| format!("/processes/{job}/_log?{query}");
        let ask = |query: &str| http.curl(&["--include", &path(query)]);
        ask("wait_for=%5Eready").run().ok().stdout_has("rsig-matched: false").stdout_has("one\n");
        let waiting = ask("wait_for=%5Eready%20%5B0-9%5D&wait=1m&stream=stderr").start();
        fs::write(&gate, "").expect("the home is writable");
        waiting.wait().ok().stdout_has("rsig-matched: true").stdout_has("ready 7\n");
        for bad in ["wait_for=%28", "wait=5s"] {
            assert_eq!(http.refusal(&[&path(bad)]), (400, "bad_value".to_owned()), "{bad}");
        }
        // The end of the job ends the wait.
        let waiting = ask("wait_for=never&wait=1m").start();
        f.rsig.run(&["kill", &job, "KILL"]).ok();
        waiting.wait().ok().stdout_has("rsig-matched: false").stdout_has("one\n");
        http.stop();
    }

    fn a_log_of_which_the_newest_part_is_kept(f: &Fixture) {
        let http = Http::start(f, &[]);
        let body = json!({ "host": http.host, "command": "seq 30000", "log_max": "64K" });
        let (status, answer) = http.post(&body);
        assert_eq!(status, 201, "{answer}");
        let job = answer["id"].as_str().expect("an id");
        f.rsig.run(&["wait", job]).ok();
        let is_stored = || ["out.end", "err.end"].iter().all(|end| f.file(job, end).exists());
        poll_until("all is stored", STEP_TIMEOUT, is_stored);
        let all: String = (1..=30_000).map(|number| format!("{number}\n")).collect();
        for follow in ["false", "true"] {
            let path = format!("/processes/{job}/_log?offset=5&follow={follow}");
            let output = http.curl(&["--include", &path]).run();
            let text = output.ok().stdout();
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            assert!(body.len() >= 64 << 10 && all.ends_with(body), "{head}");
            let omitted = format!("rsig-omitted-bytes: {}\r\n", all.len() - 5 - body.len());
            assert!(head.contains(&omitted), "{head}");
            let path = format!("/processes/{job}/_log?offset={}&follow={follow}", all.len() - 6);
            let output = http.curl(&["--include", &path]).run();
            assert!(output.ok().stdout().ends_with("\r\n\r\n30000\n") && !output.stdout().contains("omitted"));
        }
        let body = json!({ "host": http.host, "command": "true", "log_max": "16" });
        assert_eq!(http.post(&body).0, 400);
    }

    fn a_log_is_followed_to_the_end_of_the_job(f: &Fixture) {
        let http = Http::start(f, &[]);
        let gate = f.job_home().join("gate");
        let job = http.spawn(&format!("echo one; until [ -e {} ]; do sleep 0.01; done; printf 'two\\0'; exit 5", gate.display()));
        let path = format!("/processes/{job}/_log?follow=true&offset=1");
        let follower = http.curl(&["--no-buffer", &path]).start();
        follower.wait_for_stdout("ne\n");
        fs::write(&gate, "").expect("the home is writable");
        assert_eq!(follower.wait().ok().stdout_bytes(), b"ne\ntwo\0");
        // A client that disconnects ends its follower, even if the job writes nothing.
        let silent = http.spawn("exec sleep 1000");
        let process = f.process(&silent);
        let path = format!("/processes/{silent}/_log?follow=1");
        let follower = http.curl(&["--no-buffer", "--verbose", &path]).start();
        follower.wait_for_stderr("200 OK");
        let reader = reader(f, &silent);
        drop(follower);
        poll_until("nobody follows any more", STEP_TIMEOUT, || !reader.runs());
        // A server that stops does so too, but the response does not end as if the job had ended.
        let follower = http.curl(&["--no-buffer", "--verbose", &path]).start();
        follower.wait_for_stderr("200 OK");
        http.stop();
        assert!(!follower.wait().status().success() && process.runs());
    }
}

#[test]
fn what_makes_no_sense_is_said_to() {
    let mut f = Site::OpenSshUser.start();
    let http = Http::start(&f, &["--allow-host", "server", "--allow-host", "nohost.*"]);
    let job = http.spawn("exec sleep 1000");
    let path = |rest: &str| format!("/processes/{job}{rest}");
    for (words, status, word) in [
        (vec!["/nothing"], 404, "not_found"),
        (vec!["/processes/nosuchjob"], 404, "not_found"),
        (vec!["/processes/%ff"], 400, "bad_value"),
        (vec!["/processes?running=maybe"], 400, "bad_value"),
        (vec!["/processes?runing=true"], 400, "bad_value"),
        (vec!["-X", "PUT", "/processes"], 405, "bad_method"),
        (vec!["-X", "POST", "/"], 405, "bad_method"),
        (
            vec!["-X", "POST", "/processes/nosuchjob/_signal/1"],
            404,
            "not_found",
        ),
        (vec!["-X", "POST", &path("/_signal/FOO")], 400, "bad_value"),
        (vec!["-X", "POST", &path("/_signal/99")], 400, "bad_value"),
        (
            vec!["-X", "POST", &path("/_signal/TERM?wait=5")],
            400,
            "bad_value",
        ),
        (
            vec!["-X", "POST", &path("/_signal/0?wait=5s")],
            400,
            "bad_value",
        ),
        (
            vec!["-X", "POST", &path("/_stop?grace=2h")],
            400,
            "bad_value",
        ),
        (vec![&path("/_log?stream=stdin")], 400, "bad_value"),
        (vec![&path("/_log?offset=-1")], 400, "bad_value"),
        (
            vec!["/processes/nosuchjob/_log?follow=true"],
            404,
            "not_found",
        ),
        (vec!["-d", "{}", "/processes"], 415, "bad_media_type"),
        (vec!["--json", "{", "/processes"], 400, "bad_value"),
        (
            vec!["--json", r#"{"host":"server"}"#, "/processes"],
            400,
            "bad_value",
        ),
        (
            vec!["--json", r#"{"host":"server","command":[]}"#, "/processes"],
            400,
            "bad_value",
        ),
        (
            vec!["--json", r#"{"host":"server","command":" "}"#, "/processes"],
            400,
            "bad_value",
        ),
        (
            vec![
                "--json",
                r#"{"host":"server","command":"true","identity":"x"}"#,
                "/processes",
            ],
            400,
            "bad_value",
        ),
        (
            vec![
                "--json",
                r#"{"host":"server","command":"true","env":{"A B":"s3cret"}}"#,
                "/processes",
            ],
            400,
            "bad_value",
        ),
        (
            vec![
                "--json",
                r#"{"host":"server","command":["no-such-command"]}"#,
                "/processes",
            ],
            400,
            "command_missing",
        ),
        (
            vec![
                "--json",
                r#"{"host":"-oProxyCommand=x","command":"true"}"#,
                "/processes",
            ],
            400,
            "bad_value",
        ),
        (
            vec![
                "--json",
                r#"{"host":"local","command":"true"}"#,
                "/processes",
            ],
            403,
            "host_denied",
        ),
        (
            vec![
                "--json",
                r#"{"host":"nohost.invalid","command":"true"}"#,
                "/processes",
            ],
            502,
            "unreachable",
        ),
        (vec!["-H", "Host: evil.example", "/"], 403, "bad_host"),
        (vec!["-H", "Host:", "/"], 403, "bad_host"),
        (
            vec!["-H", "Host: localhost.evil.example", "/nothing"],
            403,
            "bad_host",
        ),
    ] {
        assert_eq!(http.refusal(&words), (status, word.to_owned()), "{words:?}");
    }
    let (_, secret) = http.ask(&[
        "--json",
        r#"{"host":"server","command":"true","env":{"A B":"s3cret"}}"#,
        "/processes",
    ]);
    assert!(!String::from_utf8_lossy(&secret).contains("s3cret"));
    assert_eq!(http.ask(&["--head", "/processes"]).0, 200);
    // Pages of other origins may not read responses, and a preflight request is refused.
    let head = http
        .curl(&["--include", "-H", "Origin: http://evil.example", "/"])
        .run();
    assert!(!head.ok().stdout().to_lowercase().contains("access-control"));
    let asked = [
        "-X",
        "OPTIONS",
        "-H",
        "Origin: http://evil.example",
        "-H",
        "Access-Control-Request-Method: POST",
    ];
    assert_eq!(http.refusal(&[&asked[..], &["/processes"]].concat()).0, 405);
    // A body and a head that are too large.
    let large = f.rsig.dir().join("large");
    fs::write(&large, format!("{{\"host\":\"{}\"}}", "x".repeat(2 << 20))).expect("ours");
    let body = format!("@{}", large.display());
    assert_eq!(
        http.refusal(&["--json", &body, "/processes"]),
        (413, "too_large".to_owned())
    );
    assert_eq!(
        http.ask(&["-H", &format!("X: {}", "x".repeat(60_000)), "/"])
            .0,
        431
    );

    f.server.as_mut().expect("a server").stop();
    assert_eq!(
        http.refusal(&["-X", "POST", &path("/_signal/TERM")]),
        (502, "unreachable".to_owned())
    );
    assert_eq!(
        http.refusal(&["-X", "POST", &path("/_stop")]),
        (502, "unreachable".to_owned())
    );
    assert_eq!(
        http.refusal(&[&path("/_log?follow=true")]),
        (502, "unreachable".to_owned())
    );
    assert_eq!(http.json(&[&path("")]).1["state"], "unknown");
    http.stop();
}

#[test]
fn a_port_needs_the_token() {
    let f = Site::Local.start();
    for address in [
        "0.0.0.0:0",
        "192.168.1.1:5000",
        "[::]:5000",
        "localhost:5000",
        "127.0.0.1",
        "127.0.0.2:0",
    ] {
        f.rsig
            .run(&["serve", "--listen", address])
            .code(2)
            .stderr_has("ssh -L")
            .stdout_is("");
    }
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let http = Http::on_port(&f, address, &[]);
        assert_eq!(http.json(&["/processes"]), (200, json!([])));
        let port = http.base.rsplit(':').next().expect("a port");
        for name in ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"] {
            assert_eq!(
                http.ask(&["-H", &format!("Host: {name}:{port}"), "/"]).0,
                200
            );
        }
        for name in [
            "localhost",
            "localhost:1",
            &format!("evil.example:{port}"),
            &format!("127.0.0.2:{port}"),
        ] {
            assert_eq!(
                http.refusal(&["-H", &format!("Host: {name}"), "/"]),
                (403, "bad_host".to_owned()),
                "{name}"
            );
        }
        let good = token(&f);
        let bare = Http {
            curl_options: vec![],
            ..http
        };
        let half = format!("Authorization: Bearer {}", &good[..good.len() - 1]);
        let longer = format!("Authorization: Bearer {good}0");
        let basic = format!("Authorization: Basic {good}");
        for header in [
            "X: y",
            "Authorization: Bearer",
            "Authorization: Bearer x",
            &half,
            &longer,
            &basic,
        ] {
            for path in ["/", "/openapi.json", "/nothing", "/processes/x/_log"] {
                assert_eq!(
                    bare.refusal(&["-H", header, path]),
                    (401, "unauthorized".to_owned()),
                    "{header}"
                );
            }
        }
        bare.curl(&["--include", "/"])
            .run()
            .ok()
            .stdout_has("www-authenticate: Bearer");
        assert_eq!(
            bare.ask(&["-H", &format!("authorization: bearer {good}"), "/"])
                .0,
            200
        );
        bare.stop();
    }
    // The token stays the same: 256 bits that no other user can read.
    let path = f.rsig.state().join("serve.token");
    let mode = || {
        fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((token(&f).len(), mode()), (64, 0o600));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("ours");
    let refused = |why: &str| {
        f.rsig
            .run(&["serve", "--listen", "127.0.0.1:0"])
            .code(1)
            .stderr_has(why)
            .stderr_has("serve.token");
    };
    refused("640");
    let elsewhere = f.rsig.dir().join("elsewhere");
    fs::rename(&path, &elsewhere).expect("ours");
    std::os::unix::fs::symlink(&elsewhere, &path).expect("ours");
    refused("symbolic link");
    fs::remove_file(&path).expect("ours");
    fs::write(&path, "short\n").expect("ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
    refused("32");
    std::os::unix::fs::chown(&path, Some(12345), None).expect("as root");
    refused("another user");
}

#[test]
fn the_socket_is_this_users_and_one_servers() {
    let f = Site::Local.start();
    let path = f.rsig.state().join("serve.sock");
    let http = Http::start(&f, &[]);
    let metadata = fs::symlink_metadata(&path).expect("it is there");
    assert!(metadata.file_type().is_socket() && metadata.permissions().mode() & 0o777 == 0o600);
    f.rsig
        .run(&["serve"])
        .code(1)
        .stdout_is("")
        .stderr_has("another `rsig serve`");
    assert_eq!(http.ask(&["/"]).0, 200);
    let job = http.spawn("exec sleep 1000");
    let process = f.process(&job);
    http.stop();
    assert!(!path.exists() && process.runs());
    assert_eq!(f.state(&job), "running");
    // The socket that a killed server leaves behind is taken over.
    let http = Http::start(&f, &[]);
    http.server.signal(Signal::SIGKILL);
    drop(http);
    assert!(path.exists());
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        let http = Http::start(&f, &[]);
        assert_eq!(http.ask(&["/"]).0, 200);
        http.server.signal(signal);
        http.server.wait().ok();
        assert!(!path.exists());
    }
    fs::write(&path, "").expect("ours");
    f.rsig.run(&["serve"]).code(1).stderr_has("move it away");
    fs::remove_file(&path).expect("ours");
    let left: Vec<PathBuf> = fs::read_dir(f.rsig.state())
        .expect("ours")
        .map(|entry| entry.expect("ours").path())
        .collect();
    assert!(
        !left
            .iter()
            .any(|path| path.to_string_lossy().contains("serve.sock")),
        "{left:?}"
    );
}

/// Whether a process still holds the server's end of the connection from this port of 127.0.0.1. A closed socket that
/// still has data to send is listed with inode 0 (proc_net_tcp).
fn holds_connection_of(client: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").expect("a table of connections");
    let from = format!(":{client:04X}");
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .any(|fields| fields[2].ends_with(&from) && fields[9] != "0")
}

#[test]
fn who_is_too_slow_is_cut_off() {
    let mut f = Site::Local.start();
    let line = "head -c 60000000 /dev/zero; exec sleep 1000";
    let (job, size) = (f.spawn(&[], &["sh", "-c", line]), 60_000_000);
    f.rsig.clock = 10;
    let http = Http::on_port(&f, "127.0.0.1:0", &[]);
    let head = format!(
        "Host: {}\r\nAuthorization: Bearer {}\r\n",
        http.address(),
        token(&f)
    );
    let connect = || TcpStream::connect(http.address()).expect("it listens");
    let json = "Content-Type: application/json\r\nContent-Length: 100\r\n";
    poll_until("it has written", STEP_TIMEOUT, || {
        fs::metadata(f.file(&job, "out")).is_ok_and(|file| file.len() == size)
    });
    let cases = [
        ("half a head", "GET / HTTP/1.1\r\nHost: x".to_owned(), ""),
        ("nothing", String::new(), ""),
        (
            "half a body",
            format!("POST /processes HTTP/1.1\r\n{head}{json}\r\n{{"),
            "408",
        ),
    ];
    let all: Vec<_> = cases
        .into_iter()
        .map(|(what, sent, answer)| {
            let mut stream = connect();
            stream
                .set_read_timeout(Some(STEP_TIMEOUT))
                .expect("a limit");
            // Not in the thread, which may begin after the server's time limit.
            stream.write_all(sent.as_bytes()).expect("it takes it");
            std::thread::spawn(move || {
                let mut text = Vec::new();
                stream
                    .read_to_end(&mut text)
                    .unwrap_or_else(|error| panic!("{what}: not cut off: {error}"));
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(text.contains(answer), "{what}: {text}");
            })
        })
        .collect();
    // A client that does not read its response: the response is not held in memory, and others are served meanwhile.
    let mut stalled = connect();
    write!(stalled, "GET /processes/{job}/_log HTTP/1.1\r\n{head}\r\n").expect("it takes it");
    // On a busy machine, curl itself may be too slow.
    let retry = ["--retry", "5", "--retry-all-errors"];
    let others = http.ask(&[&retry[..], &["/processes?running=1"]].concat());
    assert_eq!(others.0, 200);
    for one in all {
        one.join().expect("it is cut off");
    }
    let begun = Instant::now();
    let mut received = 0;
    let client = stalled.local_addr().expect("it is connected").port();
    poll_until("its connection is closed", STEP_TIMEOUT, || {
        !holds_connection_of(client)
    });
    let mut rest = vec![0; 1 << 20];
    while let Ok(count @ 1..) = stalled.read(&mut rest) {
        received += count as u64;
    }
    assert!(
        received < size,
        "{received} bytes after {:?}",
        begun.elapsed()
    );
    let status =
        fs::read_to_string(format!("/proc/{}/status", http.server.pid())).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .expect("the most memory that it had")
        .to_owned();
    let peak: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|kb| kb.parse().ok())
        .expect("a number");
    assert!(peak < 40_000, "{peak} kB");
    http.stop();
}

#[test]
fn a_hundred_requests_side_by_side() {
    let f = Site::OpenSshUser.start_with_keeper();
    let http = Http::start(&f, &[]);
    let job = f.spawn(&[], &["perl", "-e", LISTENER]);
    f.await_written(&job, "ready\n");
    let mut words = vec![
        "--parallel".to_owned(),
        "--parallel-immediate".to_owned(),
        "--parallel-max".to_owned(),
        "100".to_owned(),
    ];
    words.extend(
        [
            "-X",
            "POST",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}\n",
        ]
        .map(str::to_owned),
    );
    let url = format!("{}/processes/{job}/_signal/USR1", http.base);
    words.extend(
        (1..100).flat_map(|_| [url.clone(), "--output".to_owned(), "/dev/null".to_owned()]),
    );
    words.push(format!("/processes/{job}/_signal/USR1"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    http.curl(&words).run().ok().stdout_is(&"200\n".repeat(100));
    f.await_written(&job, &format!("ready\n{}", "USR1\n".repeat(100)));
    http.stop();
}

#[test]
fn a_client_that_vanishes_leaves_no_trace() {
    let f = Site::OpenSshUser.start();
    let http = Http::start(&f, &[]);
    let job = http.spawn("exec sleep 1000");
    let asks = || {
        f.processes()
            .iter()
            .any(|process| process.cmdline == "/bin/sh -s")
    };
    poll_until("the shell of the start has gone", STEP_TIMEOUT, || !asks());
    let waiting = http
        .curl(&[
            "-X",
            "POST",
            &format!("/processes/{job}/_signal/CONT?wait=1h"),
        ])
        .start();
    poll_until("it waits", STEP_TIMEOUT, asks);
    drop(waiting);
    // Not only between two parts of a wait, which take five seconds at most.
    let mut quiet = Instant::now();
    poll_until("nobody waits any more", STEP_TIMEOUT, || {
        if asks() {
            quiet = Instant::now();
        }
        quiet.elapsed() > Duration::from_secs(6)
    });
    assert_eq!(
        http.json(&[&format!("/processes/{job}")]).1["state"],
        "running"
    );
    http.stop();
}

/// The OpenAPI document against the server: schemathesis generates valid and invalid requests from it.
#[test]
fn the_document_is_true() {
    let f = Site::OpenSshUser.start_with_keeper();
    let http = Http::on_port(&f, "127.0.0.1:0", &["--allow-host", "server"]);
    let (_, document) = http.json(&["/openapi.json"]);
    assert_eq!(
        pick(&document["info"], ["title", "version"]),
        json!(["rsig", env!("CARGO_PKG_VERSION")])
    );
    let header = format!("Authorization: Bearer {}", token(&f));
    let checked = python("schemathesis")
        .args([
            "run",
            &format!("{}/openapi.json", http.base),
            "--header",
            &header,
        ])
        .args([
            "--checks",
            "all",
            "--max-examples",
            "25",
            "--seed",
            "1",
            "--no-color",
            "--continue-on-failure",
        ])
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", file(""))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("RSIG_TEST_HOST", &f.host)
        .env("HOME", f.rsig.home())
        .cwd(f.rsig.home())
        .limit(STEP_TIMEOUT * 6)
        .run();
    checked.ok();
    // Some requests were accepted.
    assert!(
        !f.rsig.run(&["ps", "-aq"]).ok().stdout().is_empty(),
        "no job was started: {checked}"
    );
    http.stop();
}
