//! The script of `top`: the states of a host's jobs, what they use, and the end of one job's output, in one round trip.

use super::answer::{Listener, Stream, answer_timeout, run_script};
use super::observation::Observation;
use super::output::{ReadRequest, StartPosition};
use super::script::Script;
use super::usage::{Usage, take_line};
use crate::connection::Shell;
use crate::error::Failure;

/// How much of the end of each stream is requested, in bytes.
const OUTPUT_MAX: u64 = 16 << 10;
/// How much of that is kept, in bytes, if a host sends more.
const KEPT_MAX: usize = 32 << 10;

/// The answer of a host.
#[derive(Debug, Default)]
pub struct Glance {
    /// In the order of the request.
    pub jobs: Vec<(Observation, Option<Usage>)>,
    /// The last bytes of both streams of the job whose output was requested.
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

struct GlanceListener<'a> {
    host: &'a str,
    answers: Vec<Option<(Observation, Option<Usage>)>>,
    /// The lines that follow are about the output.
    is_past_jobs: bool,
    glance: Glance,
}

impl Listener for GlanceListener<'_> {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        if line == "output" {
            self.is_past_jobs = true;
        }
        // The state of that job was reported before.
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

/// Gets the states and usage of jobs, and the end of the output of the job at `shown`. `places`: see
/// [`crate::job::Record::job_dir`].
pub fn glance(
    host: &str,
    shell: &mut dyn Shell,
    places: &[&str],
    shown: Option<&str>,
) -> Result<Glance, Failure> {
    let script = Script::glance(places, shown)?;
    let mut glancing = GlanceListener {
        host,
        answers: (0..places.len()).map(|_| None).collect(),
        is_past_jobs: false,
        glance: Glance::default(),
    };
    run_script(host, shell, &script, Some(answer_timeout()), &mut glancing)?;
    let GlanceListener {
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
            let wanted = ReadRequest {
                place,
                out: true,
                err: true,
                from: StartPosition::LastBytes(OUTPUT_MAX),
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
