//! Many jobs on many hosts, with one command.

use std::process::Command;
use std::time::Duration;

use super::harness::{Fixture, Login, Server, program_path};
use super::measure::{Figure, Unit, alone, time};
use super::session::{Session, Workspace};
use super::table::{Row, Target};

const HOSTS: usize = 20;
const JOBS: usize = 200;

/// 200 jobs signalled and waited for: on 20 hosts, and on one.
pub fn out(session: &Session) -> Vec<Row> {
    let place = start(HOSTS);
    let all: Vec<String> = (1..=HOSTS).map(|number| format!("s{number}")).collect();
    let spread = all.join(",");
    let (mut on_many, mut on_one) = (Vec::new(), Vec::new());
    // The first round is not counted: it starts the keepers.
    for round in 0..=session.runs(5, 2) {
        let many = timed(&place, &spread, JOBS / HOSTS);
        let one = timed(&place, "s1", JOBS);
        if round > 0 {
            on_many.push(many);
            on_one.push(one);
        }
    }
    time(&mut place.rsig(&["keeper", "stop", "--all"]));
    vec![Row {
        what: format!("{JOBS} jobs killed and waited for: {HOSTS} hosts / one host"),
        rsig: Figure::times(&on_many),
        peer: Some(Figure::times(&on_one)),
        target: Target::RatioAtMost(3.0),
    }]
}

/// One command on 100 and on 250 hosts. The first command, which connects to every host, is compared with
/// ClusterShell's; later ones are measured alone.
pub fn many_hosts(session: &Session) -> Vec<Row> {
    let counts: &[usize] = if session.quick { &[100] } else { &[100, 250] };
    counts
        .iter()
        .flat_map(|count| on_hosts(session, *count))
        .collect()
}

fn on_hosts(session: &Session, count: usize) -> Vec<Row> {
    let place = start(count);
    let config = place.fixture.connect.last().expect("it is named by -F");
    let hosts = format!("s[1-{count}]");
    let with_hosts = |verb, command: &[&'static str]| {
        let mut words = vec![verb, "-F", config, &hosts, "--"];
        words.extend(command);
        place.rsig(&words)
    };
    let mut clush = Command::new(program_path("clush"));
    clush
        .args(["-f", "64", "-S", "-o", &format!("-F {config}"), "-w"])
        .args([&hosts, "true"]);
    let mut spawn = with_hosts("spawn", &["env", "--ignore-signal=USR1", "sleep", "3600"]);
    let mut stop = place.rsig(&["keeper", "stop", "--all"]);
    let (mut cold, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..session.runs(5, 2) {
        cold.push(time(&mut spawn));
        time(&mut place.rsig(&["stop", "--all", "--yes"]));
        time(&mut place.rsig(&["rm", "--finished"]));
        time(&mut stop);
        peer.push(time(&mut clush));
    }
    time(&mut spawn);
    let mut rows = vec![Row {
        what: format!("spawn on {count} hosts, cold / clush -f 64 true"),
        rsig: Figure::times(&cold),
        peer: Some(Figure::times(&peer)),
        target: Target::RatioAtMost(0.5),
    }];
    let goal = if count == 100 {
        Target::AtMost(150.0)
    } else {
        Target::None
    };
    for (what, mut command) in [
        (
            "kill --all",
            place.rsig(&["kill", "--all", "--yes", "-s", "USR1"]),
        ),
        ("ps", place.rsig(&["ps"])),
        ("run true", with_hosts("run", &["true"])),
    ] {
        rows.push(Row {
            what: format!("{what} on {count} hosts, warm"),
            rsig: Figure::times(&alone(session.runs(8, 3), &mut command)),
            peer: None,
            target: goal,
        });
    }
    rows.push(Row {
        what: format!("memory of a keeper (PSS), mean of {count}"),
        rsig: Figure::of(Unit::Megabytes, vec![memory(&place)]),
        peer: None,
        target: Target::AtMost(3.0),
    });
    time(&mut place.rsig(&["stop", "--all", "--yes"]));
    time(&mut place.rsig(&["rm", "--finished"]));
    time(&mut stop);
    rows
}

/// Mean proportional set size of the keepers, in megabytes (proc(5)).
fn memory(place: &Workspace) -> f64 {
    let mut keepers = place.fixture.rsig.processes();
    keepers.retain(|process| process.cmdline.contains("keeper-serve"));
    let size = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix(" kB")?.parse::<f64>().ok()
    };
    let sizes: Vec<f64> = keepers
        .iter()
        .filter_map(|keeper| size(keeper.pid))
        .collect();
    sizes.iter().sum::<f64>() / f64::from(u32::try_from(sizes.len()).unwrap_or(1).max(1)) / 1e3
}

/// One sshd on all addresses of this machine, with `count` host names that lead to it.
fn start(count: usize) -> Workspace {
    let server = Server::openssh(Login::Root)
        .everywhere()
        .config("MaxStartups 1000\n")
        .start();
    let port = server.port();
    let mut fixture = Fixture::with(Some(server));
    fixture.rsig.keeper = true;
    let config = fixture.connect.last().expect("it is named by -F").clone();
    let text = std::fs::read_to_string(&config).expect("the harness has written it");
    let body: String = text
        .lines()
        .filter(|line| {
            !["Host", "HostName"].contains(&line.split_whitespace().next().unwrap_or_default())
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let hosts: String = (1..=count)
        .map(|number| {
            format!(
                "Host s{number}\nHostName 127.1.0.{number}\nHostKeyAlias [127.0.0.1]:{port}\n{body}"
            )
        })
        .collect();
    std::fs::write(&config, hosts).expect("the directory is ours");
    Workspace {
        fixture,
        proxy: None,
    }
}

/// Starts `each` jobs on each of the hosts, and times the command that ends them all.
fn timed(place: &Workspace, hosts: &str, each: usize) -> Duration {
    let config = place.fixture.connect.last().expect("it is named by -F");
    let mut ids = Vec::new();
    for _ in 0..each {
        let spawn = place
            .rsig(&["spawn", "-F", config, hosts, "--", "sleep", "3600"])
            .output()
            .expect("rsig starts");
        assert!(
            spawn.status.success(),
            "{}",
            String::from_utf8_lossy(&spawn.stderr)
        );
        ids.extend(
            String::from_utf8_lossy(&spawn.stdout)
                .lines()
                .map(str::to_owned),
        );
    }
    assert_eq!(ids.len(), JOBS);
    let mut words = vec!["kill", "-s", "TERM", "--wait", "20s"];
    words.extend(ids.iter().map(String::as_str));
    let taken = time(&mut place.rsig(&words));
    time(&mut place.rsig(&["rm", "--finished"]));
    taken
}
