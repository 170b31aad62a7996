//! `rsig rm`: forgets finished jobs and removes their files.

use std::fs;

use crate::harness::{Fixture, Site, on_two_sites, poll_until};
use crate::jobs::STEP_TIMEOUT;

fn spawn_ended(f: &Fixture, options: &[&str]) -> String {
    let job = f.spawn(options, &["true"]);
    f.rsig.run(&["wait", &job]).ok();
    job
}

on_two_sites! {
    fn takes_finished_jobs_and_their_files_away(f: &Fixture) {
        let (first, second, third) = (spawn_ended(f, &["-n", "first"]), spawn_ended(f, &[]), spawn_ended(f, &[]));
        let runs = f.spawn(&[], &["sleep", "1000"]);
        f.rsig.run(&["rm", "first"]).ok().stdout_is(&format!("{first}\n")).stderr_is_empty();
        assert!(!f.file(&first, "").exists() && f.file(&second, "").exists());
        f.rsig.run(&["rm", &first]).code(3).stdout_is("");
        f.rsig.run(&["wait", &first]).code(125);

        f.rsig.run(&["rm", &runs, &second]).code(1).stdout_is(&format!("{second}\n")).stderr_has("it has not ended");
        assert_eq!(f.state(&runs), "running");
        f.rsig.run(&["rm"]).code(2);
        f.rsig.run(&["rm", "--older-than", "30d", &runs]).code(2).stdout_is("");
        f.rsig.run(&["rm", "--older-than", "1h"]).ok().stdout_is("");
        f.rsig.run(&["rm", "--older-than", "1"]).code(2);
        f.rsig.run(&["rm", "--finished"]).ok().stdout_is(&format!("{third}\n"));
        assert_eq!(f.job_ids_on_host(), [runs.as_str()]);

        let process = f.process(&runs);
        f.rsig.run(&["rm", "--force", &runs]).ok().stdout_is(&format!("{runs}\n"));
        assert!(!process.runs());
        assert_eq!(f.job_ids_on_host(), [""; 0]);
        f.rsig.run(&["ps", "-aq"]).ok().stdout_is("");
        f.await_no_processes();
    }

    fn force_ends_what_does_not_want_to(f: &Fixture) {
        let stopped = f.spawn(&[], &["sleep", "1000"]);
        f.rsig.run(&["kill", &stopped, "STOP"]).ok();
        f.await_state(&stopped, "stopped");
        let over = spawn_ended(f, &[]);
        let output = f.rsig.run(&["rm", "--force", &stopped, &over]);
        let mut ids: Vec<String> = output.ok().stdout().lines().map(str::to_owned).collect();
        ids.sort_unstable();
        let mut expected = [stopped, over];
        expected.sort_unstable();
        assert_eq!(ids, expected);
        assert_eq!(f.job_ids_on_host(), [""; 0]);
    }

    fn forget_drops_the_record_alone(f: &Fixture) {
        let over = spawn_ended(f, &[]);
        let runs = f.spawn(&[], &["sleep", "1000"]);
        let output = f.rsig.run(&["rm", "--forget", &over, &runs]);
        output.ok().stdout_is(&format!("{over}\n{runs}\n")).stderr_has("its files stay").stderr_has("it may still run");
        output.stderr_has(&f.jobs_dir().display().to_string());
        assert!(f.file(&over, "out").exists() && f.process(&runs).runs());
        f.rsig.run(&["ps", "-aq"]).ok().stdout_is("");
    }

    fn what_others_could_have_touched_stays(f: &Fixture) {
        // A symbolic link in place of the job's directory: its target is not ours to remove.
        let (job, gate) = f.spawn_gated(&[], 0);
        gate.open();
        poll_until("it ends", STEP_TIMEOUT, || f.has_ended(&job));
        let kept = f.job_home().join("kept");
        fs::rename(f.file(&job, ""), &kept).expect("ours");
        std::os::unix::fs::symlink(&kept, f.jobs_dir().join(&job)).expect("ours");
        f.rsig.run(&["rm", &job]).code(1).stdout_is("").stderr_has("nothing in it is touched");
        assert!(kept.join("out").exists());
        // A directory that is already gone counts as removed, once the job's end is known.
        fs::remove_file(f.jobs_dir().join(&job)).expect("ours");
        f.rsig.run(&["rm", &job]).ok().stdout_is(&format!("{job}\n"));
    }
}

#[test]
fn a_host_that_is_gone_keeps_its_jobs_unless_they_are_forgotten() {
    let mut f = Site::OpenSshUser.start();
    let there = spawn_ended(&f, &[]);
    let here = f.rsig.run(&["spawn", "local", "true"]).ok().line();
    f.rsig.run(&["wait", &here]).ok();
    f.server.as_mut().expect("a server").stop();
    f.rsig
        .run(&["rm", "--finished"])
        .code(255)
        .stdout_is(&format!("{here}\n"))
        .stderr_has("--forget");
    f.rsig
        .run(&["rm", "--forget", "--finished"])
        .ok()
        .stdout_is(&format!("{there}\n"))
        .stderr_has("its files stay");
}

/// Two shells in succession on one connection: dropbear once ended the second together with the first.
#[test]
fn dropbear_serves_a_shell_right_behind_another() {
    let f = Site::DropbearRoot.start();
    for _ in 0..10 {
        let job = f.spawn(&[], &["sleep", "1000"]);
        f.rsig
            .run(&["rm", "--force", &job])
            .ok()
            .stdout_is(&format!("{job}\n"));
    }
}
