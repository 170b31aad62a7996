//! `rsig wait --for`: blocks until a line of a job's output matches.

use std::fs;

use serde_json::json;

use crate::harness::{Fixture, Rsig, Site, on_two_sites, poll_until, program_path};
use crate::jobs::{STEP_TIMEOUT, json_lines, pick};

/// A job that copies a file of this test to its output as the file grows, until the file `end` exists.
fn spawn_writer(f: &Fixture, options: &[&str]) -> (String, impl Fn(&str) + use<>) {
    let home = f.job_home().to_owned();
    fs::write(home.join("said"), "").expect("the job's home is writable");
    let line = format!(
        "cd {}; tail -n +1 -F said 2>/dev/null & until [ -e end ]; do sleep 0.01; done; sleep 0.2; kill $!; exit 3",
        home.display()
    );
    let job = f.spawn(options, &["sh", "-c", &line]);
    let say = move |text: &str| {
        use std::io::Write as _;
        let file = fs::OpenOptions::new().append(true).open(home.join("said"));
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("the job's home is writable");
    };
    (job, say)
}

on_two_sites! {
    fn prints_the_line_when_it_is_written(f: &Fixture) {
        let (job, say) = spawn_writer(f, &[]);
        say("starting\nnot ready\nread");
        f.rsig.run(&["wait", "--timeout", "300ms", "--for", "^ready", &job]).code(124).stdout_is("");
        // Matches in earlier output, the unfinished line included.
        f.rsig.run(&["wait", "--for", "^(start|stop)ing$", &job]).ok().stdout_is("starting\n");
        f.rsig.run(&["wait", "--for", "^rea", &job]).ok().stdout_is("read\n");
        let mut wait = f.rsig.spawn_process(&["wait", "--for", "^ready:? [0-9]{2,}$", &job]);
        let mut other = f.rsig.spawn_process(&["wait", "--json", "--for", "never", &job]);
        poll_until("they wait", STEP_TIMEOUT, || f.processes().iter().any(|process| process.cmdline.contains("/bin/sh -s")));
        say("y 7");
        f.rsig.run(&["wait", "--timeout", "300ms", "--for", "^ready [0-9][0-9]", &job]).code(124);
        assert!(!wait.has_ended());
        say("5\nafter\n");
        wait.wait().ok().stdout_is("ready 75\n").stderr_is_empty();
        assert!(!other.has_ended());
        fs::write(f.job_home().join("end"), "").expect("the job's home is writable");
        let output = other.wait();
        output.code(1).stderr_has("ended with status 3 without such a line").stderr_has("\n  after");
        assert_eq!(pick(&json_lines(&output)[0], ["state", "exit_status", "line"]), json!(["exited", 3, null]));
        // A match in the output of a job that has ended.
        f.rsig.run(&["wait", "--for", "75$", &job]).ok().stdout_is("ready 75\n");
    }

    fn each_stream_by_itself_and_every_byte(f: &Fixture) {
        let job = f.spawn(&[], &["sh", "-c", r"printf 'a\377b\n'; printf 'one ' ; printf 'two\n' >&2; printf 'three\n'; printf 'nul \0 end\n\n'"]);
        f.rsig.run(&["wait", "-q", &job]).ok();
        let told = json_lines(f.rsig.run(&["wait", "--json", "--for", "^two$", &job]).ok()).remove(0);
        assert_eq!(pick(&told, ["id", "line", "stream"]), json!([job, "two", "stderr"]));
        let told = json_lines(f.rsig.run(&["wait", "--json", "--for", "three", &job]).ok()).remove(0);
        assert_eq!(pick(&told, ["line", "stream"]), json!(["one three", "stdout"]));
        let output = f.rsig.run(&["wait", "--for", "^a.b$", &job]);
        assert_eq!(output.ok().stdout_bytes(), b"a\xffb\n");
        let output = f.rsig.run(&["wait", "--for", "end$", &job]);
        assert_eq!(output.ok().stdout_bytes(), b"nul \0 end\n");
        f.rsig.run(&["wait", "--for", "^$", &job]).ok().stdout_is("\n");
        f.rsig.run(&["wait", "-q", "--for", "three", &job]).ok().stdout_is("");
        f.rsig.run(&["wait", "--for", "one two", &job]).code(1);
    }

    fn a_bad_expression_is_a_usage_error(f: &Fixture) {
        let (job, gate) = f.spawn_gated(&[], 0);
        for bad in ["a(", "[z", "a\nb", "x{2,1}"] {
            f.rsig.run(&["wait", "--for", bad, &job]).code(2).stderr_has("--for");
        }
        f.rsig.run(&["wait", "--for", "x", "nosuchjob"]).code(125);
        f.rsig.run(&["wait", "--timeout", "100ms", "--for", "-x --help", &job]).code(124);
        f.rsig.run(&["wait", "--timeout", "100ms", "--for", "$(exit) 'it''s\"", &job]).code(124);
        gate.open();
        f.rsig.run(&["wait", "--for", "x", &job]).code(1).stderr_has("status 0 without such a line");
    }

    fn several_jobs(f: &Fixture) {
        let (never, gate) = f.spawn_gated(&[], 0);
        let one = f.spawn(&["-c"], &["echo ready 1; sleep 1000"]);
        let two = f.spawn(&["-c"], &["echo ready 2 >&2; sleep 1000"]);
        let output = f.rsig.run(&["wait", "--for", "ready", &one, &two]);
        let mut lines: Vec<_> = output.ok().stdout().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["ready 1", "ready 2"]);
        let all = f.rsig.spawn_process(&["wait", "--for", "ready", &never, &one]);
        all.wait_for_stdout("ready 1\n");
        f.rsig.run(&["wait", "--any", "--for", "ready [2-9]", &never, &two, &one]).ok().stdout_is("ready 2\n");
        f.rsig.run(&["wait", "--timeout", "8s", "--for", "ready 1", &never, &one]).code(124).stdout_is("ready 1\n");
        gate.open();
        // As for several jobs that end, the last one named counts.
        all.wait().ok().stderr_has("without such a line");
        f.rsig.run(&["wait", "--for", "ready", &one, &never]).code(1);
        // The end of one job is not enough; a line is needed.
        f.rsig.run(&["wait", "--any", "--for", "ready", &never, &one]).ok().stdout_is("ready 1\n");
        f.rsig.run(&["stop", &one, &two]).ok();
    }

    fn the_output_of_run_is_searched_too(f: &Fixture) {
        let (gate, line) = (f.job_home().join("gate"), "echo before; until [ -e gate ]; do sleep 0.01; done; printf after; exit 4");
        let command = format!("cd {}; {line}", f.job_home().display());
        let run = f.rsig.spawn_process(&f.words("run", &["--keep", "-n", "held"], &["sh", "-c", &command]));
        run.wait_for_stdout("before\n");
        f.rsig.run(&["wait", "--for", "^bef", "held"]).ok().stdout_is("before\n");
        let wait = f.rsig.spawn_process(&["wait", "--for", "^after$", "held"]);
        let none = f.rsig.spawn_process(&["wait", "--for", "^never$", "held"]);
        fs::write(gate, "").expect("the job's home is writable");
        run.wait().code(4);
        wait.wait().ok().stdout_is("after\n");
        none.wait().code(1).stderr_has("\n  after");
    }
}

/// Lines longer than the first window of the backward search, and a log longer than is searched at a time.
#[test]
fn long_lines_and_long_logs() {
    let f = Site::Local.start();
    let line =
        "head -c 300000 /dev/zero | tr '\\0' x; echo y; seq 8000000 17000000; printf 'lastly'";
    let job = f.spawn(&["-c"], &[line]);
    f.rsig.run(&["wait", "-q", &job]).ok();
    assert!(fs::metadata(f.file(&job, "out")).expect("a log").len() > 64 << 20);
    assert_eq!(
        f.rsig
            .run(&["wait", "--for", "xy$", &job])
            .ok()
            .stdout()
            .len(),
        300_002
    );
    f.rsig.run(&["wait", "--for", "^16999999$", &job]).ok();
    f.rsig.run(&["wait", "--for", "^lastly$", &job]).ok();
    // No line is split where such a part ends.
    f.rsig
        .run(&["wait", "--for", "^.{0,6}$|^[^891x]", &job])
        .ok()
        .stdout_is("lastly\n");
}

/// A wait outlasts its connection and its server, and continues after what it has searched.
#[test]
fn a_wait_for_a_line_outlasts_its_server() {
    for keeper in [false, true] {
        let mut f = Site::OpenSshUser.start();
        f.rsig.keeper = keeper;
        let (job, say) = spawn_writer(&f, &[]);
        let wait = f.rsig.spawn_process(&["wait", "--for", "^ready$", &job]);
        let server = f.server.as_mut().expect("a server");
        poll_until("it is connected", STEP_TIMEOUT, || {
            !server.connections().is_empty()
        });
        server.kill_connections();
        server.stop();
        wait.wait_for_stderr("still waiting");
        say("ready\n");
        server.restart();
        wait.wait()
            .ok()
            .stdout_is("ready\n")
            .stderr_has("in contact again");
        fs::write(f.job_home().join("end"), "").expect("the job's home is writable");
        f.rsig.run(&["wait", "-q", &job]).code(3);
    }
}

#[test]
fn every_shell_searches() {
    for shell in ["dash", "bash", "busybox", "mksh", "zsh"] {
        let mut f = Site::Local.start();
        f.rsig = Rsig::new().with_shell(program_path(shell));
        let job = f.spawn(
            &["-c"],
            &["seq 1000; sleep 0.5; printf 'ready now'; sleep 0.5; echo \" 'it'\"; exit 3"],
        );
        f.rsig
            .run(&["wait", "--for", "^ready now 'it'$", &job])
            .ok()
            .stdout_is("ready now 'it'\n");
        f.rsig
            .run(&["wait", "--for", "^77$", &job])
            .ok()
            .stdout_is("77\n");
        f.rsig.run(&["wait", "--for", "no", "--any", &job]).ok();
        f.rsig
            .run(&["wait", "--for", "nobody", &job])
            .code(1)
            .stderr_has("\n  1000");
    }
}
