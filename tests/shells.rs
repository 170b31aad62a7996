//! The main flow under every `/bin/sh` that a host may have, behind every login shell, and on hosts that lack many
//! tools.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::running::with_system_shell;
use crate::harness::{
    Fixture, Login, Options, Rsig, Server, Shell, Site, poll_until, program_path, tool,
};
use crate::jobs::{LISTENER, STEP_TIMEOUT, json_lines, pick};
use crate::keepers::{
    assert_final_count, assert_nothing_left, await_warm_relay, new_counter, with_keeper,
};
use serde_json::json;

/// Words that a shell could garble: quotes, an escape that `echo` would interpret, bytes that are not text.
const WORDS: [&str; 7] = [
    "",
    "it's",
    "a \"b\" $(id) `id` \\n \\\\",
    "new\nline\n",
    "-n",
    "*",
    "ü\u{1}",
];

/// Runs everything that the scripts do, once.
fn main_flow(f: &Fixture) {
    // Spawn, environment, bytes, tail.
    let job = f.spawn(
        &["-e", "ODD=it's\n$(odd)"],
        &[
            &[
                "sh",
                "-c",
                r#"printf '%s\0' "$ODD" "$RSIG_JOB" "$@"; echo err >&2; exit 3"#,
                "sh",
            ],
            &WORDS[..],
        ]
        .concat(),
    );
    f.rsig.run(&["wait", &job]).code(3);
    let expected = [&["it's\n$(odd)", &job], &WORDS[..]].concat().join("\0") + "\0";
    let tail = f.rsig.run(&["tail", "-c", "+1", &job]);
    assert_eq!(
        (tail.ok().stdout().as_str(), tail.stderr()),
        (expected.as_str(), "err\n")
    );
    f.rsig
        .run(&["tail", "-n", "1", "--stderr", &job])
        .ok()
        .stdout_is("")
        .stderr_has("err");

    // A job in a session of its own, with nothing inherited and every signal at its default.
    let job = f.spawn(&[], &["cat", "/proc/self/status", "/proc/self/stat"]);
    f.rsig.run(&["wait", &job]).ok();
    let told = f.rsig.run(&["tail", "-n", "all", &job]).ok().stdout();
    for mask in ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"] {
        let bits = told
            .lines()
            .find_map(|line| line.strip_prefix(mask)?.strip_prefix(":\t"))
            .expect("a mask");
        assert_eq!(
            u64::from_str_radix(bits, 16).expect("hexadecimal") & !(0b11 << 31),
            0,
            "{mask}: {told}"
        );
    }
    let stat: Vec<&str> = told.rsplit(") ").next().expect("stat").split(' ').collect();
    assert!(
        stat[2]
            == told
                .lines()
                .find_map(|line| line.strip_prefix("Pid:\t"))
                .expect("Pid"),
        "{told}"
    );

    // Signals to the group, by name and by number; stopping and continuing; the end.
    let job = f.spawn(&[], &["perl", "-e", LISTENER]);
    f.await_written(&job, "ready\n");
    for (signal, name) in [
        ("USR1", "USR1"),
        ("RTMIN+6", "NUM40"),
        ("STKFLT", "STKFLT"),
        ("POLL", "IO"),
        ("ABRT", "ABRT"),
        ("17", ""),
    ] {
        f.rsig.run(&["kill", &job, signal]).ok();
        poll_until(signal, STEP_TIMEOUT, || {
            f.written(&job).contains(&format!("\n{name}"))
        });
    }
    f.rsig.run(&["kill", &job, "STOP"]).ok();
    f.await_state(&job, "stopped");
    f.rsig.run(&["kill", &job, "CONT"]).ok();
    f.await_state(&job, "running");
    let killed = f
        .rsig
        .run(&["kill", "--json", &job, "-w", "5s", "--then", "KILL"]);
    let told = json_lines(killed.ok()).remove(0);
    assert_eq!(
        pick(
            &told,
            ["sent", "still_running", "exit_status", "exit_signal"]
        ),
        json!([true, false, 137, "KILL"])
    );
    assert_eq!(
        told["then"],
        json!({"signal": "KILL", "sent": true, "via": "pid"})
    );
    f.rsig.run(&["kill", &job]).code(4);

    // Children, and a follower that runs until the job ends.
    let job = f.spawn(&["-c"], &["echo one; sleep 1000; echo two"]);
    let follow = f.rsig.spawn_process(&["tail", "-f", &job]);
    follow.wait_for_stdout("one\n");
    poll_until("it has started sleep", STEP_TIMEOUT, || {
        let listed = f.rsig.run(&["ps", "-r", "--json", &job]).ok().stdout();
        listed.contains("\"processes\":2}")
    });
    f.rsig.run(&["wait", "--timeout", "50ms", &job]).code(124);
    f.rsig.run(&["stop", &job]).ok().stdout_has("143 (TERM)");
    follow.wait().ok().stdout_is("one\n");
    f.await_no_processes();

    // The shell that waits for the job writes nothing of its own to the job's log.
    let job = f.spawn(&[], &["sleep", "1000"]);
    f.rsig.run(&["kill", "-w", "20s", &job, "TERM"]).ok();
    f.rsig
        .run(&["tail", &job])
        .ok()
        .stdout_is("")
        .stderr_is_empty();

    // A time limit that expires and one that does not, and a job that is removed automatically.
    let job = f.spawn(&["--timeout", "300ms"], &["sleep", "1000"]);
    f.rsig
        .run(&["wait", &job])
        .code(143)
        .stdout_has("timed out");
    let job = f.spawn(&["--timeout", "1h"], &["sh", "-c", "exit 5"]);
    assert!(
        !f.rsig
            .run(&["wait", &job])
            .code(5)
            .stdout()
            .contains("timed out")
    );
    f.rsig
        .run(&f.words("run", &["--timeout", "1h"], &["echo", "done"]))
        .ok()
        .stdout_is("done\n");
    f.await_no_processes();

    // A job without its supervisor is lost.
    let job = f.spawn(&[], &["sleep", "1000"]);
    for process in [f.supervisor(&job), f.process(&job)] {
        process.kill();
    }
    assert_eq!(f.state(&job), "lost");
    f.rsig
        .run(&f.words("spawn", &[], &["no-such-command"]))
        .code(1)
        .stderr_has("command not found");
    f.rsig
        .run(&f.words("spawn", &["-C", "/no/such"], &["true"]))
        .code(1)
        .stderr_has("no directory");
    let many = f.rsig.run(&["ps", "-aq"]).ok().stdout().lines().count();
    assert_eq!(
        f.rsig
            .run(&["rm", "--finished", "--lost"])
            .ok()
            .stdout()
            .lines()
            .count(),
        many
    );
    assert_eq!(f.job_ids_on_host(), [""; 0]);
}

/// Identifies this machine's `/bin/sh`: another file while something is mounted over it.
fn system_shell() -> (u64, u64) {
    let file = fs::metadata("/bin/sh").expect("every machine has one");
    (file.dev(), file.ino())
}

/// Variables that a login may export and that a shell on the way to the job could change, and variables that change the
/// output of tools.
const ENVIRONMENT: [(&str, &[u8]); 30] = [
    ("BASH_FUNC_cd%%", b"() {  echo no\n}"),
    ("BASH_FUNC_kill%%", b"() { echo `date`;   return 1; }"),
    ("BASH_FUNC_cat%%", b"() {  echo meow\n}"),
    ("BASH_FUNC_read%%", b"() {  echo read\n}"),
    ("BASH_FUNC_echo%%", b"() {  true\n}"),
    ("a.b", b"dot"),
    ("x-y", b"it's\nnew\\"),
    ("1abc", b"q\x01\x02"),
    ("\u{e9}", b""),
    ("IFS", b"x"),
    ("OLDPWD", b"/usr"),
    ("SHLVL", b"3"),
    ("_", b"/foo"),
    ("PS1", b"$ "),
    ("RANDOM", b"7"),
    ("OPTIND", b"5"),
    ("PPID", b"1"),
    ("BASHPID", b"9"),
    ("KSH_VERSION", b"v"),
    ("TMOUT", b"5"),
    ("BLOCK_SIZE", b"1K"),
    ("LS_BLOCK_SIZE", b"1M"),
    ("TIME_STYLE", b"+%s"),
    ("SHELLOPTS", b"errexit:nounset"),
    ("POSIXLY_CORRECT", b"1"),
    ("LC_ALL", b"C.UTF-8"),
    ("CDPATH", b"/usr"),
    ("ENV", b"/no/such/file"),
    ("rs_id", b"mine"),
    ("state", b"lost"),
];

/// The job gets its login's environment byte for byte, and the scripts work in any environment.
fn check_environment(f: &Fixture, shell: &str) {
    let big = "x".repeat(100_000);
    let every: Vec<u8> = (1..=255).collect();
    let given = || {
        let given = ENVIRONMENT.map(|(name, value)| (name, OsStr::from_bytes(value)));
        given.into_iter().chain([
            ("BIG", OsStr::new(&big)),
            ("EVERY", OsStr::from_bytes(&every)),
        ])
    };
    // By env(1): the shell that creates the namespace would lose some variables.
    let rsig = |words: &[&str]| {
        let variable = |(name, value): (&str, &OsStr)| {
            [OsStr::new(name), OsStr::new("="), value]
                .into_iter()
                .collect()
        };
        let variables = given().map(variable).collect::<Vec<OsString>>();
        let unshare =
            tool("unshare").args(with_system_shell(&program_path(shell)).into_iter().skip(1));
        f.rsig
            .within(
                unshare
                    .arg("env")
                    .args(variables)
                    .arg(env!("CARGO_BIN_EXE_rsig")),
            )
            .args(words)
    };
    let options = ["spawn", "-e", "GIVEN=1", "-e", "TIME_STYLE=mine"];
    let job = rsig(&[&options[..], &["local", "cat", "/proc/self/environ"]].concat())
        .run()
        .ok()
        .line();
    rsig(&["wait", &job]).run().ok();
    let told = rsig(&["tail", "-c", "+1", &job]).run();
    let told: BTreeSet<&[u8]> = told.ok().stdout_bytes().split(|byte| *byte == 0).collect();
    for (name, value) in given() {
        let value = if name == "TIME_STYLE" {
            OsStr::new("mine")
        } else {
            value
        };
        let entry = [name.as_bytes(), b"=", value.as_bytes()].concat();
        assert!(told.contains(&entry[..]), "{name}");
    }
    assert!(told.contains(&b"GIVEN=1"[..]));
    for entry in &told {
        let name = String::from_utf8_lossy(entry.split(|byte| *byte == b'=').next().expect("one"));
        let is_known = |name: &str| {
            given().any(|(given, _)| given == name)
                || ["GIVEN", "HOME", "LANG", "PATH", "PWD", ""].contains(&name)
                || name.starts_with("RSIG_")
                || std::env::var_os(name).is_some()
        };
        assert!(is_known(&name), "{name} was added");
    }
    // Streams, sizes and signals.
    let run = rsig(&[
        "run",
        "local",
        "--",
        "sh",
        "-c",
        "head -c 3000000 /dev/zero; env cat >&2; exit 3",
    ])
    .stdin("typed")
    .run();
    assert_eq!(
        (run.code(3).stdout_bytes().len(), run.stderr()),
        (3_000_000, "typed")
    );
    let job = rsig(&["spawn", "--timeout", "1h", "local", "sleep", "1000"])
        .run()
        .ok()
        .line();
    rsig(&["kill", "-w", "20s", &job])
        .run()
        .ok()
        .stdout_has("143 (TERM)");
    rsig(&["rm", "--finished"]).run().ok();
    f.await_no_processes();
}

/// A `PATH` without the scripts' tools affects only the job.
fn check_without_tools(f: &Fixture, shell: &str) {
    let within = |path: &str, words: &[&str]| {
        let unshare =
            tool("unshare").args(with_system_shell(&program_path(shell)).into_iter().skip(1));
        let rsig = unshare
            .arg("env")
            .arg(format!("PATH={path}"))
            .arg(env!("CARGO_BIN_EXE_rsig"));
        f.rsig.within(rsig).args(words).run()
    };
    for path in ["/nonexistent", "/nonexistent:", ""] {
        let rsig = |words: &[&str]| within(path, words);
        let seen = rsig(&["run", "local", "/bin/cat", "/proc/self/environ"]);
        let seen = seen.ok().stdout();
        let seen: Vec<&str> = seen
            .split('\0')
            .filter_map(|variable| variable.strip_prefix("PATH="))
            .collect();
        assert_eq!(seen, [path], "{shell}");
        rsig(&["spawn", "local", "true"])
            .code(1)
            .stderr_has("command not found");
        let job = rsig(&["spawn", "local", "/bin/sleep", "1000"]).ok().line();
        rsig(&["ps"]).ok().stdout_has(" running ");
        rsig(&["kill", "--wait", "20s", &job])
            .ok()
            .stdout_has("143 (TERM)");
        rsig(&["tail", &job]).ok();
        rsig(&["rm", &job]).ok();
    }
}

/// Checks this machine with another program as its `/bin/sh`.
fn check_under(shell: &str) {
    let before = system_shell();
    let mut f = Site::Local.start();
    f.rsig = Rsig::new().with_shell(program_path(shell));
    let job = f.spawn(&[], &["sh", "-c", "readlink /proc/$$/exe"]);
    f.rsig.run(&["wait", &job]).ok();
    // Where PATH's sh is a copy of /bin/sh, it is the same file; what counts is the shell that reads the scripts.
    let supervisor = f.spawn(
        &[],
        &["sh", "-c", "readlink /proc/$PPID/exe; cat /proc/$PPID/comm"],
    );
    f.rsig.run(&["wait", &supervisor]).ok();
    check_environment(&f, shell);
    check_without_tools(&f, shell);
    main_flow(&f);
    assert_eq!(system_shell(), before);
}

#[test]
fn dash_reads_the_scripts() {
    check_under("dash");
}

#[test]
fn bash_reads_the_scripts() {
    check_under("bash");
}

#[test]
fn busybox_reads_the_scripts() {
    check_under("busybox");
}

#[test]
fn mksh_reads_the_scripts() {
    check_under("mksh");
}

/// Checks a keeper's jobs on a host with another program as its `/bin/sh`.
fn check_relays_under(shell: &str) {
    let f = with_keeper(
        Server::openssh(Login::User)
            .system_shell(program_path(shell))
            .start(),
    );
    let job = new_counter(&f);
    await_warm_relay(&f, &job);
    for way in ["channel", "pid"] {
        // Until a slow probe is answered, the server counts as one that passes no signals on.
        poll_until("it is sent", STEP_TIMEOUT, || {
            let kill = f.rsig.run(&["kill", "--via", way, &job, "USR1"]);
            !kill.stderr().contains("nothing was sent") && kill.ok().status().success()
        });
    }
    let kills: Vec<_> = (0..4)
        .map(|_| f.rsig.spawn_process(&["kill", &job, "USR1"]))
        .collect();
    kills.into_iter().for_each(|kill| {
        kill.wait().ok();
    });
    assert_final_count(&f, &job, 6, shell);

    // The end is reported, not just found by a later query.
    let job = f.spawn(&[], &["sleep", "1000"]);
    await_warm_relay(&f, &job);
    let start = Instant::now();
    f.rsig
        .run(&["kill", "-w", "20s", &job])
        .ok()
        .stdout_has("143 (TERM)");
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{shell}: {:?}",
        start.elapsed()
    );
    f.rsig.run(&["keeper", "stop", "--all"]).ok();
    assert_nothing_left(&f);
}

#[test]
fn relays_work_under_any_shell() {
    ["bash", "busybox", "mksh"]
        .into_iter()
        .for_each(check_relays_under);
}

/// A directory with every program that the scripts need, and with `more`. It is the only one in PATH.
fn bare_path(dir: &Path, more: &[&str]) -> PathBuf {
    let bin = dir.join("bare");
    fs::create_dir(&bin).expect("a new directory");
    // These are for the job and for rsig; the others are what a host must have.
    let own = ["sh", "env", "perl", "readlink", "printf", "sed"];
    let needed = [
        "cat", "date", "dd", "head", "ls", "mkdir", "mkfifo", "mv", "rm", "sleep", "tail", "tr",
        "uname", "wc",
    ];
    for program in needed
        .iter()
        .chain(own.iter().filter(|name| **name != "perl"))
        .chain(more)
    {
        symlink(program_path(program), bin.join(program)).expect("a new link");
    }
    bin
}

/// How a job is detached if setsid is missing. Perl, which the flow's jobs need, is given to them alone.
fn without_setsid(shell: &str, more: &[&str]) {
    let mut f = Site::Local.start();
    let rsig = Rsig::new();
    let bare = bare_path(rsig.dir(), more);
    f.rsig = rsig.with_shell(program_path(shell)).with_path(bare);
    main_flow_where_perl_is_elsewhere(&f);
}

fn main_flow_where_perl_is_elsewhere(f: &Fixture) {
    let job = f.spawn(&[], &["cat", "/proc/self/status", "/proc/self/stat"]);
    f.rsig.run(&["wait", &job]).ok();
    let told = f.rsig.run(&["tail", "-n", "all", &job]).ok().stdout();
    let field = |name: &str| {
        told.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
            .expect(name)
            .to_owned()
    };
    for mask in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(
            u64::from_str_radix(&field(mask), 16).expect("hexadecimal") & !(0b11 << 31),
            0,
            "{mask}: {told}"
        );
    }
    let stat: Vec<&str> = told.rsplit(") ").next().expect("stat").split(' ').collect();
    assert_eq!(stat[2], field("Pid"), "it leads its group: {told}");
    let job = f.spawn(&["-c"], &["echo one; sleep 1000; echo two"]);
    f.await_written(&job, "one\n");
    f.await_child(&job, "sleep");
    f.rsig
        .run(&["kill", "--target", "tree", &job, "INT"])
        .code(1)
        .stderr_has("needs awk");
    f.rsig
        .run(&["kill", &job, "INT", "-w", "20s"])
        .ok()
        .stdout_has("130 (INT)");
    let job = f.spawn(&["-c"], &["exit 7"]);
    f.rsig.run(&["wait", &job]).code(7);
    f.await_no_processes();
}

#[test]
fn perl_detaches_where_there_is_no_setsid() {
    without_setsid("dash", &["perl"]);
}

#[test]
fn python_detaches_where_there_is_no_perl() {
    without_setsid("dash", &["python3"]);
}

#[test]
fn bash_detaches_by_job_control_where_there_is_nothing() {
    without_setsid("bash", &[]);
}

#[test]
fn mksh_does_too() {
    without_setsid("mksh", &[]);
}

#[test]
fn nothing_detaches_a_job_where_job_control_does_not_work() {
    // Nor is it started in the process group of the command that asked for it.
    for shell in ["dash", "busybox"] {
        let rsig = Rsig::new();
        let bare = bare_path(rsig.dir(), &[]);
        let mut f = Site::Local.start();
        f.rsig = rsig.with_shell(program_path(shell)).with_path(bare);
        f.rsig
            .run(&["spawn", "local", "true"])
            .code(1)
            .stdout_is("")
            .stderr_has("a job can't be detached there");
        assert_eq!(f.job_ids_on_host(), [""; 0]);
    }
}

#[test]
fn every_login_shell_of_openssh_may_talk_as_it_likes() {
    every_login_shell_may_talk(&Server::openssh(Login::User));
}

#[test]
fn every_login_shell_of_dropbear_may_talk_as_it_likes() {
    every_login_shell_may_talk(&Server::dropbear(Login::Root));
}

fn every_login_shell_may_talk(options: &Options) {
    let chatter = "echo good morning; echo good evening >&2\n";
    for shell in Shell::ALL {
        let options = options.clone().shell(shell);
        let file = match shell {
            Shell::Bash => ".bashrc",
            Shell::Zsh => ".zshenv",
            Shell::Fish => ".config/fish/config.fish",
            Shell::Tcsh => ".tcshrc",
            Shell::Sh | Shell::Mksh => ".profile",
        };
        let talk = if shell == Shell::Tcsh {
            "echo good morning\n"
        } else {
            chatter
        };
        let f = Fixture::with(Some(options.home_file(file, talk).start()));
        let job = f.spawn(&[], &[&["printf", "%s\\0"], &WORDS[..]].concat());
        f.rsig.run(&["wait", &job]).ok();
        let tail = f.rsig.run(&["tail", "-f", "-n", "all", &job]);
        assert_eq!(
            tail.ok().stderr_is_empty().stdout(),
            WORDS.map(|word| format!("{word}\0")).concat(),
            "{shell:?}"
        );
        let job = f.spawn(&["-c"], &["sleep 1000; echo next"]);
        f.await_child(&job, "sleep");
        f.rsig
            .run(&["kill", &job, "INT", "-w", "20s"])
            .ok()
            .stdout_has("130 (INT)");
        f.rsig.run(&["rm", "--finished"]).ok();
        f.await_no_processes();
    }
}

/// Checks the script files, joined as rsig joins them.
#[test]
fn the_scripts_are_clean() {
    let file = |name: &str| {
        fs::read_to_string(format!(
            "{}/src/remote/{name}.sh",
            env!("CARGO_MANIFEST_DIR")
        ))
        .expect(name)
    };
    let about_jobs = ["frame", "host", "process", "lock", "look"];
    let scripts: [(&[&str], &str); 8] = [
        (
            &["frame", "host", "environ", "process", "spawn"],
            "rs_given= rs_nonce= rs_id= rs_meta= rs_cookie= rs_job= rs_supervise= rs_timeout=",
        ),
        (
            &[
                "host",
                "process",
                "watch",
                "tether",
                "spool",
                "ring",
                "supervise",
            ],
            "rs_taker= rs_ring= rs_keep= rs_pipes= rs_open= rs_limit= rs_tether= rs_holder= rs_holder_birth= rs_input= rs_output= rs_errors= rs_beside=",
        ),
        (&["host", "process", "job"], "rs_directory="),
        (
            &[&about_jobs[..], &["deliver", "send"]].concat(),
            "rs_nonce= claim= text= size= eof=",
        ),
        (
            &[&about_jobs[..], &["deliver", "await"]].concat(),
            "rs_nonce=",
        ),
        (&[&about_jobs[..], &["see", "forget"]].concat(), "rs_nonce="),
        (
            &[&about_jobs[..], &["stream", "tail"]].concat(),
            "rs_nonce= place= streams= from= count= follow= out_from= err_from=",
        ),
        (
            &[&about_jobs[..], &["stream", "search"]].concat(),
            "rs_nonce= place= regex=",
        ),
    ];
    for (files, given) in scripts {
        let text = files.iter().map(|name| file(name)).collect::<String>();
        // Not every script uses everything that the files set (SC2034) and define (SC2317).
        let given = given.replace('=', "=''");
        tool("shellcheck")
            .args(["-s", "sh", "-e", "SC2034,SC2317", "-"])
            .stdin(format!("{given}\n{text}"))
            .run()
            .ok();
    }
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/remote"))
        .expect("our own directory")
        .flatten()
    {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "sh") {
            assert!(
                fs::read_to_string(&path).expect("text").starts_with("# "),
                "{path:?} says what it is for"
            );
        }
    }
    tool("shellcheck")
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/harness/warden.sh"
        ))
        .run()
        .ok();
}

/// No shell or stream depends on what a login or its server does with standard error.
#[test]
fn a_login_without_standard_error_is_as_good_as_any() {
    let login = |line: &str| Server::openssh(Login::User).home_file(".bashrc", line);
    let forced = |redirection: &str| {
        let command = format!("ForceCommand eval \"$SSH_ORIGINAL_COMMAND\" {redirection}");
        Server::openssh(Login::User).config(&command)
    };
    let logins = [
        "exec 2>/dev/null\n",
        "exec 2>&-\n",
        "exec 2>&1\n",
        "exec 2>/dev/full\n",
        "exec 2</dev/null\n",
    ];
    let servers = ["2>/dev/null", "2>&1"];
    let all = logins.map(login).into_iter().chain(servers.map(forced));
    std::thread::scope(|scope| {
        for options in all {
            scope.spawn(move || works_in_one_login(&options));
        }
    });
}

fn works_in_one_login(options: &Options) {
    for keeper in [true, false] {
        let mut f = Fixture::with(Some(options.clone().start()));
        f.rsig.keeper = keeper;
        let logins = || {
            let log = f.server.as_ref().expect("a server").log();
            log.matches("Accepted publickey").count()
        };
        // After two seconds on a shared connection, a stream gets a private one.
        let moved =
            |start: Instant| usize::from(keeper && start.elapsed() >= Duration::from_secs(2));
        let line = "echo out; echo err >&2; sleep 0.5; cat; exit 3";
        let words = f.words("run", &[], &["--", "sh", "-c", line]);
        let start = Instant::now();
        let output = f.rsig.command(&words).stdin("in\n").run();
        let mut most = 1 + moved(start);
        output.code(3).stdout_is("out\nin\n");
        assert_eq!(output.stderr(), "err\n", "{output}");
        assert!((1..=most).contains(&logins()), "{output}");
        let line = "echo out; echo err >&2; sleep 1; echo end";
        let job = f.spawn(&[], &["sh", "-c", line]);
        let start = Instant::now();
        let tail = f.rsig.run(&["tail", "-f", "-n", "all", &job]);
        // Without a keeper, each command logs in.
        most += moved(start) + 2 * usize::from(!keeper);
        tail.ok().stdout_is("out\nend\n");
        assert_eq!(tail.stderr(), "err\n");
        assert!(logins() <= most, "{tail}");
        f.rsig.run(&["wait", &job]).ok();
    }
}
