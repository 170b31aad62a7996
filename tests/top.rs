//! `rsig top` in a real terminal: tmux renders its output.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Fixture, Process, Rsig, Site, tool};
use crate::jobs::{LISTENER, STEP_TIMEOUT};
use crate::kit::{FixedReply, FixedServer, assert_harmless, config_for, record_on};

/// A tmux server with one window. A shell in it runs `rsig top`, then prints its exit status and whether the terminal
/// is as before.
struct Screen<'a> {
    rsig: &'a Rsig,
    socket: PathBuf,
}

const WRAPPER: &str = r#"before=$(stty -g); "$@"; echo "ended with $?"; [ "$(stty -g)" = "$before" ] && echo "as before"
    exec sleep 1000"#;

impl<'a> Screen<'a> {
    fn start(rsig: &'a Rsig, columns: u16, rows: u16, options: &[&str], env: &str) -> Self {
        let screen = Self {
            rsig,
            socket: rsig.dir().join("tmux"),
        };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let size = ["new-session", "-d", "-x", &columns, "-y", &rows];
        let program = [
            "env",
            env,
            "sh",
            "-c",
            WRAPPER,
            "sh",
            env!("CARGO_BIN_EXE_rsig"),
            "top",
            "--interval",
            "100ms",
        ];
        screen.tmux(&[&size[..], &program, options].concat());
        screen
    }

    #[track_caller]
    fn tmux(&self, words: &[&str]) -> String {
        let tmux = tool("tmux")
            .arg("-u")
            .arg("-S")
            .arg(&self.socket)
            .args(["-f", "/dev/null"]);
        self.rsig.within(tmux.args(words)).run().ok().stdout()
    }

    fn lines(&self) -> Vec<String> {
        self.tmux(&["capture-pane", "-p"])
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        self.wait_until(text, |lines| lines.iter().any(|line| line.contains(text)));
    }

    #[track_caller]
    fn wait_until(&self, what: &str, holds: impl Fn(&[String]) -> bool) {
        let mut lines = Vec::new();
        let start = std::time::Instant::now();
        while !holds(&lines) {
            assert!(
                start.elapsed() < STEP_TIMEOUT,
                "never {what:?}, but:\n{}",
                lines.join("\n")
            );
            lines = self.lines();
        }
    }

    /// The words of a job's row.
    fn row(&self, job: &str) -> Vec<String> {
        let lines = self.lines();
        let row = lines
            .iter()
            .find(|line| line.get(1..).is_some_and(|line| line.starts_with(job)));
        row.map_or_else(Vec::new, |row| {
            row.split_whitespace().map(str::to_owned).collect()
        })
    }

    #[track_caller]
    fn wait_for_row(&self, job: &str, words: &[&str]) {
        self.wait_until(&format!("{words:?} of {job}"), |_| {
            let row = self.row(job);
            words.iter().all(|word| row.iter().any(|cell| cell == word))
        });
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn top(&self) -> Process {
        let is_top = |process: &Process| process.cmdline.starts_with(env!("CARGO_BIN_EXE_rsig"));
        self.rsig
            .processes()
            .into_iter()
            .find(is_top)
            .expect("it runs")
    }

    /// Waits until `rsig top` has ended with this status, and asserts that the terminal is as before.
    #[track_caller]
    fn await_end(&self, status: i32) {
        self.wait_for("as before");
        self.wait_for(&format!("ended with {status}"));
        let told = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
        assert_eq!(told.trim_end(), "0 1", "the usual screen, with a cursor");
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        // A second panic would abort the whole test binary. The directory's own guard ends tmux too.
        if std::thread::panicking() {
            return;
        }
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn jobs_are_watched_and_signalled_by_a_keeper() {
    jobs_are_watched_and_signalled(&Site::OpenSshUser.start_with_keeper());
}

#[test]
fn jobs_are_watched_and_signalled_without_one() {
    jobs_are_watched_and_signalled(&Site::OpenSshUser.start());
}

fn jobs_are_watched_and_signalled(f: &Fixture) {
    let listener = f.spawn(&["-n", "listener"], &["perl", "-e", LISTENER]);
    f.await_written(&listener, "ready\n");
    let idle = f
        .rsig
        .run(&["spawn", "-n", "idle", "local", "sleep", "1000"])
        .ok()
        .line();
    let screen = Screen::start(&f.rsig, 80, 24, &["--sort", "started"], "A=1");
    screen.wait_for_row(&listener, &["running", "0.0%", "perl"]);
    screen.wait_for_row(&idle, &["local", "running", "0.0%", "sleep"]);
    screen.wait_for("ready");
    let expected = [
        "rsig top: 2 jobs on 2 hosts, by started".to_owned(),
        format!(
            "-- output of {listener} (listener) on server {}",
            "-".repeat(37)
        ),
        "q quit  Space mark  / filter  o order  r reverse  t TERM  k KILL  s STOP  c CONT"
            .to_owned(),
        "x any signal  e end  w wait".to_owned(),
    ];
    let lines = screen.lines();
    let places: Vec<_> = expected
        .iter()
        .map(|line| lines.iter().position(|shown| shown == line))
        .collect();
    assert!(
        places[0] == Some(0) && places.is_sorted() && places[3] == Some(23),
        "{places:?}: {lines:#?}"
    );
    assert!(
        lines[1].starts_with(" ID       NAME     HOST   STATE"),
        "{lines:#?}"
    );

    // Signals, by key and by name; their effect is checked on the host.
    screen.keys(&["s"]);
    screen.wait_for(&format!("{listener} (listener) on server: STOP sent"));
    screen.wait_for_row(&listener, &["stopped"]);
    assert_eq!(f.state(&listener), "stopped");
    screen.keys(&["c"]);
    screen.wait_for("CONT sent");
    screen.wait_for_row(&listener, &["running"]);
    screen.keys(&["x", "usr1", "Enter"]);
    screen.wait_for("USR1 sent");
    f.await_written(&listener, "ready\nUSR1\n");
    screen.wait_until("its output", |lines| lines.contains(&"USR1".to_owned()));

    // The filter, and the other job's empty output.
    screen.keys(&["/", "idle", "Enter"]);
    screen.wait_for("1 with \"idle\"");
    screen.wait_for(&format!("output of {idle}"));
    assert!(screen.row(&listener).is_empty());
    screen.keys(&["w"]);
    screen.wait_for("waiting for the end");
    f.rsig.run(&["kill", &idle, "-w", "20s"]).ok();
    screen.wait_for(&format!(
        "{idle} (idle) on local: ended with status 143 (TERM)"
    ));
    screen.wait_for_row(&idle, &["exited", "143"]);
    screen.keys(&["Escape"]);

    // A confirmation before several jobs are killed.
    let other = f.spawn(&[], &["sleep", "1000"]);
    screen.wait_for_row(&other, &["running", "0.0%"]);
    screen.keys(&["Home", "Space", "Down", "Space"]);
    screen.wait_until("two marks", |lines| {
        lines.iter().filter(|line| line.starts_with('*')).count() == 2
    });
    screen.keys(&["k"]);
    screen.wait_for("Send KILL to 2 jobs? [y/N]");
    screen.keys(&["n"]);
    screen.wait_for("nothing was sent");
    assert_eq!(
        (f.state(&listener), f.state(&other)),
        ("running".into(), "running".into())
    );
    screen.keys(&["k", "y"]);
    for job in [&listener, &other] {
        screen.wait_for_row(job, &["exited", "137"]);
    }
    screen.keys(&["q"]);
    screen.await_end(0);
}

#[test]
fn the_terminal_is_left_as_it_was() {
    for (end, status) in [
        ("q", 0),
        ("C-c", 130),
        ("INT", 130),
        ("TERM", 143),
        ("HUP", 129),
    ] {
        let rsig = Rsig::new();
        let job = rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();
        let screen = Screen::start(&rsig, 80, 24, &[], "A=1");
        screen.wait_for_row(&job, &["running", "0.0%"]);
        match format!("SIG{end}").parse::<Signal>() {
            Ok(signal) => kill(Pid::from_raw(screen.top().pid), signal).expect("ours"),
            Err(_) => screen.keys(&[end]),
        }
        screen.await_end(status);
        assert_eq!(rsig.run(&["ps", "-q"]).ok().line(), job);
    }
}

#[test]
fn a_host_that_says_nothing_delays_nobody() {
    let rsig = Rsig::new();
    let silent = FixedServer::start(FixedReply::Once(Vec::new()));
    let config = config_for(&rsig, "silent", silent.port(), "");
    record_on(&rsig, "2pysv60g", "silent", &config);
    let closed = config_for(&rsig, "closed", 1, "");
    record_on(&rsig, "4h3q78r4", "closed", &closed);
    let here = rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();
    let screen = Screen::start(&rsig, 120, 24, &[], "A=1");
    screen.wait_for_row(&here, &["running", "0.0%"]);
    screen.wait_for("silent: no answer for");
    screen.wait_for("connection refused");
    screen.wait_until("both are unknown", |lines| {
        lines
            .iter()
            .filter(|line| line.contains("unknown (was running)"))
            .count()
            == 2
    });
    let stopped = rsig.run(&["kill", &here, "STOP"]);
    stopped.ok();
    screen.wait_for_row(&here, &["stopped"]);
    screen.keys(&["q"]);
    screen.await_end(0);
}

#[test]
fn it_fits_any_terminal_and_shows_nothing_raw() {
    let rsig = Rsig::new();
    let line = "printf '\\033[31mred\\033[2J\\n\\tlong%0200d' 1; exec sleep 1000";
    let job = rsig
        .run(&["spawn", "-c", "local", &format!("{line} # \u{1b}[32m")])
        .ok()
        .line();
    let screen = Screen::start(&rsig, 80, 24, &[], "NO_COLOR=1");
    screen.wait_for_row(&job, &["running", "0.0%"]);
    screen.wait_for("\\x1b[31mred\\x1b[2J");
    let text = screen.tmux(&["capture-pane", "-p", "-e"]);
    assert!(text.contains("7m"), "the selection: {text:?}");
    assert!(
        !["\x1b[3", "\x1b[9", "\x1b[4"]
            .iter()
            .any(|colour| text.contains(&format!("{colour}1m"))
                || text.contains(&format!("{colour}2m"))),
        "{text:?}"
    );
    assert_harmless(&screen.lines().join("\n"));
    for (columns, rows) in [
        ("40", "8"),
        ("20", "3"),
        ("1", "1"),
        ("132", "50"),
        ("80", "24"),
    ] {
        screen.tmux(&["resize-window", "-x", columns, "-y", rows]);
        screen.wait_until("it is drawn anew", |lines| match columns {
            "1" => true,
            "20" => lines.len() == 3 && lines[1].starts_with(&format!(" {job}")),
            "40" => lines.len() == 8 && lines[7].starts_with("r reverse"),
            _ => {
                lines
                    .first()
                    .is_some_and(|line| line == "rsig top: 1 job on 1 host, by cpu")
                    && lines.len().to_string() == rows
            }
        });
    }
    screen.keys(&["q"]);
    screen.await_end(0);
}

#[test]
fn without_a_terminal_it_says_what_to_do() {
    let rsig = Rsig::new();
    rsig.run(&["top"])
        .code(2)
        .stdout_is("")
        .stderr_has("`rsig ps -r`");
    rsig.run(&["top", "--sort", "nothing"]).code(2);
    rsig.run(&["top", "--interval", "5"]).code(2);
}
