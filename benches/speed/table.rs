//! The table of results.

use super::measure::{Figure, Unit};

/// A row of the table.
pub struct Row {
    pub what: String,
    pub rsig: Figure,
    /// The same measurement of the program that rsig is compared with.
    pub peer: Option<Figure>,
    pub target: Target,
}

/// Target for rsig's median.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At most this many of the row's units.
    AtMost(f64),
    /// At most this many times the peer's median.
    RatioAtMost(f64),
    /// At least this many times the peer's median.
    RatioAtLeast(f64),
    /// No target, for information only.
    None,
}

pub fn print_head() {
    println!(
        "{:<52} {:>30} {:>30} {:>6}  target",
        "what (rsig / peer)", "rsig: median [min .. max]", "peer: median [min .. max]", "ratio"
    );
}

pub fn print(row: &Row) {
    let peer = row.peer.map(shown).unwrap_or_default();
    let ratio = ratio(row)
        .map(|ratio| format!("{ratio:.2}"))
        .unwrap_or_default();
    let target = match row.target {
        Target::AtMost(limit) => format!("<= {limit} {}", unit(row.rsig.unit)),
        Target::RatioAtMost(limit) => format!("ratio <= {limit}"),
        Target::RatioAtLeast(limit) => format!("ratio >= {limit}"),
        Target::None => String::new(),
    };
    let verdict = match met(row) {
        Some(true) => ": met",
        Some(false) => ": NOT MET",
        None => "",
    };
    println!(
        "{:<52} {:>30} {peer:>30} {ratio:>6}  {target}{verdict}",
        row.what,
        shown(row.rsig)
    );
}

fn ratio(row: &Row) -> Option<f64> {
    row.peer.map(|peer| row.rsig.median / peer.median)
}

fn met(row: &Row) -> Option<bool> {
    match row.target {
        Target::AtMost(limit) => Some(row.rsig.median <= limit),
        Target::RatioAtMost(limit) => ratio(row).map(|ratio| ratio <= limit),
        Target::RatioAtLeast(limit) => ratio(row).map(|ratio| ratio >= limit),
        Target::None => None,
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Milliseconds => "ms",
        Unit::MegabytesPerSecond => "MB/s",
        Unit::Megabytes => "MB",
        Unit::Number => "",
    }
}

fn shown(figure: Figure) -> String {
    let Figure {
        median, min, max, ..
    } = figure;
    match figure.unit {
        Unit::Number => format!("{median}"),
        kind => format!("{median:.1} {} [{min:.1} .. {max:.1}]", unit(kind)),
    }
}
