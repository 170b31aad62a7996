//! `rsig kill` and `rsig stop`: every signal reaches the right processes, once, or is known not to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Direction, Fixture, Process, Proxy, Rsig, Site, on_every_site, on_two_sites, poll_until,
};
use crate::jobs::{STEP_TIMEOUT, json_lines, keys, pick};
use crate::keepers::{await_warm_relay, kill9};

const KILL_KEYS: [&str; 15] = [
    "job",
    "id",
    "name",
    "host",
    "signal",
    "signal_number",
    "target",
    "sent",
    "via",
    "then",
    "still_running",
    "exit_status",
    "exit_signal",
    "waited_ms",
    "error",
];

/// A job that exits with 7 on TERM. Not a shell with children: a shell that STOP meets in vfork(2) never shows as
/// stopped.
const CATCHES_TERM: &str =
    "$| = 1; $SIG{TERM} = sub { exit 7 }; print qq(ready\n); sleep 1 while 1";
/// A job that ignores TERM.
const IGNORES_TERM: &str = "$| = 1; $SIG{TERM} = 'IGNORE'; print qq(ready\n); sleep 1 while 1";

fn perl_job(f: &Fixture, program: &str) -> String {
    let job = f.spawn(&[], &["perl", "-e", program]);
    f.await_written(&job, "ready\n");
    job
}

/// How often a listener has received a signal, including those still in transit.
fn heard(f: &Fixture, job: &str, name: &str) -> usize {
    // The kernel delivers by number, not in order of arrival: signals sent before the first of these two are received
    // before the second.
    for last in ["USR1", "USR2"] {
        f.rsig.run(&["kill", job, last]).ok();
        poll_until("the last one arrives", STEP_TIMEOUT, || {
            f.written(job).contains(&format!("\n{last}\n"))
        });
    }
    f.written(job).lines().filter(|line| *line == name).count()
}

/// Changes one word in one of a job's files.
fn edit(f: &Fixture, job: &str, file: &str, field: usize, value: &str) {
    let path = f.file(job, file);
    let text = fs::read_to_string(&path).expect("the file");
    let mut words: Vec<&str> = text.trim_end().split(' ').collect();
    words[field] = value;
    fs::write(&path, words.join(" ") + "\n").expect("the file is ours");
}

on_every_site! {
    fn takes_a_signal_in_every_form(f: &Fixture) {
        let job = f.spawn_listener();
        let forms: [(&[&str], &str); 19] = [
            (&[&job, "USR1"], "USR1"),
            (&[&job, "usr2"], "USR2"),
            (&[&job, "SIGHUP"], "HUP"),
            (&[&job, "sigInt"], "INT"),
            (&[&job, "10"], "USR1"),
            (&["-10", &job], "USR1"),
            (&["-QUIT", &job], "QUIT"),
            (&["-SIGWINCH", &job], "WINCH"),
            (&[&job, "-FPE"], "FPE"),
            (&[&job, "-1"], "HUP"),
            (&["-s", "alrm", &job], "ALRM"),
            (&["--signal=SIGPIPE", &job], "PIPE"),
            (&[&job, "RTMIN"], "RTMIN"),
            (&[&job, "RTMIN+1"], "NUM35"),
            (&[&job, "sigrtmax-2"], "NUM62"),
            (&[&job, "RTMAX"], "RTMAX"),
            (&[&job, "40"], "NUM40"),
            (&[&job, "stkflt"], "STKFLT"),
            (&[&job], "TERM"),
        ];
        let mut heard = String::from("ready\n");
        for (words, name) in forms {
            let output = f.rsig.run(&[&["kill"], words].concat());
            assert!(output.ok().line().starts_with(&format!("{job} on {}: ", f.host)), "{output}");
            heard.push_str(name);
            heard.push('\n');
            poll_until(&format!("{words:?} arrives as {name}: {}", f.written(&job)), STEP_TIMEOUT, || f.written(&job) == heard);
        }
        f.rsig.run(&["kill", &job, "0"]).ok().stdout_has("it runs");
        f.rsig.run(&["kill", "-0", &job, "-q"]).ok().stdout_is("");
        assert_eq!(f.job(&job)["last_signal"], "TERM");
        f.rsig.run(&["kill", "-9", "-w", "20s", &job]).ok();
        assert_eq!(f.written(&job), heard);
        f.rsig.run(&["kill", &job, "0"]).code(4).stdout_is("");
    }

    fn goes_to_the_group_unless_told_otherwise(f: &Fixture) {
        let whole = f.spawn(&["-c"], &["sleep 1000; echo next"]);
        let single = f.spawn(&["-c"], &["sleep 1000 & echo ready; wait; echo next"]);
        f.await_written(&single, "ready\n");
        let child = |job: &str| {
            let parent = f.process(job).pid;
            let mut found = None;
            poll_until("its child runs", STEP_TIMEOUT, || {
                found = f.processes().into_iter().find(|process| process.ppid == parent && process.name == "sleep");
                found.is_some()
            });
            found.expect("it was found")
        };
        let (dies, lives) = (child(&whole), child(&single));
        f.rsig.run(&["kill", "-w", "20s", &whole]).ok().stdout_has("ended with status 143 (TERM)");
        poll_until("its child is gone", STEP_TIMEOUT, || !dies.runs());
        let told = f.rsig.run(&["kill", "--target", "process", "--json", "-w", "20s", &single]);
        assert_eq!(json_lines(told.ok())[0]["target"], "process");
        assert!(lives.runs());
        assert_eq!((f.written(&whole).as_str(), f.written(&single).as_str()), ("", "ready\n"));
        lives.kill();
        f.await_no_processes();
    }

    fn wait_then_and_stop_tell_how_the_job_ended(f: &Fixture) {
        // Whether it was sent, whether the job still runs, its exit status and signal, and the result of the second
        // signal.
        let kill = |words: &[&str], code| {
            let output = f.rsig.run(&[words, &["--json"]].concat());
            let told = json_lines(output.code(code).stderr_is_empty()).remove(0);
            assert!(told["waited_ms"].is_u64(), "{told}");
            pick(&told, ["sent", "still_running", "exit_status", "exit_signal", "then"])
        };
        let then = |signal| json!({"signal": signal, "sent": true, "via": "pid"});

        let job = perl_job(f, CATCHES_TERM);
        assert_eq!(kill(&["kill", &job, "-w", "20s"], 0), json!([true, false, 7, null, null]));
        // The same if it had ended before.
        assert_eq!(kill(&["kill", &job, "-w", "20s"], 0), json!([false, false, 7, null, null]));
        assert_eq!(kill(&["stop", &job], 0), json!([false, false, 7, null, null]));
        f.rsig.run(&["kill", &job]).code(4).stdout_is("").stderr_has("already ended with status 7");

        let job = perl_job(f, CATCHES_TERM);
        assert_eq!(kill(&["kill", &job, "-w", "20s", "--then", "KILL"], 0), json!([true, false, 7, null, null]));
        let job = perl_job(f, CATCHES_TERM);
        assert_eq!(kill(&["stop", &job], 0), json!([true, false, 7, null, null]));

        let job = perl_job(f, IGNORES_TERM);
        let start = Instant::now();
        assert_eq!(kill(&["kill", &job, "-w", "200ms"], 124), json!([true, true, null, null, null]));
        assert!(start.elapsed() >= Duration::from_millis(200));
        f.rsig.run(&["kill", &job, "-w", "1ms"]).code(124).stdout_has("still running");
        assert_eq!(kill(&["kill", &job, "-w", "100ms", "--then", "CONT"], 124), json!([true, true, null, null, then("CONT")]));
        // The second wait is as long as the first, so it is long enough.
        let told = kill(&["kill", &job, "-w", "8s", "--then", "USR1"], 0);
        assert_eq!(told, json!([true, false, 138, "USR1", then("USR1")]));

        let job = perl_job(f, IGNORES_TERM);
        assert_eq!(kill(&["stop", "--grace", "8s", &job], 0), json!([true, false, 137, "KILL", then("KILL")]));
        f.await_no_processes();
    }

    fn a_stopped_job_can_be_woken_ended_and_keeps_term_pending(f: &Fixture) {
        let job = perl_job(f, CATCHES_TERM);
        f.rsig.run(&["kill", &job, "STOP"]).ok();
        f.await_state(&job, "stopped");
        f.rsig.run(&["kill", &job, "TERM", "-w", "100ms"]).code(124);
        assert_eq!(f.state(&job), "stopped");
        f.rsig.run(&["kill", &job, "CONT", "-w", "20s"]).ok().stdout_has("ended with status 7");

        let job = perl_job(f, CATCHES_TERM);
        f.rsig.run(&["kill", &job, "STOP"]).ok();
        f.await_state(&job, "stopped");
        f.rsig.run(&["kill", &job, "CONT"]).ok();
        f.await_state(&job, "running");
        // The job has no terminal, so the terminal's stop signals do nothing, and rsig says so.
        for signal in ["TSTP", "TTIN", "TTOU"] {
            f.rsig.run(&["kill", &job, signal]).ok().stdout_has("STOP stops one");
        }
        assert_eq!(f.state(&job), "running");
        f.rsig.run(&["kill", &job, "STOP"]).ok();
        f.await_state(&job, "stopped");
        f.rsig.run(&["stop", &job]).ok().stdout_has("ended with status 7");
        let job = perl_job(f, IGNORES_TERM);
        f.rsig.run(&["kill", &job, "STOP"]).ok();
        f.rsig.run(&["kill", &job, "KILL", "-w", "20s"]).ok().stdout_has("ended with status 137 (KILL)");
    }

    fn ten_at_once_arrive_exactly_ten_times(f: &Fixture) {
        let job = f.spawn_listener();
        // Real-time signals queue, so none is merged with another. Dropbear allows five logins at once.
        let at_once = if f.site == Site::DropbearRoot { 5 } else { 10 };
        for count in [at_once, 10 - at_once] {
            let kills: Vec<_> = (0..count).map(|_| f.rsig.spawn_process(&["kill", &job, "RTMIN+6"])).collect();
            for kill in kills {
                kill.wait().ok();
            }
        }
        assert_eq!(heard(f, &job, "NUM40"), 10);

        // Each signal has left its claim.
        let files = fs::read_dir(f.file(&job, "")).expect("readable").flatten();
        let claims: Vec<_> = files.filter(|file| file.file_name().to_string_lossy().starts_with("sig.")).collect();
        assert_eq!(claims.len(), 12);
        for claim in claims {
            let text = fs::read_to_string(claim.path()).expect("readable");
            let words: Vec<_> = text.split_whitespace().collect();
            assert!(matches!(words[..], ["RTMIN+6" | "USR1" | "USR2", "yes"]), "{text}");
            assert_eq!(claim.metadata().expect("there").permissions().mode() & 0o7777, 0o600);
        }
    }
}

on_two_sites! {
    fn another_process_of_the_same_number_is_never_signalled(f: &Fixture) {
        // Changes to a job's files: another start time, or another boot.
        let cases: [(&[(&str, usize)], &str); 2] = [(&[("pid", 2)], "1"), (&[("pid", 3), ("supervisor", 2)], "0-another-boot")];
        for (fields, value) in cases {
            let job = f.spawn(&[], &["sleep", "1000"]);
            let (process, supervisor) = (f.process(&job), f.supervisor(&job));
            for (file, field) in fields {
                edit(f, &job, file, *field, value);
            }
            if fields.len() == 1 {
                supervisor.kill();
            }
            // The job's relay uses what it saw when the job started, not these files.
            let output = f.rsig.run(&["kill", "--no-keeper", "--json", &job]);
            let told = json_lines(output.code(125)).remove(0);
            assert_eq!(pick(&told, ["sent", "still_running"]), json!([false, null]));
            assert_eq!(told["error"]["kind"], "lost");
            assert!(process.runs());
            assert_eq!(f.state(&job), "lost");
            // The relay of a job whose supervisor lives rightly waits for the job's end.
            f.rsig.run(&["wait", "--no-keeper", &job]).code(125);
            f.rsig.run(&["rm", &job]).ok();
            process.kill();
        }
    }

    fn a_job_of_another_machine_that_shares_the_home_is_left_alone(f: &Fixture) {
        let job = f.spawn(&[], &["sleep", "1000"]);
        let process = f.process(&job);
        // The name alone does not matter: a host may be renamed.
        edit(f, &job, "pid", 7, "some-other-node");
        assert_eq!(f.state(&job), "running");
        edit(f, &job, "pid", 3, "0-another-boot");
        edit(f, &job, "pid", 6, "another-machine:1");
        // Without the keeper: the job's relay runs on the job's own machine.
        let direct = |words: &[&str]| f.rsig.run(&[words, &["--no-keeper", &job]].concat());
        for words in [&["kill", "-s", "KILL"][..], &["kill", "-s", "KILL", "-w", "20s"], &["stop"]] {
            direct(words).code(255).stdout_is("").stderr_has("some-other-node");
        }
        assert_eq!(f.state(&job), "unknown");
        f.rsig.run(&["rm", &job]).code(1).stdout_is("").stderr_has("another machine");
        assert!(process.runs() && f.file(&job, "out").exists());
        // The last known state stays in the record.
        assert!(f.rsig.run(&["ps", "--cached", "--json"]).ok().stdout().contains(r#""state":"running""#));
    }

    fn a_directory_that_others_could_write_is_not_believed(f: &Fixture) {
        let job = f.spawn(&[], &["sleep", "1000"]);
        let process = f.process(&job);
        fs::set_permissions(f.jobs_dir(), fs::Permissions::from_mode(0o777)).expect("ours");
        // A keeper's spare shell may have found the directory private.
        f.rsig.run(&["keeper", "stop", "--all"]).ok();
        let kill = ["kill", "--no-keeper", &job, "KILL"];
        f.rsig.run(&kill).code(1).stdout_is("").stderr_has("writable by other users");
        f.rsig.run(&["tail", &job]).code(1).stdout_is("").stderr_has("writable by other users");
        assert_eq!(f.state(&job), "unknown");
        f.rsig.run(&f.words("spawn", &[], &["true"])).code(1).stderr_has("other users can write");
        fs::set_permissions(f.jobs_dir(), fs::Permissions::from_mode(0o700)).expect("ours");
        // A symbolic link in its place is not followed.
        let (real, moved) = (f.file(&job, ""), f.jobs_dir().join("moved"));
        fs::rename(&real, &moved).and_then(|()| std::os::unix::fs::symlink(&moved, f.jobs_dir().join(&job))).expect("ours");
        f.rsig.run(&kill).code(1).stdout_is("");
        assert!(process.runs());
    }

    fn what_cannot_be_sent_is_an_error_and_sends_nothing(f: &Fixture) {
        let job = f.spawn_listener();
        let cases: [(&[&str], i32, &str); 14] = [
            (&[&job, "EMT"], 2, "EMT"),
            (&[&job, "INFO"], 2, "INFO"),
            (&[&job, "65"], 2, "65"),
            (&[&job, "NOSUCH"], 2, "NOSUCH"),
            (&[&job, "RTMIN+99"], 2, "RTMIN+99"),
            (&[&job, "--then", "KILL"], 2, "--wait"),
            (&[&job, "0", "-w", "5s"], 2, "rsig wait"),
            (&[&job, "-w", "5s", "--then", "0"], 2, "--then 0"),
            (&[&job, "-w", "5"], 2, "5s"),
            (&[&job, "other"], 2, "-s"),
            (&[&job, "TERM", &job], 2, "-s"),
            (&[&job, "KILL", "--via", "channel"], 1, "channel"),
            (&["nosuchjob"], 3, "nosuchjob"),
            (&["../../etc", "KILL"], 3, "../../etc"),
        ];
        for (words, code, message) in cases {
            f.rsig.run(&[&["kill"], words].concat()).code(code).stdout_is("").stderr_has(message);
        }
        let kinds: [(&[&str], &str); 3] =
            [(&[&job, "EMT"], "bad_signal"), (&[&job, "KILL", "--via=channel"], "no_channel"), (&["nosuchjob"], "not_found")];
        for (words, kind) in kinds {
            let output = f.rsig.run(&[&["kill", "--json"], words].concat());
            let told = json_lines(&output).remove(0);
            assert_eq!((pick(&told, ["sent", "via"]), &told["error"]["kind"]), (json!([false, null]), &kind.into()));
            assert_eq!(keys(&output.line()), KILL_KEYS);
        }
        if f.signal_route() == "pid" {
            let told = json_lines(f.rsig.run(&["kill", "--json", &job, "--via", "channel"]).code(1)).remove(0);
            assert_eq!((&told["sent"], &told["error"]["kind"]), (&json!(false), &"no_channel".into()));
        }
        f.rsig.run(&["kill", &job, "USR1"]).ok();
        f.await_written(&job, "ready\nUSR1\n");
    }

    fn several_jobs_on_several_hosts_are_signalled_together(f: &Fixture) {
        let catches = perl_job(f, CATCHES_TERM);
        let named = f.spawn(&["-n", "sleeper"], &["sleep", "1000"]);
        let here = f.rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();
        if f.signal_route() == "channel" {
            await_warm_relay(f, &named);
        }
        let words = ["kill", "-s", "TERM", "-w", "20s", "--json", &catches, "sleeper", &here[..4], "nosuchjob", &named];
        let output = f.rsig.run(&words);
        let mut told = json_lines(output.code(3));
        told.sort_by_key(|told| words.iter().position(|word| *word == told["job"]));
        let host = &f.host;
        let fields = |told: &Value| pick(told, ["id", "host", "sent", "exit_status"]);
        assert_eq!(fields(&told[0]), json!([catches, host, true, 7]));
        assert_eq!(fields(&told[1]), json!([named, host, true, 143]));
        assert_eq!(fields(&told[2]), json!([here, "local", true, 143]));
        assert_eq!(fields(&told[3]), json!([null, null, false, null]));
        assert_eq!(told.len(), 4, "a job that two words name comes once");
        let more = pick(&told[1], ["name", "signal", "signal_number", "via", "target", "error"]);
        assert_eq!(more, json!(["sleeper", "TERM", 15, f.signal_route(), "group", null]));
        // The highest status wins: 4, since one job had ended.
        let next = f.spawn(&[], &["sleep", "1000"]);
        f.rsig.run(&["kill", "-9", &catches, &next]).code(4).stdout_has("KILL sent").stderr_has("already ended");
    }
}

/// A process that takes a job's lock again and again. The file `inside` names the holder.
const CONTENDER: &str = r#"
rs_me=
rs_system=Linux
while :; do
    rs_lock 60000 || echo "$rs_me gave up" >>wrong
    read -r other <inside
    [ -z "$other" ] || ! rs_lives ${other} || echo "$rs_me found $other" >>wrong
    echo "$rs_me $rs_me_birth" >inside
    [ "$rs_locked" != "${rs_locked%[02468]}" ] || sleep 0.001
    read -r other <inside
    [ "$other" = "$rs_me $rs_me_birth" ] || echo "$rs_me lost it to $other" >>wrong
    echo x >>count
    echo >inside
    rs_unlock
    rs_settle "$rs_me" "$rs_locked"
done"#;

/// Of many processes only one has the lock at a time, even if the holder, or one about to be, is killed.
#[test]
fn the_lock_of_a_job_has_one_holder_at_a_time() {
    let rsig = Rsig::new();
    for shell in [&["dash"][..], &["bash", "--posix"], &["busybox", "sh"]] {
        let dir = rsig.dir().join(shell[0]);
        fs::create_dir_all(dir.join("lock")).expect("ours");
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        fs::write(dir.join("inside"), "\n").expect("ours");
        let script = [
            include_str!("../src/remote/process.sh"),
            include_str!("../src/remote/lock.sh"),
            CONTENDER,
        ];
        fs::write(dir.join("script"), script.concat()).expect("ours");
        let start = || {
            let mut command = std::process::Command::new(shell[0]);
            command.args(&shell[1..]).arg("script").current_dir(&dir);
            command.spawn().expect("the shell starts")
        };
        let mut contenders: Vec<_> = (0..12).map(|_| start()).collect();
        for round in 0..60 {
            std::thread::sleep(Duration::from_millis(30));
            // Usually the holder, else any of them.
            let inside = read("inside");
            let holder = inside.split(' ').next().and_then(|pid| pid.parse().ok());
            let victim = contenders
                .iter()
                .position(|child| round % 3 > 0 && Some(child.id()) == holder)
                .unwrap_or(round % 12);
            let mut killed = std::mem::replace(&mut contenders[victim], start());
            killed.kill().and_then(|()| killed.wait()).expect("it runs");
        }
        let count = read("count").len();
        poll_until("others get it", STEP_TIMEOUT, || {
            read("count").len() > count + 20
        });
        for mut contender in contenders {
            contender
                .kill()
                .and_then(|()| contender.wait())
                .expect("it runs");
        }
        assert_eq!(read("wrong"), "", "{shell:?}");
        let files = fs::read_dir(dir.join("lock")).expect("readable").count();
        assert!(files < 100, "{shell:?}: {files} files are left");
    }
}

/// A pooled shell holds the lock for its script, and ends if the script is killed, so the lock has no live holder.
#[test]
fn a_script_that_is_killed_with_the_lock_takes_its_shell_along() {
    let f = Site::OpenSshRoot.start();
    let blocks = "use POSIX; $| = 1; sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGTERM)); print qq(ready\n); sleep 1 while 1";
    let job = perl_job(&f, blocks);
    f.rsig.run(&["kill", &job, "TERM"]).ok();
    for _ in 0..3 {
        // It may end between two looks.
        let hit = (0..10).any(|_| {
            // It holds the lock and waits for the pending signal, until it is clear that the job does not take it.
            let mut kill = f.rsig.spawn_process(&["kill", &job, "TERM"]);
            let mut killed = None;
            poll_until("a script holds the lock", STEP_TIMEOUT, || {
                killed = lock_holder(&f, &job).and_then(|holder| {
                    let script = f
                        .processes()
                        .into_iter()
                        .find(|one| one.ppid == holder.pid)?;
                    (lock_holder(&f, &job)?.pid == holder.pid).then(|| kill9(script.pid))?;
                    Some(holder)
                });
                killed.is_some() || kill.has_ended()
            });
            let output = kill.wait();
            let Some(holder) = killed else { return false };
            // It was met before it had claimed the signal, and asked again, or after its answer.
            if output.status().success() {
                return false;
            }
            output
                .code(255)
                .stderr_has("cut short")
                .stderr_has("not known");
            assert!(!holder.runs());
            true
        });
        assert!(hit, "no script was met with the lock");
    }
    f.rsig.run(&["kill", &job, "KILL", "-w", "20s"]).ok();
    f.await_no_processes();
}

/// The shell that holds a job's lock.
fn lock_holder(f: &Fixture, job: &str) -> Option<Process> {
    let files = fs::read_dir(f.file(job, "lock")).ok()?.flatten();
    let last = files.map(|file| file.path()).max()?;
    let text = fs::read_to_string(last).ok()?;
    let holder = text.lines().next().filter(|_| !text.contains("free"))?;
    Process::find(holder.split(' ').next()?.parse().ok()?)
}

/// Wherever the connection breaks, the signal is sent once and rsig knows it.
#[test]
fn a_broken_connection_sends_nothing_twice() {
    let mut f = Site::OpenSshRoot.start();
    let proxy = Proxy::start(f.server.as_ref().expect("a server").port(), Duration::ZERO);
    f.go_through(&proxy);
    let job = f.spawn_listener();
    let bytes = || {
        [Direction::ToClient, Direction::ToServer]
            .map(|direction| (direction, proxy.bytes(direction)))
    };
    let before = bytes();
    f.rsig.run(&["kill", &job, "RTMIN+6"]).ok();
    let after = bytes();
    let mut sent = 1;
    for ((direction, before), (_, after)) in before.into_iter().zip(after) {
        let whole = after - before;
        // Cuts near the end, where the signal is sent and confirmed.
        for missing in [1, 40, 80, 120, 200, 300, 500, 900, 1500] {
            proxy.cut_after_bytes(direction, whole.saturating_sub(missing));
            let output = f.rsig.run(&["kill", &job, "RTMIN+6"]);
            match output.status().code() {
                Some(0) => sent += 1,
                // If the login was not complete, nothing can have been sent, and rsig does not try again.
                Some(255) => assert!(output.stderr().contains("server"), "{output}"),
                _ => panic!("{output}"),
            }
        }
        proxy.cut_after_bytes(direction, u64::MAX);
    }
    assert!(sent > 6, "some got through: {sent}");
    assert_eq!(heard(&f, &job, "NUM40"), sent);
}

#[test]
fn a_silent_host_does_not_hold_up_the_others() {
    let mut f = Site::OpenSshUser.start();
    let proxy = Proxy::start(f.server.as_ref().expect("a server").port(), Duration::ZERO);
    f.go_through(&proxy);
    f.connect
        .extend(["-o", "ConnectTimeout=10"].map(str::to_owned));
    let there = f.spawn(&[], &["sleep", "1000"]);
    let here = f.rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();
    proxy.hold_both();
    let kill = f
        .rsig
        .spawn_process(&["kill", "-s", "TERM", "-w", "20s", &there, &here]);
    kill.wait_for_stdout(&format!("{here} on local: TERM sent"));
    kill.wait().code(255).stderr_has("server");
    proxy.release();
    assert_eq!(f.state(&there), "running");
}

#[test]
fn the_signal_tables_are_those_of_each_system() {
    let rsig = Rsig::new();
    let row = |os: &str, word: &str| {
        let table: Value = serde_json::from_str(
            &rsig
                .run(&["kill", "-l", "--os", os, "--json", word])
                .ok()
                .line(),
        )
        .expect("JSON");
        (
            table[0]["number"].as_u64().expect("a number"),
            table[0]["name"].as_str().expect("a name").to_owned(),
            table[0]["action"].as_str().expect("an action").to_owned(),
        )
    };
    for (os, word, number, name) in [
        ("linux", "7", 7, "BUS"),
        ("linux", "10", 10, "USR1"),
        ("linux", "12", 12, "USR2"),
        ("linux", "16", 16, "STKFLT"),
        ("linux", "usr1", 10, "USR1"),
        ("linux", "137", 9, "KILL"),
        ("linux", "143", 15, "TERM"),
        ("linux", "SIGSYS", 31, "SYS"),
        ("darwin", "7", 7, "EMT"),
        ("darwin", "10", 10, "BUS"),
        ("darwin", "29", 29, "INFO"),
        ("darwin", "30", 30, "USR1"),
        ("darwin", "31", 31, "USR2"),
        ("darwin", "17", 17, "STOP"),
        ("darwin", "CHLD", 20, "CHLD"),
        ("darwin", "137", 9, "KILL"),
        ("freebsd", "7", 7, "EMT"),
        ("freebsd", "10", 10, "BUS"),
        ("freebsd", "29", 29, "INFO"),
        ("freebsd", "30", 30, "USR1"),
        ("freebsd", "31", 31, "USR2"),
        ("freebsd", "19", 19, "CONT"),
        ("freebsd", "158", 30, "USR1"),
    ] {
        let (is_number, is_name, _) = row(os, word);
        assert_eq!((is_number, is_name.as_str()), (number, name), "{os} {word}");
    }
    for (os, word) in [
        ("linux", "EMT"),
        ("linux", "INFO"),
        ("darwin", "STKFLT"),
        ("darwin", "RTMIN"),
        ("linux", "65"),
    ] {
        rsig.run(&["kill", "-l", "--os", os, word])
            .code(2)
            .stdout_is("")
            .stderr_has(word);
    }
    rsig.run(&["kill", "-l"])
        .ok()
        .stdout_has("NUMBER")
        .stdout_has("KILL")
        .stdout_has("can't be caught");
    rsig.run(&["kill", "-l", "--os", "darwin"])
        .ok()
        .stdout_has("INFO");
    rsig.run(&["kill", "--os", "darwin", "job"]).code(2);
    rsig.run(&["kill"]).code(2);
}
