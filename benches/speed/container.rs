//! Commands through a keeper whose shells run behind `podman exec`, compared with `podman exec` itself.

use std::process::Command;
use std::time::Duration;

use super::harness::container::Container;
use super::harness::{Rsig, program_path};
use super::measure::{Figure, in_turns};
use super::session::{Session, installed};
use super::table::{Row, Target};

pub fn behind_a_prefix(session: &Session) -> Vec<Row> {
    let mut rsig = Rsig::new();
    rsig.keeper = true;
    let container = Container::start();
    let command = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", rsig.home())
            .env("RSIG_STATE_DIR", rsig.state())
            .envs(container.environment());
        command
    };
    let podman = program_path("podman");
    let podman = podman.to_str().expect("a path of the system's");
    let ours = installed().to_str().expect("our paths are UTF-8");
    let place = ["--prefix", "podman exec -i box", "local", "--"];
    let spawn = [&["spawn"][..], &place, &["sleep", "3600"]].concat();
    let job = command(ours, &spawn).output().expect("rsig starts").stdout;
    let job = String::from_utf8_lossy(&job).trim_end().to_owned();
    let run = [&["run"][..], &place, &["true"]].concat();
    let rows: [(&str, &[&str], &[&str], f64); 2] = [
        (
            "kill",
            &["kill", &job, "CONT"],
            &["exec", "box", "kill", "-CONT", "1"],
            0.1,
        ),
        ("run true", &run, &["exec", "box", "true"], 0.2),
    ];
    let measure = |(what, words, peer, goal): (&str, &[&str], &[&str], f64)| {
        let (mut rsig, mut peer) = (command(ours, words), command(podman, peer));
        let (rsig, peer): (Vec<Duration>, Vec<Duration>) =
            in_turns(session.runs(20, 5), &mut rsig, &mut peer);
        Row {
            what: format!("{what} / podman exec"),
            rsig: Figure::times(&rsig),
            peer: Some(Figure::times(&peer)),
            target: Target::RatioAtMost(goal),
        }
    };
    let rows = rows.map(measure).into();
    // The keeper's shells must end before the container does.
    let stopped = command(ours, &["keeper", "stop", "--all"]).output();
    drop(stopped.expect("rsig starts"));
    rows
}
