//! Logging in: keys, agents, passwords, host keys, configuration, busy servers; and that no secret leaks.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::harness::keys::{Format, Type};
use crate::harness::tty::{CTRL_C, ENTER};
use crate::harness::{
    Agent, Fixture, Login, Output, Process, Rsig, Server, keys, poll_until, procs, tool,
};
use crate::kit::{self, STEP_TIMEOUT, assert_clear_message, interrupted};

const SECRET: &str = "hunter2 & $(sesame)";

/// A fixture whose configuration begins with these lines.
fn with_lines(server: Server, lines: &str) -> Fixture {
    let mut f = Fixture::with(Some(server));
    let lines = lines.replace(
        "{dir}",
        &f.server
            .as_ref()
            .expect("a server")
            .dir()
            .display()
            .to_string(),
    );
    configure(&mut f, &lines);
    f
}

fn configure(f: &mut Fixture, lines: &str) {
    let config = f
        .server
        .as_ref()
        .expect("a server")
        .ssh_config_with("server", lines);
    f.connect = vec![
        "-F".to_owned(),
        config.into_os_string().into_string().expect("UTF-8"),
    ];
}

/// Starts a job that ends at once.
fn spawn(f: &Fixture, options: &[&str]) -> Output {
    f.rsig.run(&f.words("spawn", options, &["true"]))
}

/// An askpass program that prints this answer, and appends the question to a file beside it. Another process creates
/// it: a file that this process had open for writing could not be run.
fn askpass(dir: &Path, answer: &str) -> String {
    let program = dir.join("askpass").display().to_string();
    let text =
        format!("#!/bin/sh\nprintf '%s\\n' \"$1\" >>'{program}.asked'\ncat '{program}.answer'\n");
    fs::write(format!("{program}.answer"), format!("{answer}\n")).expect("our own directory");
    tool("install")
        .args(["-m", "755", "/dev/stdin", &program])
        .stdin(text)
        .run()
        .ok();
    program
}

#[test]
fn keys_of_every_kind_let_in_and_a_lack_of_them_is_explained() {
    let server = Server::openssh(Login::User).start();
    let dir = server.dir().to_owned();
    let kinds = [
        ("ed25519", Type::Ed25519, Format::OpenSsh),
        ("rsa", Type::Rsa, Format::OpenSsh),
        ("rsa-pem", Type::Rsa, Format::Pem),
        ("ecdsa", Type::Ecdsa, Format::OpenSsh),
        ("ecdsa-pem", Type::Ecdsa, Format::Pem),
    ];
    let mut f = Fixture::with(Some(server));
    for (name, kind, format) in kinds {
        let key = keys::generate(&dir.join(name), kind, "", format);
        f.server
            .as_ref()
            .expect("a server")
            .add_authorized(&key.public);
        // This key is tried first, and suffices: the configuration's own key comes after it.
        configure(&mut f, &format!("IdentityFile {}", key.private.display()));
        let output = spawn(&f, &["-v"]);
        output
            .ok()
            .stderr_has(&format!("trying the key {}", key.private.display()))
            .stderr_lacks("client_key");
    }
    let stranger = keys::generate(&dir.join("stranger"), Type::Ed25519, "", Format::OpenSsh);
    let own = f
        .server
        .as_ref()
        .expect("a server")
        .client_key()
        .private
        .clone();
    fs::rename(&own, dir.join("hidden")).expect("our own file");
    configure(
        &mut f,
        &format!(
            "IdentityFile {}\nIdentityFile {}/absent",
            stranger.private.display(),
            dir.display()
        ),
    );
    let output = spawn(&f, &[]);
    assert_clear_message(output.code(255).stdout_is(""));
    output
        .stderr_has("refused the login")
        .stderr_has("it takes publickey")
        .stderr_has("stranger");
    configure(&mut f, "IdentityFile none");
    assert_clear_message(
        spawn(&f, &[])
            .code(255)
            .stderr_has("refused the login")
            .stderr_has("-i"),
    );
    fs::write(
        dir.join("broken"),
        "-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n",
    )
    .expect("our own directory");
    configure(&mut f, &format!("IdentityFile {}/broken", dir.display()));
    assert_clear_message(spawn(&f, &[]).code(255).stderr_has("broken"));
    assert_eq!(
        kit::recorded(&f.rsig).len(),
        kinds.len(),
        "only what was let in is recorded"
    );
}

#[test]
fn an_agent_lets_in_also_one_that_is_full_of_other_keys() {
    let server = Server::openssh(Login::User).start();
    let dir = server.dir().to_owned();
    let agent = Agent::start();
    for number in 0..5 {
        agent.add(&keys::generate(
            &dir.join(format!("other{number}")),
            Type::Ed25519,
            "",
            Format::OpenSsh,
        ));
    }
    let locked = keys::generate(
        &dir.join("locked"),
        Type::Ed25519,
        "open up",
        Format::OpenSsh,
    );
    server.add_authorized(&locked.public);
    agent.add(&locked);
    fs::remove_file(&server.client_key().private).expect("our own file");
    let mut f = Fixture::with(Some(server));
    let socket = agent.socket().display().to_string();
    let with_agent = |f: &Fixture| {
        f.rsig
            .command(&f.words("spawn", &["-v"], &["true"]))
            .env("SSH_AUTH_SOCK", &socket)
            .run()
    };
    // The key file is configured: its public half identifies the agent's key, so the file need not be decrypted.
    configure(
        &mut f,
        &format!("IdentityFile {}", locked.private.display()),
    );
    with_agent(&f)
        .ok()
        .stderr_has("(agent)")
        .stderr_lacks("other0");
    // With the public half alone, as for keys that only the agent has.
    fs::remove_file(&locked.private).expect("our own file");
    configure(
        &mut f,
        &format!("IdentityFile {}.pub", locked.private.display()),
    );
    with_agent(&f).ok().stderr_has("(agent)");
    configure(
        &mut f,
        &format!("IdentityFile none\nIdentitiesOnly no\nIdentityAgent {socket}"),
    );
    spawn(&f, &[]).ok();
    // IdentitiesOnly excludes the agent's other keys.
    configure(&mut f, "IdentityFile none\nIdentitiesOnly yes");
    assert_clear_message(with_agent(&f).code(255).stderr_has("refused the login"));
    configure(
        &mut f,
        &format!(
            "IdentityFile none\nIdentitiesOnly no\nIdentityAgent {}/nowhere",
            dir.display()
        ),
    );
    assert_clear_message(spawn(&f, &[]).code(255).stderr_has("nowhere"));
}

#[test]
fn the_key_that_let_in_is_tried_first_the_next_time() {
    let mut f = Fixture::with(Some(Server::openssh(Login::User).start()));
    let server = f.server.as_ref().expect("a server");
    let others = ["one", "two", "three"]
        .map(|name| keys::generate(&server.dir().join(name), Type::Ed25519, "", Format::OpenSsh));
    let lines: String = others
        .iter()
        .map(|key| format!("IdentityFile {}\n", key.private.display()))
        .collect();
    configure(&mut f, &lines);
    let tried = || {
        let output = spawn(&f, &["-v"]);
        let said = output.ok().stderr().to_owned();
        (said.matches("trying the key").count(), said)
    };
    assert_eq!(tried().0, 4);
    let (count, said) = tried();
    assert!(count == 1 && !said.contains("the server takes"), "{said}");
    // The remembered key is wrong, or the memory can't be read.
    let server = f.server.as_ref().expect("a server");
    let authorized = server.home().join(".ssh/authorized_keys");
    fs::write(&authorized, format!("{}\n", others[1].public)).expect("a file of ours");
    assert_eq!(tried().0, 3);
    assert_eq!(tried().0, 1);
    for entry in fs::read_dir(f.rsig.state().join("keepers"))
        .expect("it is there")
        .flatten()
    {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "entry")
        {
            fs::write(entry.path(), "{").expect("a file of ours");
        }
    }
    assert_eq!(tried().0, 2);
}

#[test]
fn an_agent_that_never_answers_is_named_and_the_key_files_are_tried() {
    let server = Server::openssh(Login::User).start();
    let socket = server.dir().join("silent");
    // The system accepts connections on its behalf, but the agent never replies.
    let _silent = std::os::unix::net::UnixListener::bind(&socket).expect("our own directory");
    let key = server.client_key().private.clone();
    let f = with_lines(server, "IdentityAgent {dir}/silent");
    let name = format!("the agent at {} did not answer", socket.display());
    spawn(&f, &["-v"]).ok().stderr_has(&name);
    fs::remove_file(key).expect("our own file");
    assert_clear_message(spawn(&f, &[]).code(255).stderr_has(&name));
}

#[test]
fn ssh_may_take_as_long_as_connecting_to_say_the_configuration() {
    let server = Server::openssh(Login::User).start();
    let f = with_lines(server, "Match exec \"sleep 3\"\nMatch all");
    spawn(&f, &[]).ok();
    let output = spawn(&f, &["-o", "ConnectTimeout=1"]);
    assert_clear_message(
        output
            .code(255)
            .stderr_has("longer than 1 s")
            .stderr_has("Match exec"),
    );
}

#[test]
fn revoked_host_keys_are_read_from_their_file() {
    let server = Server::openssh(Login::User).start();
    let own = server.host_keys()[0].clone();
    let revoked = server.dir().join("revoked");
    let f = with_lines(server, "RevokedHostKeys {dir}/revoked");
    for (text, code, said) in [
        (format!("# stolen\n{own}\n"), 255, "revoked:2"),
        ("SSHKRL\n\0\0\0\0".to_owned(), 255, "(KRL)"),
        ("# none\n".to_owned(), 0, ""),
    ] {
        fs::write(&revoked, text).expect("our own directory");
        let output = spawn(&f, &[]);
        output.code(code).stderr_has(said);
        if code != 0 {
            assert_clear_message(&output);
        }
    }
}

#[test]
fn a_banner_is_shown_unless_the_log_level_hides_it() {
    let server = Server::openssh(Login::User)
        .file("banner", "Authorized use only\n")
        .config("Banner {dir}/banner")
        .start();
    let mut f = Fixture::with(Some(server));
    // Two keys, the first of them not authorized: the server is asked which methods it accepts.
    let dir = f.server.as_ref().expect("a server").dir().to_owned();
    keys::generate(&dir.join("other"), Type::Ed25519, "", Format::OpenSsh);
    for (level, options, is_shown) in [
        ("INFO", &[][..], true),
        ("INFO", &["-q"], false),
        ("ERROR", &[], false),
        ("QUIET", &[], false),
    ] {
        configure(
            &mut f,
            &format!("LogLevel {level}\nIdentityFile {}/other", dir.display()),
        );
        let output = spawn(&f, options);
        let said = output.ok().stderr();
        assert_eq!(said.contains("Authorized use only"), is_shown, "{output}");
    }
}

#[test]
fn a_server_without_an_algorithm_in_common_is_told_with_its_list() {
    for (config, said) in [
        (
            "Ciphers aes128-ctr\nMACs umac-64@openssh.com",
            "no MAC in common: the server offers umac-64@openssh.com",
        ),
        (
            "KexAlgorithms sntrup761x25519-sha512@openssh.com",
            "no key exchange method in common: the server offers sntrup761x25519-sha512@openssh.com",
        ),
    ] {
        let f = Fixture::with(Some(Server::openssh(Login::User).config(config).start()));
        assert_clear_message(spawn(&f, &[]).code(255).stderr_has(said));
    }
}

#[test]
fn a_passphrase_is_asked_for_and_may_be_wrong() {
    for (kind, format) in [(Type::Ed25519, Format::OpenSsh), (Type::Rsa, Format::Pem)] {
        let server = Server::openssh(Login::Root).start();
        let key = keys::generate(&server.dir().join("locked"), kind, SECRET, format);
        server.add_authorized(&key.public);
        let f = with_lines(server, "IdentityFile {dir}/locked");
        // The configuration's other key must not be used.
        fs::remove_file(&f.server.as_ref().expect("a server").client_key().private)
            .expect("our own file");
        for (answer, code) in [(SECRET, 0), ("wrong", 255)] {
            let program = askpass(f.rsig.dir(), answer);
            let spawn = f.rsig.command(&f.words("spawn", &["-v"], &["true"]));
            let output = spawn
                .env("SSH_ASKPASS", &program)
                .env("SSH_ASKPASS_REQUIRE", "force")
                .run();
            output.code(code).stderr_lacks(SECRET);
            let asked = fs::read_to_string(format!("{program}.asked")).expect("it was asked");
            assert!(asked.starts_with("Enter passphrase for key '"), "{asked}");
            if code != 0 {
                output.stderr_has("the passphrase was wrong");
            }
        }
        assert_clear_message(spawn(&f, &[]).code(255).stderr_has("passphrase"));
    }
}

/// Servers that ask for a password, one for each method.
fn password_servers() -> [(&'static str, Server); 2] {
    [
        (
            "password",
            Server::openssh(Login::User).password(SECRET).start(),
        ),
        (
            "keyboard-interactive",
            Server::openssh(Login::User)
                .keyboard_interactive(SECRET)
                .start(),
        ),
    ]
}

#[test]
fn a_password_is_typed_unseen_and_ctrl_c_puts_the_terminal_right() {
    for (method, server) in password_servers() {
        let f = with_lines(
            server,
            &format!("PreferredAuthentications {method}\nNumberOfPasswordPrompts 1"),
        );
        let words = f.words("spawn", &["-v"], &["true"]);
        for (typed, code) in [(SECRET, 0), ("wrong", 255)] {
            let mut terminal = f.rsig.command(&words).tty(200, 50);
            terminal.wait_for("assword:");
            poll_until("the echo is off", STEP_TIMEOUT, || !terminal.echoes());
            terminal.send(typed);
            terminal.send(ENTER);
            assert_eq!(
                terminal.wait().code(),
                Some(code),
                "{method}: {}",
                terminal.text()
            );
            assert!(
                !terminal.text().contains(typed),
                "{method}: {}",
                terminal.text()
            );
            assert!(terminal.echoes());
        }
        let mut terminal = f.rsig.command(&words).tty(200, 50);
        terminal.wait_for("assword:");
        poll_until("the echo is off", STEP_TIMEOUT, || !terminal.echoes());
        terminal.send(CTRL_C);
        let status = terminal.wait();
        assert!(
            interrupted(status),
            "{method}: {status}: {}",
            terminal.text()
        );
        assert!(terminal.echoes(), "{method}: the echo stays off");
        // Without a terminal the command fails instead of waiting.
        let output = f
            .rsig
            .run(&f.words("spawn", &["-o", "BatchMode=yes"], &["true"]));
        assert_clear_message(
            output
                .code(255)
                .stderr_has("refused the login")
                .stderr_has(method),
        );
        assert_clear_message(spawn(&f, &[]).code(255).stderr_has("no terminal"));
        let started = "SELECT count(*) FROM jobs WHERE record ->> '$.pid' IS NOT NULL";
        let started: i64 = kit::database(&f.rsig)
            .query_row(started, [], |row| row.get(0))
            .expect("a number");
        assert_eq!(started, 1, "{method}");
    }
}

#[test]
fn a_key_and_then_a_password_are_two_steps() {
    let methods = "AuthenticationMethods publickey,password";
    let server = Server::openssh(Login::User)
        .password(SECRET)
        .config(methods)
        .start();
    let f = Fixture::with(Some(server));
    let program = askpass(f.rsig.dir(), SECRET);
    let spawn = |program: &str| {
        let command = f.rsig.command(&f.words("spawn", &["-v"], &["true"]));
        command
            .env("SSH_ASKPASS", program)
            .env("SSH_ASKPASS_REQUIRE", "force")
            .run()
    };
    spawn(&program)
        .ok()
        .stderr_has("a further step")
        .stderr_lacks(SECRET);
    assert_clear_message(
        spawn("/nonexistent")
            .code(255)
            .stderr_has("after a first step"),
    );
}

#[test]
fn no_secret_gets_into_the_state_the_messages_or_any_argument_list() {
    // Unique secrets: other tests pass theirs to ssh-keygen as arguments, and another run of this test passes its own
    // to grep.
    let number = std::process::id();
    let (password, token) = (
        &*format!("pa55-of-the-account-{number}"),
        &*format!("t0ken-of-the-environment-{number}"),
    );
    let server = Server::openssh(Login::User).password(password).start();
    let f = with_lines(server, "PreferredAuthentications password");
    let program = askpass(f.rsig.dir(), password);
    let over = AtomicBool::new(false);
    let (seen, output) = std::thread::scope(|scope| {
        let scanner = scope.spawn(|| {
            let mut seen = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let holds = |process: &procs::Process| {
                    [password, token]
                        .iter()
                        .any(|secret| process.cmdline.contains(secret))
                };
                seen.extend(procs::all().into_iter().filter(holds));
            }
            seen
        });
        let command = f.rsig.command(&f.words(
            "spawn",
            &["-v", "-e", "TOKEN"],
            &["sh", "-c", "echo ${#TOKEN}; sleep 1000"],
        ));
        let output = command
            .env("TOKEN", token)
            .env("SSH_ASKPASS", &program)
            .env("SSH_ASKPASS_REQUIRE", "force")
            .run();
        over.store(true, Ordering::SeqCst);
        (scanner.join().expect("no panic"), output)
    });
    assert!(seen.is_empty(), "{}", procs::listing(&seen));
    output
        .ok()
        .stderr_has("connecting to")
        .stderr_lacks(password)
        .stderr_lacks(token);
    let server = f.server.as_ref().expect("a server");
    poll_until("the job has its variable", STEP_TIMEOUT, || {
        let out = f.jobs_dir().join(output.line()).join("out");
        fs::read_to_string(out).is_ok_and(|text| text == format!("{}\n", token.len()))
    });
    // Apart from the job's own environment, the secrets are on neither side.
    for dir in [f.rsig.state(), f.rsig.home(), &f.jobs_dir()] {
        for secret in [password, token] {
            let found = tool("grep").args(["-raF", "--", secret]).arg(dir).run();
            assert_eq!(
                found.status().code(),
                Some(1),
                "{secret} in {}: {found}",
                dir.display()
            );
        }
    }
    assert!(!server.log().contains(token));
}

#[test]
fn a_host_key_that_changed_or_is_revoked_or_unknown_is_refused_with_the_reason() {
    let server = Server::openssh(Login::User)
        .host_keys(&[Type::Ed25519, Type::Ecdsa])
        .start();
    let port = server.port();
    let own = server.host_keys()[0].clone();
    let other = keys::generate(
        &server.dir().join("other"),
        Type::Ed25519,
        "",
        Format::OpenSsh,
    )
    .public;
    let known = server.dir().join("known");
    let name = format!("[127.0.0.1]:{port}");
    let f = with_lines(server, "UserKnownHostsFile {dir}/known");
    let strict = |value: &str| format!("StrictHostKeyChecking={value}");
    for (lines, strictness, said) in [
        (format!("{name} {other}\n"), "no", "has changed"),
        (
            format!("# a comment\n\n{name} {other}\n"),
            "accept-new",
            "known:3",
        ),
        (format!("@revoked * {own}\n{name} {own}\n"), "no", "revoked"),
        (String::new(), "yes", "is not known"),
        (String::new(), "ask", "nobody can be asked"),
        (format!("127.0.0.1 {other}\n"), "ask", "without the port"),
        (
            format!("@cert-authority * {own}\n"),
            "yes",
            "@cert-authority",
        ),
    ] {
        fs::write(&known, &lines).expect("our own directory");
        let output = f
            .rsig
            .run(&f.words("spawn", &["-o", &strict(strictness)], &["true"]));
        output
            .code(255)
            .stdout_is("")
            .stderr_has(said)
            .stderr_has("SHA256:");
        assert_clear_message(&output);
        assert_eq!(
            fs::read_to_string(&known).expect("it is there"),
            lines,
            "the file was changed"
        );
    }
    assert_eq!(kit::recorded(&f.rsig), Vec::<String>::new());
    // accept-new adds one line, and from then on the key is known.
    fs::remove_file(&known).expect("our own file");
    let output = f
        .rsig
        .run(&f.words("spawn", &["-o", &strict("accept-new")], &["true"]));
    output.ok().stderr_has("was added to");
    let text = fs::read_to_string(&known).expect("it was made");
    assert!(
        text.lines().count() == 1 && text.starts_with(&format!("{name} ")),
        "{text}"
    );
    f.rsig
        .run(&f.words("spawn", &["-o", &strict("yes")], &["true"]))
        .ok()
        .stderr_is_empty();
    // A malformed line does not hide others.
    fs::write(
        &known,
        format!("garbage\n{name}\n{name} ssh-ed25519 %%%\n{text}"),
    )
    .expect("our own file");
    f.rsig
        .run(&f.words("spawn", &["-o", &strict("yes")], &["true"]))
        .ok();
}

#[test]
fn an_unknown_host_key_is_asked_about_on_a_terminal() {
    let server = Server::openssh(Login::User).start();
    let known = server.dir().join("known");
    let f = with_lines(
        server,
        "UserKnownHostsFile {dir}/known\nStrictHostKeyChecking ask",
    );
    let words = f.words("spawn", &[], &["true"]);
    for (typed, code) in [("no", 255), ("what\rno", 255), ("yes", 0)] {
        let mut terminal = f.rsig.command(&words).tty(200, 50);
        terminal.wait_for("(yes/no/[fingerprint])?");
        terminal.send(typed);
        terminal.send(ENTER);
        assert_eq!(terminal.wait().code(), Some(code), "{}", terminal.text());
        assert_eq!(known.exists(), code == 0);
    }
    spawn(&f, &[]).ok().stderr_is_empty();
}

#[test]
fn configuration_is_expanded_and_hosts_are_split_as_ssh_does() {
    let server = Server::openssh(Login::User)
        .config("ListenAddress ::1")
        .start();
    let (port, user) = (server.port(), server.user().to_owned());
    let dir = server.dir().display().to_string();
    let own = server.host_keys()[0].clone();
    let key = server.client_key().private.display().to_string();
    let mut f = Fixture::with(Some(server));
    for name in ["key-server", "key-127.0.0.1"] {
        fs::copy(&key, format!("{dir}/{name}")).expect("our own directory");
    }
    fs::remove_file(&key).expect("our own file");
    for lines in [
        "IdentityFile {dir}/key-%n",
        "IdentityFile {dir}/key-%h",
        "IdentityFile ${KEYS}/key-server",
        "IdentityFile ~/..{dir}/key-server",
        "IdentityFile %d/..{dir}/key-%n",
        "Match exec \"test %n = server\"\nIdentityFile {dir}/key-server\nMatch all",
        "ProxyCommand bash -c 'exec 3<>/dev/tcp/%h/%p; cat <&3 & cat >&3; kill $!'\nIdentityFile {dir}/key-%n",
    ] {
        configure(&mut f, &lines.replace("{dir}", &dir));
        let output = f
            .rsig
            .command(&f.words("spawn", &[], &["true"]))
            .env("KEYS", &dir)
            .run();
        output.ok().stderr_is_empty();
    }
    // Host forms that users type; -i, -l and -p on the command line.
    let known = format!("{dir}/all-known");
    fs::write(
        &known,
        format!("[127.0.0.1]:{port} {own}\n[::1]:{port} {own}\n"),
    )
    .expect("our own directory");
    let (identity, known) = (
        format!("{dir}/key-server"),
        format!("UserKnownHostsFile={known}"),
    );
    let connect = [
        "-F",
        "none",
        "-i",
        &identity,
        "-o",
        &known,
        "-o",
        "StrictHostKeyChecking yes",
    ];
    let with = |options: &[&str], host: &str| {
        let words = [&["spawn"], &connect[..], options, &[host, "true"]].concat();
        f.rsig.run(&words).ok().line()
    };
    let jobs = [
        with(&[], &format!("{user}@127.0.0.1:{port}")),
        with(&[], &format!("ssh://{user}@127.0.0.1:{port}")),
        with(&["-l", &user], &format!("[::1]:{port}")),
        with(&[], &format!("ssh://{user}@[::1]:{port}")),
        with(
            &["-l", &user, "-p", &port.to_string()],
            "nobody@127.0.0.1:1",
        ),
    ];
    // All these settings are stored with the job.
    for job in &jobs {
        f.rsig.run(&["wait", job]).ok();
    }
}

#[test]
fn a_host_may_have_any_name_that_ssh_takes() {
    let server = Server::openssh(Login::User).start();
    let rsig = Rsig::new();
    for alias in ["prod/web", "a=b#c~d%e"] {
        let config = server.ssh_config(alias).display().to_string();
        let job = rsig
            .run(&["spawn", "-F", &config, alias, "true"])
            .ok()
            .line();
        rsig.run(&["wait", &job]).ok();
        let job = format!("{alias}/{job}");
        rsig.run(&["wait", "-F", &config, &job]).ok();
    }
    let config = server.ssh_config("server").display().to_string();
    for words in [&["CORP\\bob@server"][..], &["-l", "CORP\\bob", "server"]] {
        let output = rsig.run(&[&["spawn", "-F", &config], words, &["true"]].concat());
        assert_clear_message(output.code(255).stderr_has("CORP\\bob@127.0.0.1"));
    }
}

#[test]
fn a_jump_host_is_passed_by_its_own_configuration() {
    let gate = Server::openssh(Login::User).start();
    let inner = Server::openssh(Login::Root).start();
    let text = |config: std::path::PathBuf| fs::read_to_string(config).expect("our own file");
    let both =
        text(inner.ssh_config_with("inner", "ProxyJump gate")) + &text(gate.ssh_config("gate"));
    let rsig = Rsig::new();
    let config = rsig.dir().join("both").display().to_string();
    fs::write(&config, both).expect("our own directory");
    let job = rsig
        .run(&[
            "spawn",
            "-F",
            &config,
            "inner",
            "--",
            "sh",
            "-c",
            "echo $SSH_CONNECTION; sleep 1000",
        ])
        .ok()
        .line();
    assert!(
        gate.log().contains("direct-tcpip") || gate.log().contains("Accepted publickey"),
        "{}",
        gate.log()
    );
    rsig.run(&["kill", &job, "--wait", "20s"])
        .ok()
        .stdout_has("143");
    // With -J too, for a host without a jump host in its configuration.
    let plain = text(inner.ssh_config("inner")) + &text(gate.ssh_config("gate"));
    fs::write(&config, plain).expect("our own directory");
    let accepted = gate.log().matches("Accepted publickey").count();
    rsig.run(&["spawn", "-F", &config, "-J", "gate", "inner", "--", "true"])
        .ok();
    assert!(gate.log().matches("Accepted publickey").count() > accepted);
    // An unreachable jump host is named.
    drop(gate);
    let output = rsig.run(&["spawn", "-F", &config, "-J", "gate", "inner", "--", "true"]);
    assert_clear_message(output.code(255).stderr_has("jump host gate"));
}

#[test]
fn a_proxy_may_ask_on_the_terminal_and_gets_no_ctrl_c_from_it() {
    let asks =
        "printf 'May I? ' >/dev/tty; read -r answer </dev/tty; test \"$answer\" = yes || exit 9";
    let server = Server::openssh(Login::User).start();
    let f = with_lines(
        server,
        &format!(
            "ProxyCommand bash -c '{}; exec 3<>/dev/tcp/%%h/%%p; cat <&3 & cat >&3; kill $!'",
            asks.replace('\'', "\"")
        )
        .replace("%%", "%"),
    );
    let job = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done";
    let words = f.words("run", &[], &["sh", "-c", job]);
    let mut terminal = f.rsig.command(&words).tty(200, 50);
    terminal.wait_for("May I?");
    terminal.send("yes");
    terminal.send(ENTER);
    terminal.wait_for("ready");
    terminal.send(CTRL_C);
    assert_eq!(terminal.wait().code(), Some(7), "{}", terminal.text());
    let text = terminal.text();
    assert!(
        text.contains("caught") && !text.contains("connect"),
        "{text}"
    );
    // Ctrl-C at the proxy's question ends the command.
    let words = f.words("spawn", &[], &["true"]);
    let mut terminal = f.rsig.command(&words).tty(200, 50);
    terminal.wait_for("May I?");
    terminal.send(CTRL_C);
    let status = terminal.wait();
    assert!(interrupted(status), "{status}: {}", terminal.text());
}

#[test]
fn a_busy_server_is_asked_again_and_given_up_at_last() {
    let server = Server::openssh(Login::User)
        .config("MaxStartups 1:100:1\nLoginGraceTime 60")
        .start();
    let port = server.port();
    let f = Fixture::with(Some(server));
    let occupy = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        let mut banner = [0; 4];
        std::io::Read::read_exact(&mut &stream, &mut banner).expect("it greets");
        assert_eq!(&banner, b"SSH-");
        stream
    };
    let server = f.server.as_ref().expect("a server");
    let occupied = occupy();
    let occupants = server.connections();
    let patient = f.rsig.spawn_process(&f.words("spawn", &["-v"], &["true"]));
    let mut keeper = None;
    poll_until("it connects", STEP_TIMEOUT, || {
        let mut found = f.rsig.processes().into_iter();
        keeper = found.find(|process| process.cmdline.contains("keeper-serve"));
        keeper.is_some()
    });
    let keeper = keeper.expect("it was found");
    patient.wait_for_stderr("the server is busy");
    // The server may need longer to notice the end of a connection than the attempts take.
    keeper.signal(Signal::SIGSTOP);
    drop(occupied);
    poll_until("there is room", STEP_TIMEOUT, || {
        !occupants.iter().any(Process::runs)
    });
    keeper.signal(Signal::SIGCONT);
    patient.wait().ok();
    poll_until("the server is free again", STEP_TIMEOUT, || {
        server.connections().is_empty()
    });
    let _occupied = occupy();
    let output = spawn(&f, &["-v"]);
    output
        .code(255)
        .stdout_is("")
        .stderr_has("is refusing new connections");
    assert_eq!(
        output.stderr().matches("the server is busy").count(),
        3,
        "{output}"
    );
}

#[test]
fn one_session_at_a_time_is_enough() {
    let f = Fixture::with(Some(
        Server::openssh(Login::User).config("MaxSessions 1").start(),
    ));
    let job = f.spawn(&[], &["sh", "-c", "echo out; sleep 1000"]);
    let other = f.spawn(&[], &["sleep", "1000"]);
    f.rsig.run(&["kill", "-s", "CONT", &job, &other]).ok();
    poll_until("it has written", STEP_TIMEOUT, || {
        f.rsig.run(&["tail", &job]).ok().stdout() == "out\n"
    });
    // Several scripts over one connection, one after the other.
    f.rsig.run(&["rm", "--force", &job, &other]).ok();
}
