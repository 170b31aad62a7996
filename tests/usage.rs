//! Errors on the command line, reported once and before anything is touched; and words that name no job.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;

use crate::harness::{Output, Rsig};
use crate::kit::{self, assert_clear_message};

/// Asserts that there is exactly one message.
#[track_caller]
fn assert_one_message(output: &Output) {
    assert_clear_message(output);
    let first = output.stderr().lines().next().unwrap_or_default();
    assert!(
        first.starts_with("error: ") || first.starts_with("rsig: "),
        "{output}"
    );
    let again = output
        .stderr()
        .lines()
        .skip(1)
        .filter(|line| line.starts_with("error: ") || line.starts_with("rsig: "));
    assert_eq!(again.count(), 0, "{output}");
}

#[test]
fn what_is_wrong_on_the_command_line_is_said_before_anything_is_touched() {
    let rsig = Rsig::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.set_nonblocking(true).expect("a socket option");
    let host = format!(
        "127.0.0.1:{}",
        listener.local_addr().expect("an address").port()
    );
    let long = "n".repeat(65);
    for (line, said) in [
        ("", "Usage"),
        ("frobnicate", "frobnicate"),
        ("spawn", "HOST"),
        ("spawn HOST", "COMMAND"),
        ("spawn HOST --", "COMMAND"),
        ("spawn --frobnicate HOST true", "--frobnicate"),
        ("spawn -n HOST", "name"),
        (
            "spawn -n .hidden HOST true",
            "begins with a letter or a digit",
        ),
        ("spawn -n a/b HOST true", "a name is"),
        ("spawn -n LONG HOST true", "a name is"),
        ("spawn -n a$(id) HOST true", "a name is"),
        ("spawn -e =value HOST true", "--env"),
        ("spawn -e 9KEY=secret HOST true", "9KEY"),
        ("spawn -e A-B=secret HOST true", "A-B"),
        (
            "spawn -e RSIG_TEST_UNSET HOST true",
            "there is no such variable",
        ),
        ("spawn -t HOST true", "-t: a job outlives the terminal"),
        ("spawn -c HOST echo two", "one word"),
        ("spawn -p 0 HOST true", "not a port"),
        ("spawn -p 65536 HOST true", "not a port"),
        ("spawn -o nonsense HOST true", "KEY=VALUE"),
        ("spawn -l-x HOST true", "must not begin with '-'"),
        ("spawn -l a;b HOST true", "must not hold"),
        ("spawn -- -oProxyCommand=x true", "must not begin with '-'"),
        ("spawn bob@-web true", "must not begin with '-'"),
        ("spawn a;b true", "must not hold ';'"),
        ("spawn $(id) true", "must not hold '$'"),
        ("spawn `id` true", "must not hold '`'"),
        ("spawn a|b true", "must not hold '|'"),
        ("spawn a\u{1b}[2Jb true", "must not hold"),
        ("spawn a\nb true", "must not hold"),
        ("spawn @web true", "no group"),
        ("spawn web[1-99999] true", "more than 10000"),
        ("kill --host web[3-1]", "greater"),
        ("ps --host web[1", "not closed"),
        ("spawn web:99999 true", "not a port"),
        ("spawn ::1 true", "[::1]"),
        ("spawn [::1 true", "brackets"),
        ("kill", "JOB"),
        ("kill --frobnicate job", "--frobnicate"),
        ("kill job --wait 5", "5s"),
        ("kill job --wait 1.5", "1.5s"),
        ("kill job --wait soon", "5s"),
        ("kill job --wait 1000years", "hundred years"),
        ("kill job --then KILL", "--wait"),
        ("kill job 0 --wait 5s", "rsig wait"),
        ("kill -0 job --wait 5s", "rsig wait"),
        ("kill job TERM --wait 1s --then 0", "--then 0"),
        ("kill job FROB", "FROB"),
        ("kill job other", "-s"),
        ("kill job one two", "-s"),
        ("kill -s FROB job", "FROB"),
        ("kill -s 999 job", "999"),
        ("kill -FROB job", "-F"),
        ("kill job --via smoke", "smoke"),
        ("kill job --target tail", "tail"),
        ("kill -l FROB", "FROB"),
        ("kill -l --os plan9", "plan9"),
        ("kill --os linux job", "--list"),
        ("stop", "JOB"),
        ("stop --grace 5 job", "5s"),
        ("wait", "JOB"),
        ("wait --timeout 5 job", "5s"),
        ("tail", "JOB"),
        ("tail -n some job", "not a count"),
        ("tail -n 1 -c 1 job", "--bytes"),
        ("tail --stdout --stderr job", "--stderr"),
        ("ps --state dancing", "not a state"),
        ("ps --host a;b", "must not hold"),
        ("ps --json -q", "--quiet"),
        ("rm", "JOB"),
        ("rm --older-than 5", "5s"),
        ("rm --force --forget job", "--forget"),
    ] {
        let words = line.split(' ').filter(|word| !word.is_empty());
        let words = words.map(|word| if word == "HOST" { &host } else { word });
        let output = rsig
            .command(&[])
            .args(words.map(|word| word.replace("LONG", &long)))
            .run();
        output
            .code(2)
            .stdout_is("")
            .stderr_has(said)
            .stderr_lacks("secret");
        if !line.is_empty() {
            assert_one_message(&output);
        }
        let made = fs::read_dir(rsig.state())
            .expect("the state directory is there")
            .count();
        assert_eq!(made, 0, "state was made by {line:?}");
    }
    assert!(listener.accept().is_err(), "a connection was made");
}

#[test]
fn words_that_are_no_text_are_refused_where_text_is_needed() {
    let rsig = Rsig::new();
    let bad = OsStr::from_bytes(b"a\xff\x1b[2J");
    let with = |words: &[&str]| {
        let words = words.iter().map(|word| {
            if *word == "BAD" {
                bad
            } else {
                OsStr::new(*word)
            }
        });
        rsig.command(&[]).args(words).run()
    };
    for words in [
        &["spawn", "BAD", "true"][..],
        &["spawn", "-n", "BAD", "local", "true"],
        &["spawn", "-o", "BAD", "local", "true"],
        &["kill", "job", "BAD"],
        &["kill", "-s", "BAD", "job"],
        &["kill", "-l", "BAD"],
        &["wait", "--timeout", "BAD", "job"],
        &["ps", "--host", "BAD"],
    ] {
        let output = with(words);
        output.code(2).stdout_is("");
        assert_clear_message(&output);
        assert!(!rsig.state().join("jobs.db").exists(), "{output}");
    }
}

#[test]
fn words_that_name_no_job_are_shown_escaped_and_bounded() {
    let rsig = Rsig::new();
    let long = "x".repeat(100_000);
    let words: [&[u8]; 11] = [
        b"../../etc",
        b"",
        b"a\nb",
        b"\x1b]0;title\x07\x1b[2J",
        b"\xff\xfe",
        b"$(id)",
        b"' OR 1=1 --",
        b"%",
        b"zzzzzzzz",
        "\u{202e}txt".as_bytes(),
        long.as_bytes(),
    ];
    for word in words {
        let word = OsStr::from_bytes(word);
        let ask = |words: &[&str]| {
            let output = rsig.command(words).arg("--").arg(word).run();
            assert_clear_message(&output);
            output.stderr_has("no job");
            output
        };
        for words in [
            &["kill", "-s", "TERM"][..],
            &["stop"],
            &["tail"],
            &["ps"],
            &["rm"],
            &["rm", "--forget"],
        ] {
            ask(words).code(3);
        }
        ask(&["wait"]).code(125);
        let output = rsig
            .command(&["kill", "--json", "-s", "TERM", "--"])
            .arg(word)
            .run();
        let report: serde_json::Value = serde_json::from_str(&output.code(3).line()).expect("JSON");
        assert_eq!(report["error"]["kind"], "not_found", "{output}");
        assert_eq!(report["sent"], false, "{output}");
    }
    assert_eq!(kit::recorded(&rsig), Vec::<String>::new());
}

#[test]
fn a_beginning_that_fits_several_jobs_lists_them() {
    let rsig = Rsig::new();
    let first = rsig
        .run(&["spawn", "-n", "one", "local", "--", "true"])
        .ok()
        .line();
    rsig.run(&["wait", &first]).ok();
    // Records of finished jobs whose ids have the same beginning.
    let prefix = &first[..3];
    let database = kit::database(&rsig);
    let copy =
        "INSERT INTO jobs (record) SELECT json_set(record, '$.id', ?2) FROM jobs WHERE id = ?1";
    let others: Vec<String> = (0..20)
        .map(|n| {
            format!(
                "{prefix}{}00{n:02}",
                if &first[3..4] == "z" { "y" } else { "z" }
            )
        })
        .collect();
    for id in &others {
        database.execute(copy, [&first, id]).expect("a record");
    }
    for command in ["kill", "tail", "ps", "rm"] {
        let output = rsig.run(&[command, prefix]);
        output
            .code(3)
            .stderr_has("fits several jobs")
            .stderr_has("...");
        assert!(output.stderr().lines().count() <= 10, "{output}");
        assert_clear_message(&output);
    }
    rsig.run(&["wait", prefix])
        .code(125)
        .stderr_has("fits several jobs");
    let output = rsig.run(&["kill", "--json", prefix]);
    let report: serde_json::Value = serde_json::from_str(&output.code(3).line()).expect("JSON");
    assert_eq!(report["error"]["kind"], "ambiguous");
    // One more character makes it unique; two characters are never enough.
    rsig.run(&["ps", "--cached", "-q", &first[..4]])
        .ok()
        .stdout_is(&format!("{first}\n"));
    rsig.run(&["ps", &first[..2]]).code(3).stderr_has("no job");
    assert_eq!(kit::recorded(&rsig).len(), 21);
}

#[test]
fn a_command_of_100_kb_and_odd_bytes_reaches_the_job_whole() {
    let rsig = Rsig::new();
    let long = "y".repeat(100_000);
    let odd: [&[u8]; 7] = [
        b"",
        b"a b",
        b"$(id)`id`",
        b"'\"\\",
        b"x\ny",
        b"\xff\xfe",
        b"-n",
    ];
    let words: Vec<OsString> = odd
        .iter()
        .map(|word| OsStr::from_bytes(word).to_owned())
        .collect();
    let spawn = rsig
        .command(&["spawn", "local", "--", "printf", "%s|"])
        .args(&words)
        .arg(&long);
    let job = spawn.run().ok().line();
    rsig.run(&["wait", &job]).ok();
    let expected: Vec<u8> = odd
        .iter()
        .flat_map(|word| [word, &b"|"[..]].concat())
        .chain(format!("{long}|").into_bytes())
        .collect();
    assert!(rsig.run(&["tail", "-n", "all", &job]).ok().stdout_bytes() == expected);
    let shown = rsig.run(&["ps", &job]).ok().stdout();
    assert!(
        shown.len() < 6000 && !shown.contains("x\ny"),
        "{shown:.300}"
    );
}

/// A build without a server's feature lacks its command.
#[test]
fn the_commands_are_those_of_the_features() {
    let rsig = Rsig::new();
    let help = rsig.run(&["--help"]);
    for (command, there) in [
        ("mcp", cfg!(feature = "mcp")),
        ("serve", cfg!(feature = "serve")),
    ] {
        let listed = help
            .ok()
            .stdout()
            .lines()
            .any(|line| line.split_whitespace().next() == Some(command));
        assert_eq!(listed, there, "{help}");
        rsig.run(&[command, "--help"])
            .code(if there { 0 } else { 2 });
    }
}
