//! What the tests ask about jobs, through rsig and directly on the host.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::{Fixture, Output, Process, poll_until};

pub use super::STEP_TIMEOUT;

/// Keys of a job in `ps --json`, in this order.
pub const JOB_KEYS: [&str; 19] = [
    "id",
    "name",
    "host",
    "command",
    "cwd",
    "dir",
    "state",
    "pid",
    "pgid",
    "os",
    "started_at",
    "finished_at",
    "exit_status",
    "exit_signal",
    "last_signal",
    "checked_at",
    "prefix",
    "jobs_dir",
    "ended_by",
];

/// A Perl program that writes the name of each signal it receives, one per line, exactly as often as it receives it.
/// Its handlers run immediately (Perl's deferred handlers merge signals) and one at a time.
pub const LISTENER: &str = r#"use POSIX; use Config;
my ($all, $none) = (POSIX::SigSet->new, POSIX::SigSet->new);
$all->fillset;
my $action = POSIX::SigAction->new(sub { syswrite STDOUT, "$_[0]\n" }, $all);
sigprocmask(SIG_SETMASK, $all);
my $number = 0;
for my $name (split " ", $Config{sig_name}) {
    sigaction($number, $action) if $number < 65 and $name !~ /^(ZERO|KILL|STOP|CHLD|CONT|NUM32|NUM33)$/;
    $number++;
}
syswrite STDOUT, "ready\n";
sigsuspend($none) while 1"#;

impl Fixture {
    /// Runs rsig and parses its output: one JSON value per line.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Vec<Value> {
        json_lines(&self.rsig.run(words))
    }

    /// The job as `ps --json` shows it.
    #[track_caller]
    pub fn job(&self, job: &str) -> Value {
        let output = self.rsig.run(&["ps", "--json", job]);
        let jobs: Value = serde_json::from_str(&output.ok().line())
            .unwrap_or_else(|error| panic!("{error}: {output}"));
        assert_eq!(jobs.as_array().map(Vec::len), Some(1), "{output}");
        jobs[0].clone()
    }

    #[track_caller]
    pub fn state(&self, job: &str) -> String {
        self.job(job)["state"]
            .as_str()
            .expect("a state is text")
            .to_owned()
    }

    #[track_caller]
    pub fn await_state(&self, job: &str, state: &str) {
        poll_until(&format!("{job} is {state}"), STEP_TIMEOUT, || {
            self.state(job) == state
        });
    }

    /// Path of one of a job's files on its host.
    pub fn file(&self, job: &str, name: &str) -> PathBuf {
        self.jobs_dir().join(job).join(name)
    }

    /// Whether the job's end is recorded on its host: status and time. Until then the file holds blanks. Reads the
    /// file, not rsig's output.
    pub fn has_ended(&self, job: &str) -> bool {
        fs::read_to_string(self.file(job, "status"))
            .is_ok_and(|status| status.split_whitespace().count() >= 2)
    }

    /// What the job has written to its standard output so far, read from its file.
    pub fn written(&self, job: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.file(job, "out")).unwrap_or_default()).into_owned()
    }

    #[track_caller]
    pub fn await_written(&self, job: &str, text: &str) {
        poll_until(&format!("{job} writes {text:?}"), STEP_TIMEOUT, || {
            self.written(job) == text
        });
    }

    /// Starts the [`LISTENER`].
    #[track_caller]
    pub fn spawn_listener(&self) -> String {
        let job = self.spawn(&[], &["perl", "-e", LISTENER]);
        self.await_written(&job, "ready\n");
        job
    }

    /// Starts a job that exits with `status` once [`Latch::open`] is called.
    #[track_caller]
    pub fn spawn_gated(&self, options: &[&str], status: i32) -> (String, Latch) {
        let gate = Latch(self.job_home().join(format!("gate-{}", unique())));
        let line = format!(
            "until [ -e {} ]; do sleep 0.01; done; exit {status}",
            gate.0.display()
        );
        (self.spawn(options, &["sh", "-c", &line]), gate)
    }

    /// The job's first process.
    #[track_caller]
    pub fn process(&self, job: &str) -> Process {
        let pid = fs::read_to_string(self.file(job, "pid")).expect("the pid file");
        let pid = pid
            .split(' ')
            .next()
            .and_then(|pid| pid.parse().ok())
            .expect("a pid");
        Process::find(pid).unwrap_or_else(|| panic!("the process of {job} is gone"))
    }

    /// Waits until the job's shell has started that program. Before its vfork(2) returns, dash (0.5.12) may lose an
    /// INT.
    #[track_caller]
    pub fn await_child(&self, job: &str, program: &str) {
        poll_until(&format!("{job} runs {program}"), STEP_TIMEOUT, || {
            let job = self.process(job).pid;
            let is_child = |process: &Process| process.ppid == job && process.name == program;
            self.processes().iter().any(is_child)
        });
    }

    /// The shell that is the job's supervisor.
    #[track_caller]
    pub fn supervisor(&self, job: &str) -> Process {
        Process::find(self.process(job).ppid).expect("the supervisor is the job's parent")
    }

    #[track_caller]
    pub fn await_no_processes(&self) {
        poll_until("nothing is left on the host", STEP_TIMEOUT, || {
            self.processes().is_empty()
        });
    }

    /// Ids of the jobs whose files are on the host.
    pub fn job_ids_on_host(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.jobs_dir()) else {
            return vec![];
        };
        entries
            .map(|entry| entry.expect("readable"))
            // A foreground job leaves a tombstone for a minute, for commands that wait for the job.
            .filter(|entry| !entry.path().join("gone").exists())
            .map(|entry| entry.file_name().into_string().expect("plain names"))
            .collect()
    }

    /// Polls until the host holds nothing of any job but tombstones. The files of a job in the foreground are removed
    /// after its command has exited.
    #[track_caller]
    pub fn await_only_tombstones(&self) {
        const TOMBSTONE: [&str; 6] = ["gone", "status", "pid", "made", "meta", "supervisor"];
        poll_until("only tombstones are left", STEP_TIMEOUT, || {
            let Ok(jobs) = fs::read_dir(self.jobs_dir()) else {
                return true;
            };
            jobs.flatten().all(|job| {
                let files = fs::read_dir(job.path()).into_iter().flatten().flatten();
                let names: Vec<_> = files.map(|file| file.file_name()).collect();
                names.iter().any(|name| name == "gone")
                    && names
                        .iter()
                        .all(|name| TOMBSTONE.iter().any(|kept| name == kept))
            })
        });
    }

    /// Whether the host is reached over SSH.
    pub fn is_remote(&self) -> bool {
        self.server.is_some()
    }
}

/// A file that a job waits for.
pub struct Latch(PathBuf);

impl Latch {
    pub fn open(&self) {
        fs::write(&self.0, "").expect("the job's home is writable");
    }
}

fn unique() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[track_caller]
pub fn json_lines(output: &Output) -> Vec<Value> {
    let parse =
        |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {output}"));
    output.stdout().lines().map(parse).collect()
}

/// Some fields of an object, as an array.
pub fn pick<const N: usize>(object: &Value, names: [&str; N]) -> Value {
    names.map(|name| object[name].clone()).to_vec().into()
}

/// The top-level keys of an object, in the order in which they were printed.
pub fn keys(text: &str) -> Vec<String> {
    // serde_json sorts keys, so the text is scanned: a top-level key is a string followed by `:`, at depth 1.
    let mut keys = Vec::new();
    let (mut depth, mut start, mut string, mut escaped) = (0, 0, false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if string => escaped = true,
            '"' => {
                string = !string;
                if string {
                    start = at + 1;
                } else if depth == 1 && text[at + 1..].starts_with(':') {
                    keys.push(text[start..at].to_owned());
                }
            }
            '{' | '[' if !string => depth += 1,
            '}' | ']' if !string => depth -= 1,
            _ => {}
        }
    }
    keys
}
