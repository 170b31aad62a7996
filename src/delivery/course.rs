//! One job on its way through a delivery: what was sent, what was answered, what follows from it. No I/O.

use super::{Order, Outcome, Sent, Via};
use crate::connection::keeper::protocol::End;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::job::{self, Record, State, Target};
use crate::remote::signal::{Hit, Shot};
use crate::remote::{Seen, Standing};
use crate::signal::Signal;

/// One job on its way.
pub struct Course {
    pub order: Order,
    /// What the first signal is claimed by on the host.
    pub claim: String,
    /// What the second is claimed by.
    pub then_claim: String,
    pub outcome: Outcome,
    /// A script with the first signal was handed over: it may have been sent, whatever came back.
    pub asked: bool,
    /// The same for the second.
    pub then_asked: bool,
    /// How many of its processes the host has counted.
    pub kin: u32,
    /// The host found nothing that could be signalled.
    gone: bool,
}

impl Course {
    pub fn new(order: Order) -> Result<Self, Failure> {
        let outcome = Outcome::of(order.record.clone());
        let (claim, then_claim) = (job::random_hex::<8>()?, job::random_hex::<8>()?);
        Ok(Self {
            order,
            claim,
            then_claim,
            outcome,
            asked: false,
            then_asked: false,
            kin: 0,
            gone: false,
        })
    }

    /// The job's directory on its host, or its id where that is not known yet.
    pub fn place(&self) -> String {
        self.outcome.record.job_dir()
    }

    /// The first signal, if it still has to be sent.
    pub fn unsent(&self) -> Option<Signal> {
        self.order.signal.filter(|_| self.outcome.sent == Sent::No)
    }

    /// The second signal, if it still has to be sent.
    pub fn then_unsent(&self) -> Option<Signal> {
        self.order.then.filter(|_| self.outcome.then.is_none())
    }

    pub fn shot(&self, signal: Signal, claim: &str, retry: bool) -> Shot {
        let (target, wake) = (self.order.target, self.order.wake);
        Shot {
            place: self.place(),
            claim: claim.to_owned(),
            signal,
            target,
            wake,
            retry,
        }
    }

    pub fn fail(&mut self, kind: Kind, what: &str) -> bool {
        self.outcome.error = Some(Failure::new(
            kind,
            format!("{}: {what}", self.order.record.label()),
        ));
        true
    }

    /// Takes the answer to a shot, and says whether that settles the job.
    pub fn hit(&mut self, via: Via, hit: Hit, waiting: bool) -> bool {
        let sent = match hit {
            Hit::Sent => Sent::Yes(via),
            Hit::Gone | Hit::Denied => Sent::No,
            Hit::Unconfirmed => Sent::Unknown,
        };
        if self.unsent().is_some() {
            self.outcome.sent = sent;
        } else {
            self.outcome.then = Some(sent);
        }
        match hit {
            Hit::Sent => false,
            // Of a tree, how the job itself stands is still to come.
            Hit::Gone if waiting || self.order.target == Target::Tree => {
                self.gone = true;
                false
            }
            Hit::Gone => {
                self.outcome.still_running = Some(false);
                self.fail(Kind::NotRunning, "its process was gone; nothing was sent")
            }
            Hit::Denied => self.fail(
                Kind::NotPermitted,
                "its processes are another user's by now; its host lets nobody else signal them",
            ),
            Hit::Unconfirmed => self.fail(
                Kind::Unconfirmed,
                "the host cut an earlier try short; whether the signal was sent is not known",
            ),
        }
    }

    /// Takes what the host says of the job, and says whether that settles it.
    pub fn see(&mut self, seen: &Seen, waiting: bool) -> bool {
        let state = seen.state(&self.outcome.record);
        seen.update(&mut self.outcome.record);
        match (state, seen.standing) {
            (State::Exited | State::Lost, _) => {
                self.outcome.still_running =
                    Some(self.kin > 0 && self.order.target == Target::Tree);
                if !waiting && self.unsent().is_some() && self.outcome.still_running == Some(false)
                {
                    self.outcome.error = Some(self.ended());
                }
                true
            }
            (State::Unknown, Standing::Elsewhere) => {
                let node = printable(seen.node.as_deref().unwrap_or("another machine"), 80);
                self.fail(
                    Kind::Unreachable,
                    &format!("it runs on {node}, and another machine answers under that host's name; nothing was sent"),
                )
            }
            (State::Unknown, Standing::Away) => self.fail(Kind::Unreachable, AWAY),
            (State::Unknown, _) => self.fail(Kind::Failed, NOT_BELIEVED),
            (State::Starting, _) if self.unsent().is_some() => self.fail(
                Kind::Failed,
                "it has not started yet; try again in a moment",
            ),
            _ if self.gone && !waiting => self.fail(
                Kind::NotRunning,
                "its processes were gone; nothing was sent",
            ),
            _ => {
                self.outcome.still_running = Some(true);
                if !waiting
                    && self
                        .unsent()
                        .is_some_and(|signal| !signal.is_existence_check())
                {
                    self.outcome.sent = Sent::Unknown;
                    return self.fail(
                        Kind::Unconfirmed,
                        "its host does not say whether the signal was sent",
                    );
                }
                !waiting
            }
        }
    }

    /// The failure of a signal for this job, which is over.
    fn ended(&self) -> Failure {
        let mut failure = ended_before(&self.outcome.record);
        if self.order.target == Target::Tree {
            failure
                .message
                .push_str(", and nothing that it started is left");
        } else if self.kin > 0 {
            let id = &self.outcome.record.id;
            let still = if self.kin == 1 {
                "a process of its group still runs"
            } else {
                "its group still runs"
            };
            let hint = format!(
                ". But {still}: `rsig kill --target tree {id}` signals what a job has left behind"
            );
            failure.message.push_str(&hint);
        }
        failure
    }

    /// The host can't read the environments of processes.
    pub fn only_links(&mut self) {
        self.outcome.note = Some(format!(
            "{}: its processes can't be told by their environment there; what has left both its session and its parent \
             was not found",
            self.order.record.label()
        ));
    }

    /// The job has ended, as its relay says.
    pub fn end(&mut self, end: End) {
        let record = &mut self.outcome.record;
        record.state = State::Exited;
        record.exit_status = Some(end.status);
        record.finished_at = Some(end.at);
        record.timed_out = end.timed_out;
        record.checked_at = Some(job::now());
        self.outcome.still_running = Some(false);
    }

    /// The host can't be asked any more.
    pub fn give_up(&mut self, failure: &Failure, waiting: bool) {
        if !waiting && matches!(self.outcome.sent, Sent::Yes(_)) {
            // Only how the job stood then is missing.
            return;
        }
        if self.unsent().is_some() && self.asked {
            self.outcome.sent = Sent::Unknown;
        } else if self.then_unsent().is_some() && self.then_asked {
            self.outcome.then = Some(Sent::Unknown);
        } else {
            self.outcome.error = Some(failure.clone());
            return;
        }
        let message = format!(
            "{}: the connection broke before the host confirmed the signal, and can't be made again, so whether it was \
             sent is not known ({failure})",
            self.order.record.label()
        );
        self.outcome.error = Some(Failure::new(Kind::Unconfirmed, message));
    }
}

/// What is said where nothing can be known.
const AWAY: &str = "the directory of all jobs is missing on its host: is the file system mounted? Nothing was sent";

/// What is said of a job whose directory is a link, or not its user's alone.
pub const NOT_BELIEVED: &str =
    "others could have written to its directory there, so nothing in it is believed";

/// The failure of a signal for a job that is over.
pub fn ended_before(record: &Record) -> Failure {
    let end = match (record.state, record.exit_status) {
        (State::Exited, Some(status)) => format!("it had already ended with status {status}"),
        _ => "it is lost: gone, and nothing recorded its end".to_owned(),
    };
    Failure::new(
        Kind::NotRunning,
        format!("{}: {end}; nothing was sent", record.label()),
    )
}
