//! Keepers and relays as seen by the tests, and jobs that count their signals.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::procs::Process;
use super::server::Server;
use super::site::Fixture;
use super::{STEP_TIMEOUT, poll_until};

/// A Perl program that writes a dot for each USR1, and exits with status 7 on TERM. Its handlers run
/// immediately (Perl's deferred handlers merge signals) and one at a time.
pub const COUNTER: &str = "use POSIX;
my ($all, $none) = (POSIX::SigSet->new, POSIX::SigSet->new);
$all->fillset;
sigprocmask(SIG_SETMASK, $all);
sigaction(SIGUSR1, POSIX::SigAction->new(sub { syswrite STDOUT, '.' }, $all));
sigaction(SIGTERM, POSIX::SigAction->new(sub { POSIX::_exit(7) }, $all));
syswrite STDOUT, \"ready\\n\";
sigsuspend($none) while 1";

/// The keepers that `keeper status --json` shows.
pub fn keepers(f: &Fixture) -> Vec<Value> {
    let json = f.rsig.run(&["keeper", "status", "--json"]).ok().stdout();
    serde_json::from_str(&json).expect("keeper status prints JSON")
}

pub fn keeper_pids(f: &Fixture) -> Vec<i32> {
    let mut found = f.rsig.processes();
    found.retain(|process| process.cmdline.contains("keeper-serve"));
    found.iter().map(|process| process.pid).collect()
}

/// Number of keepers that commands share. A command that waits two seconds for a shell starts a private one.
pub fn shared_keepers(f: &Fixture) -> usize {
    let mut found = f.rsig.processes();
    found.retain(|process| {
        process.cmdline.contains("keeper-serve") && !process.cmdline.contains("keepers/p")
    });
    found.len()
}

pub fn kill9(pid: i32) {
    // An error means that the process has just ended.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Waits until the job's relay accepts signals.
#[track_caller]
pub fn await_warm_relay(f: &Fixture, job: &str) {
    poll_until("the relay takes signals", STEP_TIMEOUT, || {
        let keepers = keepers(f);
        let relay = keepers
            .iter()
            .flat_map(|keeper| keeper["relays"].as_array().expect("relays"))
            .find(|r| r[0] == job);
        relay.is_some_and(|relay| relay[1] == true)
    });
}

/// Waits until the keeper knows that the server passes signals on: relays of later jobs need no probe.
#[track_caller]
pub fn await_probe(f: &Fixture) {
    let job = new_counter(f);
    await_warm_relay(f, &job);
    f.rsig.run(&["kill", "--via", "channel", &job, "USR1"]).ok();
    f.rsig.run(&["rm", "--force", &job]).ok();
}

/// Number of dots that a counter has written, read from its file.
pub fn dots_written(f: &Fixture, job: &str) -> usize {
    let out = fs::read(f.jobs_dir().join(job).join("out")).expect("the job has a log");
    out.split(|byte| *byte == b'.').count() - 1
}

pub fn new_counter(f: &Fixture) -> String {
    let job = f.spawn(&[], &["perl", "-e", COUNTER]);
    let out = f.jobs_dir().join(&job).join("out");
    poll_until("the counter is ready", STEP_TIMEOUT, || {
        fs::read(&out).is_ok_and(|out| out.starts_with(b"ready"))
    });
    job
}

/// Asserts that a job counts exactly this many signals. The job is stopped first, so signals in transit have been
/// counted.
#[track_caller]
pub fn assert_final_count(f: &Fixture, job: &str, expected: usize, what: &str) {
    poll_until(
        &format!(
            "{what}: {expected} are counted, not {}",
            dots_written(f, job)
        ),
        STEP_TIMEOUT,
        || dots_written(f, job) >= expected,
    );
    f.rsig.run(&["stop", job]).ok();
    assert_eq!(dots_written(f, job), expected, "{what}");
}

/// Processes on the host other than jobs and their supervisors.
pub fn helpers(f: &Fixture) -> Vec<Process> {
    let mut found = f.processes();
    found.retain(|process| {
        process.cmdline.ends_with("/bin/sh -s") || process.name == "cat" || process.name == "sleep"
    });
    found
}

#[track_caller]
pub fn assert_nothing_left(f: &Fixture) {
    poll_until("no helper is left on the host", STEP_TIMEOUT, || {
        helpers(f).is_empty()
    });
}

/// A fixture whose server is reached through a keeper.
pub fn with_keeper(server: Server) -> Fixture {
    let mut fixture = Fixture::with(Some(server));
    fixture.rsig.keeper = true;
    fixture
}
