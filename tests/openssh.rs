//! `openssh://`: the `ssh` program connects, once for all commands.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::kerberos::Realm;
use crate::harness::keys::{self, Format, Type};
use crate::harness::{Fixture, Login, Output, Rsig, STEP_TIMEOUT, Server, poll_until, tool};
use crate::jobs::json_lines;
use crate::keepers::{keeper_pids, kill9, with_keeper};
use crate::kit::{FixedReply, FixedServer, assert_clear_message, config_for};

/// A server that commands reach through the `ssh` program.
fn by_openssh(server: Server) -> Fixture {
    let mut f = with_keeper(server);
    "openssh://server".clone_into(&mut f.host);
    f
}

/// The number of `ssh` processes that hold a connection.
fn masters(f: &Fixture) -> usize {
    let all = f.rsig.processes();
    all.iter()
        .filter(|process| process.name == "ssh" && process.cmdline.contains(".m"))
        .count()
}

#[track_caller]
fn run(f: &Fixture, options: &[&str], command: &[&str]) -> Output {
    f.rsig
        .run(&f.words("run", options, &[&["--"], command].concat()))
}

#[test]
fn everything_works_by_the_ssh_program() {
    let f = by_openssh(Server::openssh(Login::User).start());
    let words = f.words(
        "run",
        &[],
        &["--", "sh", "-c", "cat; pwd; echo oops >&2; exit 3"],
    );
    let home = f.job_home().display().to_string();
    f.rsig
        .command(&words)
        .stdin("in\n")
        .run()
        .code(3)
        .stdout_is(&format!("in\n{home}\n"))
        .stderr_has("oops");
    run(
        &f,
        &["--prefix", "env INSIDE='a b'"],
        &["sh", "-c", "echo \"$INSIDE\""],
    )
    .ok()
    .stdout_is("a b\n");
    let job = f.spawn(
        &["-n", "train"],
        &[
            "sh",
            "-c",
            "trap 'exit 7' TERM; echo on; while :; do sleep 0.1; done",
        ],
    );
    let follower = f.rsig.spawn_process(&["tail", "-f", "train"]);
    follower.wait_for_stdout("on\n");
    let told = json_lines(f.rsig.run(&["kill", "--json", "-w", "20s", "train"]).ok()).remove(0);
    assert_eq!(
        [&told["via"], &told["exit_status"], &told["host"]],
        [
            &Value::from("pid"),
            &7.into(),
            &Value::from("openssh://server")
        ]
    );
    follower.wait().ok();
    f.rsig.run(&["wait", &job]).code(7);
    let connect: Vec<&str> = f.connect.iter().map(String::as_str).collect();
    let words = [&["ps", "--discover", "--host", &f.host][..], &connect].concat();
    f.rsig.run(&words).ok().stdout_has(&job);
    // One keeper for the host, and one for the prefix. `tail` may have had a private one.
    poll_until("two keepers are left", STEP_TIMEOUT, || {
        keeper_pids(&f).len() == 2
    });
    f.rsig.run(&["keeper", "stop", "--all"]).ok();
    poll_until("nothing of ssh is left", STEP_TIMEOUT, || masters(&f) == 0);
    let left = fs::read_dir(f.rsig.state().join("keepers"))
        .expect("it is there")
        .flatten();
    assert!(left.into_iter().all(|file| {
        file.path()
            .extension()
            .is_some_and(|extension| extension == "lock")
    }));
}

#[test]
fn a_certificate_of_the_host_is_enough() {
    let mut server = Server::openssh(Login::User).start();
    let authority = keys::generate(
        &server.dir().join("authority"),
        Type::Ed25519,
        "",
        Format::OpenSsh,
    );
    let config = server.dir().join("sshd_config");
    let text = fs::read_to_string(&config).expect("our own");
    let key = text
        .lines()
        .find_map(|line| line.strip_prefix("HostKey "))
        .expect("a host key")
        .to_owned();
    let sign = ["-q", "-h", "-I", "host", "-n", "127.0.0.1", "-s"];
    tool("ssh-keygen")
        .args(sign)
        .arg(&authority.private)
        .arg(format!("{key}.pub"))
        .run()
        .ok();
    fs::write(&config, format!("HostCertificate {key}-cert.pub\n{text}")).expect("our own");
    server.restart();
    let known = server.dir().join("known");
    fs::write(&known, format!("@cert-authority * {}\n", authority.public)).expect("our own");
    let mut f = by_openssh(server);
    f.connect.extend([
        "-o".to_owned(),
        format!("UserKnownHostsFile={}", known.display()),
    ]);
    run(&f, &[], &["echo", "in"]).ok().stdout_is("in\n");
    // The built-in client does not support host certificates.
    "server".clone_into(&mut f.host);
    run(&f, &[], &["true"]).code(255);
    // A certificate that another authority signed is refused.
    let other = keys::generate(
        &f.rsig.dir().join("other"),
        Type::Ed25519,
        "",
        Format::OpenSsh,
    );
    fs::write(&known, format!("@cert-authority * {}\n", other.public)).expect("our own");
    "openssh://server".clone_into(&mut f.host);
    f.connect.extend(["-o", "LogLevel=INFO"].map(str::to_owned));
    assert_clear_message(
        run(&f, &[], &["true"])
            .code(255)
            .stderr_has("Host key verification failed"),
    );
}

#[test]
fn one_session_is_enough_for_the_ssh_program() {
    let f = by_openssh(Server::openssh(Login::User).config("MaxSessions 1").start());
    let long = f.rsig.spawn_process(&f.words(
        "run",
        &[],
        &[
            "--",
            "sh",
            "-c",
            "trap 'exit 5' TERM; echo on; while :; do sleep 0.1; done",
        ],
    ));
    long.wait_for_stdout("on\n");
    let jobs = f.rsig.run(&["ps", "-q"]).ok().line();
    f.rsig.run(&["kill", &jobs]).ok();
    long.wait().code(5);
    run(&f, &[], &["true"]).ok();
}

#[test]
fn a_connection_of_ssh_that_breaks_is_made_again() {
    let f = by_openssh(Server::openssh(Login::User).start());
    let job = f.spawn(
        &[],
        &[
            "sh",
            "-c",
            "trap 'echo usr1' USR1; echo on; while :; do sleep 0.1; done",
        ],
    );
    let follower = f.rsig.spawn_process(&["tail", "-n", "all", "-f", &job]);
    follower.wait_for_stdout("on\n");
    let server = f.server.as_ref().expect("a server");
    for round in 1..4 {
        if round == 2 {
            kill9(keeper_pids(&f)[0]);
        } else {
            server.kill_connections();
        }
        f.rsig.run(&["kill", &job, "USR1"]).ok();
        follower.wait_for_stdout(&format!("on\n{}", "usr1\n".repeat(round)));
    }
    f.rsig.run(&["stop", "--grace", "8s", &job]).ok();
    follower.wait().ok();
}

#[test]
fn why_ssh_does_not_connect_is_said() {
    let f = by_openssh(Server::openssh(Login::User).start());
    let there = format!("{}/abcdefgh", f.host);
    let connect: Vec<&str> = f.connect.iter().map(String::as_str).collect();
    for (option, kind) in [
        ("PubkeyAuthentication=no", "auth"),
        ("UserKnownHostsFile=/dev/null", "host_key"),
        ("Port=1", "unreachable"),
        ("HostName=no-such-host.invalid", "unreachable"),
    ] {
        let words = [
            &["kill", "--json", "-o", option, "-o", "BatchMode=yes"][..],
            &connect,
            &[&there],
        ]
        .concat();
        let told = json_lines(f.rsig.run(&words).code(255)).remove(0);
        assert_eq!(told["error"]["kind"], kind, "{told}");
    }
    // An option that ssh does not know, and a missing ssh program.
    let words = [&["kill", "-o", "NoSuchOption=1"][..], &connect, &[&there]].concat();
    assert_clear_message(f.rsig.run(&words).code(1).stderr_has("nosuchoption"));
    let empty = f.rsig.dir().join("empty");
    fs::create_dir(&empty).expect("our own");
    let words = [&["kill"][..], &connect, &[&there]].concat();
    assert_clear_message(
        f.rsig
            .command(&words)
            .env("PATH", &empty)
            .run()
            .code(1)
            .stderr_has("ssh is needed"),
    );
}

#[test]
fn ssh_asks_on_the_terminal_once() {
    let secret = "sesame";
    let mut f = by_openssh(Server::openssh(Login::User).password(secret).start());
    f.connect
        .extend(["-o", "PreferredAuthentications=password"].map(str::to_owned));
    let words = f.words("run", &[], &["--", "echo", "in"]);
    // Ctrl-C leaves nothing behind and restores the terminal.
    let mut terminal = f.rsig.command(&words).tty(200, 50);
    terminal.wait_for("assword:");
    poll_until("the echo is off", STEP_TIMEOUT, || !terminal.echoes());
    terminal.send("\x03");
    terminal.wait();
    poll_until("the echo is on", STEP_TIMEOUT, || terminal.echoes());
    poll_until("nothing is left", STEP_TIMEOUT, || {
        masters(&f) == 0 && keeper_pids(&f).is_empty()
    });
    let mut terminal = f.rsig.command(&words).tty(200, 50);
    terminal.wait_for("assword:");
    poll_until("the echo is off", STEP_TIMEOUT, || !terminal.echoes());
    terminal.send(&format!("{secret}\r"));
    terminal.wait_for("in");
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.text());
    assert!(!terminal.text().contains(secret));
    // The connection outlives the terminal, and the next command asks for nothing.
    drop(terminal);
    f.rsig.run(&words).ok().stdout_is("in\n");
    // Unused shells too are closed after 20 s.
    let limit = Duration::from_secs(15);
    poll_until("the connection and one shell are left", limit, || {
        masters(&f) == 2
    });
}

#[test]
fn a_ticket_of_kerberos_is_enough() {
    let realm = Realm::start();
    let config = "GSSAPIAuthentication yes\nGSSAPIStrictAcceptorCheck no\nPubkeyAuthentication no";
    let server = Server::openssh(Login::User)
        .config(config)
        .env(realm.environment())
        .start();
    let mut f = by_openssh(server);
    f.connect
        .extend(["-o", "GSSAPIAuthentication=yes"].map(str::to_owned));
    let run = |f: &Fixture| {
        let words = f.words("run", &[], &["--", "id", "-u"]);
        realm.within(f.rsig.command(&words)).run()
    };
    assert_clear_message(run(&f).code(255).stderr_has("Permission denied"));
    let server = f.server.as_ref().expect("a server");
    realm.log_in(server.user());
    run(&f).ok().stdout_is(&format!("{}\n", server.uid()));
    // The built-in client does not support GSSAPI, and says so.
    "server".clone_into(&mut f.host);
    assert_clear_message(run(&f).code(255).stderr_has("gssapi"));
}

/// ssh has no limit of its own for a server that accepts connections and says nothing.
#[test]
fn a_silent_server_is_given_up() {
    let rsig = Rsig::new();
    let silent = FixedServer::start(FixedReply::Once(Vec::new()));
    for (lines, at_least) in [("", 14), ("ConnectTimeout 2", 1)] {
        let config = config_for(&rsig, "silent", silent.port(), lines);
        let begun = Instant::now();
        let output = rsig.run(&["spawn", "-F", &config, "openssh://silent", "true"]);
        output.code(255).stdout_is("").stderr_has("silent");
        assert_clear_message(&output);
        assert!(begun.elapsed() >= Duration::from_secs(at_least), "{output}");
    }
}
