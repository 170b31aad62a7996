//! The script that signals jobs and waits for their end.

use std::time::Duration;

use super::answer::{Listener, garbage, hear, patience};
use super::script::Script;
use super::seen::{Seen, indexed, job_line};
use crate::connection::Shell;
use crate::error::Failure;
use crate::job::Target;
use crate::signal::Signal;

/// One signal for one job.
#[derive(Clone, Debug)]
pub struct Shot {
    /// The job's directory on its host, or its id where that is not known.
    pub place: String,
    /// What this delivery is claimed by: the same in every try of it.
    pub claim: String,
    /// What is sent.
    pub signal: Signal,
    /// To which of its processes.
    pub target: Target,
    /// A job that is stopped gets CONT after it, so that it can die.
    pub wake: bool,
    /// An earlier try may have sent it.
    pub retry: bool,
}

impl Shot {
    /// It in the words of the host's scripts: CLAIM NAME NUMBER ARGUMENT TARGET WAKE.
    pub fn words(&self) -> [String; 6] {
        [
            self.claim.clone(),
            self.signal.name(),
            self.signal
                .number()
                .map_or_else(|| "-".to_owned(), |number| number.to_string()),
            self.signal.wire(),
            self.target.word().to_owned(),
            flag(self.wake).to_owned(),
        ]
    }
}

/// A yes or no in the words of the host's scripts.
pub fn flag(on: bool) -> &'static str {
    if on { "1" } else { "0" }
}

/// What came of a shot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// It was sent.
    Sent,
    /// The job's processes were gone.
    Gone,
    /// The job's processes are another user's.
    Denied,
    /// An earlier try claimed it and never said what came of it.
    Unconfirmed,
}

/// What is asked of a host for several jobs in one script, in this order: the first shots, the wait, the second shots
/// at those that are left, the wait again.
#[derive(Debug, Default)]
pub struct Plan {
    /// For each job its place, and the signal to send at once, if any.
    pub jobs: Vec<(String, Option<Shot>)>,
    /// How long to wait for all of them, if at all.
    pub wait: Option<Duration>,
    /// For some of the jobs, by index: what they get when they are still running then.
    pub then: Vec<(usize, Shot)>,
    /// How long to wait after that.
    pub then_wait: Option<Duration>,
}

impl Plan {
    /// All shots of the plan.
    pub fn shots(&self) -> impl Iterator<Item = &Shot> {
        let first = self.jobs.iter().filter_map(|(_, shot)| shot.as_ref());
        first.chain(self.then.iter().map(|(_, shot)| shot))
    }
}

/// What a host says while a plan is carried out, each with the job's index.
pub enum Event {
    /// What came of the job's first or second shot.
    Hit(usize, Hit),
    /// How the job stands: for one that has ended, its end.
    Seen(usize, Seen),
    /// So many processes of the job are there, whether or not its first one is.
    Kin(usize, u32),
    /// It has no awk, and so its processes can't be told apart.
    Lacks(usize),
    /// Of the job's tree only its session and the children of its processes could be found.
    LinksOnly(usize),
}

/// Carries out a plan on a host. Each event is passed on as it comes.
pub fn carry_out(
    host: &str,
    shell: &mut dyn Shell,
    plan: &Plan,
    on_event: &mut dyn FnMut(Event),
) -> Result<(), Failure> {
    let script = Script::signal(plan)?;
    let patience =
        (plan.wait.unwrap_or_default() + plan.then_wait.unwrap_or_default()) * 2 + patience();
    let jobs = plan.jobs.len();
    let mut told = vec![false; jobs];
    let mut listener = |line: &str| {
        match indexed(line, jobs) {
            Some(("sent", index, word)) => {
                on_event(Event::Hit(
                    index,
                    hit(word).ok_or_else(|| garbage(host, line.as_bytes()))?,
                ));
            }
            Some(("kin", index, number)) => {
                on_event(Event::Kin(
                    index,
                    number.parse().map_err(|_| garbage(host, line.as_bytes()))?,
                ));
            }
            Some(("links", index, _)) => on_event(Event::LinksOnly(index)),
            Some(("lacks", index, _)) => on_event(Event::Lacks(index)),
            _ => {
                let (index, seen) = job_line(host, line, jobs)?;
                if let Some(told) = told.get_mut(index) {
                    *told = true;
                }
                on_event(Event::Seen(index, seen));
            }
        }
        Ok(())
    };
    hear(
        host,
        shell,
        &script,
        Some(patience),
        &mut listener as &mut dyn Listener,
    )?;
    // Every script says of every job how it stands, at the latest at its end.
    if told.contains(&false) {
        Err(garbage(host, b"nothing about the job"))
    } else {
        Ok(())
    }
}

fn hit(word: &str) -> Option<Hit> {
    Some(match word {
        "yes" => Hit::Sent,
        "gone" => Hit::Gone,
        "denied" => Hit::Denied,
        "unconfirmed" => Hit::Unconfirmed,
        _ => return None,
    })
}
