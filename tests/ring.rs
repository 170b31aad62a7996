//! `rsig spawn --log-max`: the newest part of each stream is kept, and what was dropped is reported.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::faults::on_a_small_disk;
use crate::harness::{Fixture, Process, Rsig, Site, on_two_sites, poll_until, program_path};
use crate::jobs::STEP_TIMEOUT;

/// The numbered lines that a job writes.
fn numbers(count: usize) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

/// The files of a stream on the host: the position of the first byte of each, and its size.
fn files(f: &Fixture, job: &str, stream: &str) -> Vec<(u64, u64)> {
    let Ok(entries) = fs::read_dir(f.file(job, "")) else {
        return vec![];
    };
    let mut files: Vec<(u64, u64)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix(stream)?.strip_prefix('.')?.parse().ok()?;
            Some((number, entry.metadata().ok()?.len()))
        })
        .collect();
    files.sort_unstable();
    files
}

/// The part of a stream that is on the host.
fn kept(f: &Fixture, job: &str, stream: &str) -> String {
    let files = files(f, job, stream).into_iter();
    files
        .map(|(number, _)| {
            fs::read_to_string(f.file(job, &format!("{stream}.{number}"))).unwrap_or_default()
        })
        .collect()
}

/// The disk space that a job's files take, in kB.
fn disk_use(f: &Fixture, job: &str) -> u64 {
    let entries = fs::read_dir(f.file(job, "")).expect("it is there");
    let blocks = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks()));
    blocks.sum::<u64>() / 2
}

/// The dd that spools a job's standard output, the shell that runs dd, and the one that restarts that shell.
fn spoolers(f: &Fixture) -> Option<[Process; 3]> {
    let all = f.processes();
    let reads_pipe = |process: &&Process| {
        let file = fs::read_link(format!("/proc/{}/fd/0", process.pid));
        process.name == "dd" && file.is_ok_and(|file| file.ends_with("out.pipe"))
    };
    let parent = |of: &Process| all.iter().find(|process| process.pid == of.ppid).cloned();
    let dd = all.iter().find(reads_pipe)?.clone();
    let shell = parent(&dd)?;
    let tender = parent(&shell)?;
    Some([dd, shell, tender])
}

fn kill_process(process: &Process) {
    // The process may have ended by itself.
    process.signal_if_runs(Signal::SIGKILL);
    poll_until("it is gone", STEP_TIMEOUT, || !process.runs());
}

on_two_sites! {
    fn the_newest_part_is_kept_and_no_more(f: &Fixture) {
        const MAX: u64 = 1 << 20;
        let all = numbers(1_500_000);
        let job = f.spawn(&["--log-max", "1M"], &["seq", "1500000"]);
        let mut peak = 0;
        poll_until("it has ended", STEP_TIMEOUT, || {
            let listed = files(f, &job, "out");
            let used = disk_use(f, &job);
            // Files may vanish and grow during a listing. Those listed were all there at once if the oldest still is.
            if listed.first().is_some_and(|(number, _)| f.file(&job, &format!("out.{number}")).exists()) {
                let size: u64 = listed.iter().map(|(_, size)| size).sum();
                assert!(size < MAX + MAX / 4, "{size}");
                peak = peak.max(used);
            }
            f.has_ended(&job) && f.file(&job, "out.end").exists()
        });
        peak = peak.max(disk_use(f, &job));
        assert!(peak > 1000 && peak <= 1024 + 256, "{peak} kB");
        f.rsig.run(&["wait", &job]).ok();
        let left = kept(f, &job, "out");
        assert!(left.len() as u64 >= MAX && all.ends_with(&left), "{}", left.len());
        let gone = all.len() - left.len();
        let said = format!("{}.{} MB of its output are gone (--log-max 1M)", gone / 1_000_000, gone / 100_000 % 10);
        let said = format!("rsig: {job} on {}: {said}\n", f.host);
        for words in [&["-n", "all"][..], &["-n", "+1"], &["-n", "+3"], &["-c", "+1"], &["-n", "1000000"], &["-f", "-n", "all"]] {
            let output = f.rsig.run(&[&["tail"], words, &[&job]].concat());
            assert!(output.ok().stdout() == left, "{words:?}");
            assert_eq!(output.stderr(), said, "{words:?}");
        }
        // Counted from the first byte ever written, if that position is still kept.
        let position = format!("+{}", all.len() - 13);
        for (words, expected) in [
            (&["-n", "2"][..], "1499999\n1500000\n"),
            (&[], "1499991\n1499992\n1499993\n1499994\n1499995\n1499996\n1499997\n1499998\n1499999\n1500000\n"),
            (&["-n", "+1499999"], "1499999\n1500000\n"),
            (&["-n", "+1500001"], ""),
            (&["-f", "-n", "+1499998"], "1499998\n1499999\n1500000\n"),
            (&["-c", &position], &all[all.len() - 14..]),
            (&["-c", "9"], "\n1500000\n"),
            (&["--stderr", "-n", "all"], ""),
        ] {
            let output = f.rsig.run(&[&["tail"], words, &[&job]].concat());
            assert_eq!((output.ok().stdout().as_str(), output.stderr()), (expected, ""), "{words:?}");
        }
        // From one of the first lines that are kept.
        let first = left.lines().nth(1).expect("a line");
        let output = f.rsig.run(&["tail", "-n", &format!("+{first}"), &job]);
        assert!(output.ok().stderr_is_empty().stdout() == left[left.find('\n').expect("a line") + 1..]);
        f.rsig.run(&["wait", "--for", "^1499999$", &job]).ok().stdout_is("1499999\n");
        f.rsig.run(&["wait", "--for", "^7$", &job]).code(1);
        f.rsig.run(&["tail", "-q", "-n", "all", &job]).ok().stderr_is_empty();
        f.rsig.run(&["rm", &job]).ok();
        f.await_no_processes();
        assert!(f.job_ids_on_host().is_empty());
    }

    fn a_slow_writer_gets_one_file_and_each_line_at_once(f: &Fixture) {
        let job = f.spawn(&["--log-max", "64k", "--stdin-open", "--merge"], &["sh", "-c", "while read -r line; do echo $line; echo $line >&2; done"]);
        let follow = f.rsig.spawn_process(&["tail", "-f", "-n", "all", &job]);
        let mut all = String::new();
        for number in 1..=40 {
            f.rsig.run(&["send", &job, &number.to_string()]).ok();
            all += &format!("{number}\n{number}\n");
            poll_until("it is written", STEP_TIMEOUT, || kept(f, &job, "out") == all);
        }
        follow.wait_for_stdout(&all);
        assert_eq!(files(f, &job, "out").len(), 1);
        f.rsig.run(&["send", "--eof", &job]).ok();
        follow.wait().ok().stderr_is_empty();
        f.rsig.run(&["wait", &job]).ok();
        f.rsig.run(&["tail", "-n", "all", &job]).ok().stderr_is_empty().stdout_is(&all);
        f.await_no_processes();
    }

    fn a_killed_spooler_costs_the_job_nothing(f: &Fixture) {
        // If nothing read its pipe, this job would be killed by SIGPIPE, or would block.
        let line = "$| = 1; for (1 .. 100) { print qq($_ $_ $_\n) x 400; select undef, undef, undef, 0.05 }";
        let all: String = (1..=100).map(|n| format!("{n} {n} {n}\n").repeat(400)).collect();
        let job = f.spawn(&["--log-max", "256K"], &["perl", "-e", line]);
        let mut killed = 0;
        while killed < 6 && !f.has_ended(&job) {
            let Some(processes) = spoolers(f) else { continue };
            // Only the shells are killed: what dd has read but not yet written would be lost with it.
            kill_process(&processes[1 + killed % 2]);
            let before = files(f, &job, "out");
            poll_until("it goes on", STEP_TIMEOUT, || f.has_ended(&job) || files(f, &job, "out") != before);
            killed += 1;
        }
        assert!(killed > 0);
        f.rsig.run(&["wait", &job]).ok();
        poll_until("all is written", STEP_TIMEOUT, || f.file(&job, "out.end").exists());
        let left = kept(f, &job, "out");
        assert!(left.len() >= 256 << 10 && all.ends_with(&left), "{} of {}", left.len(), all.len());
        let (number, _) = files(f, &job, "out")[0];
        assert_eq!(usize::try_from(number).expect("small") + left.len(), all.len());
        f.await_no_processes();
    }

    fn a_job_without_any_spooler_gets_no_signal(f: &Fixture) {
        let gate = f.job_home().join("gate");
        let line = format!("until [ -e {} ]; do sleep 0.01; done; echo late; exit 5", gate.display());
        let job = f.spawn(&["--log-max", "64K"], &["sh", "-c", &line]);
        poll_until("it is spooled", STEP_TIMEOUT, || spoolers(f).is_some());
        let [dd, shell, tender] = spoolers(f).expect("they wait for the job");
        [tender, shell, dd].iter().for_each(kill_process);
        fs::write(gate, "").expect("the job's home is writable");
        f.rsig.run(&["wait", &job]).code(5);
        f.await_no_processes();
    }

    fn what_a_job_leaves_behind_is_spooled_on(f: &Fixture) {
        let gate = f.job_home().join("gate");
        let line = format!("(until [ -e {} ]; do sleep 0.01; done; seq 20000) & echo begun", gate.display());
        let job = f.spawn(&["--log-max", "64K", "-c"], &[&line]);
        f.rsig.run(&["wait", &job]).ok();
        poll_until("its own output is stored", STEP_TIMEOUT, || kept(f, &job, "out") == "begun\n");
        f.rsig.run(&["tail", &job]).ok().stdout_is("begun\n");
        fs::write(gate, "").expect("the job's home is writable");
        poll_until("it is spooled", STEP_TIMEOUT, || f.file(&job, "out.end").exists());
        f.rsig.run(&["tail", "-n", "1", &job]).ok().stdout_is("20000\n").stderr_is_empty();
        f.await_no_processes();
    }

    fn it_is_removed_while_it_writes(f: &Fixture) {
        let job = f.spawn(&["--log-max", "256K", "--timeout", "1h"], &["yes"]);
        poll_until("some is gone", STEP_TIMEOUT, || f.file(&job, "out.gone").exists());
        f.rsig.run(&["kill", &job, "STOP"]).ok();
        f.await_state(&job, "stopped");
        f.rsig.run(&["kill", &job, "CONT"]).ok();
        f.rsig.run(&["rm", "--force", &job]).ok();
        f.await_no_processes();
        assert!(f.job_ids_on_host().is_empty());
        // Another process removes the files while the job runs: the job goes on, and no full pipe keeps it from ending.
        let job = f.spawn(&["--log-max", "256K"], &["seq", "3000000"]);
        poll_until("it is removed", STEP_TIMEOUT, || {
            // Fails if a spooler creates a file meanwhile.
            let _ = fs::remove_dir_all(f.file(&job, ""));
            !f.file(&job, "").exists()
        });
        f.await_no_processes();
    }

    fn ends_and_limits_are_as_ever(f: &Fixture) {
        let job = f.spawn(&["--log-max", "1G", "--timeout", "8s", "-c"], &["echo out; echo err >&2; exec sleep 1000"]);
        f.rsig.run(&["wait", &job]).code(143).stdout_has("timed out");
        let output = f.rsig.run(&["tail", &job]);
        assert_eq!((output.ok().stdout().as_str(), output.stderr()), ("out\n", "err\n"));
        let copied = f.rsig.home().join("input");
        fs::write(&copied, "some input\n").expect("ours");
        let job = f.spawn(&["--log-max", "64K", "--stdin", copied.to_str().expect("UTF-8")], &["cat"]);
        f.rsig.run(&["wait", "--for", "input", &job]).ok().stdout_is("some input\n");
        // The job inherits the same signal masks and descriptors as any other job.
        let line = "grep -E '^Sig(Ign|Blk)' /proc/self/status; ls -m /proc/self/fd";
        let jobs = [&[][..], &["--log-max", "64K"]].map(|options| f.spawn(options, &["sh", "-c", line]));
        poll_until("all is stored", STEP_TIMEOUT, || f.file(&jobs[1], "out.end").exists());
        let told = jobs.map(|job| {
            f.rsig.run(&["wait", &job]).ok();
            f.rsig.run(&["tail", &job]).ok().stdout()
        });
        assert_eq!(told[0], told[1]);
        f.rsig.run(&f.words("spawn", &["--log-max", "64K"], &["no-such-command"])).code(1).stderr_has("not found");
        f.await_no_processes();
    }
}

/// The number of bytes that a note reports as gone.
fn bytes_reported(line: &str, job: &str) -> f64 {
    let words: Vec<&str> = line.split(' ').collect();
    assert!(
        line.starts_with(&format!("rsig: {job} on local: "))
            && line.ends_with(" of its output are gone (--log-max 64K)"),
        "{line}"
    );
    let unit = ["bytes", "kB", "MB"]
        .iter()
        .position(|unit| *unit == words[5])
        .expect("a unit");
    words[4].parse::<f64>().expect("a number") * [1.0, 1e3, 1e6][unit]
}

/// Whether `text` is `all` with some parts left out.
fn is_in_order(mut text: &str, mut all: &str) -> bool {
    while !text.is_empty() {
        let same = text
            .bytes()
            .zip(all.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        (text, all) = (&text[same..], &all[same..]);
        match all.find(&text[..text.len().min(100)]) {
            Some(at) => all = &all[at..],
            None => return false,
        }
    }
    true
}

/// One follower is stopped while the job writes far more than is kept; another one runs beside it.
#[test]
fn a_follower_that_falls_behind_goes_on_and_says_so() {
    let f = Site::Local.start();
    let gates = ["a", "b"].map(|name| f.job_home().join(name));
    let await_gate =
        |gate: &PathBuf| format!("until [ -e {} ]; do sleep 0.01; done", gate.display());
    let line = format!(
        "echo begun; {}; seq 300000; {}; echo end",
        await_gate(&gates[0]),
        await_gate(&gates[1])
    );
    let job = f.spawn(&["--log-max", "64K", "-c"], &[&line]);
    let [slow, fast] = [(); 2].map(|()| f.rsig.spawn_process(&["tail", "-f", &job]));
    slow.wait_for_stdout("begun\n");
    fast.wait_for_stdout("begun\n");
    slow.signal(Signal::SIGSTOP);
    fs::write(&gates[0], "").expect("ours");
    poll_until("all is written", STEP_TIMEOUT, || {
        kept(&f, &job, "out").ends_with("\n300000\n")
    });
    slow.signal(Signal::SIGCONT);
    fs::write(&gates[1], "").expect("ours");
    let all = format!("begun\n{}end\n", numbers(300_000));
    let output = slow.wait();
    let shown = output.ok().stdout();
    assert!(is_in_order(&shown, &all), "{output}");
    let gone = all.len() - shown.len();
    assert!(gone > 1_000_000, "{gone}");
    // Reported at most once a second, and completely.
    let said: f64 = output
        .stderr()
        .lines()
        .map(|line| bytes_reported(line, &job))
        .sum();
    let gone = f64::from(u32::try_from(gone).expect("a few MB"));
    assert!((said / gone - 1.0).abs() < 0.1, "{output}");
    let shown = fast.wait().ok().stdout();
    assert!(shown.starts_with("begun\n") && shown.ends_with("\n299999\n300000\nend\n"));
    assert!(is_in_order(&shown, &all));
    // Neither follower has removed anything.
    let left = f.rsig.run(&["tail", "-n", "all", &job]).ok().stdout();
    assert!(left.len() >= 64 << 10 && all.ends_with(&left));
    f.await_no_processes();
}

/// Over a connection that breaks, the output is exact, and any gap is reported.
#[test]
fn a_follower_over_cuts_is_exact() {
    use crate::harness::{Direction, Proxy};
    let mut f = Site::OpenSshUser.start();
    let proxy = Proxy::start(
        f.server.as_ref().expect("a server").port(),
        std::time::Duration::ZERO,
    );
    f.go_through(&proxy);
    // A part after each gate: however late a cut is prepared, enough is still to come.
    let line = "for n in 0 1 2 3 4 5; do until [ -e gate$n ]; do sleep 0.01; done; \
        seq $((n * 500000 + 1)) $((n * 500000 + 500000)); done";
    let job = f.spawn(&["--log-max", "64M", "-c"], &[line]);
    let open = |gate: u64| {
        fs::write(f.job_home().join(format!("gate{gate}")), "").expect("ours");
    };
    let before = proxy.connections();
    proxy.cut_after_bytes(Direction::ToClient, 1_000_000);
    let tail = f.rsig.spawn_process(&["tail", "-f", "-n", "all", &job]);
    for cut in 1..=5 {
        open(cut - 1);
        poll_until("it is connected again", STEP_TIMEOUT, || {
            proxy.connections() > before + cut
        });
        if cut < 5 {
            proxy.cut_after_bytes(Direction::ToClient, 1_700_000);
        }
    }
    open(5);
    let output = tail.wait();
    assert!(output.ok().stdout() == numbers(3_000_000));
    assert!(!output.stderr().contains("are gone"), "{output}");
}

/// What could work differently in another shell of the host.
fn in_shell(shell: &str) {
    let mut f = Site::Local.start();
    f.rsig = Rsig::new().with_shell(program_path(shell));
    let line = "seq 60000; echo err >&2; until [ -e gate ]; do sleep 0.01; done; seq 60001 70000; \
        until [ -e over ]; do sleep 0.01; done; exit 3";
    let job = f.spawn(&["--log-max", "64K", "-c"], &[line]);
    let follow = f
        .rsig
        .spawn_process(&["tail", "-f", "-n", "1", "--stdout", &job]);
    follow.wait_for_stdout("60000\n");
    poll_until("it is spooled", STEP_TIMEOUT, || {
        spoolers(&f).is_some_and(|all| {
            kill_process(&all[1]);
            true
        })
    });
    fs::write(f.rsig.home().join("gate"), "").expect("ours");
    poll_until("all is stored", STEP_TIMEOUT, || {
        kept(&f, &job, "out").ends_with("\n70000\n")
    });
    fs::write(f.rsig.home().join("over"), "").expect("ours");
    let shown = follow.wait().ok().stdout();
    assert!(shown.ends_with("\n69999\n70000\n"), "{shell}");
    f.rsig.run(&["wait", &job]).code(3);
    let all = numbers(70_000);
    let output = f.rsig.run(&["tail", "-n", "all", &job]);
    let left = output.ok().stdout();
    assert!(
        left.len() >= 64 << 10 && left.len() < 80 << 10 && all.ends_with(&left),
        "{shell}"
    );
    output
        .stderr_has("kB of its output are gone (--log-max 64K)")
        .stderr_has("err\n");
    f.rsig
        .run(&["tail", "-n", "+69999", &job])
        .ok()
        .stdout_is("69999\n70000\n");
    f.rsig
        .run(&["tail", "-n", "2", "--stdout", &job])
        .ok()
        .stdout_is("69999\n70000\n");
    f.rsig
        .run(&["tail", "-c", "6", "--stdout", &job])
        .ok()
        .stdout_is("70000\n");
    f.rsig
        .run(&["wait", "--for", "^6999.$", &job])
        .ok()
        .stdout_is("69990\n");
    let merged = f.spawn(
        &["--log-max", "64K", "--merge", "-c"],
        &["echo one; echo two >&2; seq 20000"],
    );
    f.rsig.run(&["wait", &merged]).ok();
    poll_until("all is stored", STEP_TIMEOUT, || {
        f.file(&merged, "out.end").exists()
    });
    f.rsig
        .run(&["tail", "-f", "-n", "1", &merged])
        .ok()
        .stdout_is("20000\n")
        .stderr_is_empty();
    f.await_no_processes();
}

#[test]
fn every_shell_spools_a_ring() {
    ["dash", "bash", "busybox", "mksh", "zsh"]
        .into_iter()
        .for_each(in_shell);
}

#[test]
fn a_full_disk_costs_the_oldest_and_then_time() {
    let rsig = Rsig::new();
    let output = on_a_small_disk(
        &rsig,
        r#"job=$("$1" spawn --log-max 16M local seq 1500000) && "$1" wait -q "$job"; echo "wait $?"
        "$1" tail -n 1 "$job"; "$1" tail -n all -q "$job" | head -n 100000 | wc -l; "$1" rm "$job" >/dev/null
        job=$("$1" spawn --log-max 1M -c local 'until [ -e full ]; do sleep 0.01; done; seq 1500000')
        dd if=/dev/zero of=disk/filler bs=64k 2>/dev/null; touch full
        "$1" wait --timeout 2s -q "$job"; echo "wait $?"
        rm disk/filler; "$1" wait -q "$job"; echo "wait $?"; "$1" tail -n 1 "$job""#,
    );
    output
        .ok()
        .stdout_is("wait 0\n1500000\n100000\nwait 124\nwait 0\n1500000\n")
        .stderr_has("the disk there was full, and some of the output is lost");
    poll_until("nothing is left", STEP_TIMEOUT, || {
        rsig.processes().is_empty()
    });
}

#[test]
fn a_size_is_checked_first_and_may_have_a_default() {
    let f = Site::Local.start();
    for (size, said) in [
        ("16", "16M"),
        ("63K", "less than 64K"),
        ("2048G", "more than"),
        ("1.5M", "not"),
        ("-1M", "not"),
    ] {
        let output = f
            .rsig
            .run(&f.words("spawn", &[&format!("--log-max={size}")], &["true"]));
        output
            .code(2)
            .stdout_is("")
            .stderr_has(said)
            .stderr_has("--log-max");
    }
    f.rsig
        .run(&f.words("run", &["--log-max", "1M"], &["true"]))
        .code(2);
    let config = f.rsig.home().join("config.toml");
    fs::write(&config, "[defaults]\nlog-max = \"64K\"\n").expect("ours");
    let words = f.words("spawn", &[], &["seq", "100000"]);
    let job = f
        .rsig
        .command(&words)
        .env("RSIG_CONFIG", &config)
        .run()
        .ok()
        .line();
    f.rsig.run(&["wait", &job]).ok();
    f.rsig
        .run(&["tail", "-n", "all", &job])
        .ok()
        .stderr_has("(--log-max 64K)");
}

#[cfg(feature = "mcp")]
#[test]
fn an_agent_is_told_what_is_gone() {
    use serde_json::json;

    use crate::clients::Mcp;
    let f = Site::Local.start();
    let mut mcp = Mcp::start(&f, &[]);
    mcp.call_fails(
        "ssh_spawn",
        json!({ "host": f.host, "command": "true", "log_max": "1" }),
        "bad_param",
    );
    let job = mcp.call(
        "ssh_spawn",
        json!({ "host": f.host, "command": "seq 30000", "log_max": "64K" }),
    );
    let job = job["job_id"].as_str().expect("an id").to_owned();
    f.rsig.run(&["wait", &job]).ok();
    poll_until("all is written", STEP_TIMEOUT, || {
        f.file(&job, "out.end").exists()
    });
    let left = kept(&f, &job, "out");
    let gone = numbers(30_000).len() - left.len();
    let mut shown = String::new();
    let mut answer = json!({ "cursor": "start" });
    for round in 0.. {
        let cursor = &answer["cursor"];
        answer = mcp.call(
            "ssh_tail",
            json!({ "job_id": job, "cursor": cursor, "max_lines": 5000 }),
        );
        let omitted = if round == 0 { gone } else { 0 };
        assert_eq!(answer["omitted_bytes"], omitted, "{round}");
        for line in answer["lines"].as_array().expect("lines") {
            shown += &format!("{}\n", line["text"].as_str().expect("a text"));
        }
        if answer["more"] == false {
            break;
        }
    }
    assert!(shown == left);
    let last = mcp.call("ssh_tail", json!({ "job_id": job, "max_lines": 2 }));
    assert_eq!(last["lines"][1]["text"], "30000");
    assert_eq!(last["omitted_bytes"], numbers(29_998).len());
}
