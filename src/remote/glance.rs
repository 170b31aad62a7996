//! The script of `top`: how a host's jobs stand, what they use, and the end of one's output, in one round trip.

use super::answer::{Listener, Stream, hear, patience};
use super::output::{From, Wanted};
use super::script::Script;
use super::seen::Seen;
use super::usage::{Usage, take_line};
use crate::connection::Shell;
use crate::error::Failure;

/// How much of each stream's end is asked for, in bytes.
const OUTPUT_MAX: u64 = 16 << 10;
/// How much is kept of what a host sends as that.
const KEPT_MAX: usize = 32 << 10;

/// What a host says of its jobs.
#[derive(Debug, Default)]
pub struct Glance {
    /// In the order in which they were asked about.
    pub jobs: Vec<(Seen, Option<Usage>)>,
    /// The last bytes of both streams of the job whose output was asked for.
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

struct Glancing<'a> {
    host: &'a str,
    answers: Vec<Option<(Seen, Option<Usage>)>>,
    /// What follows is about the output.
    is_past_jobs: bool,
    glance: Glance,
}

impl Listener for Glancing<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        if line == "output" {
            self.is_past_jobs = true;
        }
        // How that one job stands was said before.
        if self.is_past_jobs {
            return Ok(());
        }
        take_line(self.host, line, &mut self.answers)
    }

    fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        let kept = match stream {
            Stream::Out => &mut self.glance.out,
            Stream::Err => &mut self.glance.err,
        };
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(KEPT_MAX);
        drop(kept.drain(..surplus));
        Ok(())
    }
}

/// Looks at jobs, and at the end of the output of one of them: `shown` is its place. `places`: see
/// [`crate::job::Record::job_dir`].
pub fn glance(
    host: &str,
    shell: &mut dyn Shell,
    places: &[&str],
    shown: Option<&str>,
) -> Result<Glance, Failure> {
    let script = Script::glance(places, shown)?;
    let mut glancing = Glancing {
        host,
        answers: (0..places.len()).map(|_| None).collect(),
        is_past_jobs: false,
        glance: Glance::default(),
    };
    hear(host, shell, &script, Some(patience()), &mut glancing)?;
    let Glancing {
        answers,
        mut glance,
        ..
    } = glancing;
    glance.jobs = super::look::all(host, answers)?;
    Ok(glance)
}

impl Script {
    fn glance(places: &[&str], shown: Option<&str>) -> Result<Self, Failure> {
        let mut script = Self::measure(places)?;
        if let Some(place) = shown {
            let wanted = Wanted {
                place,
                out: true,
                err: true,
                from: From::LastBytes(OUTPUT_MAX),
                follow: false,
                most: None,
                pause: None,
                enough: None,
                gone: &|_| (),
            };
            script.call("rs_say", &["output"])?;
            script.add_tail(&wanted, None)?;
        }
        Ok(script)
    }
}
