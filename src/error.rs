//! Failures: kinds that scripts and programs can tell apart, with the exit statuses and words for each, and a message.

use std::fmt;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

/// The kinds of failure. Each has an exit status, a word in `kill --json`, and words in the servers' replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The command line is invalid.
    Usage,
    /// The host is not one of the allowed hosts.
    HostDenied,
    /// No job has that id or name.
    NotFound,
    /// The word matches several jobs.
    Ambiguous,
    /// The job had already ended.
    NotRunning,
    /// The job is lost: whether it has ended is not known.
    Lost,
    /// The job's host has no such signal.
    BadSignal,
    /// The host could not be reached, or the connection was lost.
    Unreachable,
    /// The server accepted the login, but the shell did not respond. A retry would take as long again.
    Silent,
    /// The host's name can't be resolved.
    Unresolved,
    /// The host refused every key and password.
    Auth,
    /// The host's key is not the known one.
    HostKey,
    /// The job's processes belong to another user.
    NotPermitted,
    /// The command was not found.
    CommandMissing,
    /// The command can't be executed.
    CommandDenied,
    /// No open channel can take the signal.
    NoChannel,
    /// The login does not run a shell, so nothing that was sent to the shell was executed.
    NoShell,
    /// The container does not exist or does not run. Like [`Self::NoShell`], but the container may come back.
    NoContainer,
    /// The connection broke, and it can't be determined whether the signal was sent.
    Unconfirmed,
    /// The job has not ended, but the operation requires it.
    StillRunning,
    /// An unfinished job already has the name.
    NameTaken,
    /// The job's standard input is not open.
    NotOpen,
    /// The timeout expired.
    TimedOut,
    /// Anything else; the message says what.
    Failed,
}

impl Kind {
    /// The exit status for this kind.
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

    /// Whether the host may be reachable later.
    pub fn is_outage(self) -> bool {
        matches!(
            self,
            Self::Unreachable | Self::Silent | Self::Unresolved | Self::NoContainer
        )
    }

    /// Whether nothing that was sent to the shell can have been executed.
    pub fn has_no_shell(self) -> bool {
        matches!(self, Self::NoShell | Self::NoContainer)
    }

    /// Whether the request may be retried at once, because the connection was found broken.
    pub fn is_retryable(self) -> bool {
        self.is_outage() && self != Self::Silent
    }

    /// The word in `kill --json`, the HTTP status and word in `rsig serve`, and the word in `rsig mcp`.
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

    /// The word in `kill --json`.
    pub fn word(self) -> &'static str {
        self.terms().0
    }

    /// The HTTP status and the word in `rsig serve`.
    #[cfg(feature = "serve")]
    pub fn http(self) -> (u16, &'static str) {
        let (_, status, word, _) = self.terms();
        (status, word)
    }

    /// The word in `rsig mcp`.
    #[cfg(feature = "mcp")]
    pub fn mcp(self) -> &'static str {
        self.terms().3
    }
}

/// The exit statuses of rsig itself. `wait` and `run` also pass on the job's exit status.
pub mod exit {
    /// Success.
    pub const DONE: u8 = 0;
    /// Any other failure; see the message.
    pub const FAILED: u8 = 1;
    /// The command line is invalid.
    pub const USAGE: u8 = 2;
    /// No such job, or the word matches several.
    pub const NO_JOB: u8 = 3;
    /// The job had already ended, and nothing was sent.
    pub const NOT_RUNNING: u8 = 4;
    /// The timeout expired while the job was still running.
    pub const TIMED_OUT: u8 = 124;
    /// `run`: the command can't be executed.
    pub const COMMAND_DENIED: u8 = 126;
    /// `run`: the command was not found.
    pub const COMMAND_MISSING: u8 = 127;
    /// The job is lost; or, in `wait` and `run`, rsig itself failed.
    pub const LOST: u8 = 125;
    /// The host could not be reached, refused the login, or was rejected because of its host key.
    pub const UNREACHABLE: u8 = 255;
}

/// A failed operation: its kind, for programs, and its message, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    /// What happened, to which job or host, and what to do next.
    pub message: String,
}

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl Failure {
    /// The command line is invalid.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The job with this label is lost.
    pub fn lost(label: &str, why: &str) -> Self {
        Self::new(Kind::Lost, format!("{label}: it is lost: {why}"))
    }
}

/// The text of a system error, with advice if a resource limit was reached.
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

/// The failure to start a thread.
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
    /// Keeps the kind of a [`Failure`] in the error's chain. Any other error has the kind [`Kind::Failed`].
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
