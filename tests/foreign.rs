//! Job files and directories that belong to another user, or that another user could have changed: nothing in them is
//! trusted, removed or signalled.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use crate::harness::{Fixture, Process, Site, poll_until};
use crate::kit::{self, STEP_TIMEOUT, assert_clear_message};

/// A user who is neither root nor the account.
const STRANGER: u32 = 65_533;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("we are root");
}

/// Ways to tamper with a job's directory.
const TAMPERED: [&str; 7] = [
    "the directory is another user's",
    "the directory is a link",
    "the directory above is another user's",
    "the directory above is open to the group",
    "the directory above is open to all",
    "its process is in another user's file",
    "its process is another one",
];

fn tamper(what: &str, jobs: &Path, job: &str, aside: &Path) {
    let dir = jobs.join(job);
    match what {
        "the directory is another user's" => {
            chown(&dir, Some(STRANGER), None).expect("we are root");
        }
        "the directory is a link" => {
            fs::rename(&dir, aside).expect("on one disk");
            symlink(aside, &dir).expect("a link");
        }
        "the directory above is another user's" => {
            chown(jobs, Some(STRANGER), None).expect("we are root");
        }
        "the directory above is open to the group" => mode(jobs, 0o770),
        "the directory above is open to all" => mode(jobs, 0o777),
        "its process is in another user's file" => {
            chown(dir.join("pid"), Some(STRANGER), None).expect("we are root");
        }
        _ => {
            // The pid of a process that is not the job: the start time differs.
            let text = fs::read_to_string(dir.join("pid")).expect("it is there");
            let mut words: Vec<&str> = text.split(' ').collect();
            words[2] = "1";
            fs::write(dir.join("pid"), words.join(" ")).expect("we are root");
        }
    }
}

fn untamper(what: &str, f: &Fixture, job: &str, aside: &Path) {
    let (jobs, uid) = (
        f.jobs_dir(),
        f.server.as_ref().map_or(0, crate::harness::Server::uid),
    );
    let dir = jobs.join(job);
    if what == "the directory is a link" {
        fs::remove_file(&dir).expect("our link");
        fs::rename(aside, &dir).expect("on one disk");
    }
    mode(&jobs, 0o700);
    for path in [&jobs, &dir] {
        chown(path, Some(uid), None).expect("we are root");
    }
}

fn check(site: Site) {
    let f = site.start();
    for what in TAMPERED {
        let aside = f.job_home().join("aside");
        let job = f.spawn(
            &[],
            &[
                "sh",
                "-c",
                "trap 'echo caught >>caught' TERM USR1; : >up; while :; do sleep 0.02; done",
            ],
        );
        poll_until("the job is up", STEP_TIMEOUT, || {
            f.job_home().join("up").exists()
        });
        let record = kit::job_json(&f.rsig, &job).expect("it is known");
        let pid = i32::try_from(record["pid"].as_i64().expect("a pid")).expect("a pid");
        let process = Process::find(pid).expect("it runs");
        tamper(what, &f.jobs_dir(), &job, &aside);
        let own = what.starts_with("its process");
        for words in [
            &["kill", &job, "USR1"][..],
            &["kill", &job, "KILL", "--wait", "200ms"],
            &["stop", "--grace", "100ms", &job],
        ] {
            let output = f.rsig.run(words);
            assert!(!output.status().success() || own, "{what}: {output}");
            if !own {
                assert_clear_message(output.code(1));
                output.stderr_has("writable by other users");
            }
        }
        let state = kit::state(&f.rsig, &job);
        assert!(own || state == "unknown", "{what}: {state}");
        if !own {
            assert_clear_message(
                f.rsig
                    .run(&["tail", &job])
                    .code(1)
                    .stderr_has("writable by other users"),
            );
            assert_clear_message(f.rsig.run(&["wait", "--timeout", "200ms", &job]).code(124));
            for words in [&["rm", &job][..], &["rm", "--force", &job]] {
                assert_clear_message(
                    f.rsig
                        .run(words)
                        .code(1)
                        .stderr_has("writable by other users"),
                );
            }
            untamper(what, &f, &job, &aside);
            assert_eq!(
                kit::state(&f.rsig, &job),
                "running",
                "{what}: with the directory put right it is known again"
            );
        }
        assert!(process.runs(), "{what}: it was signalled");
        assert!(
            !f.job_home().join("caught").exists(),
            "{what}: it was signalled"
        );
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(-pid),
            nix::sys::signal::Signal::SIGKILL,
        )
        .expect("it runs");
        poll_until("it is gone", STEP_TIMEOUT, || !process.runs());
        fs::remove_file(f.job_home().join("up")).expect("the job's file");
    }
}

#[test]
fn what_others_could_have_written_is_not_believed_here() {
    check(Site::Local);
}

#[test]
fn what_others_could_have_written_is_not_believed_there() {
    check(Site::OpenSshUser);
}

#[test]
fn a_home_that_is_prepared_by_others_takes_no_job() {
    let f = Site::OpenSshUser.start();
    let state = f.job_home().join(".local/state");
    let uid = f.server.as_ref().expect("a server").uid();
    for (what, said) in [
        ("another user's", "belongs to another user"),
        ("open", "other users can write"),
        ("file", "can't be written"),
    ] {
        fs::create_dir_all(&state).expect("the home is ours to make");
        crate::harness::scratch::give_to(&f.job_home().join(".local"), uid);
        let jobs = state.join("rsig/jobs");
        match what {
            "file" => fs::write(state.join("rsig"), "").expect("we are root"),
            _ => fs::create_dir_all(&jobs).expect("we are root"),
        }
        if what == "open" {
            chown(&jobs, Some(uid), None).expect("we are root");
            mode(&jobs, 0o777);
        }
        let output = f.rsig.run(&f.words("spawn", &[], &["touch", "started"]));
        assert_clear_message(output.code(1).stdout_is("").stderr_has(said));
        assert!(
            !f.job_home().join("started").exists() && kit::recorded(&f.rsig).is_empty(),
            "{output}"
        );
        assert_eq!(
            fs::read_dir(&jobs).map_or(0, Iterator::count),
            0,
            "nothing was left there"
        );
        fs::remove_dir_all(f.job_home().join(".local")).expect("we are root");
    }
}
