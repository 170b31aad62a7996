//! Starting rsig.

use super::measure::{Figure, alone};
use super::session::{Session, Workspace};
use super::table::{Row, Target};

pub fn version(session: &Session) -> Vec<Row> {
    let place = Workspace::start();
    let times = alone(session.runs(200, 30), &mut place.rsig(&["--version"]));
    vec![Row {
        what: "rsig --version".to_owned(),
        rsig: Figure::times(&times),
        peer: None,
        target: Target::AtMost(5.0),
    }]
}
