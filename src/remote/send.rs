//! The script that appends to a job's input.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use super::answer::{Listener, garbage, hear, patience};
use super::script::{Form, Script, TO_SIGNAL, file, flag};
use super::seen::{Seen, job_line};
use super::start::{Input, Upload};
use crate::connection::Shell;
use crate::error::Failure;
use crate::escape::printable;

/// The data to append.
pub enum Data {
    /// A few bytes, none of them NUL: sent as part of the script.
    Text(Vec<u8>),
    /// Sent after the script.
    Input(Input),
}

/// One append to a job's input.
pub struct Sending<'a> {
    /// See [`crate::job::Record::job_dir`].
    pub place: &'a str,
    /// The same for every attempt: the host appends nothing twice for one claim.
    pub claim: &'a str,
    pub data: &'a Data,
    /// The input ends after the data.
    pub eof: bool,
}

/// The result of an append.
pub enum Answer {
    /// The data is in the job's input.
    Sent,
    /// The job's input had already ended.
    Closed,
    /// The job has no input that can be appended to.
    Never,
    /// The data could not be written.
    Refused(String),
    /// The job has ended, or its state can't be determined.
    State(Seen),
}

struct Sent<'a> {
    host: &'a str,
    upload: Upload<'a>,
    answer: Option<Answer>,
}

impl Listener for Sent<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        if self.upload.asks(line) {
            return Ok(());
        }
        self.answer = Some(match line.split_once(' ').unwrap_or((line, "")) {
            ("sent", "") => Answer::Sent,
            ("closed", "") => Answer::Closed,
            ("never", "") => Answer::Never,
            ("refused", why) => Answer::Refused(printable(why, 300)),
            _ => Answer::State(job_line(self.host, line, 1)?.1),
        });
        Ok(())
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        self.upload.piece().filter(|_| self.answer.is_none())
    }

    fn is_done(&self) -> bool {
        self.upload.unread.is_some()
    }

    fn pace(&self) -> Option<Duration> {
        self.upload.is_open().then_some(Duration::ZERO)
    }
}

/// Appends to a job's input.
pub fn send(host: &str, shell: &mut dyn Shell, sending: &Sending) -> Result<Answer, Failure> {
    let script = Script::append(sending)?;
    let input = match sending.data {
        Data::Input(input) => Some(input),
        Data::Text(_) => None,
    };
    let upload = Upload::new(input);
    let limit = patience() * 2 + upload.patience();
    let mut sent = Sent {
        host,
        upload,
        answer: None,
    };
    hear(host, shell, &script, Some(limit), &mut sent)?;
    match (sent.upload.unread, sent.answer) {
        (Some(error), _) => Ok(Answer::Refused(format!("it can't be read: {error}"))),
        (None, answer) => answer.ok_or_else(|| garbage(host, b"nothing about the input")),
    }
}

impl Script {
    /// Appends to a job's input.
    fn append(sending: &Sending) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.needs = TO_SIGNAL;
        let (text, size) = match sending.data {
            Data::Text(text) => (&text[..], String::new()),
            Data::Input(input) => (&[][..], input.size().to_string()),
        };
        if let Data::Input(_) = sending.data {
            script.form = Form::Last;
        }
        script.set("claim", sending.claim)?;
        script.set("text", OsStr::from_bytes(text))?;
        script.set("size", size)?;
        script.set("eof", flag(sending.eof))?;
        script.include(file!("send"));
        script.call("send", &[sending.place])?;
        Ok(script)
    }
}
