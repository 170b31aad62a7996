//! The programs in contrib/ and examples/, used as CI systems and other programs use them.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::clients::python;
use crate::harness::{Fixture, Invocation, Process, Scratch, Site, poll_until};
use crate::jobs::STEP_TIMEOUT;

/// The PATH of a machine with rsig installed.
fn path_with_rsig() -> OsString {
    let program = Path::new(env!("CARGO_BIN_EXE_rsig"));
    let mut path = program.parent().expect("a folder").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// The action's script for this server, in an environment like that of GitHub's runner.
fn action(f: &Fixture, command: &str) -> Invocation {
    let server = f.server.as_ref().expect("a server");
    let address = format!("[127.0.0.1]:{}", server.port());
    let known_hosts: Vec<String> = server
        .host_keys()
        .iter()
        .map(|key| format!("{address} {key}"))
        .collect();
    let key = std::fs::read_to_string(&server.client_key().private).expect("a key");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/github/run");
    f.rsig
        .within(Invocation::of(script))
        .env("PATH", path_with_rsig())
        .env("RUNNER_TEMP", f.rsig.dir())
        .env(
            "INPUT_HOST",
            format!("ssh://{}@127.0.0.1:{}", server.user(), server.port()),
        )
        .env("INPUT_KEY", key.trim_end())
        .env("INPUT_KNOWN_HOSTS", known_hosts.join("\n"))
        .env("INPUT_COMMAND", command)
}

#[test]
fn the_action_gives_output_and_status() {
    let f = Site::OpenSshUser.start();
    let output = action(&f, "echo out; echo err >&2; exit 7").run();
    output.code(7).stdout_has("\nout\n").stderr_has("err");
    poll_until("nothing is left there", STEP_TIMEOUT, || {
        f.job_ids_on_host().is_empty()
    });
    action(&f, "")
        .run()
        .code(2)
        .stderr_has("the input 'COMMAND' is missing");
    let mut strange = action(&f, "true");
    strange = strange.env("INPUT_KNOWN_HOSTS", "[127.0.0.1]:1 ssh-ed25519 AAAA");
    strange.run().code(255);
}

/// GitHub sends INT, TERM after 7.5 s and KILL after another 2.5 s to the step's process (actions/runner,
/// ProcessInvoker).
#[test]
fn a_cancelled_step_ends_its_job() {
    let f = Site::OpenSshUser.start();
    for command in [
        "echo begun; exec sleep 1000",
        "trap '' INT TERM; echo begun; while :; do sleep 1; done",
    ] {
        // With the default of 6 s, a busy machine may not be done before the KILL to the step.
        let running = action(&f, command).env("INPUT_GRACE", "2s").start();
        running.wait_for_stdout("\nbegun\n");
        let jobs: Vec<Process> = f
            .processes()
            .into_iter()
            .filter(|process| process.cmdline.contains("sleep") || process.cmdline.contains("trap"))
            .collect();
        assert!(!jobs.is_empty());
        let cancelled = Instant::now();
        let mut running = running;
        for (signal, after) in [
            (Signal::SIGINT, Duration::ZERO),
            (Signal::SIGTERM, Duration::from_millis(7500)),
            (Signal::SIGKILL, Duration::from_secs(10)),
        ] {
            while cancelled.elapsed() < after && !running.has_ended() {
                std::thread::sleep(Duration::from_millis(20));
            }
            if running.has_ended() {
                break;
            }
            running.signal(signal);
        }
        let output = running.wait();
        assert!(
            matches!(output.status().code(), Some(130 | 137)),
            "{output}"
        );
        poll_until("the job has ended", STEP_TIMEOUT, || {
            !jobs.iter().any(Process::runs)
        });
    }
}

/// Files for CI systems, each with the name of its published schema in check-jsonschema.
#[test]
fn the_files_for_ci_systems_fit_their_schemas() {
    for (schema, files) in [
        (
            "github-workflows",
            &[".github/workflows/ci.yml", ".github/workflows/release.yml"][..],
        ),
        ("github-actions", &["contrib/github/action.yml"]),
        ("dependabot", &[".github/dependabot.yml"]),
        ("gitlab-ci", &["contrib/gitlab/rsig.gitlab-ci.yml"]),
    ] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let check = || {
            let schema = format!("vendor.{schema}");
            let words = ["--no-cache", "--builtin-schema", schema.as_str()];
            python("check-jsonschema").args(words)
        };
        check()
            .args(files.iter().map(|file| root.join(file)))
            .run()
            .ok();
        // An empty schema would accept anything, so a wrong file must fail.
        let scratch = Scratch::new();
        let wrong = scratch.file(
            "wrong.yml",
            "jobs: 3\nruns: 3\nversion: 3\nscript: 3\n.x: 3\n",
            0o644,
        );
        check().arg(wrong).run().code(1);
    }
    let workflows = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows");
    assert_eq!(std::fs::read_dir(workflows).expect("ours").count(), 2);
}

#[cfg(any(feature = "mcp", feature = "serve"))]
pub mod examples {
    use std::path::Path;

    use super::path_with_rsig;
    use crate::harness::{Invocation, Rsig, tool};

    /// A program in examples/.
    pub fn example(rsig: &Rsig, name: &str, words: &[&str]) -> Invocation {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples")
            .join(name);
        let python = tool("python3").arg(file).args(words);
        rsig.within(python).env("PATH", path_with_rsig())
    }

    #[cfg(feature = "mcp")]
    #[test]
    fn the_example_of_mcp_works() {
        let rsig = Rsig::new();
        let words = ["local", "echo out; echo err >&2; exit 3"];
        let output = example(&rsig, "mcp_client.py", &words).run();
        output.code(3).stdout_is("out\n").stderr_has("err\n");
    }

    #[cfg(feature = "serve")]
    #[test]
    fn the_example_of_http_works() {
        let rsig = Rsig::new();
        let server = rsig.spawn_process(&["serve"]);
        server.wait_for_stderr("listening on");
        let socket = rsig.state().join("serve.sock");
        let words = [socket.to_str().expect("UTF-8"), "local", "exec sleep 1000"];
        let output = example(&rsig, "http_client.py", &words).run();
        output.ok().stdout_has("exit status 143\n");
        server.signal(nix::sys::signal::Signal::SIGTERM);
        server.wait();
    }
}
