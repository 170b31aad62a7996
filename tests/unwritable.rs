//! A state file that can't be written, or can't exist at all: what is done and reported stays the same.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::scratch::{make_dir, write_file};
use crate::harness::{Fixture, Login, Output, Rsig, Server, poll_until, tool};
use crate::jobs::STEP_TIMEOUT;
use crate::kit::assert_clear_message;

/// Runs a script in a mount namespace of its own, where the state directory is a file system of 400 kB. In it, `r` runs
/// rsig and prints one line: the first word, the exit status and the number of lines on standard error.
fn script(rsig: &Rsig, lines: &str) -> Output {
    let script = format!(
        "mount -t tmpfs -o size=400k,mode=700 small \"$RSIG_STATE_DIR\" || exit 99
         r() {{ \"$rsig\" \"$@\" >out 2>err; echo \"$1 $? $(wc -l <err)\"; cat err >>all; }}
         {lines}
         cat all >&2"
    );
    let words = ["--mount", "--propagation", "private", "/bin/sh", "-c"];
    rsig.within(tool("unshare").args(words).arg(script))
        .env("rsig", env!("CARGO_BIN_EXE_rsig"))
        .run()
}

const FULL: &str = "dd if=/dev/zero of=\"$RSIG_STATE_DIR/fill\" bs=1k 2>/dev/null";
/// A mount over the directory: files open for writing keep the original mount from being made read-only.
const READ_ONLY: &str = "mount --bind \"$RSIG_STATE_DIR\" \"$RSIG_STATE_DIR\" &&
    mount -o remount,bind,ro \"$RSIG_STATE_DIR\"";
/// Another writer, which holds the lock until the file `open` exists.
const LOCKED: &str = r#"python3 -c 'import os, sqlite3, sys, time
database = sqlite3.connect(os.environ["RSIG_STATE_DIR"] + "/jobs.db", isolation_level=None)
database.execute("BEGIN IMMEDIATE")
open("locked", "w")
while not os.path.exists("open"): time.sleep(0.05)' & while [ ! -e locked ]; do sleep 0.05; done"#;

#[test]
fn what_cannot_be_written_down_changes_nothing() {
    for (what, make, said) in [
        ("full", FULL, "no space left on device; free some space"),
        // A file that `run` holds open can still be written.
        ("read-only", READ_ONLY, "read-only file system"),
        ("locked", LOCKED, "another process keeps it locked"),
    ] {
        let run = usize::from(what != "read-only");
        let rsig = Rsig::new();
        // The clock is only for the two that wait for the lock as long as they can.
        let lines = format!(
            r#"a=$("$rsig" spawn local sleep 1000) && b=$("$rsig" spawn -n bee local sleep 1000) || exit
            c=$("$rsig" spawn local -- sh -c 'echo output; exit 3')
            "$rsig" run local -- sh -c 'echo begun; while [ ! -e go ]; do sleep 0.1; done; exit 5' >run.out 2>run.err &
            run=$!; while [ ! -s run.out ]; do sleep 0.05; done
            {make}
            r kill "$a"; r wait "$a"; r kill "$a"; r stop bee; r wait "$c"; r tail "$c"; cat out
            r ps; r ps --json "$a" "$c"; cat out >ps.json; r kill "local/$b"
            RSIG_TEST_CLOCK=20; r spawn local touch never; r run local touch never
            touch go; wait "$run"; echo "run $? $(wc -l <run.err)"; cat run.out run.err >>all
            r history; touch open"#
        );
        let output = script(&rsig, &lines);
        output.ok().stdout_is(&format!(
            "kill 0 1\nwait 143 1\nkill 4 2\nstop 0 1\nwait 3 1\ntail 0 1\noutput\nps 0 1\nps 0 1\nkill 4 2\n\
             spawn 1 1\nrun 125 1\nrun 5 {run}\nhistory 0 0\n"
        ));
        let told = output.stderr().matches("jobs.db can't be used").count();
        assert_eq!(told, 11 + run, "{what}: {output}");
        assert_eq!(output.stderr().matches(said).count(), told, "{output}");
        assert!(!output.stderr().contains("rror code"), "{output}");
        let shown = fs::read(rsig.home().join("ps.json")).expect("it is there");
        let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
        assert_eq!(shown[0]["exit_status"], 143, "{what}: {shown}");
        assert_eq!(shown[1]["exit_status"], 3, "{what}: {shown}");
        assert!(!rsig.home().join("never").exists(), "{what}");
    }
}

/// The result is printed before the command waits for the lock, and that wait is short if nothing is written under it.
#[test]
fn a_locked_file_delays_no_result() {
    let rsig = Rsig::new();
    let job = rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();
    let other = rsig.run(&["spawn", "local", "sleep", "1000"]).ok().line();
    let lock = rsig
        .within(tool("sh").args(["-c", &format!("{LOCKED}; wait")]))
        .start();
    poll_until("it is locked", STEP_TIMEOUT, || {
        rsig.home().join("locked").exists()
    });
    for (words, said) in [
        (&["kill", "-s", "WINCH", &job, &other][..], "WINCH sent"),
        (&["stop", &job, &other], "ended"),
        (&["wait", &job, &other], "ended"),
        (&["ps", "-a"], "exited"),
        (&["kill", &job], ""),
    ] {
        let mut running = rsig.spawn_process(words);
        // A moment at which it had not told yet.
        let mut before = Instant::now();
        poll_until("it is told", STEP_TIMEOUT, || {
            let now = Instant::now();
            let is_told = if said.is_empty() {
                running.stderr_so_far().contains("had already ended")
            } else {
                let told = String::from_utf8_lossy(&running.stdout_so_far()).into_owned();
                told.matches(said).count() >= 2
            };
            if !is_told {
                before = now;
            }
            is_told
        });
        // The wait is one second, and five if something is written under the lock.
        assert!(
            !running.has_ended() || before.elapsed() > Duration::from_millis(900),
            "{words:?}"
        );
        let output = running.wait();
        assert_eq!(output.stderr().matches("not recorded").count(), 1);
        assert!(before.elapsed() < Duration::from_millis(4900), "{output}");
    }
    write_file(&rsig.home().join("open"), "", 0o600);
    lock.wait();
    rsig.run(&["wait", &job]).code(143);
}

/// The keeper's socket would be in the state directory.
#[test]
fn a_host_is_reached_where_no_socket_can_be_made() {
    let mut f = Fixture::with(Some(Server::openssh(Login::Root).start()));
    for keeper in [false, true] {
        f.rsig.keeper = keeper;
        let job = f.spawn(&[], &["sleep", "1000"]);
        f.rsig.run(&["keeper", "stop", "--all"]).ok();
        let line = format!("{READ_ONLY} && exec \"$rsig\" kill \"$0\" --wait 20s");
        let words = ["--mount", "--propagation", "private", "/bin/sh", "-c"];
        let unshare = tool("unshare").args(words).args([&line, &job]);
        let kill = f.rsig.within(unshare);
        let output = kill.env("rsig", env!("CARGO_BIN_EXE_rsig")).run();
        output
            .ok()
            .stdout_has("ended with status 143")
            .stderr_has("not recorded");
        assert_eq!(output.stderr().lines().count(), 1, "{output}");
    }
}

/// No file exists and none can be created: no record is missing, and hosts can be asked.
#[test]
fn without_a_state_file_commands_work_and_nothing_is_started() {
    let small = "mount -t tmpfs -o size=16k,mode=700 smaller \"$RSIG_STATE_DIR\"";
    for (what, make) in [("full", FULL), ("read-only", READ_ONLY), ("small", small)] {
        let rsig = Rsig::new();
        let lines = format!(
            r#"RSIG_STATE_DIR=$HOME/other; export RSIG_STATE_DIR; mkdir -m 700 "$RSIG_STATE_DIR"
            a=$("$rsig" spawn local sleep 1000)
            RSIG_STATE_DIR=$HOME/here; mkdir -m 700 "$RSIG_STATE_DIR"
            mount -t tmpfs -o size=400k,mode=700 small "$RSIG_STATE_DIR"; {make}
            r ps; r kill "$a"; r kill "local/$a" --wait 20s; r spawn local touch never; r history
            while umount "$RSIG_STATE_DIR" 2>/dev/null; do :; done; r spawn local true"#
        );
        let output = script(&rsig, &lines);
        let ps = output
            .stdout()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        let rest = output
            .stdout()
            .lines()
            .skip(1)
            .collect::<Vec<_>>()
            .join("\n");
        if what == "small" {
            // The file is created, but nothing fits into it.
            assert!(["ps 0 0", "ps 0 1"].contains(&ps.as_str()), "{output}");
            assert!(rest.contains("kill 3 1\nkill 0 1\nspawn 1 1\n"), "{output}");
        } else {
            assert_eq!(ps, "ps 0 1", "{what}: {output}");
            let expected = "kill 3 1\nkill 0 1\nspawn 1 1\nhistory 0 0\nspawn 0 0";
            assert_eq!(rest, expected, "{what}: {output}");
        }
        assert!(output.stderr().contains("set RSIG_STATE_DIR"), "{output}");
        assert!(!rsig.home().join("never").exists(), "{what}");
    }
}

#[test]
fn a_file_without_its_log_is_read_where_nothing_can_be_made() {
    let rsig = Rsig::new();
    let lines = format!(
        r#"a=$("$rsig" spawn local sleep 1000)
        python3 -c 'import os, sqlite3
sqlite3.connect(os.environ["RSIG_STATE_DIR"] + "/jobs.db").execute("PRAGMA wal_checkpoint(TRUNCATE)")'
        rm -f "$RSIG_STATE_DIR"/jobs.db-*; {READ_ONLY}
        r ps -q; cat out >ids; r kill "$a" --wait 20s; [ "$(cat ids)" = "$a" ] && echo same"#
    );
    script(&rsig, &lines)
        .ok()
        .stdout_is("ps 0 1\nkill 0 1\nsame\n");
}

#[test]
fn too_few_files_are_told() {
    let rsig = Rsig::new();
    rsig.run(&["spawn", "local", "true"]).ok();
    let output = rsig
        .within(tool("sh").args(["-c", "ulimit -n 4; exec \"$0\" ps"]))
        .arg(env!("CARGO_BIN_EXE_rsig"))
        .run();
    output
        .code(1)
        .stderr_has("jobs.db")
        .stderr_has("the limit, which is 4 (`ulimit -n`)");
    assert_clear_message(&output);
}

/// File locks fail, as on Lustre or NFS without lock support.
#[test]
fn a_file_system_without_locks_is_told_at_once() {
    let code = "#define _GNU_SOURCE
        #include <dlfcn.h>\n#include <errno.h>\n#include <fcntl.h>\n#include <stdarg.h>
        static int lock(int fd, int cmd, void *arg, const char *name) {
            if (cmd == F_SETLK || cmd == F_SETLKW || cmd == F_GETLK) { errno = LOCKS; return -1; }
            return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, name))(fd, cmd, arg);
        }
        #define WRAP(name) int name(int fd, int cmd, ...) { va_list all; va_start(all, cmd); \
            void *arg = va_arg(all, void *); va_end(all); return lock(fd, cmd, arg, #name); }
        WRAP(fcntl)\nWRAP(fcntl64)
        int flock(int fd, int how) { errno = LOCKS; return -1; }";
    for (errno, warm) in [
        ("ENOLCK", false),
        ("ENOLCK", true),
        ("ENOSYS", false),
        ("ENOSYS", true),
    ] {
        let rsig = Rsig::new();
        if warm {
            rsig.run(&["spawn", "local", "true"]).ok();
        }
        write_file(&rsig.dir().join("locks.c"), code, 0o600);
        let library = rsig.dir().join("locks.so");
        tool("cc")
            .args(["-shared", "-fPIC", &format!("-DLOCKS={errno}"), "-o"])
            .args([&library, &rsig.dir().join("locks.c")])
            .run()
            .ok();
        for words in [&["ps"][..], &["spawn", "local", "touch", "never"]] {
            let start = std::time::Instant::now();
            let output = rsig.command(words).env("LD_PRELOAD", &library).run();
            output
                .code(1)
                .stderr_has("no file locks")
                .stderr_has("set RSIG_STATE_DIR");
            assert_clear_message(&output);
            assert!(start.elapsed().as_secs() < 20, "{output}");
        }
        assert!(!rsig.home().join("never").exists());
    }
}

/// HOME as sudo leaves it.
#[test]
fn root_makes_nothing_in_the_home_of_another_user() {
    let rsig = Rsig::new();
    let home = rsig.dir().join("alice");
    make_dir(&home, 0o755);
    chown(&home, Some(54321), Some(54321)).expect("we are root");
    for words in [&["ps"][..], &["spawn", "local", "true"]] {
        let output = rsig
            .command(words)
            .env("HOME", &home)
            .env("RSIG_STATE_DIR", "")
            .run();
        output
            .code(1)
            .stderr_has("belongs to another user (uid 54321)")
            .stderr_has("sudo -H")
            .stderr_has("RSIG_STATE_DIR");
        assert_clear_message(&output);
    }
    assert_eq!(fs::read_dir(&home).expect("readable").count(), 0);
}

/// `setfacl -d -m g:4:rwx` on the home.
#[test]
fn a_default_acl_opens_nothing() {
    let rsig = Rsig::new();
    let entry = |tag: u16, bits: u16, id: u32| {
        let head = [tag.to_le_bytes(), bits.to_le_bytes()].concat();
        [head, id.to_le_bytes().to_vec()].concat()
    };
    let none = u32::MAX;
    let entries = [
        entry(1, 7, none),
        entry(4, 7, none),
        entry(8, 7, 4),
        entry(16, 7, none),
        entry(32, 7, none),
    ];
    let acl: String = [2_u32.to_le_bytes().to_vec(), entries.concat()]
        .concat()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let set = "import os, sys; os.setxattr(sys.argv[1], 'system.posix_acl_default', bytes.fromhex(sys.argv[2]))";
    tool("python3")
        .args(["-c", set])
        .arg(rsig.home())
        .arg(acl)
        .run()
        .ok();
    let probe = rsig.home().join("probe");
    tool("mkdir").arg(&probe).run().ok();
    assert_eq!(mode(&probe), 0o777, "the ACL is in force");
    let state = rsig.home().join("a/b/rsig");
    rsig.command(&["ps"])
        .env("RSIG_STATE_DIR", &state)
        .run()
        .ok();
    rsig.command(&["ps"])
        .env("RSIG_STATE_DIR", &state)
        .run()
        .ok();
    assert_eq!(mode(&state), 0o700);
    for file in ["jobs.db", "jobs.db-wal", "jobs.db-shm", "lock"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file}");
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o777
}
