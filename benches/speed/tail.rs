//! A large output, printed in full.

use std::time::Duration;

use super::harness::poll_until;
use super::measure::{Figure, Unit, in_turns, peak};
use super::session::{Job, Session, Workspace};
use super::table::{Row, Target};

const MEGABYTE: u64 = 1_000_000;

pub fn on_loopback(session: &Session) -> Vec<Row> {
    let size = session.runs(1000, 200) as u64 * MEGABYTE;
    vec![against_ssh(
        &Workspace::start(),
        size,
        session.runs(7, 3),
        "loopback",
        Target::RatioAtLeast(0.5),
    )]
}

pub fn behind_the_proxy(session: &Session) -> Vec<Row> {
    let size = session.runs(100, 30) as u64 * MEGABYTE;
    let place = Workspace::behind_proxy();
    vec![against_ssh(
        &place,
        size,
        session.runs(5, 2),
        "100 ms",
        Target::RatioAtLeast(1.0),
    )]
}

fn against_ssh(place: &Workspace, size: u64, runs: usize, network: &str, target: Target) -> Row {
    let job = writer(place, size);
    let mut tail = place.rsig(&["tail", "-n", "all", &job.id]);
    let mut cat = place.ssh(&format!("cat {}", job.dir.join("out").display()));
    let (rsig, peer) = in_turns(runs, &mut tail, &mut cat);
    Row {
        what: format!(
            "tail -n all / ssh host cat, {} MB, {network}",
            size / MEGABYTE
        ),
        rsig: Figure::rates(&rsig, size),
        peer: Some(Figure::rates(&peer, size)),
        target,
    }
}

/// rsig's peak memory must not grow with the file.
pub fn memory(session: &Session) -> Vec<Row> {
    let place = Workspace::start();
    let of = |size: u64| {
        let job = writer(&place, size);
        let (peak, written) = peak(&mut place.rsig(&["tail", "-n", "all", &job.id]));
        assert_eq!(written, size, "tail -n all passes on every byte");
        Figure::of(Unit::Megabytes, vec![peak])
    };
    let megabytes = session.runs(1000, 300) as u64;
    let (small, large) = (of(100 * MEGABYTE), of(megabytes * MEGABYTE));
    vec![Row {
        what: format!("peak memory of tail: {megabytes} MB / 100 MB"),
        rsig: large,
        peer: Some(small),
        // How much of the receive window a peak includes is chance; a file held in memory would be far above this.
        target: Target::AtMost(24.0),
    }]
}

/// A finished job that has written `size` bytes of text.
fn writer(place: &Workspace, size: u64) -> Job {
    let line =
        "2024-05-17T09:41:07Z INFO  worker-3: epoch 17 of 90, loss 0.2371, 1482 samples a second";
    let job = place.job(&["sh", "-c", &format!("yes '{line}' | head -c {size}")]);
    poll_until(
        "the job has written its output",
        Duration::from_secs(120),
        || job.dir.join("status").exists(),
    );
    job
}
