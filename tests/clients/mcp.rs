//! A client of `rsig mcp`: a script on the Python SDK that takes requests on its standard input.

use serde_json::{Value, json};

use super::{file, python};
use crate::harness::{Fixture, Process, Running, STEP_TIMEOUT, poll_until, procs};

/// A client of `rsig mcp`, together with its server.
pub struct Mcp {
    client: Running,
    answers: usize,
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "arguments are made up in the call"
)]
impl Mcp {
    #[track_caller]
    pub fn start(f: &Fixture, options: &[&str]) -> Self {
        let client = python("python")
            .arg("-u")
            .arg(file("mcp_client.py"))
            .arg(env!("CARGO_BIN_EXE_rsig"));
        let client = f
            .rsig
            .within(client.args(f.server_words("mcp", options)))
            .limit(STEP_TIMEOUT * 3);
        Self {
            client: client.stdin_open().start(),
            answers: 0,
        }
    }

    /// Sends a request to the script and returns its answer.
    #[track_caller]
    pub fn request(&mut self, order: &Value) -> Value {
        self.client.write(format!("{order}\n"));
        self.answers += 1;
        let mut answer = None;
        let client = &mut self.client;
        let nth = self.answers;
        poll_until(&format!("an answer to {order}"), STEP_TIMEOUT * 2, || {
            let ended = client.has_ended();
            let text = client.stdout_so_far();
            answer = text
                .split_inclusive(|byte| *byte == b'\n')
                .nth(nth - 1)
                .map(<[u8]>::to_vec);
            let whole = answer.as_ref().is_some_and(|line| line.ends_with(b"\n"));
            assert!(
                whole || !ended,
                "the client failed: {}",
                client.stderr_so_far()
            );
            whole
        });
        serde_json::from_slice(&answer.unwrap_or_default()).expect("the client speaks JSON")
    }

    /// Calls a tool, which must succeed, and returns its answer.
    #[track_caller]
    pub fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let answer = self.request(&json!({ "do": "call", "tool": tool, "arguments": arguments }));
        assert_ok(&answer)
    }

    /// Calls a tool, which must fail with this kind of error, and returns the message.
    #[track_caller]
    pub fn call_fails(&mut self, tool: &str, arguments: Value, kind: &str) -> String {
        let answer = self.request(&json!({ "do": "call", "tool": tool, "arguments": arguments }));
        assert_eq!(answer["is_error"], true, "{answer}");
        let told = &answer["answer"];
        assert_eq!(
            (&told["ok"], &told["error"]["kind"]),
            (&false.into(), &kind.into()),
            "{answer}"
        );
        told["error"]["message"]
            .as_str()
            .expect("a message is text")
            .to_owned()
    }

    /// Makes many calls at once, all of which must succeed.
    #[track_caller]
    pub fn calls(&mut self, calls: &[(&str, Value)]) -> Vec<Value> {
        let answers = self.request(&json!({ "do": "calls", "calls": calls }));
        answers
            .as_array()
            .expect("an answer each")
            .iter()
            .map(assert_ok)
            .collect()
    }

    /// The server's process.
    #[track_caller]
    pub fn server(&self) -> Process {
        let mut found = None;
        let pid = self.client.pid();
        poll_until("the server runs", STEP_TIMEOUT, || {
            found = procs::all()
                .into_iter()
                .find(|process| process.ppid == pid && process.name == "rsig");
            found.is_some()
        });
        found.expect("it was found")
    }

    /// Kills the client, so that it can't announce its exit.
    pub fn kill(self) {
        self.client.signal(nix::sys::signal::Signal::SIGKILL);
        drop(self);
    }

    /// Ends the client normally. Its library closes the server's input, and kills a server that does not end soon.
    #[track_caller]
    pub fn close(self) {
        self.client.wait().ok();
    }
}

#[track_caller]
fn assert_ok(answer: &Value) -> Value {
    assert_eq!(
        (&answer["is_error"], &answer["answer"]["ok"]),
        (&false.into(), &true.into()),
        "{answer}"
    );
    assert!(answer["answer"]["error"].is_null(), "{answer}");
    // The text is for clients that do not support structured answers.
    let text: Value =
        serde_json::from_str(answer["text"][0].as_str().expect("text")).expect("JSON as text");
    assert_eq!(text, answer["answer"]);
    answer["answer"].clone()
}
