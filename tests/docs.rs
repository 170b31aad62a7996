//! The README and the book: every example that can run is run, every link has a target, and the reference matches the
//! manual pages.
//!
//! An example is a code block. `console` is a session: text after `$ ` is typed, and the lines that follow are the
//! expected output, except that ids, pids and times may differ and `...` stands for anything. `sh` is a script whose
//! commands succeed. `toml` is the configuration file of its page, and `json` is JSON. The examples of a page run one
//! after the other, in one shell, with a real server behind every host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{Fixture, Output, Rsig, Scratch, Site, tool};

/// Examples that can't run here: the page, the first line of the example, and the reason.
const NOT_RUN: [(&str, &str, &str); 15] = [
    (
        "README.md",
        "cargo build --release",
        "it builds rsig; a test below runs the rest of the line",
    ),
    ("README.md", "tests/install-debian", "it runs the tests"),
    ("docs/src/install.md", "cargo install", "it builds rsig"),
    (
        "docs/src/install.md",
        ".ci/package",
        "it builds rsig and installs packages: .ci/check-packages does so",
    ),
    (
        "docs/src/install.md",
        "$env:RSIG_COMPLETE",
        "there is no PowerShell in Debian",
    ),
    (
        "docs/src/install.md",
        "let directory",
        "there is no nushell in Debian; tests/completion.rs does so on request",
    ),
    (
        "docs/src/install.md",
        "cargo build --release",
        "it builds rsig",
    ),
    (
        "docs/src/connecting.md",
        "rsig run --sudo=app",
        "there is no user app, and no machine box",
    ),
    (
        "docs/src/cookbook/ci.md",
        "- uses:",
        "a workflow of GitHub; tests/contrib.rs runs the action's script",
    ),
    (
        "docs/src/cookbook/ci.md",
        "include:",
        "a pipeline of GitLab",
    ),
    (
        "docs/src/cookbook/containers.md",
        "rsig run docker://web",
        "there are no containers of these names: tests/containers.rs",
    ),
    (
        "docs/src/cookbook/containers.md",
        "rsig run --prefix",
        "the same",
    ),
    (
        "docs/src/cookbook/fleets.md",
        "rsig kill -s HUP",
        "no such jobs run",
    ),
    (
        "docs/src/cookbook/programs.md",
        "curl -H",
        "the port may be taken: tests/serve.rs",
    ),
    (
        "docs/src/cookbook/migrating.md",
        "ssh web1",
        "what is migrated from",
    ),
];

/// A block of code.
struct Example {
    kind: String,
    lines: Vec<String>,
}

impl Example {
    fn is_run(&self, page: &str) -> bool {
        let first = self.lines.first().map_or("", String::as_str);
        !NOT_RUN
            .iter()
            .any(|(of, start, _)| *of == page && first.starts_with(start))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(page: &str) -> String {
    fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// The code blocks of a page, including those indented by four spaces.
fn examples(text: &str) -> Vec<Example> {
    let mut found: Vec<Example> = Vec::new();
    let (mut fence, mut indented) = (false, false);
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            fence = !fence;
            if fence {
                let (kind, lines) = (kind.to_owned(), Vec::new());
                found.push(Example { kind, lines });
            }
            continue;
        }
        let code = if fence {
            Some(line)
        } else {
            line.strip_prefix("    ")
        };
        if !fence && code.is_some() && !indented {
            let (kind, lines) = ("sh".to_owned(), Vec::new());
            found.push(Example { kind, lines });
        }
        indented = !fence && code.is_some();
        if let (Some(code), Some(example)) = (code, found.last_mut()) {
            example.lines.push(code.to_owned());
        }
    }
    assert!(!fence, "a block has no end");
    found
}

/// Programs that the examples start, installed in the user's home.
const PROGRAMS: [(&str, &str); 10] = [
    (
        "train",
        // Not a shell with children: a shell that STOP meets in vfork(2) is never reported as stopped.
        "#!/usr/bin/perl\n$| = 1;\n$SIG{TERM} = sub { print qq(saved\n); exit 0 };\n$SIG{USR1} = sub { print qq(checkpoint\n) };\n\
         printf qq(epoch %d: loss 0.%d\n), $_, 900 - 7 * $_ for 1 .. 13;\n\
         open my $ready, '>>', 'ready'; print $ready qq(\n); close $ready;\nsleep 1 while 1;\n",
    ),
    (
        "serve",
        "#!/bin/sh\ntrap '' TERM\necho 'listening on port 8000'\necho >>ready\nwhile :; do sleep 1; done\n",
    ),
    ("version", "#!/bin/sh\necho \"${VERSION-2.4.1}\"\n"),
    ("migrate", "#!/bin/sh\n"),
    ("upgrade", "#!/bin/sh\necho upgraded\n"),
    ("deploy", "#!/bin/sh\necho deployed\n"),
    (
        "repl.py",
        "import sys\nfor line in sys.stdin:\n    exec(line)\n",
    ),
    ("rows.csv", "1,one\n2,two\n"),
    ("check", "#!/bin/sh\necho '41 passed, 1 failed'\nexit 2\n"),
    ("src/main.c", "int main(void) { return 0; }\n"),
];

fn install_programs(home: &Path) {
    fs::create_dir_all(home.join("src")).expect("ours");
    for (name, text) in PROGRAMS {
        fs::write(home.join(name), text).expect("ours");
        fs::set_permissions(home.join(name), fs::Permissions::from_mode(0o755)).expect("ours");
    }
}

/// Writes the configuration of a page, with every host leading to the server.
fn configure(f: &Fixture, toml: &str) {
    let server = f.server.as_ref().expect("a server");
    let config = format!("config = \"{}\"\n", server.ssh_config("*").display());
    // At the end of the first section, so that the page's lines keep their numbers.
    let toml = if toml.starts_with("[defaults]\n") {
        toml.replacen("\n\n", &format!("\n{config}\n"), 1)
    } else {
        format!("[defaults]\n{config}\n{toml}")
    };
    let path = f.rsig.home().join(".config/rsig/config.toml");
    fs::create_dir_all(path.parent().expect("it has one")).expect("ours");
    // One host runs an older version than the others.
    fs::write(
        &path,
        toml + "\n[hosts.web3]\nprefix = \"env VERSION=2.4.0\"\n",
    )
    .expect("ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
}

/// A program in the environment of a user who has rsig installed.
fn as_user(rsig: &Rsig, program: &str) -> crate::harness::Invocation {
    let bin = Path::new(env!("CARGO_BIN_EXE_rsig"))
        .parent()
        .expect("a file has a directory");
    rsig.within(tool(program))
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .limit(Duration::from_secs(120))
}

/// A command, and the output that the page shows for it; None for a script.
struct Typed {
    line: String,
    shown: Option<String>,
}

fn typed(example: &Example) -> Vec<Typed> {
    let mut typed: Vec<Typed> = Vec::new();
    for line in &example.lines {
        match (line.strip_prefix("$ "), typed.last_mut()) {
            (Some(line), _) => typed.push(Typed {
                line: line.to_owned(),
                shown: Some(String::new()),
            }),
            (
                None,
                Some(Typed {
                    shown: Some(shown), ..
                }),
            ) => {
                *shown += line;
                shown.push('\n');
            }
            _ => panic!("a session begins with `$ `: {line}"),
        }
    }
    typed
}

/// Runs the examples of a page.
fn check_page(page: &str) {
    let examples = examples(&read(page));
    let run: Vec<&Example> = examples
        .iter()
        .filter(|example| example.kind != "text" && example.is_run(page))
        .collect();
    let f = Site::OpenSshUser.start_with_keeper();
    install_programs(f.rsig.home());
    install_programs(f.server.as_ref().expect("a server").home());
    std::os::unix::fs::symlink(root().join("examples"), f.rsig.home().join("examples"))
        .expect("ours");
    let toml = run.iter().filter(|example| example.kind == "toml");
    configure(
        &f,
        &toml
            .map(|example| example.lines.join("\n") + "\n")
            .collect::<String>(),
    );

    let mut steps = Vec::new();
    for example in run {
        match example.kind.as_str() {
            "console" => steps.extend(typed(example)),
            "sh" => steps.push(Typed {
                line: example.lines.join("\n"),
                shown: None,
            }),
            "json" => {
                let text = example.lines.join("\n");
                serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
            }
            "toml" => {}
            other => panic!("{page}: {other:?} is not run, and not named in NOT_RUN"),
        }
    }
    // After each step the script prints its exit status and keeps `$?`. It goes on once all programs that were started
    // so far are ready, also within a step: one that is ended before never gets ready. After STOP it goes on once
    // `ps` shows a stopped job: the process may take a moment to stop.
    let mut script = "unset RSIG_STATE_DIR\nshopt -s expand_aliases\nexec 2>&1\n\
        await_ready() {\nlocal status=$?\n\
        until [ \"$(cat \"$THERE/ready\" ready 2>/dev/null | wc -l)\" -ge \"$1\" ]; do sleep 0.05; done\n\
        return $status\n}\n\
        mark() {\nlocal status=$?\nprintf '\\036%s\\036' \"$status\"\nawait_ready \"$1\"\n\
        return $status\n}\n\
        await_stopped() {\nlocal status=$?\n\
        until [ -n \"$(rsig ps -q --state stopped)\" ]; do sleep 0.05; done\n\
        return $status\n}\n"
        .to_owned();
    let programs_in = |text: &str| {
        let programs = [" -- ./train", " -- ./serve"].map(|program| text.matches(program).count());
        text.matches("rsig spawn")
            .count()
            .min(programs.iter().sum())
    };
    let mut started = 0;
    for (number, step) in steps.iter().enumerate() {
        script += &match (&step.shown, step.line.strip_suffix(" &")) {
            (None, _) => {
                let mut ready = started;
                let is_open = |line: &str| {
                    let rest = ["\\", "&&", "||", "|", "{", "do"];
                    line.starts_with([' ', '\t']) || rest.iter().any(|end| line.ends_with(end))
                };
                let mut lines = String::new();
                for line in step.line.lines() {
                    lines += &format!("{line}\n");
                    ready += programs_in(line);
                    if programs_in(line) > 0 && !is_open(line) {
                        lines += &format!("await_ready {ready}\n");
                    }
                }
                format!("trap 'echo \"failed: $BASH_COMMAND\"' ERR\n{lines}trap - ERR\n")
            }
            (Some(_), None) => step.line.clone() + "\n",
            (Some(_), Some(line)) => format!(
                "{line} >background.{number} 2>&1 &\nuntil [ -s background.{number} ]; do sleep 0.05; done\n\
                 cat background.{number}\n"
            ),
        };
        started += programs_in(&step.line);
        script += &format!("mark {started}\n");
        if step
            .shown
            .as_ref()
            .is_some_and(|shown| shown.contains(" STOP sent"))
        {
            script += "await_stopped\n";
        }
    }
    fs::write(f.rsig.home().join("session"), script).expect("ours");
    let there = f.server.as_ref().expect("a server").home();
    let bash = as_user(&f.rsig, "bash").env("THERE", there);
    let output = bash.arg("session").run();
    compare(page, &f, &steps, &output);
}

fn compare(page: &str, f: &Fixture, steps: &[Typed], output: &Output) {
    let home = f.rsig.home().to_str().expect("UTF-8");
    let all = output
        .stdout()
        .replace(home, "/home/ada")
        .replace("  root  ", "  ada   ");
    let mut parts = all.split('\x1e');
    let mut wrong = String::new();
    for step in steps {
        let (Some(shown), Some(status)) = (parts.next(), parts.next()) else {
            panic!("{page}: nothing ran from here on: {}\n{all}", step.line);
        };
        let is_right = match &step.shown {
            Some(expected) => {
                // The hosts of one command reply in any order.
                let several = step.line.contains(['[', '@']);
                fits(&plain(expected, several), &plain(shown, several))
            }
            None => !shown.contains("failed: "),
        };
        if !is_right {
            wrong += &format!(
                "$ {}\n--- shown, with status {status}\n{shown}--- in {page}\n{}\n",
                step.line,
                step.shown.as_deref().unwrap_or_default()
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Replaces what differs between runs: ids, pids, times.
fn plain(text: &str, sorted: bool) -> String {
    let mut lines: Vec<String> = text.lines().map(plain_line).collect();
    if sorted {
        lines.sort_unstable();
    }
    lines.join("\n")
}

fn plain_line(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let is_id = |part: &str| {
            part.len() == 8
                && part
                    .chars()
                    .all(|c| c.is_ascii_digit() || (c.is_ascii_lowercase() && !"ilou".contains(c)))
        };
        let digits = |text: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_digit() || ".-:".contains(c))
        };
        let is_time = word == "ms" || word == "s";
        let before = words
            .last()
            .is_some_and(|before| before == "N" || digits(before));
        if is_id(word) {
            // Before the numbers: some ids consist of digits.
            words.push("ID".to_owned());
        } else if is_time && before {
            words.pop();
            words.push("N s".to_owned());
        } else if digits(word)
            && word.len() >= 3
            && !word.contains('.')
            && word.contains(|c: char| c.is_ascii_digit())
            && !words
                .last()
                .is_some_and(|before| before == "status" || before == "exited")
        {
            // Pids, which have at least three digits, dates, and times of day.
            words.push("N".to_owned());
        } else if word.len() == 20 && word.ends_with('Z') && word.contains('T') {
            words.push("N".to_owned());
        } else if word.strip_suffix('s').is_some_and(digits) {
            words.push("N s".to_owned());
        } else {
            let parts = word.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
            let parts = parts.map(|part| {
                let end = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
                if is_id(end) {
                    part.replace(end, "ID")
                } else {
                    part.to_owned()
                }
            });
            words.push(parts.collect());
        }
    }
    words.join(" ")
}

/// Whether text matches a pattern in which `...` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split("...");
    let Some(mut rest) = pieces
        .next()
        .and_then(|first| text.strip_prefix(first.trim_end()))
    else {
        return false;
    };
    let pieces: Vec<&str> = pieces.map(str::trim).collect();
    let Some((last, middle)) = pieces.split_last() else {
        return rest.is_empty();
    };
    for piece in middle {
        let Some(at) = rest.find(piece) else {
            return false;
        };
        rest = rest.get(at + piece.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

macro_rules! pages {
    ($($(#[$condition:meta])? $name:ident: $file:literal,)*) => {
        const PAGES: &[&str] = &[$($file,)*];

        mod examples_of {
            $(
                $(#[$condition])?
                #[test]
                fn $name() {
                    super::check_page($file);
                }
            )*
        }
    };
}

pages! {
    the_readme: "README.md",
    introduction: "docs/src/introduction.md",
    install: "docs/src/install.md",
    tour: "docs/src/tour.md",
    signals: "docs/src/signals.md",
    connecting: "docs/src/connecting.md",
    configuration: "docs/src/configuration.md",
    files: "docs/src/files.md",
    ci: "docs/src/cookbook/ci.md",
    training: "docs/src/cookbook/training.md",
    containers: "docs/src/cookbook/containers.md",
    fleets: "docs/src/cookbook/fleets.md",
    #[cfg(feature = "mcp")]
    agents: "docs/src/cookbook/agents.md",
    #[cfg(feature = "serve")]
    programs: "docs/src/cookbook/programs.md",
    migrating: "docs/src/cookbook/migrating.md",
    how_it_works: "docs/src/how-it-works.md",
    security: "docs/src/security.md",
    reference: "docs/src/reference.md",
}

/// The Markdown files below a directory.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("ours").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(below(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn every_page_of_the_book_is_in_its_summary_and_in_a_test() {
    let source = root().join("docs/src");
    let summary = read("docs/src/SUMMARY.md");
    for path in below(&source) {
        let name = path
            .strip_prefix(&source)
            .expect("below")
            .to_str()
            .expect("UTF-8");
        if name == "SUMMARY.md" {
            continue;
        }
        assert!(
            summary.contains(&format!("({name})")),
            "SUMMARY.md lacks {name}"
        );
        let page = format!("docs/src/{name}");
        assert!(
            name.starts_with("reference/") || PAGES.contains(&page.as_str()),
            "no test runs the examples of {page}"
        );
    }
}

#[test]
fn what_is_not_run_is_still_there() {
    for (page, first, reason) in NOT_RUN {
        let found = examples(&read(page));
        let is_there = found.iter().any(|example| {
            example
                .lines
                .first()
                .is_some_and(|line| line.starts_with(first))
        });
        assert!(
            is_there,
            "{page} has no example {first:?} any more ({reason})"
        );
    }
}

#[test]
fn the_readme_is_short_and_its_first_line_ends_as_it_says() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 250, "README.md is too long");
    let line = examples(&readme)
        .into_iter()
        .flat_map(|example| example.lines)
        .find_map(|line| {
            let built = "cargo build --release && PATH=$PWD/target/release:$PATH && ";
            line.strip_prefix(built).map(str::to_owned)
        })
        .expect("the line that builds rsig");
    let rsig = Rsig::new();
    let output = as_user(&rsig, "sh").args(["-c", &line]).run();
    output.ok().stdout_has("exit status 143\n");
}

/// The anchor that GitHub and mdBook generate for a heading.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut files = below(&root().join("docs"));
    for name in [
        "README.md",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
    ] {
        files.push(root().join(name));
    }
    let mut links = 0;
    for file in files {
        let text = fs::read_to_string(&file).expect("text");
        for rest in text.split("](").skip(1) {
            let link = rest.split(')').next().unwrap_or_default();
            if link.starts_with("https://") {
                continue;
            }
            links += 1;
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => file.clone(),
                path => file.parent().expect("a directory").join(path),
            };
            assert!(target.exists(), "{}: {link}", file.display());
            if !fragment.is_empty() {
                let text = fs::read_to_string(&target).expect("text");
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let found = headings.any(|line| anchor(line.trim_start_matches('#')) == fragment);
                assert!(found, "{}: {link} has no such heading", file.display());
            }
        }
    }
    assert!(links > 100, "{links} links were found");
}

#[test]
fn the_reference_is_that_of_the_manual_pages() {
    let scratch = Scratch::new();
    let made = scratch.subdir("reference", 0o700);
    let program = root().join("docs/reference");
    tool("python3").arg(program).arg(&made).run().ok();
    let names = |directory: &Path| -> BTreeSet<PathBuf> {
        below(directory)
            .into_iter()
            .map(|path| path.strip_prefix(directory).expect("below").to_owned())
            .collect()
    };
    let committed = root().join("docs/src/reference");
    assert_eq!(names(&made), names(&committed));
    for name in names(&made) {
        let text = |directory: &Path| fs::read_to_string(directory.join(&name)).expect("text");
        assert!(
            text(&made) == text(&committed),
            "{} is stale: run docs/reference",
            name.display()
        );
    }
}

#[test]
fn what_differs_from_run_to_run_is_left_out() {
    for (one, other) in [
        (
            "2pysv60g  train  web1  running  32268  3s     ./train",
            "abcdefgh train web1 running 104 1s ./train",
        ),
        (
            "TERM sent, ended with status 0 after 151 ms",
            "TERM sent, ended with status 0 after 2.1 s",
        ),
        ("2026-11-29 12:00:00  x", "2027-01-02 13:14:15 x"),
        ("2pysv60g  train", "12345678  train"),
    ] {
        let (one, other) = (plain(one, false), plain(other, false));
        assert_eq!(one, other);
    }
    for (one, other) in [
        ("status 0", "status 4"),
        ("exited 137 (KILL) 1234 1s", "exited 143 (KILL) 1234 1s"),
        ("2.4.1", "2.4.0"),
        ("running", "stopped"),
    ] {
        assert_ne!(plain(one, false), plain(other, false));
    }
    assert!(fits("a ... c", "a b c") && fits("a", "a") && fits("x ...", "x y\nz"));
    assert!(!fits("a ... c", "a b d") && !fits("a", "ab") && !fits("...\nb", "a"));
}
