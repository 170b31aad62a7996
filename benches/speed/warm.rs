//! Commands through a keeper that is already connected, compared with OpenSSH's client through a ControlMaster.
//!
//! Targets behind the proxy are in milliseconds; a round trip takes 100 ms.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::harness::{Fixture, Login, Server, poll_until};
use super::measure::{Figure, Unit, alone, in_turns, time};
use super::session::{Job, Session, Workspace};
use super::table::{Row, Target};

const SETTLE_MAX: Duration = Duration::from_secs(20);

/// A server that passes signals on, an rsig with a keeper, and a ControlMaster.
pub struct Warm {
    pub place: Workspace,
    control: PathBuf,
}

impl Warm {
    pub fn start(slow: bool) -> Self {
        let mut fixture = Fixture::with(Some(Server::openssh(Login::User).start()));
        fixture.rsig.keeper = true;
        let mut place = Workspace {
            fixture,
            proxy: None,
        };
        if slow {
            place.slow_down();
        }
        let control = place.fixture.rsig.dir().join("control");
        let warm = Self { place, control };
        time(&mut warm.ssh_with(&["-M", "-f", "-o", "ControlPersist=yes"], "true"));
        warm
    }

    /// OpenSSH's client through the ControlMaster.
    pub fn ssh(&self, line: &str) -> Command {
        self.ssh_with(&[], line)
    }

    fn ssh_with(&self, options: &[&str], line: &str) -> Command {
        let plain = self.place.ssh(line);
        let mut command = Command::new(plain.get_program());
        command.env("HOME", self.place.fixture.rsig.home());
        command
            .arg("-S")
            .arg(&self.control)
            .args(options)
            .args(plain.get_args());
        command
    }

    pub fn rsig(&self, words: &[&str]) -> Command {
        self.place.rsig(words)
    }

    /// Starts a job and waits until its relay accepts signals.
    fn job(&self, command: &[&str]) -> Job {
        let job = self.place.job(command);
        self.settle(&job);
        job
    }

    pub fn sleeper(&self) -> Job {
        let job = self.place.sleeper();
        self.settle(&job);
        job
    }

    fn settle(&self, job: &Job) {
        let taken = format!("[\"{}\",true]", job.id);
        poll_until("the relay is ready", SETTLE_MAX, || {
            let status = self
                .rsig(&["keeper", "status", "--json"])
                .output()
                .expect("rsig starts");
            String::from_utf8_lossy(&status.stdout).contains(&taken)
        });
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self
            .ssh_with(&["-O", "exit"], "")
            .stderr(Stdio::null())
            .status();
    }
}

fn kills(warm: &Warm, runs: usize, network: &str, target: impl Fn(&str) -> Target) -> Vec<Row> {
    let job = warm.sleeper();
    let row = |way: &str| {
        let mut kill = warm.rsig(&["kill", "--via", way, &job.id, "USR1"]);
        let mut peer = warm.ssh(&format!("kill -USR1 {}", job.pid()));
        let (rsig, peer) = in_turns(runs, &mut kill, &mut peer);
        Row {
            what: format!("warm kill by {way} / ssh -S ctl kill, {network}"),
            rsig: Figure::times(&rsig),
            peer: Some(Figure::times(&peer)),
            target: target(way),
        }
    };
    ["channel", "pid"].map(row).into()
}

pub fn on_loopback(session: &Session) -> Vec<Row> {
    kills(
        &Warm::start(false),
        session.runs(60, 15),
        "loopback",
        |_| Target::RatioAtMost(0.5),
    )
}

pub fn behind_the_proxy(session: &Session) -> Vec<Row> {
    let warm = Warm::start(true);
    let runs = session.runs(12, 5);
    let mut rows = kills(&warm, runs, "100 ms", |_| Target::AtMost(115.0));
    let job = warm.sleeper();
    let dir = job.dir.display().to_string();
    let beside = |what: &str, words: &[&str], line: &str| {
        let (mut rsig, mut peer) = (warm.rsig(words), warm.ssh(line));
        let (rsig, peer) = in_turns(runs, &mut rsig, &mut peer);
        Row {
            what: format!("warm {what}, 100 ms"),
            rsig: Figure::times(&rsig),
            peer: Some(Figure::times(&peer)),
            target: Target::AtMost(125.0),
        }
    };
    rows.push(beside(
        "ps / ssh -S ctl ps",
        &["ps"],
        &format!("ps -p {}", job.pid()),
    ));
    rows.push(beside(
        "tail -n 10 / ssh -S ctl tail",
        &["tail", "-n", "10", &job.id],
        &format!("tail -n 10 {dir}/out"),
    ));
    let ends: Vec<Duration> = (0..runs)
        .map(|_| {
            let job = warm.job(&["sleep", "3600"]);
            time(&mut warm.rsig(&["kill", "--wait", "10s", &job.id]))
        })
        .collect();
    rows.push(Row {
        what: "warm kill --wait on a job that dies at once, 100 ms".to_owned(),
        rsig: Figure::times(&ends),
        peer: None,
        target: Target::AtMost(125.0),
    });
    let words = warm.place.fixture.words("spawn", &[], &["--", "true"]);
    rows.push(Row {
        what: "warm spawn, 100 ms".to_owned(),
        rsig: Figure::times(&spaced(runs, || time(&mut warm.rsig(&words)))),
        peer: None,
        target: Target::AtMost(125.0),
    });
    rows.push(end_of_a_job(&warm, runs));
    rows
}

/// Times with a pause before each. Without it a command would wait for the spare shell that the previous one used up.
fn spaced(runs: usize, mut one: impl FnMut() -> Duration) -> Vec<Duration> {
    (0..runs)
        .map(|_| {
            thread::sleep(Duration::from_millis(500));
            one()
        })
        .collect()
}

/// Time from the end of a job to the end of the `wait` for it.
fn end_of_a_job(warm: &Warm, runs: usize) -> Row {
    let times: Vec<Duration> = (0..runs)
        .map(|_| {
            let job = warm.job(&["sleep", "3600"]);
            let mut wait = warm
                .rsig(&["wait", &job.id])
                .stdout(Stdio::null())
                .spawn()
                .expect("rsig starts");
            // By then `wait` has sent its only request and waits for the reply.
            thread::sleep(Duration::from_millis(300));
            let pid = nix::unistd::Pid::from_raw(job.pid().parse().expect("a pid"));
            let start = Instant::now();
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the job runs");
            wait.wait().expect("it is our child");
            start.elapsed()
        })
        .collect();
    Row {
        what: "from a job's end to wait's, 100 ms".to_owned(),
        rsig: Figure::times(&times),
        peer: None,
        target: Target::AtMost(70.0),
    }
}

/// Many jobs with one command, and the keeper's memory.
pub fn many(session: &Session) -> Vec<Row> {
    let warm = Warm::start(true);
    warm.place
        .proxy
        .as_ref()
        .expect("the place has a proxy")
        .set_delay(Duration::ZERO);
    let jobs: Vec<Job> = (0..100).map(|_| warm.place.sleeper()).collect();
    jobs.iter().take(6).for_each(|job| warm.settle(job));
    warm.place.slow_down_again();
    let mut words = vec!["kill", "-s", "USR1"];
    words.extend(jobs.iter().map(|job| job.id.as_str()));
    let times = alone(session.runs(8, 3), &mut warm.rsig(&words));
    vec![
        Row {
            what: "100 jobs signalled by one command, 100 ms".to_owned(),
            rsig: Figure::times(&times),
            peer: None,
            target: Target::AtMost(400.0),
        },
        Row {
            what: "the keeper's own memory with 6 relays".to_owned(),
            rsig: Figure::of(Unit::Megabytes, vec![anonymous_memory(&warm)]),
            peer: None,
            target: Target::AtMost(8.0),
        },
    ]
}

/// `RssAnon` of the keeper in megabytes (proc(5)).
fn anonymous_memory(warm: &Warm) -> f64 {
    let all = warm.place.fixture.rsig.processes();
    let keeper = all
        .iter()
        .find(|process| process.cmdline.contains("keeper-serve"))
        .expect("a keeper");
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", keeper.pid)).expect("the keeper runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("Linux says it");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<f64>()
        .expect("a number")
        / 1e3
}
