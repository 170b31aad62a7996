//! Renders a script: the shell files of this directory, with their values quoted, in one frame.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use crate::connection::Primer;
use crate::error::{Failure, Kind};
use crate::job;

/// The text of a shell file of this directory.
macro_rules! file {
    ($name:literal) => {
        include_str!(concat!($name, ".sh"))
    };
}
pub(super) use file;

/// The marker of one script's answer: 128 random bits, which neither the login's output nor a job can know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The files that scripts share, each after those that it uses. They only define functions and set variables that begin
/// with `rs_`, so a shell can be given all of them before its first script.
const SHARED: [&str; 7] = [
    file!("frame"),
    file!("host"),
    file!("environ"),
    file!("process"),
    file!("lock"),
    file!("look"),
    file!("deliver"),
];
/// Number of shared files that a script needs to start a job.
pub(super) const START_FILES: usize = 5;
/// Number of shared files that a script about existing jobs needs.
pub(super) const JOB_FILES: usize = 6;
/// Number of shared files that a script needs to signal jobs.
pub(super) const SIGNAL_FILES: usize = 7;

/// The shared functions, sent to a shell while it waits for its first script.
pub fn primer() -> Primer {
    let files = SHARED.iter().copied().flat_map(stripped);
    let text = b"{\n"
        .iter()
        .copied()
        .chain(files)
        .chain(*b"rs_prepare\n}\n")
        .collect();
    Primer {
        text,
        mark: PRIMER_MARK,
    }
}

/// Identifies the shared functions of this version of rsig: FNV-1a of the files.
const PRIMER_MARK: u64 = {
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
pub(super) enum Form {
    /// In a subshell without input: its changes are discarded when it ends, so the shell can be used again.
    Pooled,
    /// The same, but with the shell's input. If it succeeds, it has read that to an agreed last line.
    Stream,
    /// In the shell itself, as its last script: any input left over would be run as commands.
    Last,
}

/// A script that is being put together.
pub struct Script {
    /// Number of shared files that it needs.
    pub(super) needs: usize,
    pub(super) body: Vec<u8>,
    nonce: Nonce,
    pub(super) form: Form,
    /// Commands that its shell runs before it, and whose effects stay for later scripts.
    pub(super) ahead: &'static str,
}

/// In ksh93, `( ... )` is a separate process only once a limit is set in it. Without that, a signal to the script would
/// end the shell.
const OWN_PROCESS: &str = r#"case ${KSH_VERSION-} in *93*) ulimit -t "$(ulimit -t)" ;; esac"#;

impl Script {
    /// A script that uses the first `needs` of the shared files.
    pub(super) fn begin(needs: usize) -> Result<Self, Failure> {
        let mut script = Self {
            needs,
            body: Vec::new(),
            nonce: Nonce(job::random_hex::<16>()?),
            form: Form::Pooled,
            ahead: "rs_prepare",
        };
        script.call("rs_host", &[])?;
        Ok(script)
    }

    /// Sets the directory of all jobs, if it is not the default in the home directory.
    pub(super) fn set_base(&mut self, jobs_dir: Option<&str>) -> Result<(), Failure> {
        jobs_dir.map_or(Ok(()), |dir| self.set("rs_base", dir))
    }

    /// Adds a file without comments and indentation.
    pub(super) fn include(&mut self, file: &str) {
        self.body.extend_from_slice(&stripped(file));
    }

    pub(super) fn set(&mut self, name: &str, value: impl AsRef<OsStr>) -> Result<(), Failure> {
        let value = quoted(value.as_ref())?;
        for part in [name.as_bytes(), b"=", &value, b"\n"] {
            self.body.extend_from_slice(part);
        }
        Ok(())
    }

    /// Adds a call of a function.
    pub(super) fn call(&mut self, function: &str, arguments: &[&str]) -> Result<(), Failure> {
        self.body.extend_from_slice(function.as_bytes());
        for argument in arguments {
            self.body.push(b' ');
            self.body.extend_from_slice(&quoted(OsStr::new(argument))?);
        }
        self.body.push(b'\n');
        Ok(())
    }

    /// The beginning of a file that a script writes, to be run by another shell.
    pub(super) fn nested() -> Self {
        Self {
            needs: 0,
            body: b"{\n".to_vec(),
            nonce: Nonce(String::new()),
            form: Form::Last,
            ahead: "",
        }
    }

    pub fn nonce(&self) -> &Nonce {
        &self.nonce
    }

    /// The text to send to a shell. `primed` is the mark of the shared files that the shell was given before.
    ///
    /// It is one compound command. The shell reads it whole before it runs any of it, so nothing in it can consume the
    /// rest from standard input.
    pub fn text(&self, primed: Option<u64>) -> Vec<u8> {
        let nonce = self.nonce.as_str();
        let primed = primed == Some(PRIMER_MARK);
        let begin = match self.form {
            Form::Last => format!("{{\nrs_nonce={nonce}\n"),
            Form::Pooled | Form::Stream => {
                let ahead = if primed { self.ahead } else { "" };
                format!("{{\n{ahead}\nrs_nonce={nonce}\n(\n{OWN_PROCESS}\n")
            }
        };
        let done = format!("printf '\\001{nonce} done\\n'\n}}\n");
        let end = match self.form {
            Form::Last => "rs_end\n}\n".to_owned(),
            Form::Pooled => format!("rs_end\n) </dev/null || exit\n{done}"),
            Form::Stream => format!("rs_end\n) || exit\n{done}"),
        };
        let mut text = format!("{begin}set +efuxCv\n").into_bytes();
        if !primed {
            text.extend(SHARED.iter().take(self.needs).copied().flat_map(stripped));
        }
        text.extend_from_slice(&self.body);
        text.extend_from_slice(end.as_bytes());
        text
    }

    /// What the shell prints when it is ready for the next script; `None` if this script is its last.
    pub fn done(&self) -> Option<String> {
        (self.form != Form::Last).then(|| format!("\x01{} done\n", self.nonce.as_str()))
    }
}

/// A shell file without indentation, comment lines and empty lines: some shells read a script byte by byte.
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

/// A value as a word of the shell, in single quotes if needed.
pub(super) fn quoted(value: &OsStr) -> Result<Vec<u8>, Failure> {
    shlex::bytes::try_quote(value.as_bytes())
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Failure::new(Kind::Usage, "a NUL byte can't be passed to a host"))
}

/// The scripts, one function each.
impl Script {
    pub(super) fn about_jobs() -> Result<Self, Failure> {
        let mut script = Self::begin(JOB_FILES)?;
        script.call("about_jobs", &[])?;
        Ok(script)
    }

    pub(super) fn call_each(&mut self, function: &str, places: &[&str]) -> Result<(), Failure> {
        places
            .iter()
            .enumerate()
            .try_for_each(|(index, place)| self.call(function, &[&index.to_string(), place]))
    }
}

/// A boolean as an argument for a script.
pub(super) fn flag(on: bool) -> &'static str {
    if on { "1" } else { "0" }
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
    fn a_nul_is_refused() {
        assert!(quoted(OsStr::from_bytes(b"a\0b")).is_err());
    }
}
