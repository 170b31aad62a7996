//! Times whole rsig processes against OpenSSH's client, on the same server in the same run, and prints a table.
//!
//! `cargo bench` measures every row, `cargo bench -- kill tail` the rows whose names contain one of these words.
//! `--quick` takes fewer runs and smaller files. Nothing here passes or fails: other load on the machine shows in the
//! spread of the runs, and a person judges it. The requirements are those of the tests (root, sshd: see `harness`).
//!
//! Jobs are files. ext4 without a journal does not reuse an inode for a minute, and searches all recently freed ones
//! for each new file, so earlier runs slow down later ones. `just bench` keeps its files in memory.
//!
//! To add a row, write a function that takes a [`Session`] and returns one or more [`Row`]s, and add it to [`ROWS`].

#[path = "../../tests/harness/mod.rs"]
#[allow(unused_macros, reason = "each program uses a part of it")]
mod harness;

mod container;
mod fan;
mod kill;
mod measure;
mod ps;
mod run;
mod sequence;
mod session;
mod start;
mod table;
mod tail;
mod warm;

use session::Session;
use table::Row;

/// Measures one row, or several related ones.
type Measure = fn(&Session) -> Vec<Row>;

/// The measurements, each with the name that selects it on the command line.
const ROWS: &[(&str, Measure)] = &[
    ("start", start::version),
    ("kill-loopback", kill::on_loopback),
    ("kill-proxy", kill::behind_the_proxy),
    ("kill-records", kill::among_records),
    ("ps-cached", ps::cached),
    ("ps-thousand", ps::thousand),
    ("tail-loopback", tail::on_loopback),
    ("tail-proxy", tail::behind_the_proxy),
    ("tail-memory", tail::memory),
    ("warm-loopback", warm::on_loopback),
    ("warm-proxy", warm::behind_the_proxy),
    ("warm-many", warm::many),
    ("sequence-loopback", sequence::on_loopback),
    ("sequence-proxy", sequence::behind_the_proxy),
    ("sequence-servers", sequence::servers),
    ("run-round-trips", run::round_trips),
    ("run-loopback", run::on_loopback),
    ("run-proxy", run::behind_the_proxy),
    ("run-beside", run::beside),
    ("container", container::behind_a_prefix),
    ("fan-out", fan::out),
    ("fan-hosts", fan::many_hosts),
];

fn main() {
    // cargo adds `--bench`.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let quick = words.iter().any(|word| word == "--quick");
    let filters: Vec<&String> = words.iter().filter(|word| *word != "--quick").collect();
    let picked = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let session = Session { quick };
    table::print_head();
    for (_, measure) in ROWS.iter().filter(|(name, _)| picked(name)) {
        measure(&session).iter().for_each(table::print);
    }
}
