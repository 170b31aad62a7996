//! Helpers for tests of failures.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Invocation, Output, Rsig, poll_until};

pub use super::STEP_TIMEOUT;

/// Maximum length of a message, in bytes.
const MESSAGE_MAX: usize = 3000;
/// Maximum resident memory of rsig, in kB.
const MEMORY_MAX: u64 = 100_000;

/// Asserts that standard error can be shown to a user: not empty, bounded, without control characters.
#[track_caller]
pub fn assert_clear_message(output: &Output) {
    let text = output.stderr();
    assert!(!text.trim().is_empty(), "no message: {output}");
    assert!(
        text.len() <= MESSAGE_MAX,
        "a message of {} bytes: {output}",
        text.len()
    );
    assert!(!text.contains("panicked"), "{output}");
    assert_harmless(text);
}

/// Runs rsig and asserts that its memory stays bounded.
#[track_caller]
pub fn run_within_memory(rsig: Invocation) -> Output {
    let shown = rsig.to_string();
    let mut running = rsig.start();
    let mut peak = 0;
    let status = PathBuf::from(format!("/proc/{}/status", running.pid()));
    poll_until(&format!("{shown} ends"), Duration::from_secs(60), || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let value = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(value.unwrap_or(0));
        running.has_ended()
    });
    assert!(peak <= MEMORY_MAX, "{peak} kB were needed");
    running.wait()
}

/// The job as `ps --json` shows it, after asking its host. None if there is no record.
#[track_caller]
pub fn job_json(rsig: &Rsig, job: &str) -> Option<Value> {
    let output = rsig.run(&["ps", "--json", job]);
    let jobs: Vec<Value> =
        serde_json::from_str(&output.stdout()).unwrap_or_else(|_| panic!("no JSON: {output}"));
    jobs.into_iter().next()
}

/// State of a job according to `ps`.
#[track_caller]
pub fn state(rsig: &Rsig, job: &str) -> String {
    job_json(rsig, job).map_or_else(
        || "no record".to_owned(),
        |job| job["state"].as_str().unwrap_or("?").to_owned(),
    )
}

/// Ids of all records, without asking a host.
#[track_caller]
pub fn recorded(rsig: &Rsig) -> Vec<String> {
    let output = rsig.run(&["ps", "-a", "--cached", "-q"]);
    output.ok().stdout().lines().map(str::to_owned).collect()
}

/// Opens the state file with the tests' own SQLite.
pub fn database(rsig: &Rsig) -> rusqlite::Connection {
    let database =
        rusqlite::Connection::open(rsig.state().join("jobs.db")).expect("the state file opens");
    database
        .busy_timeout(STEP_TIMEOUT)
        .expect("a time-out can be set");
    database
}

/// Whether a process was ended by Ctrl-C.
pub fn interrupted(status: ExitStatus) -> bool {
    status.code() == Some(130) || status.signal() == Some(Signal::SIGINT as i32)
}

/// Adds a record of a job that supposedly runs on a host.
pub fn record_on(rsig: &Rsig, id: &str, host: &str, config: &str) {
    // Creates the state file if there is none yet.
    rsig.run(&["ps", "--cached"]).ok();
    let connect = format!("{{\"config\":\"{config}\"}}");
    let statement = "INSERT INTO jobs (record) VALUES (json_object('id', ?1, 'destination', \
         json_object('host', ?2, 'connect', json(?3)), 'command', json_array('sleep', '1000'), 'dir', '/nowhere/' || ?1, \
         'state', 'running', 'pid', 4242, 'pgid', 4242, 'os', 'Linux', 'started_at', 1, 'created_at', 1))";
    database(rsig)
        .execute(statement, [id, host, &connect])
        .expect("a record");
}

/// Asserts that a text has no control characters that a terminal would act on.
#[track_caller]
pub fn assert_harmless(text: &str) {
    let bad = text.chars().find(|c| c.is_control() && *c != '\n');
    assert!(bad.is_none(), "{bad:?} in {text:?}");
}

/// Number of lines in a file; 0 if it does not exist.
pub fn lines(file: &Path) -> usize {
    fs::read(file).map_or(0, |text| text.split(|byte| *byte == b'\n').count() - 1)
}

/// A port that does not speak SSH: it sends fixed bytes to every client.
pub struct FixedServer {
    port: u16,
    closing: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What a [`FixedServer`] sends.
#[derive(Clone)]
pub enum FixedReply {
    /// Sends this once and leaves the connection open.
    Once(Vec<u8>),
    /// Sends this, then closes the connection.
    AndCloses(Vec<u8>),
    /// Sends this again and again.
    Forever(Vec<u8>),
}

impl FixedServer {
    pub fn start(says: FixedReply) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let closing = Arc::new(AtomicBool::new(false));
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (ending, streams) = (Arc::clone(&closing), Arc::clone(&open));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let (says, held) = (says.clone(), stream.try_clone().expect("a descriptor"));
                streams.lock().expect("no panic").push(held);
                std::thread::spawn(move || match says {
                    // The client may hang up at any time.
                    FixedReply::Once(bytes) => drop(stream.write_all(&bytes)),
                    FixedReply::AndCloses(bytes) => {
                        drop(stream.write_all(&bytes));
                        // A close with unread input would send a reset, which could overtake the data.
                        drop(stream.shutdown(std::net::Shutdown::Write));
                        drop(stream.read_to_end(&mut Vec::new()));
                    }
                    FixedReply::Forever(bytes) => while stream.write_all(&bytes).is_ok() {},
                });
            }
        });
        Self {
            port,
            closing,
            open,
            thread: Some(thread),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for FixedServer {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        // Wakes the accepting thread. An error means that it has ended.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        for stream in self.open.lock().expect("no panic").drain(..) {
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }
}

/// Writes a configuration for `-F` with one host on a port of this machine, plus the given lines.
pub fn config_for(rsig: &Rsig, alias: &str, port: u16, lines: &str) -> String {
    let file = rsig.dir().join(format!("config-{alias}"));
    let known = rsig.dir().join("known_hosts");
    let text = format!(
        "Host {alias}\n{lines}\nHostName 127.0.0.1\nPort {port}\nUser root\nIdentitiesOnly yes\nIdentityFile none\n\
         UserKnownHostsFile {}\nGlobalKnownHostsFile none\n",
        known.display()
    );
    fs::write(&file, text).expect("our own directory is writable");
    file.into_os_string()
        .into_string()
        .expect("our paths are UTF-8")
}
