//! The script that starts a job.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::answer::{AnswerReader, Listener, answer_timeout, unexpected};
use super::observation::mark;
use super::script::{Form, JOB_FILES, SIGNAL_FILES, START_FILES, Script, file, quoted};
use crate::connection::Shell;
use crate::error::{Failure, Kind};
use crate::escape::printable;
use crate::job::{Epoch, JobId};

/// Size of the pieces in which input is sent, in bytes.
const PIECE_SIZE: usize = 64 << 10;

/// A job to start.
#[derive(Clone)]
pub struct StartRequest<'a> {
    pub id: &'a JobId,
    /// The secret that marks the job's processes.
    pub cookie: &'a str,
    /// The job's description in its directory on the host: one line of JSON. See [`super::discover::JobMetadata`].
    pub meta: &'a str,
    /// The directory of all jobs, if not the default in the home directory.
    pub jobs_dir: Option<&'a str>,
    /// The command and its arguments.
    pub command: &'a [OsString],
    /// Variables to add to its environment.
    pub env: &'a [(String, OsString)],
    /// The directory that it starts in; by default the home directory.
    pub directory: Option<OsString>,
    /// The default, and the base of a relative `directory`, is the shell's directory instead of the home directory.
    pub stays: bool,
    /// Standard error goes to the same place as standard output.
    pub merge: bool,
    /// Its time limit.
    pub timeout: Option<Duration>,
    /// Its input, which is copied to the host before it starts.
    pub input: Option<&'a Input>,
    /// It gets its input by `rsig send`.
    pub open: bool,
    /// Only the newest part of each output stream is kept.
    pub log_max: Option<&'a LogMax>,
    /// Its streams are transferred to the client, which runs it in the foreground.
    pub spool: Option<Spool>,
    /// The number of bytes at the end of each stream that are transferred once it has ended.
    pub last: Option<u64>,
    /// The host ends the job if its client is gone for too long.
    pub tether: Option<Tether>,
}

impl StartRequest<'_> {
    /// The streams that are pipes, of `out`, `err` and `in`.
    fn pipes(&self) -> Vec<&'static str> {
        let outputs = self.spool.is_some() || self.log_max.is_some();
        let input = self.open || self.spool.is_some_and(|spool| spool.input);
        let each = [
            ("out", outputs),
            ("err", outputs && !self.merge),
            ("in", input),
        ];
        each.into_iter()
            .filter_map(|(stream, is_pipe)| is_pipe.then_some(stream))
            .collect()
    }

    /// Whether the script continues with the job's streams.
    fn is_followed(&self) -> bool {
        self.spool.is_some() || self.last.is_some()
    }

    /// The FIFOs of these streams, and the one that wakes the script that follows them (`bell`).
    fn fifos(&self) -> Vec<String> {
        let bell = self.is_followed().then(|| "bell".to_owned());
        let pipes = self.pipes().into_iter();
        let busy = |stream| self.log_max.is_some() && stream != "in";
        pipes
            .flat_map(|stream| {
                let busy = busy(stream).then(|| format!("{stream}.busy"));
                [Some(format!("{stream}.pipe")), busy].into_iter().flatten()
            })
            .chain(bell)
            .collect()
    }

    /// How much of each output stream is kept, as the user wrote it.
    fn ring(&self) -> &str {
        self.log_max.map_or("", |max| max.word.as_str())
    }
}

/// The whole input of a job.
#[derive(Debug)]
pub struct Input {
    file: File,
    size: u64,
}

impl Input {
    /// The first `size` bytes of a regular file.
    pub fn new(file: File, size: u64) -> Self {
        Self { file, size }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Sends input to a script that requests it.
pub(super) struct InputSender<'a> {
    input: Option<&'a Input>,
    asked: bool,
    sent: u64,
    /// Why the input can't be read. The script then gets an early end of file.
    pub(super) unread: Option<std::io::Error>,
}

impl<'a> InputSender<'a> {
    pub(super) fn new(input: Option<&'a Input>) -> Self {
        Self {
            input,
            asked: false,
            sent: 0,
            unread: None,
        }
    }

    /// Processes a line of the script. Returns whether it requests the input.
    pub(super) fn asks(&mut self, line: &str) -> bool {
        let asks = line == "input" && self.input.is_some();
        self.asked |= asks;
        asks
    }

    /// Whether there is more to send.
    pub(super) fn is_open(&self) -> bool {
        let size = self.input.map_or(0, Input::size);
        self.asked && self.sent < size && self.unread.is_none()
    }

    /// Maximum time to send the input: even a slow connection carries some kilobytes a second.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.input.map_or(0, Input::size) >> 12)
    }

    /// The next piece.
    pub(super) fn piece(&mut self) -> Option<Vec<u8>> {
        let input = self.input.filter(|_| self.is_open())?;
        let size = usize::try_from(input.size - self.sent)
            .unwrap_or(PIECE_SIZE)
            .min(PIECE_SIZE);
        let mut piece = vec![0; size];
        match input.file.read_exact_at(&mut piece, self.sent) {
            Ok(()) => {
                self.sent += size as u64;
                Some(piece)
            }
            Err(error) => {
                self.unread = Some(error);
                None
            }
        }
    }
}

/// How the streams of a job in the foreground are transferred.
#[derive(Clone, Copy, Debug)]
pub struct Spool {
    /// Whether the job gets input.
    pub input: bool,
    /// Maximum number of undelivered bytes of each output stream on the host.
    pub limit: u64,
}

/// How much of a job's output is kept, in bytes and as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogMax {
    pub bytes: u64,
    pub word: String,
}

/// A job's tether: the host ends the job when there is no contact with its client.
#[derive(Clone, Debug)]
pub struct Tether {
    /// Maximum time without contact.
    pub timeout: std::time::Duration,
    /// The client's process if it is on the same machine as the job: its pid and its start time (field 22 of proc(5)'s
    /// stat, or as ps(1) prints it). `None` if the client sends heartbeats.
    pub holder: Option<(u32, String)>,
}

/// A host's report on a job that it has started.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// The pid of the job's first process.
    pub pid: u32,
    /// The job's process group.
    pub pgid: u32,
    /// What `uname -s` says.
    pub os: String,
    /// See [`crate::job::Record`] for these three.
    pub birth: String,
    pub boot: String,
    pub machine: String,
    /// When the job started.
    #[allow(
        clippy::struct_field_names,
        reason = "the name that it has in every record"
    )]
    pub started_at: Epoch,
    /// The job's directory.
    pub dir: String,
    /// The host ends processes of a login when it logs out, and the job could not be protected from that.
    pub ends_at_logout: bool,
}

/// Starts a job on a host.
pub fn start(
    host: &str,
    shell: &mut dyn Shell,
    request: &StartRequest,
) -> Result<Result<Started, Failure>, Failure> {
    Ok(start_and_follow(host, shell, request)?.map(|(started, _)| started))
}

/// Cancels a start that was given up: the job does not start later, or is ended.
pub fn cancel(host: &str, shell: &mut dyn Shell, place: &str) -> Result<(), Failure> {
    let script = Script::cancel(place)?;
    super::answer::run_script(
        host,
        shell,
        &script,
        Some(answer_timeout()),
        &mut |_: &str| Ok(()),
    )
    .map(drop)
}

/// The script of [`cancel`] as text, to be run without reading its answer.
pub fn cancelling_script(place: &str) -> Result<String, Failure> {
    let text = Script::cancel(place)?.text(None);
    String::from_utf8(text).map_err(|error| Failure::new(Kind::Failed, error.to_string()))
}

/// Asks the shell's pool to keep a relay for a job that this shell has just started.
pub fn keep_relay(shell: &mut dyn Shell, id: &JobId, started: &Started) -> Result<(), Failure> {
    let word = format!("relay-{}", crate::job::random_hex::<8>()?);
    let text = Script::relay(&started.dir, &word)?.text(shell.primed());
    // A path that is not UTF-8 can't be sent as text; then signals go by pid.
    if let Ok(text) = String::from_utf8(text) {
        shell.keep_relay(id, word, text);
    }
    Ok(())
}

/// As [`start`], but if the job's streams are transferred, the answer continues with them in the returned [`AnswerReader`].
pub fn start_and_follow(
    host: &str,
    shell: &mut dyn Shell,
    request: &StartRequest,
) -> Result<Result<(Started, AnswerReader), Failure>, Failure> {
    let script = Script::start(request)?;
    let mut starting = StartListener {
        host,
        upload: InputSender::new(request.input),
        started: Started::default(),
        refusal: None,
        has_begun: false,
    };
    let sending = starting.upload.patience();
    let mut hearing = AnswerReader::begin(host, shell, &script)?;
    hearing.read_to_end(
        host,
        shell,
        Some(answer_timeout() * 2 + sending),
        &mut starting,
    )?;
    let is_complete = starting.is_complete();
    let StartListener {
        started,
        refusal,
        upload,
        ..
    } = starting;
    if let Some(error) = upload.unread {
        return Ok(Err(Failure::new(
            Kind::Failed,
            format!("{host}: the job's input can't be read: {error}"),
        )));
    }
    match refusal {
        Some(refusal) => Ok(Err(refusal)),
        None if is_complete => {
            // The answer continues only if the job's streams are transferred.
            if !request.is_followed() {
                hearing.require_whole(host)?;
            }
            Ok(Ok((started, hearing)))
        }
        None => Err(unexpected(host, b"neither started nor refused")),
    }
}

/// The answers about a job that is being started, and the upload of its input.
struct StartListener<'a> {
    host: &'a str,
    upload: InputSender<'a>,
    started: Started,
    refusal: Option<Failure>,
    /// The host has reported that the job has started.
    has_begun: bool,
}

impl StartListener<'_> {
    /// Whether the host has reported that the job has started, and where its files are.
    fn is_complete(&self) -> bool {
        self.has_begun && !self.started.dir.is_empty()
    }
}

impl Listener for StartListener<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        let (host, started) = (self.host, &mut self.started);
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            _ if self.upload.asks(line) => {}
            "started" => {
                *started = Started {
                    ends_at_logout: started.ends_at_logout,
                    dir: std::mem::take(&mut started.dir),
                    ..Started::parse(rest).ok_or_else(|| unexpected(host, line.as_bytes()))?
                };
                self.has_begun = true;
            }
            "directory" if rest.starts_with('/') => {
                rest.clone_into(&mut started.dir);
            }
            "refused" => self.refusal = Some(refused(host, rest)),
            "warning" if rest == "logind" => started.ends_at_logout = true,
            _ => return Err(unexpected(host, line.as_bytes())),
        }
        Ok(())
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        self.upload.piece().filter(|_| self.refusal.is_none())
    }

    fn is_done(&self) -> bool {
        self.upload.unread.is_some() || self.refusal.is_some()
    }

    fn pace(&self) -> Option<Duration> {
        self.upload.is_open().then_some(Duration::ZERO)
    }
}

impl Started {
    /// Parses `PID PGID BIRTH BOOT SYSTEM EPOCH MACHINE NODE`.
    fn parse(fields: &str) -> Option<Self> {
        let words: Vec<&str> = fields.splitn(8, ' ').collect();
        let &[pid, pgid, birth, boot, os, epoch, machine, _] = words.as_slice() else {
            return None;
        };
        Some(Self {
            pid: pid.parse().ok()?,
            pgid: pgid.parse().ok()?,
            os: os.to_owned(),
            birth: mark(birth)??,
            boot: mark(boot)?.unwrap_or_else(|| "-".to_owned()),
            machine: mark(machine)??,
            started_at: epoch.parse().ok()?,
            ..Self::default()
        })
    }
}

/// The error for a job that a host did not start. Nothing is left behind on the host.
fn refused(host: &str, rest: &str) -> Failure {
    let (kind, why) = rest.split_once(' ').unwrap_or((rest, ""));
    let why = printable(why, 300);
    match kind {
        "missing" => Failure::new(
            Kind::CommandMissing,
            format!("{host}: command not found: {why}"),
        ),
        "denied" => Failure::new(Kind::CommandDenied, format!("{host}: {why}")),
        "directory" => Failure::new(Kind::Failed, format!("{host}: {why}")),
        "home" => Failure::new(
            Kind::Failed,
            format!(
                "{host}: the job's files can't be written there: {why}; --jobs-dir DIR puts them elsewhere"
            ),
        ),
        "disk" => Failure::new(
            Kind::Failed,
            format!(
                "{host}: the job's files can't be written there (is the disk or a quota full?): {why}; --jobs-dir DIR puts them elsewhere"
            ),
        ),
        "session" => Failure::new(
            Kind::Failed,
            format!("{host}: a job can't be detached there: {why}"),
        ),
        _ => Failure::new(
            Kind::Failed,
            format!("{host}: the job did not start: {why}"),
        ),
    }
}

impl Script {
    /// Starts a job.
    pub(super) fn start(request: &StartRequest) -> Result<Self, Failure> {
        let mut script = Self::begin(if request.is_followed() {
            JOB_FILES
        } else {
            START_FILES
        })?;
        script.ahead = "rs_prepare; rs_remember";
        script.set_base(request.jobs_dir)?;
        script.set("rs_id", request.id.as_str())?;
        script.set("rs_meta", request.meta)?;
        script.set("rs_cookie", request.cookie)?;
        script.set("rs_stays", if request.stays { "1" } else { "" })?;
        script.set("rs_more", if request.is_followed() { "next" } else { "" })?;
        script.set(
            "rs_timeout",
            request.timeout.map(seconds).unwrap_or_default(),
        )?;
        script.set(
            "rs_size",
            request
                .input
                .map(|input| input.size().to_string())
                .unwrap_or_default(),
        )?;
        let given: Vec<&str> = request.env.iter().map(|(name, _)| name.as_str()).collect();
        script.set("rs_given", given.join(" "))?;
        script.set("rs_ring", request.ring())?;
        script.set("rs_fifos", request.fifos().join(" "))?;
        script.set("rs_supervise", OsStr::from_bytes(&supervisor(request)?))?;
        script.set("rs_job", OsStr::from_bytes(&job_script(request)?))?;
        script.include(file!("spawn"));
        script.form = match (request.input.is_some(), request.is_followed()) {
            (true, _) => Form::Last,
            (false, true) => Form::Stream,
            (false, false) => Form::Pooled,
        };
        if request.is_followed() {
            script.call("about_jobs", &[])?;
            script.include(file!("stream"));
            let last = request.last.map(|last| last.to_string());
            script.set("rs_wanted", last.unwrap_or_default())?;
            let beats = |tether: &Tether| tether.holder.is_none();
            let beats = request.tether.as_ref().is_some_and(beats);
            script.set("rs_beats", if beats { "1" } else { "" })?;
            script
                .body
                .extend_from_slice(b"run_started ${rs_why#begun }\n");
        }
        Ok(script)
    }

    /// Cancels a start, or ends its job.
    pub(super) fn cancel(place: &str) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("cancel"));
        script.call("cancel", &[place])?;
        Ok(script)
    }

    /// Becomes the relay of the job in directory `dir`. The keeper sets rs_number.
    pub(super) fn relay(dir: &str, word: &str) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.needs = SIGNAL_FILES;
        script.form = Form::Last;
        script.set("rs_relay", word)?;
        script.call("place", &[dir])?;
        script
            .body
            .extend_from_slice(b"enter \"$dir\" && [ -p ended ] || rs_end\n");
        script.include(file!("relay"));
        Ok(script)
    }
}

/// A time for sleep(1): in whole seconds if possible, since POSIX has no others.
fn seconds(time: Duration) -> String {
    match time.subsec_millis() {
        0 if time.as_secs() > 0 => time.as_secs().to_string(),
        milliseconds => format!("{}.{:03}", time.as_secs(), milliseconds.max(1)),
    }
}

/// The script of a job's supervisor.
fn supervisor(request: &StartRequest) -> Result<Vec<u8>, Failure> {
    let mut script = Script::nested();
    let pipes = request.pipes();
    let has = |stream| pipes.contains(&stream);
    let (output, errors) = match (has("out"), request.merge) {
        (true, true) => ("out.pipe", "out.pipe"),
        (true, false) => ("out.pipe", "err.pipe"),
        (false, true) => ("out", "out"),
        (false, false) => ("out", "err"),
    };
    let input = match (request.input, has("in")) {
        (Some(_), _) => "input",
        (None, true) => "in.pipe",
        (None, false) => "/dev/null",
    };
    let mut beside = Vec::new();
    script.set("rs_input", input)?;
    script.set("rs_output", output)?;
    script.set("rs_errors", errors)?;
    script.include(file!("host"));
    script.include(file!("process"));
    if request.timeout.is_some() {
        beside.push("rs_guard");
        script.include(file!("watch"));
    }
    if !pipes.is_empty() {
        beside.push("rs_spool");
        let ring = request.ring();
        script.set("rs_ring", ring)?;
        let taker = if ring.is_empty() {
            "rs_take"
        } else {
            "rs_take_ring"
        };
        script.set("rs_taker", taker)?;
        let limit = request.spool.map_or(0, |spool| spool.limit);
        script.set("rs_pipes", pipes.join(" "))?;
        script.set("rs_open", if request.open { "1" } else { "" })?;
        script.set("rs_limit", limit.to_string())?;
        script.include(file!("spool"));
    }
    if let Some(max) = request.log_max {
        script.set("rs_keep", max.bytes.to_string())?;
        script.include(file!("ring"));
    }
    if let Some(tether) = &request.tether {
        beside.push("rs_tie");
        let (holder, birth) = tether
            .holder
            .clone()
            .map_or_else(Default::default, |(pid, birth)| (pid.to_string(), birth));
        script.set("rs_tether", tether.timeout.as_secs().max(1).to_string())?;
        script.set("rs_holder", holder)?;
        script.set("rs_holder_birth", birth)?;
        script.include(file!("tether"));
    }
    script.set("rs_beside", beside.join(" "))?;
    script.include(file!("supervise"));
    script.body.extend_from_slice(b"exit\n}");
    Ok(script.body)
}

/// The script that becomes the job.
fn job_script(request: &StartRequest) -> Result<Vec<u8>, Failure> {
    let mut script = Script::nested();
    script.set(
        "rs_directory",
        request.directory.as_deref().unwrap_or_default(),
    )?;
    script.include(file!("host"));
    script.include(file!("process"));
    script.include(file!("job"));
    let own = [
        ("RSIG_JOB", OsStr::new(request.id.as_str())),
        ("RSIG_COOKIE", OsStr::new(request.cookie)),
    ];
    let given = request
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_os_str()));
    for (name, value) in given.chain(own) {
        script.set(name, value)?;
        script
            .body
            .extend_from_slice(format!("export {name}\n").as_bytes());
    }
    script.body.extend_from_slice(b"rs_start");
    for word in request.command {
        script.body.push(b' ');
        script.body.extend_from_slice(&quoted(word)?);
    }
    script.body.extend_from_slice(b"\n}");
    Ok(script.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_for_sleep() {
        for (milliseconds, text) in [
            (0, "0.001"),
            (1, "0.001"),
            (250, "0.250"),
            (1000, "1"),
            (61_500, "61.500"),
        ] {
            assert_eq!(seconds(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!(seconds(Duration::from_nanos(1)), "0.001");
    }

    #[test]
    fn a_start_is_told_in_two_lines() {
        let began = "started 5 5 77 b0 Linux 1600000000 m:1 web1";
        for (lines, dir) in [
            (&[][..], None),
            (&[began], None),
            (&[began, began], None),
            (&["directory /d"], None),
            (&["directory /d", "directory /d"], None),
            (&[began, "directory /d"], Some("/d")),
            (&["directory /d", began], Some("/d")),
        ] {
            let mut starting = StartListener {
                host: "h",
                upload: InputSender::new(None),
                started: Started::default(),
                refusal: None,
                has_begun: false,
            };
            lines.iter().for_each(|line| starting.line(line).unwrap());
            let found = starting.is_complete().then_some(&*starting.started.dir);
            assert_eq!(found, dir, "{lines:?}");
        }
    }
}
