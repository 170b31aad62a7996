//! The table.

use super::measure::{Figure, Unit};

/// One line of it.
pub struct Row {
    pub what: String,
    pub rsig: Figure,
    /// The same of whatever it is held against.
    pub peer: Option<Figure>,
    pub target: Target,
}

/// What rsig's median is to be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// So many of the row's units, at most.
    AtMost(f64),
    /// So many times the peer's median, at most.
    RatioAtMost(f64),
    /// So many times the peer's median, at least.
    RatioAtLeast(f64),
    /// Only to be known.
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
