//! `--target tree`: what a job has started, whatever happened to its group, session, parents and environment.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Fixture, Process, Proxy, Site, on_two_sites, poll_until, tool};
use crate::jobs::{STEP_TIMEOUT, json_lines};

/// Numbers the directories of these jobs.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Starts a job that runs this shell command line, in which `note NAME` records the process that it runs in.
fn spawn_noting(f: &Fixture, line: &str, names: &[&str]) -> (String, Vec<Process>) {
    let line = format!(r#"note() {{ sh -c 'echo $PPID' >"$1.new"; mv "$1.new" "$1"; }}; {line}"#);
    let dir = f
        .job_home()
        .join(format!("family-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&dir).expect("the job's home is ours");
    let uid = f.job_home().metadata().expect("it is there").uid();
    chown(&dir, Some(uid), Some(uid)).expect("we are root");
    let job = f.spawn(
        &["-C", dir.to_str().expect("our paths are UTF-8")],
        &["sh", "-c", &line],
    );
    let find = |name: &&str| {
        let file = dir.join(name);
        poll_until(&format!("{name} is there"), STEP_TIMEOUT, || file.exists());
        let pid = fs::read_to_string(&file)
            .expect("readable")
            .trim()
            .parse()
            .expect("a number");
        Process::find(pid).unwrap_or_else(|| panic!("{name} runs"))
    };
    let found = names.iter().map(find).collect();
    (job, found)
}

// Jobs that get STOP must not use a shell that keeps starting programs: one stopped in vfork(2) never shows as stopped.

/// `daemon` outlives its parent and leads a session of its own; `grandchild` has only left its group and
/// session; `hidden` shows no environment; `sibling` is still in the group.
const FAMILY: &str = "
    (setsid sh -c 'sh -c \"echo \\$PPID\" >daemon.new; mv daemon.new daemon; exec sleep 1000' &)
    setsid sh -c 'sh -c \"echo \\$PPID\" >grandchild.new; mv grandchild.new grandchild; sleep 1000; :' &
    env -i setsid sh -c '(note() { sh -c \"echo \\$PPID\" >\"$1.new\"; mv \"$1.new\" \"$1\"; }; note hidden); exec sleep 1000' &
    (note sibling; exec sleep 1000) &
";

const MEMBERS: [&str; 3] = ["daemon", "grandchild", "sibling"];

fn gone(processes: &[Process]) -> bool {
    processes.iter().all(|process| !process.runs())
}

fn await_gone(processes: &[Process]) {
    poll_until("the processes are gone", STEP_TIMEOUT, || gone(processes));
}

/// Waits until nothing that the jobs of these tests run is left. A keeper's shells may stay.
fn await_quiet(f: &Fixture) {
    let is_ours = |process: &Process| process.name == "sleep" || process.name == "perl";
    poll_until("nothing of the jobs is left", STEP_TIMEOUT, || {
        !f.processes().iter().any(is_ours)
    });
}

fn is_stopped(process: &Process) -> bool {
    Process::find(process.pid).is_some_and(|now| now.is_stopped())
}

/// Held while a job keeps forking: several such jobs at once leave a small machine no time for anything else.
static FORK_LOCK: Mutex<()> = Mutex::new(());

/// Two processes that spend nearly all of their time in fork(2), since they have many mappings to copy. A process that
/// is sent STOP finishes its fork first, and each child leaves the session.
const SLOW_FORK: &str = "import ctypes, mmap, os, signal, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
pages = 60000
memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(bytes(len(memory)))
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
mprotect = ctypes.CDLL(None).mprotect
for page in range(0, pages, 2):
    mprotect(ctypes.c_void_p(start + page * 4096), ctypes.c_size_t(4096), mmap.PROT_READ)
os.fork()
kept = []
while True:
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(1000)
    kept.append(child)
    if len(kept) > 2:
        os.kill(kept.pop(0), signal.SIGKILL)";

/// For each signal: starts this job, waits until more than this many processes run its program, and asserts that the
/// signal to its tree ends them all.
fn assert_none_slips_away(f: &Fixture, job: &[&str], many: usize, signals: &[&str]) {
    let _lock = FORK_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let count = || {
        let all = f.processes().into_iter();
        all.filter(|process| process.name == job[0]).count()
    };
    for signal in signals {
        let job = f.spawn(&[], job);
        poll_until("it is in full swing", STEP_TIMEOUT, || count() > many);
        let kill = ["kill", "--target", "tree", "-w", "20s", &job, signal];
        f.rsig.run(&kill).ok();
        poll_until("none is left", STEP_TIMEOUT, || count() == 0);
    }
}

on_two_sites! {
    fn a_signal_reaches_what_has_left_the_group(f: &Fixture) {
        let line = format!("{FAMILY} while :; do sleep 0.05; done");
        let (job, members) = spawn_noting(f, &line, &MEMBERS);
        // A signal to the group alone does not reach the others.
        f.rsig.run(&["kill", "-w", "20s", &job]).ok();
        let (left, dead): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| member.name != "sleep" || member.runs());
        assert!(dead.len() <= 1 && left.iter().filter(|member| member.runs()).count() >= 2);
        let told = f.rsig.run(&["kill", "--json", "--target", "tree", &job]);
        let told = json_lines(told.ok()).remove(0);
        assert_eq!((&told["target"], &told["sent"], &told["via"]), (&"tree".into(), &true.into(), &"pid".into()));
        assert_eq!((&told["still_running"], &told["error"]), (&false.into(), &Value::Null));
        await_gone(&left);
    }

    fn the_whole_tree_is_signalled_while_the_job_runs(f: &Fixture) {
        // One process hides its environment, so only its parent shows which job it belongs to. Its child has a session
        // of its own.
        let line = format!("{FAMILY} env -i PATH=\"$PATH\" sh -c 'setsid sleep 1001 & sleep 1000' & note hider; wait");
        let (job, mut members) = spawn_noting(f, &line, &MEMBERS);
        let hidden = |f: &Fixture| f.processes().into_iter().filter(|process| process.cmdline == "sleep 1001").collect::<Vec<_>>();
        poll_until("the hidden one runs", STEP_TIMEOUT, || hidden(f).len() == 1);
        members.extend(hidden(f));
        members.push(f.process(&job));
        f.rsig.run(&["kill", "--target", "tree", "-w", "20s", &job]).ok().stdout_has("TERM sent to its whole tree");
        await_gone(&members);
        f.rsig.run(&["kill", "--target", "tree", &job]).code(4).stderr_has("nothing that it started is left");
        await_quiet(f);
    }

    fn a_job_whose_first_process_is_gone_is_found_and_a_plain_kill_says_so(f: &Fixture) {
        let (job, members) = spawn_noting(f, "(note sibling; exec sleep 1000) & until [ -e sibling ]; do sleep 0.01; done; exit 3", &["sibling"]);
        f.rsig.run(&["wait", &job]).code(3);
        for _ in 0..2 {
            f.rsig.run(&["kill", &job]).code(4).stdout_is("").stderr_has("--target tree").stderr_has("status 3");
        }
        let told = json_lines(f.rsig.run(&["kill", "--json", &job]).code(4)).remove(0);
        assert_eq!((&told["error"]["kind"], &told["sent"]), (&"not_running".into(), &false.into()));
        assert!(told["error"]["message"].as_str().expect("text").contains("--target tree"), "{told}");
        assert!(members[0].runs());
        f.rsig.run(&["kill", "--target", "tree", &job, "0"]).ok();
        f.rsig.run(&["kill", "--target", "tree", &job]).ok().stdout_has("to its whole tree");
        await_gone(&members);
        f.rsig.run(&["kill", "--target", "tree", &job]).code(4).stdout_is("").stderr_has("nothing that it started is left");
        f.rsig.run(&["kill", "--target", "tree", &job, "0"]).code(4);
        f.rsig.run(&["kill", &job]).code(4).stderr_lacks("--target tree");
    }

    fn strangers_with_a_similar_cookie_are_left_alone(f: &Fixture) {
        let (job, members) = spawn_noting(f, "(setsid sh -c 'sh -c \"echo \\$PPID\" >daemon.new; mv daemon.new daemon; exec sleep 1000' &); sleep 1000", &["daemon"]);
        let cookie = fs::read_to_string(f.file(&job, "cookie")).expect("readable");
        let cookie = cookie.trim();
        let strangers: Vec<Process> = [
            format!("RSIG_COOKIE={cookie}x"),
            format!("RSIG_COOKIE=x{cookie}"),
            format!("RSIG_COOKIE={}", &cookie[1..]),
            format!("XRSIG_COOKIE={cookie}"),
            format!("OTHER=\nRSIG_COOKIE={cookie}\n"),
            format!("OTHER=RSIG_COOKIE={cookie}"),
            "RSIG_COOKIE=".to_owned(),
        ]
        .iter()
        .map(|variable| f.process(&f.spawn(&[], &["env", variable, "sleep", "1000"])))
        .collect();
        f.rsig.run(&["kill", "--target", "tree", &job, "KILL"]).ok();
        await_gone(&members);
        assert!(strangers.iter().all(|stranger| stranger.runs() && !is_stopped(stranger)));
    }

    fn what_keeps_forking_does_not_slip_away(f: &Fixture) {
        // Twelve processes that each keep four short-lived children alive, about every other one in a session of its
        // own.
        let bomb = "$| = 1; use POSIX; $SIG{CHLD} = 'IGNORE';
            sub forked { my $pid; select undef, undef, undef, 0.01 until defined($pid = fork); $pid }
            for (1..11) { last unless forked() }
            POSIX::setsid() if rand() < 0.5;
            my @kept;
            while (1) {
                my $child = forked();
                if (!$child) { POSIX::setsid() if rand() < 0.5; sleep 1000; exit }
                push @kept, $child;
                kill 'KILL', shift @kept if @kept > 4;
                select undef, undef, undef, 0.01;
            }";
        assert_none_slips_away(f, &["perl", "-e", bomb], 30, &["TERM", "KILL", "INT"]);
    }

    fn a_child_whose_fork_was_under_way_does_not_slip_away(f: &Fixture) {
        assert_none_slips_away(f, &["python3", "-c", SLOW_FORK], 5, &["TERM", "INT"]);
    }

    fn a_child_does_not_hear_of_the_end_of_its_parent(f: &Fixture) {
        // When a parent ends, the kernel sends HUP to a group that it leaves behind with stopped members.
        let server = "setpgrp; $| = 1; $SIG{HUP} = sub { print 'HUP ' }; $SIG{TERM} = sub { print 'TERM '; exit };
            print 'ready '; sleep 1 while 1";
        for _ in 0..3 {
            let job = f.spawn(&[], &["sh", "-c", "perl -e \"$0\"; :", server]);
            f.await_written(&job, "ready ");
            f.rsig.run(&["kill", "--target", "tree", "-w", "20s", &job]).ok();
            f.await_written(&job, "ready TERM ");
        }
    }

    fn a_parent_that_stops_with_its_child_goes_on(f: &Fixture) {
        // As runuser(1) does.
        let parent = "use POSIX ':sys_wait_h'; $| = 1; $SIG{USR1} = 'IGNORE'; $SIG{USR2} = sub { print 'answer ' };
            my $child = fork;
            if (!$child) { $SIG{USR2} = 'IGNORE'; print 'ready '; sleep 1 while 1 }
            while (1) { kill 'STOP', $$ if waitpid($child, WUNTRACED) > 0 && WIFSTOPPED(${^CHILD_ERROR_NATIVE}) }";
        let job = f.spawn(&[], &["perl", "-e", parent]);
        f.await_written(&job, "ready ");
        let mut answers = "ready ".to_owned();
        for _ in 0..6 {
            f.rsig.run(&["kill", "--target", "tree", &job, "USR1"]).ok();
            f.rsig.run(&["kill", "--target", "process", &job, "USR2"]).ok();
            answers += "answer ";
            f.await_written(&job, &answers);
        }
        f.rsig.run(&["stop", "--target", "tree", &job]).ok();
    }

    fn what_was_stopped_before_stays_so_and_the_others_go_on(f: &Fixture) {
        let (job, members) = spawn_noting(
            f,
            "(note one; exec setsid sleep 1000) & (note two; exec sleep 1001) & wait",
            &["one", "two"],
        );
        kill(Pid::from_raw(members[1].pid), Signal::SIGSTOP).expect("it runs");
        poll_until("it is stopped", STEP_TIMEOUT, || is_stopped(&members[1]));
        f.rsig.run(&["kill", "--target", "tree", &job, "WINCH"]).ok();
        assert!(is_stopped(&members[1]));
        assert!(!is_stopped(&members[0]) && f.state(&job) == "running");
        f.rsig.run(&["kill", "--target", "tree", &job, "STOP"]).ok();
        poll_until("all are stopped", STEP_TIMEOUT, || members.iter().all(is_stopped) && f.state(&job) == "stopped");
        f.rsig.run(&["kill", "--target", "tree", &job, "CONT"]).ok();
        poll_until("all go on", STEP_TIMEOUT, || !members.iter().any(is_stopped) && f.state(&job) == "running");
        f.rsig.run(&["kill", "--target", "tree", &job, "STOP"]).ok();
        f.rsig.run(&["stop", "--target", "tree", &job]).ok();
        await_gone(&members);
    }

    fn each_process_gets_the_signal_once(f: &Fixture) {
        let job = spawn_crowd(f, 7);
        f.rsig.run(&["kill", "--target", "tree", &job, "USR1"]).ok();
        assert_crowd_goes_on(f, 7, 1);
        f.rsig.run(&["stop", "--target", "tree", &job]).ok();
        assert_eq!(count_of_crowd(f), 7);
        await_quiet(f);
    }

    fn stop_gives_the_whole_tree_its_grace(f: &Fixture) {
        let (job, members) = spawn_noting(
            f,
            "trap 'exit 5' TERM; (trap '' TERM; note deaf; exec setsid sleep 1000) & while :; do sleep 0.05; done",
            &["deaf"],
        );
        // The job ends, but what it started does not.
        f.rsig.run(&["kill", "--target", "tree", "-w", "8s", &job]).code(124).stdout_has("what it started still runs");
        assert!(members[0].runs() && f.job(&job)["exit_status"] == 5);
        f.rsig.run(&["stop", "--target", "tree", "--grace", "8s", &job]).ok();
        await_gone(&members);
    }
}

/// A job that signals its own tree, and one that has started another job.
#[test]
fn rsig_itself_what_started_it_and_other_jobs_are_spared() {
    let f = Site::Local.start();
    let rsig = env!("CARGO_BIN_EXE_rsig");
    let line = format!(
        "(exec sleep 1001) & (setsid sleep 1002 &); sleep 0.1
         other=$({rsig} spawn local -- sleep 1003)
         {rsig} kill --target tree $RSIG_JOB; echo \"status $?\"; echo \"other $other\"; exit 9"
    );
    let state = format!("RSIG_STATE_DIR={}", f.rsig.state().display());
    let job = f.spawn(&["-e", &state], &["sh", "-c", &line]);
    f.rsig.run(&["wait", &job]).code(9);
    let written = f.written(&job);
    assert!(written.contains("status 0\n"), "{written}");
    let other = written
        .split("other ")
        .nth(1)
        .expect("a second job")
        .trim()
        .to_owned();
    assert_eq!(f.state(&other), "running");
    let supervisor = f.supervisor(&other);
    let sleeps = || {
        f.processes()
            .into_iter()
            .filter(|process| process.name == "sleep")
            .count()
    };
    poll_until("the others are gone", STEP_TIMEOUT, || sleeps() == 1);
    f.rsig.run(&["kill", "--target", "tree", &job]).code(4);
    assert!(supervisor.runs() && f.state(&other) == "running");
    f.rsig.run(&["stop", &other]).ok();
}

/// Enough processes that stopping them takes a while.
const CROWD: usize = 151;

/// Starts a job of `size` processes. Each adds a line to `count` for every USR1.
fn spawn_crowd(f: &Fixture, size: usize) -> String {
    let crowd = "$| = 1; use POSIX; open my $out, '>>', 'count';
        for (2..shift) { last unless fork; }
        POSIX::setsid() if rand() < 0.5;
        $SIG{USR1} = sub { syswrite $out, qq(x\n) };
        syswrite $out, qq(ready\n);
        sleep 1000 while 1";
    let job = f.spawn(&[], &["perl", "-e", crowd, &size.to_string()]);
    let ready = || {
        fs::read_to_string(f.job_home().join("count"))
            .unwrap_or_default()
            .matches("ready")
            .count()
    };
    poll_until("all are ready", STEP_TIMEOUT, || ready() == size);
    job
}

/// The number of signals that the crowd has received.
fn count_of_crowd(f: &Fixture) -> usize {
    fs::read_to_string(f.job_home().join("count"))
        .expect("readable")
        .matches('x')
        .count()
}

/// Asserts that no process of the crowd is stopped, and that each received every signal once.
fn assert_crowd_goes_on(f: &Fixture, size: usize, signals: usize) {
    let crowd = || {
        f.processes()
            .into_iter()
            .filter(|process| process.name == "perl")
            .collect::<Vec<_>>()
    };
    poll_until("all have got it", STEP_TIMEOUT, || {
        count_of_crowd(f) == size * signals
    });
    poll_until("none is stopped", STEP_TIMEOUT, || {
        !crowd().iter().any(Process::is_stopped)
    });
    assert_eq!((crowd().len(), count_of_crowd(f)), (size, size * signals));
}

#[test]
fn a_connection_that_breaks_in_the_middle_leaves_nothing_stopped() {
    let mut f = Site::OpenSshRoot.start();
    let proxy = Proxy::start(f.server.as_ref().expect("a server").port(), Duration::ZERO);
    f.go_through(&proxy);
    let job = spawn_crowd(&f, CROWD);
    let first = f.process(&job);
    for signals in 1..=3 {
        let mut kill = f
            .rsig
            .spawn_process(&["kill", "--target", "tree", &job, "USR1"]);
        poll_until("it is being stopped", STEP_TIMEOUT, || {
            is_stopped(&first) || kill.has_ended()
        });
        proxy.cut();
        // The command asks again, with the same claim.
        kill.wait().ok().stdout_has("USR1 sent to its whole tree");
        assert_crowd_goes_on(&f, CROWD, signals);
    }
    // A cut that is never repaired.
    let hit = (4..14).any(|signals| {
        let mut kill = f
            .rsig
            .spawn_process(&["kill", "--target", "tree", &job, "USR1"]);
        poll_until("it is being stopped", STEP_TIMEOUT, || {
            is_stopped(&first) || kill.has_ended()
        });
        proxy.refuse(true);
        proxy.cut();
        let told = kill.wait();
        assert_crowd_goes_on(&f, CROWD, signals);
        proxy.refuse(false);
        let is_cut = told.status().code() == Some(255);
        if !is_cut {
            // It had its answer before the cut.
            told.ok();
        }
        is_cut
    });
    assert!(hit, "it was never cut in the middle");
}

#[test]
fn whoever_is_killed_in_the_middle_leaves_nothing_stopped() {
    let f = Site::Local.start();
    let job = spawn_crowd(&f, CROWD);
    let first = f.process(&job);
    let shells_of = |parent: i32| {
        crate::harness::procs::all()
            .into_iter()
            .find(|process| process.ppid == parent && process.cmdline == "/bin/sh -s")
            .map(|process| process.pid)
    };
    let send = |pid: i32, signal| kill(Pid::from_raw(pid), signal).is_ok();
    // Each returns false if its victim has already done its work.
    let kill_command = |command: i32| send(command, Signal::SIGKILL);
    let kill_script =
        |command: i32| shells_of(command).is_some_and(|script| send(script, Signal::SIGKILL));
    // Sends all signals short of KILL to the part of the script that does the work.
    let signal_worker = |command: i32| {
        let worker = shells_of(command).and_then(shells_of).and_then(shells_of);
        worker.is_some_and(|worker| {
            let signals = [
                Signal::SIGHUP,
                Signal::SIGINT,
                Signal::SIGTERM,
                Signal::SIGPIPE,
            ];
            signals.into_iter().all(|signal| send(worker, signal))
        })
    };
    let victims: [&dyn Fn(i32) -> bool; 3] = [&kill_command, &kill_script, &signal_worker];
    let mut sent = 0;
    for (index, victim) in victims.into_iter().enumerate() {
        let hit = (0..10).any(|_| {
            let mut running = f
                .rsig
                .spawn_process(&["kill", "--target", "tree", &job, "USR1"]);
            poll_until("it is being stopped", STEP_TIMEOUT, || {
                is_stopped(&first) || running.has_ended()
            });
            let hit = !running.has_ended() && victim(running.pid());
            drop(running.wait());
            sent += 1;
            assert_crowd_goes_on(&f, CROWD, sent);
            hit
        });
        assert!(hit, "victim {index} was never met in the middle");
    }
}

/// The script for the host, and the shells in which it must work.
const PARTS: [&str; 7] = [
    include_str!("../src/remote/frame.sh"),
    include_str!("../src/remote/host.sh"),
    include_str!("../src/remote/process.sh"),
    include_str!("../src/remote/lock.sh"),
    include_str!("../src/remote/look.sh"),
    include_str!("../src/remote/deliver.sh"),
    include_str!("../src/remote/tree.sh"),
];
const SHELLS: [&[&str]; 5] = [
    &["dash"],
    &["bash"],
    &["bash", "--posix"],
    &["busybox", "sh"],
    &["mksh"],
];

/// Calls the script's functions in a shell.
fn in_shell(f: &Fixture, shell: &[&str], system: &str, call: &str) -> String {
    let [frame, host, rest @ ..] = PARTS;
    let rest = rest.join("\n");
    let text = format!(
        "{{\n{frame}\nrs_begun=1\n{host}\nrs_host\n{system}\n{rest}\nabout_jobs\n{call}\nrs_flush\nexit\n}}\n"
    );
    let output = tool(shell[0])
        .args(&shell[1..])
        .arg("-s")
        .env("HOME", f.rsig.home())
        .stdin(text)
        .run();
    output.ok().stderr_is_empty().stdout()
}

#[test]
fn the_script_does_the_same_in_every_shell() {
    let f = Site::Local.start();
    for (round, shell) in SHELLS.iter().enumerate() {
        let line = format!("{FAMILY} (exec env -i setsid sleep 1001) & wait");
        let (job, mut members) = spawn_noting(&f, &line, &MEMBERS);
        let hidden = || {
            f.processes()
                .into_iter()
                .find(|process| process.cmdline == "sleep 1001")
        };
        poll_until("the hidden one runs", STEP_TIMEOUT, || hidden().is_some());
        members.extend([hidden().expect("it runs"), f.process(&job)]);
        let supervisor = f.supervisor(&job);
        let told = in_shell(
            &f,
            shell,
            "",
            &format!("tree 0 {job} claim{round} STOP 19 STOP tree 0 0; settle"),
        );
        assert!(
            told.starts_with("sent 0 yes\njob 0 running "),
            "{shell:?}: {told}"
        );
        poll_until("all are stopped", STEP_TIMEOUT, || {
            members.iter().all(is_stopped)
        });
        assert!(!is_stopped(&supervisor), "{shell:?}");
        // The same claim sends nothing again.
        let told = in_shell(
            &f,
            shell,
            "",
            &format!("tree 0 {job} claim{round} CONT 18 CONT tree 0 1; settle"),
        );
        assert!(
            told.starts_with("sent 0 yes\n") && members.iter().all(is_stopped),
            "{shell:?}: {told}"
        );
        let told = in_shell(
            &f,
            shell,
            "",
            &format!("tree 0 {job} next TERM 15 TERM tree 1 0; settle"),
        );
        assert!(
            told.starts_with("sent 0 yes\njob 0 stopped "),
            "{shell:?}: {told}"
        );
        await_gone(&members);
        await_quiet(&f);
        f.rsig.run(&["wait", &job]).code(143);
        let told = in_shell(
            &f,
            shell,
            "",
            &format!("tree 0 {job} last TERM 15 TERM tree 0 0; settle"),
        );
        assert!(
            told.starts_with("sent 0 gone\njob 0 exited "),
            "{shell:?}: {told}"
        );
    }
}

/// Systems other than Linux have no /proc: ps is asked instead, and only parent links are followed.
#[test]
fn without_proc_the_links_are_followed_and_that_is_said() {
    let f = Site::Local.start();
    for shell in SHELLS {
        let (job, members) = spawn_noting(
            &f,
            "setsid sh -c 'sh -c \"echo \\$PPID\" >grandchild.new; mv grandchild.new grandchild; sleep 1000; :' & wait",
            &["grandchild"],
        );
        let process = f.process(&job);
        let ps = tool("ps")
            .args(["-o", "lstart=", "-p", &process.pid.to_string()])
            .env("LC_ALL", "C")
            .env("TZ", "UTC0")
            .run();
        let birth = ps
            .ok()
            .line()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join("_");
        let file = f.file(&job, "pid");
        let text = fs::read_to_string(&file).expect("readable");
        let mut words: Vec<&str> = text.trim_end().split(' ').collect();
        words[2] = &birth;
        // The start time of process 1 has another unit on such systems, too.
        words[6] = words[6].split(':').next().expect("a machine");
        fs::write(&file, words.join(" ") + "\n").expect("ours");
        let told = in_shell(
            &f,
            shell,
            "rs_system=Other",
            &format!("tree 0 {job} claim TERM 15 TERM tree 0 0; settle"),
        );
        assert!(
            told.starts_with("links 0\nsent 0 yes\njob 0 running "),
            "{shell:?}: {told}"
        );
        await_gone(&members);
        await_gone(&[process]);
    }
}
