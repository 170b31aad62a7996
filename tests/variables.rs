//! `SendEnv` and `SetEnv`: the variables that a server accepts reach the jobs, as with ssh.

use std::fs;
use std::time::Duration;

use crate::harness::{Fixture, Invocation, Login, Proxy, STEP_TIMEOUT, Server, poll_until};
use crate::keepers::{keepers, with_keeper};

/// A value that no shell may split or expand.
const AWKWARD: &str = " a  'b' \"c\" $HOME `id` \\ * é ";

/// A server that accepts some of the tests' variables, but not all.
fn accepting() -> Fixture {
    with_keeper(
        Server::openssh(Login::User)
            .config("AcceptEnv RSET RS_* RSEND_? XNOT")
            .start(),
    )
}

fn script(names: &str) -> String {
    format!(r#"for v in {names}; do eval "printf '%s=[%s]\n' $v \"\${{$v-unset}}\""; done"#)
}

/// A command that prints variables, run with these ssh options.
fn printing(f: &Fixture, verb: &str, options: &[&str], names: &str) -> Invocation {
    let script = script(names);
    let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
    f.rsig
        .command(&f.words(verb, &options, &["--", "sh", "-c", &script]))
}

#[test]
fn variables_reach_jobs_as_with_ssh() {
    let f = accepting();
    let options = [
        "SendEnv=RS_* RSEND_? XNOT",
        "SendEnv=-XN*",
        "SendEnv=REFUSED",
        "SetEnv=RSET=\"x  y\" RS_BOTH=set",
        "SetEnv=ALSO_REFUSED=1",
    ];
    let names = "RS_A RS_EMPTY XNOT RS_BOTH RSEND_1 RSEND_12 OTHER REFUSED ALSO_REFUSED RSET";
    let with_values = |command: Invocation| {
        command
            .env("RS_A", AWKWARD)
            .env("RS_EMPTY", "")
            .env("XNOT", "n")
            .env("RS_BOTH", "sent")
            .env("RSEND_1", "one")
            .env("RSEND_12", "two")
            .env("OTHER", "o")
            .env("REFUSED", "r")
    };
    let expected = format!(
        "RS_A=[{AWKWARD}]\nRS_EMPTY=[]\nXNOT=[unset]\nRS_BOTH=[set]\nRSEND_1=[one]\nRSEND_12=[unset]\n\
         OTHER=[unset]\nREFUSED=[unset]\nALSO_REFUSED=[unset]\nRSET=[x  y]\n"
    );
    let output = with_values(printing(&f, "run", &options, names)).run();
    assert_eq!(output.ok().stdout_is(&expected).stderr(), "");
    let server = f.server.as_ref().expect("a server");
    let ssh = options
        .iter()
        .fold(server.ssh(), |ssh, option| ssh.arg("-o").arg(option));
    with_values(ssh.arg(script(names)))
        .run()
        .ok()
        .stdout_is(&expected);
    let job = with_values(printing(&f, "spawn", &options, names));
    let job = job.run().ok().line();
    f.rsig.run(&["wait", &job]).ok();
    f.rsig
        .run(&["tail", "-n", "all", &job])
        .ok()
        .stdout_is(&expected);
    // Over a connection of its own, too.
    let mut alone = printing(&f, "run", &options, names);
    alone = alone.env("RSIG_KEEPER", "0");
    with_values(alone).run().ok().stdout_is(&expected);
    // No value is written to disk.
    for file in fs::read_dir(f.rsig.state().join("keepers")).expect("keepers were here") {
        let file = file.expect("a name").path();
        let text = fs::read(&file).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&text).contains("$HOME"),
            "{file:?}"
        );
    }
}

#[test]
fn each_environment_has_a_keeper_of_its_own() {
    let f = accepting();
    let run = |value: Option<&str>| {
        let command = printing(&f, "run", &["SendEnv=RS_*"], "RS_A");
        let command = value
            .into_iter()
            .fold(command, |command, value| command.env("RS_A", value));
        command
            .run()
            .ok()
            .stdout_is(&format!("RS_A=[{}]\n", value.unwrap_or("unset")));
    };
    for _ in 0..2 {
        run(Some("one"));
        run(Some("two"));
        run(None);
    }
    poll_until("there are three keepers", STEP_TIMEOUT, || {
        keepers(&f).len() == 3
    });
    // A variable that is not sent makes no difference, and a command that starts nothing uses any of the keepers.
    let command = printing(&f, "spawn", &["SendEnv=RS_*"], "RS_A");
    let job = command.env("OTHER", "1").run().ok().line();
    let wait = f.rsig.command(&["wait", &job]).env("RS_A", "three");
    wait.run().ok();
    poll_until("there are three keepers", STEP_TIMEOUT, || {
        keepers(&f).len() == 3
    });
}

#[test]
fn commands_of_several_environments_may_begin_together() {
    let f = accepting();
    let values = ["1", "2", "3", "4"];
    let begun = values.map(|value| {
        let command = printing(&f, "run", &["SendEnv=RS_*"], "RS_A");
        command.env("RS_A", value).start()
    });
    for (value, command) in values.into_iter().zip(begun) {
        let output = command.wait();
        output.ok().stdout_is(&format!("RS_A=[{value}]\n"));
    }
    poll_until("each has its keeper", STEP_TIMEOUT, || {
        keepers(&f).len() == values.len()
    });
}

#[test]
fn many_shells_at_once_have_the_variables() {
    let mut f = accepting();
    // A delay, so that many requests wait for their replies.
    let server = f.server.as_ref().expect("a server");
    let proxy = Proxy::start(server.port(), Duration::from_millis(20));
    f.go_through(&proxy);
    let options = ["SetEnv=RSET=a RS_1=b RS_2=c", "SetEnv=NO_1=x NO_2=y"];
    for _ in 0..3 {
        let begun: Vec<_> = (0..6)
            .map(|_| printing(&f, "run", &options, "RSET RS_2 NO_2").start())
            .collect();
        for command in begun {
            command
                .wait()
                .ok()
                .stdout_is("RSET=[a]\nRS_2=[c]\nNO_2=[unset]\n");
        }
    }
    poll_until("there is one keeper", STEP_TIMEOUT, || {
        keepers(&f).len() == 1
    });
}

#[test]
fn a_server_that_knows_no_variables_works() {
    let f = with_keeper(Server::dropbear(Login::User).start());
    let options = ["SetEnv=RSET=a RS_1=b"];
    printing(&f, "run", &options, "RSET")
        .run()
        .ok()
        .stdout_is("RSET=[unset]\n");
}
