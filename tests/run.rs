//! `run`: a job in the foreground, and what happens when either side is cut off.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    Fixture, Login, Proxy, Rsig, Running, Server, Site, on_every_site, on_two_sites, poll_until,
    tool,
};
use crate::jobs::STEP_TIMEOUT;
use crate::keepers::with_keeper;

impl Fixture {
    fn run_words<'a>(&'a self, options: &[&'a str], line: &'a str) -> Vec<&'a str> {
        self.words("run", options, &["--", "sh", "-c", line])
    }

    /// A `run` as a part of a line for a shell.
    fn run_in_shell(&self, options: &[&str], line: &str) -> String {
        let words = self.run_words(options, line);
        let quoted = words
            .iter()
            .map(|word| format!(" '{}'", word.replace('\'', "'\\''")));
        env!("CARGO_BIN_EXE_rsig").to_owned() + &quoted.collect::<String>()
    }

    fn start_run(&self, options: &[&str], line: &str) -> Running {
        self.rsig
            .command(&self.run_words(options, line))
            .stdin_open()
            .start()
    }

    /// The only unfinished job.
    fn only_job(&self) -> String {
        let jobs = self.rsig.run(&["ps", "-q", "--cached"]).ok().stdout();
        jobs.trim().to_owned()
    }

    fn await_no_jobs(&self) {
        poll_until("no job is left", STEP_TIMEOUT, || {
            self.rsig.run(&["ps", "-q"]).ok().stdout().is_empty()
        });
        self.await_no_processes();
    }
}

/// A job that prints the signals it receives; of these only INT ends it, with status 9.
const STUBBORN: &str =
    "trap 'echo term' TERM; trap 'echo usr1' USR1; trap 'echo int; exit 9' INT; echo up
    while :; do sleep 0.05; done";

/// A job that survives INT, and takes a second to end on TERM.
const PATIENT: &str = "trap 'echo int' INT; trap 'echo term; sleep 1; exit 7' TERM; echo up
    while :; do sleep 0.05; done";

/// Starts it and sends INT eight times, so close together that it counts once. Begins again if this process was held up
/// meanwhile.
fn start_interrupted(f: &Fixture) -> Running {
    loop {
        let run = f.start_run(&["--grace", "50s"], PATIENT);
        run.wait_for_stdout("up\n");
        let begun = Instant::now();
        for _ in 0..8 {
            run.signal(Signal::SIGINT);
            std::thread::sleep(Duration::from_millis(40));
        }
        if begun.elapsed() < Duration::from_millis(450) {
            return run;
        }
        run.signal(Signal::SIGTERM);
        run.wait();
    }
}

on_every_site! {
    fn streams_and_statuses_are_the_jobs_own(f: &Fixture) {
        let output = f.rsig.run(&f.run_words(&[], "echo out; echo err >&2; exit 3"));
        output.code(3).stdout_is("out\n");
        assert_eq!(output.stderr(), "err\n");
        f.rsig.run(&f.run_words(&[], "kill -KILL $$")).code(137);
        f.rsig.run(&f.words("run", &[], &["no-such-command"])).code(127).stderr_has("no-such-command");
        f.rsig.run(&f.words("run", &[], &["/etc/passwd"])).code(126).stderr_has("not executable");
        f.rsig.run(&f.words("run", &["-C", "/no/such"], &["ls"])).code(125).stderr_has("/no/such");
        f.await_no_jobs();
    }

    fn bytes_go_through_both_ways_as_they_are(f: &Fixture) {
        let mut bytes: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
        bytes.extend_from_slice(b"no line break at the end");
        let output = f.rsig.command(&f.run_words(&[], "cat; echo done >&2")).stdin(bytes.clone()).run();
        assert!(output.ok().stdout_bytes() == bytes, "{} bytes came back", output.stdout_bytes().len());
        f.rsig.command(&f.run_words(&[], "cat; echo over")).stdin(*b"").run().ok().stdout_is("over\n");
        f.rsig.command(&f.run_words(&["--stdin", "/dev/null"], "wc -c")).stdin(*b"xyz").run().ok().stdout_has("0");
        // Input that the job does not read is not waited for.
        f.rsig.command(&f.run_words(&[], "head -c 3")).stdin(vec![b'x'; 500_000]).run().ok().stdout_is("xxx");
        f.await_no_jobs();
    }

    fn signals_go_to_the_job(f: &Fixture) {
        let mut run = f.start_run(&[], STUBBORN);
        run.wait_for_stdout("up\n");
        run.signal(Signal::SIGUSR1);
        run.wait_for_stdout("usr1\n");
        let job = f.only_job();
        run.signal(Signal::SIGTSTP);
        f.await_state(&job, "stopped");
        // rsig stops itself after the job. A CONT before that would have no effect.
        let stat = format!("/proc/{}/stat", run.pid());
        poll_until("rsig is stopped", STEP_TIMEOUT, || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T ")));
        run.signal(Signal::SIGCONT);
        f.await_state(&job, "running");
        run.signal(Signal::SIGTERM);
        run.wait_for_stdout("term\n");
        assert!(!run.has_ended());
        // A second TERM does not shorten the grace.
        run.signal(Signal::SIGTERM);
        run.wait().code(137);
        let told = f.rsig.run(&["history", &job]).ok().stdout();
        for signal in ["USR1", "STOP", "CONT", "TERM", "KILL"] {
            assert!(told.contains(signal), "{signal}: {told}");
        }
        f.await_no_jobs();
    }
}

on_two_sites! {
    fn others_may_follow_too(f: &Fixture) {
        let gate = f.job_home().join("gate");
        let line = format!("echo one; until [ -e {0} ]; do sleep 0.02; done; echo two; while [ -e {0} ]; do sleep 0.02; done", gate.display());
        let run = f.start_run(&["--name", "shown"], &line);
        run.wait_for_stdout("one\n");
        // Not by the shared keeper: from there, they would move to their own after two seconds, and miss the end meanwhile.
        let followers = [(); 2].map(|()| f.rsig.spawn_process(&["tail", "-f", "--no-keeper", "shown"]));
        followers.iter().for_each(|follower| follower.wait_for_stdout("one\n"));
        std::fs::write(&gate, "").expect("the home is writable");
        followers.iter().for_each(|follower| follower.wait_for_stdout("two\n"));
        // Both followers get all of the output before it is removed.
        std::fs::remove_file(&gate).expect("it is ours");
        let output = run.wait();
        output.ok().stderr_is_empty().stdout_is("one\ntwo\n");
        for follower in followers {
            follower.wait().ok().stdout_is("one\ntwo\n").stderr_is_empty();
        }
        f.await_no_jobs();
    }

    fn signals_that_come_together_count_once(f: &Fixture) {
        let mut run = start_interrupted(f);
        run.wait_for_stdout("int\n");
        run.signal(Signal::SIGTERM);
        run.wait_for_stdout("term\n");
        assert!(!run.has_ended());
        run.wait().code(7);
        f.await_no_jobs();
    }

    fn an_interrupt_and_a_late_term_leave_time_to_clean_up(f: &Fixture) {
        // It has the default grace, ten seconds from the interrupt.
        let mut run = f.start_run(&[], &PATIENT.replace("sleep 1", "sleep 0.2"));
        run.wait_for_stdout("up\n");
        run.signal(Signal::SIGINT);
        run.wait_for_stdout("int\n");
        std::thread::sleep(Duration::from_secs(5));
        assert!(!run.has_ended());
        run.signal(Signal::SIGTERM);
        run.wait().code(7).stdout_is("up\nint\nterm\n");
        f.await_no_jobs();
    }

    fn a_job_that_does_not_end_in_its_grace_is_killed(f: &Fixture) {
        let run = f.start_run(&["--grace", "5s"], STUBBORN);
        run.wait_for_stdout("up\n");
        run.signal(Signal::SIGTERM);
        run.wait().code(137).stdout_has("term");
        f.await_no_jobs();
    }

    fn it_is_a_job_like_any_other(f: &Fixture) {
        let run = f.start_run(&["--keep", "-n", "front"], STUBBORN);
        run.wait_for_stdout("up\n");
        assert_eq!(f.state("front"), "running");
        f.rsig.run(&["tail", "front"]).ok().stdout_is("up\n");
        f.rsig.run(&["kill", "front", "INT"]).ok();
        run.wait().code(9).stdout_has("int");
        f.rsig.run(&["rm", "front"]).ok();
        f.await_no_jobs();
    }

    fn leaves_nothing_behind_unless_it_is_to_be_kept(f: &Fixture) {
        f.rsig.run(&f.run_words(&[], "echo out; echo err >&2; exit 3")).code(3).stdout_is("out\n");
        f.rsig.run(&f.run_words(&[], "kill -KILL $$")).code(137);
        f.rsig.run(&["ps", "-aq"]).ok().stdout_is("");
        f.await_only_tombstones();
        f.rsig.run(&f.run_words(&["--keep"], "echo out; exit 3")).code(3);
        let job = f.rsig.run(&["ps", "-aq"]).ok().line();
        assert!(f.job_ids_on_host().contains(&job));
        f.rsig.run(&["wait", &job]).code(3);
        f.await_no_processes();
    }

    fn a_job_ends_when_its_rsig_is_killed_unless_it_is_to_run_on(f: &Fixture) {
        let held = f.start_run(&["--tether", "10s"], "echo up; sleep 1000");
        held.wait_for_stdout("up\n");
        let job = f.only_job();
        assert!(f.file(&job, "tied").exists());
        held.signal(Signal::SIGKILL);
        held.wait();
        f.await_state(&job, "exited");
        f.await_no_processes();
        let loose = f.start_run(&["--no-tether"], "echo up; sleep 1000");
        loose.wait_for_stdout("up\n");
        let job = f.only_job();
        loose.signal(Signal::SIGKILL);
        loose.wait();
        assert_eq!(f.state(&job), "running");
        assert!(!f.file(&job, "tied").exists());
        f.rsig.run(&["stop", &job]).ok();
        f.await_no_processes();
    }

    fn a_stopped_run_holds_its_job(f: &Fixture) {
        let run = f.start_run(&["--tether", "10s"], "trap 'exit 4' USR1; echo up; while :; do sleep 0.05; done");
        run.wait_for_stdout("up\n");
        let job = f.only_job();
        // If rsig is stopped before its keeper holds the job, it can no longer make the keeper do so.
        if f.is_remote() {
            poll_until("it is held", STEP_TIMEOUT, || {
                fs::read_to_string(f.file(&job, "beat")).is_ok_and(|beat| !beat.trim().is_empty())
            });
        }
        run.signal(Signal::SIGSTOP);
        // Longer than the tether, with the process that holds it held up itself.
        let since = std::time::Instant::now();
        poll_until("more than the tether has passed", STEP_TIMEOUT, || since.elapsed() > Duration::from_secs(13));
        assert_eq!(f.state(&job), "running");
        run.signal(Signal::SIGCONT);
        f.rsig.run(&["kill", &job, "USR1"]).ok();
        run.wait().code(4);
        f.await_no_jobs();
    }
}

/// Behind a prefix, a shell is a child process, and its stream gets a private keeper after two seconds, or at once if there
/// is no shared one that can start a shell. Its heartbeats must not come from the process that is stopped.
#[test]
fn a_stopped_run_behind_a_prefix_holds_its_job() {
    for shared in ["none", "serving", "without descriptors"] {
        let mut rsig = Rsig::new();
        rsig.keeper = shared != "none";
        if shared == "without descriptors" {
            rsig.run(&["run", "--prefix", "env A=b", "local", "true"])
                .ok();
            leave_no_descriptors_for_a_shell(&rsig);
        }
        let line = "trap 'exit 4' USR1; echo up; while :; do sleep 0.05; done";
        let words = [
            "run", "--tether", "4s", "--prefix", "env A=b", "-c", "local", line,
        ];
        let begun = Instant::now();
        let run = rsig.spawn_process(&words);
        run.wait_for_stdout("up\n");
        let job = rsig.run(&["ps", "-q", "--cached"]).ok().line();
        // The stream's nonce, and the number of its heartbeats.
        let beat = || {
            let beat = rsig
                .home()
                .join(".local/state/rsig/jobs")
                .join(&job)
                .join("beat");
            let text = fs::read_to_string(beat).unwrap_or_default();
            let line = text.lines().next().unwrap_or_default();
            let (stream, count) = line.split_once('.').unwrap_or_default();
            (stream.to_owned(), count.parse().unwrap_or(0))
        };
        let (first, _) = beat();
        // On a busy machine, this one may already be the private keeper's.
        let may_stay = begun.elapsed() >= Duration::from_secs(2);
        poll_until("a private keeper sends heartbeats", STEP_TIMEOUT, || {
            let (stream, count) = beat();
            let stays = may_stay && begun.elapsed() > Duration::from_secs(20);
            count > 0 && (shared != "serving" || stream != first || stays)
        });
        run.signal(Signal::SIGSTOP);
        let since = std::time::Instant::now();
        poll_until("more than the tether has passed", STEP_TIMEOUT, || {
            since.elapsed() > Duration::from_secs(6)
        });
        run.signal(Signal::SIGCONT);
        rsig.run(&["kill", &job, "USR1"]).ok();
        run.wait().code(4);
    }
}

/// Ends the idle shells of the keeper, and leaves it two descriptors: enough for the connections of commands, and too few
/// for the pipes of a shell.
fn leave_no_descriptors_for_a_shell(rsig: &Rsig) {
    let processes = rsig.processes();
    let keeper = processes
        .iter()
        .find(|process| {
            let line = &process.cmdline;
            line.contains("keeper-serve") && !line.contains("keepers/p")
        })
        .expect("a keeper")
        .pid;
    let limit_to = |limit: u64| {
        tool("prlimit")
            .args([format!("--pid={keeper}"), format!("--nofile={limit}:")])
            .run()
            .ok();
    };
    limit_to(3);
    for shell in processes.iter().filter(|process| process.ppid == keeper) {
        shell.signal_if_runs(Signal::SIGKILL);
    }
    poll_until("the keeper has no shell", STEP_TIMEOUT, || {
        rsig.processes()
            .iter()
            .all(|process| process.ppid != keeper)
    });
    let is_open = |number: &u64| fs::exists(format!("/proc/{keeper}/fd/{number}")).unwrap_or(true);
    let third_free = (0..).filter(|number| !is_open(number)).nth(2);
    limit_to(third_free.expect("a number"));
}

/// A reader that takes its time costs neither the job nor its input.
#[test]
fn input_outlives_a_reader_that_pauses() {
    for site in [Site::OpenSshUser.start_with_keeper(), Site::Local.start()] {
        let run = site.run_in_shell(&["--tether", "4s"], "cat");
        let line = format!("head -c 50000000 /dev/zero | {run} | {{ sleep 12; wc -c; }}");
        let output = site.rsig.within(tool("sh").args(["-c", &line])).run();
        output.ok().stdout_is("50000000\n").stderr_is_empty();
    }
}

/// Behind a prefix, a keeper can always be reached, even if no shell starts any more.
#[test]
fn a_run_behind_a_prefix_gives_up_when_its_host_is_gone() {
    let rsig = Rsig::new();
    let prefix =
        r#"sh -c 'if [ -e down ]; then echo connection refused >&2; exit 1; fi; exec "$@"' sh"#;
    let words = [
        "run",
        "--tether",
        "1s",
        "--prefix",
        prefix,
        "-c",
        "local",
        "echo up; sleep 1000",
    ];
    let run = rsig.spawn_process(&words);
    run.wait_for_stdout("up\n");
    let job = rsig.run(&["ps", "-q", "--cached"]).ok().line();
    fs::write(rsig.home().join("down"), "").expect("ours");
    let shells = rsig.processes();
    for shell in shells.iter().filter(|one| one.cmdline == "/bin/sh -s") {
        shell.signal_if_runs(Signal::SIGKILL);
    }
    let output = run.wait();
    output
        .code(255)
        .stderr_has("connection refused")
        .stderr_lacks("connected again");
    output.stderr_has(&format!("`rsig wait {job}` asks again"));
}

/// Signals count by the time they reach rsig, not by the time the host has handled the previous one.
#[test]
fn signals_that_come_together_count_once_on_a_slow_line() {
    let mut f = Site::OpenSshUser.start_with_keeper();
    let server = f.server.as_ref().expect("a server");
    let proxy = Proxy::start(server.port(), Duration::from_millis(400));
    f.go_through(&proxy);
    let run = start_interrupted(&f);
    // Some of them may merge.
    run.wait_for_stdout("int\nint\nint\n");
    run.signal(Signal::SIGTERM);
    run.wait().code(7).stdout_has("term");
}

#[test]
fn cuts_are_bridged_at_the_right_byte_both_ways() {
    let (f, proxy) = Site::OpenSshUser.start().through_proxy();
    // The numbers come back doubled, so a line that is lost or duplicated in either direction shows.
    let mut run = f.start_run(
        &[],
        "while read -r n; do echo $((n * 2)); done; echo end of input >&2; exit 5",
    );
    let mut expected = String::new();
    for n in 0..2000 {
        run.write(format!("{n}\n"));
        expected += &format!("{}\n", n * 2);
        if n % 400 == 200 {
            run.wait_for_stdout(&format!("{}\n", (n / 2) * 2));
            proxy.cut();
        }
    }
    run.close_stdin();
    let output = run.wait();
    output
        .code(5)
        .stdout_is(&expected)
        .stderr_has("connected again");
    assert_eq!(output.stderr().matches("end of input").count(), 1);
    f.await_no_jobs();
}

#[test]
fn nobody_to_take_the_output_ends_the_job() {
    for site in [Site::Local, Site::OpenSshUser] {
        let f = site.start();
        let run = f.run_in_shell(&[], "while :; do echo y; sleep 0.01; done");
        let line = format!("{run} | head -n 2");
        let output = tool("sh")
            .args(["-c", &line])
            .env("HOME", f.rsig.home())
            .env("RSIG_STATE_DIR", f.rsig.state())
            .env("RSIG_KEEPER", "0")
            .run();
        output
            .ok()
            .stdout_is("y\ny\n")
            .stderr_has("its files stay; `rsig rm ");
        f.await_no_jobs();
    }
}

#[test]
fn a_hangup_that_is_ignored_from_the_start_is_not_passed_on() {
    let f = Site::Local.start();
    let line =
        "trap 'echo hup; exit 1' HUP; trap 'echo usr1' USR1; echo up; while :; do sleep 0.05; done";
    let mut script = tool("sh").args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    script = script
        .arg(env!("CARGO_BIN_EXE_rsig"))
        .args(f.run_words(&[], line));
    let run = script
        .env("HOME", f.rsig.home())
        .env("RSIG_STATE_DIR", f.rsig.state())
        .stdin_open()
        .start();
    run.wait_for_stdout("up\n");
    run.signal(Signal::SIGHUP);
    run.signal(Signal::SIGUSR1);
    run.wait_for_stdout("usr1\n");
    run.signal(Signal::SIGTERM);
    run.wait().code(143).stdout_is("up\nusr1\n");
    f.await_no_jobs();
}

/// Connections that break one after the other, each before its first heartbeat, still count as contact.
#[test]
fn short_connections_keep_a_job_from_its_tether() {
    const TETHER: Duration = Duration::from_secs(10);
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    let line = "until [ -e over ]; do echo more; sleep 0.05; done; exit 5";
    let words = f.words("run", &["--tether", "10s"], &["--", "sh", "-c", line]);
    let run = f.rsig.command(&words).stdin(*b"").start();
    let begun = Instant::now();
    while begun.elapsed() < TETHER * 3 / 2 {
        // The new connection has delivered output. A heartbeat is sent only every two seconds.
        let so_far = run.stdout_so_far().len();
        poll_until("more has come", STEP_TIMEOUT, || {
            run.stdout_so_far().len() > so_far
        });
        proxy.cut();
    }
    // Each connection had one or two keepers.
    let pid = run.pid().to_string();
    poll_until("no keeper is left as a zombie", STEP_TIMEOUT, || {
        let children = tool("ps").args(["-o", "stat=", "--ppid", &pid]).run();
        !children
            .stdout()
            .lines()
            .any(|state| state.starts_with('Z'))
    });
    fs::write(f.job_home().join("over"), "").expect("the home is ours");
    run.wait().code(5).stderr_lacks("tether");
}

/// A new keeper runs the old program, whose file no longer exists.
#[test]
fn a_run_goes_on_when_rsig_is_upgraded() {
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    let program = f.rsig.dir().join("rsig");
    // Not copied by this process: what another test starts meanwhile would hold the copy open for writing (ETXTBSY).
    let install = tool("install").arg(env!("CARGO_BIN_EXE_rsig"));
    install.arg(&program).run().ok();
    let line = "until [ -e over ]; do echo more; sleep 0.05; done; exit 5";
    let words = f.words("run", &["--tether", "1m"], &["--", "sh", "-c", line]);
    let shell = tool("sh").args(["-c", "exec \"$0\" \"$@\""]).arg(&program);
    let run = f.rsig.within(shell).args(words).stdin(*b"").start();
    run.wait_for_stdout("more\n");
    let new = f.rsig.dir().join("new");
    fs::write(&new, "another program").expect("our own directory");
    fs::rename(&new, &program).expect("on one disk");
    for _ in 0..2 {
        proxy.cut();
        let so_far = run.stdout_so_far().len();
        poll_until("more has come", STEP_TIMEOUT, || {
            run.stdout_so_far().len() > so_far
        });
    }
    fs::write(f.job_home().join("over"), "").expect("the home is ours");
    run.wait().code(5);
}

/// Writes until the pipe has been full for two seconds, then writes to a file how much the pipe took.
const PIPE_FILLER: &str = r"use Fcntl;
fcntl STDOUT, F_SETFL, O_WRONLY | O_NONBLOCK;
my ($total, $full, $block) = (0, 0, 'x' x 4096);
while ($full < 1000) {
    my $written = syswrite STDOUT, $block;
    if ($written) { $total += $written; $full = 0 } else { $full++; select undef, undef, undef, 0.002 }
}
open my $out, '>', 'total.new'; print $out $total; close $out; rename 'total.new', 'total'";

#[test]
fn what_is_in_the_pipe_when_a_job_ends_is_delivered_however_much_waits_before_it() {
    for site in [Site::Local, Site::OpenSshUser] {
        let f = site.start();
        let (gate, total) = (f.rsig.dir().join("gate"), f.job_home().join("total"));
        let line = format!(
            "\"$@\" | {{ until [ -e '{}' ]; do sleep 0.05; done; wc -c; }}",
            gate.display()
        );
        let words = f.words(
            "run",
            &["--backlog", "32"],
            &["--", "perl", "-e", PIPE_FILLER],
        );
        let mut script = tool("sh")
            .args(["-c", &line, "sh", env!("CARGO_BIN_EXE_rsig")])
            .args(words);
        script = script
            .env("HOME", f.rsig.home())
            .env("RSIG_STATE_DIR", f.rsig.state())
            .env("RSIG_KEEPER", "0")
            .stdin(*b"");
        let run = script.cwd(f.job_home()).start();
        poll_until("the job is blocked, and ends", STEP_TIMEOUT, || {
            total.exists()
        });
        let job = f.job_ids_on_host().remove(0);
        poll_until("all of it is taken", STEP_TIMEOUT, || {
            f.file(&job, "out.end").exists()
        });
        std::fs::write(&gate, "").expect("a new file");
        let written = std::fs::read_to_string(&total).expect("the job has said it");
        run.wait().ok().stdout_is(&format!("{written}\n"));
        f.await_no_jobs();
    }
}

#[test]
fn output_that_nobody_reads_is_bounded_and_what_is_read_is_deleted() {
    let f = Site::OpenSshUser.start();
    let mut run = f.start_run(
        &["--keep", "--backlog", "32"],
        "head -c 150000000 /dev/zero; echo >&2 written",
    );
    run.close_stdin();
    let output = run.wait();
    assert_eq!(output.ok().stdout_bytes().len(), 150_000_000);
    let jobs = f.job_ids_on_host();
    let left: u64 = std::fs::read_dir(f.jobs_dir().join(&jobs[0]))
        .expect("the job's directory")
        // Some files are being removed right now, as the supervisor ends.
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum();
    assert!(left < 64 << 20, "{left} bytes are left on the host");
}

#[test]
fn no_input_is_ever_taken_for_commands() {
    let f = Site::OpenSshUser.start_with_keeper();
    let pwned = f.job_home().join("pwned");
    let input = format!("touch {}\n", pwned.display()).repeat(100_000);
    // The job ends while input is in transit, early and late, and while the stream moves to a connection of its own.
    for line in [
        "exit 3",
        "head -n 1 >/dev/null; exit 3",
        "head -c 2000000 >/dev/null; exit 3",
        "sleep 3; head -n 1 >/dev/null; exit 3",
    ] {
        for _ in 0..3 {
            let words = f.run_words(&[], line);
            f.rsig.command(&words).stdin(input.as_bytes()).run().code(3);
        }
    }
    // The stream moves to a new connection, where the job's directory is missing or empty.
    for line in [
        "rm -rf .local/state/rsig/jobs/$RSIG_JOB; sleep 4",
        "sleep 1; rm -rf .local/state/rsig/jobs/$RSIG_JOB/*; sleep 4",
    ] {
        let words = f.run_words(&["--tether", "5s"], line);
        let output = f.rsig.command(&words).stdin(input.as_bytes()).run();
        output.code(125).stderr_has("not there any more");
    }
    f.rsig.run(&["ps"]).ok();
    f.rsig.run(&f.run_words(&[], "true")).ok();
    assert!(!pwned.exists());
}

/// The job goes on, and the user of `run` is told that output may be missing.
#[test]
fn a_killed_dd_costs_no_more_than_it_had_read() {
    for (line, status) in [
        (
            "echo a; until [ -e go ]; do sleep 0.05; done; echo b; exit 7",
            7,
        ),
        ("until [ -e go ]; do sleep 0.05; done; echo a; echo b", 125),
    ] {
        let f = Site::OpenSshUser.start();
        let run = f.start_run(&[], line);
        let writers = || {
            let all = f.processes();
            let writers = all.into_iter().filter(|process| process.name == "dd");
            writers.map(|process| process.pid).collect::<Vec<_>>()
        };
        if status == 7 {
            run.wait_for_stdout("a\n");
        }
        let mut killed = Vec::new();
        poll_until("both streams are written", STEP_TIMEOUT, || {
            killed = writers();
            killed.len() == 2
        });
        for pid in &killed {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("it waits for the job");
        }
        poll_until("others write", STEP_TIMEOUT, || {
            let now = writers();
            now.len() == 2 && !now.iter().any(|pid| killed.contains(pid))
        });
        fs::write(f.job_home().join("go"), "").expect("the home is ours");
        let output = run.wait();
        output.code(status).stdout_is("a\nb\n");
        assert!(
            output
                .stderr()
                .contains("dd that writes its output there was killed"),
            "{output}"
        );
    }
}

#[test]
fn one_session_is_enough() {
    for keeper in [true, false] {
        let server = Server::openssh(Login::User).config("MaxSessions 1").start();
        let mut f = Fixture::with(Some(server));
        f.rsig.keeper = keeper;
        let input: Vec<u8> = (0..3_000_000_u32)
            .map(|number| number.to_le_bytes()[1])
            .collect();
        let words = f.run_words(&[], "cat; echo done >&2");
        let output = f.rsig.command(&words).stdin(input.clone()).run();
        assert!(output.ok().stdout_bytes() == input);
        assert_eq!(output.stderr(), "done\n");
        // Other commands get their turn beside it.
        let run = f.start_run(&[], STUBBORN);
        run.wait_for_stdout("up\n");
        let job = f.only_job();
        assert_eq!(f.state(&job), "running");
        f.rsig.run(&["kill", &job, "INT", "--wait", "20s"]).ok();
        run.wait().code(9).stdout_has("int");
    }
}
