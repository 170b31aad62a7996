//! Completion at the TAB key in real shells, with the committed scripts.

use std::path::Path;

use crate::harness::{Invocation, Rsig, Tty, tool};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");

/// A state file with one running job, `train`, and one finished one, `built`.
struct Jobs {
    rsig: Rsig,
    train: String,
    built: String,
}

impl Jobs {
    fn start() -> Self {
        let rsig = Rsig::new();
        let train = rsig
            .run(&["spawn", "-n", "train", "local", "--", "sleep", "1000"])
            .ok()
            .line();
        let built = rsig
            .run(&["spawn", "-n", "built", "local", "--", "true"])
            .ok()
            .line();
        rsig.run(&["wait", "built"]).ok();
        Self { rsig, train, built }
    }

    /// rsig's output for the completion script of that shell.
    fn answer(&self, shell: &str, words: &[&str]) -> String {
        self.rsig
            .command(words)
            .env("RSIG_COMPLETE", shell)
            .run()
            .ok()
            .stderr_is_empty()
            .stdout()
    }

    /// The first word of each line.
    fn offered(&self, words: &[&str]) -> Vec<String> {
        let answer = self.answer("bash", words);
        let values = answer.lines().map(|line| line.split('\t').next());
        values.flatten().map(str::to_owned).collect()
    }

    /// A shell with the tested rsig in its PATH.
    fn shell(&self, program: &str) -> Invocation {
        let bin = Path::new(env!("CARGO_BIN_EXE_rsig"))
            .parent()
            .expect("a file has a directory");
        let shell = self.rsig.within(tool(program));
        shell
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .cwd(env!("CARGO_MANIFEST_DIR"))
    }
}

#[test]
fn jobs_are_offered_where_they_make_sense() {
    let jobs = Jobs::start();
    let (train, built) = (jobs.train.as_str(), jobs.built.as_str());
    for verb in ["kill", "stop", "wait"] {
        assert_eq!(jobs.offered(&[verb, ""]), ["train", train], "{verb}");
    }
    for words in [&["rm", ""][..], &["rm", "-q", ""]] {
        assert_eq!(jobs.offered(words), ["built", built], "{words:?}");
    }
    for words in [
        &["tail", ""][..],
        &["ps", ""],
        &["rm", "--force", ""],
        &["rm", "--forget", ""],
    ] {
        let mut offered = jobs.offered(words);
        offered.sort();
        let mut expected = ["train", train, "built", built];
        expected.sort_unstable();
        assert_eq!(offered, expected, "{words:?}");
    }
    // A job that is already on the line is not offered again.
    assert_eq!(jobs.offered(&["wait", "train", ""]), [train]);
    assert_eq!(jobs.offered(&["kill", "-s", "USR1", "trai"]), ["train"]);
    assert_eq!(jobs.offered(&["kill", "-USR1", "trai"]), ["train"]);
    assert_eq!(jobs.offered(&["kill", &train[..5]]), [train]);
    assert_eq!(jobs.offered(&["kill", "train", "USR"]), ["USR1", "USR2"]);
    assert_eq!(jobs.offered(&["spawn", ""]), ["local"]);
    assert_eq!(jobs.offered(&["ps", "--host", ""]), ["local"]);
    let described = format!("train\t{train} local running: sleep 1000\n");
    assert_eq!(jobs.answer("fish", &["kill", "trai"]), described);
}

#[test]
fn what_is_not_there_is_not_made_and_what_is_broken_says_nothing() {
    let rsig = Rsig::new();
    let offer = |words: &[&str], state: &Path| {
        let command = rsig
            .command(words)
            .env("RSIG_COMPLETE", "fish")
            .env("RSIG_STATE_DIR", state);
        command.run().ok().stderr_is_empty().stdout()
    };
    let missing = rsig.dir().join("missing");
    assert_eq!(offer(&["kill", ""], &missing), "");
    assert!(!missing.exists());
    assert_eq!(offer(&["kill", ""], rsig.state()), "");
    assert_eq!(
        std::fs::read_dir(rsig.state())
            .expect("a directory")
            .count(),
        0
    );
    std::fs::write(
        rsig.state().join("jobs.db"),
        "not a state file, though longer than a hundred bytes".repeat(4),
    )
    .expect("a file");
    assert_eq!(offer(&["kill", ""], rsig.state()), "");
    assert!(offer(&["kill", "--via", ""], rsig.state()).contains("pid"));
    rsig.command(&["ps"])
        .env("RSIG_COMPLETE", "tcsh")
        .run()
        .code(2)
        .stderr_has("bash, zsh, fish, elvish, nushell or powershell");
}

#[test]
fn hosts_of_the_users_configuration_are_offered() {
    let rsig = Rsig::new();
    std::fs::create_dir(rsig.home().join(".ssh")).expect("a directory");
    std::fs::write(rsig.home().join(".ssh/config"), "Host web1 db*\n").expect("a file");
    let offer = |words: &[&str]| {
        rsig.command(words)
            .env("RSIG_COMPLETE", "bash")
            .run()
            .ok()
            .stdout()
    };
    assert_eq!(offer(&["spawn", ""]), "local\t\nweb1\t\n");
    assert_eq!(offer(&["spawn", "bob@w"]), "bob@web1\t\n");
    assert_eq!(offer(&["spawn", "-J", "a,w"]), "a,web1\t\n");
}

/// Typed lines, and the rsig command line that each becomes. The shell's own completion takes part. No id begins with
/// `trai` or `bui`, since `i` is in none.
const TYPED: [(&str, &str); 10] = [
    ("rsig ki\t", "kill"),
    ("rsig kill trai\t", "kill train"),
    ("rsig kill train TER\t", "kill train TERM"),
    ("rsig kill --signal=TER\t", "kill --signal=TERM"),
    ("rsig kill -TER\ttrai\t", "kill -TERM train"),
    ("rsig rm bui\t", "rm built"),
    ("rsig ps --state running,l\t", "ps --state running,lost"),
    ("rsig spawn bob@gre\t", "spawn bob@greenhouse"),
    ("rsig tail --li\t", "tail --lines"),
    ("rsig spawn -i compl\t_\t", "spawn -i completions/_rsig"),
];

fn type_all(jobs: &Jobs, shell: Tty, load: &str) {
    // The screen draws the line in pieces, so the line is not read from it but run, by this function instead of rsig.
    let prepare = format!("{load}; rsig() {{ printf '<%s>' \"$*\"; }}; echo ready$((20+3))");
    type_prepared(jobs, shell, &prepare, &TYPED);
}

/// The same for a shell with its own syntax. `prepare` makes it show `ready23` once it is ready.
fn type_prepared(jobs: &Jobs, mut shell: Tty, prepare: &str, typed: &[(&str, &str)]) {
    std::fs::create_dir(jobs.rsig.home().join(".ssh")).expect("a directory");
    std::fs::write(jobs.rsig.home().join(".ssh/config"), "Host greenhouse\n").expect("a file");
    shell.send(&format!("{prepare}\r"));
    shell.wait_for("ready23");
    for (index, (typed, words)) in typed.iter().enumerate() {
        // The word typed right after it shows that completion ended the previous word.
        shell.send(&format!("{typed}mark{index}\r"));
        shell.wait_for(&format!("<{words} mark{index}>"));
    }
}

#[test]
fn bash_completes() {
    let jobs = Jobs::start();
    let shell = jobs
        .shell("bash")
        .args(["--norc", "--noprofile", "-i"])
        .env("PS1", "$ ")
        .tty(100, 40);
    type_all(&jobs, shell, &format!("source {SCRIPTS}/rsig.bash"));
}

#[test]
fn zsh_completes() {
    let jobs = Jobs::start();
    let shell = jobs
        .shell("zsh")
        .args(["-f", "-i"])
        .env("PS1", "$ ")
        .tty(100, 40);
    type_all(
        &jobs,
        shell,
        &format!("fpath=({SCRIPTS} $fpath); autoload -Uz compinit; compinit -D -u"),
    );
}

#[test]
fn zsh_completes_with_the_script_that_rsig_prints() {
    let jobs = Jobs::start();
    let shell = jobs
        .shell("zsh")
        .args(["-f", "-i"])
        .env("PS1", "$ ")
        .tty(100, 40);
    type_all(
        &jobs,
        shell,
        "autoload -Uz compinit; compinit -D -u; source <(RSIG_COMPLETE=zsh rsig)",
    );
}

#[test]
fn fish_completes() {
    let jobs = Jobs::start();
    let complete = |line: &str| {
        let script = format!("source {SCRIPTS}/rsig.fish; complete --do-complete '{line}'");
        jobs.shell("fish")
            .args(["--no-config", "-c", &script])
            .run()
            .ok()
            .stdout()
    };
    let train = format!("train\t{} local running: sleep 1000\n", jobs.train);
    assert_eq!(complete("rsig kill trai"), train);
    assert_eq!(complete("rsig kill -s TERM trai"), train);
    assert!(complete("rsig ki").starts_with("kill\tSend a signal to jobs"));
    assert!(complete("rsig kill train TER").starts_with("TERM\t15 terminate: "));
    assert!(complete("rsig kill --signal=TER").starts_with("--signal=TERM\t"));
    assert!(complete("rsig rm bui").starts_with("built\t"));
    assert_eq!(complete("rsig spawn web1 tr"), "");
}

#[test]
fn elvish_completes() {
    let jobs = Jobs::start();
    // Else it leaves a directory in /tmp.
    let shell = jobs.shell("elvish").env("XDG_RUNTIME_DIR", jobs.rsig.dir());
    let shell = shell.arg("-norc").tty(100, 40);
    let prepare = "eval (env RSIG_COMPLETE=elvish rsig | slurp); use str; \
         fn rsig {|@words| print '<'(str:join ' ' $words)'>' }; print ready(+ 20 3)";
    // If the word must be quoted, elvish only displays it, and inserts it at the Enter key.
    let typed = TYPED.map(|(typed, words)| match typed {
        "rsig kill --signal=TER\t" => ("rsig kill --signal=TER\t\r", words),
        "rsig ps --state running,l\t" => ("rsig ps --state running,l\t\r", words),
        _ => (typed, words),
    });
    type_prepared(&jobs, shell, prepare, &typed);
}

/// Runs on request, with the path of nushell in `RSIG_TEST_NU`: Debian does not package it.
#[test]
#[ignore = "needs nushell, named by RSIG_TEST_NU"]
fn nushell_completes() {
    let nu = std::env::var_os("RSIG_TEST_NU").expect("RSIG_TEST_NU names nushell");
    let jobs = Jobs::start();
    let complete = |line: &str| {
        let script = format!(
            "source {SCRIPTS}/rsig.nu\n\
             do $env.config.completions.external.completer ('{line}' | split row ' ') | to json --raw"
        );
        let shell = jobs.rsig.within(Invocation::of(&nu));
        let bin = Path::new(env!("CARGO_BIN_EXE_rsig"))
            .parent()
            .expect("a directory");
        let path = format!("{}:/usr/bin:/bin", bin.display());
        let output = shell
            .env("PATH", path)
            .args(["--no-config-file", "-c", &script])
            .run();
        output.ok().stdout()
    };
    let train = format!(
        "{{\"value\":\"train\",\"description\":\"{} local running: sleep 1000\"}}",
        jobs.train
    );
    assert_eq!(complete("rsig kill trai"), format!("[{train}]\n"));
    assert!(complete("rsig ki").contains("\"value\":\"kill\",\"description\":\"Send a signal"));
    assert_eq!(complete("rsig spawn web1 tr"), "[]\n");
    assert_eq!(complete("git st"), "null\n");
}
