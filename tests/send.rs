//! `rsig send`: appends to a job's input, each send exactly once and in one piece.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{Direction, Fixture, Rsig, Site, on_two_sites, program_path};
/// A job that copies its input to its output.
fn spawn_cat(f: &Fixture) -> String {
    f.spawn(&["--stdin-open"], &["cat"])
}

on_two_sites! {
    fn what_is_sent_arrives_in_order(f: &Fixture) {
        let job = spawn_cat(f);
        f.rsig.run(&["send", &job, "one"]).ok().stdout_is("").stderr_is_empty();
        f.await_written(&job, "one\n");
        f.rsig.run(&["send", &job, "-n it's \"$(id)\" \\n ü"]).ok();
        f.rsig.command(&["send", &job]).stdin(b"three\0\xff\nno end".to_vec()).run().ok();
        f.rsig.run(&["send", &job, ""]).ok();
        f.rsig.command(&["send", &job]).stdin("").run().ok();
        let big = "0123456789abcde\n".repeat(200_000);
        f.rsig.command(&["send", &job]).stdin(big.clone()).run().ok();
        f.rsig.run(&["send", "--eof", &job, "last"]).ok();
        f.rsig.run(&["wait", "-q", &job]).ok();
        let expected = [b"one\n-n it's \"$(id)\" \\n \xc3\xbc\nthree\0\xff\nno end\n", big.as_bytes(), b"last\n"].concat();
        assert!(fs::read(f.file(&job, "out")).expect("a log") == expected);
        f.rsig.run(&["send", &job, "x"]).code(4).stderr_has("had already ended");
        f.await_no_processes();
    }

    fn an_input_is_closed_once(f: &Fixture) {
        let job = f.spawn(&["--stdin-open"], &["sh", "-c", "cat; sleep 1000"]);
        // --eof alone reads nothing.
        f.rsig.command(&["send", "--eof", &job]).stdin("not this").run().ok();
        f.rsig.run(&["send", &job, "x"]).code(1).stderr_has("closed");
        f.rsig.run(&["send", "--eof", &job]).code(1).stderr_has("closed");
        f.rsig.run(&["stop", &job]).ok();
        assert_eq!(f.written(&job), "");
        let (other, gate) = f.spawn_gated(&[], 0);
        f.rsig.run(&["send", &other, "x"]).code(1).stderr_has("--stdin-open");
        gate.open();
        f.rsig.run(&["wait", &other]).ok();
        f.rsig.run(&["send", "nosuchjob", "x"]).code(3);
        f.rsig.run(&["send"]).code(2);
        f.rsig.run(&f.words("spawn", &["--stdin-open", "--stdin", "/dev/null"], &["cat"])).code(2);
        f.rsig.run(&f.words("run", &["--keep", "-n", "mine", "--stdin", "/dev/null"], &["true"])).ok();
        f.rsig.run(&["send", "mine", "x"]).code(4);
    }

    fn many_senders_do_not_mix(f: &Fixture) {
        let job = spawn_cat(f);
        // Dropbear admits five logins at once (MAX_UNAUTH_PER_IP).
        let senders: Vec<_> = (0..5)
            .map(|number| {
                let lines = format!("{number} {}\n", "x".repeat(50)).repeat(400);
                f.rsig.command(&["send", &job]).stdin(lines).start()
            })
            .collect();
        senders.into_iter().for_each(|sender| { sender.wait().ok(); });
        f.rsig.run(&["send", "--eof", &job]).ok();
        f.rsig.run(&["wait", "-q", &job]).ok();
        let written = f.written(&job);
        let lines: Vec<&str> = written.lines().map(|line| &line[..1]).collect();
        assert_eq!(lines.len(), 2000);
        let senders: HashSet<&[&str]> = lines.chunks(400).collect();
        assert!(senders.len() == 5 && senders.iter().all(|lines| lines.iter().all(|line| line == &lines[0])));
    }

    fn a_stopped_job_gets_it_later(f: &Fixture) {
        let job = spawn_cat(f);
        f.rsig.run(&["kill", &job, "STOP"]).ok();
        f.rsig.run(&["send", &job, "one"]).ok();
        f.rsig.run(&["send", "--eof", &job, "two"]).ok();
        assert_eq!(f.written(&job), "");
        f.rsig.run(&["kill", &job, "CONT"]).ok();
        f.rsig.run(&["wait", "-q", &job]).ok();
        assert_eq!(f.written(&job), "one\ntwo\n");
    }
}

/// The connection is cut at every stage of a send, which still arrives exactly once.
#[test]
fn a_cut_connection_neither_doubles_nor_drops() {
    let (mut f, proxy) = Site::OpenSshUser.start().through_proxy();
    f.rsig.keeper = true;
    let job = spawn_cat(&f);
    let mut expected = String::new();
    let answers = [10, 60, 100, 150, 200].map(|bytes| (Direction::ToClient, bytes));
    let requests = [10, 1000, 4000].map(|bytes| (Direction::ToServer, bytes));
    for (number, (direction, bytes)) in answers.into_iter().chain(requests).enumerate() {
        f.rsig.run(&["kill", &job, "0"]).ok();
        let connections = proxy.connections();
        proxy.cut_after_bytes(direction, bytes);
        f.rsig.run(&["send", &job, &number.to_string()]).ok();
        // Output of the pool's shells may have been cut instead.
        assert!(proxy.connections() > connections || bytes >= 150);
        expected += &format!("{number}\n");
    }
    let big = "line\n".repeat(40_000);
    for bytes in [20_000, 60_000, 150_000] {
        proxy.cut_after_bytes(Direction::ToServer, bytes);
        f.rsig
            .command(&["send", &job])
            .stdin(big.clone())
            .run()
            .ok();
        expected += &big;
    }
    f.rsig.run(&["send", "--eof", &job]).ok();
    f.rsig.run(&["wait", "-q", &job]).ok();
    assert!(f.written(&job) == expected);
}

/// A sender that is killed has sent everything or nothing, and does not keep the lock from others.
#[test]
fn a_killed_sender_sends_all_or_nothing() {
    for site in [Site::Local, Site::OpenSshUser] {
        let f = site.start();
        let job = spawn_cat(&f);
        let mut senders = Vec::new();
        for number in 0..12_u32 {
            let lines = format!("{number}\n").repeat(20_000);
            let sender = f.rsig.command(&["send", &job]).stdin(lines).start();
            std::thread::sleep(Duration::from_millis(u64::from(number) * 25));
            sender.signal(Signal::SIGKILL);
            senders.push(sender.wait());
            f.rsig.run(&["send", &job, "between"]).ok();
        }
        f.rsig.run(&["send", "--eof", &job]).ok();
        f.rsig.run(&["wait", "-q", &job]).ok();
        let written = f.written(&job);
        let mut lines = written.lines().peekable();
        let (mut between, mut seen) = (0, HashSet::new());
        while let Some(line) = lines.next() {
            if line == "between" {
                between += 1;
                continue;
            }
            assert!(seen.insert(line), "{line} came twice");
            for _ in 1..20_000 {
                assert_eq!(lines.next(), Some(line));
            }
        }
        assert_eq!(between, 12);
        for (number, sender) in senders.iter().enumerate() {
            assert!(!sender.status().success() || seen.contains(&number.to_string()[..]));
        }
        f.await_no_processes();
    }
}

/// A sender died between recording its decision and moving its file. The next sender moves that file first.
#[test]
fn what_was_decided_is_carried_out() {
    let f = Site::Local.start();
    let job = spawn_cat(&f);
    f.rsig.run(&["send", &job, "one"]).ok();
    fs::write(f.file(&job, "in.new.dead"), "two\n").expect("our own directory");
    fs::write(f.file(&job, "in.last"), "feed in.new.dead 4 4 0\n").expect("our own directory");
    f.rsig.run(&["send", &job, "three"]).ok();
    f.rsig.run(&["send", "--eof", &job]).ok();
    f.rsig.run(&["wait", "-q", &job]).ok();
    assert_eq!(f.written(&job), "one\ntwo\nthree\n");
}

#[test]
fn every_shell_gives_input() {
    for shell in ["dash", "bash", "busybox", "mksh", "zsh"] {
        let mut f = Site::Local.start();
        f.rsig = Rsig::new().with_shell(program_path(shell));
        let job = spawn_cat(&f);
        f.rsig.run(&["send", &job, "it's\\n \u{1}\u{e9}"]).ok();
        f.rsig
            .command(&["send", &job])
            .stdin("x\0y".repeat(30_000))
            .run()
            .ok();
        f.rsig.run(&["send", "--eof", &job]).ok();
        f.rsig.run(&["wait", "-q", &job]).ok();
        assert_eq!(
            f.written(&job),
            format!("it's\\n \u{1}\u{e9}\n{}", "x\0y".repeat(30_000))
        );
        f.rsig.run(&["send", &job, "x"]).code(4);
        f.await_no_processes();
    }
}
