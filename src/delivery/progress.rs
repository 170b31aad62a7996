//! The state of one job's delivery: what was requested, what was answered, and what follows from that. No I/O.

use super::{Outcome, SendOutcome, SignalRequest, Via, ViaPolicy};
use crate::connection::keeper::protocol::RelayedEnd;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::job::{self, Record, State, Target};
use crate::remote::signal::{Answer, Attempt, AttemptResult};
use crate::remote::{Observation, ObservedState};
use crate::signal::Signal;

/// A delivery of up to two signals to a job, and the wait for its end.
pub struct Delivery {
    pub signal: Option<Signal>,
    pub then: Option<Signal>,
    pub target: Target,
    pub wake: bool,
    pub ways: ViaPolicy,
    /// The claim of the first signal on the host.
    pub claim: String,
    pub then_claim: String,
    /// The first signal may have been sent, whatever the result says.
    pub asked: bool,
    pub then_asked: bool,
    pub outcome: Outcome,
    /// The outcome is final.
    pub settled: bool,
    /// Number of the job's processes, as counted by the host.
    pub processes: u32,
    /// The host found no process to signal.
    gone: bool,
    /// A signal was just sent. The next state report is from before the signal.
    just_sent: bool,
}

impl Delivery {
    pub fn new(request: SignalRequest, nonce: &str) -> Self {
        Self {
            signal: request.signal,
            then: request.then,
            target: request.target,
            wake: request.wake,
            ways: request.ways,
            claim: nonce.to_owned(),
            then_claim: format!("{nonce}-then"),
            asked: false,
            then_asked: false,
            outcome: Outcome::of(request.record),
            settled: false,
            processes: 0,
            gone: false,
            just_sent: false,
        }
    }

    /// The job's directory on its host, or its id if the directory is not known yet.
    pub fn job_dir(&self) -> String {
        let record = &self.outcome.record;
        record.job_dir()
    }

    /// The first signal, if it still has to be sent.
    pub fn unsent(&self) -> Option<Signal> {
        self.signal.filter(|_| self.outcome.sent == SendOutcome::No)
    }

    /// The second signal, if it still has to be sent.
    pub fn then_unsent(&self) -> Option<Signal> {
        self.then.filter(|_| self.outcome.then.is_none())
    }

    pub fn first_attempt(&self) -> Option<Attempt> {
        let signal = self.unsent()?;
        Some(self.attempt(signal, &self.claim, self.asked))
    }

    pub fn then_attempt(&self) -> Option<Attempt> {
        let signal = self.then_unsent()?;
        Some(self.attempt(signal, &self.then_claim, self.then_asked))
    }

    fn attempt(&self, signal: Signal, claim: &str, retry: bool) -> Attempt {
        Attempt {
            claim: claim.to_owned(),
            signal,
            wake: self.wake,
            retry,
        }
    }

    pub fn fail(&mut self, kind: Kind, what: &str) {
        let label = self.outcome.record.label();
        self.outcome.error = Some(Failure::new(kind, format!("{label}: {what}")));
        self.settled = true;
    }

    /// Processes an answer of a script.
    pub fn apply_answer(&mut self, answer: Answer, waiting: bool) {
        match answer {
            Answer::Result(result) => self.apply_result(Via::Pid, result, waiting),
            Answer::State(seen) => self.apply_state(&seen, waiting),
            Answer::Processes(number) => self.processes = number,
            Answer::LacksAwk => self.fail(
                Kind::Failed,
                "--target tree needs awk, which its host lacks; nothing was sent. Leave --target out to signal the \
                 group",
            ),
            Answer::LinksOnly => {
                self.outcome.note = Some(format!(
                    "{}: its host does not show the environment of processes, so processes that left both its session \
                     and their parent were not found",
                    self.outcome.record.label()
                ));
            }
        }
    }

    /// Processes the result of an attempt.
    pub fn apply_result(&mut self, via: Via, result: AttemptResult, waiting: bool) {
        let sent = match result {
            AttemptResult::Sent => SendOutcome::Yes(via),
            AttemptResult::Gone | AttemptResult::Denied => SendOutcome::No,
            AttemptResult::Unconfirmed => SendOutcome::Unknown,
        };
        if self.unsent().is_some() {
            self.outcome.sent = sent;
        } else {
            self.outcome.then = Some(sent);
        }
        match result {
            AttemptResult::Sent => self.just_sent = true,
            // The job's state is still to come.
            AttemptResult::Gone => self.gone = true,
            AttemptResult::Denied => self.fail(
                Kind::NotPermitted,
                "its processes now belong to another user; permission denied",
            ),
            AttemptResult::Unconfirmed => self.fail(
                Kind::Unconfirmed,
                "an earlier attempt was cut short on its host, so whether the signal was sent is not known",
            ),
        }
        // Only the job's state is missing, and no wait needs it.
        if result == AttemptResult::Gone && !waiting && self.target != Target::Tree {
            self.outcome.still_running = Some(false);
            self.fail(Kind::NotRunning, "its process was gone; nothing was sent");
        }
    }

    /// Processes the job's state on the host.
    fn apply_state(&mut self, seen: &Observation, waiting: bool) {
        let state = seen.state(&self.outcome.record);
        seen.update(&mut self.outcome.record);
        let is_from_before = std::mem::take(&mut self.just_sent);
        match (state, seen.observed) {
            // Processes that the job started may still run.
            _ if is_from_before && waiting && self.target == Target::Tree => {}
            (State::Exited | State::Lost, _) => {
                let left = self.processes > 0 && self.target == Target::Tree;
                self.outcome.still_running = Some(left);
                if !waiting && !left && self.unsent().is_some() {
                    self.outcome.error = Some(self.ended_failure());
                }
                self.settled = !(waiting && left);
            }
            (State::Unknown, ObservedState::Elsewhere) => {
                let node = printable(seen.node.as_deref().unwrap_or("another machine"), 80);
                let what = format!(
                    "it runs on {node}, but another machine now answers under its host's name"
                );
                self.fail_as_unknown(&what);
            }
            (State::Unknown, ObservedState::DirMissing) => self.fail_as_unknown(
                "the directory of all jobs is missing on its host: is the file system mounted?",
            ),
            (State::Unknown, _) if self.signal.is_none() => self.fail_as_unknown(NOT_TRUSTED),
            (State::Unknown, _) => self.fail(Kind::Failed, NOT_TRUSTED),
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
                self.settled = !waiting;
                let unsent = self.unsent().filter(|signal| !signal.is_existence_check());
                if !waiting && unsent.is_some() {
                    self.outcome.sent = SendOutcome::Unknown;
                    let what = "its host does not say whether the signal was sent";
                    self.fail(Kind::Unconfirmed, what);
                }
            }
        }
    }

    /// Fails the delivery: the job's state can't be determined now.
    fn fail_as_unknown(&mut self, why: &str) {
        let sent = match (self.signal, self.outcome.sent) {
            (Some(_), SendOutcome::No) => "; nothing was sent".to_owned(),
            (Some(signal), SendOutcome::Yes(_)) => format!("; {} was sent", signal.name()),
            _ => String::new(),
        };
        self.fail(Kind::Unreachable, &format!("{why}{sent}"));
    }

    /// The error for a signal to this job, which has ended.
    fn ended_failure(&self) -> Failure {
        let record = &self.outcome.record;
        let mut failure = ended_before(record);
        if self.target == Target::Tree {
            let left = ", and nothing that it started is left";
            failure.message.push_str(left);
        } else if self.processes > 0 {
            let left = match self.processes {
                1 => "a process of its group still runs",
                _ => "its group still runs",
            };
            failure.message.push_str(&format!(
                ". But {left}: `rsig kill --target tree {}` signals what a job has left behind",
                record.id
            ));
        }
        failure
    }

    /// Records the job's end, as reported by its relay.
    pub fn apply_end(&mut self, end: RelayedEnd) {
        let record = &mut self.outcome.record;
        record.state = State::Exited;
        record.exit_status = Some(end.status);
        record.finished_at = Some(end.at);
        record.timed_out = end.timed_out;
        record.checked_at = Some(job::now());
        self.outcome.still_running = Some(false);
        self.settled = true;
    }

    /// Settles the delivery after the host became unreachable.
    pub fn give_up(&mut self, failure: &Failure, waiting: bool) {
        self.settled = true;
        if !waiting && matches!(self.outcome.sent, SendOutcome::Yes(_)) {
            // Only the job's state is missing.
            return;
        }
        self.outcome.still_running = None;
        if self.unsent().is_some() && self.asked {
            self.outcome.sent = SendOutcome::Unknown;
        } else if self.then_unsent().is_some() && self.then_asked {
            self.outcome.then = Some(SendOutcome::Unknown);
        } else {
            let sent = match (self.signal, self.outcome.sent) {
                (Some(signal), SendOutcome::Yes(_)) => Some(signal.name()),
                _ => None,
            };
            self.outcome.error = Some(match sent {
                Some(name) => Failure::new(
                    failure.kind,
                    format!(
                        "{}: {failure}; {name} was sent",
                        self.outcome.record.label()
                    ),
                ),
                None => failure.clone(),
            });
            return;
        }
        let what = format!(
            "the connection broke before the host confirmed the signal, and no new one can be made, so whether it was \
             sent is not known ({failure})"
        );
        self.fail(Kind::Unconfirmed, &what);
    }
}

/// The error for a job whose directory is a link, or is owned or writable by other users.
pub const NOT_TRUSTED: &str = "its directory is writable by other users, so it is not trusted";

/// The error for a signal to a job that has ended.
pub fn ended_before(record: &Record) -> Failure {
    let end = match (record.state, record.exit_status) {
        (State::Exited, Some(status)) => format!("it had already ended with status {status}"),
        _ => format!("it is lost: {}", record.why_lost()),
    };
    let message = format!("{}: {end}; nothing was sent", record.label());
    Failure::new(Kind::NotRunning, message)
}
