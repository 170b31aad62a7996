//! What a user sees on a terminal, what a pipe gets, and Ctrl-C.

use std::fs;

use crate::harness::tty::CTRL_C;
use crate::harness::{Fixture, Login, Rsig, Server, Tty, poll_until, tool};
use crate::kit::{
    self, FixedReply, FixedServer, STEP_TIMEOUT, assert_harmless, config_for, interrupted,
    record_on,
};

/// A machine with records of a few jobs.
fn with_jobs() -> Rsig {
    let rsig = Rsig::new();
    let long = "x".repeat(300);
    let ended = rsig
        .run(&["spawn", "local", "--", "sh", "-c", "exit 3"])
        .ok()
        .line();
    rsig.run(&["wait", &ended]).code(3);
    rsig.run(&[
        "spawn",
        "-n",
        "a-name-that-is-rather-long",
        "local",
        "--",
        "sleep",
        "1000",
    ])
    .ok();
    rsig.run(&[
        "spawn",
        "local",
        "--",
        "sh",
        "-c",
        &format!("sleep 1000; : \x1b[31m\n{long} \u{2028}\u{4e16}"),
    ])
    .ok();
    rsig
}

/// The lines of the table that a finished command has left on the screen.
#[track_caller]
fn table(mut terminal: Tty) -> Vec<String> {
    assert!(terminal.wait().success(), "{}", terminal.text());
    let text = terminal.text();
    // The spinner may precede the table, on the same line.
    let table = text.find("ID").expect("a table");
    text[table..].lines().map(str::to_owned).collect()
}

#[test]
fn a_table_fits_its_terminal() {
    let rsig = with_jobs();
    for columns in [40, 80, 132] {
        for words in [&["ps", "-a"][..], &["ps", "-a", "--cached"]] {
            let lines = table(rsig.command(words).tty(columns, 24));
            assert_eq!(lines.len(), 4, "one line a job: {lines:?}");
            // The wide character counts as two, so there is room for it.
            let wide = lines
                .iter()
                .map(|line| line.chars().count())
                .max()
                .expect("lines");
            assert!(wide <= usize::from(columns), "{columns}: {lines:?}");
            if columns >= 80 {
                assert!(
                    lines.iter().any(|line| line.contains("exited 3")),
                    "{lines:?}"
                );
            }
        }
    }
    let signals = table_of_signals(&rsig);
    assert!(
        signals.iter().all(|line| line.chars().count() <= 80),
        "{signals:?}"
    );
}

fn table_of_signals(rsig: &Rsig) -> Vec<String> {
    let mut terminal = rsig.command(&["kill", "-l"]).tty(80, 24);
    assert!(terminal.wait().success());
    terminal.text().lines().map(str::to_owned).collect()
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let rsig = with_jobs();
    let shown = |name: &str, value: &str| {
        // By env(1), since the harness gives the terminal a TERM of its own.
        let program = tool("env")
            .arg(format!("{name}={value}"))
            .arg(env!("CARGO_BIN_EXE_rsig"));
        // Without a question to the hosts: a spinner would clear its line by an escape sequence.
        let command = rsig.within(program.args(["ps", "-a", "--cached"]));
        let mut terminal = command.tty(80, 24);
        assert!(terminal.wait().success());
        String::from_utf8_lossy(&terminal.raw()).contains("\x1b[")
    };
    assert!(shown("UNRELATED", "1"));
    assert!(!shown("NO_COLOR", "1"));
    assert!(
        shown("NO_COLOR", ""),
        "an empty one says nothing (no-color.org)"
    );
    assert!(!shown("TERM", "dumb"));
    // A pipe gets plain text, and all of it.
    let output = rsig.run(&["ps", "-a"]);
    assert_harmless(&output.ok().stdout());
    output
        .stderr_is_empty()
        .stdout_has(&"x".repeat(300))
        .stdout_has("\\x1b[31m");
    assert_harmless(&rsig.run(&["kill", "-l"]).ok().stdout());
    assert_harmless(rsig.run(&["ps", "nothing"]).code(3).stderr());
}

#[test]
fn a_reader_that_goes_ends_it_quietly() {
    let rsig = with_jobs();
    // More than a pipe holds.
    let copy = "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
        INSERT INTO jobs (record)
        SELECT json_set('{\"destination\":{\"host\":\"local\"},\"command\":[\"true\"],\"state\":\"exited\",\"created_at\":1}',
            '$.id', printf('zzzz%04d', i)) FROM n";
    kit::database(&rsig).execute(copy, []).expect("records");
    let line = "set -o pipefail; \"$@\" | head -c 1; echo \"${PIPESTATUS[0]}\"";
    for words in [
        &["ps", "-a", "--cached"][..],
        &["ps", "-a", "--cached", "--json"],
        &["ps", "-a", "--cached", "-q"],
    ] {
        let shell = tool("bash")
            .args(["-c", line, "bash", env!("CARGO_BIN_EXE_rsig")])
            .args(words);
        let output = rsig.within(shell).run();
        output.ok().stderr_is_empty();
        let text = output.stdout();
        // 141 means ended by PIPE, as for any other program.
        assert!(
            text.ends_with("141\n"),
            "{:?} ... {:?}",
            &text[..40.min(text.len())],
            text.lines().last()
        );
    }
    let endless = rsig
        .run(&[
            "spawn",
            "-c",
            "local",
            "yes | head -c 20000000; exec sleep 1000",
        ])
        .ok()
        .line();
    let shell = tool("bash").args([
        "-c",
        line,
        "bash",
        env!("CARGO_BIN_EXE_rsig"),
        "tail",
        "-f",
        "-n",
        "all",
        &endless,
    ]);
    let output = rsig.within(shell).run();
    rsig.run(&["rm", "--force", &endless]).ok();
    output.ok().stderr_is_empty().stdout_is("y141\n");
}

#[test]
fn ctrl_c_ends_a_wait_and_a_tail_and_leaves_the_job_alone() {
    let f = Fixture::with(Some(Server::openssh(Login::User).start()));
    let here = f
        .rsig
        .run(&["spawn", "-c", "local", "echo ready; exec sleep 1000"])
        .ok()
        .line();
    let there = f.spawn(&[], &["sh", "-c", "echo ready; exec sleep 1000"]);
    for job in [&here, &there] {
        let mut tail = f.rsig.command(&["tail", "-f", job]).tty(80, 24);
        tail.wait_for("ready");
        tail.send(CTRL_C);
        let status = tail.wait();
        assert!(interrupted(status), "{status}: {}", tail.text());

        let asks = || {
            f.processes()
                .iter()
                .chain(&f.rsig.processes())
                .any(|p| p.cmdline.ends_with("/bin/sh -s"))
        };
        poll_until("the last command's script has gone", STEP_TIMEOUT, || {
            !asks()
        });
        let mut wait = f.rsig.command(&["wait", job]).tty(80, 24);
        poll_until("it asks the host", STEP_TIMEOUT, asks);
        wait.send(CTRL_C);
        let status = wait.wait();
        assert!(interrupted(status), "{status}: {}", wait.text());
        assert_eq!(kit::state(&f.rsig, job), "running");
    }
}

#[test]
fn a_spinner_turns_on_a_terminal_and_nowhere_else() {
    let rsig = Rsig::new();
    let silent = FixedServer::start(FixedReply::Once(vec![]));
    let config = config_for(&rsig, "slow", silent.port(), "ConnectTimeout 2");
    record_on(&rsig, "00000000", "slow", &config);
    let text = "asking the host";
    let mut terminal = rsig.command(&["kill", "00000000"]).tty(80, 24);
    terminal.wait_for(text);
    assert_eq!(terminal.wait().code(), Some(255));
    let (last, raw) = (terminal.text(), terminal.raw());
    let raw = String::from_utf8_lossy(&raw);
    // The bytes with which the spinner clears its line.
    let is_cleared = raw
        .split("rsig:")
        .next()
        .is_some_and(|before| before.ends_with("\r\x1b[2K"));
    assert!(
        is_cleared
            && last
                .lines()
                .last()
                .is_some_and(|line| line.contains("slow")),
        "the message stands alone at the end: {raw:?}"
    );
    for quiet in [&["kill", "-q", "00000000"][..], &["kill", "-v", "00000000"]] {
        let mut terminal = rsig.command(quiet).tty(80, 24);
        assert_eq!(terminal.wait().code(), Some(255));
        assert!(!terminal.text().contains(text), "{}", terminal.text());
    }
    let output = rsig.run(&["kill", "00000000"]);
    output.code(255).stderr_lacks(text);
    assert_harmless(output.stderr());
    assert!(
        fs::read_dir(rsig.home())
            .expect("the home")
            .next()
            .is_none(),
        "nothing was left at home"
    );
}
