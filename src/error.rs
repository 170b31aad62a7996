//! What a user, a script or a program must be able to tell apart when something could not be done.

use std::fmt;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

/// The kinds of failure, as `kill --json` names them, each with an exit status of its own meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The command line says something that can't be.
    Usage,
    /// The host is none of those that may be used.
    HostDenied,
    /// No job of that id or name.
    NotFound,
    /// The word fits several jobs.
    Ambiguous,
    /// The job had ended before.
    NotRunning,
    /// The job is lost: whether it has ended is not known.
    Lost,
    /// The job's host has no such signal.
    BadSignal,
    /// The host could not be reached, or broke off.
    Unreachable,
    /// The server took the login, and its shell says nothing: another one would take as long.
    Silent,
    /// The host's name can't be resolved.
    Unresolved,
    /// The host refused every key and password.
    Auth,
    /// The host's key is not the one that is known.
    HostKey,
    /// The job's processes are another user's.
    NotPermitted,
    /// The command is not there.
    CommandMissing,
    /// The command can't be executed.
    CommandDenied,
    /// No channel is held that could take the signal.
    NoChannel,
    /// The login runs no shell, so that nothing that was sent to one can have been carried out.
    NoShell,
    /// There is no such container, or it does not run: as [`Self::NoShell`], and it may come back.
    NoContainer,
    /// The connection broke, and whether the signal was sent can't be found out.
    Unconfirmed,
    /// The job has not ended, as it would have to.
    StillRunning,
    /// Another job that has not ended has the name.
    NameTaken,
    /// The job has no input that could be sent to.
    NotOpen,
    /// The time that was given is over.
    TimedOut,
    /// Anything else; the message says what.
    Failed,
}

impl Kind {
    /// The exit status that goes with it.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Usage | Self::BadSignal | Self::HostDenied => exit::USAGE,
            Self::NotFound | Self::Ambiguous => exit::NO_JOB,
            Self::NotRunning => exit::NOT_RUNNING,
            Self::Lost => exit::LOST,
            Self::Unreachable
            | Self::Silent
            | Self::Unresolved
            | Self::NoContainer
            | Self::Auth
            | Self::HostKey
            | Self::Unconfirmed => exit::UNREACHABLE,
            Self::TimedOut => exit::TIMED_OUT,
            _ => exit::FAILED,
        }
    }

    /// Whether the host may be reached at another time.
    pub fn is_outage(self) -> bool {
        matches!(
            self,
            Self::Unreachable | Self::Silent | Self::Unresolved | Self::NoContainer
        )
    }

    /// Whether nothing that was sent to a shell can have been carried out.
    pub fn is_without_shell(self) -> bool {
        matches!(self, Self::NoShell | Self::NoContainer)
    }

    /// Whether the same may be asked once more at once: the connection was found broken.
    pub fn is_worth_another_try(self) -> bool {
        self.is_outage() && self != Self::Silent
    }

    /// The word in `kill --json`, the status and word of `rsig serve`, and the word of `rsig mcp`.
    fn terms(self) -> (&'static str, u16, &'static str, &'static str) {
        match self {
            Self::Usage => ("failed", 400, "bad_value", "bad_param"),
            Self::HostDenied => ("failed", 403, "host_denied", "bad_param"),
            Self::NotFound => ("not_found", 404, "not_found", "not_found"),
            Self::Ambiguous => ("ambiguous", 409, "ambiguous", "not_found"),
            Self::NotRunning => ("not_running", 409, "not_running", "unexpected"),
            Self::Lost => ("lost", 409, "not_running", "unexpected"),
            Self::BadSignal => ("bad_signal", 400, "bad_value", "bad_param"),
            Self::Unreachable | Self::Silent | Self::Unresolved | Self::NoContainer => {
                ("unreachable", 502, "unreachable", "delivery_failed")
            }
            Self::Auth => ("auth", 502, "auth", "delivery_failed"),
            Self::HostKey => ("host_key", 502, "host_key", "delivery_failed"),
            Self::NotPermitted => ("not_permitted", 403, "not_permitted", "delivery_failed"),
            Self::CommandMissing => ("failed", 400, "command_missing", "bad_param"),
            Self::CommandDenied => ("failed", 400, "command_denied", "bad_param"),
            Self::NoChannel => ("no_channel", 502, "unreachable", "delivery_failed"),
            Self::NoShell => ("failed", 502, "unreachable", "delivery_failed"),
            Self::Unconfirmed => ("unconfirmed", 502, "unconfirmed", "delivery_failed"),
            Self::NameTaken => ("failed", 409, "name_taken", "bad_param"),
            Self::NotOpen => ("failed", 409, "not_open", "unexpected"),
            Self::StillRunning | Self::TimedOut => ("failed", 409, "still_running", "unexpected"),
            Self::Failed => ("failed", 500, "failed", "unexpected"),
        }
    }

    /// The word that stands for it in `kill --json`.
    pub fn word(self) -> &'static str {
        self.terms().0
    }

    /// The status and the word of `rsig serve`.
    #[cfg(feature = "serve")]
    pub fn http(self) -> (u16, &'static str) {
        let (_, status, word, _) = self.terms();
        (status, word)
    }

    /// The word of `rsig mcp`.
    #[cfg(feature = "mcp")]
    pub fn mcp(self) -> &'static str {
        self.terms().3
    }
}

/// The exit statuses of rsig itself; `wait` and `run` also pass on the job's.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Failed for a reason that the message gives.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// No such job, or the word fits several.
    pub const NO_JOB: u8 = 3;
    /// The job had already ended, and nothing was sent.
    pub const NOT_RUNNING: u8 = 4;
    /// Still running when the time was over.
    pub const TIMED_OUT: u8 = 124;
    /// `run`: the command can't be executed.
    pub const COMMAND_DENIED: u8 = 126;
    /// `run`: the command is not there.
    pub const COMMAND_MISSING: u8 = 127;
    /// The job is lost; or, in `wait` and `run`, rsig itself failed.
    pub const LOST: u8 = 125;
    /// The host could not be reached, or refused the login or was refused for its key.
    pub const UNREACHABLE: u8 = 255;
}

/// Something could not be done: what kind of thing that is, and the sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What a program tells apart.
    pub kind: Kind,
    /// What a person reads: what happened, to which job or host, what to do next.
    pub message: String,
}

impl Failure {
    /// A failure of a kind, with the sentence that says what happened.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl Failure {
    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The job with this label is lost.
    pub fn lost(label: &str, why: &str) -> Self {
        Self::new(Kind::Lost, format!("{label}: it is lost: {why}"))
    }
}

/// What an error of the system means, with what to do where a limit is reached.
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        None => error.to_string(),
        Some(errno @ Errno::EMFILE) => {
            let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
            let what = errno.desc().to_lowercase();
            format!("{what}; raise the limit, which is {limit} (`ulimit -n`)")
        }
        Some(Errno::EAGAIN) => {
            "no more processes or threads are allowed; end some, or raise the limit (`ulimit -u`)"
                .to_owned()
        }
        Some(errno) => errno.desc().to_lowercase(),
    }
}

/// A thread could not be started.
pub fn no_thread(error: &io::Error) -> Failure {
    Failure::new(
        Kind::Failed,
        format!("a thread can't be started: {}", reason(error)),
    )
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<anyhow::Error> for Failure {
    /// Takes the failure out of its context; an error without one is of kind [`Kind::Failed`].
    fn from(error: anyhow::Error) -> Self {
        let kind = error
            .downcast_ref::<Self>()
            .map_or(Kind::Failed, |failure| failure.kind);
        Self {
            kind,
            message: format!("{error:#}"),
        }
    }
}
