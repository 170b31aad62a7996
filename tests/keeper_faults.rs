//! The keeper under adverse conditions: another version's socket, a path that is too long, a forced command,
//! connections that fall silent, a suspended machine.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{
    Direction, Fixture, Login, Process, Rsig, STEP_TIMEOUT, Server, idle_shells, poll_until, tool,
};
use crate::keepers::{
    assert_final_count, assert_nothing_left, await_warm_relay, dots_written, keeper_pids, keepers,
    new_counter, with_keeper,
};

/// The report of `kill --json` for one job.
#[track_caller]
fn report(f: &Fixture, words: &[&str]) -> Value {
    f.json(words).remove(0)
}

/// The socket of the only keeper: its last argument.
#[track_caller]
fn socket(f: &Fixture) -> PathBuf {
    let [pid] = keeper_pids(f)[..] else {
        panic!("one keeper")
    };
    let cmdline = Process::find(pid).expect("the keeper runs").cmdline;
    PathBuf::from(cmdline.rsplit(' ').next().expect("it is told its socket"))
}

/// Claims of deliveries to a job, as found on its host.
fn claims(f: &Fixture, job: &str) -> Vec<String> {
    let names = fs::read_dir(f.jobs_dir().join(job))
        .expect("the job's directory")
        .flatten();
    names
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("sig.")?.to_owned()))
        .collect()
}

/// A listener in a keeper's place, whose greeting has another version.
struct Stranger {
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    closing: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Stranger {
    fn listen(socket: &Path, version: &str) -> Self {
        let listener = UnixListener::bind(socket).expect("nobody is there");
        listener
            .set_nonblocking(true)
            .expect("an option of the socket");
        let hello = format!("{{\"Hello\":{{\"version\":\"{version}\",\"jobs\":[]}}}}");
        let length = u32::try_from(hello.len()).expect("short").to_le_bytes();
        let hello = [&length[..], &[0], hello.as_bytes()].concat();
        let (heard, closing): (Arc<Mutex<Vec<_>>>, Arc<AtomicBool>) = Default::default();
        let (told, ending) = (Arc::clone(&heard), Arc::clone(&closing));
        let thread = std::thread::spawn(move || {
            while !ending.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => told.lock().expect("no panic").push(greet(stream, &hello)),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self {
            heard,
            closing,
            thread: Some(thread),
        }
    }

    /// Everything that each connection has sent.
    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().expect("no panic").clone()
    }
}

fn greet(mut stream: UnixStream, hello: &[u8]) -> Vec<u8> {
    let mut heard = Vec::new();
    stream
        .set_nonblocking(false)
        .expect("an option of the socket");
    stream
        .set_read_timeout(Some(STEP_TIMEOUT))
        .expect("an option of the socket");
    // The other side may hang up at any time.
    drop(stream.write_all(hello));
    drop(stream.read_to_end(&mut heard));
    heard
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        drop(self.thread.take().map(std::thread::JoinHandle::join));
    }
}

#[test]
fn another_versions_keeper_is_left_alone() {
    let f = with_keeper(Server::openssh(Login::User).start());
    let job = new_counter(&f);
    let socket = socket(&f);
    f.rsig.run(&["keeper", "stop", "--all"]).ok();
    poll_until("the keeper is gone", STEP_TIMEOUT, || {
        keeper_pids(&f).is_empty()
    });
    let stranger = Stranger::listen(&socket, "0.0.1/1");
    let inode = fs::symlink_metadata(&socket)
        .expect("the other socket")
        .ino();

    let told = report(&f, &["kill", "--json", &job, "USR1"]);
    assert_eq!((&told["sent"], &told["via"]), (&true.into(), &"pid".into()));
    // The private keeper of that kill is listed until it has ended.
    poll_until("no keeper is listed", STEP_TIMEOUT, || {
        keepers(&f).is_empty()
    });
    f.rsig.run(&["keeper", "stop", "--all"]).ok();

    assert_eq!(
        fs::symlink_metadata(&socket)
            .map(|metadata| metadata.ino())
            .ok(),
        Some(inode),
        "it was replaced"
    );
    // The private keeper of that kill ends; a shared one would not.
    poll_until("no keeper is left", STEP_TIMEOUT, || {
        keeper_pids(&f).is_empty()
    });
    // Each connection sent one greeting and nothing else.
    let heard = stranger.heard();
    assert!(!heard.is_empty());
    for said in heard {
        assert_eq!(
            said.len(),
            5 + usize::from(said[0]),
            "{}",
            String::from_utf8_lossy(&said)
        );
        assert!(
            said[5..].starts_with(b"{\"Hello\""),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }
    assert_final_count(&f, &job, 1, "beside another version");
}

/// Waits until the keeper has a spare shell, and returns its pid.
fn await_spare(f: &Fixture) -> i32 {
    let server = f.server.as_ref().expect("a host that is kept");
    let mut idle = Vec::new();
    poll_until("a spare shell is open", STEP_TIMEOUT, || {
        idle = idle_shells(&server.processes());
        idle.len() == 1
    });
    idle[0]
}

/// Waits until a keeper has given up its silent connection: at once, or when the next command needs it.
fn await_given_up(f: &Fixture, keeper: i32) {
    poll_until("the keeper gives its connection up", STEP_TIMEOUT, || {
        f.rsig.run(&["ps"]).ok().stderr_is_empty();
        !keeper_pids(f).contains(&keeper)
    });
}

#[test]
fn a_request_that_may_be_repeated_outlives_its_connection() {
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    let server = f.server.as_ref().expect("a host that is kept");
    let connect: Vec<&str> = f.connect.iter().map(String::as_str).collect();
    for (name, direction) in [("one", Direction::ToServer), ("other", Direction::ToClient)] {
        let job = f.spawn(&["-n", name], &["true"]);
        poll_until("it has ended", STEP_TIMEOUT, || f.has_ended(&job));
        let unrecorded = f.spawn(&[], &["true"]);
        f.rsig.run(&["rm", "--forget", &unrecorded]).ok();
        let by_host = format!("{}/{unrecorded}", f.host);
        for words in [
            // The recorded holder of the name is looked at.
            f.words("spawn", &["-n", name], &["true"]),
            // Without a record, the job is looked up on its host.
            [&["wait"], &connect[..], &[&by_host]].concat(),
            [&["ps", "--discover", "--host", &f.host], &connect[..]].concat(),
            vec!["rm", &job],
        ] {
            poll_until("a shell waits", STEP_TIMEOUT, || {
                !idle_shells(&server.processes()).is_empty()
            });
            let connections = proxy.connections();
            proxy.cut_after_bytes(direction, 1);
            f.rsig.run(&words).ok();
            assert!(proxy.connections() > connections, "{words:?} was not cut");
        }
    }
}

/// Removes, on drop, a directory that rsig created outside the test's own.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let gone = fs::remove_dir_all(&self.0);
        assert!(
            gone.is_ok() || std::thread::panicking(),
            "{}: {gone:?}",
            self.0.display()
        );
    }
}

#[test]
fn where_the_state_directorys_path_is_too_long_its_sockets_are_elsewhere() {
    for runtime in [true, false] {
        let mut f = with_keeper(Server::openssh(Login::User).start());
        f.rsig = Rsig::new().with_state(&"long".repeat(40));
        f.rsig.keeper = true;
        assert!(f.rsig.state().as_os_str().len() > 108);
        let place = if runtime {
            f.rsig.dir().join("runtime")
        } else {
            PathBuf::from("/tmp")
        };
        fs::create_dir_all(&place).expect("our own directory is writable");
        let rsig = |words: &[&str]| {
            let command = f.rsig.command(words);
            if runtime {
                command.env("XDG_RUNTIME_DIR", &place)
            } else {
                command
            }
            .run()
        };

        let job = rsig(&f.words("spawn", &[], &["--", "sleep", "1000"]))
            .ok()
            .line();
        let socket = socket(&f);
        let directory = socket.parent().expect("it is in a directory").to_owned();
        let removed = (!runtime).then(|| Removed(directory.clone()));
        assert_eq!(directory.parent(), Some(place.as_path()));
        let mode = |path: &Path| fs::symlink_metadata(path).expect("it is there").mode() & 0o777;
        assert_eq!((mode(&directory), mode(&socket)), (0o700, 0o600));

        let via = |words: &[&str]| {
            let output = rsig(words);
            serde_json::from_str::<Value>(&output.ok().line()).expect("JSON")["via"].clone()
        };
        poll_until("the relay takes signals", STEP_TIMEOUT, || {
            let told = rsig(&["keeper", "status", "--json"]).ok().stdout();
            told.contains(&format!("[\"{job}\",true]"))
        });
        assert_eq!(via(&["kill", "--json", &job, "USR1"]), "channel");
        rsig(&["keeper", "status"]).ok().stdout_has("server");
        rsig(&["keeper", "stop", "server"]).ok();
        poll_until("the keeper is gone", STEP_TIMEOUT, || {
            keeper_pids(&f).is_empty()
        });
        assert_nothing_left(&f);
        assert!(!socket.exists());
        let told = rsig(&["keeper", "status"]);
        assert!(!told.ok().stdout().contains("server"), "{told}");
        assert!(keeper_pids(&f).is_empty());

        // If the directory is not private to this user, there is no keeper.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("ours");
        rsig(&["wait", &job]).code(138);
        let job = rsig(&f.words("spawn", &[], &["--", "sleep", "1000"]))
            .ok()
            .stderr_is_empty()
            .line();
        assert_eq!(via(&["kill", "--json", "--wait", "20s", &job]), "pid");
        poll_until("a keeper of one command has gone", STEP_TIMEOUT, || {
            keeper_pids(&f).is_empty()
        });
        assert!(!socket.exists());
        drop(removed);
        assert!(runtime || !directory.exists());
    }
}

#[test]
fn a_forced_command_that_runs_what_was_asked_for_takes_no_channel_signals() {
    let run = "exec /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"";
    for by_key in [false, true] {
        let options = Server::openssh(Login::User);
        let server = if by_key {
            options
        } else {
            options.config(&format!("ForceCommand {run}"))
        }
        .start();
        if by_key {
            let forced = format!(
                "command=\"{}\" {}\n",
                run.replace('"', "\\\""),
                server.client_key().public
            );
            fs::write(server.home().join(".ssh/authorized_keys"), forced)
                .expect("it is ours to write");
        }
        let f = with_keeper(server);
        let job = new_counter(&f);
        let by_pid = || {
            let told = report(&f, &["kill", "--json", &job, "USR1"]);
            assert_eq!((&told["sent"], &told["via"]), (&true.into(), &"pid".into()));
        };
        // Whether or not the probe has already failed.
        by_pid();
        let mut told = Value::Null;
        poll_until("the probe has failed", STEP_TIMEOUT, || {
            let kill = ["kill", "--json", "--via", "channel", &job, "USR1"];
            let line = f.rsig.run(&kill).code(1).line();
            told = serde_json::from_str(&line).expect("JSON");
            let said = told["error"]["message"].as_str().expect("a message");
            assert!(said.contains("nothing was sent"), "{said}");
            said.contains("forced commands")
        });
        assert_eq!(
            (&told["sent"], &told["via"], &told["error"]["kind"]),
            (&false.into(), &Value::Null, &"no_channel".into())
        );
        by_pid();
        // The relay still reports the job's end.
        assert_final_count(
            &f,
            &job,
            2,
            if by_key {
                "forced by the key"
            } else {
                "forced by the server"
            },
        );
        f.rsig.run(&["keeper", "stop", "--all"]).ok();
        assert_nothing_left(&f);
    }
}

#[test]
fn the_lock_says_when_the_job_has_taken_all_signals() {
    for server in [Server::openssh(Login::User), Server::dropbear(Login::Root)] {
        let f = with_keeper(server.start());
        let job = new_counter(&f);
        await_warm_relay(&f, &job);
        for (count, way) in ["auto", "pid", "auto", "pid"].iter().enumerate() {
            f.rsig.run(&["kill", "--via", way, &job, "USR1"]).ok();
            let last = || {
                let files = fs::read_dir(f.jobs_dir().join(&job).join("lock")).expect("readable");
                let last = files.flatten().map(|file| file.path()).max();
                fs::read_to_string(last.expect("a file")).expect("readable")
            };
            // On a busy machine, the job may take the signal only after rsig has looked. Another signal makes rsig look
            // again.
            poll_until("it is taken", STEP_TIMEOUT, || {
                last().ends_with("free\nclean\n") || {
                    f.rsig.run(&["kill", &job, "CONT"]).ok();
                    false
                }
            });
            let status = fs::read_to_string(format!("/proc/{}/status", f.process(&job).pid))
                .expect("the job runs");
            let mut pending = status
                .lines()
                .filter(|line| line.starts_with("SigPnd") || line.starts_with("ShdPnd"));
            assert!(pending.all(|line| line.ends_with("00000000")), "{status}");
            // Its handler may not have written the dot yet.
            poll_until("it is counted", STEP_TIMEOUT, || {
                dots_written(&f, &job) == count + 1
            });
        }
        assert_final_count(&f, &job, 4, "taken");
    }
}

#[test]
fn a_silent_connection_is_given_up_and_what_comes_of_it_later_sends_nothing_twice() {
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    let job = new_counter(&f);
    await_warm_relay(&f, &job);
    await_spare(&f);
    let connections = proxy.connections();
    let [pid] = keeper_pids(&f)[..] else {
        panic!("one keeper")
    };
    proxy.freeze();
    let start = Instant::now();
    let told = report(&f, &["kill", "--json", &job, "USR1"]);
    assert!(
        start.elapsed() < Duration::from_secs(40),
        "{:?}",
        start.elapsed()
    );
    assert_eq!((&told["sent"], &told["via"]), (&true.into(), &"pid".into()));
    assert_eq!(proxy.connections(), connections + 1);
    poll_until("it is counted", STEP_TIMEOUT, || {
        dots_written(&f, &job) == 1
    });
    assert_eq!(claims(&f, &job), ["c1"], "the relay was asked first");
    await_given_up(&f, pid);
    // The relay on the old connection now gets the same signal, and finds it claimed.
    proxy.release();
    poll_until("the old connection ends", STEP_TIMEOUT, || {
        proxy.open_connections() <= keeper_pids(&f).len()
    });
    f.rsig.run(&["keeper", "stop", "--all"]).ok();
    assert_nothing_left(&f);
    assert_final_count(&f, &job, 1, "frozen");
}

#[test]
fn where_nothing_gets_through_any_more_a_signal_is_not_said_to_be_sent() {
    let (mut f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    f.connect
        .extend(["-o", "ConnectTimeout=10"].map(str::to_owned));
    let job = new_counter(&f);
    await_warm_relay(&f, &job);
    proxy.hold_both();
    let start = Instant::now();
    let output = f.rsig.run(&["kill", "--json", &job, "USR1"]);
    assert!(
        start.elapsed() < Duration::from_secs(40),
        "{:?}",
        start.elapsed()
    );
    let told: Value = serde_json::from_str(&output.code(255).line()).expect("JSON");
    assert_eq!(
        (&told["sent"], &told["via"]),
        (&Value::Null, &Value::Null),
        "{output}"
    );
    proxy.release();
    poll_until("what was held has ended", STEP_TIMEOUT, || {
        proxy.open_connections() == 0
    });
    assert_eq!(keeper_pids(&f), Vec::<i32>::new());
    // The signal may have been sent after all, but at most once.
    f.rsig.run(&["stop", &job]).ok();
    assert!(
        dots_written(&f, &job) <= 1,
        "{} were counted",
        dots_written(&f, &job)
    );
    f.rsig.run(&["keeper", "stop", "--all"]).ok();
    assert_nothing_left(&f);
}

/// Makes CLOCK_BOOTTIME, which counts suspended time, jump by an hour once a file exists.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_BOOTTIME && access(getenv("SLEPT"), F_OK) == 0)
        now->tv_sec += 3600;
    return result;
}
"#;

/// Starts a keeper that uses the [`CLOCK`]. Returns the file that makes the clock jump, and a job whose relay it holds.
fn on_a_clock(f: &Fixture) -> (PathBuf, String) {
    let (library, slept) = (f.rsig.dir().join("clock.so"), f.rsig.dir().join("slept"));
    let cc = tool("cc")
        .args(["-shared", "-fPIC", "-x", "c", "-", "-o"])
        .arg(&library);
    cc.stdin(CLOCK).run().ok();
    let words = f.words("spawn", &[], &["--", "sleep", "1000"]);
    f.rsig
        .command(&words)
        .env("LD_PRELOAD", &library)
        .env("SLEPT", &slept)
        .run()
        .ok();
    let job = new_counter(f);
    await_warm_relay(f, &job);
    (slept, job)
}

#[test]
fn a_machine_that_slept_makes_a_new_connection() {
    for clock_jumps in [true, false] {
        let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
        let (slept, job) = on_a_clock(&f);
        await_spare(&f);
        let connections = proxy.connections();
        let [pid] = keeper_pids(&f)[..] else {
            panic!("one keeper")
        };

        // A suspended machine runs nothing; and when it resumes, no router in between knows the connection any more.
        let keeper = Pid::from_raw(pid);
        kill(keeper, Signal::SIGSTOP).expect("it runs");
        poll_until("it stands still", STEP_TIMEOUT, || {
            Process::find(pid).is_some_and(|process| process.is_stopped())
        });
        proxy.freeze();
        if clock_jumps {
            fs::write(&slept, "").expect("our own directory is writable");
        }
        kill(keeper, Signal::SIGCONT).expect("it runs");

        let told = report(&f, &["kill", "--json", &job, "USR1"]);
        assert_eq!(
            (&told["sent"], &told["via"]),
            (&true.into(), &"pid".into()),
            "{clock_jumps}"
        );
        assert_eq!(proxy.connections(), connections + 1);
        // A relay whose connection is in doubt is not even asked, so nothing was claimed in its name.
        assert_eq!(
            claims(&f, &job) == ["c1"],
            !clock_jumps,
            "{:?}",
            claims(&f, &job)
        );
        await_given_up(&f, pid);
        proxy.release();
        poll_until("the old connection ends", STEP_TIMEOUT, || {
            proxy.open_connections() <= keeper_pids(&f).len()
        });
        assert_final_count(&f, &job, 1, if clock_jumps { "slept" } else { "stopped" });
    }
}

#[test]
fn a_connection_that_outlives_a_sleep_goes_on() {
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    let (slept, job) = on_a_clock(&f);
    let (pids, connections) = (keeper_pids(&f), proxy.connections());
    fs::write(&slept, "").expect("our own directory is writable");
    f.rsig.run(&["kill", &job, "USR1"]).ok().stderr_is_empty();
    let told = report(&f, &["kill", "--json", &job, "USR1"]);
    assert_eq!(
        (&told["sent"], &told["via"]),
        (&true.into(), &"channel".into())
    );
    assert_eq!((keeper_pids(&f), proxy.connections()), (pids, connections));
    assert_final_count(&f, &job, 2, "slept, and still connected");
}
