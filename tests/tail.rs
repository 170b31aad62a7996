//! `rsig tail`: every byte of both streams, once, from the requested position.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::time::{Duration, Instant};

use crate::harness::{Direction, Proxy, Site, on_every_site, on_two_sites, poll_until, tool};
use crate::jobs::STEP_TIMEOUT;

/// Writes 50 MB that contain every byte value, in pieces that end at arbitrary positions.
const WRITER: &str = r#"my $block = join "", map { chr(($_ * 7 + ($_ >> 8)) % 256) } 0 .. 99_999;
print $block for 1 .. 500;"#;

on_two_sites! {
    fn begins_where_it_is_asked_to(f: &Fixture) {
        let job = f.spawn(&["-c"], &["n=0; while [ $n -lt 30 ]; do n=$((n + 1)); echo out $n; done; echo err >&2; printf tail"]);
        f.rsig.run(&["wait", &job]).ok();
        let lines = |from: usize, to: usize| (from..=to).map(|n| format!("out {n}\n")).collect::<Vec<_>>().concat();
        let all = lines(1, 30) + "tail";
        let cases: [(&[&str], String, &str); 19] = [
            (&[], lines(22, 30) + "tail", "err\n"),
            (&["-n", "1"], "tail".into(), "err\n"),
            (&["-n", "0"], String::new(), ""),
            (&["-n", "-2"], lines(30, 30) + "tail", "err\n"),
            (&["--lines=100"], all.clone(), "err\n"),
            (&["-n", "all"], all.clone(), "err\n"),
            (&["-n", "+1"], all.clone(), "err\n"),
            (&["-n", "+2"], lines(2, 30) + "tail", ""),
            (&["-n", "+31"], "tail".into(), ""),
            (&["-n", "+32"], String::new(), ""),
            (&["-c", "6"], "0\ntail".into(), "err\n"),
            (&["-c", "0"], String::new(), ""),
            (&["--bytes=+1"], all.clone(), "err\n"),
            (&["-c", "+3"], all[2..].into(), "r\n"),
            (&["-c", "+100000"], String::new(), ""),
            (&["--stdout"], lines(22, 30) + "tail", ""),
            (&["--stderr"], String::new(), "err\n"),
            (&["-f", "-n", "+30", "--stdout"], lines(30, 30) + "tail", ""),
            (&["-f", "-c", "+100000"], String::new(), ""),
        ];
        for (options, out, err) in cases {
            let output = f.rsig.run(&[&["tail"], options, &[&job]].concat());
            assert_eq!((output.ok().stdout().as_str(), output.stderr()), (out.as_str(), err), "{output}");
        }
        for bad in [&["-n", "x"][..], &["-n", "+-1"], &["-c", "all"], &["-n", "1", "-c", "1"], &["--stdout", "--stderr"]] {
            f.rsig.run(&[&["tail"], bad, &[&job]].concat()).code(2).stdout_is("");
        }
        f.rsig.run(&["tail", "nosuchjob"]).code(3);
    }

    fn every_byte_of_50_mb_comes_once_and_as_it_was_written(f: &Fixture) {
        let job = f.spawn(&[], &["perl", "-e", WRITER]);
        let followed = f.rsig.run(&["tail", "-f", "-n", "all", &job]);
        f.rsig.run(&["wait", &job]).ok();
        let written = fs::read(f.file(&job, "out")).expect("readable");
        assert_eq!(written.len(), 50_000_000);
        assert!(written[..256].iter().collect::<std::collections::HashSet<_>>().len() > 250);
        assert!(followed.ok().stderr_is_empty().stdout_bytes() == written, "followed");
        assert!(f.rsig.run(&["tail", "-c", "70001", &job]).ok().stdout_bytes() == &written[49_929_999..], "the end");
    }

    fn follow_shows_a_line_at_once_and_ends_with_the_job(f: &Fixture) {
        let gates = ["a", "b"].map(|name| f.job_home().join(name));
        let line = format!(
            "echo one; echo uno >&2; until [ -e {} ]; do sleep 0.01; done; printf two; until [ -e {} ]; do sleep 0.01; done; \
             echo three >&2; exit 3",
            gates[0].display(), gates[1].display()
        );
        let job = f.spawn(&["-c"], &[&line]);
        let mut tail = f.rsig.spawn_process(&["tail", "-f", &job]);
        let other = f.rsig.spawn_process(&["tail", "-f", "-n", "+2", "--stderr", &job]);
        tail.wait_for_stdout("one\n");
        tail.wait_for_stderr("uno\n");
        // Even without a newline.
        fs::write(&gates[0], "").expect("writable");
        tail.wait_for_stdout("one\ntwo");
        assert!(!tail.has_ended());
        fs::write(&gates[1], "").expect("writable");
        let output = tail.wait();
        assert_eq!((output.ok().stdout().as_str(), output.stderr()), ("one\ntwo", "uno\nthree\n"));
        assert_eq!((other.wait().ok().stdout_is("").stderr()), "three\n");
        f.rsig.run(&["wait", &job]).code(3);
        f.await_no_processes();
    }

    fn what_a_job_writes_at_its_end_is_not_missed(f: &Fixture) {
        for _ in 0..3 {
            let job = f.spawn(&["-c"], &["echo here; echo there >&2"]);
            let output = f.rsig.run(&["tail", "-f", &job]);
            assert_eq!((output.ok().stdout().as_str(), output.stderr()), ("here\n", "there\n"));
        }
        let silent = f.spawn(&[], &["true"]);
        f.rsig.run(&["tail", "-f", &silent]).ok().stdout_is("").stderr_is_empty();
        f.rsig.run(&["tail", "-n", "all", &silent]).ok().stdout_is("").stderr_is_empty();
        let merged = f.spawn(&["--merge", "-c"], &["echo here; echo there >&2"]);
        f.rsig.run(&["tail", "-f", "-n", "all", &merged]).ok().stdout_is("here\nthere\n").stderr_is_empty();
    }
}

on_every_site! {
    fn a_reader_that_goes_leaves_nothing_on_the_host(f: &Fixture) {
        let (job, gate) = f.spawn_gated(&[], 0);
        // A relay's shell has two children: the process that waits for the job's end, and the shell that reads the
        // relay's input.
        let below = if f.rsig.keeper && f.is_remote() { 2 } else { 0 };
        let ready = || {
            let all = f.processes();
            let mut shells = all.iter().filter(|process| process.cmdline == "/bin/sh -s");
            below == 0 || shells.any(|shell| all.iter().filter(|process| process.ppid == shell.pid).count() == below)
        };
        poll_until("its relay is complete", STEP_TIMEOUT, ready);
        let before = f.processes().iter().filter(|process| process.name != "sleep").count();
        fs::write(f.file(&job, "out"), "up\n").expect("writable");
        let tail = f.rsig.spawn_process(&["tail", "-f", &job]);
        let more = || f.processes().iter().filter(|process| process.name != "sleep").count() > before;
        tail.wait_for_stdout("up\n");
        drop(tail);
        poll_until("nobody follows any more", STEP_TIMEOUT, || !more());
        assert_eq!(f.state(&job), "running");
        gate.open();
        f.rsig.run(&["wait", &job]).ok();

        // A closed pipe is not worth a message.
        let much = f.spawn(&[], &["seq", "300000"]);
        let line = r#""$@" | head -n 2"#;
        let pipe = f.rsig.within(tool("sh"))
            .args(["-c", line, "sh", env!("CARGO_BIN_EXE_rsig"), "tail", "-n", "all", &much]).run();
        f.rsig.run(&["wait", &much]).ok();
        pipe.ok().stderr_is_empty();
        f.await_no_processes();
    }
}

on_two_sites! {
    fn output_that_was_removed_is_said_to_be(f: &Fixture) {
        f.rsig.run(&f.words("run", &[], &["echo", "hi"])).ok();
        f.await_only_tombstones();
        let dir = fs::read_dir(f.jobs_dir()).expect("a directory").next().expect("a tombstone").expect("readable");
        let of_run = dir.file_name().into_string().expect("an id");
        let of_job = f.spawn(&[], &["sh", "-c", "echo hi; rm \"$0/$RSIG_JOB/out\"; exit 3", f.jobs_dir().to_str().expect("text")]);
        f.rsig.run(&["wait", &of_job]).code(3);
        let connect: Vec<&str> = f.connect.iter().map(String::as_str).collect();
        for job in [of_run, of_job] {
            let job = format!("{}/{job}", f.host);
            for words in [&["tail"][..], &["tail", "-f"], &["wait", "--for", "hi"]] {
                let output = f.rsig.run(&[words, &connect, &[&job]].concat());
                output.code(1).stdout_is("").stderr_has("its output was removed from its host");
            }
        }
    }

    fn logs_that_are_gone_or_were_cut_are_errors(f: &Fixture) {
        let (job, gate) = f.spawn_gated(&[], 0);
        fs::write(f.file(&job, "out"), "something\n").expect("writable");
        let tail = f.rsig.spawn_process(&["tail", "-f", &job]);
        tail.wait_for_stdout("something\n");
        fs::write(f.file(&job, "out"), "").expect("writable");
        tail.wait().code(1).stderr_has("cut short");
        // Another file in its place, even a longer one.
        let tail = f.rsig.spawn_process(&["tail", "-f", &job]);
        fs::write(f.file(&job, "out"), "more\n").expect("writable");
        tail.wait_for_stdout("more\n");
        fs::write(f.file(&job, "other"), "more and more of something else\n").expect("writable");
        let log = f.file(&job, "out").metadata().expect("it is there");
        chown(f.file(&job, "other"), Some(log.uid()), Some(log.gid())).expect("we are root");
        fs::rename(f.file(&job, "other"), f.file(&job, "out")).expect("writable");
        tail.wait().code(1).stderr_has("replaced");
        gate.open();
        f.rsig.run(&["wait", &job]).ok();
        fs::remove_dir_all(f.file(&job, "")).expect("ours");
        f.rsig.run(&["tail", &job]).code(1).stdout_is("").stderr_has("its files are not on the host");
    }
}

/// 100 MB over a connection that breaks 50 times.
#[test]
fn every_byte_comes_once_over_fifty_cuts() {
    let mut f = Site::OpenSshUser.start();
    let proxy = Proxy::start(f.server.as_ref().expect("a server").port(), Duration::ZERO);
    f.go_through(&proxy);
    let job = f.spawn(&[], &["perl", "-e", &WRITER.replace("500", "1000")]);
    let before = proxy.connections();
    proxy.cut_every_bytes(Direction::ToClient, 1_900_000);
    let tail = f.rsig.spawn_process(&["tail", "-f", "-n", "all", &job]);
    for cut in 1..=50 {
        poll_until("it is connected again", STEP_TIMEOUT, || {
            proxy.connections() > before + cut
        });
    }
    let followed = tail.wait();
    proxy.cut_every_bytes(Direction::ToClient, u64::MAX);
    f.rsig.run(&["wait", &job]).ok();
    let written = fs::read(f.file(&job, "out")).expect("readable");
    assert_eq!(written.len(), 100_000_000);
    assert!(followed.ok().stdout_bytes() == written, "each byte once");
    assert!(followed.stderr().matches("connecting again").count() >= 50);
}

/// Escape sequences of a job are passed on, as cat(1) does.
#[test]
fn bytes_are_not_touched() {
    let f = Site::Local.start();
    let job = f.spawn(&[], &["printf", r"\001\033[2J\000\377\r\n"]);
    f.rsig.run(&["wait", &job]).ok();
    assert_eq!(
        f.rsig.run(&["tail", &job]).ok().stdout_bytes(),
        b"\x01\x1b[2J\0\xff\r\n"
    );
}

/// A slow reader costs no CPU time, and still gets everything, even after a time in which a server would count as
/// silent.
#[test]
fn a_reader_that_takes_its_time_costs_nothing() {
    let f = Site::OpenSshUser.start();
    let job = f.spawn(&[], &["head", "-c", "30000000", "/dev/zero"]);
    f.rsig.run(&["wait", &job]).ok();
    let line = r#"exec 3<&0; "$0" tail --no-keeper -n +1 "$1" |
        { head -c 1 >/dev/null; echo begun; read -r _ <&3; wc -c; }"#;
    let rsig = env!("CARGO_BIN_EXE_rsig");
    let tail = f.rsig.within(tool("sh")).args(["-c", line, rsig, &job]);
    let mut tail = tail.stdin_open().start();
    tail.wait_for_stdout("begun");
    let ticks = || -> u64 {
        let processes = f.rsig.processes().into_iter();
        processes
            .filter(|process| process.cmdline.contains("keeper-serve"))
            .filter_map(|keeper| fs::read_to_string(format!("/proc/{}/stat", keeper.pid)).ok())
            .map(|stat| {
                let fields = stat
                    .rsplit(')')
                    .next()
                    .unwrap_or_default()
                    .split_whitespace();
                fields
                    .skip(11)
                    .take(2)
                    .filter_map(|field| field.parse::<u64>().ok())
                    .sum::<u64>()
            })
            .sum()
    };
    let begun = Instant::now();
    let (mut since, mut before) = (begun, ticks());
    poll_until("the keepers sleep", STEP_TIMEOUT, || {
        if since.elapsed() < Duration::from_secs(1) {
            return false;
        }
        let now = ticks();
        // A keeper of the command before may have ended.
        let used = now.saturating_sub(before);
        (since, before) = (Instant::now(), now);
        used < 5 && begun.elapsed() > Duration::from_secs(10)
    });
    tail.write("go\n");
    assert_eq!(tail.wait().ok().stdout(), "begun\n29999999\n");
}
