//! The script that appends to a job's input.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use super::answer::{Listener, answer_timeout, run_script, unexpected};
use super::observation::{Observation, job_line};
use super::script::{Form, SIGNAL_FILES, Script, file, flag};
use super::start::{Input, InputSender};
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
pub struct SendRequest<'a> {
    /// See [`crate::job::Record::job_dir`].
    pub place: &'a str,
    /// The same for every attempt: the host appends nothing twice for one claim.
    pub claim: &'a str,
    pub data: &'a Data,
    /// The input ends after the data.
    pub eof: bool,
}

/// The result of an append.
pub enum SendResult {
    /// The data is in the job's input.
    Sent,
    /// The job's input had already ended.
    Closed,
    /// The job has no input that can be appended to.
    NoInput,
    /// The data could not be written.
    Refused(String),
    /// The job has ended, or its state can't be determined.
    State(Observation),
}

struct SendListener<'a> {
    host: &'a str,
    upload: InputSender<'a>,
    answer: Option<SendResult>,
}

impl Listener for SendListener<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        if self.upload.asks(line) {
            return Ok(());
        }
        self.answer = Some(match line.split_once(' ').unwrap_or((line, "")) {
            ("sent", "") => SendResult::Sent,
            ("closed", "") => SendResult::Closed,
            ("never", "") => SendResult::NoInput,
            ("refused", why) => SendResult::Refused(printable(why, 300)),
            _ => SendResult::State(job_line(self.host, line, 1)?.1),
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
pub fn send(
    host: &str,
    shell: &mut dyn Shell,
    sending: &SendRequest,
) -> Result<SendResult, Failure> {
    let script = Script::append(sending)?;
    let input = match sending.data {
        Data::Input(input) => Some(input),
        Data::Text(_) => None,
    };
    let upload = InputSender::new(input);
    let limit = answer_timeout() * 2 + upload.patience();
    let mut sent = SendListener {
        host,
        upload,
        answer: None,
    };
    run_script(host, shell, &script, Some(limit), &mut sent)?;
    match (sent.upload.unread, sent.answer) {
        (Some(error), _) => Ok(SendResult::Refused(format!("it can't be read: {error}"))),
        (None, answer) => answer.ok_or_else(|| unexpected(host, b"nothing about the input")),
    }
}

impl Script {
    /// Appends to a job's input.
    fn append(sending: &SendRequest) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.needs = SIGNAL_FILES;
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
