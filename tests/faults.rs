//! Broken networks: connections that are cut, held or refused at any point, and unreachable hosts.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::tool;
use crate::harness::{
    Direction, Fixture, Login, Output, Process, Proxy, Rsig, Running, Server, poll_until,
};
use crate::kit::{
    self, FixedReply, FixedServer, STEP_TIMEOUT, assert_clear_message, config_for, job_json, lines,
    state,
};

/// Offsets in bytes at which to cut: a few at the start and in the middle, and those in `ends`, which count back from
/// the end, where the script and its answer are.
fn cut_points(total: u64, ends: &[u64]) -> Vec<u64> {
    let ends = ends.iter().map(|back| total.saturating_sub(*back));
    [0, 15, 900, total / 3, total / 2]
        .into_iter()
        .chain(ends)
        .collect()
}

/// Number of bytes that a command sends and receives.
fn count_bytes(proxy: &Proxy, run: impl FnOnce()) -> [(Direction, u64); 2] {
    let bytes = || {
        [Direction::ToServer, Direction::ToClient]
            .map(|direction| (direction, proxy.bytes(direction)))
    };
    let before = bytes();
    run();
    poll_until("the connection is closed", STEP_TIMEOUT, || {
        proxy.open_connections() == 0
    });
    let after = bytes();
    [0, 1].map(|at| (after[at].0, after[at].1 - before[at].1))
}

/// Waits until no script of rsig runs on the server any more.
fn settle(server: &Server) {
    poll_until("the server's connections end", STEP_TIMEOUT, || {
        server.connections().is_empty()
            && server
                .processes()
                .iter()
                .all(|process| !process.cmdline.ends_with("/bin/sh -s"))
    });
}

/// Where a command's connection is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    direction: Direction,
    after: u64,
    /// From then on the host is unreachable, until the command has ended.
    gone: bool,
}

/// Runs a command whose connection is cut.
#[track_caller]
fn run_cut(f: &Fixture, proxy: &Proxy, cut: Cut, words: &[&str]) -> Output {
    let connections = proxy.connections();
    proxy.cut_after_bytes(cut.direction, cut.after);
    let running = f.rsig.spawn_process(words);
    if cut.gone {
        poll_until("it connects", STEP_TIMEOUT, || {
            proxy.connections() > connections
        });
        proxy.refuse(true);
    }
    let output = running.wait();
    proxy.refuse(false);
    settle(f.server.as_ref().expect("a server"));
    // A cut that did not happen must not hit the next command.
    proxy.cut();
    output
}

/// Number of spawns that were cut. Each has a file of its own, since two cuts may be at the same point.
static MARKS: AtomicUsize = AtomicUsize::new(0);

/// Cuts a spawn, then compares what is on the host with what rsig reported and recorded.
#[track_caller]
fn check_spawn(f: &Fixture, proxy: &Proxy, cut: Cut) {
    let mark = format!("ran-{}", MARKS.fetch_add(1, Ordering::Relaxed));
    let known = kit::recorded(&f.rsig);
    let dirs = || fs::read_dir(f.jobs_dir()).map_or(0, Iterator::count);
    let dirs_before = dirs();
    let line = format!("echo x >>{mark}; exec sleep 1000");
    let output = run_cut(
        f,
        proxy,
        cut,
        &f.words("spawn", &[], &["--", "sh", "-c", &line]),
    );
    let new: Vec<String> = kit::recorded(&f.rsig)
        .into_iter()
        .filter(|id| !known.contains(id))
        .collect();
    let ran = || lines(&f.job_home().join(&mark));
    match new.as_slice() {
        [] => {
            assert_clear_message(output.code(255));
            assert_eq!(
                (ran(), dirs()),
                (0, dirs_before),
                "{cut:?}: something runs that nobody knows: {output}"
            );
        }
        [id] => {
            if output.status().success() {
                output.stdout_is(&format!("{id}\n"));
            } else {
                assert_clear_message(output.code(255).stdout_is(""));
                output.stderr_has(&format!("rsig ps {id}"));
            }
            // Backdates `starting` jobs by more than a start may take.
            let statement = "UPDATE jobs SET record = json_set(record, '$.created_at', created_at - 100) WHERE state = 'starting'";
            kit::database(&f.rsig)
                .execute(statement, [])
                .expect("an update");
            poll_until("looks resolve it", STEP_TIMEOUT, || {
                ["running", "lost"].contains(&state(&f.rsig, id).as_str())
            });
            if state(&f.rsig, id) == "running" {
                poll_until("it has run", STEP_TIMEOUT, || ran() == 1);
            } else {
                assert!(
                    ran() == 0 && !output.status().success(),
                    "{cut:?}: it is said to be lost: {output}"
                );
            }
            assert!(dirs() <= dirs_before + 1, "{output}");
        }
        several => panic!("{cut:?}: one command, several records {several:?}: {output}"),
    }
    assert!(ran() <= 1, "{cut:?}: started twice: {output}");
}

#[test]
fn a_spawn_that_is_cut_anywhere_starts_nothing_twice_and_loses_nothing() {
    let (f, proxy) = Fixture::with(Some(Server::openssh(Login::User).start())).through_proxy();
    f.spawn(&[], &["true"]);
    let totals = count_bytes(&proxy, || {
        drop(f.spawn(&[], &["sh", "-c", "echo x >>ran; exec sleep 1000"]));
    });
    for (direction, total) in totals {
        cut_points(total, &[4000, 1500, 500, 150, 40, 1])
            .into_iter()
            .for_each(|after| {
                check_spawn(
                    &f,
                    &proxy,
                    Cut {
                        direction,
                        after,
                        gone: false,
                    },
                );
            });
        for back in [600, 60] {
            check_spawn(
                &f,
                &proxy,
                Cut {
                    direction,
                    after: total.saturating_sub(back),
                    gone: true,
                },
            );
        }
    }
    // In the end, exactly as many jobs run as rsig says.
    let known = kit::recorded(&f.rsig)
        .iter()
        .filter(|id| state(&f.rsig, id) == "running")
        .count();
    let processes = f.processes();
    let running = processes
        .iter()
        .filter(|process| process.cmdline == "sleep 1000")
        .count();
    assert_eq!(
        running,
        known,
        "{}",
        crate::harness::procs::listing(&processes)
    );
}

/// Number of USR1 signals that the counting job has received.
#[track_caller]
fn counted_so_far(f: &Fixture, pid: i32) -> usize {
    // A shell handles USR1 before USR2: once it has reported the second, it has counted the first.
    let synced = f.job_home().join("sync");
    drop(fs::remove_file(&synced));
    kill(Pid::from_raw(pid), Signal::SIGUSR2).expect("it runs");
    poll_until("the job is in step", STEP_TIMEOUT, || synced.exists());
    lines(&f.job_home().join("count"))
}

/// Cuts a `kill --json` of USR1 to a counting job, and compares the count with the report.
#[track_caller]
fn check_kill(f: &Fixture, proxy: &Proxy, cut: Cut, (job, pid): (&str, i32)) -> Value {
    let before = counted_so_far(f, pid);
    let output = run_cut(f, proxy, cut, &["kill", "--json", job, "USR1"]);
    let counted = counted_so_far(f, pid) - before;
    let report: Value = serde_json::from_str(&output.line()).expect("JSON");
    let (sent, kind) = (&report["sent"], &report["error"]["kind"]);
    match (sent.as_bool(), counted) {
        (Some(true), 1) => drop(output.ok().stderr_is_empty()),
        (None, 0 | 1) if sent.is_null() => assert_eq!(kind, "unconfirmed", "{}", output.code(255)),
        (Some(false), 0) => assert_eq!(kind, "unreachable", "{}", output.code(255)),
        _ => panic!("{cut:?}: {counted} were counted: {output}"),
    }
    assert_eq!(
        report["via"].as_str(),
        (sent == true).then_some("pid"),
        "{output}"
    );
    sent.clone()
}

#[test]
fn a_kill_that_is_cut_anywhere_sends_its_signal_at_most_once_and_says_what_it_did() {
    let (f, proxy) = Fixture::with(Some(Server::openssh(Login::User).start())).through_proxy();
    let line = "trap 'echo x >>count' USR1; trap ': >sync' USR2; : >count; : >up; while :; do sleep 0.02; done";
    let job = f.spawn(&[], &["sh", "-c", line]);
    poll_until("the job counts", STEP_TIMEOUT, || {
        f.job_home().join("up").exists()
    });
    let pid = job_json(&f.rsig, &job).expect("it is known")["pid"]
        .as_i64()
        .expect("a pid");
    let job = (job.as_str(), i32::try_from(pid).expect("a pid"));
    let mut sent = Vec::new();
    for (direction, total) in count_bytes(&proxy, || {
        f.rsig.run(&["kill", job.0, "USR1"]).ok();
    }) {
        for after in cut_points(
            total,
            &[
                3000, 1000, 600, 500, 450, 400, 350, 300, 250, 200, 150, 40, 1,
            ],
        ) {
            sent.push(check_kill(
                &f,
                &proxy,
                Cut {
                    direction,
                    after,
                    gone: false,
                },
                job,
            ));
        }
        for back in [3000, 400, 300, 200, 100, 40] {
            let after = total.saturating_sub(back);
            sent.push(check_kill(
                &f,
                &proxy,
                Cut {
                    direction,
                    after,
                    gone: true,
                },
                job,
            ));
        }
    }
    let some = |value: Value| sent.iter().filter(|sent| **sent == value).count();
    assert!(
        some(true.into()) >= 5 && some(false.into()) >= 1 && some(Value::Null) >= 1,
        "{sent:?}"
    );
}

#[test]
fn a_wait_goes_on_over_cuts() {
    let (f, proxy) = Fixture::with(Some(Server::openssh(Login::Root).start())).through_proxy();
    let server = f.server.as_ref().expect("a server");
    let job = f.spawn(
        &[],
        &["sh", "-c", "until [ -e go ]; do sleep 0.02; done; exit 7"],
    );
    settle(server);
    let wait = f.rsig.spawn_process(&["wait", &job]);
    // A script outlives its connection for a while and has children, so the next script is recognised by its pid.
    let mut scripts: Vec<i32> = Vec::new();
    for by_server in [false, true] {
        poll_until("it asks the host", STEP_TIMEOUT, || {
            let all = server.processes();
            let is_shell = |process: &Process| process.cmdline.ends_with("/bin/sh -s");
            let is_child = |process: &Process| {
                process.ppid == 1
                    || all
                        .iter()
                        .any(|parent| parent.pid == process.ppid && is_shell(parent))
            };
            let new = all.iter().find(|process| {
                is_shell(process) && !is_child(process) && !scripts.contains(&process.pid)
            });
            scripts.extend(new.map(|process| process.pid));
            new.is_some()
        });
        let connections = proxy.connections();
        if by_server {
            for connection in server.connections() {
                connection.signal_if_runs(Signal::SIGKILL);
            }
        } else {
            proxy.cut();
        }
        poll_until("it connects again", STEP_TIMEOUT, || {
            proxy.connections() > connections
        });
    }
    fs::write(f.job_home().join("go"), "").expect("the home is writable");
    wait.wait().code(7).stderr_is_empty();
}

#[test]
fn a_server_that_stays_away_in_mid_wait_lets_the_time_run_out_and_the_next_one_goes_on() {
    let mut server = Server::openssh(Login::Root).start();
    let connect = server
        .ssh_config("server")
        .into_os_string()
        .into_string()
        .expect("UTF-8");
    let home = server.home().to_owned();
    let rsig = Rsig::new();
    let line = "until [ -e go ]; do sleep 0.02; done; exit 7";
    let job = rsig
        .run(&["spawn", "-F", &connect, "-c", "server", line])
        .ok()
        .line();
    settle(&server);
    let wait = rsig.spawn_process(&["wait", "--timeout", "12s", &job]);
    poll_until("it asks the host", STEP_TIMEOUT, || {
        server
            .processes()
            .iter()
            .any(|p| p.cmdline.ends_with("/bin/sh -s"))
    });
    server.stop();
    let output = wait.wait();
    assert_clear_message(output.code(124));
    output.stderr_has("server").stderr_has("refused");
    let output = rsig.run(&["ps"]);
    output.ok().stdout_has("unknown (was running)");
    assert_clear_message(&output);
    server.restart();
    let wait = rsig.spawn_process(&["wait", &job]);
    fs::write(home.join("go"), "").expect("the home is writable");
    wait.wait().code(7);
}

/// A port without a listener, which stays so as long as the socket exists.
fn silent_port() -> (u16, OwnedFd) {
    let held = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    bind(held.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a port");
    (
        getsockname::<SockaddrIn>(held.as_raw_fd())
            .expect("its address")
            .port(),
        held,
    )
}

#[test]
fn hosts_that_can_not_be_reached_are_named_with_the_reason() {
    let rsig = Rsig::new();
    let (free, _held) = silent_port();
    let refusing = Proxy::start(free, Duration::ZERO);
    refusing.refuse(true);
    let unknown = config_for(
        &rsig,
        "unknown",
        22,
        "HostName no-such-host.invalid\nConnectTimeout 10",
    );
    let jump = config_for(
        &rsig,
        "jumping",
        22,
        &format!("ProxyCommand exec 3<>/dev/tcp/127.0.0.1/{free}"),
    );
    let failing = config_for(
        &rsig,
        "failing",
        22,
        "ProxyCommand sh -c 'echo all is lost >&2; exit 7'",
    );
    for (config, host, said) in [
        (
            config_for(&rsig, "refused", free, ""),
            "refused",
            "connection refused",
        ),
        (
            config_for(&rsig, "closing", refusing.port(), ""),
            "closing",
            "closed the connection",
        ),
        (unknown, "unknown", "can't be resolved"),
        (jump, "jumping", "ProxyCommand"),
        (failing, "failing", "all is lost"),
        (
            "/nonexistent/config".to_owned(),
            "anywhere",
            "/nonexistent/config",
        ),
    ] {
        let words = ["spawn", "-F", &config, host, "--", "true"];
        let mut output = rsig.run(&words);
        if host == "failing" {
            // What a proxy says last is not waited for long.
            poll_until("the proxy's reason is told", STEP_TIMEOUT, || {
                let is_told = output.stderr().contains(said);
                if !is_told {
                    output = rsig.run(&words);
                }
                is_told
            });
        }
        output
            .code(255)
            .stdout_is("")
            .stderr_has(host)
            .stderr_has(said);
        assert_clear_message(&output);
        assert_eq!(
            kit::recorded(&rsig),
            Vec::<String>::new(),
            "nothing was started, so nothing is kept: {output}"
        );
    }
}

#[test]
fn a_dead_host_costs_its_own_time_out_and_the_others_jobs_are_done() {
    let f = Fixture::with(Some(Server::openssh(Login::User).start()));
    let alive = f.spawn(&[], &["sleep", "1000"]);
    let here = f
        .rsig
        .run(&["spawn", "local", "--", "sleep", "1000"])
        .ok()
        .line();
    // A job on a host that has since stopped responding.
    let silent = FixedServer::start(FixedReply::Once(vec![]));
    // The first value is in force. The largest one limits `ssh -G`, which may be slow on a busy machine.
    let timeouts = "ConnectTimeout 1\nConnectTimeout 15";
    let config = config_for(&f.rsig, "dead", silent.port(), timeouts);
    let dead = f
        .rsig
        .run(&["spawn", "local", "--", "sleep", "1000"])
        .ok()
        .line();
    let connect = format!("{{\"config\":\"{config}\"}}");
    let moved = "UPDATE jobs SET record = json_set(record, '$.destination', json_object('host', 'dead', 'connect', json(?2))) WHERE id = ?1";
    kit::database(&f.rsig)
        .execute(moved, [&dead, &connect])
        .expect("an update");

    let timed = |words: &[&str]| {
        let start = Instant::now();
        let output = f.rsig.run(words);
        let took = start.elapsed();
        assert!(
            took >= Duration::from_millis(900) && took < Duration::from_secs(14),
            "{took:?}: {output}"
        );
        assert!(
            output.to_string().contains("ConnectTimeout is 1 s"),
            "{output}"
        );
        output
    };
    let output = timed(&["ps", "--json"]);
    assert_clear_message(output.stderr_has("dead: "));
    let jobs: Vec<Value> = serde_json::from_str(&output.ok().stdout()).expect("JSON");
    for (id, state) in [(&alive, "running"), (&here, "running"), (&dead, "unknown")] {
        let job = jobs
            .iter()
            .find(|job| job["id"] == id.as_str())
            .expect("it is listed");
        assert_eq!(job["state"], state, "{output}");
    }
    let output = timed(&[
        "kill", "--json", "-s", "TERM", "--wait", "10s", &alive, &dead, &here,
    ]);
    output.code(255);
    let reports = output.stdout();
    let reports: Vec<Value> = reports
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(reports.len(), 3);
    for report in &reports {
        let unreachable = report["id"] == dead.as_str();
        assert_eq!(report["sent"], !unreachable, "{output}");
        assert_eq!(
            report["exit_signal"].as_str(),
            (!unreachable).then_some("TERM"),
            "{output}"
        );
        assert_eq!(
            report["error"]["kind"].as_str(),
            unreachable.then_some("unreachable"),
            "{output}"
        );
    }
    timed(&["wait", "--timeout", "5s", &alive, &dead]).code(124);
    let output = timed(&["rm", &alive, &dead, &here]);
    output.code(255).stderr_has("--forget");
    let mut gone: Vec<String> = output.stdout().lines().map(str::to_owned).collect();
    gone.sort();
    let mut expected = vec![alive, here];
    expected.sort();
    assert_eq!(gone, expected);
    let output = f.rsig.run(&["rm", "--forget", &dead]);
    output.ok().stderr_has("its files stay");
    assert_eq!(kit::recorded(&f.rsig), Vec::<String>::new());
}

#[test]
fn a_connection_that_falls_silent_ends_in_a_time_out() {
    // Each case has its own proxy; all run at once. While there is a file `wait`, the host answers nothing.
    let waits = "until [ ! -e ~/wait ]; do sleep 0.02; done\n";
    let server = Server::openssh(Login::User).home_file(".bashrc", waits);
    let mut f = Fixture::with(Some(server.start()));
    let job = f.spawn(&[], &["sleep", "1000"]);
    f.rsig.clock = 5;
    let server = f.server.as_ref().expect("a server");
    let cases: [(&str, &[&str], i32); 3] = [
        ("kill", &["kill", "--json", "JOB", "CONT"], 255),
        ("ps", &["ps", "--json", "JOB"], 0),
        ("tail", &["tail", "JOB"], 255),
    ];
    let mut started: Vec<(&str, i32, Proxy, Running)> = Vec::new();
    for (name, words, code) in cases {
        let proxy = Proxy::start(server.port(), Duration::ZERO);
        let config = server.ssh_config_through("server", &proxy);
        let text = fs::read_to_string(&config)
            .expect("our own file")
            .replace("Port", "ConnectTimeout 6\nPort");
        fs::write(&config, text).expect("our own file");
        // A record of the same job, reached through the proxy.
        let config = config.display().to_string();
        let copy = format!("{}000{}", &job[..4], started.len());
        let statement =
            "INSERT INTO jobs (record) SELECT json_set(record, '$.id', ?2, '$.destination.connect', json(?3))
             FROM jobs WHERE id = ?1";
        let connect = format!("{{\"config\":\"{config}\"}}");
        kit::database(&f.rsig)
            .execute(statement, [&job, &copy, &connect])
            .expect("a record");
        let value = |word| match word {
            "JOB" => copy.clone(),
            word => word.to_owned(),
        };
        let total = count_bytes(&proxy, || {
            f.rsig
                .run(&["ps", "--json", &copy])
                .ok()
                .stdout_has("\"running\"");
        });
        let before = proxy.bytes(Direction::ToServer);
        let wait = f.job_home().join("wait");
        fs::write(&wait, "").expect("the home is writable");
        let running = f
            .rsig
            .command(&[])
            .args(words.iter().map(|word| value(*word)))
            .start();
        poll_until("the script is sent", STEP_TIMEOUT, || {
            proxy.bytes(Direction::ToServer) - before + 300 > total[0].1
        });
        proxy.hold(Direction::ToClient);
        fs::remove_file(&wait).expect("our own file");
        started.push((name, code, proxy, running));
    }
    for (name, code, _proxy, running) in started {
        let start = Instant::now();
        let output = running.wait();
        assert!(start.elapsed() < Duration::from_secs(40), "{name}");
        output.code(code);
        if name == "kill" {
            let report: Value = serde_json::from_str(&output.line()).expect("JSON");
            assert_eq!(report["error"]["kind"], "unconfirmed", "{output}");
            assert!(report["sent"].is_null(), "{output}");
        } else {
            assert_clear_message(&output);
        }
        if name == "ps" {
            let jobs: Vec<Value> = serde_json::from_str(&output.stdout()).expect("JSON");
            assert_eq!(jobs[0]["state"], "unknown", "{output}");
        }
    }
}

/// Input that is cut off in transit starts nothing, and leaves nothing behind.
#[test]
fn half_an_input_starts_nothing() {
    let (f, proxy) = Fixture::with(Some(Server::openssh(Login::User).start())).through_proxy();
    let input = f.rsig.dir().join("input");
    fs::write(&input, vec![b'x'; 5_000_000]).expect("a new file");
    let words = f.words(
        "spawn",
        &["--stdin", input.to_str().expect("UTF-8")],
        &["cat"],
    );
    proxy.cut_after_bytes(Direction::ToServer, 2_000_000);
    let output = f.rsig.run(&words);
    assert_clear_message(output.code(255));
    poll_until("its files are gone", STEP_TIMEOUT, || {
        f.job_ids_on_host().is_empty()
    });
    // The host may notice the end of the input only after it was asked about the job for the last time.
    let recorded = f.rsig.run(&["ps", "-aq"]).ok().stdout();
    assert!(
        recorded.is_empty() || output.stderr().contains("is not known"),
        "{output}"
    );
    settle(f.server.as_ref().expect("a server"));
}

/// A shell whose job files are on a separate disk of 4 MB.
pub fn on_a_small_disk(rsig: &Rsig, script: &str) -> Output {
    let script =
        format!("mkdir disk && mount -t tmpfs -o size=4m,mode=700 small disk && {{ {script}\n}}");
    let words = [
        "--mount",
        "--propagation",
        "private",
        "/bin/sh",
        "-c",
        &script,
        "sh",
        env!("CARGO_BIN_EXE_rsig"),
    ];
    let disk = rsig.home().join("disk");
    rsig.within(tool("unshare").args(words))
        .env("XDG_STATE_HOME", disk.to_str().expect("UTF-8"))
        .run()
}

/// Output written while the host's disk is full is lost, and the job itself fails to write it. The job's end is not
/// lost.
#[test]
fn a_disk_that_is_full_in_mid_output_loses_no_end() {
    let rsig = Rsig::new();
    let line = r#"job=$("$1" spawn local -- head -c 9000000 /dev/zero) && { "$1" wait -q "$job"; echo "status $?"; } &&
        "$1" kill "$job" 2>/dev/null; echo "kill $?"; "$1" rm "$job" >/dev/null && ls disk/rsig/jobs &&
        { "$1" run local -- sh -c 'head -c 9000000 /dev/zero; exit 3' >out; echo "run $?"; }"#;
    let output = on_a_small_disk(&rsig, line);
    output
        .ok()
        .stdout_is("status 1\nkill 4\nrun 3\n")
        .stderr_has("the disk there was full, and some of the output is lost");
    poll_until("nothing is left", STEP_TIMEOUT, || {
        rsig.processes().is_empty()
    });
}

#[test]
fn a_start_on_a_full_disk_says_where_and_what_to_do() {
    let rsig = Rsig::new();
    let line = r#"{ dd if=/dev/zero of=disk/filler bs=1k 2>/dev/null
        "$1" spawn local true; echo "spawn $?"; "$1" run local true; echo "run $?"; ls -A disk/rsig/jobs; }"#;
    let output = on_a_small_disk(&rsig, line);
    output.ok().stdout_is("spawn 1\nrun 125\n");
    let told = format!("quota full?): {}/disk/rsig/jobs: ", rsig.home().display());
    assert_eq!(output.stderr().matches(&told).count(), 2, "{output}");
    assert_eq!(
        output.stderr().matches("; --jobs-dir DIR").count(),
        2,
        "{output}"
    );
}

/// Nothing on the host is measured with the wall clock.
#[test]
fn a_clock_that_jumps_changes_nothing() {
    let rsig = Rsig::new();
    let bin = rsig.dir().join("bin");
    fs::create_dir(&bin).expect("a new directory");
    // Alternately a day ahead and a day back.
    let date = "#!/bin/sh\nnow=$(/bin/date +%s)\nif rm \"$0.on\" 2>/dev/null; then echo $((now - 86400)); else : >\"$0.on\"; \
                echo $((now + 86400)); fi\n";
    fs::write(bin.join("date"), date).expect("a new file");
    fs::set_permissions(bin.join("date"), PermissionsExt::from_mode(0o755)).expect("ours");
    let path = format!("PATH={}:/usr/bin:/bin", bin.display());
    let rsig_there = |words: &[&str]| {
        rsig.within(
            tool("env")
                .arg(&path)
                .arg(env!("CARGO_BIN_EXE_rsig"))
                .args(words),
        )
    };
    let start = Instant::now();
    let endless = rsig_there(&["spawn", "local", "sleep", "1000"])
        .run()
        .ok()
        .line();
    rsig_there(&["ps", "-q"])
        .run()
        .ok()
        .stdout_is(&format!("{endless}\n"));
    rsig_there(&["wait", "--timeout", "200ms", &endless])
        .run()
        .code(124);
    let job = rsig_there(&["spawn", "--timeout", "3s", "local", "sleep", "1000"])
        .run()
        .ok()
        .line();
    rsig_there(&["wait", &job])
        .run()
        .code(143)
        .stdout_has("timed out");
    let stubborn = [
        "spawn",
        "local",
        "perl",
        "-e",
        "$SIG{TERM} = 'IGNORE'; $| = 1; print qq(ready\n); sleep 1000",
    ];
    let job = rsig_there(&stubborn).run().ok().line();
    poll_until("it ignores TERM", STEP_TIMEOUT, || {
        rsig_there(&["tail", &job]).run().ok().stdout() == "ready\n"
    });
    rsig_there(&["kill", "-w", "4s", "--then", "KILL", &job])
        .run()
        .ok()
        .stdout_has("137 (KILL)");
    rsig_there(&["run", "--grace", "1s", "local", "--", "sh", "-c", "exit 3"])
        .run()
        .code(3);
    assert!(start.elapsed() < STEP_TIMEOUT);
    rsig_there(&["rm", "--finished"]).run().ok();
}

#[test]
fn keys_are_renewed_under_traffic_both_ways() {
    let bytes: Vec<u8> = (0..=250).cycle().take(6_000_000).collect();
    for cipher in [
        "chacha20-poly1305@openssh.com",
        "aes256-gcm@openssh.com",
        "aes256-ctr",
    ] {
        let server = Server::openssh(Login::Root)
            .config(&format!(
                "LogLevel DEBUG\nRekeyLimit 1M 10s\nCiphers {cipher}"
            ))
            .start();
        let mut f = Fixture::with(Some(server));
        f.rsig.keeper = true;
        let job = f.spawn(&[], &["sleep", "1000"]);
        let output = f.rsig.command(&f.words("run", &[], &["cat"]));
        let output = output.stdin(bytes.clone()).run();
        assert!(output.ok().stdout_bytes() == bytes, "{cipher}: {output}");
        output.stderr_is_empty();
        f.rsig.run(&["kill", "--wait", "20s", &job]).ok();
        let log = f.server.as_ref().expect("a server").log();
        let times = |text| log.matches(text).count();
        assert!(
            times("SSH2_MSG_KEXINIT received") > 2 * times("Connection from"),
            "{cipher}: {log}"
        );
    }
}
