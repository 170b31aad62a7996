//! Listing many jobs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use rusqlite::Connection;

use super::measure::{Figure, alone, time};
use super::session::{Job, Session, Workspace};
use super::table::{Row, Target};

/// Adds `finished` and `running` records to the state file, each a copy of `model`'s with its own id, start time and
/// state. Returns the ids of the running ones.
pub fn fill(place: &Workspace, model: &Job, finished: u32, running: u32) -> Vec<String> {
    let mut connection = Connection::open(place.fixture.rsig.state().join("jobs.db"))
        .expect("rsig made its state file");
    let transaction = connection.transaction().expect("nobody else writes");
    let mut ids = Vec::new();
    {
        let jobs_dir = model
            .dir
            .parent()
            .expect("a job's directory has a parent")
            .display();
        let statement = format!(
            "INSERT INTO jobs (record) SELECT json_set(record, '$.id', ?1, '$.dir', '{jobs_dir}/' || ?1, '$.state', ?2,
                 '$.started_at', started_at + ?3, '$.finished_at', ?4, '$.exit_status', ?5,
                 '$.created_at', created_at + ?3)
             FROM (SELECT *, record ->> '$.started_at' AS started_at FROM jobs WHERE id = ?6)"
        );
        let mut insert = transaction
            .prepare(&statement)
            .expect("the schema is rsig's");
        for number in 0..finished + running {
            let id = id(number);
            let (state, at, status) = if number < finished {
                ("exited", Some(1_700_000_000), Some(0))
            } else {
                ("running", None, None)
            };
            insert
                .execute((&id, state, number, at, status, &model.id))
                .expect("the schema is rsig's");
            if number >= finished {
                ids.push(id);
            }
        }
    }
    transaction.commit().expect("the disk takes the records");
    ids
}

/// Crockford's base32 alphabet.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// An id for a number. The ids are spread over the whole range, as random ones are.
fn id(number: u32) -> String {
    let scattered = u64::from(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let letter = |place: u32| {
        ALPHABET[usize::try_from((scattered >> (5 * place + 20)) & 31).expect("5 bits fit")]
    };
    (0..8).map(|place| char::from(letter(place))).collect()
}

pub fn cached(session: &Session) -> Vec<Row> {
    let place = Workspace::start();
    let job = place.sleeper();
    fill(&place, &job, 99_980, 19);
    let row = |what: &str, words: &[&str], runs, target| Row {
        what: format!("{what}, 100,000 records of which 20 unfinished"),
        rsig: Figure::times(&alone(runs, &mut place.rsig(words))),
        peer: None,
        target,
    };
    vec![
        row(
            "ps --cached",
            &["ps", "--cached"],
            session.runs(60, 10),
            Target::AtMost(50.0),
        ),
        row(
            "ps --cached -a",
            &["ps", "--cached", "-a"],
            session.runs(5, 2),
            Target::None,
        ),
        row(
            "ps --cached -a -q",
            &["ps", "--cached", "-a", "-q"],
            session.runs(5, 2),
            Target::None,
        ),
    ]
}

/// A thousand jobs on one host. One of them runs. The others are copies of its files, which describe the same process,
/// so the script does the same work for each as for a real job.
pub fn thousand(session: &Session) -> Vec<Row> {
    let place = Workspace::behind_proxy();
    let proxy = place.proxy.as_ref().expect("the place has a proxy");
    let server = place
        .fixture
        .server
        .as_ref()
        .expect("the place has a server");
    let job = place.sleeper();
    for id in fill(&place, &job, 0, 999) {
        copy_files(&job, &id);
    }
    let mut ps = place.rsig(&["ps"]);
    let sessions = || server.log().matches("Starting session").count() as u64;
    let (connections_before, sessions_before) = (proxy.connections(), sessions());
    time(&mut ps);
    let (connections, scripts) = (
        proxy.connections() - connections_before,
        sessions() - sessions_before,
    );
    let at_100_ms = alone(session.runs(5, 2), &mut ps);
    proxy.set_delay(std::time::Duration::ZERO);
    let without = alone(session.runs(10, 3), &mut ps);
    let count = |what: &str, count| Row {
        what: format!("ps of 1,000 jobs on one host: {what}"),
        rsig: Figure::number(count),
        peer: None,
        target: Target::AtMost(1.0),
    };
    let timed = |network: &str, times: &[_]| Row {
        what: format!("ps of 1,000 jobs on one host, {network}"),
        rsig: Figure::times(times),
        peer: None,
        target: Target::None,
    };
    vec![
        count("connections", connections),
        count("scripts", scripts),
        timed("loopback", &without),
        timed("100 ms", &at_100_ms),
    ]
}

fn copy_files(model: &Job, id: &str) {
    let dir = model.dir.with_file_name(id);
    fs::create_dir(&dir).expect("the jobs' directory is ours");
    fs::set_permissions(&dir, Permissions::from_mode(0o700)).expect("the directory is ours");
    for entry in fs::read_dir(&model.dir)
        .expect("the job's directory is readable")
        .flatten()
    {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            fs::copy(entry.path(), dir.join(entry.file_name()))
                .expect("the job's files are readable");
        }
    }
}
