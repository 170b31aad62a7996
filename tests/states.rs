//! The state of a job, whatever happened to its processes.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Process, on_two_sites, poll_until, tool};
use crate::jobs::{STEP_TIMEOUT, json_lines, pick};

/// Waits in clone(2) for a child that has not executed its program yet (`CLONE_VFORK`), as a shell does after vfork(2).
const IN_VFORK: &str = r#"use POSIX;
my $clone = (POSIX::uname())[4] eq 'aarch64' ? 220 : 56;
if (syscall($clone, 0x4000 | SIGCHLD, 0, 0, 0, 0) == 0) {
    syswrite STDOUT, "ready\n";
    sleep 1000;
}
sleep 1000"#;

on_two_sites! {
    fn stop_and_continue_show(f: &Fixture) {
        let job = f.spawn(&[], &["sleep", "1000"]);
        assert_eq!(f.state(&job), "running");
        f.process(&job).signal(Signal::SIGSTOP);
        f.await_state(&job, "stopped");
        f.rsig.run(&["ps", &job]).ok().stdout_has("stopped");
        f.process(&job).signal(Signal::SIGCONT);
        f.await_state(&job, "running");
    }

    fn what_is_stopped_while_it_starts_a_program_is_stopped(f: &Fixture) {
        let job = f.spawn(&[], &["perl", "-e", IN_VFORK]);
        f.await_written(&job, "ready\n");
        f.rsig.run(&["kill", &job, "STOP"]).ok();
        f.await_state(&job, "stopped");
        f.rsig.run(&["kill", &job, "CONT"]).ok();
        f.await_state(&job, "running");
        f.rsig.run(&["kill", &job, "STOP"]).ok();
        // TERM takes effect only once the job continues.
        f.rsig.run(&["stop", "--grace", "20s", &job]).ok().stdout_has("143 (TERM)");
    }

    fn an_end_is_recorded_whoever_caused_it(f: &Fixture) {
        let catches = f.spawn(&["-c"], &["trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"]);
        let killed = f.spawn(&[], &["sleep", "1000"]);
        let exits = f.spawn(&["-c"], &["exit 143"]);
        f.await_written(&catches, "ready\n");
        f.rsig.run(&["kill", &catches, "-w", "20s"]).ok().stdout_has("ended with status 0");
        f.process(&killed).signal(Signal::SIGKILL);
        f.rsig.run(&["wait", &catches]).code(0);
        f.rsig.run(&["wait", &killed]).code(137);
        f.rsig.run(&["wait", &exits]).code(143);
        let shown = f.rsig.run(&["ps", &catches, &killed, &exits]);
        shown.ok().stdout_has("exited 0 ").stdout_has("exited 137 (KILL)").stdout_has("exited 143 (TERM)");
    }

    fn signals_to_the_supervisor_do_no_harm(f: &Fixture) {
        let (job, gate) = f.spawn_gated(&[], 9);
        let supervisor = f.supervisor(&job);
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGPIPE] {
            supervisor.signal(signal);
        }
        assert_eq!(f.state(&job), "running");
        gate.open();
        f.rsig.run(&["wait", &job]).code(9);
    }

    fn a_job_without_its_supervisor_runs_on_and_is_lost_at_its_end(f: &Fixture) {
        let (job, gate) = f.spawn_gated(&[], 9);
        f.supervisor(&job).signal(Signal::SIGKILL);
        assert_eq!(f.state(&job), "running");
        f.rsig.run(&["kill", &job, "0"]).ok();
        gate.open();
        f.rsig.run(&["wait", &job]).code(125);
        assert_eq!(f.state(&job), "lost");
        for words in [&["kill", "--json", &job][..], &["kill", "--json", &job, "-w", "1s"], &["stop", "--json", &job]] {
            let told = &json_lines(f.rsig.run(words).code(125).stderr_is_empty())[0];
            assert_eq!(pick(told, ["sent", "still_running", "exit_status"]), json!([false, null, null]), "{told}");
            assert_eq!(told["error"]["kind"], "lost");
        }
        f.rsig.run(&["kill", &job]).code(125).stderr_has("lost");
        // The job is still shown, and its host is asked about it again; only its name or --lost removes it.
        f.rsig.run(&["ps", "-q"]).ok().stdout_is(&format!("{job}\n"));
        f.rsig.run(&["rm", "--finished"]).ok().stdout_is("");
        f.rsig.run(&["rm", "--older-than", "0s"]).ok().stdout_is("");
        let (again, gate) = f.spawn_gated(&[], 0);
        f.supervisor(&again).signal(Signal::SIGKILL);
        gate.open();
        f.rsig.run(&["wait", &again]).code(125);
        f.rsig.run(&["rm", &again]).ok();
        f.rsig.run(&["rm", "--lost"]).ok().stdout_is(&format!("{job}\n"));
    }

    fn nothing_is_left_when_both_are_gone(f: &Fixture) {
        let job = f.spawn(&[], &["sleep", "1000"]);
        let processes = [f.supervisor(&job), f.process(&job)];
        for process in &processes {
            process.signal(Signal::SIGKILL);
        }
        poll_until("they are gone", STEP_TIMEOUT, || !processes.iter().any(Process::runs));
        let told = f.job(&job);
        assert_eq!(pick(&told, ["state", "exit_status"]), json!(["lost", null]));
        f.rsig.run(&["ps", "-a"]).ok().stdout_has("lost");
    }

    fn a_name_with_parentheses_and_line_breaks_is_no_riddle(f: &Fixture) {
        // The kernel's name for the process is part of its stat file, and could be mistaken for other fields.
        let name = "a) Z 1 1\n) T";
        let program = f.job_home().join(name);
        // Not by fs::copy: a child of another thread could hold the file open for writing (ETXTBSY).
        tool("install").args(["-m", "755", "/bin/sleep"]).arg(&program).run().ok();
        let job = f.spawn(&[], &[&format!("./{name}"), "1000"]);
        poll_until("it has its name", STEP_TIMEOUT, || f.process(&job).cmdline.contains("a)"));
        assert_eq!(f.state(&job), "running");
        f.rsig.run(&["kill", &job, "-w", "20s"]).ok().stdout_has("143 (TERM)");
    }

    fn a_job_that_was_removed_behind_our_back_is_lost(f: &Fixture) {
        let job = f.spawn(&[], &["true"]);
        poll_until("it ends", STEP_TIMEOUT, || f.has_ended(&job));
        fs::remove_dir_all(f.file(&job, "")).expect("ours");
        assert_eq!(f.state(&job), "lost");
    }
}
