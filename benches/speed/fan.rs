//! Many jobs on many hosts, by one command.

use std::time::Duration;

use super::harness::{Fixture, Login, Server};
use super::measure::{Figure, time};
use super::session::{Place, Session};
use super::table::{Row, Target};

const HOSTS: usize = 20;
const JOBS: usize = 200;

/// 200 jobs signalled and waited for, on 20 hosts and on one.
pub fn out(session: &Session) -> Vec<Row> {
    let place = start();
    let all: Vec<String> = (1..=HOSTS).map(|number| format!("s{number}")).collect();
    let spread = all.join(",");
    let (mut on_many, mut on_one) = (Vec::new(), Vec::new());
    // One round goes before and is not counted: it starts the keepers.
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

/// One sshd on all addresses of this machine, with a name for each of 20.
fn start() -> Place {
    let server = Server::openssh(Login::Root)
        .everywhere()
        .config("MaxStartups 200\n")
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
    let hosts: String = (1..=HOSTS)
        .map(|number| {
            format!(
                "Host s{number}\nHostName 127.0.0.{number}\nHostKeyAlias [127.0.0.1]:{port}\n{body}"
            )
        })
        .collect();
    std::fs::write(&config, hosts).expect("the directory is ours");
    Place {
        fixture,
        proxy: None,
    }
}

/// Starts so many jobs on each of the hosts, and times the command that ends them all.
fn timed(place: &Place, hosts: &str, each: usize) -> Duration {
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
