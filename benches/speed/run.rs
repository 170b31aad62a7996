//! A command in the foreground: its overhead over the bare command, and its throughput.

use std::process::Stdio;

use super::measure::{Figure, alone, in_turns, time};
use super::session::{Session, Workspace};
use super::table::{Row, Target};

const MEGABYTE: u64 = 1_000_000;
/// Round trip time of the proxy, in milliseconds.
const ROUND_TRIP_MS: f64 = 100.0;

/// Time of a command that ends at once.
pub fn round_trips(session: &Session) -> Vec<Row> {
    let place = Workspace::behind_proxy();
    let row = |options: &[&str]| {
        let mut run = place.rsig(&place.fixture.words("run", options, &["true"]));
        let (rsig, peer) = in_turns(session.runs(12, 4), &mut run, &mut place.ssh("true"));
        let (rsig, peer) = (Figure::times(&rsig), Figure::times(&peer));
        let target = Target::AtMost((peer.median + ROUND_TRIP_MS).round());
        let what = format!("run {} true / ssh host true, 100 ms", options.join(" "));
        Row {
            what,
            rsig,
            peer: Some(peer),
            target: if options.is_empty() {
                target
            } else {
                Target::None
            },
        }
    };
    vec![row(&[]), row(&["--keep"])]
}

pub fn on_loopback(session: &Session) -> Vec<Row> {
    let size = session.runs(1000, 200) as u64 * MEGABYTE;
    vec![throughput(
        &Workspace::start(),
        size,
        session.runs(5, 2),
        "loopback",
        Target::RatioAtLeast(0.7),
    )]
}

pub fn behind_the_proxy(session: &Session) -> Vec<Row> {
    let size = session.runs(100, 30) as u64 * MEGABYTE;
    vec![throughput(
        &Workspace::behind_proxy(),
        size,
        session.runs(5, 2),
        "100 ms",
        Target::RatioAtLeast(1.5),
    )]
}

/// Commands about another job of the same host, while a run saturates the connection.
pub fn beside(session: &Session) -> Vec<Row> {
    let mut place = Workspace::behind_proxy();
    place.fixture.rsig.keeper = true;
    let job = place.sleeper();
    let mut bulk = place.rsig(&words(&place, "cat /dev/zero"));
    let mut bulk = bulk
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("rsig starts");
    let row = |what: &str, limit, words: &[&str]| Row {
        what: format!("{what} beside a run that carries much, 100 ms"),
        rsig: Figure::times(&alone(session.runs(12, 4), &mut place.rsig(words))),
        peer: None,
        target: Target::AtMost(limit),
    };
    let rows = vec![
        row("kill", 150.0, &["kill", &job.id, "USR1"]),
        row("ps", 170.0, &["ps", &job.id]),
    ];
    // Its job is ended by the tether, or when the place is dropped.
    bulk.kill().expect("it runs");
    bulk.wait().expect("it is our child");
    time(&mut place.rsig(&["keeper", "stop", "--all"]));
    rows
}

fn throughput(place: &Workspace, size: u64, runs: usize, network: &str, target: Target) -> Row {
    let file = place.fixture.rsig.dir().join("much");
    let line =
        "2024-05-17T09:41:07Z INFO  worker-3: epoch 17 of 90, loss 0.2371, 1482 samples a second\n";
    let repeated =
        line.repeat(usize::try_from(size).expect("a size of this machine") / line.len() + 1);
    std::fs::write(
        &file,
        &repeated.as_bytes()[..usize::try_from(size).expect("a size of this machine")],
    )
    .expect("the directory is ours");
    let line = format!("cat {}", file.display());
    let mut run = place.rsig(&words(place, &line));
    let (rsig, peer) = in_turns(runs, &mut run, &mut place.ssh(&line));
    std::fs::remove_file(file).expect("it is ours");
    Row {
        what: format!("run cat / ssh host cat, {} MB, {network}", size / MEGABYTE),
        rsig: Figure::rates(&rsig, size),
        peer: Some(Figure::rates(&peer, size)),
        target,
    }
}

fn words<'a>(place: &'a Workspace, line: &'a str) -> Vec<&'a str> {
    place.fixture.words("run", &["-c"], &[line])
}
