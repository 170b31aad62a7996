//! A signal without a keeper: connect, send, disconnect.

use super::measure::{Figure, in_turns, time};
use super::ps::fill;
use super::session::{Session, Workspace};
use super::table::{Row, Target};

pub fn on_loopback(session: &Session) -> Vec<Row> {
    against_ssh(&Workspace::start(), session.runs(60, 10), "loopback", 0.4)
}

pub fn behind_the_proxy(session: &Session) -> Vec<Row> {
    let place = Workspace::behind_proxy();
    let mut rows = against_ssh(&place, session.runs(8, 3), "100 ms", 1.0);
    // Two changes of direction are a round trip. The two version lines cross, so they count as well.
    let turns = |command: &mut std::process::Command| {
        let proxy = place.proxy.as_ref().expect("the place has a proxy");
        let before = proxy.direction_changes();
        time(command);
        Figure::number(proxy.direction_changes() - before)
    };
    let job = place.sleeper();
    rows.push(Row {
        what: "turns of the line in kill USR1 / ssh kill".to_owned(),
        rsig: turns(&mut place.rsig(&["kill", &job.id, "USR1"])),
        peer: Some(turns(&mut place.ssh(&format!("kill -USR1 {}", job.pid())))),
        target: Target::None,
    });
    rows
}

fn against_ssh(place: &Workspace, runs: usize, network: &str, at_most: f64) -> Vec<Row> {
    let job = place.sleeper();
    let row = |signal: &str| {
        let mut kill = place.rsig(&["kill", &job.id, signal]);
        let mut peer = place.ssh(&format!("kill -{signal} {}", job.pid()));
        let (rsig, peer) = in_turns(runs, &mut kill, &mut peer);
        Row {
            what: format!("kill {signal} / ssh host kill, {network}"),
            rsig: Figure::times(&rsig),
            peer: Some(Figure::times(&peer)),
            target: Target::RatioAtMost(at_most),
        }
    };
    ["0", "USR1"].map(row).into()
}

/// `kill` with a large state file, compared with a small one.
pub fn among_records(session: &Session) -> Vec<Row> {
    let (few, many) = (Workspace::start(), Workspace::start());
    let jobs = [&few, &many].map(Workspace::sleeper);
    fill(&few, &jobs[0], 9, 0);
    fill(&many, &jobs[1], 99_999, 0);
    let mut kill = many.rsig(&["kill", &jobs[1].id, "USR1"]);
    let mut peer = few.rsig(&["kill", &jobs[0].id, "USR1"]);
    let (rsig, peer) = in_turns(session.runs(60, 10), &mut kill, &mut peer);
    vec![Row {
        what: "kill USR1: 100,000 records / 10 records".to_owned(),
        rsig: Figure::times(&rsig),
        peer: Some(Figure::times(&peer)),
        target: Target::RatioAtMost(1.05),
    }]
}
