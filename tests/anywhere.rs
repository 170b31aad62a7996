//! Jobs without a record on this machine, reached as `HOST/ID` and found by `ps --discover`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Fixture, Output, Rsig, Site, on_two_sites, poll_until};
use crate::jobs::{STEP_TIMEOUT, json_lines};
use crate::kit::assert_clear_message;

/// Another machine of the same user: a separate state directory.
struct Elsewhere<'a> {
    f: &'a Fixture,
    state: PathBuf,
}

impl<'a> Elsewhere<'a> {
    fn new(f: &'a Fixture, name: &str) -> Self {
        let state = f.rsig.dir().join(name);
        fs::create_dir(&state).expect("our own directory");
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("our own directory");
        Self { f, state }
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> Output {
        self.f
            .rsig
            .command(words)
            .env("RSIG_STATE_DIR", &self.state)
            .run()
    }

    /// Runs a command about jobs named as HOST/ID, with the options needed to connect.
    #[track_caller]
    fn ask(&self, words: &[&str]) -> Output {
        let (verb, rest) = words.split_first().expect("a verb");
        let connect = self.f.connect.iter().map(String::as_str);
        self.run(
            &std::iter::once(*verb)
                .chain(connect)
                .chain(rest.iter().copied())
                .collect::<Vec<_>>(),
        )
    }

    #[track_caller]
    fn discover(&self, options: &[&str]) -> Output {
        self.ask(&[&["ps", "--host", &self.f.host, "--discover"], options].concat())
    }

    /// The jobs that discovery finds.
    #[track_caller]
    fn found(&self) -> Vec<Value> {
        let output = self.discover(&["--json"]);
        serde_json::from_str(&output.ok().line())
            .unwrap_or_else(|error| panic!("{error}: {output}"))
    }

    #[track_caller]
    fn recorded(&self) -> Vec<String> {
        self.run(&["ps", "-a", "--cached", "-q"])
            .ok()
            .stdout()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[track_caller]
    fn spawn(&self, options: &[&str], command: &[&str]) -> String {
        self.run(&self.f.words("spawn", options, &[&["--"], command].concat()))
            .ok()
            .line()
    }
}

/// Deletes the state file and the files that belong to it; keepers keep running.
fn lose_state_file(state: &Path) {
    for name in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
        // Not all of them always exist.
        drop(fs::remove_file(state.join(name)));
    }
}

on_two_sites! {
    fn a_job_without_a_record_is_reached_by_its_host_and_id(f: &Fixture) {
        let other = Elsewhere::new(f, "other");
        let job = f.spawn_listener();
        let there = format!("{}/{job}", f.host);
        // A number is one of the host's signal numbers. The host's system is not known here yet.
        let told = json_lines(other.ask(&["kill", "--json", &there, "10"]).ok()).remove(0);
        assert_eq!([&told["job"], &told["id"], &told["host"], &told["signal"]], [&there, &job, &f.host, "USR1"]);
        other.ask(&["kill", "-RTMIN+1", &there]).ok();
        poll_until("both arrive", STEP_TIMEOUT, || f.written(&job) == "ready\nUSR1\nNUM35\n");
        other.ask(&["tail", "-n", "1", &there]).ok().stdout_is("NUM35\n");
        let shown: Value = serde_json::from_str(&other.ask(&["ps", "--json", &there]).ok().line()).expect("JSON");
        assert_eq!([&shown[0]["id"], &shown[0]["state"], &shown[0]["os"]], [job.as_str(), "running", "Linux"]);
        assert_eq!(shown[0]["command"].as_array().expect("words")[..2], ["perl", "-e"]);
        other.ask(&["wait", "--timeout", "100ms", &there]).code(124);
        other.ask(&["rm", &there]).code(1).stderr_has("it has not ended");
        other.ask(&["kill", "-w", "20s", "-KILL", &there]).ok().stdout_has("ended with status 137 (KILL)");
        let waited = json_lines(other.ask(&["wait", "--json", &there]).code(137)).remove(0);
        assert_eq!([&waited["id"], &waited["exit_signal"]], [job.as_str(), "KILL"]);
        other.ask(&["kill", &there]).code(4).stderr_has("status 137");
        other.ask(&["stop", &there]).ok();
        other.ask(&["kill", &there, "EMT"]).code(2).stderr_has("EMT");
        // No record was created, and none is needed.
        assert!(other.recorded().is_empty());
        other.ask(&["rm", "--forget", &there]).code(3);
        other.ask(&["rm", &there]).ok().stdout_is(&format!("{job}\n"));
        assert!(!f.job_ids_on_host().contains(&job));
        for words in [&["kill", &there][..], &["tail", &there], &["ps", &there], &["rm", &there], &["stop", &there]] {
            assert_clear_message(other.ask(words).code(3).stderr_has(&there[there.len() - 8..]));
        }
        other.ask(&["wait", &there]).code(125);
        let told = json_lines(other.ask(&["kill", "--json", &there]).code(3)).remove(0);
        assert_eq!([&told["id"], &told["host"], &told["error"]["kind"]], [job.as_str(), &f.host, "not_found"]);
    }

    fn losing_the_state_file_loses_no_job(f: &Fixture) {
        let running = f.spawn(&["-n", "train"], &["sleep", "1000"]);
        let odd = ["sh", "-c", "exit 3", "ümläut ☃", "a\nb", "\u{1b}[31m", "'\"$(id)\\"];
        let ended = f.spawn(&["-n", "odd"], &odd);
        f.rsig.run(&["wait", &ended]).code(3);
        let before = [f.job(&running), f.job(&ended)];
        lose_state_file(f.rsig.state());
        f.rsig.run(&["ps", &running]).code(3);
        let connect: Vec<&str> = f.connect.iter().map(String::as_str).collect();
        let words = [&["ps", "--host", &f.host, "--discover", "--json"], connect.as_slice()].concat();
        for _ in 0..2 {
            let found: Vec<Value> = serde_json::from_str(&f.rsig.run(&words).ok().line()).expect("JSON");
            let with_times_of = |job: &Value| {
                let known = before.iter().find(|known| known["id"] == job["id"]).expect("one of ours").clone();
                let mut known = known.as_object().expect("an object").clone();
                known.insert("checked_at".to_owned(), job["checked_at"].clone());
                Value::Object(known)
            };
            assert_eq!(found.len(), 2);
            assert!(found.iter().all(|job| *job == with_times_of(job)), "{found:#?}\n{before:#?}");
        }
        // By name and by id, without options: the record says how to connect.
        f.rsig.run(&["kill", "-w", "20s", "train"]).ok().stdout_has("ended with status 143");
        f.rsig.run(&["wait", &ended]).code(3);
        f.rsig.run(&["rm", "train", "odd"]).ok();
        assert!(f.job_ids_on_host().is_empty());
    }

    fn what_was_started_elsewhere_is_found_and_adopted(f: &Fixture) {
        let (here, there) = (Elsewhere::new(f, "here"), Elsewhere::new(f, "there"));
        let own = here.spawn(&["-n", "train"], &["sleep", "1000"]);
        let clashing = there.spawn(&["-n", "train"], &["sleep", "1001"]);
        let free = there.spawn(&["-n", "free"], &["sleep", "1002"]);
        let over = there.spawn(&["-n", "free-too"], &["sh", "-c", "exit 4"]);
        there.run(&["wait", &over]).code(4);
        let again = there.spawn(&["-n", "free-too"], &["sleep", "1003"]);
        let mut expected = vec![own.clone(), clashing.clone(), free.clone(), over.clone(), again.clone()];
        expected.sort();
        for _ in 0..2 {
            let mut found: Vec<String> = here.discover(&["-q"]).ok().stdout().lines().map(str::to_owned).collect();
            found.sort();
            assert_eq!(found, expected);
        }
        // Names stay with their jobs. Of the adopted jobs that share a name, the running one gets it.
        for (name, job) in [("train", &own), ("free", &free), ("free-too", &again)] {
            let shown: Value = serde_json::from_str(&here.run(&["ps", "--json", name]).ok().line()).expect("JSON");
            assert_eq!(shown[0]["id"], job.as_str(), "{name}");
        }
        here.run(&["kill", "-w", "20s", "train"]).ok().stdout_has(&own);
        // Even if the job of that name has ended, or its record was removed.
        here.run(&["kill", "train"]).code(4).stderr_has(&own);
        here.run(&["rm", "train"]).ok();
        here.run(&["kill", "train"]).code(3);
        let next = here.spawn(&["-n", "train"], &["sleep", "1004"]);
        here.run(&["spawn", "-n", "free", "local", "--", "true"]).code(1).stderr_has("the name free is taken");
        here.run(&["kill", "-w", "20s", "train", "KILL"]).ok().stdout_has(&next);
        here.run(&["kill", "-w", "20s", &clashing]).ok().stdout_has("ended with status 143");
        assert_eq!(here.run(&["ps", "-q", "--state", "running"]).ok().stdout().lines().count(), 2);
        // `--state` selects from the jobs that were found.
        here.discover(&["-q", "--state", "running"]).ok();
        assert_eq!(here.discover(&["-q", "--state", "exited"]).ok().stdout().lines().count(), 3);
    }

    fn a_record_of_another_job_with_the_same_id_is_never_changed(f: &Fixture) {
        let (here, there) = (Elsewhere::new(f, "here"), Elsewhere::new(f, "there"));
        let job = there.spawn(&["-n", "real"], &["sleep", "1000"]);
        // A record of a job on another host.
        here.run(&["spawn", "-n", "mine", "local", "--", "true"]).ok();
        let database = rusqlite::Connection::open(here.state.join("jobs.db")).expect("it opens");
        let mark = "UPDATE jobs SET record = json_set(record, '$.id', ?1, '$.destination.host', 'faraway.invalid', \
            '$.command', json_array('mine'), '$.state', 'running')";
        database.execute(mark, [&job]).expect("an update");
        let row = || -> String {
            database.query_row("SELECT record FROM jobs", [], |row| row.get(0)).expect("one row")
        };
        let before = row();
        let found = here.found();
        assert_eq!(found.len(), if f.is_remote() { 1 } else { 2 });
        assert!(found.iter().any(|found| found["id"] == job.as_str() && found["name"] == "real"));
        let there = format!("{}/{job}", f.host);
        here.ask(&["ps", &there]).ok();
        here.ask(&["tail", &there]).ok();
        here.ask(&["kill", "-w", "20s", &there]).ok();
        here.ask(&["rm", "--forget", &there]).code(3);
        here.ask(&["rm", &there]).ok();
        let rows: u32 = database.query_row("SELECT count(*) FROM jobs WHERE host LIKE 'far%'", [], |row| row.get(0)).expect("a count");
        assert_eq!(rows, 1);
        database.execute("DELETE FROM jobs WHERE host NOT LIKE 'far%'", []).expect("a deletion");
        assert_eq!(row(), before);
    }

    fn what_a_host_says_is_held_against_what_it_can_be(f: &Fixture) {
        let jobs: Vec<String> = (0..6).map(|_| f.spawn(&[], &["true"])).collect();
        for job in &jobs {
            f.rsig.run(&["wait", job]).ok();
        }
        let meta = |job: &str, text: &str| fs::write(f.file(job, "meta"), text).expect("we are root");
        let other_id = format!(r#"{{"id":"{}","name":"liar","command":["lie"],"cwd":null,"created_at":1}}"#, jobs[5]);
        meta(&jobs[0], &other_id);
        meta(&jobs[1], "{\"id\": \u{1b}[2J");
        meta(&jobs[2], &format!(r#"{{"id":"{}","name":"x","command":["{}"],"cwd":null,"created_at":1}}"#, jobs[2], "a".repeat(1 << 20)));
        fs::remove_file(f.file(&jobs[3], "meta")).expect("we are root");
        meta(&jobs[4], &format!(r#"{{"id":"{}","name":"../a b","command":["\u001b[31m","b"],"cwd":null,"created_at":1,"more":1}}"#, jobs[4]));
        // Entries that are not jobs: a file, a directory whose name is not an id, and a symbolic link.
        let dir = f.jobs_dir();
        fs::write(dir.join("aaaaaaaa"), "").expect("we are root");
        fs::create_dir(dir.join("not-a-id")).expect("we are root");
        symlink(f.file(&jobs[5], ""), dir.join("bbbbbbbb")).expect("we are root");
        let other = Elsewhere::new(f, "other");
        let found = other.found();
        let commands: Vec<&Value> = jobs.iter().map(|job| &found.iter().find(|found| found["id"] == job.as_str()).expect("it is found")["command"]).collect();
        let none = serde_json::json!([]);
        assert_eq!(commands, [&none, &none, &none, &none, &serde_json::json!(["\u{1b}[31m", "b"]), &serde_json::json!(["true"])]);
        assert_eq!(found.len(), 6);
        assert!(found.iter().all(|found| found["state"] == "exited" && found["name"] != "liar" && found["name"] != "../a b"));
        let shown = other.discover(&[]).ok().stdout();
        assert!(!shown.contains('\u{1b}') && shown.lines().count() == 7, "{shown}");
        // They are still jobs.
        other.run(&["wait", &jobs[0]]).ok();
        other.ask(&["kill", &format!("{}/bbbbbbbb", f.host)]).code(1).stderr_has("writable by other users");
        // A start that got no further than creating these files.
        let begun = dir.join("cccccccc");
        fs::create_dir(&begun).expect("we are root");
        let uid = fs::metadata(&dir).expect("it is there").uid();
        for name in ["", "pid", "made", "status"] {
            let path = begun.join(name);
            if !name.is_empty() {
                fs::write(&path, "").expect("we are root");
            }
            chown(path, Some(uid), Some(uid)).expect("we are root");
        }
        let found = other.found();
        let started = found.iter().find(|found| found["id"] == "cccccccc").expect("it is found");
        assert_eq!(started["state"], "starting");
        // If others can write to the directory, nothing in it is trusted.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("we are root");
        let output = other.discover(&[]);
        assert_clear_message(output.code(1).stdout_is("").stderr_has("nothing in it is trusted"));
    }
}

#[test]
fn a_host_that_has_never_had_a_job_has_none() {
    let f = Site::OpenSshUser.start();
    let other = Elsewhere::new(&f, "other");
    assert_eq!(other.discover(&["--json"]).ok().stdout(), "[]\n");
    other
        .ask(&["kill", "server/abcdefgh"])
        .code(3)
        .stderr_has("--discover");
}

#[test]
fn a_host_that_cannot_be_reached_is_said_for_the_job() {
    let rsig = Rsig::new();
    let told = json_lines(
        rsig.run(&[
            "kill",
            "--json",
            "-p",
            "1",
            "-o",
            "BatchMode=yes",
            "-F",
            "none",
            "127.0.0.1/abcdefgh",
        ])
        .code(255),
    )
    .remove(0);
    assert_eq!(
        [&told["id"], &told["host"], &told["error"]["kind"]],
        ["abcdefgh", "127.0.0.1", "unreachable"]
    );
    rsig.run(&[
        "ps",
        "-p",
        "1",
        "-F",
        "none",
        "--host",
        "127.0.0.1",
        "--discover",
    ])
    .code(255);
}

#[test]
fn connecting_options_need_a_host_to_connect_to() {
    let rsig = Rsig::new();
    for (line, said) in [
        ("kill -p 22 job", "HOST/ID"),
        ("kill -i key job TERM", "HOST/ID"),
        ("stop -l bob job", "HOST/ID"),
        ("wait -F none job", "HOST/ID"),
        ("tail -J jump job", "HOST/ID"),
        ("ps -o Port=22 job", "HOST/ID"),
        ("ps -p 22", "HOST/ID"),
        ("rm -p 22 job", "HOST/ID"),
        ("kill -p 0 web/abcdefgh", "not a port"),
        ("stop -l a;b web/abcdefgh", "must not hold"),
        ("kill a;b/abcdefgh", "must not hold ';'"),
        ("kill $(id)/abcdefgh", "must not hold '$'"),
        ("wait ../../abcdefgh", "must not hold '/'"),
        ("tail /abcdefgh", "the host is empty"),
        ("ps --discover", "--host"),
        ("ps --discover --host web job", "--discover"),
        ("ps --discover --host web --cached", "--cached"),
    ] {
        let output = rsig.run(&line.split(' ').collect::<Vec<_>>());
        assert_clear_message(output.code(2).stdout_is("").stderr_has(said));
        assert_eq!(
            fs::read_dir(rsig.state()).expect("it is there").count(),
            0,
            "state was made by {line:?}"
        );
    }
    // A word with an invalid id names no job, and no host is contacted.
    for word in [
        "web/abc",
        "web/../etc",
        "../../etc/passwd",
        "web/ABCDEFGH",
        "web/abcdefgi",
        "web/$(id)",
    ] {
        assert_clear_message(
            rsig.run(&["kill", word])
                .code(3)
                .stdout_is("")
                .stderr_has("not a job id"),
        );
    }
}
