//! `rsig ps`: the state of jobs, as their hosts report it.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::procs::all;
use crate::harness::{Fixture, Proxy, Rsig, Site, on_two_sites, poll_until};
use crate::jobs::{JOB_KEYS, STEP_TIMEOUT, keys, pick};

fn ids(f: &Fixture, options: &[&str]) -> Vec<String> {
    f.rsig
        .run(&[&["ps", "-q"], options].concat())
        .ok()
        .stdout()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Three processes that each use some CPU time and memory and then sleep: the job's first process, a child in a session
/// of its own, and one in another session whose parent has gone.
const FAMILY: &str = r#"(setsid sh -c "$1" sh 0.1 &)
    setsid sh -c "$1" sh 0.2 &
    exec sh -c "$1" sh 0.3"#;
const BUSY: &str = r#"exec perl -e '$| = 1; my $m = "x" x 3e6; while ((times)[0] < $ARGV[0]) { $n++ for 1 .. 1000 }
    print "ready\n"; sleep 1000' "$1""#;

/// CPU time, memory and number of the processes that have the job's id in their environment, from /proc.
fn measured(job: &str) -> (f64, u64, usize) {
    let mark = format!("RSIG_JOB={job}");
    let is_of_job = |pid: i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ
            .split(|byte| *byte == 0)
            .any(|entry| entry == mark.as_bytes())
    };
    let (mut ticks, mut pages, mut count) = (0, 0, 0);
    for process in all().iter().filter(|process| is_of_job(process.pid)) {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).expect("it runs");
        let (_, fields) = stat.rsplit_once(") ").expect("proc(5)");
        let fields: Vec<&str> = fields.split(' ').collect();
        let number = |at: usize| fields[at - 3].parse::<u64>().expect("a number");
        ticks += (14..=17).map(number).sum::<u64>();
        pages += number(24);
        count += 1;
    }
    let value = |name| nix::unistd::sysconf(name).ok().flatten().expect("known");
    let hz = value(nix::unistd::SysconfVar::CLK_TCK);
    let page = value(nix::unistd::SysconfVar::PAGE_SIZE);
    let seconds =
        f64::from(u32::try_from(ticks).expect("few")) / f64::from(u32::try_from(hz).expect("few"));
    (seconds, pages * page.unsigned_abs(), count)
}

on_two_sites! {
    fn resources_are_those_of_the_whole_job(f: &Fixture) {
        let families: Vec<String> = (0..2).map(|_| f.spawn(&[], &["sh", "-c", FAMILY, "sh", BUSY])).collect();
        let idle = f.spawn(&[], &["sleep", "1000"]);
        let (burning, gate) = f.spawn_gated(&[], 0);
        let stopped = f.spawn(&[], &["sleep", "1000"]);
        for job in [&idle, &stopped] {
            poll_until("the job's shell has become its command", STEP_TIMEOUT, || measured(job).2 == 1);
        }
        f.rsig.run(&["kill", &stopped, "STOP"]).ok();
        let ended = f.spawn(&[], &["true"]);
        f.rsig.run(&["wait", &ended]).ok();
        for job in &families {
            f.await_written(job, "ready\nready\nready\n");
        }
        let output = f.rsig.run(&["ps", "-a", "-r", "--json"]);
        let told: Vec<Value> = serde_json::from_str(&output.ok().line()).expect("JSON");
        let of = |job: &String| told.iter().find(|told| told["id"] == json!(job)).expect("it is listed");
        for job in families.iter().chain([&idle, &stopped]) {
            let (seconds, bytes, count) = measured(job);
            assert_eq!(count, if families.contains(job) { 3 } else { 1 });
            let told = of(job);
            assert_eq!(told["processes"], json!(count), "{told}");
            assert!((told["cpu_seconds"].as_f64().expect("known") - seconds).abs() < 0.015, "{seconds}: {told}");
            let memory = told["rss_bytes"].as_u64().expect("known");
            assert!(memory.abs_diff(bytes) <= bytes / 5, "{bytes}: {told}");
            assert!(told["cpu_percent"].as_f64().expect("known") < 5.0, "{told}");
        }
        assert!(of(&families[0])["cpu_seconds"].as_f64() > Some(0.55), "{told:?}");
        // The CPU time of children that the job has waited for counts too.
        poll_until("the use of a job of short processes shows", STEP_TIMEOUT, || {
            let output = f.rsig.run(&["ps", "-r", "--json", &burning]);
            let told: Value = serde_json::from_str(&output.ok().line()).expect("JSON");
            told[0]["cpu_percent"].as_f64() > Some(0.0)
        });
        gate.open();
        let used = ["cpu_percent", "cpu_seconds", "rss_bytes", "processes"];
        assert_eq!(pick(of(&ended), used), json!([null, null, null, null]));
        let mut expected: Vec<&str> = JOB_KEYS.to_vec();
        expected.extend(used);
        let first = output.stdout().trim_start_matches('[').split("},{").next().expect("a job").to_owned() + "}";
        assert_eq!(keys(&first), expected);
        let table = f.rsig.run(&["ps", "-r", &families[0]]);
        table.ok().stdout_has("CPU").stdout_has("TIME").stdout_has("MEMORY").stdout_has("PROCS");
        let row: Vec<String> = table.stdout().lines().nth(1).expect("a job").split_whitespace().map(str::to_owned).collect();
        assert_eq!(&row[7..10], [&row[7], &row[8], "3"], "{table}");
        f.rsig.run(&["ps", "-r", "--cached"]).code(2);
        if f.is_remote() {
            let mut words = vec!["ps", "-r", "--discover", "--json", "--host", &f.host];
            words.extend(f.connect.iter().map(String::as_str));
            let told: Vec<Value> = serde_json::from_str(&f.rsig.run(&words).ok().line()).expect("JSON");
            let of_family = told.iter().find(|told| told["id"] == json!(families[1])).expect("found");
            assert_eq!(of_family["processes"], json!(3));
        }
    }

    fn lists_what_is_asked_for(f: &Fixture) {
        f.rsig.run(&["ps"]).ok();
        assert_eq!(f.rsig.run(&["ps", "--json"]).ok().line(), "[]");
        let ended = f.spawn(&["-n", "ended"], &["sh", "-c", "exit 3"]);
        f.rsig.run(&["wait", &ended]).code(3);
        let runs = f.spawn(&["-n", "runs"], &["sleep", "1000"]);
        let stopped = f.spawn(&[], &["sleep", "1000"]);
        f.rsig.run(&["kill", &stopped, "STOP"]).ok();
        f.await_state(&stopped, "stopped");
        let here = f.rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();

        let [ended, runs, stopped, here] = [&ended, &runs, &stopped, &here].map(String::as_str);
        let of_host: &[&str] = if f.is_remote() { &[runs, stopped] } else { &[runs, stopped, here] };
        let cases: [(&[&str], &[&str]); 11] = [
            (&[], &[runs, stopped, here]),
            (&["-a"], &[ended, runs, stopped, here]),
            (&["--host", &f.host], of_host),
            (&["--host", "elsewhere"], &[]),
            (&["--state", "stopped"], &[stopped]),
            (&["--state", "exited"], &[ended]),
            (&["--state=exited,running"], &[ended, runs, here]),
            (&["--state", "lost"], &[]),
            (&["--cached"], &[runs, stopped, here]),
            (&["ended"], &[ended]),
            (&["runs", &ended[..5], "runs"], &[runs, ended]),
        ];
        for (options, expected) in cases {
            assert_eq!(ids(f, options), expected, "{options:?}");
        }
        f.rsig.run(&["ps", "-q", "nosuchjob", "runs"]).code(3).stdout_is(&format!("{runs}\n")).stderr_has("nosuchjob");
        f.rsig.run(&["ps", "--state", "nosuch"]).code(2).stdout_is("");

        // A job that has ended since the last `ps` is shown once more.
        f.rsig.run(&["kill", "-9", runs]).ok();
        f.await_state(runs, "exited");
        assert_eq!(ids(f, &[]), [stopped, here]);
    }

    fn json_is_as_the_contract_says(f: &Fixture) {
        let (job, gate) = f.spawn_gated(&["-n", "train", "-C", "/"], 143);
        let output = f.rsig.run(&["ps", "--json"]);
        let line = output.ok().line();
        assert_eq!(keys(line.trim_start_matches('[')), JOB_KEYS);
        let told = f.job(&job);
        let pid = f.process(&job).pid;
        assert_eq!(pick(&told, ["id", "name", "host", "cwd"]), json!([job, "train", f.host, "/"]));
        assert_eq!(pick(&told, ["state", "pid", "pgid", "os"]), json!(["running", pid, pid, "Linux"]));
        assert_eq!(json!([&told["command"][0], &told["command"][1]]), json!(["sh", "-c"]));
        assert_eq!(told["dir"].as_str().map(std::path::Path::new), f.file(&job, "out").parent());
        let unknown = pick(&told, ["finished_at", "exit_status", "exit_signal", "last_signal"]);
        assert_eq!(unknown, json!([null, null, null, null]));
        f.rsig.run(&["kill", &job, "WINCH"]).ok();
        gate.open();
        f.rsig.run(&["wait", &job]).code(143);
        let told = f.job(&job);
        let end = pick(&told, ["state", "exit_status", "exit_signal", "last_signal"]);
        assert_eq!(end, json!(["exited", 143, "TERM", "WINCH"]));
        for time in ["started_at", "finished_at", "checked_at"] {
            let text = told[time].as_str().unwrap_or_else(|| panic!("{time}: {told}"));
            assert!(text.len() == 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T', "{time}: {text}");
            let at = text.parse::<jiff::Timestamp>().expect("RFC 3339");
            assert!((jiff::Timestamp::now().as_second() - at.as_second()).abs() < 60, "{time}: {text}");
        }
    }
}

#[test]
fn a_table_fits_its_terminal_and_is_plain_without_one() {
    let f = Site::Local.start();
    let name = "n".repeat(64);
    let words = [
        "sh",
        "-c",
        "sleep 1000",
        &"long ".repeat(40),
        "line\nbreak\u{1b}[31m",
    ];
    let job = f.spawn(&["-n", &name], &words);
    let plain = f.rsig.run(&["ps"]);
    assert!(plain.ok().stdout().starts_with("ID        NAME"), "{plain}");
    plain.stdout_has(&name).stdout_has(&"long ".repeat(40));
    assert!(
        !plain.stdout().contains('\x1b') && plain.stdout().lines().count() == 2,
        "{plain}"
    );
    for (columns, colour) in [(80, true), (40, true), (80, false)] {
        let mut ps = f.rsig.command(&["ps"]);
        if !colour {
            ps = ps.env("NO_COLOR", "1");
        }
        let mut terminal = ps.tty(columns, 24);
        assert!(terminal.wait().success());
        let text = terminal.text();
        // The spinner may precede the table, on the same line.
        let table = text.find("ID").expect("a table");
        let table: Vec<&str> = text[table..].lines().collect();
        assert_eq!(table.len(), 2, "{text}");
        assert!(
            table
                .iter()
                .all(|line| line.chars().count() <= usize::from(columns)),
            "{columns}: {text}"
        );
        assert!(columns < 80 || table[1].starts_with(&job), "{text}");
        let raw = String::from_utf8_lossy(&terminal.raw()).into_owned();
        assert_eq!(raw.contains("\x1b[32m"), colour, "{raw:?}");
        assert!(
            !raw.contains("\x1b[31m"),
            "what a job is called can't colour: {raw:?}"
        );
    }
}

#[test]
fn one_connection_serves_all_jobs_of_a_host() {
    let mut f = Site::OpenSshRoot.start();
    let proxy = Proxy::start(f.server.as_ref().expect("a server").port(), Duration::ZERO);
    f.go_through(&proxy);
    let jobs: Vec<String> = (0..5).map(|_| f.spawn(&[], &["sleep", "1000"])).collect();
    let connections = || proxy.connections();
    let (before, starts) = (connections(), |f: &Fixture| {
        f.server
            .as_ref()
            .expect("a server")
            .log()
            .matches("Starting session")
            .count()
    });
    let sessions = starts(&f);
    assert_eq!(ids(&f, &[]), jobs);
    assert_eq!((connections() - before, starts(&f) - sessions), (1, 1));
    // Signalling and awaiting all of them takes one connection, and so does removing them.
    let words: Vec<&str> = jobs.iter().map(String::as_str).collect();
    f.rsig
        .run(&[&["kill", "-s", "TERM", "-w", "20s"], &words[..]].concat())
        .ok();
    assert_eq!(connections() - before, 2);
    f.rsig.run(&[&["rm"], &words[..]].concat()).ok();
    assert_eq!(connections() - before, 3);
}

#[test]
fn a_dead_host_costs_its_jobs_their_state_and_nobody_else() {
    let mut f = Site::OpenSshUser.start();
    let there = f.spawn(&[], &["sleep", "1000"]);
    let here = f.rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();
    f.server.as_mut().expect("a server").stop();
    let output = f.rsig.run(&["ps", "--json"]);
    let told: Value = serde_json::from_str(&output.ok().stderr_has("server").line()).expect("JSON");
    let states = |told: &Value| {
        json!([
            pick(&told[0], ["id", "state"]),
            pick(&told[1], ["id", "state"])
        ])
    };
    assert_eq!(
        states(&told),
        json!([[there, "unknown"], [here, "running"]])
    );
    f.rsig.run(&["ps"]).ok().stdout_has("unknown (was running)");
    assert_eq!(ids(&f, &["--state", "unknown"]), [there.as_str()]);
    // The last known state stays in the record, and --cached asks no host.
    let cached = f.rsig.run(&["ps", "--cached", "--json"]);
    let told: Value = serde_json::from_str(&cached.ok().stderr_is_empty().line()).expect("JSON");
    assert_eq!(
        states(&told),
        json!([[there, "running"], [here, "running"]])
    );
    f.server.as_mut().expect("a server").restart();
    assert_eq!(f.state(&there), "running");
}

#[test]
fn cached_asks_nobody() {
    let mut f = Site::DropbearRoot.start();
    let proxy = Proxy::start(f.server.as_ref().expect("a server").port(), Duration::ZERO);
    f.go_through(&proxy);
    let job = f.spawn(&[], &["sleep", "1000"]);
    let before = proxy.connections();
    for options in [&["-q"][..], &[], &["-a"], &["--json"], &[&job]] {
        f.rsig
            .run(&[&["ps", "--cached"], options].concat())
            .ok()
            .stdout_has(&job);
    }
    assert_eq!(proxy.connections(), before);
}

#[test]
fn an_empty_machine_has_an_empty_table() {
    let rsig = Rsig::new();
    rsig.run(&["ps", "-q"]).ok().stdout_is("").stderr_is_empty();
    rsig.run(&["ps", "-aq"]).ok().stdout_is("");
}
