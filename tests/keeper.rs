//! The keeper: signals go by channel first and take one round trip, and nothing is lost when the keeper dies.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::tty::{CTRL_C, ENTER};
use crate::harness::{
    Direction, Fixture, Login, Proxy, STEP_TIMEOUT, Server, idle_shells, on_every_kept_site,
    poll_until, tool,
};
use crate::keepers::{
    COUNTER, assert_final_count, assert_nothing_left, await_probe, await_warm_relay, dots_written,
    helpers, keeper_pids, keepers, kill9, new_counter, shared_keepers, with_keeper,
};

/// The value of a key in one line of JSON, as written there.
fn value(json: &str, key: &str) -> String {
    let rest = json
        .split_once(&format!("\"{key}\":"))
        .unwrap_or_else(|| panic!("no {key} in {json}"))
        .1;
    rest.split([',', '}']).next().unwrap_or_default().to_owned()
}

/// Whether the server passes a channel's signals on.
fn honours(f: &Fixture) -> bool {
    f.signal_route() == "channel"
}

/// How to send a signal: any way, or by pid alone.
const WAYS: [&str; 2] = ["any", "pid"];

fn kill_by<'a>(way: &str, job: &'a str) -> Vec<&'a str> {
    if way == "pid" {
        vec!["kill", "--via", "pid", job, "USR1"]
    } else {
        vec!["kill", job, "USR1"]
    }
}

on_every_kept_site! {
    fn a_signal_goes_by_the_channel_where_the_server_takes_it(f: &Fixture) {
        let job = new_counter(f);
        if honours(f) {
            await_warm_relay(f, &job);
        }
        let json = f.rsig.run(&["kill", "--json", &job, "USR1"]).ok().line();
        assert_eq!(value(&json, "via"), if honours(f) { "\"channel\"" } else { "\"pid\"" });
        assert_eq!(value(&json, "sent"), "true");
        let json = f.rsig.run(&["kill", "--json", "--via", "pid", &job, "USR1"]).ok().line();
        assert_eq!(value(&json, "via"), "\"pid\"");
        let forced = f.rsig.run(&["kill", "--json", "--via", "channel", &job, "USR1"]);
        if honours(f) {
            assert_eq!(value(&forced.ok().line(), "via"), "\"channel\"");
        } else {
            let json = forced.code(1).line();
            assert_eq!((value(&json, "sent"), value(&json, "via")), ("false".into(), "null".into()));
            assert!(json.contains("\"no_channel\""), "{json}");
        }
        let expected = if honours(f) { 3 } else { 2 };
        poll_until("every signal is counted", STEP_TIMEOUT, || dots_written(f, &job) == expected);
        let json = f.rsig.run(&["kill", "--json", "--wait", "10s", &job]).ok().line();
        assert_eq!((value(&json, "exit_status"), value(&json, "still_running")), ("7".into(), "false".into()));
        assert_eq!(dots_written(f, &job), expected);
    }

    fn ten_kills_at_once_count_ten(f: &Fixture) {
        for way in WAYS {
            let job = new_counter(f);
            let kills: Vec<_> = (0..10).map(|_| f.rsig.spawn_process(&kill_by(way, &job))).collect();
            kills.into_iter().for_each(|kill| { kill.wait().ok(); });
            poll_until("ten are counted", STEP_TIMEOUT, || dots_written(f, &job) == 10);
            f.rsig.run(&["stop", &job]).ok();
            assert_eq!(dots_written(f, &job), 10, "{way}");
        }
    }
}

/// Servers that pass channel signals on, each behind a proxy.
fn honouring() -> [(Fixture, Proxy); 2] {
    [Server::openssh(Login::User), Server::dropbear(Login::Root)]
        .map(|options| with_keeper(options.start()).through_proxy())
}

/// All pairs of the two.
fn pairs<A: Copy, B: Copy, const N: usize>(
    some: [A; 2],
    others: [B; N],
) -> impl Iterator<Item = (A, B)> {
    some.into_iter()
        .flat_map(move |one| others.map(|other| (one, other)))
}

#[test]
fn a_cut_anywhere_between_request_and_answer_sends_once() {
    for (f, proxy) in honouring() {
        for (way, direction) in pairs(WAYS, [Direction::ToServer, Direction::ToClient]) {
            for after in [0, 1, 30, 60, 90, 110, 150] {
                let job = new_counter(&f);
                await_warm_relay(&f, &job);
                proxy.cut_after_bytes(direction, after);
                f.rsig.run(&kill_by(way, &job)).ok();
                assert_final_count(&f, &job, 1, &format!("{way} {direction:?} {after}"));
                proxy.cut();
            }
        }
        f.rsig.run(&["keeper", "stop", "--all"]);
        assert_nothing_left(&f);
    }
}

#[test]
fn a_late_answer_is_not_waited_for_and_sends_nothing_twice() {
    for (f, proxy) in honouring() {
        await_probe(&f);
        for direction in [Direction::ToServer, Direction::ToClient] {
            let job = new_counter(&f);
            await_warm_relay(&f, &job);
            proxy.hold(direction);
            let kill = f.rsig.spawn_process(&kill_by("any", &job));
            poll_until("the relay is retired", STEP_TIMEOUT, || {
                keepers(&f).iter().any(|keeper| {
                    keeper["relays"].as_array().is_some_and(|all| {
                        all.iter()
                            .any(|relay| relay[0] == job.as_str() && relay[1] == false)
                    })
                })
            });
            proxy.release();
            kill.wait().ok();
            // From now on signals go by pid.
            let json = f.rsig.run(&["kill", "--json", &job, "USR1"]).ok().line();
            assert_eq!(value(&json, "via"), "\"pid\"");
            assert_final_count(&f, &job, 2, &format!("{direction:?}"));
        }
    }
}

#[test]
fn a_relay_that_stands_still_is_passed_by_and_stays_silent() {
    for server in [Server::openssh(Login::User), Server::dropbear(Login::Root)] {
        let f = with_keeper(server.start());
        let job = new_counter(&f);
        await_warm_relay(&f, &job);
        let mut helper = None;
        poll_until("the relay has its helper", STEP_TIMEOUT, || {
            helper = helpers(&f)
                .into_iter()
                .find(|process| process.name == "cat");
            helper.is_some()
        });
        let helper = helper.expect("it was found");
        let all = f.processes();
        let mut relay = all
            .iter()
            .find(|process| process.pid == helper.ppid)
            .expect("the helper's parent");
        // One of the helpers has another shell in between.
        while let Some(parent) = all
            .iter()
            .find(|p| p.pid == relay.ppid && p.cmdline.ends_with("sh -s"))
        {
            relay = parent;
        }
        kill(Pid::from_raw(relay.pid), Signal::SIGSTOP).expect("the relay is there");
        let json = f.rsig.run(&["kill", "--json", &job, "USR1"]).ok().line();
        assert_eq!(
            (value(&json, "sent"), value(&json, "via")),
            ("true".into(), "\"pid\"".into())
        );
        let forced = f
            .rsig
            .run(&["kill", "--json", "--via", "channel", &job, "USR1"]);
        assert!(forced.code(1).line().contains("\"no_channel\""));
        kill(Pid::from_raw(relay.pid), Signal::SIGCONT).expect("the relay is there");
        let status = format!("/proc/{}/status", relay.pid);
        poll_until("it has taken its signal", STEP_TIMEOUT, || {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            text.lines()
                .filter(|line| line.starts_with("SigPnd") || line.starts_with("ShdPnd"))
                .all(|l| l.ends_with("0000"))
        });
        assert_final_count(&f, &job, 1, "stopped relay");
    }
}

#[test]
fn kills_count_once_each_whenever_the_keeper_is_killed() {
    for server in [Server::openssh(Login::User), Server::dropbear(Login::Root)] {
        let f = with_keeper(server.start());
        for (way, counted) in pairs(WAYS, [0, 1, 3, 7]) {
            let job = new_counter(&f);
            await_warm_relay(&f, &job);
            let kills: Vec<_> = (0..10)
                .map(|_| f.rsig.spawn_process(&kill_by(way, &job)))
                .collect();
            poll_until("some are counted", STEP_TIMEOUT, || {
                dots_written(&f, &job) >= counted
            });
            keeper_pids(&f).into_iter().for_each(kill9);
            kills.into_iter().for_each(|kill| {
                kill.wait().ok().stderr_is_empty();
            });
            assert_final_count(
                &f,
                &job,
                10,
                &format!("{way}: keeper killed after {counted}"),
            );
        }
        keeper_pids(&f).into_iter().for_each(kill9);
        assert_nothing_left(&f);
    }
}

#[test]
fn a_client_that_is_killed_leaves_no_trace() {
    let f = with_keeper(Server::openssh(Login::User).start());
    let job = new_counter(&f);
    await_warm_relay(&f, &job);
    let server = f.server.as_ref().expect("a server");
    poll_until("a spare shell is open", STEP_TIMEOUT, || {
        idle_shells(&server.processes()).len() == 1
    });
    let before = helpers(&f).len();
    for milliseconds in 0..25 {
        let words: [&[&str]; 3] = [&["kill", &job, "USR1"], &["ps"], &["wait", &job]];
        let client = f.rsig.spawn_process(words[milliseconds % 3]);
        // Kills the client at an arbitrary moment.
        std::thread::sleep(Duration::from_millis(milliseconds as u64));
        kill9(client.pid());
    }
    f.rsig.run(&["ps"]).ok().stderr_is_empty();
    poll_until(
        "the relay and the spare shell alone are left",
        STEP_TIMEOUT,
        || helpers(&f).len() == before,
    );
    // A relay handles requests in order, so after this signal all earlier requests have been carried out.
    f.rsig.run(&["kill", &job, "USR1"]).ok();
    let claims = std::fs::read_dir(f.jobs_dir().join(&job))
        .expect("the job's directory")
        .flatten();
    let is_sent = |text: String| text == "USR1 yes\n";
    let claims = claims.filter(|entry| entry.file_name().to_string_lossy().starts_with("sig."));
    let sent = claims
        .filter(|claim| std::fs::read_to_string(claim.path()).is_ok_and(is_sent))
        .count();
    assert_final_count(&f, &job, sent, "after clients were killed");
    assert_eq!(shared_keepers(&f), 1);
}

#[test]
fn few_sessions_are_enough() {
    for sessions in 1..=3 {
        let server = Server::openssh(Login::User)
            .config(&format!("MaxSessions {sessions}"))
            .start();
        let f = with_keeper(server);
        let jobs: Vec<String> = (0..4).map(|_| new_counter(&f)).collect();
        for job in &jobs {
            f.rsig.run(&["kill", job, "USR1"]).ok().stderr_is_empty();
            f.rsig.run(&["tail", job]).ok().stderr_is_empty();
        }
        let all: Vec<_> = (0..6).map(|_| f.rsig.spawn_process(&["ps"])).collect();
        all.into_iter().for_each(|ps| {
            ps.wait().ok().stderr_is_empty();
        });
        for job in &jobs {
            let words = ["kill", "--wait", "10s", job];
            f.rsig.run(&words).ok().stderr_is_empty();
            assert_eq!(dots_written(&f, job), 1, "MaxSessions {sessions}");
        }
        assert_eq!(shared_keepers(&f), 1, "MaxSessions {sessions}");
    }
}

#[test]
fn more_jobs_than_relays() {
    let f = with_keeper(Server::openssh(Login::User).start());
    let jobs: Vec<String> = (0..9).map(|_| new_counter(&f)).collect();
    jobs.iter()
        .take(6)
        .for_each(|job| await_warm_relay(&f, job));
    let mut words = vec!["kill", "--json", "-s", "USR1"];
    words.extend(jobs.iter().map(String::as_str));
    let json = f.rsig.run(&words).ok().stdout();
    let via = |way: &str| {
        json.lines()
            .filter(|line| value(line, "via") == way)
            .count()
    };
    assert_eq!((via("\"channel\""), via("\"pid\"")), (6, 3), "{json}");
    words.splice(..4, ["kill", "--wait", "10s", "-s", "TERM"]);
    f.rsig.run(&words).ok();
    jobs.iter()
        .for_each(|job| assert_eq!(dots_written(&f, job), 1));
    poll_until("the ended relays are let go", STEP_TIMEOUT, || {
        keepers(&f)
            .first()
            .and_then(|keeper| keeper["relays"].as_array())
            .is_some_and(Vec::is_empty)
    });
}

#[test]
fn an_end_is_pushed_and_nothing_polls_for_it() {
    for (f, proxy) in honouring() {
        let job = new_counter(&f);
        await_warm_relay(&f, &job);
        // `ps` uses the spare shell, so another is opened. Once that is open too, no more are.
        f.rsig.run(&["ps"]).ok();
        let server = f.server.as_ref().expect("a server");
        poll_until("two shells wait", STEP_TIMEOUT, || {
            idle_shells(&server.processes()).len() == 2
        });
        let waiting = f.rsig.spawn_process(&["wait", &job]);
        poll_until("it is waited for", STEP_TIMEOUT, || {
            keepers(&f)
                .first()
                .is_some_and(|keeper| keeper["commands"] == 1)
        });
        // It sends its request as soon as it has connected, which nothing shows from outside.
        std::thread::sleep(Duration::from_millis(500));
        let bytes = proxy.bytes(Direction::ToServer);
        let pid: i32 = std::fs::read_to_string(f.jobs_dir().join(&job).join("pid"))
            .ok()
            .and_then(|text| text.split(' ').next()?.parse().ok())
            .expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("the job runs");
        waiting.wait().code(7);
        assert!(
            proxy.bytes(Direction::ToServer) < bytes + 1000,
            "a script was sent"
        );
        // A job that ends before its relay is ready.
        for _ in 0..5 {
            let job = f.spawn(&[], &["sh", "-c", "exit 3"]);
            f.rsig.run(&["wait", &job]).code(3);
        }
        // Timeouts, and a second signal.
        let job = f.spawn(
            &[],
            &[
                "sh",
                "-c",
                "trap '' TERM; echo ready; while :; do sleep 1; done",
            ],
        );
        f.await_written(&job, "ready\n");
        f.rsig.run(&["wait", "--timeout", "100ms", &job]).code(124);
        f.rsig.run(&["kill", "--wait", "100ms", &job]).code(124);
        let json = f
            .rsig
            .run(&["kill", "--json", "--wait", "8s", "--then", "KILL", &job])
            .ok()
            .line();
        assert_eq!(value(&json, "exit_signal"), "\"KILL\"", "{json}");
    }
}

#[test]
fn a_warm_kill_costs_one_round_trip() {
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    await_probe(&f);
    let job = new_counter(&f);
    await_warm_relay(&f, &job);
    let server = f.server.as_ref().expect("a server");
    poll_until("a spare shell is open", STEP_TIMEOUT, || {
        idle_shells(&server.processes()).len() == 1
    });
    let answered = || proxy.last_direction() == Some(Direction::ToClient);
    f.rsig.run(&kill_by("any", &job)).ok();
    poll_until("the answer has come", STEP_TIMEOUT, answered);
    let turns = proxy.direction_changes();
    // Each is one request and one reply.
    for _ in 0..2 {
        f.rsig.run(&kill_by("any", &job)).ok();
        poll_until("the answer has come", STEP_TIMEOUT, answered);
    }
    assert_eq!(proxy.direction_changes() - turns, 4);
}

/// For longer than the keeper tolerates silence, nothing is received but the replies to its keepalives.
#[test]
fn a_quiet_connection_is_kept_and_serves_the_next_command() {
    let f = with_keeper(Server::openssh(Login::User).start());
    let words = f.words(
        "spawn",
        &["-o", "ServerAliveInterval=5"],
        &["--", "perl", "-e", COUNTER],
    );
    let job = f.rsig.run(&words).ok().line();
    await_warm_relay(&f, &job);
    let [pid] = keeper_pids(&f)[..] else {
        panic!("one keeper")
    };
    let quiet = Instant::now();
    poll_until(
        "three questions are answered",
        Duration::from_secs(30),
        || {
            assert_eq!(keeper_pids(&f), [pid], "after {:?}", quiet.elapsed());
            quiet.elapsed() > Duration::from_secs(18)
        },
    );
    f.rsig.run(&["kill", "--via", "channel", &job, "USR1"]).ok();
    assert_eq!(keeper_pids(&f), [pid]);
    assert_final_count(&f, &job, 1, "after the quiet");
}

/// The server sends its keepalives on a channel, one at a time, with nothing after them.
#[test]
fn a_server_that_asks_for_signs_of_life_gets_them() {
    let lines = "ClientAliveInterval 5\nClientAliveCountMax 1\n";
    let f = with_keeper(Server::openssh(Login::User).config(lines).start());
    let words = f.words("spawn", &[], &["--", "perl", "-e", COUNTER]);
    let job = f.rsig.run(&words).ok().line();
    await_warm_relay(&f, &job);
    let [pid] = keeper_pids(&f)[..] else {
        panic!("one keeper")
    };
    let quiet = Instant::now();
    poll_until("several are answered", STEP_TIMEOUT, || {
        assert_eq!(keeper_pids(&f), [pid], "after {:?}", quiet.elapsed());
        quiet.elapsed() > Duration::from_secs(16)
    });
    f.rsig.run(&["kill", "--via", "channel", &job, "USR1"]).ok();
    assert_eq!(keeper_pids(&f), [pid]);
    assert_final_count(&f, &job, 1, "after the quiet");
}

#[test]
fn nothing_of_the_caller_is_kept() {
    let f = with_keeper(Server::openssh(Login::User).start());
    let rsig = env!("CARGO_BIN_EXE_rsig");
    let here = f.rsig.dir().join("here");
    std::fs::create_dir(&here).expect("a directory");
    let words = f.words("spawn", &[], &["--", "true"]).join(" ");
    let script = format!(
        "umask 0; exec 9>lock; flock 9; out=$({rsig} {words}) && {rsig} {words} | cat && echo \"$out\""
    );
    let invocation = tool("sh").arg("-c").arg(script).cwd(&here);
    invocation
        .env("HOME", f.rsig.home())
        .env("RSIG_STATE_DIR", f.rsig.state())
        .run()
        .ok()
        .stderr_is_empty();
    tool("flock")
        .args(["-n", "lock", "true"])
        .cwd(&here)
        .run()
        .ok();
    let [pid] = keeper_pids(&f)[..] else {
        panic!("one keeper")
    };
    let link =
        |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).expect("the keeper runs");
    assert_eq!(link("cwd"), std::path::Path::new("/"));
    for fd in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(fd), std::path::Path::new("/dev/null"));
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the keeper runs");
    assert!(status.contains("Umask:\t0077"), "{status}");
    assert_eq!(
        nix::unistd::getsid(Some(Pid::from_raw(pid))),
        Ok(Pid::from_raw(pid))
    );
}

#[test]
fn status_and_stop() {
    let f = with_keeper(Server::openssh(Login::User).start());
    assert!(keepers(&f).is_empty());
    let job = new_counter(&f);
    await_warm_relay(&f, &job);
    let mut found = Vec::new();
    poll_until("it is listed", STEP_TIMEOUT, || {
        found = keepers(&f);
        !found.is_empty()
    });
    let status = &found[0];
    assert_eq!(
        (&status["host"], status["pid"].as_i64()),
        (
            &Value::from("server"),
            keeper_pids(&f).first().map(|p| i64::from(*p))
        )
    );
    f.rsig.run(&["keeper", "status"]).ok().stdout_has("server");
    f.rsig.run(&["keeper", "stop", "elsewhere"]).code(1);
    f.rsig.run(&["keeper", "stop", "server"]).ok();
    poll_until("it is gone", STEP_TIMEOUT, || keeper_pids(&f).is_empty());
    assert_nothing_left(&f);
    let json = f.rsig.run(&["kill", "--json", &job, "USR1"]).ok().line();
    assert_eq!(value(&json, "via"), "\"pid\"");
    assert_final_count(&f, &job, 1, "after stop");
}

#[test]
fn without_a_keeper() {
    let f = with_keeper(Server::openssh(Login::User).start());
    let spawn = f.words("spawn", &["--no-keeper"], &["--", "sleep", "1000"]);
    let job = f.rsig.run(&spawn).ok().line();
    f.rsig.command(&["ps"]).env("RSIG_KEEPER", "0").run().ok();
    let json = f
        .rsig
        .command(&["kill", "--json", "--wait", "10s", &job])
        .env("RSIG_KEEPER", "0")
        .run()
        .ok()
        .line();
    assert_eq!(value(&json, "via"), "\"pid\"");
    // Each command had a private keeper, which ends soon after it.
    poll_until("no keeper is left", STEP_TIMEOUT, || {
        keeper_pids(&f).is_empty()
    });
}

#[test]
fn an_idle_keeper_goes() {
    let f = with_keeper(Server::openssh(Login::User).start());
    let words = f.words("spawn", &[], &["--", "sleep", "1000"]);
    let job = f
        .rsig
        .command(&words)
        .env("RSIG_KEEPER_IDLE", "10s")
        .run()
        .ok()
        .line();
    // A running job's relay keeps the keeper alive.
    await_warm_relay(&f, &job);
    f.rsig.run(&["stop", &job]).ok();
    poll_until("the keeper goes", STEP_TIMEOUT, || {
        keeper_pids(&f).is_empty()
    });
    let left: Vec<_> = std::fs::read_dir(f.rsig.state().join("keepers"))
        .expect("its directory")
        .flatten()
        .collect();
    assert!(
        left.iter().all(|entry| entry
            .path()
            .extension()
            .is_some_and(|e| e == "lock" || e == "configuration" || e == "entry")),
        "{left:?}"
    );
    assert_nothing_left(&f);
}

#[test]
fn many_commands_at_once_start_one() {
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    let job = new_counter(&f);
    let mut fewest = u64::MAX;
    for _ in 0..3 {
        // The socket stays behind.
        keeper_pids(&f).into_iter().for_each(kill9);
        poll_until("its connection is closed", STEP_TIMEOUT, || {
            proxy.open_connections() == 0
        });
        let before = proxy.connections();
        let all: Vec<_> = (0..8)
            .map(|_| f.rsig.spawn_process(&["kill", &job, "USR1"]))
            .collect();
        all.into_iter().for_each(|one| {
            one.wait().ok().stderr_is_empty();
        });
        assert_eq!(shared_keepers(&f), 1);
        fewest = fewest.min(proxy.connections() - before);
    }
    assert_eq!(fewest, 1);
    assert_final_count(&f, &job, 24, "with several starting it");
}

#[test]
fn a_server_that_was_gone_is_back() {
    let mut f = with_keeper(Server::openssh(Login::User).start());
    let job = new_counter(&f);
    await_warm_relay(&f, &job);
    f.server.as_mut().expect("a server").stop();
    f.rsig.run(&["kill", &job, "USR1"]).code(255);
    f.server.as_mut().expect("a server").restart();
    f.rsig.run(&["kill", &job, "USR1"]).ok().stderr_is_empty();
    assert_final_count(&f, &job, 1, "server back");
}

#[test]
fn a_password_is_asked_once_on_the_users_terminal() {
    let server = Server::openssh(Login::User).password("sesame").start();
    let f = with_keeper(server);
    let options = [
        "-o",
        "PreferredAuthentications=password",
        "-o",
        "PubkeyAuthentication=no",
    ];
    let words = f.words("spawn", &options, &["--", "sleep", "1000"]);
    let mut terminal = f.rsig.command(&words).tty(80, 24);
    terminal.wait_for("assword");
    poll_until("the password is not shown", STEP_TIMEOUT, || {
        !terminal.echoes()
    });
    terminal.send(CTRL_C);
    terminal.wait();
    poll_until("nothing goes on asking", STEP_TIMEOUT, || {
        f.rsig.processes().is_empty()
    });
    let terminal = f.rsig.command(&words).tty(80, 24);
    terminal.wait_for("assword");
    poll_until("the password is not shown", STEP_TIMEOUT, || {
        !terminal.echoes()
    });
    kill9(terminal.pid());
    poll_until("nothing goes on asking", STEP_TIMEOUT, || {
        f.rsig.processes().is_empty()
    });
    drop(terminal);
    let mut terminal = f.rsig.command(&words).tty(80, 24);
    terminal.wait_for("assword");
    poll_until("the password is not shown", STEP_TIMEOUT, || {
        !terminal.echoes()
    });
    terminal.send("sesame");
    terminal.send(ENTER);
    assert!(terminal.wait().success(), "{}", terminal.text());
    // No terminal here, so a question could not be answered.
    f.rsig.run(&words).ok();
    assert_eq!(shared_keepers(&f), 1);
}

#[test]
fn another_user_is_not_listened_to() {
    let f = with_keeper(Server::openssh(Login::User).start());
    f.spawn(&[], &["true"]);
    let keepers = f.rsig.state().join("keepers");
    let entries = std::fs::read_dir(&keepers)
        .expect("its directory")
        .flatten();
    let socket = entries
        .map(|entry| entry.path())
        .find(|path| path.extension().is_none())
        .expect("a socket");
    let mode = |path: &std::path::Path| {
        std::fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode(&keepers), mode(&socket)), (0o700, 0o600));
    let talk = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 3;
        sysread($s, my $b, 1) ? exit 0 : exit 4";
    let as_nobody = || {
        let words = [
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "perl",
            "-e",
            talk,
        ];
        tool("setpriv").args(words).arg(&socket).run()
    };
    as_nobody().code(3);
    // Even if it can connect to the socket.
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    open(&socket, 0o777);
    open(&keepers, 0o755);
    open(f.rsig.state(), 0o755);
    as_nobody().code(4);
}

#[test]
fn a_log_is_read_over_the_shared_connection_unless_it_is_long() {
    let f = with_keeper(Server::openssh(Login::User).start());
    let logins = || {
        let log = f.server.as_ref().expect("a server").log();
        log.matches("Accepted publickey").count()
    };
    for (size, more) in [(1000, 0), (1_000_000, 1)] {
        let line = format!("head -c {size} /dev/zero; echo err >&2");
        let job = f.spawn(&[], &["sh", "-c", &line]);
        f.rsig.run(&["wait", &job]).ok();
        let before = logins();
        let output = f.rsig.run(&["tail", "-n", "all", &job]);
        assert_eq!(output.ok().stdout_bytes(), vec![0; size]);
        assert_eq!(output.stderr(), "err\n");
        assert_eq!(logins(), before + more, "{size}");
        // Only the requested stream counts.
        let output = f.rsig.run(&["tail", "-n", "all", "--stderr", &job]);
        assert_eq!(output.ok().stderr(), "err\n");
        assert_eq!(logins(), before + more, "{size}");
    }
    f.rsig.run(&["keeper", "stop", "--all"]).ok();
}

#[test]
fn a_flood_on_its_socket_stays_outside() {
    let f = with_keeper(Server::openssh(Login::User).start());
    let job = new_counter(&f);
    await_warm_relay(&f, &job);
    let socket = std::fs::read_dir(f.rsig.state().join("keepers"))
        .expect("its directory")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_none())
        .expect("a socket");
    let frame = |text: &str| {
        [
            &u32::try_from(text.len()).expect("short").to_le_bytes()[..],
            &[0],
            text.as_bytes(),
        ]
        .concat()
    };
    let version = format!("{}/9", env!("CARGO_PKG_VERSION"));
    let hello = frame(&format!("{{\"Hello\":{{\"version\":\"{version}\"}}}}"));
    let requests = frame("\"Status\"").repeat(2000);
    let shell = frame("\"Shell\"");
    let bytes = [&[0, 0, 1, 0, 1][..], &vec![b'x'; 1 << 16]].concat();
    let floods: Vec<UnixStream> = [&requests, &bytes, &vec![0xff; 1 << 16]]
        .into_iter()
        .map(|content| {
            let mut stream = UnixStream::connect(&socket).expect("the keeper listens");
            stream
                .set_write_timeout(Some(Duration::from_millis(200)))
                .expect("a time-out can be set");
            stream.write_all(&hello).expect("it reads");
            if content == &bytes {
                stream.write_all(&shell).expect("it reads");
                let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
                while !String::from_utf8_lossy(&heard).contains("\"Shell\"") {
                    let size = stream.read(&mut piece).expect("it answers");
                    assert!(size > 0, "it hangs up");
                    heard.extend_from_slice(&piece[..size]);
                }
                stream
                    .write_all(&[&[13, 0, 0, 0, 1][..], b"sleep 10000 \n"].concat())
                    .expect("it reads");
            }
            // Until the keeper reads no more, or hangs up.
            (0..4000)
                .take_while(|_| stream.write_all(content).is_ok())
                .for_each(drop);
            stream
        })
        .collect();
    f.rsig.run(&["kill", &job, "USR1"]).ok().stderr_is_empty();
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", keeper_pids(&f)[0])).expect("it runs");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak")
        .trim()
        .to_owned();
    assert!(
        peak.trim_end_matches(" kB")
            .parse::<u32>()
            .expect("a number")
            < 40_000,
        "{peak}"
    );
    drop(floods);
    assert_final_count(&f, &job, 1, "flooded");
}
