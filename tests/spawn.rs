//! `rsig spawn`: what a job starts with, what it outlives, and what is refused.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use crate::harness::{Site, on_every_site, on_two_sites, poll_until, tool};
use crate::jobs::{STEP_TIMEOUT, json_lines};

/// Words that a shell, quoting or decoding could garble.
fn odd_words() -> Vec<OsString> {
    let mut words: Vec<OsString> = [
        "",
        " ",
        "'",
        "\"",
        "''\"'\"",
        "a'b\"c\\d",
        "new\nline\n",
        "\n",
        "$(id)",
        "`id`",
        "${HOME}",
        "$$",
        "!!",
        "*",
        "?",
        "[a-z]",
        "~",
        "#",
        ";",
        "&",
        "|",
        "<>",
        "-n",
        "--",
        "--name",
        "-",
        "\\",
        "\\n",
        "%s",
        "\u{1}\u{1b}[31m\u{7f}",
        "\r",
        "tab\there",
        "ümläut ☃",
    ]
    .map(OsString::from)
    .to_vec();
    words.push(OsString::from_vec((1..=255).collect()));
    words.push(OsString::from_vec(b"\xff\xfe\xc3".to_vec()));
    words.push(OsString::from("x".repeat(100_000)));
    words.push(OsString::from("'\n".repeat(50_000)));
    words
}

/// Whether any process of this machine shows `text` in its arguments.
fn is_in_some_argv(text: &str) -> bool {
    let shown = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    let found = |line: Vec<u8>| {
        line.windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    fs::read_dir("/proc")
        .expect("/proc is there")
        .flatten()
        .map(shown)
        .any(found)
}

/// The variables of a job that ran `env -0`.
fn variables(bytes: &[u8]) -> BTreeMap<String, OsString> {
    let entries = bytes
        .split(|byte| *byte == 0)
        .filter(|entry| !entry.is_empty());
    let pair = |entry: &[u8]| {
        let at = entry
            .iter()
            .position(|byte| *byte == b'=')
            .expect("KEY=VALUE");
        (
            String::from_utf8_lossy(&entry[..at]).into_owned(),
            OsStr::from_bytes(&entry[at + 1..]).to_owned(),
        )
    };
    entries.map(pair).collect()
}

on_every_site! {
    // `run` waits for the end of standard output, and so checks that the job does not hold it open.
    fn prints_the_id_alone_and_returns_while_the_job_runs(f: &Fixture) {
        let line = r#"job=$("$@") && echo "[$job]""#;
        let words = f.words("spawn", &["--name", "napper"], &["sleep", "1000"]);
        let rsig = env!("CARGO_BIN_EXE_rsig");
        let output = f.rsig.within(tool("sh")).args(["-c", line, "sh", rsig]).args(words).run();
        let id = output.ok().stderr_is_empty().line();
        let id = id.trim_start_matches('[').trim_end_matches(']');
        assert_eq!(f.job("napper")["id"], id);
        assert_eq!(f.state(id), "running");
        let json = json_lines(&f.rsig.run(&f.words("spawn", &["--json"], &["--", "true"])));
        assert_eq!((json.len(), &json[0]["command"], &json[0]["host"]), (1, &serde_json::json!(["true"]), &f.host.as_str().into()));
    }

    fn arguments_arrive_byte_for_byte(f: &Fixture) {
        let words = odd_words();
        let spawn = f.rsig.command(&f.words("spawn", &[], &["--", "printf", "%s\\0"])).args(&words).run();
        let job = spawn.ok().line();
        f.rsig.run(&["wait", &job]).ok();
        let expected: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
        assert!(f.rsig.run(&["tail", "-c", "+1", &job]).ok().stdout_bytes() == expected);
        // A command line is shown on one line, whatever it contains.
        assert_eq!(f.rsig.run(&["ps", &job]).ok().stdout().lines().count(), 2);
    }

    fn values_of_variables_arrive_and_stand_in_no_argv(f: &Fixture) {
        let secret = format!("s3cret-{}", f.rsig.dir().display());
        let odd = odd_words();
        let mut words = vec![OsString::from("spawn"), "-e".into(), "PASSED".into()];
        for (index, word) in odd.iter().enumerate() {
            words.extend(["-e".into(), [OsStr::new(&format!("ODD_{index}=")), word].into_iter().collect()]);
        }
        let rest = f.words("", &[], &["--", "sh", "-c", "env -0; exec sleep 1000"]);
        words.extend(rest[1..].iter().map(OsString::from));
        let spawn = f.rsig.command(&[]).args(words).env("PASSED", &secret);
        let job = std::thread::scope(|scope| {
            let job = scope.spawn(|| spawn.run().ok().line());
            while !job.is_finished() {
                assert!(!is_in_some_argv(&secret), "the value stood in an argv");
            }
            job.join().expect("it is spawned")
        });
        poll_until("it has written its environment", STEP_TIMEOUT, || f.process(&job).name == "sleep");
        let variables = variables(&fs::read(f.file(&job, "out")).expect("its log"));
        assert_eq!(variables["PASSED"], OsStr::new(&secret));
        for (index, word) in odd.iter().enumerate() {
            assert_eq!(&variables[&format!("ODD_{index}")], word, "{index}");
        }
        assert_eq!(variables["RSIG_JOB"], OsStr::new(&job));
        let cookie = variables["RSIG_COOKIE"].to_str().expect("plain text");
        assert!(cookie.len() == 32 && cookie.bytes().all(|byte| byte.is_ascii_hexdigit()), "{cookie}");
        assert!(!is_in_some_argv(&secret) && !is_in_some_argv(cookie));

        // The value is not written to disk either, on either side.
        let files = |dir| fs::read_dir(dir).expect("readable").flatten().filter(|entry| entry.file_name() != "out");
        for entry in files(f.rsig.state().to_owned()).chain(files(f.jobs_dir().join(&job))) {
            if entry.file_type().expect("a type").is_file() {
                let bytes = fs::read(entry.path()).expect("readable");
                assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{}", entry.path().display());
            }
        }
    }

    fn the_environment_is_that_of_a_command_over_ssh(f: &Fixture) {
        let job = f.spawn(&[], &["cat", "/proc/self/environ"]);
        f.rsig.run(&["wait", &job]).ok();
        let mut job = variables(f.rsig.run(&["tail", "-c", "+1", &job]).ok().stdout_bytes());
        assert!(job.remove("RSIG_JOB").is_some() && job.remove("RSIG_COOKIE").is_some());
        let mut expected = match &f.server {
            Some(server) => variables(server.run("exec cat /proc/self/environ").ok().stdout_bytes()),
            None => variables(f.rsig.within(tool("cat")).arg("/proc/self/environ").run().ok().stdout_bytes()),
        };
        // The connection differs.
        for name in ["SSH_CLIENT", "SSH_CONNECTION"] {
            assert_eq!(job.remove(name).is_some(), expected.remove(name).is_some(), "{name}");
        }
        assert_eq!(job, expected);
    }

    fn a_job_is_alone_with_dev_null_and_its_logs(f: &Fixture) {
        let line = "readlink /proc/$$/fd/0; ls -m /proc/self/fd; umask; tty; \
            read -r _ _ _ ppid pgid sid tty _ </proc/$$/stat; [ $$ = $pgid ] && [ $$ = $sid ] && echo leads $tty; wc -c";
        let job = f.spawn(&["-c"], &[line]);
        f.rsig.run(&["wait", &job]).ok();
        let umask = f.server.as_ref().map_or("0022\n".to_owned(), |server| server.run("exec sh -c umask").ok().stdout());
        let told = format!("/dev/null\n0, 1, 2, 3\n{umask}not a tty\nleads 0\n0\n");
        f.rsig.run(&["tail", "-n", "all", &job]).ok().stdout_is(&told).stderr_is_empty();
        let mode = |name: &str| fs::metadata(f.file(&job, name)).map(|data| data.permissions().mode() & 0o7777).expect(name);
        assert_eq!((mode(""), mode("out"), mode("err"), mode("pid"), mode("cookie")), (0o700, 0o600, 0o600, 0o600, 0o600));
        assert_eq!(fs::read(f.file(&job, "job")).expect("readable"), b"", "the script with its environment is emptied");
    }

    fn every_signal_is_at_its_default_whatever_rsig_itself_inherited(f: &Fixture) {
        let words = f.words("spawn", &[], &["--", "cat", "/proc/self/status"]);
        let lock = f.rsig.dir().join("lock");
        let start = r#"exec 9>"$0" && flock 9 && exec 7</etc/passwd "$@""#;
        let spawn = f.rsig.within(tool("sh")).args(["-c", start]).arg(&lock)
            .args(["env", "--ignore-signal", "--block-signal=TERM,USR1,USR2,WINCH", env!("CARGO_BIN_EXE_rsig")]).args(&words);
        let job = spawn.run().ok().line();
        f.rsig.run(&["wait", &job]).ok();
        let told = f.rsig.run(&["tail", "-n", "all", &job]).ok().stdout();
        for mask in ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"] {
            let line = told.lines().find_map(|line| line.strip_prefix(mask)).expect("a mask");
            let bits = u64::from_str_radix(line.trim_start_matches(":\t"), 16).expect("hexadecimal");
            assert_eq!(bits & !(0b11 << 31), 0, "{mask}: {told}");
        }
    }

    fn no_descriptor_of_rsigs_reaches_the_job(f: &Fixture) {
        let lock = f.rsig.dir().join("lock");
        let words = f.words("spawn", &[], &["--", "sleep", "1000"]);
        let start = r#"exec 9>"$0" && flock 9 && exec 7</etc/passwd "$@""#;
        let spawn = f.rsig.within(tool("sh")).args(["-c", start]).arg(&lock)
            .arg(env!("CARGO_BIN_EXE_rsig")).args(&words);
        let job = spawn.run().ok().line();
        tool("flock").arg("-n").arg(&lock).arg("true").run().ok();
        let process = f.process(&job);
        let is_its_own = |target: PathBuf| target == OsStr::new("/dev/null") || target.starts_with(f.jobs_dir());
        for process in [process.pid, process.ppid] {
            // A process that is about to execute a program has other descriptors open for a moment.
            poll_until("only its own are open", STEP_TIMEOUT, || {
                let open = fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").flatten();
                open.map(|entry| fs::read_link(entry.path())).all(|target| target.is_ok_and(is_its_own))
            });
        }
    }

    fn the_directory_is_the_home_or_the_one_given(f: &Fixture) {
        let home = f.job_home().to_owned();
        let odd = "it's a \"dir\"\nof $(mine)";
        for name in ["sub", odd, "-dash"] {
            fs::create_dir(home.join(name)).expect("a new directory");
        }
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).expect("ours");
        let from = |cwd: &[&str], expected: &std::path::Path| {
            let job = f.spawn(cwd, &["/bin/pwd"]);
            f.rsig.run(&["wait", &job]).ok();
            let told = f.rsig.run(&["tail", "-n", "all", &job]).ok().stdout();
            assert_eq!(told, format!("{}\n", expected.display()), "{cwd:?}");
        };
        from(&[], &home);
        from(&["-C", "sub"], &home.join("sub"));
        from(&["-C", "~/sub"], &home.join("sub"));
        from(&["-C", "~"], &home);
        from(&["-C", odd], &home.join(odd));
        from(&["--cwd=-dash"], &home.join("-dash"));
        from(&["-C", "/usr"], std::path::Path::new("/usr"));
    }

    fn a_job_outlives_its_connection_and_its_end_is_recorded(f: &Fixture) {
        let (job, gate) = f.spawn_gated(&[], 7);
        let terminal = f.rsig.command(&f.words("spawn", &["-n", "second"], &["sleep", "1000"])).tty(80, 24).wait();
        assert!(terminal.success());
        if let Some(server) = &f.server {
            server.kill_connections();
        }
        assert_eq!((f.state(&job).as_str(), f.state("second").as_str()), ("running", "running"));
        gate.open();
        f.rsig.run(&["wait", &job]).code(7);
    }
}

on_two_sites! {
    fn its_children_die_of_signals_and_of_broken_pipes(f: &Fixture) {
        for (signal, status) in [("HUP", 129), ("INT", 130), ("QUIT", 131)] {
            let plain = f.spawn(&[], &["sleep", "1000"]);
            let child = f.spawn(&["-c"], &["trap : HUP INT QUIT; echo ready; sleep 1000; echo $?"]);
            f.await_written(&child, "ready\n");
            f.await_child(&child, "sleep");
            f.rsig.run(&["kill", "-w", "20s", "-s", signal, &plain, &child]).ok();
            f.rsig.run(&["wait", &plain]).code(status);
            f.await_written(&child, &format!("ready\n{status}\n"));
        }
        let job = f.spawn(&["-c"], &["yes | head -n 1; echo done"]);
        f.rsig.run(&["wait", &job]).ok();
        f.rsig.run(&["tail", &job]).ok().stdout_is("y\ndone\n").stderr_is_empty();
    }

    fn standard_error_stays_apart_or_is_merged_in_order(f: &Fixture) {
        let line = "for n in 1 2 3; do echo out $n; echo err $n >&2; done";
        let apart = f.spawn(&["-c"], &[line]);
        let merged = f.spawn(&["--merge", "-c"], &[line]);
        f.rsig.run(&["wait", &apart, &merged]).ok();
        let tail = |job: &str| f.rsig.run(&["tail", "-n", "all", job]);
        assert_eq!(tail(&apart).ok().stdout_is("out 1\nout 2\nout 3\n").stderr(), "err 1\nerr 2\nerr 3\n");
        tail(&merged).ok().stdout_is("out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n").stderr_is_empty();
    }

    fn what_cannot_start_is_refused_and_leaves_nothing(f: &Fixture) {
        let home = f.job_home().to_owned();
        fs::write(home.join("plain"), "").expect("the home is writable");
        let cases: [(&[&str], &[&str], &str); 8] = [
            (&[], &["no-such-command"], "command not found: there is no no-such-command in its PATH"),
            (&[], &["/no/such/file"], "command not found: there is no file /no/such/file"),
            (&[], &["./plain"], "./plain is not executable"),
            (&[], &["/usr"], "/usr is a directory"),
            (&["-C", "/no/such/dir"], &["true"], "there is no directory /no/such/dir"),
            (&["-C", "plain"], &["true"], "plain"),
            (&["-n", "busy"], &["no'such\n$(command)"], "no'such"),
            (&[], &["-no-such-option"], "there is no -no-such-option in its PATH"),
        ];
        for (options, command, message) in cases {
            let output = f.rsig.run(&f.words("spawn", options, &[&["--"], command].concat()));
            output.code(1).stdout_is("").stderr_has(message).stderr_has(&f.host);
            assert_eq!(output.stderr().lines().count(), 1, "{output}");
        }
        f.await_no_processes();
        assert_eq!(f.job_ids_on_host(), [""; 0]);
        f.rsig.run(&["ps", "-aq"]).ok().stdout_is("");
    }

    fn a_home_that_cannot_be_written_is_refused(f: &Fixture) {
        let in_the_way = f.job_home().join(".local");
        fs::write(&in_the_way, "").expect("the home is writable");
        f.rsig.run(&f.words("spawn", &[], &["true"])).code(1).stdout_is("").stderr_has("the job's files can't be written");
        fs::remove_file(&in_the_way).expect("it is there");
        if f.site == Site::OpenSshUser {
            fs::set_permissions(f.job_home(), fs::Permissions::from_mode(0o500)).expect("ours");
            f.rsig.run(&f.words("spawn", &[], &["true"])).code(1).stdout_is("").stderr_has("Permission denied");
            fs::set_permissions(f.job_home(), fs::Permissions::from_mode(0o700)).expect("ours");
        }
        f.await_no_processes();
        f.rsig.run(&["ps", "-aq"]).ok().stdout_is("");
        f.spawn(&[], &["true"]);
    }

    fn its_input_is_on_the_host_before_it_starts(f: &Fixture) {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 + n / 251).to_le_bytes()[0]).collect();
        let file = f.rsig.dir().join("input");
        fs::write(&file, &bytes).expect("a new file");
        let path = file.to_str().expect("UTF-8");
        for (given, own, expected) in
            [(path, &b""[..], &bytes[..]), ("-", &bytes[..70_000], &bytes[..70_000]), ("-", b"", b""), ("/dev/null", b"", b"")]
        {
            let job = f.rsig.command(&f.words("spawn", &["--stdin", given], &["sh", "-c", "[ -f /dev/stdin ] && cat"]))
                .stdin(own).run().ok().line();
            f.rsig.run(&["wait", &job]).ok();
            assert!(fs::read(f.file(&job, "out")).expect("readable") == expected, "{given}");
        }
        f.rsig.run(&f.words("spawn", &["--stdin", "no-such"], &["cat"])).code(2).stderr_has("--stdin no-such");
        // A file that has no length, and still something to read.
        let job = f.rsig.run(&f.words("spawn", &["--stdin", "/proc/version"], &["cat"])).ok().line();
        f.rsig.run(&["wait", &job]).ok();
        assert_eq!(f.written(&job), fs::read_to_string("/proc/version").expect("Linux"));
        f.rsig.run(&f.words("spawn", &["--stdin", path, "-C", "/no/such"], &["cat"])).code(1).stderr_has("/no/such");
        assert_eq!(f.job_ids_on_host().len(), 5);
    }

    fn a_name_is_taken_until_its_job_has_ended(f: &Fixture) {
        let (job, gate) = f.spawn_gated(&["-n", "train"], 0);
        let again = f.rsig.run(&f.words("spawn", &["-n", "train"], &["true"]));
        again.code(1).stdout_is("").stderr_has("the name train is taken").stderr_has(&job);
        assert_eq!(f.job_ids_on_host(), [job.as_str()]);
        gate.open();
        poll_until("it ends", STEP_TIMEOUT, || f.has_ended(&job));
        // This machine still considers the job running; the host knows better.
        let next = f.spawn(&["-n", "train"], &["sleep", "1000"]);
        assert_eq!(f.job("train")["id"], next.as_str());
        f.rsig.run(&["kill", "train", "KILL", "-w", "20s"]).ok();
        assert_eq!(f.job("train")["id"], next.as_str(), "the newest of several that have ended");
    }
}

/// OLDPWD is the home: a shell that changes from its login's directory to `/` sets the same value.
#[test]
fn a_job_gets_its_logins_previous_directory() {
    let f = Site::Local.start();
    let home = f.rsig.home().to_str().expect("UTF-8");
    let spawn = ["spawn", "local", "printenv", "OLDPWD"];
    let job = f.rsig.command(&spawn).env("OLDPWD", home).run().ok().line();
    f.rsig.run(&["wait", &job]).ok();
    assert_eq!(f.written(&job), format!("{home}\n"));
}

#[test]
fn a_command_may_begin_with_a_dash() {
    let f = Site::Local.start();
    let bin = f.rsig.dir().join("bin");
    fs::create_dir(&bin).expect("a new directory");
    symlink("/usr/bin/printf", bin.join("-odd")).expect("a new link");
    let path = format!("PATH={}:/usr/bin:/bin", bin.display());
    let job = f.spawn(&["-e", &path], &["-odd", "%s\n", "-n"]);
    f.rsig.run(&["wait", &job]).ok();
    f.rsig.run(&["tail", &job]).ok().stdout_is("-n\n");
}

#[test]
fn usage_is_checked_before_anything_else() {
    let f = Site::Local.start();
    let cases: [(&[&str], &str); 12] = [
        (&["spawn", "-t", "local", "true"], "has none"),
        (&["spawn", "-n", "../../etc", "local", "true"], "a name is"),
        (&["spawn", "-n", "", "local", "true"], "a name is"),
        (
            &["spawn", "-e", "UNSET", "local", "true"],
            "no such variable here",
        ),
        (&["spawn", "-e", "1X=y", "local", "true"], "1X"),
        (
            &["spawn", "-c", "local", "echo", "two"],
            "-c takes COMMAND as one word",
        ),
        (&["spawn", "local", ""], "the command is empty"),
        (&["spawn", "local"], "COMMAND"),
        (
            &["spawn", "--no-such", "local", "true"],
            "unexpected argument",
        ),
        (&["spawn", "web1;id", "true"], "web1;id"),
        (
            &["spawn", "--", "-oProxyCommand=id", "true"],
            "-oProxyCommand",
        ),
        (&["spawn", "web1:99999", "true"], "web1:99999"),
    ];
    for (words, message) in cases {
        f.rsig.run(words).code(2).stdout_is("").stderr_has(message);
    }
    assert_eq!(
        fs::read_dir(f.rsig.state())
            .expect("the state directory")
            .count(),
        0
    );
}

/// A default ACL replaces the umask.
#[test]
fn a_default_acl_opens_no_file() {
    let f = Site::Local.start();
    let line = r#"import os, struct, sys
entries = [(1, 7, -1), (4, 7, -1), (8, 7, 4), (16, 7, -1), (32, 5, -1)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
os.setxattr(sys.argv[1], "system.posix_acl_default", acl)"#;
    tool("python3")
        .args(["-c", line])
        .arg(f.rsig.home())
        .run()
        .ok();
    let job = f.spawn(&["--timeout", "1h"], &["sleep", "1000"]);
    f.rsig.run(&["kill", &job, "CONT"]).ok();
    f.rsig.run(&["kill", "-w", "20s", &job]).ok();
    f.rsig
        .run(&f.words("run", &["--keep"], &["sh", "-c", "echo out; echo err >&2"]))
        .ok();
    let mut directories = vec![f.jobs_dir().parent().expect("rsig").to_owned()];
    while let Some(directory) = directories.pop() {
        let mode = |path: &std::path::Path| {
            fs::metadata(path)
                .expect("it is there")
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode(&directory), 0o700, "{}", directory.display());
        for entry in fs::read_dir(&directory).expect("readable").flatten() {
            if entry.file_type().expect("a type").is_dir() {
                directories.push(entry.path());
            } else {
                assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
            }
        }
    }
}
