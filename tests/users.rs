//! Other users of the host: reached through sudo and su, and with a home that can't be written.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{Fixture, STEP_TIMEOUT, Site, on_two_sites, poll_until};
use crate::jobs::json_lines;
use crate::keepers::keeper_pids;
use crate::kit::assert_clear_message;

/// A user that every system has and that has no home, and the commands that become this user.
const NOBODY: &str = "65534";
const BECOME: [&str; 3] = [
    "sudo -n -H -u nobody",
    "su -s /bin/sh -c 'exec \"$@\"' -- nobody sh",
    "setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/nonexistent",
];

/// A directory in which every user can create directories.
fn open_dir(f: &Fixture) -> PathBuf {
    let dir = f.rsig.dir().join("open");
    fs::create_dir_all(&dir).expect("our own");
    fs::set_permissions(&dir, Permissions::from_mode(0o1777)).expect("our own");
    dir
}

#[test]
fn jobs_of_another_user_are_jobs() {
    let f = Site::Local.start_with_keeper();
    for (index, prefix) in BECOME.into_iter().enumerate() {
        let jobs_dir = open_dir(&f).join(format!("jobs{index}"));
        let jobs_dir = jobs_dir.to_str().expect("UTF-8");
        let there = ["--prefix", prefix, "--jobs-dir", jobs_dir, "-C", "/"];
        let words = [
            &["run"][..],
            &there,
            &["local", "--", "sh", "-c", "cat; id -u; exit 3"],
        ]
        .concat();
        f.rsig
            .command(&words)
            .stdin("in\n")
            .run()
            .code(3)
            .stdout_is(&format!("in\n{NOBODY}\n"));
        let words = [
            &["spawn"][..],
            &there,
            &[
                "local",
                "--",
                "sh",
                "-c",
                "trap 'exit 7' TERM; echo on; while :; do sleep 0.1; done",
            ],
        ]
        .concat();
        let job = f.rsig.run(&words).ok().line();
        poll_until("it is on", STEP_TIMEOUT, || {
            f.rsig.run(&["tail", &job]).ok().stdout() == "on\n"
        });
        let metadata = fs::metadata(format!("{jobs_dir}/{job}/out")).expect("its log");
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (65534, 0o600));
        let shown: Value =
            serde_json::from_str(&f.rsig.run(&["ps", "--json", &job]).ok().line()).expect("JSON");
        assert_eq!(
            [&shown[0]["jobs_dir"], &shown[0]["state"]],
            [jobs_dir, "running"]
        );
        f.rsig.run(&["kill", "-w", "20s", &job]).ok();
        f.rsig.run(&["wait", &job]).code(7);
        f.rsig.run(&["rm", &job]).ok();
    }
    // Each prefix has its keeper.
    poll_until("only these are left", STEP_TIMEOUT, || {
        keeper_pids(&f).len() == BECOME.len()
    });
    f.rsig.run(&["keeper", "stop", "--all"]).ok();
}

#[test]
fn a_pool_behind_sudo_is_closed_soon() {
    let mut f = Site::Local.start_with_keeper();
    // The minute for sudo becomes twenty seconds; the ten minutes for others stay as they are.
    f.rsig.clock = 3;
    let open = open_dir(&f);
    for (index, prefix) in BECOME.into_iter().enumerate() {
        let jobs_dir = open.join(format!("jobs{index}")).display().to_string();
        let there = ["--prefix", prefix, "--jobs-dir", &jobs_dir, "-C", "/"];
        let words = [&["spawn"][..], &there, &["local", "true"]].concat();
        f.rsig.run(&words).ok();
    }
    poll_until("the pool behind sudo is closed", STEP_TIMEOUT, || {
        keeper_pids(&f).len() == BECOME.len() - 1
    });
    f.rsig.run(&["keeper", "status"]).ok().stdout_has("local");
    f.rsig.run(&["keeper", "stop", "--all"]).ok();
}

#[test]
fn what_keeps_a_user_out_is_said() {
    let f = Site::Local.start();
    let run = |options: &[&str]| {
        f.rsig
            .run(&[&["run", "-C", "/"][..], options, &["local", "true"]].concat())
    };
    let output = run(&[
        "--prefix",
        "setpriv --reuid 65534 --regid 65534 --clear-groups",
        "--sudo",
    ]);
    assert_clear_message(
        output
            .code(125)
            .stderr_has("NOPASSWD")
            .stderr_has("sudo -n"),
    );
    let output = run(&["--sudo=nobody"]);
    assert_clear_message(
        output
            .code(125)
            .stderr_has("can't be written")
            .stderr_has("--jobs-dir"),
    );
    // A directory that other users can write to: it is not this user's to close, so no chmod is suggested.
    let open = open_dir(&f);
    let output = run(&["--jobs-dir", open.to_str().expect("UTF-8")]);
    assert_clear_message(
        output
            .code(125)
            .stderr_has("must be this user's alone")
            .stderr_lacks("chmod"),
    );
    for dir in ["jobs", "", "/", "~/jobs", "/a\nb"] {
        assert_clear_message(
            run(&["--jobs-dir", dir])
                .code(2)
                .stderr_has("absolute path"),
        );
    }
    let output = f.rsig.run(&["kill", "--jobs-dir", "/jobs", "job"]);
    assert_clear_message(output.code(2).stderr_has("HOST/ID"));
}

on_two_sites! {
    fn a_jobs_files_go_where_they_are_to(f: &Fixture) {
        let base = f.job_home().join("elsewhere/deep");
        let dir = base.to_str().expect("UTF-8");
        let job = f.spawn(&["-n", "far", "--jobs-dir", dir], &["sh", "-c", "echo on; exec sleep 1000"]);
        assert!(base.join(&job).join("pid").is_file());
        assert_eq!(fs::metadata(&base).expect("it is made").mode() & 0o777, 0o700);
        assert!(!f.jobs_dir().exists(), "nothing is in the home");
        let shown = f.job(&job);
        assert_eq!([&shown["jobs_dir"], &shown["dir"]], [dir, &format!("{dir}/{job}")]);
        poll_until("it is on", STEP_TIMEOUT, || f.rsig.run(&["tail", &job]).ok().stdout() == "on\n");
        // From another machine, the job is found in that directory and nowhere else.
        let other = f.rsig.dir().join("other");
        fs::create_dir(&other).expect("our own");
        fs::set_permissions(&other, Permissions::from_mode(0o700)).expect("our own");
        let there = format!("{}/{job}", f.host);
        let ask = |words: &[&str]| {
            let (verb, rest) = words.split_first().expect("a verb");
            let connect = f.connect.iter().map(String::as_str);
            let words: Vec<&str> = std::iter::once(*verb).chain(connect).chain(rest.iter().copied()).collect();
            f.rsig.command(&words).env("RSIG_STATE_DIR", &other).run()
        };
        ask(&["kill", &there, "STOP"]).code(3);
        ask(&["kill", "--jobs-dir", dir, &there, "STOP"]).ok();
        let mut found = Value::Null;
        poll_until("it is stopped", STEP_TIMEOUT, || {
            let listed = ask(&["ps", "--discover", "--host", &f.host, "--jobs-dir", dir, "--json"]).ok().line();
            found = serde_json::from_str(&listed).expect("JSON");
            found[0]["state"] == "stopped"
        });
        assert_eq!([&found[0]["id"], &found[0]["jobs_dir"]], [job.as_str(), dir]);
        let told = json_lines(f.rsig.run(&["kill", "--json", "-w", "20s", &job, "KILL"]).ok()).remove(0);
        assert_eq!(told["exit_signal"], "KILL");
        f.rsig.run(&["rm", "far"]).ok();
        assert_eq!(fs::read_dir(&base).expect("it is there").count(), 0);
        f.rsig.run(&f.words("run", &["--jobs-dir", dir], &["--", "echo", "in"])).ok().stdout_is("in\n");
        // While the directory of all jobs is away, nothing can be said about the job.
        let job = f.spawn(&["--jobs-dir", dir], &["true"]);
        poll_until("it ends", STEP_TIMEOUT, || f.job(&job)["state"] == "exited");
        let job = f.spawn(&["--jobs-dir", dir], &["sleep", "1000"]);
        fs::rename(&base, base.with_extension("away")).expect("our own");
        f.rsig.run(&["ps", &job]).ok();
        fs::rename(base.with_extension("away"), &base).expect("our own");
        f.rsig.run(&["stop", &job]).ok();
    }
}
