//! Commands in a loop, as scripts, agents and programs run them. The figures are means, so that a slow command among
//! fast ones counts. The peer, in turn with them, is `true` through OpenSSH's client with a ControlMaster.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::harness::poll_until;
use super::measure::{Figure, Unit, time};
use super::session::{Job, Session};
use super::table::{Row, Target};
use super::warm::Warm;

/// Number of commands in a block; a block of the peer follows.
const BLOCK_SIZE: usize = 5;

/// Mean times of `blocks` blocks of `one`, and of the peer's blocks in between. One block of each goes first and is not
/// counted.
fn means(blocks: usize, one: &mut dyn FnMut() -> Duration, peer: &mut Command) -> (Figure, Figure) {
    let mean = |times: Vec<Duration>| {
        let sum: Duration = times.iter().sum();
        sum.as_secs_f64() * 1e3 / f64::from(u32::try_from(times.len()).unwrap_or(1))
    };
    let mut both = || {
        (
            mean((0..BLOCK_SIZE).map(|_| one()).collect()),
            mean((0..BLOCK_SIZE).map(|_| time(peer)).collect()),
        )
    };
    both();
    let (ours, theirs) = (0..blocks).map(|_| both()).unzip();
    let figure = |values| Figure::of(Unit::Milliseconds, values);
    (figure(ours), figure(theirs))
}

/// Target of a row: on loopback a ratio to the peer, at 100 ms a time in milliseconds.
type Goal = (f64, f64);

struct Sequence<'a> {
    warm: &'a Warm,
    slow: bool,
    blocks: usize,
    rows: Vec<Row>,
}

impl Sequence<'_> {
    fn row(&mut self, what: &str, goal: Goal, one: &mut dyn FnMut() -> Duration) {
        let (rsig, peer) = means(self.blocks, one, &mut self.warm.ssh("true"));
        let (network, target) = if self.slow {
            ("100 ms", Target::AtMost(goal.1))
        } else {
            ("loopback", Target::RatioAtMost(goal.0))
        };
        self.rows.push(Row {
            what: format!("{what} in a loop / ssh -S ctl true, {network}"),
            rsig,
            peer: Some(peer),
            target,
        });
    }

    fn command(&mut self, what: &str, goal: Goal, words: &[&str]) {
        let mut command = self.warm.rsig(words);
        self.row(what, goal, &mut || time(&mut command));
    }
}

fn commands(session: &Session, slow: bool) -> Vec<Row> {
    let warm = Warm::start(slow);
    let job = warm.sleeper();
    let mut sequence = Sequence {
        warm: &warm,
        slow,
        blocks: session.runs(if slow { 6 } else { 12 }, 3),
        rows: Vec::new(),
    };
    for way in ["channel", "pid"] {
        let words = ["kill", "--via", way, &job.id, "USR1"];
        sequence.command(&format!("kill by {way}"), (0.45, 106.0), &words);
    }
    sequence.command("ps", (0.6, 110.0), &["ps"]);
    let tail = ["tail", "-n", "10", &job.id];
    sequence.command("tail -n 10", (0.8, 110.0), &tail);
    let spawn = warm.place.fixture.words("spawn", &[], &["--", "true"]);
    sequence.command("spawn", (1.4, 115.0), &spawn);
    let run = warm.place.fixture.words("run", &[], &["--", "true"]);
    sequence.command("run true", (1.6, 118.0), &run);
    let mut jobs: Vec<Job> = (0..BLOCK_SIZE * (sequence.blocks + 1))
        .map(|_| warm.place.job(&["sleep", "3600"]))
        .collect();
    sequence.row(
        "kill --wait of a job that dies at once",
        (1.0, 112.0),
        &mut || {
            let job = jobs.pop().expect("one for each");
            time(&mut warm.rsig(&["kill", "--wait", "10s", &job.id]))
        },
    );
    let kill = ["kill", &job.id, "USR1"];
    let mut mixed = [&kill[..], &["ps"], &tail, &spawn, &run]
        .into_iter()
        .cycle();
    sequence.row("these mixed", (1.1, 112.0), &mut || {
        time(&mut warm.rsig(mixed.next().unwrap_or_default()))
    });
    sequence.rows
}

pub fn on_loopback(session: &Session) -> Vec<Row> {
    commands(session, false)
}

pub fn behind_the_proxy(session: &Session) -> Vec<Row> {
    commands(session, true)
}

/// An MCP client of `rsig mcp`.
struct Mcp {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    number: u64,
}

impl Mcp {
    fn start(warm: &Warm) -> Self {
        let mut command = warm.rsig(&["mcp"]);
        command
            .args(&warm.place.fixture.connect)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("rsig starts");
        let mut mcp = Self {
            input: child.stdin.take().expect("a pipe"),
            output: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
            number: 0,
        };
        mcp.ask(
            "initialize",
            &json!({
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": { "name": "bench", "version": "1" },
            }),
        );
        mcp.say(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }));
        mcp
    }

    fn say(&mut self, message: &Value) {
        writeln!(self.input, "{message}").expect("rsig mcp reads");
    }

    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.number += 1;
        let message =
            json!({ "jsonrpc": "2.0", "id": self.number, "method": method, "params": params });
        self.say(&message);
        let mut line = String::new();
        self.output.read_line(&mut line).expect("rsig mcp answers");
        serde_json::from_str::<Value>(&line).expect("JSON")["result"].take()
    }

    fn time(&mut self, tool: &str, arguments: &Value) -> Duration {
        let start = Instant::now();
        let result = self.ask(
            "tools/call",
            &json!({ "name": tool, "arguments": arguments }),
        );
        let time = start.elapsed();
        assert_ne!(result["isError"], true, "{tool}: {result}");
        time
    }
}

impl Drop for Mcp {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Time of a request over the socket of `rsig serve`, from connecting to the end of the response.
fn request(socket: &std::path::Path, method: &str, path: &str, body: &str) -> Duration {
    let start = Instant::now();
    let mut stream = UnixStream::connect(socket).expect("rsig serve listens");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("rsig serve reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("rsig serve answers");
    assert!(
        answer.starts_with(b"HTTP/1.1 2"),
        "{method} {path}: {}",
        String::from_utf8_lossy(&answer)
    );
    start.elapsed()
}

pub fn servers(session: &Session) -> Vec<Row> {
    let mut rows = Vec::new();
    for slow in [false, true] {
        let warm = Warm::start(slow);
        let (job, host) = (warm.sleeper(), warm.place.fixture.host.clone());
        let mut sequence = Sequence {
            warm: &warm,
            slow,
            blocks: session.runs(6, 3),
            rows: Vec::new(),
        };
        let mut mcp = Mcp::start(&warm);
        let calls = [
            (
                "ssh_signal",
                0.45,
                108.0,
                json!({ "job_id": job.id, "signal": "USR1" }),
            ),
            (
                "ssh_exec",
                1.6,
                118.0,
                json!({ "host": host, "command": "true" }),
            ),
            ("ssh_tail", 0.8, 112.0, json!({ "job_id": job.id })),
            (
                "ssh_spawn",
                1.4,
                115.0,
                json!({ "host": host, "command": "true" }),
            ),
        ];
        for (tool, ratio, ms, arguments) in calls {
            let what = format!("MCP {tool}");
            sequence.row(&what, (ratio, ms), &mut || mcp.time(tool, &arguments));
        }
        let socket = warm.place.fixture.rsig.state().join("serve.sock");
        let mut serve = warm
            .rsig(&["serve"])
            .args(&warm.place.fixture.connect)
            .stderr(Stdio::null())
            .spawn()
            .expect("rsig starts");
        poll_until("rsig serve listens", Duration::from_secs(10), || {
            UnixStream::connect(&socket).is_ok()
        });
        let (id, spawn) = (
            &job.id,
            json!({ "host": host, "command": "true" }).to_string(),
        );
        let routes = [
            (
                "POST",
                format!("/processes/{id}/_signal/USR1"),
                "",
                0.45,
                108.0,
            ),
            ("GET", format!("/processes/{id}"), "", 0.6, 112.0),
            ("GET", format!("/processes/{id}/_log"), "", 0.8, 112.0),
            ("POST", "/processes".to_owned(), spawn.as_str(), 1.4, 115.0),
        ];
        for (method, path, body, ratio, ms) in routes {
            let what = format!("HTTP {method} {}", path.replace(id.as_str(), "ID"));
            sequence.row(&what, (ratio, ms), &mut || {
                request(&socket, method, &path, body)
            });
        }
        serve.kill().expect("it runs");
        serve.wait().expect("it is our child");
        rows.append(&mut sequence.rows);
    }
    rows
}
