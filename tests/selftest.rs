//! Tests of the harness, for faults that no other test would notice: nothing is left behind, and proxies cut, hold and
//! delay as told.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::scratch::Scratch;
use crate::harness::tool;
use crate::harness::{
    self, Agent, Direction, Login, Options, Proxy, STEP_TIMEOUT, Server, Site, poll_until, procs,
};
use crate::kit::{FixedReply, FixedServer};

fn each_server() -> [Options; 4] {
    [
        Server::openssh(Login::Root),
        Server::openssh(Login::User),
        Server::dropbear(Login::Root),
        Server::dropbear(Login::User),
    ]
}

/// Starts a process that outlives the session, and returns its pid.
fn leave_a_job(server: &Server) -> procs::Process {
    let line = server
        .run("sh -c 'setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!'")
        .ok()
        .line();
    procs::Process::find(line.parse().expect("a pid")).expect("it runs")
}

/// A server that accepts one connection and sends back what it receives. Returns its port and thread.
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
        assert!(!job.runs());
        let left: Vec<_> = before.into_iter().filter(procs::Process::runs).collect();
        assert!(
            left.iter().all(|process| process.pid == session.pid()),
            "{}",
            procs::listing(&left)
        );
        poll_until("the client notices", STEP_TIMEOUT, || session.has_ended());
    }
}

#[test]
fn a_panicking_test_leaves_nothing() {
    let (send, receive) = std::sync::mpsc::channel();
    let outcome = std::thread::spawn(move || {
        let server = Server::openssh(Login::User).start();
        let job = leave_a_job(&server);
        send.send((server.dir().to_owned(), job))
            .expect("somebody listens");
        panic!("on purpose");
    })
    .join();
    assert!(outcome.is_err());
    let (dir, job) = receive.recv().expect("the server had started");
    assert!(!dir.exists() && !job.runs());
    let left = procs::belonging_to(&dir, None);
    assert!(left.is_empty(), "{}", procs::listing(&left));
}

/// Not a test: the process that the next test kills.
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
        told.push_str(&leave_a_job(server).pid.to_string());
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
    poll_until(
        "the helper has started everything",
        STEP_TIMEOUT * 3,
        || file.exists(),
    );
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
    poll_until(
        "the warden has removed everything",
        STEP_TIMEOUT * 3,
        || !base.exists(),
    );
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
    poll_until("it has shed its environment", STEP_TIMEOUT, || {
        procs::Process::find(pid).is_some_and(|process| process.name == "sleep")
    });
    let process = server.processes();
    let process = process.iter().find(|process| process.pid == pid);
    let process = process.expect("it is found").clone();
    drop(server);
    assert!(!process.runs());
}

#[test]
fn a_proxy_delays_each_way_by_a_delay_line() {
    let (port, _echo) = echo_server();
    let proxy = Proxy::start(port, Duration::from_millis(50));
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).expect("the proxy listens");
    stream.set_nodelay(true).expect("a socket option");
    let mut answer = [0; 4];
    // The quickest of several round trips: a busy machine slows down some.
    let trips = [(); 40].map(|()| {
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

    // A delay line: chunks are in transit together. With a sleep per read, these 128 would take 6.4 s each way.
    let start = Instant::now();
    let mut sender = stream.try_clone().expect("a descriptor");
    let sending = std::thread::spawn(move || sender.write_all(&vec![7; 2 << 20]));
    stream.read_exact(&mut vec![0; 2 << 20]).expect("all of it");
    sending.join().expect("no panic").expect("sent");
    let all = start.elapsed();
    assert!(
        all >= Duration::from_millis(100) && all < Duration::from_secs(6),
        "{all:?}"
    );
    assert_eq!(proxy.bytes(Direction::ToServer), 40 * 4 + (2 << 20));
    assert_eq!(proxy.bytes(Direction::ToClient), 40 * 4 + (2 << 20));
    assert_eq!((proxy.connections(), proxy.open_connections()), (1, 1));
    assert!(proxy.direction_changes() >= 1);
}

#[test]
fn a_proxy_cuts_holds_refuses_and_counts() {
    let (port, echo) = echo_server();
    let proxy = Proxy::start(port, Duration::ZERO);
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).expect("the proxy listens");
    let mut answer = [0; 4];

    proxy.hold(Direction::ToClient);
    stream.write_all(b"held").expect("sent");
    poll_until("it reaches the server", STEP_TIMEOUT, || {
        proxy.bytes(Direction::ToServer) == 4
    });
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a socket option");
    assert!(stream.read(&mut answer).is_err());
    assert_eq!(proxy.bytes(Direction::ToClient), 0);
    proxy.release();
    stream
        .set_read_timeout(Some(STEP_TIMEOUT))
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
    let sayer = FixedServer::start(FixedReply::Forever(vec![b'x'; 1000]));
    let proxy = Proxy::start(sayer.port(), Duration::ZERO);
    let connect = || TcpStream::connect(("127.0.0.1", proxy.port())).expect("the proxy listens");
    let mut buffer = [0; 4096];
    let mut old = connect();
    old.read_exact(&mut buffer).expect("it speaks");
    proxy.freeze();
    old.set_read_timeout(Some(Duration::from_secs(1)))
        .expect("a socket option");
    // What had passed the proxy before still arrives.
    while old.read(&mut buffer).is_ok() {}
    connect()
        .read_exact(&mut buffer)
        .expect("a new one is free");
    assert!(old.read(&mut buffer).is_err());
    proxy.release();
    old.set_read_timeout(Some(STEP_TIMEOUT))
        .expect("a socket option");
    old.read_exact(&mut buffer).expect("it goes on");
}

#[test]
fn a_run_that_is_too_long_is_killed_and_shows_its_output() {
    let scratch = Scratch::new();
    let shell = |line: &str| tool("sh").env("HOME", scratch.path()).args(["-c", line]);
    let limit = Duration::from_secs(5);
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
    poll_until(
        "only what was left in the background runs",
        STEP_TIMEOUT,
        || scratch.processes().len() == 1,
    );
}

#[test]
#[should_panic(expected = "no-such-program is not in the table")]
fn a_program_that_is_not_in_the_table_is_refused() {
    drop(tool("no-such-program"));
}
