//! The types that describe a job: id, name, state, and the record that this machine keeps of it.
//!
//! Nothing here talks to a host or to the state file.

use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::host::{Destination, Host, HostError};
use crate::signal::Os;

/// Crockford's base32 in lower case: no `i`, `l`, `o` or `u`.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The id of a job, the same on every machine: 8 characters of [`ALPHABET`], 40 random bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct JobId(String);

impl JobId {
    /// Length of an id, in characters.
    pub const LENGTH: usize = 8;

    pub fn random() -> anyhow::Result<Self> {
        let bytes = random_bytes::<{ Self::LENGTH }>()?;
        Ok(Self(
            bytes
                .iter()
                .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
                .collect(),
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

/// Whether every character is in [`ALPHABET`].
pub fn is_id_text(text: &str) -> bool {
    text.bytes().all(|byte| ALPHABET.contains(&byte))
}

/// The word is not a job id.
#[derive(Debug, thiserror::Error)]
#[error("not a job id: 8 characters of 0-9 and a-z without i, l, o and u")]
pub struct BadJobId;

impl FromStr for JobId {
    type Err = BadJobId;

    fn from_str(text: &str) -> Result<Self, BadJobId> {
        if text.len() == Self::LENGTH && is_id_text(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadJobId)
        }
    }
}

impl TryFrom<String> for JobId {
    type Error = BadJobId;

    fn try_from(text: String) -> Result<Self, BadJobId> {
        text.parse()
    }
}

/// A JOB word of the command line: an id, a name, an id prefix, or `HOST/ID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobWord {
    text: String,
    there: Option<(Host, JobId)>,
}

impl JobWord {
    /// `HOST/ID` is split at the last `/`: ids and names contain none.
    pub fn parse(word: impl AsRef<std::ffi::OsStr>) -> Result<Self, HostError> {
        let text = word.as_ref().to_string_lossy().into_owned();
        let there = match text.rsplit_once('/') {
            Some((host, id)) => match id.parse() {
                Ok(id) => Some((host.parse()?, id)),
                // Not a valid id, so no job on any host has it.
                Err(BadJobId) => None,
            },
            None => None,
        };
        Ok(Self { text, there })
    }

    /// The word as typed.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host and the id of `HOST/ID`.
    pub fn host_and_id(&self) -> Option<&(Host, JobId)> {
        self.there.as_ref()
    }
}

impl From<&Record> for JobWord {
    fn from(record: &Record) -> Self {
        let id = record.id.clone();
        if record.is_placeholder() {
            let host = record.host().clone();
            let text = format!("{host}/{id}");
            return Self {
                text,
                there: Some((host, id)),
            };
        }
        Self {
            text: id.0,
            there: None,
        }
    }
}

/// A name that a user gave a job: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct JobName(String);

impl JobName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The word is not a valid job name.
#[derive(Debug, thiserror::Error)]
#[error("a name is 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or a digit")]
pub struct BadJobName;

impl FromStr for JobName {
    type Err = BadJobName;

    fn from_str(text: &str) -> Result<Self, BadJobName> {
        let first = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if first && rest && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadJobName)
        }
    }
}

impl TryFrom<String> for JobName {
    type Error = BadJobName;

    fn try_from(text: String) -> Result<Self, BadJobName> {
        text.parse()
    }
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Requested; the host has not yet confirmed that it runs.
    Starting,
    /// Its process exists.
    Running,
    /// Stopped by STOP.
    Stopped,
    /// Ended, and its end is recorded on the host.
    Exited,
    /// According to the host, the process is gone and its end was not recorded, or it never started.
    Lost,
    /// Its host can't be reached now, or another machine answers to its name.
    Unknown,
}

impl State {
    /// Every state, in the order of the help text.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Running,
        Self::Stopped,
        Self::Exited,
        Self::Lost,
        Self::Unknown,
    ];

    /// Whether no other state can follow.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Exited | Self::Lost)
    }

    /// The word on the command line and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Exited => "exited",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}

/// The word is not a state.
#[derive(Debug, thiserror::Error)]
#[error("not a state: starting, running, stopped, exited, lost or unknown")]
pub struct BadState;

impl FromStr for State {
    type Err = BadState;

    fn from_str(text: &str) -> Result<Self, BadState> {
        Self::ALL
            .into_iter()
            .find(|state| state.word() == text)
            .ok_or(BadState)
    }
}

/// Which of a job's processes a signal is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// Every process of the job's process group, as Ctrl-C would
    #[default]
    Group,
    /// The job's first process only
    Process,
    /// The group and all other descendants, daemons and new sessions included, even if the first process has ended
    Tree,
}

impl Target {
    /// The word on the command line and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Process => "process",
            Self::Tree => "tree",
        }
    }
}

/// Which of rsig's limits ended a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndedBy {
    /// Its tether: its client was gone for too long.
    Tether,
    /// Its time limit was reached.
    Timeout,
}

/// Seconds since 1970-01-01 UTC.
pub type Epoch = i64;

/// This machine's record of a job. `None` means not known (yet).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: JobId,
    /// The name that the user gave it.
    pub name: Option<JobName>,
    /// Where it runs, and how to connect.
    pub destination: Destination,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// The working directory to start in, as given.
    pub cwd: Option<String>,
    /// The job directory on the host.
    pub dir: Option<String>,
    /// Its state when its host was last asked.
    pub state: State,
    /// The pid of its first process.
    pub pid: Option<u32>,
    /// The id of its process group.
    pub pgid: Option<u32>,
    /// The output of `uname -s` on its host.
    pub os: Option<String>,
    /// The start time of its first process, in its host's own unit. Unique among processes together with `boot`.
    pub birth: Option<String>,
    /// The boot of its host on which it started.
    pub boot: Option<String>,
    /// An identity of its host that survives reboots, and in a container the start time of process 1.
    pub machine: Option<String>,
    /// When it started, by the host's clock.
    pub started_at: Option<Epoch>,
    /// When it ended, by the host's clock.
    pub finished_at: Option<Epoch>,
    /// Its exit status; 128+n when signal n ended it.
    pub exit_status: Option<u8>,
    /// It was ended because it reached its time limit.
    #[serde(default)]
    pub timed_out: bool,
    /// Its time limit or its tether could not be enforced.
    #[serde(default)]
    pub unkept: bool,
    /// The limit that ended it, if any.
    pub ended_by: Option<EndedBy>,
    /// Its host or its container was restarted after it started.
    #[serde(default)]
    pub rebooted: bool,
    /// Its record and its files are removed once it has ended and its output was read.
    #[serde(default)]
    pub ephemeral: bool,
    /// The last signal that rsig sent it, without `SIG`.
    pub last_signal: Option<String>,
    /// When its host was last asked, by this machine's clock.
    pub checked_at: Option<Epoch>,
    /// When it was requested, by this machine's clock.
    pub created_at: Epoch,
}

impl Record {
    /// The record of a job that is about to be requested.
    pub fn new(
        id: JobId,
        name: Option<JobName>,
        destination: Destination,
        command: Vec<String>,
    ) -> Self {
        Self {
            id,
            name,
            destination,
            command,
            cwd: None,
            dir: None,
            state: State::Starting,
            pid: None,
            pgid: None,
            os: None,
            birth: None,
            boot: None,
            machine: None,
            started_at: None,
            finished_at: None,
            exit_status: None,
            timed_out: false,
            unkept: false,
            ended_by: None,
            rebooted: false,
            ephemeral: false,
            last_signal: None,
            checked_at: None,
            created_at: now(),
        }
    }

    /// The record of a job of which only the id and the supposed host are known.
    pub fn placeholder(id: JobId, destination: Destination) -> Self {
        Self::new(id, None, destination, Vec::new())
    }

    /// Whether the host has not yet told what the job is: every known job has a command.
    pub fn is_placeholder(&self) -> bool {
        self.command.is_empty()
    }

    /// The operating system of the job's host, if known.
    pub fn system(&self) -> Option<Os> {
        self.os.as_deref().map(Os::from_uname)
    }

    /// The signal that ended the job, if its exit status is 128+n. A job that exits with such a status by itself can't
    /// be distinguished.
    pub fn exit_signal(&self) -> Option<String> {
        let status = self.exit_status?;
        crate::signal::name_of_exit_status(self.system()?, status.into())
    }

    /// The job in a message: its id, its name if it has one, and its host.
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => format!(
                "{} ({}) on {}",
                self.id,
                name.as_str(),
                self.destination.host
            ),
            None => format!("{} on {}", self.id, self.destination.host),
        }
    }

    /// The place of the job for the scripts on its host: the job directory, or the id if it is not known. The identity
    /// of the process precedes the path, so that the host can tell whether it runs even if the directory is gone.
    pub fn job_dir(&self) -> String {
        let Some(dir) = &self.dir else {
            return self.destination.place_of(self.id.as_str());
        };
        match (self.pid, self.pgid, &self.birth, &self.boot, &self.machine) {
            (Some(pid), Some(pgid), Some(birth), Some(boot), Some(machine)) => {
                format!("{pid} {pgid} {birth} {boot} {machine}{dir}")
            }
            _ => dir.clone(),
        }
    }

    /// Why the job is lost, as part of a message.
    pub fn why_lost(&self) -> &'static str {
        if self.rebooted {
            "its host or container began again since it started, and nothing recorded its end"
        } else {
            "gone, and its end was not recorded"
        }
    }

    /// A warning for the user about a job that still runs.
    pub fn caution(&self) -> Option<String> {
        let runs = matches!(self.state, State::Running | State::Stopped);
        (self.unkept && runs).then(|| {
            format!(
                "{}: its time limit or tether can't be kept: its processes now belong to another user",
                self.label()
            )
        })
    }

    /// The limit that ended it, if any.
    pub fn cause(&self) -> Option<EndedBy> {
        self.ended_by.or(self.timed_out.then_some(EndedBy::Timeout))
    }

    pub fn host(&self) -> &Host {
        &self.destination.host
    }
}

/// The current time by this machine's clock.
pub fn now() -> Epoch {
    jiff::Timestamp::now().as_second()
}

/// Formats a time by RFC 3339, in UTC. `None` if it is out of range.
pub fn rfc3339(epoch: Epoch) -> Option<String> {
    jiff::Timestamp::from_second(epoch)
        .ok()
        .map(|time| time.to_string())
}

/// Unpredictable bytes.
pub fn random_bytes<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the system provides no random numbers")?;
    Ok(bytes)
}

/// [`random_bytes`] in hexadecimal: `2 * N` characters.
pub fn random_hex<const N: usize>() -> anyhow::Result<String> {
    Ok(random_bytes::<N>()?
        .iter()
        .fold(String::with_capacity(2 * N), |text, byte| {
            format!("{text}{byte:02x}")
        }))
}

/// How a signal was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// By a signal request on the SSH channel.
    Channel,
    /// By a `kill` on the host.
    Pid,
}

impl Via {
    /// The word in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Pid => "pid",
        }
    }
}

/// Whether a signal was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(into = "Option<bool>")]
pub enum SendOutcome {
    /// Nothing was sent.
    #[default]
    No,
    /// The host confirmed that it was sent.
    Yes(Via),
    /// Unknown: the connection broke, and the host can't be asked.
    Unknown,
}

impl SendOutcome {
    pub fn via(self) -> Option<Via> {
        match self {
            Self::Yes(via) => Some(via),
            Self::No | Self::Unknown => None,
        }
    }
}

impl From<SendOutcome> for Option<bool> {
    fn from(sent: SendOutcome) -> Self {
        match sent {
            SendOutcome::No => Some(false),
            SendOutcome::Yes(_) => Some(true),
            SendOutcome::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_to_their_alphabet() {
        let id = JobId::random().unwrap();
        assert_eq!(id.as_str().parse::<JobId>().unwrap(), id);
        for bad in [
            "",
            "abc",
            "abcdefgi",
            "ABCDEFGH",
            "../../et",
            "abcdefghj",
            "abcdefg\n",
        ] {
            assert!(bad.parse::<JobId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_job_on_its_host() {
        for (word, host, id) in [
            ("web1/abcdefgh", "web1", "abcdefgh"),
            ("local/01234567", "local", "01234567"),
            ("bob@web1:2222/abcdefgh", "bob@web1:2222", "abcdefgh"),
            (
                "ssh://bob@[::1]:22/abcdefgh",
                "ssh://bob@[::1]:22",
                "abcdefgh",
            ),
        ] {
            let word = JobWord::parse(word).unwrap();
            let (there, job) = word.host_and_id().unwrap();
            assert_eq!(
                (there.to_string().as_str(), job.as_str()),
                (host, id),
                "{word:?}"
            );
        }
        for word in [
            "abcdefgh",
            "train",
            "",
            "/",
            "web1/",
            "web1/..",
            "../../etc",
            "web1/abcdefgi",
            "web1/abcdefgh/",
            "$(id)/$(id)",
        ] {
            assert_eq!(JobWord::parse(word).unwrap().host_and_id(), None, "{word}");
        }
        for word in [
            "/abcdefgh",
            "$(id)/abcdefgh",
            "../../abcdefgh",
            "a/../abcdefgh",
            "-x/abcdefgh",
        ] {
            assert!(JobWord::parse(word).is_err(), "{word}");
        }
    }

    #[test]
    fn names_keep_to_theirs() {
        for good in ["a", "train-1.2_x", "0", &"a".repeat(64)] {
            assert!(good.parse::<JobName>().is_ok(), "{good:?}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", "a\n", &"a".repeat(65)] {
            assert!(bad.parse::<JobName>().is_err(), "{bad:?}");
        }
    }
}
