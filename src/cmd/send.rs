//! `send`: appends data to a job's input, exactly once.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::args::{Common, ConnectArgs, FOR_HOST_ID, job_word};
use super::complete;
use super::context::Context;
use super::jobs::not_on_host;
use super::spawn::whole_input;
use crate::clock;
use crate::connection::{HostConnection, Policy};
use crate::delivery::{Outcome, ended_before};
use crate::error::{Failure, Kind, exit};
use crate::job::{self, JobWord, State};
use crate::remote::ObservedState;
use crate::remote::send::{Data, SendRequest, SendResult, send};
use crate::remote::start::Input;

/// Write to the standard input of a job that was started with --stdin-open
#[derive(Args, Debug)]
pub struct Send {
    /// Close the input after TEXT; without TEXT, send nothing and read nothing
    #[arg(long)]
    eof: bool,
    #[command(flatten)]
    common: Common,
    #[command(flatten, next_help_heading = FOR_HOST_ID)]
    connect: ConnectArgs,
    /// An id, a name, a unique id prefix, or HOST/ID
    #[arg(value_parser = job_word(), add = ArgValueCompleter::new(complete::unfinished))]
    job: JobWord,
    /// A line to send; without it, all of standard input is sent
    #[arg(allow_hyphen_values = true)]
    text: Option<OsString>,
}

impl Send {
    pub fn run(self) -> Result<u8, Failure> {
        let connect = self.connect.for_jobs(std::slice::from_ref(&self.job))?;
        let data = match self.text {
            Some(text) => line(text.into_vec())?,
            None if self.eof => Data::Text(Vec::new()),
            None => Data::Input(whole_input(Path::new("-"))?),
        };
        let mut context = Context {
            connect,
            ..self.common.reach().context()?
        };
        append(&mut context, &self.job, &data, self.eof)?;
        Ok(exit::DONE)
    }
}

/// Longest text sent as part of a script, in bytes.
const TEXT_MAX: usize = 16 << 10;
/// Maximum number of reconnects after a connection broke, and maximum time for each.
const RETRIES_MAX: u32 = 2;
const OUTAGE_MAX: Duration = Duration::from_secs(30);

/// Data for a text and a newline.
pub fn line(mut text: Vec<u8>) -> Result<Data, Failure> {
    text.push(b'\n');
    data(text)
}

/// Data for some bytes: part of the script if short, else in an unnamed file.
pub fn data(bytes: Vec<u8>) -> Result<Data, Failure> {
    if bytes.len() <= TEXT_MAX && !bytes.contains(&0) {
        return Ok(Data::Text(bytes));
    }
    let file = tempfile::tempfile().and_then(|mut file| {
        std::io::Write::write_all(&mut file, &bytes)?;
        Ok(file)
    });
    let file = file.map_err(|error| {
        Failure::new(
            Kind::Failed,
            format!("a temporary file can't be written: {error}"),
        )
    })?;
    Ok(Data::Input(Input::new(file, bytes.len() as u64)))
}

/// Appends data to a job's input. Returns once the data is on the host's disk.
pub fn append(
    context: &mut Context,
    word: &JobWord,
    data: &Data,
    eof: bool,
) -> Result<(), Failure> {
    let record = context.resolve(word)?;
    let (label, place) = (record.label(), record.job_dir());
    let claim = job::random_hex::<8>()?;
    let sending = SendRequest {
        place: &place,
        claim: &claim,
        data,
        eof,
    };
    // Data that may be long gets a private connection: the keeper's is for short transfers.
    let policy = Policy {
        keeper: context.policy.keeper && matches!(data, Data::Text(_)),
        ..context.policy
    };
    let destination = record.destination.clone();
    let mut connection = HostConnection::new(&destination, &policy);
    let host = connection.host();
    let unconfirmed = |failure: &Failure| {
        let message = format!(
            "{label}: the connection broke before the host confirmed what was sent, and no new one can be made, so \
             whether the job gets it is not known ({failure})"
        );
        Failure::new(Kind::Unconfirmed, message)
    };
    let (mut asked, mut breaks, mut silent_shells) = (false, 0, 0);
    let answer = loop {
        let result = connection.shell().and_then(|mut shell| {
            asked = true;
            send(&host, shell.as_mut(), &sending)
        });
        match result {
            Ok(answer) => break answer,
            Err(failure) if failure.kind.has_no_shell() => {
                silent_shells += 1;
                if !connection.may_try_another(silent_shells) {
                    return Err(if breaks > 0 {
                        unconfirmed(&failure)
                    } else {
                        failure
                    });
                }
            }
            Err(failure) if failure.kind.is_outage() && asked => {
                breaks += 1;
                if breaks > RETRIES_MAX {
                    return Err(unconfirmed(&failure));
                }
                let until = Instant::now() + clock::scaled(OUTAGE_MAX);
                let again = connection.connect_again(&failure, until);
                again.map_err(|failure| unconfirmed(&failure))?;
            }
            Err(failure) => return Err(failure),
        }
    };
    let (kind, why) = match answer {
        SendResult::Sent => return Ok(()),
        SendResult::Closed => (
            Kind::NotOpen,
            "its input was closed; nothing was sent".to_owned(),
        ),
        SendResult::NoInput => (
            Kind::NotOpen,
            "it was not started with --stdin-open; nothing was sent".to_owned(),
        ),
        SendResult::Refused(why) => (Kind::Failed, format!("{why}; nothing was sent")),
        SendResult::State(seen)
            if record.is_placeholder() && seen.observed == ObservedState::Absent =>
        {
            return Err(not_on_host(&record));
        }
        SendResult::State(seen) => {
            let outcome = Outcome::seen(record, seen);
            context.store.update([&outcome.record]);
            return Err(match (outcome.error, outcome.record.state) {
                (Some(failure), _) => failure,
                (None, State::Lost) => Failure::lost(&label, outcome.record.why_lost()),
                (None, State::Exited) => ended_before(&outcome.record),
                (None, _) => {
                    let why = "its files are not on its host; nothing was sent";
                    Failure::new(Kind::Failed, format!("{label}: {why}"))
                }
            });
        }
    };
    Err(Failure::new(kind, format!("{label}: {why}")))
}
