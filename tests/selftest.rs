//! The harness tested by itself: what it promises to the other tests holds.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::keys::{Format, Type};
use crate::harness::running::tool;
use crate::harness::scratch::Scratch;
use crate::harness::tty::{CTRL_C, ENTER};
use crate::harness::{
    self, Agent, Direction, Login, Options, Proxy, Rsig, SOON, Server, Shell, Site, keys,
    on_every_site, poll_until, procs,
};
use crate::kit::{Sayer, Says};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn each_server() -> [Options; 4] {
    [
        Server::openssh(Login::Root),
        Server::openssh(Login::User),
        Server::dropbear(Login::Root),
        Server::dropbear(Login::User),
    ]
}

/// Starts a process that outlives the session and tells its pid.
fn leave_a_job(server: &Server) -> i32 {
    let pid = server
        .run("sh -c 'setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!'")
        .ok()
        .line();
    pid.parse().expect("a pid")
}

/// What a script needs to listen on a port and send back what it gets.
fn echo_server() -> (u16, std::thread::JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut copy = stream.try_clone().expect("a descriptor");
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    (port, thread)
}

#[test]
fn every_server_logs_in_with_the_accounts_own_home() {
    for options in each_server() {
        let server = options.start();
        let output = server.run("id -u; echo $HOME; env").ok().stdout();
        let mut lines = output.lines();
        assert_eq!(lines.next(), Some(server.uid().to_string().as_str()));
        assert_eq!(lines.next().map(Path::new), Some(server.home()));
        assert!(
            output.contains(&format!("USER={}\n", server.user())),
            "{output}"
        );
        assert!(
            !output.contains("NSS_WRAPPER") && !output.contains("LD_PRELOAD"),
            "{output}"
        );
        assert!(!server.log().is_empty());
    }
}

#[test]
fn every_login_shell_serves() {
    for shell in Shell::ALL {
        for options in [Server::openssh(Login::User), Server::dropbear(Login::Root)] {
            let server = options.shell(shell).start();
            let told = server
                .run("echo $SHELL; exec /bin/sh -c 'echo it runs'")
                .ok()
                .stdout();
            let name = format!("{shell:?}").to_lowercase();
            assert!(
                told.starts_with('/') && told.contains(&format!("/{name}\nit runs\n")),
                "{shell:?}: {told}"
            );
        }
    }
}

#[test]
fn a_session_has_every_signal_at_its_default() {
    for options in each_server() {
        let masks = options
            .start()
            .run("exec grep -E '^Sig(Blk|Ign)' /proc/self/status")
            .ok()
            .stdout();
        for line in masks.lines() {
            let mask = line
                .split('\t')
                .nth(1)
                .map(|digits| u64::from_str_radix(digits, 16));
            // 32 and 33 are libc's own: cargo's posix_spawn leaves one ignored, and no program can undo it.
            assert_eq!(
                mask.expect("a mask").expect("hexadecimal") & !(0b11 << 31),
                0,
                "{masks}"
            );
        }
    }
}

#[test]
fn what_the_tests_were_started_with_does_not_matter() {
    for test in [
        "a_session_has_every_signal_at_its_default",
        "a_terminal_is_controlling_has_its_size_and_takes_keys",
    ] {
        let again = Command::new("env")
            .arg("--ignore-signal=HUP,INT,QUIT,TERM")
            .arg(std::env::current_exe().expect("our own path"))
            .args(["--exact", &format!("selftest::{test}")])
            .output()
            .expect("we can be started");
        let told = String::from_utf8_lossy(&again.stdout);
        assert!(
            again.status.success() && told.contains("1 passed"),
            "{told}"
        );
    }
}

#[test]
fn every_host_key_type_is_known_to_the_client() {
    let types = [Type::Ed25519, Type::Rsa, Type::Ecdsa];
    for options in [Server::openssh(Login::Root), Server::dropbear(Login::Root)] {
        let server = options.host_keys(&types).start();
        assert_eq!(server.host_keys().len(), types.len());
        for algorithm in ["ssh-ed25519", "rsa-sha2-256", "ecdsa-sha2-nistp256"] {
            server
                .ssh()
                .args(["-o", &format!("HostKeyAlgorithms={algorithm}"), "true"])
                .run()
                .ok();
        }
    }
}

#[test]
fn sshd_config_lines_win_and_match_comes_last() {
    let server = Server::openssh(Login::User)
        .config("PermitRootLogin no\nBanner {dir}/banner\nMatch User *\n  ForceCommand echo forced")
        .file("banner", "welcome, stranger\n")
        .start();
    server
        .run("echo asked")
        .ok()
        .stdout_is("forced\n")
        .stderr_has("welcome, stranger");
}

#[test]
fn a_chatty_rc_file_speaks_first() {
    let server = Server::openssh(Login::User)
        .home_file(".bashrc", "echo good morning\n")
        .start();
    server
        .run("echo here")
        .ok()
        .stdout_is("good morning\nhere\n");
    let server = Server::dropbear(Login::Root)
        .shell(Shell::Zsh)
        .home_file(".zshenv", "echo moin\n")
        .start();
    server.run("echo here").ok().stdout_is("moin\nhere\n");
}

#[test]
fn passwords_let_in_by_each_method() {
    let cases = [
        (Server::openssh(Login::Root).password("sesame"), "password"),
        (Server::openssh(Login::User).password("sesame"), "password"),
        (
            Server::openssh(Login::User).keyboard_interactive("sesame"),
            "keyboard-interactive",
        ),
        (Server::dropbear(Login::User).password("sesame"), "password"),
    ];
    for (options, method) in cases {
        let server = options.start();
        for (typed, code) in [("sesame", 0), ("simsalabim", 255)] {
            let only = format!("PreferredAuthentications={method}");
            let mut terminal = server
                .ssh()
                .args(["-o", "NumberOfPasswordPrompts=1", "-o", &only, "true"])
                .tty(80, 24);
            terminal.wait_for("assword:");
            poll_until("the password is not shown", SOON, || !terminal.echoes());
            terminal.send(typed);
            terminal.send(ENTER);
            assert_eq!(terminal.wait().code(), Some(code), "{}", terminal.text());
            assert!(!terminal.text().contains(typed), "{}", terminal.text());
        }
    }
}

#[test]
fn keys_of_every_kind_let_in_once_they_are_authorized() {
    let server = Server::openssh(Login::User).start();
    let kinds = [
        (Type::Ed25519, Format::OpenSsh),
        (Type::Rsa, Format::Pem),
        (Type::Ecdsa, Format::Pem),
    ];
    for (index, (kind, format)) in kinds.into_iter().enumerate() {
        let key = keys::generate(&server.dir().join(format!("key{index}")), kind, "", format);
        let config =
            server.ssh_config_with("keyed", &format!("IdentityFile {}", key.private.display()));
        let home = server.dir().join("client");
        let ssh = || {
            let ssh = tool("ssh", "openssh-client")
                .env("HOME", &home)
                .arg("-F")
                .arg(&config);
            ssh.args(["-v", "keyed", "true"]).run()
        };
        let accepted = format!("Server accepts key: {}", key.private.display());
        ssh().ok().stderr_lacks(&accepted);
        server.add_authorized(&key.public);
        ssh().ok().stderr_has(&accepted);
    }
}

#[test]
fn an_agent_holds_keys_and_certificates_can_be_made() {
    let server = Server::openssh(Login::Root).start();
    let agent = Agent::start();
    assert_eq!(agent.list(), "");
    let key = keys::generate(
        &server.dir().join("locked"),
        Type::Ed25519,
        "open up",
        Format::OpenSsh,
    );
    server.add_authorized(&key.public);
    agent.add(&key);
    let body = |line: &str| line.split(' ').nth(1).map(str::to_owned);
    assert_eq!(body(&agent.list()), body(&key.public));
    let config = server.ssh_config_with("host", "IdentitiesOnly no\nIdentityFile none");
    let ssh = tool("ssh", "openssh-client")
        .env("SSH_AUTH_SOCK", agent.socket())
        .env("HOME", server.dir());
    ssh.arg("-F")
        .arg(config)
        .args(["host", "echo in"])
        .run()
        .ok()
        .stdout_is("in\n");

    let authority = keys::generate(
        &server.dir().join("authority"),
        Type::Ed25519,
        "",
        Format::OpenSsh,
    );
    assert!(keys::certify(&authority, &key, "root").is_file());
}

#[test]
fn a_server_is_its_own_listener_stops_and_comes_back_on_its_port() {
    for options in each_server() {
        let mut server = options.start();
        let port = server.port();
        let job = leave_a_job(&server);
        let mut session = server.ssh().arg("echo up; exec sleep 1000").start();
        session.wait_for_stdout("up");
        assert!(!server.connections().is_empty());
        let runs =
            |server: &Server, pid| server.processes().iter().any(|process| process.pid == pid);
        assert!(runs(&server, job));

        server.kill_connections();
        poll_until("the client notices", SOON, || session.has_ended());
        session.wait().code(255);
        server.run("true").ok();

        server.stop();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        server.run("true").code(255);
        server.restart();
        assert_eq!(server.port(), port);
        server.run("true").ok();
        assert!(runs(&server, job), "jobs outlive their server");
    }
}

#[test]
fn nothing_of_a_server_is_left_after_drop() {
    for options in each_server() {
        let server = options.start();
        let (dir, uid) = (server.dir().to_owned(), server.uid());
        let user = (uid != 0).then_some(uid);
        let job = leave_a_job(&server);
        let mut session = server.ssh().arg("echo up; exec sleep 1000").start();
        session.wait_for_stdout("up");
        let before = procs::belonging_to(&dir, user);
        assert!(before.len() >= 4, "{}", procs::listing(&before));
        drop(server);
        assert!(!dir.exists());
        assert!(procs::Process::find(job).is_none());
        let left: Vec<_> = before.into_iter().filter(procs::Process::runs).collect();
        assert!(
            left.iter().all(|process| process.pid == session.pid()),
            "{}",
            procs::listing(&left)
        );
        poll_until("the client notices", SOON, || session.has_ended());
    }
}

#[test]
fn a_panicking_test_leaves_nothing() {
    let (send, receive) = std::sync::mpsc::channel();
    let outcome = std::thread::spawn(move || {
        let server = Server::openssh(Login::User).start();
        let job = leave_a_job(&server);
        send.send((server.dir().to_owned(), server.port(), job))
            .expect("somebody listens");
        panic!("on purpose");
    })
    .join();
    assert!(outcome.is_err());
    let (dir, port, job) = receive.recv().expect("the server had started");
    assert!(!dir.exists() && procs::Process::find(job).is_none());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "started by a_killed_test_process_leaves_nothing"]
fn helper_that_is_killed() {
    let Ok(file) = std::env::var("HARNESS_SELFTEST_FILE") else {
        return;
    };
    let servers: Vec<_> = each_server().into_iter().map(Options::start).collect();
    let _proxies: Vec<_> = servers
        .iter()
        .map(|server| Proxy::start(server.port(), Duration::ZERO))
        .collect();
    let mut told = format!("{}\n", harness::base().display());
    let _agent = Agent::start();
    let local = Site::Local.start();
    local.spawn(&[], &["sleep", "1000"]);
    for server in &servers {
        told.push_str(&leave_a_job(server).to_string());
        told.push('\n');
    }
    fs::write(format!("{file}.new"), told).expect("the directory is there");
    fs::rename(format!("{file}.new"), &file).expect("the directory is there");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_test_process_leaves_nothing() {
    let scratch = Scratch::new();
    let file = scratch.path().join("told");
    let mut helper = Command::new(std::env::current_exe().expect("our own path"))
        .args(["--ignored", "--exact", "selftest::helper_that_is_killed"])
        .env("HARNESS_SELFTEST_FILE", &file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("we can be started");
    poll_until("the helper has started everything", SOON * 3, || {
        file.exists()
    });
    let told = fs::read_to_string(&file).expect("its report");
    let mut lines = told.lines();
    let base = PathBuf::from(lines.next().expect("its directory"));
    let jobs: Vec<_> = lines
        .filter_map(|pid| procs::Process::find(pid.parse().expect("a pid")))
        .collect();
    assert_eq!(jobs.len(), 4);
    let before = procs::belonging_to(&base, None);
    assert!(before.len() >= 10, "{}", procs::listing(&before));

    helper.kill().expect("it runs");
    helper.wait().expect("it is our child");
    poll_until("the warden has removed everything", SOON * 3, || {
        !base.exists()
    });
    let left: Vec<_> = before
        .into_iter()
        .chain(jobs)
        .filter(procs::Process::runs)
        .collect();
    assert!(left.is_empty(), "{}", procs::listing(&left));
}

#[test]
fn a_job_that_sheds_its_environment_and_directory_is_still_found_by_its_user() {
    let server = Server::dropbear(Login::User).start();
    let line = "sh -c 'cd /; setsid env -i sleep 1000 </dev/null >/dev/null 2>&1 & echo $!'";
    let pid: i32 = server.run(line).ok().line().parse().expect("a pid");
    poll_until("it has shed its environment", SOON, || {
        procs::Process::find(pid).is_some_and(|process| process.name == "sleep")
    });
    assert!(server.processes().iter().any(|process| process.pid == pid));
    drop(server);
    assert!(procs::Process::find(pid).is_none());
}

#[test]
fn a_proxy_delays_each_way_by_a_delay_line() {
    let (port, _echo) = echo_server();
    let proxy = Proxy::start(port, Duration::from_millis(50));
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).expect("the proxy listens");
    stream.set_nodelay(true).expect("a socket option");
    let mut answer = [0; 4];
    // Of several trips the quickest: a busy machine adds to some.
    let trips = [(); 5].map(|()| {
        let start = Instant::now();
        stream.write_all(b"ping").expect("sent");
        stream.read_exact(&mut answer).expect("an answer");
        start.elapsed()
    });
    let quickest = *trips.iter().min().expect("some");
    assert!(
        quickest >= Duration::from_millis(100) && quickest < Duration::from_millis(300),
        "{trips:?}"
    );

    // A delay line: chunks are under way together. With a sleep per read these 128 would take 6 s each way.
    let start = Instant::now();
    let mut sender = stream.try_clone().expect("a descriptor");
    let sending = std::thread::spawn(move || sender.write_all(&vec![7; 2 << 20]));
    stream.read_exact(&mut vec![0; 2 << 20]).expect("all of it");
    sending.join().expect("no panic").expect("sent");
    let all = start.elapsed();
    assert!(
        all >= Duration::from_millis(100) && all < Duration::from_secs(3),
        "{all:?}"
    );
    assert_eq!(proxy.bytes(Direction::ToServer), 5 * 4 + (2 << 20));
    assert_eq!(proxy.bytes(Direction::ToClient), 5 * 4 + (2 << 20));
    assert_eq!((proxy.connections(), proxy.open_connections()), (1, 1));
    assert!(proxy.turns() >= 1);
}

#[test]
fn a_proxy_cuts_holds_refuses_and_counts() {
    let (port, echo) = echo_server();
    let proxy = Proxy::start(port, Duration::ZERO);
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).expect("the proxy listens");
    let mut answer = [0; 4];

    proxy.hold(Direction::ToClient);
    stream.write_all(b"held").expect("sent");
    poll_until("it reaches the server", SOON, || {
        proxy.bytes(Direction::ToServer) == 4
    });
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a socket option");
    assert!(stream.read(&mut answer).is_err());
    assert_eq!(proxy.bytes(Direction::ToClient), 0);
    proxy.release();
    stream
        .set_read_timeout(Some(SOON))
        .expect("a socket option");
    stream.read_exact(&mut answer).expect("it comes late");
    assert_eq!(&answer, b"held");

    proxy.cut();
    let error = stream.read(&mut answer).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(proxy.open_connections(), 0);
    echo.join().expect("the server saw the end");

    let (port, _echo) = echo_server();
    let proxy = Proxy::start(port, Duration::ZERO);
    proxy.cut_after_bytes(Direction::ToClient, 6);
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).expect("the proxy listens");
    stream.write_all(b"a few bytes").expect("sent");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("a clean end");
    assert_eq!(got, b"a few ");

    proxy.refuse(true);
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).expect("the proxy listens");
    assert_eq!(stream.read(&mut answer).expect("a close"), 0);
    assert_eq!(proxy.connections(), 2);
}

#[test]
fn a_proxy_freezes_what_is_open_and_nothing_else() {
    let sayer = Sayer::start(Says::Forever(vec![b'x'; 1000]));
    let proxy = Proxy::start(sayer.port(), Duration::ZERO);
    let connect = || TcpStream::connect(("127.0.0.1", proxy.port())).expect("the proxy listens");
    let mut buffer = [0; 4096];
    let mut old = connect();
    old.read_exact(&mut buffer).expect("it speaks");
    proxy.freeze();
    old.set_read_timeout(Some(Duration::from_secs(1)))
        .expect("a socket option");
    // What had passed by then still comes.
    while old.read(&mut buffer).is_ok() {}
    connect()
        .read_exact(&mut buffer)
        .expect("a new one is free");
    assert!(old.read(&mut buffer).is_err());
    proxy.release();
    old.set_read_timeout(Some(SOON)).expect("a socket option");
    old.read_exact(&mut buffer).expect("it goes on");
}

#[test]
fn ssh_works_through_a_slow_proxy_and_ends_when_it_is_cut() {
    let server = Server::openssh(Login::User).start();
    let proxy = Proxy::start(server.port(), Duration::from_millis(20));
    let config = server.ssh_config_through("slow", &proxy);
    let ssh = || {
        tool("ssh", "openssh-client")
            .env("HOME", server.dir())
            .arg("-F")
            .arg(&config)
            .arg("slow")
    };
    let start = Instant::now();
    ssh().arg("head -c 3000000 /dev/zero").run().ok();
    assert!(
        start.elapsed() >= Duration::from_millis(200),
        "ssh needs more than five round trips"
    );
    assert!(proxy.bytes(Direction::ToClient) > 3_000_000);
    assert!(proxy.turns() > 10);

    let session = ssh().arg("echo up; exec sleep 1000").start();
    session.wait_for_stdout("up");
    proxy.cut();
    session.wait().code(255);
}

#[test]
fn a_terminal_is_controlling_has_its_size_and_takes_keys() {
    let script = "stty size; read line </dev/tty; echo got $line; trap 'stty size' WINCH; trap 'echo INT; exit 7' INT
        echo ready; while :; do sleep 0.01; done";
    let scratch = Scratch::new();
    let shell = tool("bash", "bash")
        .env("HOME", scratch.path())
        .args(["-c", script]);
    let mut terminal = shell.tty(80, 24);
    terminal.wait_for("24 80\n");
    terminal.send("two words\r");
    terminal.wait_for("got two words\nready\n");
    terminal.resize(132, 50);
    terminal.wait_for("50 132\n");
    terminal.send(CTRL_C);
    terminal.wait_for("INT\n");
    assert_eq!(terminal.wait().code(), Some(7));
}

#[test]
fn a_run_that_is_too_long_is_killed_and_shows_its_output() {
    let scratch = Scratch::new();
    let shell = |line: &str| {
        tool("sh", "dash")
            .env("HOME", scratch.path())
            .args(["-c", line])
    };
    let limit = Duration::from_secs(1);
    let message = |line: &str| {
        let run = std::panic::AssertUnwindSafe(|| drop(shell(line).limit(limit).run()));
        let payload = std::panic::catch_unwind(run).expect_err("it takes too long");
        payload.downcast_ref::<String>().expect("a text").clone()
    };
    let hung = message("echo so far; exec sleep 1000");
    assert!(
        hung.contains("still runs") && hung.contains("so far"),
        "{hung}"
    );
    let held = message("sleep 1000 & echo done");
    assert!(held.contains("still holds its stdout"), "{held}");
    poll_until("only what was left in the background runs", SOON, || {
        scratch.processes().len() == 1
    });
}

#[test]
fn output_asserts_and_input_arrives() {
    let shell = |line: &str| tool("sh", "dash").args(["-c", line]);
    shell("cat; echo oops >&2; exit 3")
        .stdin("given")
        .run()
        .code(3)
        .stdout_is("given")
        .stderr_has("oops");
    shell("kill -TERM $$").run().ended_by(Signal::SIGTERM);
    shell("env")
        .env("MORE", "yes")
        .run()
        .ok()
        .stdout_has("MORE=yes\n")
        .stderr_is_empty();
    let mut cat = tool("cat", "coreutils").stdin_open().start();
    cat.write("one\n");
    cat.wait_for_stdout("one");
    cat.close_stdin();
    cat.wait().ok().stdout_is("one\n");
    let sleeper = tool("sleep", "coreutils").arg("1000").start();
    let pid = sleeper.pid();
    drop(sleeper);
    assert!(procs::Process::find(pid).is_none());
}

#[test]
#[should_panic(expected = "apt-get install no-such-package")]
fn a_missing_program_names_its_package() {
    drop(tool("no-such-program", "no-such-package"));
}

#[test]
fn rsig_runs_with_a_home_of_its_own() {
    let rsig = Rsig::new();
    rsig.run(&["--version"]).ok().stdout_has("rsig ");
    rsig.run(&["no-such-command"])
        .code(2)
        .stderr_has("no-such-command");
    assert!(rsig.processes().is_empty());
    let other = Rsig::new();
    assert_ne!(rsig.state(), other.state());
}

on_every_site! {
    fn a_job_outlives_rsig_and_is_cleared_away(f: &Fixture) {
        f.spawn(&[], &["sleep", "1000"]);
        poll_until("the job runs", SOON, || f.processes().iter().any(|process| process.name == "sleep"));
        let jobs = f.processes();
        let job = jobs.iter().find(|process| process.name == "sleep").expect("it runs");
        assert_eq!(f.server.is_some(), f.site != Site::Local);
        kill(Pid::from_raw(job.pid), Signal::SIGKILL).expect("it runs");
        poll_until("the job is gone", SOON, || !job.runs());
        f.spawn(&[], &["sleep", "1000"]);
    }
}
