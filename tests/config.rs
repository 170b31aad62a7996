//! The configuration file and host words: effective settings, rejected files, and ranges compared with ClusterShell's
//! `nodeset`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{Output, Rsig, Site, tool};

fn write(rsig: &Rsig, text: &str) -> PathBuf {
    let path = rsig.home().join(".config/rsig/config.toml");
    fs::create_dir_all(path.parent().expect("it has one")).expect("ours");
    fs::write(&path, text).expect("ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
    path
}

/// The value of a setting, and its source.
fn setting(output: &Output, name: &str) -> Option<(String, String)> {
    let rows: Vec<Value> = serde_json::from_str(&output.ok().stdout()).expect("JSON");
    let text = |row: &Value, key: &str| row[key].as_str().expect("text").to_owned();
    let row = rows.iter().find(|row| row["setting"] == name)?;
    Some((text(row, "value"), text(row, "from")))
}

#[test]
fn words_stand_for_the_hosts_of_nodeset() {
    let rsig = Rsig::new();
    for word in [
        "web1",
        "web[1-3]",
        "web[01-03,5]",
        "web[9-11]",
        "web[098-101]",
        "web[1-3,01]",
        "a[1-2]b[01-02]c",
        "r[1-2]n[1-2],r3n1",
        "web[1-2],web2,db",
        "[1-3].ex",
        "127.1.0.[1-3]",
        "web[1,3,5-7]",
        "bob@web[1-2]",
        "web[01-40,50]",
    ] {
        let sorted = |output: Output| {
            let mut hosts: Vec<String> = output
                .ok()
                .stdout()
                .split_whitespace()
                .map(str::to_owned)
                .collect();
            hosts.sort_unstable();
            hosts
        };
        let ours = rsig.run(&["config", word]);
        let theirs = rsig.within(tool("nodeset").args(["-e", word])).run();
        assert_eq!(sorted(ours), sorted(theirs), "{word}");
        // The error names the hosts that have no keeper, folded.
        let folded = |output: &str| {
            let words = output
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned();
            sorted(rsig.within(tool("nodeset").args(["-e", &words])).run())
        };
        let ours = rsig.run(&["keeper", "stop", word]);
        let ours = ours.code(1).stderr().trim_start_matches("rsig: ");
        let theirs = rsig
            .within(tool("nodeset").args(["-f", word]))
            .run()
            .ok()
            .stdout();
        assert_eq!(folded(ours), folded(&theirs), "{word}");
        assert_eq!(
            ours.split(' ').next().unwrap_or_default().len(),
            theirs.trim().len(),
            "{word}: {ours}"
        );
    }
    for word in [
        "web[3-1]",
        "web[1-]",
        "web[]",
        "web[01-9]",
        "web[1-09]",
        "web[08-100]",
        "web[1",
        "web[,1]",
        "web[1--3]",
    ] {
        rsig.within(tool("nodeset").args(["-e", word]))
            .run()
            .code(1);
        rsig.run(&["config", word]).code(2).stdout_is("");
    }
}

#[test]
fn what_is_in_force_and_where_it_comes_from() {
    let mut rsig = Rsig::new();
    rsig.keeper = true;
    let path = write(
        &rsig,
        "[defaults]\nparallel = 3\nuser = \"bob\"\n[groups]\nweb = [\"web[1-2]\", \"@db\"]\ndb = \"db\"\n[hosts.db]\nhost = \"db1.example\"\n",
    );
    let at = |line: u32| format!("{}:{line}", path.display());
    let shown = rsig.run(&["config", "--json"]);
    let expected = |value: &str, from: &str| Some((value.to_owned(), from.to_owned()));
    let shown_path = path.display().to_string();
    for (name, told) in [
        ("configuration file", expected(&shown_path, "default")),
        (
            "state directory",
            expected(&rsig.state().display().to_string(), "RSIG_STATE_DIR"),
        ),
        ("no-keeper", expected("false", "RSIG_KEEPER")),
        ("tether", expected("30s", "default")),
        ("parallel", expected("3", &at(2))),
        ("user", expected("bob", &at(3))),
        ("@web", expected("web[1-2] @db", &at(5))),
        ("hosts.db.host", expected("db1.example", &at(8))),
        ("nothing", None),
    ] {
        assert_eq!(setting(&shown, name), told, "{name}");
    }
    rsig.run(&["config"])
        .ok()
        .stdout_has("parallel")
        .stdout_has(&at(2));
    rsig.run(&["config", "@web,web1"])
        .ok()
        .stdout_is("web1\nweb2\ndb\n");
    rsig.run(&["spawn", "--help"])
        .ok()
        .stdout_has("[default: 3]");

    // Another file, or no file.
    let other = rsig.dir().join("other.toml");
    fs::write(&other, "[defaults]\ngrace = \"1s\"\n").expect("ours");
    let shown = rsig
        .command(&["config", "--json"])
        .env("RSIG_CONFIG", &other)
        .run();
    assert_eq!(
        setting(&shown, "grace"),
        expected("1s", &format!("{}:2", other.display()))
    );
    assert_eq!(setting(&shown, "user"), None);
    let shown = rsig
        .command(&["config", "--json"])
        .env("RSIG_CONFIG", "/dev/null")
        .run();
    assert_eq!(setting(&shown, "parallel"), expected("16", "default"));
    rsig.command(&["ps"])
        .env("RSIG_CONFIG", "/no/such")
        .run()
        .code(2)
        .stderr_has("/no/such");
    let elsewhere = rsig
        .command(&["config", "@web"])
        .env("XDG_CONFIG_HOME", rsig.home().join(".config"));
    elsewhere.run().ok().stdout_has("web2");
}

#[test]
fn a_wrong_file_is_a_usage_error_with_its_line() {
    let rsig = Rsig::new();
    for (text, said) in [
        (
            "[defaults]\nparalel = 3\n",
            ":2: unknown key paralel in [defaults]",
        ),
        ("\n\n[default]\n", ":3: unknown key default"),
        ("[defaults]\nall = true\n", ":2: unknown key all"),
        ("[defaults]\nyes = true\n", ":2: unknown key yes"),
        (
            "[hosts.db]\nhots = \"x\"\n",
            ":2: unknown key hots in [hosts.db]",
        ),
        ("[defaults]\nparallel = [\n", ":"),
        (
            "[defaults]\n\nparallel = 0\n",
            ":3: invalid value '0' for '--parallel <N>'",
        ),
        ("[hosts.db]\nuser = \"-x\"\n", ":2: user: "),
    ] {
        let path = write(&rsig, text);
        let said = format!("{}{said}", path.display());
        for words in [
            &["spawn", "local", "true"][..],
            &["wait", "--all"],
            &["config"],
        ] {
            rsig.run(words).code(2).stdout_is("").stderr_has(&said);
        }
        rsig.run(&["--help"]).ok();
        rsig.run(&["run", "--help"]).ok();
    }
    for (text, word, said) in [
        (
            "[groups]\na = \"@b\"\nb = [\"x\", \"@a\"]\n",
            "@a",
            "@a, @b, @a",
        ),
        ("[groups]\na = \"@b\"\n", "@a", "no group \"b\""),
        ("[groups]\na = []\n", "@a", "empty"),
        ("[groups]\na = \"x[1\"\n", "@a", "not closed"),
        ("[groups]\na = \"web;id\"\n", "@a", "must not hold"),
    ] {
        write(&rsig, text);
        rsig.run(&["spawn", word, "true"])
            .code(2)
            .stdout_is("")
            .stderr_has(said);
    }
    let path = write(&rsig, "[groups]\na = \"x\"\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("ours");
    rsig.run(&["config"]).code(2).stderr_has("chmod go-w");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
    chown(&path, Some(12345), None).expect("the tests run as root");
    rsig.run(&["config"]).code(2).stderr_has("uid 12345");
    fs::remove_file(&path).expect("ours");
    fs::create_dir(&path).expect("ours");
    rsig.run(&["config"]).code(2).stderr_has("is a directory");
}

#[test]
fn defaults_hold_unless_the_command_line_says_otherwise() {
    let rsig = Rsig::new();
    write(
        &rsig,
        "[defaults]\ntimeout = \"200ms\"\nquiet = true\nno-tether = true\njson = true\n",
    );
    let job = rsig.run(&["spawn", "local", "sleep", "1000"]).ok().stdout();
    let job: Value = serde_json::from_str(&job).expect("--json is a default");
    let id = job["id"].as_str().expect("an id");
    rsig.run(&["wait", "--timeout", "60s", id])
        .code(143)
        .stdout_has("\"ended_by\":\"timeout\"");
    rsig.run(&["run", "local", "sleep", "1000"]).code(124);
    rsig.run(&["run", "--timeout", "60s", "local", "sleep", "0.4"])
        .ok();
    // A default is dropped if it conflicts with an option on the command line.
    rsig.run(&["run", "--tether", "5s", "--timeout", "60s", "local", "true"])
        .ok();
    rsig.run(&["ps", "-aq"]).ok().stdout_is(&format!("{id}\n"));
}

#[test]
fn names_of_ones_own_lead_to_hosts() {
    let f = Site::OpenSshUser.start();
    let [_, config] = f.connect.as_slice() else {
        panic!("-F and its file");
    };
    write(
        &f.rsig,
        &format!(
            "[groups]\nboth = [\"mine\", \"local\"]\n[hosts.mine]\nhost = \"{}\"\nconfig = \"{config}\"\nprefix = \"env OWN=1\"\n",
            f.host
        ),
    );
    let id = f
        .rsig
        .run(&["spawn", "mine", "sh", "-c", "echo $OWN; sleep 1000"])
        .ok()
        .line();
    let record = f.job(&id);
    assert_eq!(
        (&record["host"], &record["prefix"]),
        (&Value::from(&*f.host), &"env 'OWN=1'".into())
    );
    f.await_written(&id, "1\n");
    // The job's record does not depend on the file any more. The name is accepted wherever a host is.
    f.rsig
        .run(&["kill", "--host", "mine", "-s", "WINCH"])
        .ok()
        .stdout_has(&id);
    f.rsig
        .run(&["ps", "--host", "@both", "-q"])
        .ok()
        .stdout_is(&format!("{id}\n"));
    f.rsig.run(&["rm", "--forget", &id]).ok();
    f.rsig
        .run(&["ps", "--host", "mine", "--discover", "-q"])
        .ok()
        .stdout_has(&id);
    f.rsig.run(&["rm", "--forget", &id]).ok();
    write(
        &f.rsig,
        &format!(
            "[hosts.mine]\nhost = \"{}\"\nconfig = \"{config}\"\nprefix = \"env OWN=1\"\n",
            f.host
        ),
    );
    f.rsig
        .run(&["kill", &format!("mine/{id}"), "KILL", "--wait", "20s"])
        .ok()
        .stdout_has(&id);
    f.rsig.run(&["spawn", "@both", "true"]).code(2);
    // Lines are prefixed with the word as typed, not with the host that it stands for.
    write(
        &f.rsig,
        &format!(
            "[defaults]\nconfig = \"{config}\"\n[hosts.mine]\nhost = \"{}\"\n",
            f.host
        ),
    );
    let output = f.rsig.run(&["run", "mine,local", "no-such-command"]);
    output.code(127).stderr_has("rsig: mine: command not found");
    f.rsig
        .run(&["run", "mine,local", "echo", "here"])
        .ok()
        .stdout_has("mine: here\n");
}

#[test]
fn groups_and_names_are_completed() {
    let rsig = Rsig::new();
    write(
        &rsig,
        "[groups]\nweb = \"w[1-2]\"\nwork = \"w3\"\n[hosts.webdb]\nhost = \"db1.example\"\n",
    );
    let offered = |words: &[&str]| {
        let told = rsig
            .command(words)
            .env("RSIG_COMPLETE", "bash")
            .run()
            .ok()
            .stdout();
        told.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(offered(&["run", "@w"]), "@web @work");
    assert_eq!(offered(&["spawn", "local,we"]), "local,webdb");
    assert_eq!(offered(&["spawn", "local,@we"]), "local,@web");
    write(&rsig, "[wrong]\n");
    assert_eq!(offered(&["run", "@w"]), "");
}
