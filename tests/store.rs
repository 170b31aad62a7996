//! The state file: many writers at once, sudden death, and files and directories that are not what they should be.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::scratch::{make_dir, write_file};
use crate::harness::{Invocation, Rsig, Running, poll_until, tool};
use crate::kit::{self, STEP_TIMEOUT, assert_clear_message};

/// Every command that uses the state file.
const COMMANDS: [&[&str]; 8] = [
    &["spawn", "local", "--", "touch", "started"],
    &["kill", "job"],
    &["stop", "job"],
    &["wait", "job"],
    &["tail", "job"],
    &["ps"],
    &["ps", "--cached"],
    &["rm", "--finished"],
];

/// Runs SQLite's own integrity check on the file.
#[track_caller]
fn assert_whole(rsig: &Rsig) {
    let verdict: String = kit::database(rsig)
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("a verdict");
    assert_eq!(verdict, "ok");
}

#[test]
fn what_64_processes_write_at_once_is_all_there() {
    let rsig = Rsig::new();
    // The first ones also race to create the file.
    let started: Vec<Running> = (0..64)
        .map(|_| rsig.spawn_process(&["spawn", "local", "--", "true"]))
        .collect();
    let ids: HashSet<String> = started
        .into_iter()
        .map(|running| running.wait().ok().line())
        .collect();
    assert_eq!(ids.len(), 64);
    assert_eq!(
        kit::recorded(&rsig).into_iter().collect::<HashSet<_>>(),
        ids
    );
    // Then 64 processes that change records, some of which remove them.
    let (gone, kept): (Vec<&String>, Vec<&String>) = ids.iter().partition(|id| id.as_str() < "8");
    let removing = gone.iter().map(|id| rsig.spawn_process(&["rm", id]));
    let waiting = kept.iter().map(|id| rsig.spawn_process(&["wait", id]));
    let all: Vec<Running> = removing.chain(waiting).collect();
    for running in all {
        let output = running.wait();
        // A job that has not ended yet is not forgotten.
        assert!(
            output.status().success() || output.stderr().contains("has not ended"),
            "{output}"
        );
    }
    let left: HashSet<String> = kit::recorded(&rsig).into_iter().collect();
    assert!(kept.iter().all(|id| left.contains(*id)));
    rsig.run(
        &["wait"]
            .into_iter()
            .chain(left.iter().map(String::as_str))
            .collect::<Vec<_>>(),
    )
    .ok();
    assert_whole(&rsig);
}

/// Each command reads the whole write-ahead log, so its size must not depend on the number of past commands.
#[test]
fn the_log_of_the_state_file_stays_short() {
    let rsig = Rsig::new();
    let job = rsig
        .run(&["spawn", "local", "--", "sleep", "1000"])
        .ok()
        .line();
    let log = rsig.state().join("jobs.db-wal");
    let mut len_max = 0;
    for _ in 0..80 {
        rsig.run(&["kill", &job, "WINCH"]).ok();
        len_max = fs::metadata(&log).map_or(0, |log| log.len()).max(len_max);
    }
    assert!(
        len_max > 50_000 && len_max < 300_000,
        "{len_max} bytes in the log"
    );
    assert_whole(&rsig);
}

#[test]
fn a_name_is_given_to_one_of_many_who_want_it_at_once() {
    let rsig = Rsig::new();
    let words = ["spawn", "-n", "wanted", "local", "--", "sleep", "1000"];
    let started: Vec<Running> = (0..12).map(|_| rsig.spawn_process(&words)).collect();
    let outputs: Vec<_> = started.into_iter().map(Running::wait).collect();
    let (won, lost): (Vec<_>, Vec<_>) =
        outputs.iter().partition(|output| output.status().success());
    assert_eq!(won.len(), 1);
    for output in lost {
        output.code(1).stdout_is("").stderr_has("wanted is taken");
        assert_clear_message(output);
    }
    assert_eq!(kit::recorded(&rsig), [won[0].line()]);
    let jobs = || {
        rsig.processes()
            .into_iter()
            .filter(|process| process.name == "sleep")
            .count()
    };
    poll_until("the job is its command", STEP_TIMEOUT, || jobs() > 0);
    assert_eq!(jobs(), 1);
}

#[test]
fn a_process_that_is_killed_at_any_moment_leaves_the_file_whole() {
    // The duration of one command, over which the kills are spread.
    let measured = Rsig::new();
    let start = Instant::now();
    measured.run(&["spawn", "local", "--", "true"]).ok();
    let whole = start.elapsed();
    let rsig = Rsig::new();
    for moment in 0..40 {
        // The first half creates the file each time; the second half writes to an existing one.
        if moment < 20 {
            for entry in fs::read_dir(rsig.state()).expect("the directory is there") {
                fs::remove_file(entry.expect("an entry").path()).expect("our own file");
            }
        }
        let running = rsig.spawn_process(&["spawn", "local", "--", "true"]);
        // The moment of the kill is what is tested.
        std::thread::sleep(whole * (moment % 20) / 20);
        running.signal(Signal::SIGKILL);
        drop(running);
        let job = rsig.run(&["spawn", "local", "--", "true"]).ok().line();
        assert_whole(&rsig);
        assert!(kit::recorded(&rsig).contains(&job));
    }
    // An interrupted start is recognised as such after a minute at most.
    let database = kit::database(&rsig);
    database
        .execute(
            "UPDATE jobs SET record = json_set(record, '$.created_at', created_at - 100) WHERE state = 'starting'",
            [],
        )
        .expect("an update");
    poll_until("every record is resolved", STEP_TIMEOUT, || {
        let shown = rsig.run(&["ps", "-a", "--json"]).ok().stdout();
        let jobs: Vec<serde_json::Value> = serde_json::from_str(&shown).expect("JSON");
        jobs.len() >= 20
            && jobs
                .iter()
                .all(|job| job["state"] == "exited" || job["state"] == "lost")
    });
}

/// An intact state file of rsig, as bytes.
fn a_state_file() -> Vec<u8> {
    let rsig = Rsig::new();
    let job = rsig.run(&["spawn", "local", "--", "true"]).ok().line();
    rsig.run(&["wait", &job]).ok();
    kit::database(&rsig)
        .pragma_update(None, "wal_checkpoint", "TRUNCATE")
        .ok();
    kit::database(&rsig)
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .expect("a checkpoint");
    fs::read(rsig.state().join("jobs.db")).expect("the file is there")
}

/// A database that `make` fills.
fn database_of(path: &Path, make: &str) -> Vec<u8> {
    rusqlite::Connection::open(path)
        .and_then(|database| database.execute_batch(make))
        .expect("a database");
    fs::read(path).expect("the file is there")
}

#[test]
fn a_file_that_is_not_ours_or_damaged_is_named_and_left_as_it_is() {
    let ours = a_state_file();
    let scratch = Rsig::new();
    let foreign = database_of(
        &scratch.dir().join("foreign"),
        "CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('x')",
    );
    let unmarked = database_of(
        &scratch.dir().join("unmarked"),
        "PRAGMA user_version = 1; CREATE TABLE jobs (id TEXT)",
    );
    let newer_file = scratch.dir().join("newer");
    fs::write(&newer_file, &ours).expect("our own directory");
    let newer = database_of(
        &newer_file,
        "PRAGMA journal_mode = DELETE; PRAGMA user_version = 999",
    );
    let hollow_file = scratch.dir().join("hollow");
    let hollow = database_of(
        &hollow_file,
        "PRAGMA application_id = 0x72736967; PRAGMA user_version = 5; CREATE TABLE x (y)",
    );
    let unreleased = database_of(
        &scratch.dir().join("unreleased"),
        "PRAGMA application_id = 0x72736967; PRAGMA user_version = 4; CREATE TABLE jobs (id TEXT)",
    );
    let mut scribbled = ours.clone();
    scribbled[100..4096].fill(0xa5);
    for (what, bytes, said) in [
        ("text", b"dear diary\n".to_vec(), "not a state file of rsig"),
        ("noise", vec![0xa5; 9000], "not a state file of rsig"),
        (
            "another program's database",
            foreign,
            "not a state file of rsig",
        ),
        (
            "a database without our mark",
            unmarked,
            "not a state file of rsig",
        ),
        ("a newer schema", newer, "newer rsig"),
        (
            "a schema of before",
            unreleased,
            "unreleased version of rsig",
        ),
        ("our mark, but not our tables", hollow, "jobs.db"),
        (
            "cut in its head",
            ours[..50].to_vec(),
            "not a state file of rsig",
        ),
        ("cut behind its head", ours[..100].to_vec(), "jobs.db"),
        (
            "cut in the middle",
            ours[..ours.len() / 2].to_vec(),
            "jobs.db",
        ),
        ("cut at a page", ours[..4096].to_vec(), "jobs.db"),
        ("scribbled over", scribbled, "jobs.db"),
    ] {
        let rsig = Rsig::new();
        let file = rsig.state().join("jobs.db");
        fs::write(&file, &bytes).expect("our own directory");
        for words in COMMANDS {
            let output = rsig.run(words);
            let expected = if words[0] == "wait" { 125 } else { 1 };
            assert_eq!(output.status().code(), Some(expected), "{what}: {output}");
            output.stdout_is("").stderr_has("jobs.db").stderr_has(said);
            assert_clear_message(&output);
            assert!(
                fs::read(&file).expect("it is there") == bytes,
                "{what} was changed by {words:?}"
            );
        }
        assert!(
            !rsig.home().join("started").exists(),
            "{what}: a job was started"
        );
        assert!(
            !rsig.home().join(".local").exists(),
            "{what}: files were made"
        );
    }
}

#[test]
fn what_is_no_file_in_its_place_is_named_and_left_as_it_is() {
    for what in ["directory", "link", "dangling", "fifo", "unreadable"] {
        let rsig = Rsig::new();
        let file = rsig.state().join("jobs.db");
        let elsewhere = rsig.dir().join("elsewhere");
        match what {
            "directory" => make_dir(&file, 0o700),
            "link" => {
                write_file(&elsewhere, "", 0o600);
                symlink(&elsewhere, &file).expect("a link");
            }
            "dangling" => symlink(&elsewhere, &file).expect("a link"),
            "fifo" => drop(tool("mkfifo").arg(&file).run().ok()),
            _ => {
                // Root can read everything, so this one is a socket: no user can open it.
                drop(std::os::unix::net::UnixListener::bind(&file).expect("a socket"));
            }
        }
        let before = fs::symlink_metadata(&file).expect("it is there");
        for words in COMMANDS {
            let output = rsig.command(words).limit(STEP_TIMEOUT).run();
            output
                .code(if words[0] == "wait" { 125 } else { 1 })
                .stdout_is("")
                .stderr_has("jobs.db");
            assert_clear_message(&output);
        }
        let after = fs::symlink_metadata(&file).expect("it is there");
        assert_eq!(before.file_type(), after.file_type());
        assert_eq!(after.file_type().is_fifo(), what == "fifo");
        assert_eq!(
            fs::read(&elsewhere).ok(),
            (what == "link").then(Vec::new),
            "{what}"
        );
        assert!(
            !rsig.home().join("started").exists(),
            "{what}: a job was started"
        );
    }
}

#[test]
fn a_directory_that_is_not_ours_alone_is_refused() {
    for what in [
        "link",
        "open to all",
        "open to the group",
        "another user's",
        "a file",
        "unmakeable",
    ] {
        let rsig = Rsig::new();
        let directory = rsig.dir().join("given");
        let said = match what {
            "link" => {
                make_dir(&rsig.dir().join("target"), 0o700);
                symlink(rsig.dir().join("target"), &directory).expect("a link");
                "is a symbolic link"
            }
            "open to all" => {
                make_dir(&directory, 0o755);
                "chmod 700"
            }
            "open to the group" => {
                make_dir(&directory, 0o710);
                "chmod 700"
            }
            "another user's" => {
                make_dir(&directory, 0o700);
                chown(&directory, Some(65534), None).expect("we are root");
                "belongs to another user (uid 65534)"
            }
            "a file" => {
                write_file(&directory, "mine", 0o600);
                "given"
            }
            _ => {
                write_file(&rsig.dir().join("blocker"), "", 0o600);
                "blocker"
            }
        };
        let directory = if what == "unmakeable" {
            rsig.dir().join("blocker/given")
        } else {
            directory
        };
        for words in COMMANDS {
            let output = rsig.command(words).env("RSIG_STATE_DIR", &directory).run();
            output
                .code(if words[0] == "wait" { 125 } else { 1 })
                .stdout_is("")
                .stderr_has(said);
            assert_clear_message(&output);
        }
        let made = fs::read_dir(&directory).map_or(0, Iterator::count);
        assert_eq!(made, 0, "{what}");
        assert!(
            !rsig.home().join("started").exists(),
            "{what}: a job was started"
        );
    }
}

#[test]
fn an_open_umask_opens_nothing() {
    let rsig = Rsig::new();
    let under = |line: &str| -> Invocation {
        tool("sh")
            .args(["-c", &format!("umask 000; exec \"$@\" {line}"), "sh"])
            .arg(env!("CARGO_BIN_EXE_rsig"))
            .env("HOME", rsig.home())
            .cwd(rsig.home())
    };
    // Without RSIG_STATE_DIR, so that the parent directories are created as well.
    let job = under("spawn local -- sh -c 'umask; sleep 1000; :'")
        .run()
        .ok()
        .line();
    // The job has the login's own umask.
    poll_until("it has said its umask", STEP_TIMEOUT, || {
        under(&format!("tail {job}")).run().ok().stdout() == "0000\n"
    });
    under(&format!("kill {job} --wait 20s")).run().ok();
    let state = rsig.home().join(".local/state/rsig");
    let mut waiting = vec![state.clone()];
    let mut seen = 0;
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        let mode = metadata.permissions().mode() & 0o777;
        assert_eq!(
            mode,
            if metadata.is_dir() { 0o700 } else { 0o600 },
            "{}",
            path.display()
        );
        seen += 1;
        if metadata.is_dir() {
            waiting.extend(
                fs::read_dir(&path)
                    .expect("readable")
                    .map(|entry| entry.expect("an entry").path()),
            );
        }
    }
    assert!(seen > 5 && state.join("jobs.db").exists() && state.join("jobs").join(&job).is_dir());
}

#[test]
fn without_a_place_for_the_state_file_that_is_said() {
    let rsig = Rsig::new();
    for (variable, value) in [
        ("HOME", ""),
        ("HOME", "relative"),
        ("XDG_STATE_HOME", "relative"),
    ] {
        // A user without an entry in the password database.
        let output = tool("setpriv")
            .args(["--reuid=54321", "--regid=54321", "--clear-groups"])
            .args([env!("CARGO_BIN_EXE_rsig"), "ps"])
            .env(variable, value)
            .cwd(rsig.dir())
            .run();
        output.code(1).stderr_has("RSIG_STATE_DIR");
        assert_clear_message(&output);
    }
    assert_eq!(fs::read_dir(rsig.home()).expect("it is there").count(), 0);
}

#[test]
fn a_state_file_that_is_locked_for_a_moment_is_waited_for() {
    let rsig = Rsig::new();
    let job = rsig.run(&["spawn", "local", "--", "true"]).ok().line();
    rsig.run(&["wait", &job]).ok();
    let database = kit::database(&rsig);
    database
        .execute_batch("BEGIN IMMEDIATE")
        .expect("a transaction");
    // Readers do not wait, and see the state before the transaction.
    for _ in 0..3 {
        assert_eq!(kit::recorded(&rsig), [job.as_str()]);
    }
    let rm = rsig.spawn_process(&["rm", &job]);
    std::thread::sleep(Duration::from_millis(300));
    database.execute_batch("COMMIT").expect("the end of it");
    rm.wait().ok();
    assert_eq!(kit::recorded(&rsig), Vec::<String>::new());
}
