//! Peers that are not an SSH server, not a shell, or that speak the scripts' protocol in order to do harm.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clients::{file, python};
use crate::harness::keys::{Format, Type};
use crate::harness::{
    Fixture, Login, Output, Process, Rsig, Running, Server, Shell, keys, poll_until,
};
use crate::kit::{
    self, FixedReply, FixedServer, STEP_TIMEOUT, assert_clear_message, assert_harmless, config_for,
    record_on, run_within_memory,
};

#[test]
fn what_is_no_ssh_server_is_told_so_in_one_bounded_message() {
    let rsig = Rsig::new();
    let megabyte = |byte: u8| vec![byte; 1 << 20];
    let with = |first: &[u8], then: Vec<u8>| [first.to_vec(), then].concat();
    let cases = [
        (
            "silent",
            FixedReply::Once(vec![]),
            "timed out before it said its SSH version (ConnectTimeout is 1 s)",
        ),
        (
            "closing",
            FixedReply::AndCloses(vec![]),
            "closed the connection",
        ),
        ("half", FixedReply::Once(b"SSH".to_vec()), "timed out"),
        (
            "http",
            FixedReply::AndCloses(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n".to_vec()),
            "HTTP/1.1 400 Bad Request",
        ),
        ("zeros", FixedReply::Once(megabyte(0)), "not with SSH"),
        ("noise", FixedReply::Once(megabyte(0xa5)), "not with SSH"),
        ("line", FixedReply::Once(megabyte(b'x')), "not with SSH"),
        (
            "lines",
            FixedReply::Forever(b"no version yet\r\n".to_vec()),
            "no version yet",
        ),
        (
            "empty-lines",
            FixedReply::Forever(b"\r\n".to_vec()),
            "not with SSH",
        ),
        (
            "late",
            FixedReply::Once(with(&megabyte(b'\n'), b"SSH-2.0-x\r\n".to_vec())),
            "not with SSH",
        ),
        (
            "escapes",
            FixedReply::AndCloses(b"\x1b]0;owned\x07\x1b[2J\xc2\x9b31m\r\n".to_vec()),
            "\\x1b]0;owned",
        ),
        (
            "old",
            FixedReply::Once(b"SSH-1.5-old\r\n".to_vec()),
            "too old",
        ),
        (
            "endless-version",
            FixedReply::Forever(b"SSH-2.0-x".to_vec()),
            "endless-version",
        ),
        (
            "version-only",
            FixedReply::Once(b"SSH-2.0-\x1b[2J\r\n".to_vec()),
            "timed out",
        ),
        (
            "version-noise",
            FixedReply::Once(with(b"SSH-2.0-x\r\n", megabyte(0xff))),
            "version-noise",
        ),
        (
            "version-zeros",
            FixedReply::Once(with(b"SSH-2.0-x\r\n", megabyte(0))),
            "version-zeros",
        ),
        (
            "huge-packet",
            FixedReply::Once(with(b"SSH-2.0-x\r\n", vec![0x7f, 0xff, 0xff, 0xff, 4, 20])),
            "huge-packet",
        ),
        // SSH_MSG_IGNORE, RFC 4253 11.2, again and again.
        (
            "ignore-me",
            FixedReply::Forever(with(
                b"SSH-2.0-x\r\n",
                b"\0\0\0\x0c\x04\x02\0\0\0\x02ab\0\0\0\0".repeat(100),
            )),
            "ignore-me",
        ),
        (
            "busy",
            FixedReply::AndCloses(b"Exceeded MaxStartups\r\n".to_vec()),
            "is refusing new connections",
        ),
    ];
    let sayers: Vec<_> = cases
        .into_iter()
        .map(|(name, says, said)| (name, FixedServer::start(says), said))
        .collect();
    for (name, sayer, said) in &sayers {
        // On a busy machine an answer may take longer than the timeout that detects silence. The first value is in
        // force, and the largest one limits `ssh -G`.
        let timeout = if said.starts_with("timed out") || said == name {
            "ConnectTimeout 1\nConnectTimeout 15"
        } else {
            "ConnectTimeout 6"
        };
        let config = config_for(&rsig, name, sayer.port(), timeout);
        let start = Instant::now();
        let output = run_within_memory(rsig.command(&["spawn", "-F", &config, name, "--", "true"]));
        output
            .code(255)
            .stdout_is("")
            .stderr_has(name)
            .stderr_has(said);
        assert_clear_message(&output);
        assert!(start.elapsed() < Duration::from_secs(20), "{name}");
    }
    assert_eq!(kit::recorded(&rsig), Vec::<String>::new());
}

/// Makes a host whose login runs this script, whatever command is requested. Returns the configuration for it.
fn forced(server: &Server, name: &str, script: &str) -> String {
    let file = server.dir().join(format!("{name}.sh"));
    fs::write(&file, script).expect("the server's directory is ours");
    let key = keys::generate(
        &server.dir().join(format!("key-{name}")),
        Type::Ed25519,
        "",
        Format::OpenSsh,
    );
    server.add_authorized(&format!(
        "command=\"exec sh {}\" {}",
        file.display(),
        key.public
    ));
    let config = server.ssh_config_with(name, &format!("IdentityFile {}", key.private.display()));
    config
        .into_os_string()
        .into_string()
        .expect("our paths are UTF-8")
}

/// Asserts that `spawn`, and commands about a job recorded as running there, fail as expected.
#[track_caller]
fn nothing_works(rsig: &Rsig, name: &str, config: &str, said: &str) {
    let output =
        run_within_memory(rsig.command(&["spawn", "-F", config, name, "--", "touch", "started"]));
    assert_clear_message(output.code(1).stdout_is(""));
    output.stderr_has(name).stderr_has(said);
    assert_eq!(kit::recorded(rsig), Vec::<String>::new(), "{output}");
    record_on(rsig, "00000000", name, config);
    for (words, code) in [
        (&["kill", "--json"][..], 1),
        (&["wait"], 125),
        (&["tail"], 1),
        (&["ps"], 0),
        (&["rm"], 1),
    ] {
        let output = run_within_memory(rsig.command(words).arg("00000000"));
        output.code(code);
        if words[0] == "kill" {
            let report: serde_json::Value = serde_json::from_str(&output.line()).expect("JSON");
            assert_eq!(
                (&report["sent"], &report["error"]["kind"]),
                (&false.into(), &"failed".into()),
                "{output}"
            );
        } else {
            assert_clear_message(output.stderr_has(name).stderr_has(said));
        }
    }
    rsig.run(&["rm", "--forget", "00000000"]).ok();
}

#[test]
fn a_login_that_runs_no_shell_starts_nothing_and_shows_its_words() {
    let server = Server::openssh(Login::User).start();
    let rsig = Rsig::new();
    for (name, script, said) in [
        ("silent", "exit 0", "did not start /bin/sh"),
        (
            "polite",
            "echo 'Only git is served here'; exit 3",
            "Only git is served here",
        ),
        (
            "closed",
            "echo 'This account is closed' >&2; exit 1",
            "This account is closed",
        ),
        (
            "escapes",
            r"printf '\033]0;owned\007\033[2J\233\342\200\256'; exit 1",
            "\\x1b]0;owned",
        ),
        ("echo", "head -c 3000", "did not start /bin/sh"),
        (
            "long",
            "head -c 900000 /dev/zero | tr '\\0' x",
            "did not start /bin/sh",
        ),
        (
            "forged",
            r"printf '\001%s begin\nstarted 7 7 1 b Linux 5 m n\ndirectory /x\n' $(head -c 40 | tail -c 32)x",
            "did not start",
        ),
        ("killed", "kill -9 $$", "did not start /bin/sh"),
    ] {
        nothing_works(&rsig, name, &forced(&server, name, script), said);
    }
    assert!(!server.home().join("started").exists());
}

#[test]
fn a_login_shell_that_is_none_starts_nothing() {
    for (shell, said, code) in [
        ("/usr/sbin/nologin", "not available", 1),
        ("/bin/true", "did not start /bin/sh", 1),
        ("/bin/false", "did not start /bin/sh", 1),
        ("/nonexistent", "refused the login", 255),
    ] {
        let server = Server::openssh(Login::User).shell(Shell::Bash).start();
        let accounts = server.dir().join("accounts/passwd");
        let text = fs::read_to_string(&accounts)
            .expect("our own file")
            .replace("/bin/bash", shell);
        fs::write(&accounts, text).expect("our own file");
        let f = Fixture::with(Some(server));
        let output = f.rsig.run(&f.words("spawn", &[], &["touch", "started"]));
        assert_clear_message(output.code(code).stdout_is(""));
        output.stderr_has(said);
        assert!(
            kit::recorded(&f.rsig).is_empty() && !f.job_home().join("started").exists(),
            "{output}"
        );
    }
}

#[test]
fn a_login_that_chatters_is_listened_through() {
    let chatter = "head -c 900000 /dev/zero | tr '\\0' x\nprintf '\\n\\033[2J\\001begin\\n'\n";
    let server = Server::openssh(Login::Root)
        .home_file(
            ".bashrc",
            &format!("{chatter}{chatter}>&2 echo welcome\n").replacen("900000", "90000", 1),
        )
        .file("banner", "\x1b]0;owned\x07\nAuthorized use only\n")
        .config("Banner {dir}/banner")
        .start();
    let f = Fixture::with(Some(server));
    let job = f.spawn(
        &[],
        &["sh", "-c", "printf 'out\\0\\001'; echo err >&2; sleep 1000"],
    );
    poll_until("it has written", STEP_TIMEOUT, || {
        let output = f.rsig.run(&["tail", &job]);
        output.ok().stdout_bytes() == b"out\0\x01" && output.stderr().contains("err\n")
    });
    let output = run_within_memory(f.rsig.command(&["kill", &job, "--wait", "20s"]));
    output
        .ok()
        .stdout_has("ended with status 143")
        .stderr_is_empty();
    f.rsig.run(&["rm", &job]).ok();
}

#[test]
fn a_login_that_never_stops_chattering_starts_nothing_that_is_not_known() {
    let server = Server::openssh(Login::Root)
        .home_file(".bashrc", "head -c 1000000000 /dev/zero | tr '\\0' x\n")
        .start();
    let f = Fixture::with(Some(server));
    let output = run_within_memory(f.rsig.command(&f.words(
        "spawn",
        &[],
        &["sh", "-c", ": >ran; sleep 1000"],
    )));
    assert_clear_message(output.code(255).stdout_is(""));
    output
        .stderr_has("sends far more than an answer")
        .stderr_has("is not known");
    let [job] = kit::recorded(&f.rsig)
        .try_into()
        .expect("what may have started is recorded");
    // As the message says: once the login prints less, the state can be determined.
    fs::write(f.job_home().join(".bashrc"), "").expect("the home is writable");
    // So long ago that it counts as lost if it is not there.
    let statement = "UPDATE jobs SET record = json_set(record, '$.created_at', created_at - 100)";
    kit::database(&f.rsig)
        .execute(statement, [])
        .expect("an update");
    let ran = f.job_home().join("ran");
    poll_until("it is resolved", STEP_TIMEOUT, || {
        let state = kit::state(&f.rsig, &job);
        state == "running" && ran.exists() || state == "lost" && !ran.exists()
    });
}

/// Behaves like a script that rsig sent, up to a point.
const SPEAKER: &str = "while read -r nonce; do case $nonce in rs_nonce=*) break ;; esac; done
nonce=${nonce#rs_nonce=}
m() { printf '\\001%s %s\\n' \"$nonce\" \"$1\"; }
x() { head -c \"$1\" /dev/zero | tr '\\0' x; }
";

#[test]
fn a_false_shell_that_answers_nonsense_to_a_spawn_is_not_believed() {
    let server = Server::openssh(Login::User).start();
    let rsig = Rsig::new();
    for (name, lines, said, code) in [
        (
            "empty",
            "m begin; m end",
            "neither started nor refused",
            255,
        ),
        ("mark", "m dance", "unexpected reply: dance", 255),
        ("twice", "m begin; m begin", "unexpected reply: begin", 255),
        (
            "data",
            "m begin; m data; x 2000000; m end",
            "unexpected data",
            255,
        ),
        (
            "word",
            r"m begin; printf 'sta\033[2Jrted\n'; m end",
            "sta\\x1b[2Jrted",
            255,
        ),
        (
            "fields",
            "m begin; echo started 1; m end",
            "unexpected reply",
            255,
        ),
        (
            "numbers",
            "m begin; echo started -1 99999999999 1 b L 5 m n; m end",
            "unexpected reply",
            255,
        ),
        (
            "relative",
            "m begin; echo directory ../..; m end",
            "unexpected reply",
            255,
        ),
        (
            "binary",
            r"m begin; printf '\377\376\n'; m end",
            "\\xff\\xfe",
            255,
        ),
        (
            "line",
            "m begin; x 3000000; m end",
            "far more than an answer",
            255,
        ),
        (
            "lines",
            "m begin; yes 'warning logind'",
            "far more than an answer",
            255,
        ),
        ("cut", "m begin", "connection lost", 255),
        (
            "refusal",
            r"m begin; printf 'refused missing \033]0;owned\007\n'; m end",
            "\\x1b]0;owned",
            1,
        ),
        (
            "long-refusal",
            "m begin; printf 'refused start '; x 60000; echo; m end",
            "did not start: xxx",
            1,
        ),
    ] {
        let config = forced(&server, name, &format!("{SPEAKER}{lines}"));
        let output = run_within_memory(
            rsig.command(&["spawn", "-F", &config, name, "--", "touch", "started"]),
        );
        assert_clear_message(output.code(code).stdout_is(""));
        output.stderr_has(name).stderr_has(said);
        // A job that may have started stays recorded; a refused one does not.
        let records = kit::recorded(&rsig);
        assert_eq!(records.len(), usize::from(code == 255), "{output}");
        for id in records {
            rsig.run(&["rm", "--forget", &id]).ok();
        }
    }
    // Accepted, since any path and system name is possible, but escaped when shown.
    let lines = r"m begin; printf 'started 7 7 1 b L\033[2J 5 m n\ndirectory /x\033[31m\n'; m end";
    let config = forced(&server, "paint", &format!("{SPEAKER}{lines}"));
    let job = rsig
        .run(&["spawn", "-F", &config, "paint", "--", "true"])
        .ok()
        .line();
    for words in [
        &["ps", "--cached"][..],
        &["ps", "--cached", "--json"],
        &["kill"],
        &["wait"],
        &["rm", "--forget"],
    ] {
        let output = rsig
            .command(words)
            .args((words[0] != "ps").then_some(&job))
            .run();
        assert_harmless(&output.stdout());
        assert_harmless(output.stderr());
    }
}

#[test]
fn a_false_shell_that_answers_nonsense_about_a_job_is_not_believed() {
    let server = Server::openssh(Login::User).start();
    let rsig = Rsig::new();
    let nonsense = [
        ("nothing", "m begin; m end"),
        (
            "state",
            r"m begin; printf 'job 0 dan\033[2Jcing - - - 5 5 1 Linux 7 b m n\n'; m end",
        ),
        (
            "index",
            "m begin; echo job 7 running - - - 5 5 1 Linux 7 b m n; echo sent 7 yes; echo gone 7; m end",
        ),
        (
            "status",
            "m begin; echo job 0 exited 999 1 - 5 5 1 Linux 7 b m n; m end",
        ),
        ("sent", r"m begin; printf 'sent 0 may\033[2Jbe\n'; m end"),
        (
            "elsewhere",
            r"m begin; printf 'job 0 elsewhere - - - 5 5 1 Linux 7 b m \033]0;owned\007\n'; m end",
        ),
        (
            "foreign",
            "m begin; echo job 0 foreign - - - - - - - - - - -; m end",
        ),
        (
            "kept",
            r"m begin; printf 'kept 0 \033]0;owned\007'; x 60000; echo; m end",
        ),
        ("line", "m begin; x 3000000; m end"),
        (
            "lines",
            "m begin; yes 'job 0 running - - - 5 5 1 Linux 7 b m n'",
        ),
        ("binary", r"m begin; printf '\377\376\n'; m end"),
        ("cut", "m begin; echo job 0 running - - 5 5 1 Linux n"),
    ];
    let accepted = |command: &str, name: &str, output: &Output| match (command, name) {
        // Valid answers: a host can lie only about itself.
        (_, "lines") => true,
        ("ps", _) => output.status().code() == Some(0),
        ("wait", _) => matches!(output.status().code(), Some(124 | 125)),
        _ => matches!(output.status().code(), Some(1 | 255)),
    };
    for (number, (name, lines)) in nonsense.into_iter().enumerate() {
        let config = forced(&server, name, &format!("{SPEAKER}{lines}"));
        let id = format!("000000{number:02}");
        record_on(&rsig, &id, name, &config);
        // The other commands read answers in the same way, so two of them are enough for each case.
        let others: [&[&str]; 4] = [
            &["ps"],
            &["wait", "--timeout", "1s"],
            &["tail", "--stdout"],
            &["rm"],
        ];
        for words in [
            &["kill", "--json"],
            others[number % 4],
            others[(number + 1) % 4],
        ] {
            let output = run_within_memory(rsig.command(words).arg(&id));
            assert!(accepted(words[0], name, &output), "{name}: {output}");
            assert_harmless(&output.stdout());
            assert_harmless(output.stderr());
            assert!(
                output.stderr().len() < 2000 && output.stdout().len() < 3000,
                "{output}"
            );
            if words[0] == "kill" {
                let report: serde_json::Value = serde_json::from_str(&output.line()).expect("JSON");
                assert_ne!(report["sent"], true, "{output}");
            }
        }
        assert!(
            kit::recorded(&rsig).contains(&id) || name == "lines",
            "{name}: a record was lost"
        );
    }
}

/// Starts an SSH server that accepts rsig's login and then misbehaves as `kind` says (see `clients/hostile_server.py`).
/// Returns it and the configuration for it.
fn hostile(rsig: &Rsig, kind: &str) -> (Running, String) {
    let server = python("python")
        .arg("-u")
        .arg(file("hostile_server.py"))
        .arg(kind)
        .limit(STEP_TIMEOUT * 3);
    let server = rsig.within(server).stdin_open().start();
    server.wait_for_stdout("\n");
    let text = String::from_utf8(server.stdout_so_far()).expect("a port and a key");
    let (port, key) = text.trim_end().split_once(' ').expect("a port and a key");
    fs::write(
        rsig.dir().join("known_hosts"),
        format!("[127.0.0.1]:{port} {key}\n"),
    )
    .expect("our own directory");
    let config = config_for(rsig, "hostile", port.parse().expect("a port"), "");
    (server, config)
}

fn keeper_of(rsig: &Rsig) -> Option<Process> {
    rsig.processes()
        .into_iter()
        .find(|process| process.cmdline.contains("keeper-serve"))
}

/// A value of a process's memory in kB; 0 once it has ended.
fn memory(process: &Process, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

/// The keeper of a server that does harm stays small and serves its commands, or ends. Its command ends with a clear
/// message, at the latest when the server does.
#[track_caller]
fn stays_above_water(kind: &str) {
    let mut rsig = Rsig::new();
    rsig.keeper = true;
    let (server, config) = hostile(&rsig, kind);
    record_on(&rsig, "00000000", "hostile", &config);
    let mut command = rsig.command(&["kill", "--json", "00000000"]).start();
    server.wait_for_stdout("begun");
    // It may have ended already.
    let keeper = keeper_of(&rsig);
    let runs = || keeper.as_ref().is_some_and(Process::runs);
    let floods = !matches!(kind, "silent" | "output" | "errors");
    // libssh2 stores these, so the keeper has to end.
    let hoards = kind == "banners";
    let (mut anonymous, mut peak, mut rounds) = (0, 0, 0);
    poll_until(&format!("{kind}: enough was sent"), STEP_TIMEOUT, || {
        if let Some(process) = &keeper {
            anonymous = anonymous.max(memory(process, "RssAnon"));
            peak = peak.max(memory(process, "VmHWM"));
        }
        rounds += 1;
        // A keeper that is about to end accepts no connection, and takes a moment to end.
        poll_until(
            &format!("{kind}: the keeper answers, or goes"),
            STEP_TIMEOUT,
            || {
                let status = rsig.run(&["keeper", "status", "--json"]);
                let keepers: Value = serde_json::from_str(&status.ok().stdout()).expect("JSON");
                !keepers[0].is_null() || !runs()
            },
        );
        let sent = server
            .stdout_so_far()
            .windows(8)
            .filter(|line| line == b"flooding")
            .count();
        command.has_ended()
            || !runs()
            || (if hoards {
                sent >= 12
            } else if floods {
                sent >= 4
            } else {
                rounds >= 20
            })
    });
    // Messages to be ignored are no reason for the keeper to end.
    assert!(runs() || !matches!(kind, "ignore" | "renewal"), "{kind}");
    server.wait().ok();
    let output = command.wait();
    output.code(255);
    let report: Value = serde_json::from_str(&output.line()).expect("JSON");
    assert_ne!(report["sent"], true, "{output}");
    let message = report["error"]["message"].as_str().expect("a message");
    assert!(!message.is_empty() && message.len() < 2000, "{output}");
    assert_harmless(message);
    assert_harmless(output.stderr());
    assert!(
        hoards && peak < 100_000 || anonymous < 16_000 && peak < 40_000,
        "{kind}: {anonymous} kB, {peak} kB at the most"
    );
    poll_until(&format!("{kind}: the keeper goes"), STEP_TIMEOUT, || {
        keeper_of(&rsig).is_none()
    });
}

/// Each is a separate test, since each takes a while, mostly waiting.
macro_rules! keepers_stay_above_water {
    ($($name:ident: $kind:literal;)+) => {
        mod a_keeper_stays_above_water {
            $(#[test]
            fn $name() {
                super::stays_above_water($kind);
            })+
        }
    };
}

keepers_stay_above_water! {
    where_nothing_is_answered: "silent";
    under_output: "output";
    under_errors: "errors";
    under_output_beyond_its_window: "unasked";
    under_what_is_to_be_ignored: "ignore";
    under_what_is_to_be_ignored_while_keys_are_renewed: "renewal";
    under_banners: "banners";
    under_what_is_for_a_log: "debug";
    under_requests: "requests";
    under_channels: "channels";
    under_room_for_more: "windows";
}

#[test]
fn a_private_keeper_stays_above_water_too() {
    let rsig = Rsig::new();
    let (_server, config) = hostile(&rsig, "banners");
    let mut spawn = rsig
        .command(&["spawn", "-F", &config, "hostile", "true"])
        .start();
    let mut peak = 0;
    poll_until("it is given up", STEP_TIMEOUT, || {
        peak = keeper_of(&rsig).map_or(peak, |keeper| peak.max(memory(&keeper, "VmHWM")));
        spawn.has_ended()
    });
    let output = spawn.wait();
    output.code(255).stderr_has("far more than was asked for");
    assert!(peak < 130_000, "{peak} kB at the most");
}

#[test]
fn a_server_that_never_stops_is_given_up_without_a_keeper() {
    let mut rsig = Rsig::new();
    rsig.clock = 10;
    let (_server, config) = hostile(&rsig, "ignore");
    record_on(&rsig, "00000000", "hostile", &config);
    let output = run_within_memory(rsig.command(&["ps", "00000000"]));
    assert_clear_message(output.ok());
    output.stdout_has("unknown");
}
