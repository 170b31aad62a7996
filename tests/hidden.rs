//! Jobs that exist but look gone: a job that may still run is never reported as gone.

use std::fs;
use std::os::unix::fs::chown;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::programs::program_path;
use crate::harness::{Fixture, Invocation, Output, Process, Site, on_two_sites, poll_until, tool};
use crate::jobs::{STEP_TIMEOUT, json_lines, pick};
use crate::kit;

/// A user other than root, from whom /proc can hide processes.
const USER: u32 = 65_531;

/// A program that keeps running after its first thread has exited.
const HEADLESS: &str = "import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print('ready', flush=True)
ctypes.CDLL(None).syscall(93 if os.uname().machine == 'aarch64' else 60, 0)";

/// A program that can't be dumped: with hidepid, /proc hides it even from its own user.
const SECRET: &str = "import ctypes, time
ctypes.CDLL(None).prctl(4, 0)
print('ready', flush=True)
time.sleep(1000)";

fn process_of(f: &Fixture, job: &str) -> Process {
    let pid = fs::read_to_string(f.file(job, "pid")).expect("it started");
    let pid = pid.split(' ').next().expect("a number").parse();
    Process::find(pid.expect("a number")).expect("it runs")
}

/// This machine, made to look like a different one.
struct Machine {
    f: Fixture,
    user: u32,
    /// Shell command that runs before rsig starts, in namespaces of its own.
    setup: &'static str,
}

impl Machine {
    fn new(setup: &'static str) -> Self {
        Self::of(USER, setup)
    }

    fn of(user: u32, setup: &'static str) -> Self {
        let f = Site::Local.start();
        for path in [f.rsig.home(), f.rsig.state()] {
            chown(path, Some(user), Some(user)).expect("we are root");
        }
        Self { f, user, setup }
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> Output {
        self.command(words).run()
    }

    fn command(&self, words: &[&str]) -> Invocation {
        let line = format!(
            "{1} && exec setpriv --reuid={0} --regid={0} --clear-groups \"$@\"",
            self.user, self.setup
        );
        let unshare = tool("unshare")
            .args([
                "--mount",
                "--uts",
                "--propagation",
                "private",
                "sh",
                "-c",
                &line,
                "sh",
            ])
            .arg(env!("CARGO_BIN_EXE_rsig"));
        self.f.rsig.within(unshare).args(words)
    }

    #[track_caller]
    fn spawn(&self, words: &[&str]) -> String {
        self.run(&[&["spawn"], words].concat()).ok().line()
    }

    #[track_caller]
    fn state(&self, job: &str) -> Value {
        let listed = self.run(&["ps", "--json", job]);
        let jobs: Vec<Value> = serde_json::from_str(&listed.ok().stdout()).expect("JSON");
        jobs[0]["state"].clone()
    }
}

#[test]
fn a_job_that_proc_hides_is_there() {
    let machine = Machine::new("mount -t proc -o hidepid=2 proc /proc");
    let job = machine.spawn(&["local", "--", "python3", "-c", SECRET]);
    machine.f.await_written(&job, "ready\n");
    let process = process_of(&machine.f, &job);
    assert_eq!(machine.state(&job), "running");
    machine.run(&["kill", &job, "0"]).ok();
    let told = json_lines(machine.run(&["kill", "--json", &job, "CONT"]).ok()).remove(0);
    assert_eq!(told["sent"], true);
    machine.run(&["wait", "--timeout", "100ms", &job]).code(124);
    machine
        .run(&["kill", "-w", "20s", &job])
        .ok()
        .stdout_has("143 (TERM)");
    assert!(!process.runs());
    assert_eq!(machine.state(&job), "exited");

    // Its timeout ends it.
    let job = machine.spawn(&["--timeout", "500ms", "local", "--", "python3", "-c", SECRET]);
    machine
        .run(&["wait", &job])
        .code(143)
        .stdout_has("timed out");

    // Without its supervisor, any process with its pid counts as the job.
    let job = machine.spawn(&["local", "--", "python3", "-c", SECRET]);
    machine.f.await_written(&job, "ready\n");
    let process = process_of(&machine.f, &job);
    machine.f.supervisor(&job).kill();
    assert_eq!(machine.state(&job), "running");
    process.kill();
    poll_until("it is lost", STEP_TIMEOUT, || machine.state(&job) == "lost");
}

#[test]
fn a_renamed_host_is_the_same_host() {
    let mut machine = Machine::new("true");
    let job = machine.spawn(&["local", "sleep", "1000"]);
    machine.setup = "hostname another-name";
    assert_eq!(machine.state(&job), "running");
    machine
        .run(&["kill", "-w", "20s", &job])
        .ok()
        .stdout_has("143 (TERM)");
}

#[test]
fn another_login_node_says_nothing_and_a_reboot_ends_a_job() {
    let other = "echo 00000000-0000-4000-8000-000000000000 >$HOME/boot && \
        mount --bind $HOME/boot /proc/sys/kernel/random/boot_id";
    let mut machine = Machine::new("true");
    let job = machine.spawn(&["local", "sleep", "1000"]);
    let process = process_of(&machine.f, &job);
    machine.setup = "echo 00000000000000000000000000000000 >$HOME/id && mount --bind $HOME/id /etc/machine-id && \
        echo 00000000-0000-4000-8000-000000000000 >$HOME/boot && \
        mount --bind $HOME/boot /proc/sys/kernel/random/boot_id";
    assert_eq!(machine.state(&job), "unknown");
    machine.run(&["stop", &job]).code(255);
    machine.run(&["rm", &job]).code(1);
    // The same if the home is not shared.
    let jobs = machine.f.jobs_dir();
    let aside = jobs.with_file_name("aside");
    fs::rename(jobs.join(&job), &aside).expect("on one disk");
    assert_eq!(machine.state(&job), "unknown");
    // The machine itself recognises its process.
    machine.setup = "true";
    assert_eq!(machine.state(&job), "running");
    fs::rename(&aside, jobs.join(&job)).expect("on one disk");
    machine.setup = other;
    assert_eq!(machine.state(&job), "lost");
    process.kill();
}

#[test]
fn a_limit_that_cannot_be_kept_ends_nothing() {
    let machine = Machine::new("true");
    let program = machine.f.rsig.home().join("become");
    // Not by fs::copy: a child of another thread could hold the file open for writing (ETXTBSY).
    tool("install")
        .args(["-m", "4755"])
        .arg(program_path("setpriv"))
        .arg(&program)
        .run()
        .ok();
    let words = [
        "local",
        "--",
        "./become",
        "--reuid=0",
        "--regid=0",
        "--clear-groups",
        "sleep",
        "1000",
    ];
    // By the time the limit expires, the process belongs to another user.
    let job = machine.spawn(&[&["--timeout", "8s"][..], &words].concat());
    let process = process_of(&machine.f, &job);
    poll_until("the limit is given up", STEP_TIMEOUT, || {
        machine.f.file(&job, "unkept").exists()
    });
    assert_eq!(machine.state(&job), "running");
    machine
        .run(&["ps"])
        .stderr_has("its time limit or tether can't be kept");
    machine.run(&["ps", "-q"]).stderr_is_empty();
    machine
        .run(&["wait", "--timeout", "100ms", &job])
        .code(124)
        .stderr_has("its time limit or tether can't be kept");
    machine
        .run(&["kill", &job])
        .code(1)
        .stderr_has("another user");
    assert!(process.runs());
    process.kill();
    machine.run(&["wait", &job]).code(137).stderr_is_empty();
    // In the foreground, the warning is printed while the job goes on.
    let words = [&["run", "--timeout", "8s"][..], &words].concat();
    let run = machine.command(&words).start();
    run.wait_for_stderr("its time limit or tether can't be kept");
    let sleep = |process: &&Process| process.cmdline == "sleep 1000";
    let job = machine.f.processes();
    job.iter().find(sleep).expect("it runs").kill();
    run.wait().code(137);
}

on_two_sites! {
    fn a_job_whose_first_thread_has_exited_is_there(f: &Fixture) {
        let job = f.spawn(&[], &["python3", "-c", HEADLESS]);
        f.await_written(&job, "ready\n");
        let pid = fs::read_to_string(f.file(&job, "pid")).expect("it started");
        let stat = format!("/proc/{}/stat", pid.split(' ').next().expect("a number"));
        poll_until("its first thread is gone", STEP_TIMEOUT, || fs::read_to_string(&stat).expect("there").contains(") Z "));
        assert_eq!(f.state(&job), "running");
        f.rsig.run(&["kill", &job, "0"]).ok();
        f.rsig.run(&["kill", &job, "STOP"]).ok();
        f.await_state(&job, "stopped");
        f.rsig.run(&["kill", &job, "CONT"]).ok();
        f.await_state(&job, "running");
        f.rsig.run(&["kill", &job, "-w", "20s"]).ok().stdout_has("143 (TERM)");
        let job = f.spawn(&["--timeout", "500ms"], &["python3", "-c", HEADLESS]);
        f.rsig.run(&["wait", &job]).code(143).stdout_has("timed out");
    }

    fn a_member_whose_first_thread_has_exited_is_signalled_with_the_tree(f: &Fixture) {
        let job = f.spawn(&[], &["sh", "-c", "setsid python3 -c \"$0\" & echo $! >&2; wait", HEADLESS]);
        f.await_written(&job, "ready\n");
        let noted = || fs::read_to_string(f.file(&job, "err")).expect("there");
        poll_until("its number is noted", STEP_TIMEOUT, || noted().ends_with('\n'));
        let pid = noted();
        let (stat, threads) = (format!("/proc/{}/stat", pid.trim()), format!("/proc/{}/task", pid.trim()));
        poll_until("its first thread is gone", STEP_TIMEOUT, || fs::read_to_string(&stat).expect("there").contains(") Z "));
        f.rsig.run(&["kill", "--target", "tree", "-w", "20s", &job]).ok();
        // What is left may be a zombie for a moment.
        poll_until("it has ended", STEP_TIMEOUT, || fs::read_dir(&threads).map_or(0, Iterator::count) <= 1);
    }

    fn where_the_home_is_missing_nothing_is_said(f: &Fixture) {
        let job = f.spawn(&["-n", "there"], &["sleep", "1000"]);
        let signalled = f.spawn(&[], &["sleep", "1000"]);
        let gone = f.spawn(&[], &["true"]);
        f.rsig.run(&["wait", &gone]).ok();
        let process = f.process(&job);
        let (jobs, aside) = (f.jobs_dir(), f.job_home().join("aside"));
        fs::rename(&jobs, &aside).expect("on one disk");
        // The process exists, so the job runs; its machine knows that much.
        assert_eq!(f.state(&job), "running");
        // The signal is sent, but its effect is not known.
        let output = f.rsig.run(&["kill", "--no-keeper", "--json", "-w", "20s", &signalled]);
        let told = json_lines(output.code(255)).remove(0);
        assert_eq!(told["sent"], true, "{output}");
        let message = told["error"]["message"].as_str().expect("a message");
        assert!(message.ends_with("; TERM was sent"), "{output}");
        // A job that is known to have ended stays so.
        assert_eq!(f.state(&gone), "exited");
        process.kill();
        poll_until("it has ended", STEP_TIMEOUT, || !process.runs());
        assert_eq!(f.state(&job), "unknown");
        f.rsig.run(&["stop", &job]).code(255).stdout_is("");
        f.rsig.run(&["kill", "--json", &job]).code(255);
        f.rsig.run(&["rm", &job]).code(1).stdout_is("");
        let again = f.rsig.run(&f.words("spawn", &["-n", "there"], &["true"]));
        again.code(1).stderr_has("taken");
        let _ = fs::remove_dir_all(&jobs);
        fs::rename(&aside, &jobs).expect("on one disk");
        f.await_state(&job, "exited");
        assert_eq!(f.job(&job)["exit_status"], 137);
    }

    fn a_job_that_deletes_its_files_is_still_signalled(f: &Fixture) {
        let line = r#"rm -rf "$0"/$RSIG_JOB; trap 'exit 3' TERM; : >ready; while :; do sleep 0.02; done"#;
        let jobs = f.jobs_dir();
        let job = f.spawn(&[], &["sh", "-c", line, jobs.to_str().expect("text")]);
        poll_until("it runs", STEP_TIMEOUT, || f.job_home().join("ready").exists());
        let told = f.job(&job);
        assert_eq!(told["state"], "running");
        let pid = i32::try_from(told["pid"].as_i64().expect("a pid")).expect("a pid");
        let process = Process::find(pid).expect("it runs");
        let direct = |words: &[&str]| f.rsig.run(&[words, &["--no-keeper", &job]].concat());
        direct(&["wait", "--timeout", "100ms"]).code(124);
        let told = json_lines(&direct(&["kill", "--json", "-s", "CONT"])).remove(0);
        assert_eq!(pick(&told, ["sent", "still_running"]), json!([true, true]));
        f.rsig.run(&["rm", &job]).code(1).stdout_is("");
        direct(&["kill", "-w", "20s", "-s", "TERM"]);
        assert!(!process.runs());
        assert_eq!(kit::state(&f.rsig, &job), "lost");
        f.await_no_processes();
    }

    fn a_job_that_empties_its_directory_is_still_signalled(f: &Fixture) {
        let jobs = f.jobs_dir();
        for remove in ["rm -rf $own/*", "rm -rf $own; mkdir $own", "rm $own/pid", "rm $own/pid $own/supervisor $own/made"] {
            let line = format!("own=\"$0\"/$RSIG_JOB; {remove}; trap 'exit 3' TERM; : >ready; while :; do sleep 0.02; done");
            let job = f.spawn(&[], &["sh", "-c", &line, jobs.to_str().expect("text")]);
            poll_until("it runs", STEP_TIMEOUT, || f.job_home().join("ready").exists());
            fs::remove_file(f.job_home().join("ready")).expect("it is there");
            let told = f.job(&job);
            assert_eq!(told["state"], "running", "{remove}");
            let pid = i32::try_from(told["pid"].as_i64().expect("a pid")).expect("a pid");
            let process = Process::find(pid).expect("it runs");
            f.rsig.run(&["wait", "--timeout", "100ms", &job]).code(124);
            f.rsig.run(&["rm", &job]).code(1).stdout_is("");
            let told = json_lines(&f.rsig.run(&["kill", "--json", "-w", "20s", "-s", "TERM", &job])).remove(0);
            // Its end may not have been recorded, and may never be.
            assert!(told["sent"] == true && told["still_running"] != true, "{remove}: {told}");
            assert!(!process.runs());
            f.rsig.run(&["rm", &job]).ok();
        }
        f.await_no_processes();
    }
}

fn kill_sleeps(f: &Fixture) {
    for sleep in f.processes().iter().filter(|one| one.name == "sleep") {
        // It may have ended in the meantime.
        sleep.signal_if_runs(Signal::SIGKILL);
    }
}

/// A `sleep` that is killed early does not count as time that has passed.
#[test]
fn a_killed_sleep_shortens_no_limit() {
    let f = Site::Local.start();
    let start = std::time::Instant::now();
    let limit = std::time::Duration::from_secs(10);
    let job = f.spawn(&["--timeout", "10s"], &["perl", "-e", "sleep 1000"]);
    let job_process = f.process(&job);
    for _ in 0..5 {
        kill_sleeps(&f);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(job_process.runs() || start.elapsed() >= limit);
    f.rsig
        .run(&["wait", &job])
        .code(143)
        .stdout_has("timed out");
    assert!(start.elapsed() >= limit);
    let run = f.rsig.spawn_process(&f.words(
        "run",
        &["--tether", "3s"],
        &["perl", "-e", "$| = 1; print 1; sleep 1000"],
    ));
    run.wait_for_stdout("1");
    // The tether counts from the death of its client, which may come in the middle of a second.
    let start = std::time::Instant::now();
    drop(run);
    for _ in 0..20 {
        kill_sleeps(&f);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    f.await_no_processes();
    assert!(start.elapsed() >= std::time::Duration::from_secs(2));
}

/// Whatever the limit on a user's processes, a start succeeds or leaves nothing behind.
#[test]
fn where_no_process_can_be_made_nothing_is_left() {
    const LIMITS: [&str; 9] = [
        "prlimit --pid $$ --nproc=1:1",
        "prlimit --pid $$ --nproc=2:2",
        "prlimit --pid $$ --nproc=3:3",
        "prlimit --pid $$ --nproc=4:4",
        "prlimit --pid $$ --nproc=5:5",
        "prlimit --pid $$ --nproc=6:6",
        "prlimit --pid $$ --nproc=7:7",
        "prlimit --pid $$ --nproc=8:8",
        "prlimit --pid $$ --nproc=9:9",
    ];
    let mut machine = Machine::of(USER + 1, "true");
    let mut failures = 0;
    for limit in LIMITS {
        machine.setup = limit;
        let run = machine.run(&["run", "local", "true"]);
        machine.f.await_no_processes();
        // A run that started its job may lack the process that removes the job's files.
        for job in machine.f.job_ids_on_host() {
            fs::remove_dir_all(machine.f.jobs_dir().join(job)).expect("its job has ended");
        }
        let output = machine.run(&["spawn", "local", "true"]);
        for output in [&run, &output] {
            for raw in ["forced command", "os error", "panicked"] {
                output.stderr_lacks(raw);
            }
        }
        if output.status().success() {
            let job = output.line();
            machine.setup = "true";
            machine.run(&["wait", &job]).ok();
            machine.run(&["rm", &job]).ok();
        } else {
            failures += 1;
            kit::assert_clear_message(output.stdout_is(""));
            poll_until("nothing is left", STEP_TIMEOUT, || {
                machine.f.job_ids_on_host().is_empty()
            });
        }
        machine.f.await_no_processes();
    }
    assert!(failures > 2, "{failures}");
}

#[test]
fn what_its_tether_ended_says_so() {
    let f = Site::Local.start();
    let run = f.rsig.spawn_process(&f.words(
        "run",
        &["--tether", "1s"],
        &["perl", "-e", "$| = 1; print 1; sleep 1000"],
    ));
    run.wait_for_stdout("1");
    let job = f.job_ids_on_host().remove(0);
    // SIGKILL, so the command can't end its job itself.
    drop(run);
    poll_until("its tether has ended it", STEP_TIMEOUT, || {
        f.job(&job)["state"] == "exited"
    });
    assert_eq!(
        pick(&f.job(&job), ["exit_status", "ended_by"]),
        json!([143, "tether"])
    );
}
