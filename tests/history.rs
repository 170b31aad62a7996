//! `rsig history`: what is recorded about a job, and what never is.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Fixture, Login, Rsig, Server, Site, on_two_sites, poll_until};
use crate::jobs::STEP_TIMEOUT;
use crate::keepers::await_warm_relay;
use crate::kit;

fn history(f: &Fixture, job: &str) -> Vec<Value> {
    f.json(&["history", "--json", job])
}

/// Names of the events.
fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["event"].as_str().expect("text"))
        .collect()
}

on_two_sites! {
    fn a_job_leaves_its_history(f: &Fixture) {
        let start = jiff::Timestamp::now().as_second();
        let job = f.spawn(&["-n", "train", "-e", "TOKEN=s3cret"], &["sleep", "1000"]);
        f.rsig.run(&["kill", &job, "0"]).ok();
        f.rsig.run(&["kill", "--via", "pid", &job, "WINCH", "--target", "process"]).ok();
        f.rsig.run(&["kill", "--via", "pid", &job, "STOP"]).ok();
        f.rsig.run(&["stop", "train"]).ok();
        f.rsig.run(&["wait", &job]).code(143);
        f.rsig.run(&["kill", &job]).code(4);
        f.rsig.run(&["rm", &job]).ok();
        let events = history(f, &job);
        assert_eq!(names(&events), ["spawn", "signal", "signal", "signal", "end", "removal"]);
        for event in &events {
            assert_eq!((&event["job"], &event["name"], &event["user"]), (&job.as_str().into(), &"train".into(), &"root".into()));
            assert_eq!(event["host"], f.host.as_str());
            let at: jiff::Timestamp = event["at"].as_str().expect("text").parse().expect("RFC 3339");
            assert!((start..start + 120).contains(&at.as_second()), "{event}");
        }
        assert_eq!(events[0]["command"], json!(["sleep", "1000"]));
        let signal = |event: &Value| ["signal", "target", "via", "sent"].map(|key| event[key].clone());
        assert_eq!(signal(&events[1]), [json!("WINCH"), json!("process"), json!("pid"), json!(true)]);
        assert_eq!(signal(&events[2]), [json!("STOP"), json!("group"), json!("pid"), json!(true)]);
        assert_eq!(signal(&events[3]), [json!("TERM"), json!("group"), json!("pid"), json!(true)]);
        let end = ["state", "exit_status", "exit_signal", "timed_out"].map(|key| events[4][key].clone());
        assert_eq!(end, [json!("exited"), json!(143), json!("TERM"), json!(false)]);
        assert!(events[4]["finished_at"].is_string());

        // By a prefix of its id and by its name too; and as a table.
        assert_eq!(history(f, &job[..5]), events);
        assert_eq!(history(f, "train"), events);
        let table = f.rsig.run(&["history", &job]).ok().stdout();
        assert_eq!(table.lines().count(), 7, "{table}");
        assert!(table.contains("WINCH to its process by pid, confirmed") && table.contains("exited 143 (TERM)"), "{table}");
        f.rsig.run(&["history", "nosuchjob"]).code(3).stdout_is("").stderr_has("nosuchjob");
        assert_eq!(f.json(&["history", "--json", "-n", "2"]), events[4..]);
        for part in ["jobs.db", "jobs.db-wal"] {
            let bytes = std::fs::read(f.rsig.state().join(part)).unwrap_or_default();
            assert!(!bytes.windows(6).any(|window| window == b"s3cret"), "{part}");
        }

        // A second signal; a job that is stopped in order to be removed; a job whose record alone is removed; a job
        // that never started.
        let job = f.spawn(&[], &["perl", "-e", "$SIG{TERM} = 'IGNORE'; $| = 1; print qq(ready\n); sleep 1 while 1"]);
        f.await_written(&job, "ready\n");
        f.rsig.run(&["kill", &job, "-w", "2s", "--then", "KILL"]);
        f.rsig.run(&["wait", &job]).code(137);
        let events = history(f, &job);
        assert_eq!(names(&events), ["spawn", "signal", "signal", "end"]);
        assert_eq!((&events[1]["signal"], &events[2]["signal"]), (&"TERM".into(), &"KILL".into()));
        let job = f.spawn(&[], &["sleep", "1000"]);
        f.rsig.run(&["rm", "--force", &job]).ok();
        assert_eq!(names(&history(f, &job)), ["spawn", "signal", "end", "removal"]);
        let job = f.spawn(&[], &["true"]);
        f.rsig.run(&["rm", "--forget", &job]).ok();
        assert_eq!(names(&history(f, &job)), ["spawn", "forget"]);
        f.rsig.run(&f.words("spawn", &["-n", "never"], &["no-such-command"])).code(1);
        let events = history(f, "never");
        assert_eq!((names(&events), &events[1]["error"]), (vec!["spawn", "not_started"], &"failed".into()));
    }
}

#[test]
fn the_path_of_a_signal_is_written_down() {
    let f = Site::OpenSshUser.start_with_keeper();
    let job = f.spawn_listener();
    await_warm_relay(&f, &job);
    f.rsig.run(&["kill", &job, "USR1"]).ok();
    f.rsig.run(&["kill", "--via", "channel", &job, "USR2"]).ok();
    f.rsig
        .run(&["kill", "--via", "channel", &job, "WINCH"])
        .code(1);
    let events = history(&f, &job);
    assert_eq!(names(&events), ["spawn", "signal", "signal"]);
    assert_eq!(
        (&events[2]["signal"], &events[2]["via"], &events[2]["sent"]),
        (&"USR2".into(), &"channel".into(), &true.into())
    );
}

#[test]
fn a_host_that_is_gone_leaves_no_signal_that_was_not_sent() {
    let mut f = Fixture::with(Some(Server::openssh(Login::User).start()));
    let job = f.spawn(&[], &["sleep", "1000"]);
    f.server.as_mut().expect("a server").stop();
    f.rsig.run(&["kill", &job]).code(255);
    assert_eq!(names(&history(&f, &job)), ["spawn"]);
    f.server.as_mut().expect("a server").restart();
}

/// Neither old events nor the records of other jobs slow a command down.
#[test]
fn a_long_history_costs_nothing() {
    let rsig = Rsig::new();
    let job = rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();
    let kill = |count: usize| {
        let mut times: Vec<Duration> = (0..count)
            .map(|_| {
                let start = std::time::Instant::now();
                rsig.run(&["kill", &job, "0"]).ok();
                rsig.run(&["kill", &job, "WINCH"]).ok();
                start.elapsed()
            })
            .collect();
        times.sort();
        times[0]
    };
    let before = kill(7);
    let fill = "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 99000) \
                INSERT INTO history (entry) SELECT json_object('at', '2026-01-01T00:00:00Z', 'user', 'u', 'job', 'j' || i, \
                'host', 'h', 'event', 'removal') FROM n";
    let mut database = kit::database(&rsig);
    let transaction = database.transaction().expect("a transaction");
    transaction.execute(fill, []).expect("filled");
    let fill = "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 100000) \
                INSERT INTO jobs (record) SELECT json_object('id', 'j' || i, 'destination', json_object('host', 'h'), \
                'command', json('[]'), 'state', 'exited', 'created_at', 1700000000) FROM n";
    transaction.execute(fill, []).expect("filled");
    transaction.commit().expect("written");
    // A command that read all of them would take about ten times as long. On a busy machine one measurement may not be
    // enough.
    let mut after = Duration::MAX;
    poll_until("it is as quick as before", STEP_TIMEOUT, || {
        after = after.min(kill(5));
        after < before * 3
    });
}
