//! Renders a script: the shell files of this folder, with their values quoted, in one frame.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use super::look::Streams;
use super::output::{At, Wanted};
use super::signal::{Attempt, JobPlan, Plan};
use super::start::{Order, Spool};
use crate::connection::Primer;
use crate::error::{Failure, Kind};
use crate::job::{self, JobId, Target};

/// A file of this folder.
macro_rules! file {
    ($name:literal) => {
        include_str!(concat!($name, ".sh"))
    };
}

/// The marker of one script's answer: 128 random bits, which neither a login's chatter nor a job can know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    /// As text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The files that scripts share, each behind those that it uses. They define functions, and set nothing but names with
/// `rs_`, so that a shell can be given all of them before there is a script.
const SHARED: [&str; 6] = [
    file!("frame"),
    file!("host"),
    file!("process"),
    file!("lock"),
    file!("look"),
    file!("deliver"),
];
/// How many of them a script needs that starts a job.
const TO_START: usize = 4;
/// How many of them one about jobs needs.
const ABOUT_JOBS: usize = 5;
/// And one that signals them.
const TO_SIGNAL: usize = 6;

/// What a shell is given while it waits for its script.
pub fn primer() -> Primer {
    let files = SHARED.iter().copied().flat_map(stripped);
    let text = b"{\n".iter().copied().chain(files).chain(*b"}\n").collect();
    Primer { text, mark: PRIMED }
}

/// Tells what this rsig's shells are given ahead from what another one's are: FNV-1a of the files.
const PRIMED: u64 = {
    let (mut hash, mut file) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while file < SHARED.len() {
        let (bytes, mut at) = (SHARED[file].as_bytes(), 0);
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        file += 1;
    }
    hash
};

/// How a script runs in its shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// In a subshell without input: what it changes is gone when it ends, and the shell is as good as before.
    Pooled,
    /// The same with the shell's input, which it has read to an agreed line when it succeeds.
    Stream,
    /// In the shell itself, as its last script: input that is left over would be taken for commands.
    Last,
}

/// A script on its way to being sent.
pub struct Script {
    /// How many of the shared files it needs.
    needs: usize,
    body: Vec<u8>,
    nonce: Nonce,
    form: Form,
}

/// `( ... )` is no process of its own in ksh93 until a limit is set: a signal to the script would end the shell.
const OWN_PROCESS: &str = r#"case ${KSH_VERSION-} in *93*) ulimit -t "$(ulimit -t)" ;; esac"#;

impl Script {
    /// A script that uses the first few of the shared files.
    fn begin(needs: usize) -> Result<Self, Failure> {
        let mut script = Self {
            needs,
            body: Vec::new(),
            nonce: Nonce(job::random_hex::<16>()?),
            form: Form::Pooled,
        };
        script.call("rs_host", &[])?;
        Ok(script)
    }

    /// Adds a file, without what only its readers need.
    fn include(&mut self, file: &str) {
        self.body.extend_from_slice(&stripped(file));
    }

    fn set(&mut self, name: &str, value: impl AsRef<OsStr>) -> Result<(), Failure> {
        let value = quoted(value.as_ref())?;
        for part in [name.as_bytes(), b"=", &value, b"\n"] {
            self.body.extend_from_slice(part);
        }
        Ok(())
    }

    /// Adds a call of one of the files' functions.
    fn call(&mut self, function: &str, arguments: &[&str]) -> Result<(), Failure> {
        self.body.extend_from_slice(function.as_bytes());
        for argument in arguments {
            self.body.push(b' ');
            self.body.extend_from_slice(&quoted(OsStr::new(argument))?);
        }
        self.body.push(b'\n');
        Ok(())
    }

    /// The marker of its answer.
    pub fn nonce(&self) -> &Nonce {
        &self.nonce
    }

    /// What to send to a shell; `primed` if the shell has been given the shared files before.
    ///
    /// One compound command, which the shell has read whole before it runs any of it, so nothing in it can take the
    /// rest of it from standard input.
    pub fn text(&self, primed: Option<u64>) -> Vec<u8> {
        let nonce = self.nonce.as_str();
        let begin = match self.form {
            Form::Last => format!("{{\nrs_nonce={nonce}\n"),
            Form::Pooled | Form::Stream => format!("{{\nrs_nonce={nonce}\n(\n{OWN_PROCESS}\n"),
        };
        let end = match self.form {
            Form::Last => "rs_end\n}\n".to_owned(),
            Form::Pooled => format!("rs_end\n) </dev/null\nprintf '\\001{nonce} done\\n'\n}}\n"),
            Form::Stream => format!("rs_end\n) || exit\nprintf '\\001{nonce} done\\n'\n}}\n"),
        };
        let mut text = format!("{begin}set +efuxCv\n").into_bytes();
        if primed != Some(PRIMED) {
            text.extend(SHARED.iter().take(self.needs).copied().flat_map(stripped));
        }
        text.extend_from_slice(&self.body);
        text.extend_from_slice(end.as_bytes());
        text
    }

    /// What the shell prints when it is ready for the next script; `None` for a script that is its last.
    pub fn done(&self) -> Option<String> {
        (self.form != Form::Last).then(|| format!("\x01{} done\n", self.nonce.as_str()))
    }
}

/// A shell file without indentation and comment lines: some shells read a script byte by byte.
fn stripped(file: &str) -> Vec<u8> {
    let lines = file
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .flat_map(|line| [line.as_bytes(), b"\n"])
        .flatten()
        .copied()
        .collect()
}

/// A value as a word of the shell, in single quotes where it needs any.
fn quoted(value: &OsStr) -> Result<Vec<u8>, Failure> {
    shlex::bytes::try_quote(value.as_bytes())
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Failure::new(Kind::Usage, "a NUL byte can't be passed to a host"))
}

/// The scripts, one function each.
impl Script {
    /// Starts a job.
    pub(super) fn start(order: &Order) -> Result<Self, Failure> {
        let mut script = Self::begin(if order.spool.is_some() {
            ABOUT_JOBS
        } else {
            TO_START
        })?;
        script.set("rs_id", order.id.as_str())?;
        script.set("rs_meta", order.meta)?;
        script.set("rs_cookie", order.cookie)?;
        script.set("rs_more", if order.spool.is_some() { "next" } else { "" })?;
        script.set("rs_timeout", order.timeout.map(seconds).unwrap_or_default())?;
        script.set(
            "rs_size",
            order
                .input
                .map(|input| input.size().to_string())
                .unwrap_or_default(),
        )?;
        let given: Vec<&str> = order.env.iter().map(|(name, _)| name.as_str()).collect();
        script.set("rs_given", given.join(" "))?;
        script.set("rs_supervise", OsStr::from_bytes(&supervisor(order)?))?;
        script.set("rs_job", OsStr::from_bytes(&job_script(order)?))?;
        script.include(file!("spawn"));
        script.form = match (order.input.is_some(), order.spool.is_some()) {
            (true, _) => Form::Last,
            (false, true) => Form::Stream,
            (false, false) => Form::Pooled,
        };
        if order.spool.is_some() {
            script.call("about_jobs", &[])?;
            script.include(file!("stream"));
            script
                .body
                .extend_from_slice(b"place=$rs_made\nrun_along 0 0\n");
        }
        Ok(script)
    }

    /// Prevents a start, or ends its job.
    pub(super) fn cancel(id: &str) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("cancel"));
        script.call("cancel", &[id])?;
        Ok(script)
    }

    /// Becomes the relay of the job in that directory. Its keeper sets rs_number.
    pub(super) fn relay(dir: &str, word: &str) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.needs = TO_SIGNAL;
        script.form = Form::Last;
        script.set("rs_relay", word)?;
        script.call("place", &[dir])?;
        script
            .body
            .extend_from_slice(b"enter \"$dir\" && [ -p ended ] || rs_end\n");
        script.include(file!("relay"));
        Ok(script)
    }

    /// Signals jobs and waits for them.
    pub(super) fn signal(plan: &Plan) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.needs = TO_SIGNAL;
        if plan.jobs.iter().any(|job| job.target == Target::Tree) {
            script.include(file!("tree"));
        }
        script.include(if plan.wait.is_some() {
            file!("await")
        } else {
            file!("see")
        });
        for (index, job) in plan.jobs.iter().enumerate() {
            match (&job.first, plan.wait) {
                (Some(attempt), _) => script.send(&[], index, job, attempt)?,
                // Nothing to send, since it was confirmed before the connection broke.
                (None, None) => script.call("see", &[&index.to_string(), &job.job_dir])?,
                (None, Some(_)) => {
                    let tree = flag(job.target == Target::Tree);
                    script.call("watch", &[&index.to_string(), &job.job_dir, tree])?;
                }
            }
        }
        let Some(wait) = plan.wait else {
            script.set("rs_last", "settle")?;
            return Ok(script);
        };
        script.call("settle", &[])?;
        script.call("await", &[&wait.as_millis().to_string()])?;
        if plan.jobs.iter().any(|job| job.then.is_some()) {
            for (index, job) in plan.jobs.iter().enumerate() {
                if let Some(attempt) = &job.then {
                    script.send(&["if_left"], index, job, attempt)?;
                }
            }
            script.call("settle", &[])?;
            script.call("await", &[&plan.then_wait.as_millis().to_string()])?;
        }
        script.call("remaining", &[])?;
        Ok(script)
    }

    /// Adds a call that sends a signal, with these words before it.
    fn send(
        &mut self,
        before: &[&str],
        index: usize,
        job: &JobPlan,
        attempt: &Attempt,
    ) -> Result<(), Failure> {
        let function = match job.target {
            Target::Tree => "tree",
            Target::Group | Target::Process => "deliver",
        };
        let signal = attempt.signal;
        let number = signal
            .number()
            .map_or_else(|| "-".to_owned(), |number| number.to_string());
        let words = [
            function,
            &index.to_string(),
            &job.job_dir,
            &attempt.claim,
            &signal.name(),
            &number,
            &signal.wire(),
            job.target.word(),
            flag(attempt.wake),
            flag(attempt.retry),
        ];
        let words = [before, &words].concat();
        self.call(words[0], &words[1..])
    }

    /// Says how jobs stand.
    pub(super) fn see(places: &[&str]) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("see"));
        script.call_each("see", places)?;
        Ok(script)
    }

    /// Says which processes a job has.
    #[cfg(feature = "serve")]
    pub(super) fn pids(place: &str) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("pids"));
        script.call_each("pids", &[place])?;
        Ok(script)
    }

    /// Tells of some jobs all that the host knows.
    pub(super) fn meet(ids: &[JobId]) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("meet"));
        script.call_each("meet", &ids.iter().map(JobId::as_str).collect::<Vec<_>>())?;
        Ok(script)
    }

    /// Tells of all jobs.
    pub(super) fn discover() -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("meet"));
        script.call("discover", &[])?;
        Ok(script)
    }

    /// Removes the files of finished jobs.
    pub(super) fn forget(places: &[&str]) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("forget"));
        script.call_each("forget", places)?;
        Ok(script)
    }

    /// Removes the files of finished jobs whose output has been read.
    pub(super) fn forget_read(places: &[&str], read: Streams) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.include(file!("forget"));
        for (index, place) in places.iter().enumerate() {
            script.call(
                "forget_read",
                &[&index.to_string(), place, flag(read.out), flag(read.err)],
            )?;
        }
        Ok(script)
    }

    /// Passes a job's output on.
    pub(super) fn tail(wanted: &Wanted, resume: Option<&At>) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        let streams = match (wanted.out, wanted.err) {
            (true, false) => "out",
            (false, true) => "err",
            _ => "out err",
        };
        let (from, count) = wanted.from.words();
        let from = if resume.is_some() { "resume" } else { from };
        let at = resume.copied().unwrap_or_default();
        script.set("out_from", at.out.to_string())?;
        script.set("err_from", at.err.to_string())?;
        script.set("inodes", format!("{} {}", at.inodes[0], at.inodes[1]))?;
        script.set("place", wanted.place)?;
        script.set("streams", streams)?;
        script.set("from", from)?;
        script.set("count", count.to_string())?;
        script.set("follow", if wanted.follow { "1" } else { "0" })?;
        if wanted.follow {
            script.form = Form::Stream;
        }
        script.include(file!("stream"));
        script.include(file!("tail"));
        Ok(script)
    }

    /// Passes a spooled job's output on.
    pub(super) fn stream(place: &str, out_at: u64, err_at: u64) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.form = Form::Stream;
        script.set("place", place)?;
        script.include(file!("stream"));
        script.call("run_along", &[&out_at.to_string(), &err_at.to_string()])?;
        Ok(script)
    }

    fn about_jobs() -> Result<Self, Failure> {
        let mut script = Self::begin(ABOUT_JOBS)?;
        script.call("about_jobs", &[])?;
        Ok(script)
    }

    fn call_each(&mut self, function: &str, places: &[&str]) -> Result<(), Failure> {
        places
            .iter()
            .enumerate()
            .try_for_each(|(index, place)| self.call(function, &[&index.to_string(), place]))
    }
}

/// A yes or no for a script.
fn flag(on: bool) -> &'static str {
    if on { "1" } else { "0" }
}

/// A time as sleep(1) takes it: whole seconds wherever they are, since POSIX knows no others.
fn seconds(time: Duration) -> String {
    match time.subsec_millis() {
        0 if time.as_secs() > 0 => time.as_secs().to_string(),
        milliseconds => format!("{}.{:03}", time.as_secs(), milliseconds.max(1)),
    }
}

/// The script of a job's supervisor.
fn supervisor(order: &Order) -> Result<Vec<u8>, Failure> {
    let mut script = Script {
        needs: 0,
        body: b"{\n".to_vec(),
        nonce: Nonce(String::new()),
        form: Form::Last,
    };
    let (output, errors) = match (order.spool.is_some(), order.merge) {
        (true, _) => ("out.pipe", "err.pipe"),
        (false, true) => ("out", "out"),
        (false, false) => ("out", "err"),
    };
    let input = match (order.input, order.spool) {
        (Some(_), _) => "input",
        (None, Some(Spool { input: true, .. })) => "in.pipe",
        (None, _) => "/dev/null",
    };
    let mut beside = Vec::new();
    script.set("rs_input", input)?;
    script.set("rs_output", output)?;
    script.set("rs_errors", errors)?;
    script.include(file!("host"));
    script.include(file!("process"));
    if order.timeout.is_some() {
        beside.push("rs_guard");
        script.include(file!("watch"));
    }
    if let Some(spool) = &order.spool {
        beside.push("rs_spool");
        script.set("rs_limit", spool.limit.to_string())?;
        script.include(file!("spool"));
    }
    if let Some(tether) = &order.tether {
        beside.push("rs_tie");
        let (holder, birth) = tether
            .holder
            .clone()
            .map_or_else(Default::default, |(pid, birth)| (pid.to_string(), birth));
        script.set("rs_tether", tether.patience.as_secs().max(1).to_string())?;
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
fn job_script(order: &Order) -> Result<Vec<u8>, Failure> {
    let mut script = Script {
        needs: 0,
        body: b"{\n".to_vec(),
        nonce: Nonce(String::new()),
        form: Form::Last,
    };
    script.set(
        "rs_directory",
        order.directory.as_deref().unwrap_or_default(),
    )?;
    script.include(file!("host"));
    script.include(file!("process"));
    script.include(file!("job"));
    let own = [
        ("RSIG_JOB", OsStr::new(order.id.as_str())),
        ("RSIG_COOKIE", OsStr::new(order.cookie)),
    ];
    let given = order
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
    for word in order.command {
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
    fn stripping_keeps_every_statement() {
        let text = stripped("# head\n\nf() {\n\t# why\n\techo '# no comment'\n}\n");
        assert_eq!(text, b"f() {\necho '# no comment'\n}\n");
    }

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
    fn a_nul_is_refused() {
        assert!(quoted(OsStr::from_bytes(b"a\0b")).is_err());
    }
}
