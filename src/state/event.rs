//! What was done to jobs, as it is written down: starts, signals, ends and removals.
//!
//! A value of `-e` is in none of it, and neither is a host's own text, which could hold one.

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

use crate::delivery::Sent;
use crate::error::Kind;
use crate::job::{Epoch, JobId, Record, Target, rfc3339};

/// How much of a command line is written down, in bytes: the whole is in the job's record.
const COMMAND: usize = 4096;

/// One thing that was done to a job, or that became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// It was asked for.
    Spawn {
        /// The command and its arguments, the end of a long one left out.
        command: Vec<String>,
    },
    /// It was asked for, and not started.
    NotStarted {
        /// The kind of the failure, as in `kill --json`.
        error: String,
    },
    /// A signal was sent, or may have been.
    Signal {
        /// Its name on the job's host.
        signal: String,
        /// To which of the processes.
        target: String,
        /// By which path; none where that is not known.
        via: Option<String>,
        /// True where the host confirmed it; none where that is not known: the connection broke, or rsig was ended
        /// before the answer.
        sent: Option<bool>,
    },
    /// It was found to be over.
    End {
        /// `exited` or `lost`.
        state: String,
        /// Its exit status.
        exit_status: Option<u8>,
        /// The signal n, where the status is 128+n.
        exit_signal: Option<String>,
        /// It ran into its time limit.
        timed_out: bool,
        /// When it ended, by its host's clock, as RFC 3339 has it.
        finished_at: Option<String>,
    },
    /// It was forgotten, and its files were removed.
    Removal,
    /// Its record was dropped; its files stay on the host.
    Forget,
}

impl Happening {
    /// A job that is about to be asked for.
    pub fn spawn(record: &Record) -> Self {
        let mut room = COMMAND;
        let mut command = Vec::new();
        for word in &record.command {
            let Some(left) = room.checked_sub(word.len()) else {
                command.push("…".to_owned());
                break;
            };
            room = left;
            command.push(word.clone());
        }
        Self::Spawn { command }
    }

    /// A job that was not started.
    pub fn not_started(kind: Kind) -> Self {
        Self::NotStarted {
            error: kind.word().to_owned(),
        }
    }

    /// A signal, and what became of it.
    pub fn signal(signal: &str, target: Target, sent: Sent) -> Self {
        let (via, sent) = match sent {
            Sent::No => (None, Some(false)),
            Sent::Yes(via) => (Some(via.word().to_owned()), Some(true)),
            Sent::Unknown => (None, None),
        };
        Self::Signal {
            signal: signal.to_owned(),
            target: target.word().to_owned(),
            via,
            sent,
        }
    }

    /// How a job's record says that it ended.
    pub fn end(record: &Record) -> Self {
        Self::End {
            state: record.state.word().to_owned(),
            exit_status: record.exit_status,
            exit_signal: record.exit_signal(),
            timed_out: record.timed_out,
            finished_at: record.finished_at.and_then(rfc3339),
        }
    }
}

/// A line of the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When it was written down, by this machine's clock.
    pub at: Epoch,
    /// Who did it, or found it out: the name of the login on this machine.
    pub user: String,
    /// The job.
    pub job: JobId,
    /// The job's name then.
    pub name: Option<String>,
    /// The job's host as it was typed.
    pub host: String,
    /// What.
    pub happening: Happening,
}

/// What an event keeps of this login: its number, since to look a name up can take long.
pub fn user() -> String {
    Uid::current().to_string()
}

/// The name of the login that an event keeps, or what it keeps where the system has no name for that.
pub fn user_name(kept: &str) -> String {
    let user = kept
        .parse()
        .ok()
        .and_then(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten());
    user.map_or_else(|| kept.to_owned(), |user| user.name)
}
