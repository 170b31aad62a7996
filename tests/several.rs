//! `run` on several hosts: line prefixes, exit status, signals, and `--gather` compared with `clush -b`.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Login, Output, Rsig, Running, Server, poll_until, tool};
use crate::jobs::STEP_TIMEOUT;
use crate::kit::{self, FixedReply, FixedServer};

/// One server under many addresses, and rsig. Each 127.1.0.N is a host, `gone` is unreachable, and `silent` never
/// answers.
struct Farm {
    rsig: Rsig,
    server: Server,
    config: String,
    _silent: FixedServer,
}

impl Farm {
    fn start() -> Self {
        let (mut rsig, silent) = (
            Rsig::new(),
            FixedServer::start(FixedReply::Once(Vec::new())),
        );
        rsig.keeper = true;
        let server = Server::openssh(Login::User)
            .everywhere()
            .config("MaxStartups 1000")
            .start();
        let known = rsig.dir().join("known_hosts");
        fs::write(&known, format!("* {}\n", server.host_keys()[0])).expect("ours");
        let config = rsig.dir().join("config");
        let text = format!(
            "Host silent\nHostName 127.0.0.1\nPort {}\nConnectTimeout 30\n\
             Host gone\nHostName 127.0.0.1\nPort 1\n\
             Host 127.1.0.*\nPort {}\nUser {}\nIdentityFile {}\nIdentitiesOnly yes\n\
             UserKnownHostsFile {}\nGlobalKnownHostsFile none\nStrictHostKeyChecking yes\n",
            silent.port(),
            server.port(),
            server.user(),
            server.client_key().private.display(),
            known.display(),
        );
        fs::write(&config, text).expect("ours");
        let config = config.into_os_string().into_string().expect("plain");
        Self {
            rsig,
            server,
            config,
            _silent: silent,
        }
    }

    fn words<'a>(&'a self, options: &[&'a str], hosts: &'a str, line: &'a str) -> Vec<&'a str> {
        let mut words = vec!["run", "-c", "-F", &self.config];
        words.extend(options);
        words.extend([hosts, "--", line]);
        words
    }

    fn run(&self, options: &[&str], hosts: &str, line: &str) -> Output {
        self.rsig.run(&self.words(options, hosts, line))
    }

    fn begin(&self, options: &[&str], hosts: &str, line: &str) -> Running {
        self.rsig.spawn_process(&self.words(options, hosts, line))
    }

    /// Waits until no job runs and none is recorded as running.
    fn await_no_jobs(&self) {
        let line = "while :; do sleep";
        poll_until("no job is left", STEP_TIMEOUT, || {
            let jobs = self.rsig.run(&["ps"]).stdout();
            let here = self.rsig.processes();
            let mut all = self.server.processes().into_iter().chain(here);
            let runs = all.any(|process| process.cmdline.contains(line));
            !runs && !jobs.contains(" running ")
        });
    }
}

/// The lines of one host, without their prefix.
fn lines_of<'a>(text: &'a str, host: &str) -> Vec<&'a str> {
    let label = format!("{host}: ");
    text.lines()
        .filter_map(|line| line.strip_prefix(&label))
        .collect()
}

/// A command line that exits with a status chosen by host: 0 for hosts that are not listed.
fn statuses(of: &[(&str, u8)]) -> String {
    let arms = of
        .iter()
        .map(|(host, status)| format!("*' {host} '*) exit {status};; "));
    format!("case $SSH_CONNECTION in {}esac", arms.collect::<String>())
}

/// A job that prints the signals it receives, and that only KILL ends.
const STUBBORN: &str =
    "trap 'echo int' INT; trap 'echo term' TERM; echo up; while :; do sleep 0.05; done";

#[test]
fn each_line_is_whole_and_behind_its_host() {
    let farm = Farm::start();
    let line = "i=0; while [ $i -lt 30 ]; do printf out; printf err >&2; echo \" $i\"; echo \" $i\" >&2; \
                i=$((i + 1)); done; head -c 70000 /dev/zero | tr '\\0' x; echo; printf last";
    let output = farm.run(&[], "127.1.0.[1-6],local,127.1.0.2", line);
    let hosts = (1..=6)
        .map(|number| format!("127.1.0.{number}"))
        .chain(["local".to_owned()]);
    let (out, err) = (output.ok().stdout(), output.stderr());
    let mut lines = 0;
    for host in hosts {
        let numbered = |stream: &str| (0..30).map(|i| format!("{stream} {i}")).collect::<Vec<_>>();
        let mut expected = numbered("out");
        expected.extend([
            "x".repeat(65536),
            "x".repeat(70000 - 65536),
            "last".to_owned(),
        ]);
        assert_eq!(lines_of(&out, &host), expected, "{host}");
        assert_eq!(lines_of(err, &host), numbered("err"), "{host}");
        lines += expected.len();
    }
    assert_eq!(out.lines().count(), lines);
    assert!(out.ends_with('\n'));
    farm.rsig.run(&["ps", "-aq"]).ok().stdout_is("");

    // A single host, even one given as a range, is an ordinary run. Without output, nothing is written.
    farm.run(&[], "127.1.0.[1-1]", "printf a")
        .ok()
        .stdout_is("a");
    farm.run(&[], "127.1.0.1,127.1.0.1", "printf a")
        .ok()
        .stdout_is("a");
    farm.run(&[], "127.1.0.[1-2]", "true")
        .ok()
        .stdout_is("")
        .stderr_is_empty();
}

#[test]
fn the_status_is_the_first_in_the_order_of_the_hosts() {
    let farm = Farm::start();
    let line = statuses(&[("127.1.0.2", 3), ("127.1.0.3", 4)]);
    let output = farm.run(&[], "127.1.0.[1-4]", &line);
    assert_eq!(output.code(3).stderr().lines().count(), 2, "{output}");
    output
        .stderr_has("rsig: 127.1.0.2: ended with status 3\n")
        .stderr_has("rsig: 127.1.0.3: ended with status 4\n");
    farm.run(&[], "127.1.0.[4,3,2]", &line).code(4);
    // An unreachable host does not delay the others, and counts as failed.
    let output = farm.run(
        &[],
        "127.1.0.1,gone,127.1.0.2",
        &format!("echo here; {line}"),
    );
    output
        .code(255)
        .stdout_has("127.1.0.1: here\n")
        .stdout_has("127.1.0.2: here\n");
    assert_eq!(
        lines_of(
            &format!("{}\n", output.stderr().replace("rsig: ", "")),
            "gone"
        )
        .len(),
        1,
        "{output}"
    );
    farm.run(&["-C", "/no/such"], "127.1.0.[1-2]", "true")
        .code(125)
        .stderr_has("127.1.0.1: ")
        .stderr_has("127.1.0.2: ");
    farm.rsig
        .run(&[
            "run",
            "-F",
            &farm.config,
            "127.1.0.[1-2]",
            "no-such-command",
        ])
        .code(127);
    farm.run(
        &["--timeout", "100ms"],
        "127.1.0.[1-2]",
        "while :; do sleep 0.1; done",
    )
    .code(124)
    .stderr_has("127.1.0.2: ended with status 143 (TERM), timed out");
    farm.await_no_jobs();
}

#[test]
fn standard_input_is_null() {
    let farm = Farm::start();
    let words = farm.words(&[], "127.1.0.[1-3]", "wc -c");
    let told = farm.rsig.command(&words).stdin(*b"piped").run();
    assert_eq!(told.ok().stdout().matches(": 0\n").count(), 3, "{told}");
    assert_eq!(told.stderr().matches("/dev/null").count(), 1, "{told}");
    farm.run(&[], "127.1.0.[1-2]", "wc -c")
        .ok()
        .stderr_is_empty();
    farm.run(&["--stdin", "/dev/null"], "127.1.0.[1-2]", "wc -c")
        .ok();
    for options in [
        &["--stdin", "-"][..],
        &["--stdin", "/etc/passwd"],
        &["-n", "name"],
        &["--parallel", "0"],
    ] {
        farm.run(options, "127.1.0.[1-2]", "true")
            .code(2)
            .stdout_is("")
            .stderr_has(options[0]);
    }
}

#[test]
fn signals_go_to_all() {
    let farm = Farm::start();
    let started = |run: &Running| {
        poll_until("all are up", STEP_TIMEOUT, || {
            String::from_utf8_lossy(&run.stdout_so_far())
                .matches("up\n")
                .count()
                == 4
        });
    };
    let run = farm.begin(&[], "127.1.0.[1-3],local", STUBBORN);
    started(&run);
    for count in 1..=3 {
        run.signal(Signal::SIGINT);
        poll_until("all got it", STEP_TIMEOUT, || {
            let out = String::from_utf8_lossy(&run.stdout_so_far()).into_owned();
            out.matches("int\n").count() >= 4 * count || count == 3
        });
        // A signal that follows sooner is not counted.
        std::thread::sleep(Duration::from_millis(600));
    }
    let output = run.wait();
    assert_eq!(
        output.code(137).stderr().matches("137 (KILL)").count(),
        4,
        "{output}"
    );
    farm.await_no_jobs();

    let run = farm.begin(&["--grace", "5s"], "127.1.0.[1-3],local", STUBBORN);
    started(&run);
    run.signal(Signal::SIGTERM);
    let output = run.wait();
    assert_eq!(
        output.code(137).stdout().matches("term\n").count(),
        4,
        "{output}"
    );
    farm.await_no_jobs();

    // Ctrl-Z stops the jobs and then rsig.
    let run = farm.begin(
        &[],
        "127.1.0.[1-3],local",
        "echo up; while :; do sleep 0.05; done",
    );
    started(&run);
    run.signal(Signal::SIGTSTP);
    let stat = format!("/proc/{}/stat", run.pid());
    poll_until("rsig is stopped", STEP_TIMEOUT, || {
        fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
    });
    poll_until("the jobs are stopped", STEP_TIMEOUT, || {
        let jobs = farm.rsig.run(&["ps"]).ok().stdout();
        jobs.matches(" stopped ").count() == 4
    });
    run.signal(Signal::SIGCONT);
    run.signal(Signal::SIGHUP);
    run.wait().code(129);
    farm.await_no_jobs();
}

/// Whatever stage the run has reached, and even if a host never answers.
#[test]
fn an_interrupt_ends_it_at_every_moment() {
    let farm = Farm::start();
    let line = "echo up; while :; do sleep 0.05; done";
    for delay in [0, 30, 60, 100, 150, 250, 500, 1000] {
        let run = farm.begin(&[], "127.1.0.[1-4],silent,local", line);
        poll_until("it catches signals", STEP_TIMEOUT, || {
            fs::read_to_string(format!("/proc/{}/status", run.pid())).is_ok_and(|status| {
                let caught = status
                    .lines()
                    .find_map(|line| line.strip_prefix("SigCgt:\t"));
                caught.is_some_and(|mask| {
                    u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & 2 != 0)
                })
            })
        });
        std::thread::sleep(Duration::from_millis(delay));
        run.signal(Signal::SIGINT);
        let output = run.wait();
        output.code(130).stderr_has("silent");
        farm.await_no_jobs();
    }
}

#[test]
fn parallel_and_fail_fast() {
    let farm = Farm::start();
    let alone = "mkdir alone && sleep 0.1 && rmdir alone";
    farm.run(&["--parallel", "1"], "127.1.0.[1-4]", alone).ok();
    // All at once: each job waits for the others.
    let all = "touch here-$$; until [ $(ls | grep -c here-) -ge 12 ]; do sleep 0.1; done";
    farm.run(&[], "127.1.0.[1-12]", all).ok();

    let line = format!("echo up; {}; sleep 0.1", statuses(&[("127.1.0.2", 3)]));
    let output = farm.run(&["--parallel", "1", "--fail-fast"], "127.1.0.[1-4]", &line);
    output
        .code(3)
        .stdout_is("127.1.0.1: up\n127.1.0.2: up\n")
        .stderr_has("not run on 127.1.0.[3-4]\n");
    // Jobs that still run are ended, and their status does not become the exit status.
    let line = format!(
        "{}; while :; do sleep 0.1; done",
        statuses(&[("127.1.0.3", 5)])
    );
    let start = Instant::now();
    farm.run(&["--fail-fast"], "127.1.0.[1-3]", &line).code(5);
    assert!(start.elapsed() < STEP_TIMEOUT);
    farm.await_no_jobs();
    farm.run(
        &["--parallel", "1"],
        "127.1.0.[2-4]",
        &statuses(&[("127.1.0.2", 3)]),
    )
    .code(3)
    .stderr_lacks("not run");
}

#[test]
fn equal_outputs_come_once_as_by_clush() {
    let farm = Farm::start();
    let options = format!("-F {}", farm.config);
    for line in [
        "echo same",
        "printf 'no newline'",
        "true",
        "printf 'a\\n\\nb\\n'; echo err >&2",
        "case $SSH_CONNECTION in *'.1 '*) echo one;; *) echo other; echo more;; esac",
        "case $SSH_CONNECTION in *'.1.0.2 '*) echo two;; *'.1.0.4 '*) ;; *) seq 1 20000;; esac",
    ] {
        let hosts = "127.1.0.[1-6]";
        let ours = farm.run(&["--gather"], hosts, line);
        let clush = tool("clush").args(["-b", "-q", "-w", hosts, "-o", &options, line]);
        let theirs = farm.rsig.within(clush).run();
        // clush prints the number of nodes only without -q.
        let without_counts = |text: String| {
            let lines = text.lines().map(|line| match line.split_once(" (") {
                Some((hosts, _)) if line.ends_with(')') => hosts.to_owned(),
                _ => line.to_owned(),
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(
            without_counts(ours.ok().stdout()),
            without_counts(theirs.ok().stdout()),
            "{line}"
        );
    }
    farm.run(&["--gather"], "127.1.0.[1-3]", "echo a")
        .ok()
        .stdout_is("---------------\n127.1.0.[1-3] (3)\n---------------\na\n");
    farm.run(&["--gather"], "local", "echo a")
        .ok()
        .stdout_is("---------------\nlocal\n---------------\na\n");
    kit::assert_harmless(
        farm.run(&["--gather"], "127.1.0.[1-3],gone", "echo a; exit 2")
            .code(2)
            .stderr(),
    );
}

#[test]
fn a_hundred_hosts_at_once() {
    let farm = Farm::start();
    let output = farm.run(&[], "127.1.0.[1-100]", "echo here");
    let mut lines: Vec<String> = output.ok().stdout().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    let mut expected: Vec<String> = (1..=100)
        .map(|number| format!("127.1.0.{number}: here"))
        .collect();
    expected.sort_unstable();
    assert_eq!(lines, expected);
    farm.rsig.run(&["ps", "-aq"]).ok().stdout_is("");
}

/// As in `rsig run ... | head -1`: a job that prints nothing more is ended too.
#[test]
fn a_reader_that_has_gone_ends_all() {
    let farm = Farm::start();
    let words = farm.words(
        &[],
        "127.1.0.[1-2]",
        "case $SSH_CONNECTION in *'.1.0.1 '*) seq 1 200000;; esac; while :; do sleep 0.1; done",
    );
    let rsig = env!("CARGO_BIN_EXE_rsig");
    let pipeline = tool("sh")
        .args(["-c", "\"$@\" | head -n 1", "sh", rsig])
        .args(words);
    farm.rsig
        .within(pipeline)
        .run()
        .ok()
        .stdout_is("127.1.0.1: 1\n");
    farm.await_no_jobs();
}
