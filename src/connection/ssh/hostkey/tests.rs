//! Compares the verdict on a host key with ssh's own on the same `known_hosts` files.
//!
//! ssh reaches a real sshd through `ProxyCommand sshd -i`, so that a case may have any host name and any port, no port
//! of this machine is used, and the server ends with its client. The verdict is read from the output of `ssh -v`. Where
//! rsig deviates from ssh, the case says what ssh does instead and why.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::super::config::tests::plain;
use super::super::key::tests::{ed25519, rsa};
use super::known_hosts::{add, parse};
use super::*;

const SSHD: &str = "/usr/sbin/sshd";

/// As root, sshd requires a directory of its own in /run, so tests that run as root start ssh and sshd as nobody.
const NOBODY: u32 = 65534;

/// One host, one set of files, one policy, and the verdict on the key that the server presents.
struct Case {
    what: &'static str,
    host: &'static str,
    port: u16,
    alias: Option<&'static str>,
    /// The files' text: `{server}` is the key that the server presents; `{other}`, `{rsa}` and `{ecdsa}` are other
    /// keys; `{hashed NAME}` is the name as `ssh-keygen -H` hashes it. Each character up to U+00FF is a byte of the
    /// file.
    user: String,
    global: String,
    policy: &'static str,
    /// `accept`, `changed` or `revoked` with file and line, `unknown`, or `add` for an unknown host whose
    /// key is added.
    verdict: &'static str,
    departs: Option<Departure>,
}

/// What ssh does instead, and why rsig doesn't.
struct Departure {
    ssh: &'static str,
    #[allow(dead_code, reason = "for the reader of the table")]
    why: &'static str,
}

/// A case for `web.example` at port 22 under `StrictHostKeyChecking yes`.
fn case(what: &'static str, user: impl Into<String>, verdict: &'static str) -> Case {
    Case {
        what,
        host: "web.example",
        port: 22,
        alias: None,
        user: user.into(),
        global: String::new(),
        policy: "yes",
        verdict,
        departs: None,
    }
}

impl Case {
    fn host(self, host: &'static str) -> Self {
        Self { host, ..self }
    }
    fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }
    fn alias(self, alias: &'static str) -> Self {
        let alias = Some(alias);
        Self { alias, ..self }
    }
    fn global(self, global: &str) -> Self {
        let global = global.to_owned();
        Self { global, ..self }
    }
    fn policy(self, policy: &'static str) -> Self {
        Self { policy, ..self }
    }
    fn but_ssh(self, ssh: &'static str, why: &'static str) -> Self {
        let departs = Some(Departure { ssh, why });
        Self { departs, ..self }
    }

    fn name(&self) -> HostName {
        match self.alias {
            Some(alias) => HostName::alias(alias),
            None => HostName::new(self.host, self.port),
        }
    }
}

#[test]
fn names() {
    check(&[
        case("nothing known", "", "unknown"),
        case("the key", "web.example {server}\n", "accept user:1"),
        case("another key", "web.example {other}\n", "changed user:1"),
        case("another host", "db.example {server}\n", "unknown"),
        case("the end of the name", "example {server}\n", "unknown"),
        case(
            "a list",
            "db,web.example,10.0.0.1 {server}\n",
            "accept user:1",
        ),
        case(
            "empty names in a list",
            ",,web.example, {server}\n",
            "accept user:1",
        ),
        case(
            "capitals in the file",
            "WEB.Example {server}\n",
            "accept user:1",
        ),
        case(
            "capitals in the host",
            "web.example {server}\n",
            "accept user:1",
        )
        .host("Web.EXAMPLE"),
        case(
            "capitals in a pattern",
            "*.EXAMPLE {server}\n",
            "accept user:1",
        ),
        case("an address", "::1 {server}\n", "accept user:1").host("::1"),
    ]);
}

#[test]
fn patterns() {
    check(&[
        case("a star", "*.example {server}\n", "accept user:1"),
        case(
            "a star for nothing",
            "web.example* {server}\n",
            "accept user:1",
        ),
        case("several stars", "w*b.*a*e {server}\n", "accept user:1"),
        case(
            "a star that does not fit",
            "*.example.com {server}\n",
            "unknown",
        ),
        case("a question mark", "we?.example {server}\n", "accept user:1"),
        case(
            "a question mark for nothing",
            "web.example? {server}\n",
            "unknown",
        ),
        case(
            "negated first",
            "!web.example,*.example {server}\n",
            "unknown",
        ),
        case(
            "negated last",
            "*.example,!web.example {server}\n",
            "unknown",
        ),
        case(
            "negated pattern",
            "web.example,!*.example {server}\n",
            "unknown",
        ),
        case(
            "another one negated",
            "!db.example,*.example {server}\n",
            "accept user:1",
        ),
        case("only negated", "!db.example {server}\n", "unknown"),
        case(
            "negated twice",
            "!!web.example,* {server}\n",
            "accept user:1",
        ),
        case(
            "negated on its own line only",
            "*,!web.example {server}\nweb.example {server}\n",
            "accept user:2",
        ),
        case(
            "another key, but negated",
            "*,!web.example {other}\n",
            "unknown",
        ),
        case(
            "a list of 2000 names",
            format!("{}web.example {{server}}\n", "h.example,".repeat(2000)),
            "accept user:1",
        ),
        case(
            "a name of 1022 bytes",
            format!("{},web.example {{server}}\n", "x".repeat(1022)),
            "accept user:1",
        ),
        case(
            "a name of 1023 bytes",
            format!("web.example,{} {{server}}\n", "x".repeat(1023)),
            "unknown",
        ),
    ]);
}

#[test]
fn hashed_names() {
    check(&[
        case("hashed", "{hashed web.example} {server}\n", "accept user:1"),
        case(
            "hashed, capitals in the host",
            "{hashed web.example} {server}\n",
            "accept user:1",
        )
        .host("WEB.example"),
        case(
            "hashed, another key",
            "{hashed web.example} {other}\n",
            "changed user:1",
        ),
        case(
            "hashed, another host",
            "{hashed db.example} {server}\n",
            "unknown",
        ),
        case(
            "hashed in a list",
            "{hashed web.example},x {server}\n",
            "unknown",
        ),
        case(
            "negated hash",
            "*,!{hashed web.example} {server}\n",
            "accept user:1",
        ),
        case(
            "bad hashes",
            "|1|AAAA|BBBB {server}\n|1|x {server}\n| {server}\n|2|a|b {server}\nweb.example {server}\n",
            "accept user:5",
        ),
        case(
            "hashed with port",
            "{hashed [web.example]:2222} {server}\n",
            "accept user:1",
        )
        .port(2222),
        case(
            "hashed with another port",
            "{hashed [web.example]:2223} {server}\n",
            "unknown",
        )
        .port(2222),
        case(
            "hashed without port",
            "{hashed web.example} {server}\n",
            "accept user:1",
        )
        .port(2222),
        case(
            "hashed with port, another key, and the key without port",
            "{hashed web.example} {server}\n{hashed [web.example]:2222} {other}\n",
            "changed user:2",
        )
        .port(2222),
        case(
            "hashed and revoked",
            "web.example {server}\n@revoked {hashed web.example} {server}\n",
            "revoked user:2",
        ),
    ]);
}

#[test]
fn lines() {
    check(&[
        case(
            "comments",
            "# web.example {other}\n\n  # x\nweb.example {server} root@web # x\n",
            "accept user:4",
        ),
        case(
            "white space",
            " \tweb.example \t{server}\t\n",
            "accept user:1",
        ),
        case(
            "no newline at the end",
            "web.example {server}",
            "accept user:1",
        ),
        case(
            "carriage returns",
            "# x\r\n\r\ndb {other} x\r\nweb.example {server}\r\n",
            "accept user:4",
        ),
        case(
            "a NUL after the key",
            "web.example {server}\0x\n",
            "accept user:1",
        ),
        case(
            "bytes that are no UTF-8",
            "\u{ff}\u{fe} {other}\n\u{ff}\nweb.example {server} \u{fc}\n",
            "accept user:3",
        ),
        case(
            "a byte order mark",
            "\u{ef}\u{bb}\u{bf}web.example {server}\n",
            "unknown",
        ),
        case(
            "a line of 200 kB",
            format!(
                "{}\nweb.example {{server}} {}\n",
                "x".repeat(200_000),
                "y ".repeat(100_000)
            ),
            "accept user:2",
        ),
        case(
            "bad lines",
            "web.example\nweb.example ssh-ed25519\nweb.example ssh-ed25519 AAAA\n\
             web.example ssh-ed25519 %%%%\nweb.example #{server}\n@web.example {server}\n\
             web.example 1024 65537 12345\nweb.example {server}\n",
            "accept user:8",
        ),
        case(
            "only bad lines",
            "web.example ssh-ed25519 AAAA\nweb.example\n",
            "unknown",
        ),
        case(
            "a key that was cut short",
            "web.example {cut other}\n",
            "unknown",
        ),
        case(
            "a key with padding to spare",
            "web.example {server}=\n",
            "unknown",
        ),
        case(
            "a type that is not the key's",
            "web.example {mistyped}\n",
            "unknown",
        ),
        case("the type missing", "web.example {untyped}\n", "unknown"),
        case(
            "twice",
            "web.example {server}\nweb.example {server}\n",
            "accept user:1",
        ),
        case(
            "an unknown marker",
            "@trusted web.example {server}\n",
            "unknown",
        ),
        case(
            "a name that begins like a marker",
            "@db,web.example {server}\n",
            "unknown",
        ),
        case(
            "two markers",
            "@revoked @revoked web.example {server}\n",
            "unknown",
        ),
        case(
            "a marker in capitals",
            "@REVOKED * {server}\nweb.example {server}\n",
            "accept user:2",
        ),
    ]);
}

#[test]
fn several_keys() {
    check(&[
        case(
            "the last one",
            "web.example {other}\nweb.example {server}\n",
            "accept user:2",
        ),
        case(
            "the first one",
            "web.example {server}\nweb.example {other}\n",
            "accept user:1",
        ),
        case(
            "by a pattern",
            "web.example {other}\n*.example {server}\n",
            "accept user:2",
        ),
        case(
            "none of two",
            "web.example {other}\nweb.example {other}\n",
            "changed user:2",
        ),
        case(
            "of another type only",
            "web.example {rsa}\n",
            "changed user:1",
        ),
        case(
            "of two other types",
            "web.example {rsa}\nweb.example {ecdsa}\n",
            "changed user:2",
        ),
        case(
            "of another type, under a signature's name",
            "web.example {rsa as rsa-sha2-512}\n",
            "changed user:1",
        ),
        case(
            "of another type too",
            "web.example {rsa}\nweb.example {server}\n",
            "accept user:2",
        ),
        case(
            "another one, and of another type",
            "web.example {other}\nweb.example {rsa}\n",
            "changed user:1",
        )
        .but_ssh("changed user:2", "the key of the same type can be compared"),
        case("the system's file", "", "accept global:1").global("web.example {server}\n"),
        case("the system's file has another", "", "changed global:1")
            .global("web.example {other}\n"),
        case(
            "the system's file has it too",
            "web.example {other}\n",
            "accept global:1",
        )
        .global("web.example {server}\n"),
        case(
            "the system's file has another too",
            "web.example {server}\n",
            "accept user:1",
        )
        .global("web.example {other}\n"),
    ]);
}

#[test]
fn markers() {
    check(&[
        case(
            "revoked",
            "@revoked web.example {server}\n",
            "revoked user:1",
        ),
        case(
            "revoked, then known",
            "@revoked web.example {server}\nweb.example {server}\n",
            "revoked user:1",
        ),
        case(
            "known, then revoked",
            "web.example {server}\n@revoked * {server}\n",
            "revoked user:2",
        ),
        case(
            "changed and revoked",
            "web.example {other}\n@revoked * {server}\n",
            "revoked user:2",
        ),
        case(
            "revoked by the system",
            "web.example {server}\n",
            "revoked global:1",
        )
        .global("@revoked * {server}\n"),
        case(
            "another key revoked",
            "@revoked * {other}\nweb.example {server}\n",
            "accept user:2",
        ),
        case(
            "only another key revoked",
            "@revoked * {other}\n",
            "unknown",
        ),
        case(
            "revoked for another host",
            "@revoked db.example {server}\nweb.example {server}\n",
            "accept user:2",
        ),
        case(
            "revoked but for this host",
            "@revoked *,!web.example {server}\nweb.example {server}\n",
            "accept user:2",
        ),
        case(
            "revoked, in capitals",
            "@revoked WEB.* {server}\nweb.example {server}\n",
            "revoked user:1",
        ),
        case(
            "revoked, a tab after the marker and a space later",
            "@revoked\t* {server}\nweb.example {server}\n",
            "revoked user:1",
        )
        .but_ssh(
            "accept user:2",
            "ssh passes the line over; a revoked key must not slip through",
        ),
        case("an authority", "@cert-authority * {other}\n", "unknown"),
        case(
            "an authority with the host's key",
            "@cert-authority * {server}\n",
            "unknown",
        ),
        case(
            "an authority and the key",
            "@cert-authority * {other}\nweb.example {server}\n",
            "accept user:2",
        ),
        case(
            "an authority and another key",
            "@cert-authority * {server}\nweb.example {other}\n",
            "changed user:2",
        ),
    ]);
}

#[test]
fn ports() {
    let two = |what, user, verdict| case(what, user, verdict).port(2222);
    check(&[
        two(
            "with the port",
            "[web.example]:2222 {server}\n",
            "accept user:1",
        ),
        two(
            "with the port, another key",
            "[web.example]:2222 {other}\n",
            "changed user:1",
        ),
        two(
            "with another port",
            "[web.example]:2223 {server}\n",
            "unknown",
        ),
        two(
            "another key with another port",
            "[web.example]:2223 {other}\n",
            "unknown",
        ),
        two(
            "without the port",
            "web.example {server}\n",
            "accept user:1",
        ),
        two(
            "without the port, another key",
            "web.example {other}\n",
            "unknown",
        ),
        two(
            "without the port, by a pattern",
            "*.example {server}\n",
            "accept user:1",
        ),
        two(
            "both, another with the port",
            "web.example {server}\n[web.example]:2222 {other}\n",
            "changed user:2",
        ),
        two(
            "both, another without the port",
            "web.example {other}\n[web.example]:2222 {server}\n",
            "accept user:2",
        ),
        two(
            "with the port of another type",
            "web.example {server}\n[web.example]:2222 {rsa}\n",
            "changed user:2",
        ),
    ]);
}

#[test]
fn patterns_and_markers_with_ports() {
    let two = |what, user, verdict| case(what, user, verdict).port(2222);
    check(&[
        two("any host", "* {server}\n", "accept user:1"),
        two(
            "any host, another key",
            "web.example {server}\n* {other}\n",
            "changed user:2",
        ),
        two(
            "a pattern with the port",
            "[*.example]:2222 {server}\n",
            "accept user:1",
        ),
        two(
            "a pattern for the port",
            "[web.example]:* {server}\n",
            "accept user:1",
        ),
        two(
            "capitals with the port",
            "[WEB.example]:2222 {server}\n",
            "accept user:1",
        ),
        two(
            "negated with the port",
            "*,![web.example]:2222 {server}\n",
            "accept user:1",
        ),
        two("negated both", "*,!*web.example* {server}\n", "unknown"),
        two(
            "an address with port",
            "[::1]:2222 {server}\n",
            "accept user:1",
        )
        .host("::1"),
        case(
            "port 22 in brackets",
            "[web.example]:22 {server}\n",
            "unknown",
        ),
        case(
            "port 22, known for another port",
            "[web.example]:2222 {server}\n",
            "unknown",
        ),
        two(
            "revoked with the port",
            "web.example {server}\n@revoked [web.example]:2222 {server}\n",
            "revoked user:2",
        ),
        two(
            "revoked without the port, known with it",
            "@revoked web.example {server}\n[web.example]:2222 {server}\n",
            "accept user:2",
        ),
        two(
            "revoked without the port",
            "@revoked web.example {server}\n",
            "revoked user:1",
        )
        .but_ssh(
            "unknown",
            "ssh warns, then goes on as if the host were unknown",
        ),
        two(
            "another key revoked with the port",
            "@revoked [web.example]:2222 {other}\nweb.example {server}\n",
            "accept user:2",
        ),
        two(
            "an authority with the port",
            "@cert-authority [web.example]:2222 {other}\nweb.example {server}\n",
            "accept user:2",
        ),
    ]);
}

#[test]
fn aliases() {
    check(&[
        case("the alias", "box {server}\n", "accept user:1").alias("box"),
        case("the alias, another key", "box {other}\n", "changed user:1").alias("box"),
        case("not the host", "web.example {server}\n", "unknown").alias("box"),
        case("capitals in the alias", "box {server}\n", "accept user:1").alias("BOX"),
        case("no port", "box {server}\n", "accept user:1")
            .alias("box")
            .port(2222),
        case("not with a port", "[box]:2222 {server}\n", "unknown")
            .alias("box")
            .port(2222),
        case(
            "a port in the alias",
            "[box]:2222 {server}\n",
            "accept user:1",
        )
        .alias("[box]:2222"),
        case(
            "a port in the alias, no way back",
            "box {server}\n",
            "unknown",
        )
        .alias("[box]:2222"),
        case("a new alias", "", "add")
            .alias("box")
            .policy("accept-new"),
        case("an alias that matches every host", "", "unknown")
            .alias("*")
            .policy("accept-new")
            .but_ssh(
                "add",
                "the line would make this server's key good for every host",
            ),
    ]);
}

#[test]
fn policies() {
    let unsafe_key = "a changed or revoked key is refused whatever the policy";
    check(&[
        case("ask, unknown", "", "unknown").policy("ask"),
        case("ask, changed", "web.example {other}\n", "changed user:1").policy("ask"),
        case("ask, known", "web.example {server}\n", "accept user:1").policy("ask"),
        case("accept-new, unknown", "", "add").policy("accept-new"),
        case(
            "accept-new, known",
            "web.example {server}\n",
            "accept user:1",
        )
        .policy("accept-new"),
        case(
            "accept-new, changed",
            "web.example {other}\n",
            "changed user:1",
        )
        .policy("accept-new"),
        case(
            "accept-new, of another type",
            "web.example {rsa}\n",
            "changed user:1",
        )
        .policy("accept-new"),
        case(
            "accept-new, revoked",
            "@revoked * {server}\n",
            "revoked user:1",
        )
        .policy("accept-new"),
        case(
            "accept-new, authority",
            "@cert-authority * {other}\n",
            "add",
        )
        .policy("accept-new"),
        case(
            "accept-new, another key without the port",
            "web.example {other}\n",
            "add",
        )
        .policy("accept-new")
        .port(2222),
        case(
            "accept-new, known without the port",
            "web.example {server}\n",
            "accept user:1",
        )
        .policy("accept-new")
        .port(2222),
        case(
            "accept-new, revoked without the port",
            "@revoked web.example {server}\n",
            "revoked user:1",
        )
        .policy("accept-new")
        .port(2222)
        .but_ssh("add", unsafe_key),
        case("no, unknown", "", "add").policy("no"),
        case("no, changed", "web.example {other}\n", "changed user:1")
            .policy("no")
            .but_ssh("let pass", unsafe_key),
        case(
            "no, revoked",
            "web.example {server}\n@revoked * {server}\n",
            "revoked user:2",
        )
        .policy("no")
        .but_ssh("let pass", unsafe_key),
        case("a host that is no name", "", "unknown")
            .host("web[1]")
            .policy("accept-new"),
    ]);
}

#[test]
fn what_is_added_is_what_ssh_adds_and_ssh_takes_it() {
    let lab = Lab::new();
    for (host, port) in [("web.example", 22), ("WEB.example", 2222), ("::1", 2222)] {
        let name = HostName::new(host, port);
        let case = case("", "", "add").host(host).port(port);
        assert!(name.can_be_recorded());
        let by_ssh = lab.file("user", b"");
        lab.ssh(
            &Case {
                policy: "accept-new",
                ..case
            },
            &by_ssh,
            Path::new("none"),
        );
        let ours = lab.dir.path().join("ours");
        add(&ours, &name, &lab.server, false).unwrap();
        assert_eq!(
            fs::read_to_string(&ours).unwrap(),
            fs::read_to_string(&by_ssh).unwrap()
        );

        let hashed = lab.dir.path().join("hashed");
        add(&hashed, &name, &lab.server, true).unwrap();
        for file in [ours, hashed] {
            let text = fs::read(&file).unwrap();
            let known = lab.file("user", &text);
            let case = self::case("", "", "").host(host).port(port);
            assert_eq!(lab.ssh(&case, &known, Path::new("none")), "accept user:1");
            fs::remove_file(file).unwrap();
        }
    }
}

/// Runs each case through ssh and through `verdict`, and reports all differences from the table.
fn check(cases: &[Case]) {
    let lab = Lab::new();
    let mut wrong = Vec::new();
    for case in cases {
        let (user, global) = (lab.render(&case.user), lab.render(&case.global));
        let mut lines = parse(Path::new("user"), &user);
        lines.extend(parse(Path::new("global"), &global));
        let ours = word(&verdict(&lines, &case.name(), &lab.server), case);
        if ours != case.verdict {
            wrong.push(format!("{}: {ours} instead of {}", case.what, case.verdict));
        }

        let ssh = lab.ssh(case, &lab.file("user", &user), &lab.file("global", &global));
        let expected = match &case.departs {
            Some(departure) => departure.ssh,
            // ssh does not say which line revokes a key.
            None if case.verdict.starts_with("revoked") => "revoked",
            None => case.verdict,
        };
        if ssh != expected {
            wrong.push(format!(
                "{}: ssh says {ssh} instead of {expected}",
                case.what
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A verdict in the notation of the table.
fn word(verdict: &Verdict, case: &Case) -> String {
    match verdict {
        Verdict::Known(line) => format!("accept {line}"),
        Verdict::Revoked(line) => format!("revoked {line}"),
        Verdict::Changed(line) => format!("changed {line}"),
        Verdict::Unknown(_) => {
            let added = matches!(case.policy, "accept-new" | "no") && case.name().can_be_recorded();
            if added { "add" } else { "unknown" }.to_owned()
        }
    }
}

/// Keys, an sshd configuration, and a directory for `known_hosts` files. Removing that directory is enough: no process
/// outlives a case.
struct Lab {
    dir: TempDir,
    /// The key that the server presents.
    server: PublicKey,
    /// The user id that runs ssh and sshd, if not our own.
    run_as: Option<u32>,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let is_root = fs::metadata(dir.path()).unwrap().uid() == 0;
        let run_as = is_root.then_some(NOBODY);
        // A large RSA key takes long to make.
        for (name, kind, bits) in [
            ("server", "ed25519", "256"),
            ("other", "ed25519", "256"),
            ("rsa", "rsa", "1024"),
            ("ecdsa", "ecdsa", "256"),
        ] {
            let path = dir.path().join(name);
            run(Command::new("ssh-keygen")
                .args(["-q", "-N", "", "-C", "", "-t", kind, "-b", bits, "-f"])
                .arg(&path));
            chown(&path, run_as, run_as).unwrap();
        }
        let path = dir.path().to_str().expect("a temporary directory in UTF-8");
        let config = format!(
            "HostKey {path}/server\nPidFile none\nUsePAM no\nStrictModes no\nKexAlgorithms curve25519-sha256\n"
        );
        fs::write(dir.path().join("sshd_config"), config).unwrap();
        chown(dir.path(), run_as, run_as).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let public = fs::read_to_string(dir.path().join("server.pub")).unwrap();
        let server = PublicKey::from_line(&public).unwrap();
        Self {
            dir,
            server,
            run_as,
        }
    }

    /// A file that ssh may read and write.
    fn file(&self, name: &str, text: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        chown(&path, self.run_as, self.run_as).unwrap();
        path
    }

    /// A text of the table with its keys and hashes filled in.
    fn render(&self, template: &str) -> Vec<u8> {
        let mut text = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (word, after) = after.split_once('}').expect("a closing brace");
            text.push_str(before);
            text.push_str(&self.fill(word));
            rest = after;
        }
        text.push_str(rest);
        text.chars()
            .map(|c| u8::try_from(c).expect("a byte"))
            .collect()
    }

    fn fill(&self, word: &str) -> String {
        let public = |name: &str| {
            let text = fs::read_to_string(self.dir.path().join(format!("{name}.pub"))).unwrap();
            text.trim_end().to_owned()
        };
        match word.split_once(' ') {
            None if word == "untyped" => base64_of(&public("server")).to_owned(),
            None if word == "mistyped" => format!("ssh-rsa {}", base64_of(&public("server"))),
            None => public(word),
            Some(("cut", name)) => {
                let whole = public(name);
                whole[..whole.len() - 8].to_owned()
            }
            Some(("hashed", name)) => self.hashed(name),
            Some((name, signature)) => {
                let signature = signature.strip_prefix("as ").expect("a word of the table");
                format!("{signature} {}", base64_of(&public(name)))
            }
        }
    }

    /// The name as ssh-keygen hashes it.
    fn hashed(&self, name: &str) -> String {
        let path = self.dir.path().join("to-hash");
        fs::write(&path, format!("{name} {}\n", self.fill("server"))).unwrap();
        run(Command::new("ssh-keygen").arg("-Hf").arg(&path));
        let line = fs::read_to_string(&path).unwrap();
        line.split(' ').next().unwrap().to_owned()
    }

    /// ssh's verdict on the server's key for the case's host and policy, in the notation of the table.
    fn ssh(&self, case: &Case, user: &Path, global: &Path) -> String {
        let config = self.dir.path().join("sshd_config");
        let mut ssh = Command::new("ssh");
        ssh.args(["-v", "-F", "/dev/null", "-p", &case.port.to_string()])
            .args(["-o", "HostKeyAlgorithms=ssh-ed25519"])
            .args(["-o", "PreferredAuthentications=none"])
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=30"])
            .arg(format!("-oStrictHostKeyChecking={}", case.policy))
            .arg(format!("-oUserKnownHostsFile={}", user.display()))
            .arg(format!("-oGlobalKnownHostsFile={}", global.display()))
            .arg(format!("-oProxyCommand={SSHD} -i -f {}", config.display()));
        if let Some(alias) = case.alias {
            ssh.arg(format!("-oHostKeyAlias={alias}"));
        }
        if let Some(id) = self.run_as {
            ssh.uid(id).gid(id);
        }
        ssh.args(["--", case.host, "true"]);
        ssh.current_dir(self.dir.path()).stdin(Stdio::null());
        let output = ssh.output().expect("ssh can be run");
        verdict_of_ssh(&String::from_utf8_lossy(&output.stderr))
    }
}

/// Reads the verdict from the output of `ssh -v`: whether it went on to authentication, and which line decided.
fn verdict_of_ssh(log: &str) -> String {
    let place_after = |marker: &str| {
        let line = log.lines().find(|line| line.contains(marker))?;
        let (_, place) = line.trim_end().rsplit_once('/')?;
        Some(place.to_owned())
    };
    let has = |text: &str| log.contains(text);
    if has("Permission denied (") {
        if let Some(place) = place_after("Found key in ") {
            format!("accept {place}")
        } else if has("Warning: Permanently added ") {
            "add".to_owned()
        } else {
            "let pass".to_owned()
        }
    } else {
        assert!(has("Host key verification failed."), "no verdict:\n{log}");
        if let Some(place) = place_after("Offending ") {
            format!("changed {place}")
        } else if has("No ED25519 host key is known for ") {
            "unknown".to_owned()
        } else if has("REVOKED HOST KEY DETECTED") {
            "revoked".to_owned()
        } else {
            "unknown".to_owned()
        }
    }
}

fn base64_of(public: &str) -> &str {
    public.split(' ').nth(1).expect("a public key").trim_end()
}

fn run(command: &mut Command) {
    let output = command.output().expect("OpenSSH is installed");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn parsed(text: &str) -> Vec<KnownHost> {
    let text = text
        .replace("{server}", &ed25519(1).to_line())
        .replace("{other}", &ed25519(2).to_line())
        .replace("{rsa}", &rsa(1).to_line());
    parse(Path::new("k"), text.as_bytes())
}

fn host_keys<'a>(
    text: &str,
    checking: StrictHostKeyChecking,
    config: &'a Resolved,
) -> HostKeys<'a> {
    let policy = Policy {
        batch: true,
        keeper: false,
        starts: false,
        parallel: 1,
        verbose: false,
        quiet: false,
        step: |_| (),
        warn: |_| (),
    };
    HostKeys {
        host: HostName::new("web", 2222),
        lines: parsed(text),
        checking,
        file: Some("/home/me/.ssh/known_hosts".into()),
        config,
        policy,
    }
}

#[test]
fn known_types_come_first() {
    let default = ALGORITHMS.to_vec();
    let rsa_first = [&ALGORITHMS[4..], &ALGORITHMS[..4]].concat();
    let cases: &[(&str, &str, &[&str])] = &[
        ("nothing known", "", &default),
        ("ed25519", "[web]:2222 {other}\n", &default),
        ("rsa", "[web]:2222 {rsa}\n", &rsa_first),
        ("without the port", "web {rsa}\n", &rsa_first),
        (
            "port before none",
            "web {rsa}\n[web]:2222 {other}\n",
            &default,
        ),
        ("revoked", "[web]:2222 {rsa}\n@revoked * {rsa}\n", &default),
        ("authority", "@cert-authority * {rsa}\n", &default),
        ("of another host", "db {rsa}\n", &default),
        (
            "both",
            "[web]:2222 {rsa}\n[web]:2222 {server}\n",
            &[&ALGORITHMS[..1], &ALGORITHMS[4..], &ALGORITHMS[1..4]].concat(),
        ),
    ];
    let host = HostName::new("web", 2222);
    for (what, text, expected) in cases {
        let found = preferred(&parsed(text), &host, &ALGORITHMS);
        assert_eq!(found, *expected, "{what}");
    }
    let offered = ["ssh-ed25519-cert-v01@openssh.com", "ssh-rsa", "ssh-ed25519"];
    assert_eq!(preferred(&[], &host, &offered), ["ssh-ed25519", "ssh-rsa"]);
}

#[test]
fn answers() {
    let fingerprint = ed25519(1).fingerprint();
    let other = ed25519(2).fingerprint();
    for (text, expected) in [
        ("yes", Some(true)),
        (" YES\r\n", Some(true)),
        (fingerprint.as_str(), Some(true)),
        ("no", Some(false)),
        ("No\n", Some(false)),
        ("", Some(false)),
        ("y", None),
        ("yes please", None),
        (other.as_str(), None),
        (&fingerprint.to_lowercase(), None),
    ] {
        assert_eq!(answer(text, &fingerprint), expected, "{text:?}");
    }
}

#[test]
fn messages_name_the_keys_the_line_and_what_to_do() {
    let config = plain("");
    let (new, old) = (ed25519(1).label(), ed25519(2).label());
    let paste = format!("known_hosts:\n    [web]:2222 {}\n", ed25519(1).to_line());
    for (text, policy, said) in [
        (
            "[web]:2222 {other}\n",
            StrictHostKeyChecking::No,
            vec![
                format!("has changed: it is now {new}, but k:1 has {old}\n"),
                "ssh-keygen -R '[web]:2222' -f k".to_owned(),
            ],
        ),
        (
            "[web]:2222 {rsa}\n",
            StrictHostKeyChecking::No,
            vec!["another type, ssh-rsa SHA256:".to_owned()],
        ),
        (
            "\n@revoked * {server}\n",
            StrictHostKeyChecking::No,
            vec![format!("is revoked: k:2 says that {new} must not")],
        ),
        (
            "web {other}\n@cert-authority *:2222 {rsa}\n",
            StrictHostKeyChecking::Yes,
            vec![
                format!("{new}, is not known, and StrictHostKeyChecking is yes"),
                "k:1 has another key".to_owned(),
                "k:2 names a certificate authority".to_owned(),
                paste.clone(),
            ],
        ),
        (
            "",
            StrictHostKeyChecking::Ask,
            vec![
                "nobody can be asked".to_owned(),
                paste,
                "accept-new".to_owned(),
            ],
        ),
    ] {
        let mut keys = host_keys(text, policy, &config);
        let error = keys
            .check(&ed25519(1).blob, Prompter { batch: true })
            .unwrap_err();
        assert_eq!(error.kind, Kind::HostKey);
        for part in said {
            assert!(error.message.contains(&part), "{part}: {error}");
        }
    }
    let mut keys = host_keys("", StrictHostKeyChecking::Ask, &config);
    assert!(keys.check(b"\x1b", Prompter { batch: true }).is_err());
    let host = HostName::alias("web\x1b[2J\n").to_string();
    assert!(!host.contains(char::is_control), "{host}");
}

#[test]
fn the_question_shows_what_ssh_shows() {
    let config = plain("");
    let question = |text: &str| {
        host_keys(text, StrictHostKeyChecking::Ask, &config).question(&ed25519(1), "\nhint")
    };
    let plain = question("");
    assert!(plain.starts_with("The authenticity of host '[web]:2222' can't be established.\n"));
    let fingerprint = ed25519(1).fingerprint();
    assert!(plain.contains(&format!(
        "ssh-ed25519 key fingerprint is {fingerprint}.\nhint\n"
    )));
    assert!(plain.contains("not known by any other names"));
    let full = question(&"Db,DB2 {server}\n".repeat(10));
    assert!(full.contains("k:8: db,db2\n    (2 more)"), "{full}");
}

#[test]
fn a_known_hosts_command_adds_lines() {
    let key = ed25519(1);
    let check = |command: &str| {
        let config = plain(&format!("knownhostscommand {command}"));
        let mut keys = host_keys("", StrictHostKeyChecking::Yes, &config);
        keys.preferred(&ALGORITHMS)?;
        keys.check(&key.blob, Prompter { batch: true })
    };
    assert!(check("/bin/echo %H %t %K").is_ok());
    for (command, said) in [
        ("/bin/echo %H.x %t %K", "is not known"),
        ("/bin/false", "failed (exit status: 1)"),
        ("/nonexistent %H", "can't be run"),
        ("/bin/echo %z", "%z is not valid here"),
    ] {
        let error = check(command).unwrap_err();
        assert!(error.message.contains(said), "{error}");
    }
    let config =
        plain("knownhostscommand /bin/sh -c \"test %I = ORDER && echo '%H ssh-rsa AAAA'\"");
    let mut keys = host_keys("", StrictHostKeyChecking::Yes, &config);
    assert!(keys.preferred(&ALGORITHMS).is_ok());
    // It is HOSTNAME now, so the command fails.
    let error = keys.check(&key.blob, Prompter { batch: true }).unwrap_err();
    assert!(error.message.contains("failed (exit status: 1)"), "{error}");
}
