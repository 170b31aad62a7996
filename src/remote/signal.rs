//! The script that signals jobs and waits for them to end.

use std::time::Duration;

use super::answer::{Listener, answer_timeout, run_script, unexpected};
use super::observation::{Observation, indexed, job_line};
use super::script::{SIGNAL_FILES, Script, file, flag};
use crate::connection::Shell;
use crate::error::Failure;
use crate::job::Target;
use crate::signal::Signal;

/// One attempt to send a signal to a job.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The same for every attempt of one delivery: the host sends nothing twice for one claim.
    pub claim: String,
    pub signal: Signal,
    /// If the job is stopped, send CONT after the signal, so that the job can act on it.
    pub wake: bool,
    /// An earlier attempt may have sent it.
    pub retry: bool,
}

/// The result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    Sent,
    /// The job's processes were gone.
    Gone,
    /// The job's processes belong to another user.
    Denied,
    /// An earlier attempt has the claim but did not record its result.
    Unconfirmed,
}

/// What one script does for a job.
#[derive(Debug)]
pub struct JobPlan {
    /// The job's directory on its host, or its id if the directory is not known.
    pub job_dir: String,
    pub target: Target,
    /// What to send at once.
    pub first: Option<Attempt>,
    /// What to send if the job still runs after the wait.
    pub then: Option<Attempt>,
}

/// What one script does, in this order: send the first signals, wait, send the second ones, wait again.
#[derive(Debug, Default)]
pub struct Plan {
    pub jobs: Vec<JobPlan>,
    /// Time to wait for all jobs; `None` for no wait.
    pub wait: Option<Duration>,
    pub then_wait: Duration,
}

/// A host's answer about a job while a plan is carried out.
pub enum Answer {
    /// The result of the first or the second signal.
    Result(AttemptResult),
    /// The state of the job.
    State(Observation),
    /// Number of the job's processes, whether or not the first one still runs.
    Processes(u32),
    /// The host has no awk, so the job's processes can't be identified.
    LacksAwk,
    /// Environments can't be read, so only the processes of the job's session and their children could be found.
    LinksOnly,
}

/// Carries out a plan on a host. Each answer is passed on with its job's index as it arrives.
pub fn carry_out(
    host: &str,
    shell: &mut dyn Shell,
    plan: &Plan,
    on_answer: &mut dyn FnMut(usize, Answer),
) -> Result<(), Failure> {
    let script = Script::signal(plan)?;
    // If nothing is sent, another shell can run the same script: after a short timeout if this one may hang without
    // output.
    let sends = |job: &JobPlan| job.first.is_some() || job.then.is_some();
    let answer = if shell.may_hang() && !plan.jobs.iter().any(sends) {
        answer_timeout() / 2
    } else {
        answer_timeout()
    };
    let patience = (plan.wait.unwrap_or_default() + plan.then_wait) * 2 + answer;
    let jobs = plan.jobs.len();
    let mut reported = vec![false; jobs];
    let mut listener = |line: &str| {
        let malformed = || unexpected(host, line.as_bytes());
        let (index, answer) = match indexed(line, jobs) {
            Some(("sent", index, word)) => {
                (index, Answer::Result(result(word).ok_or_else(malformed)?))
            }
            Some(("kin", index, number)) => (
                index,
                Answer::Processes(number.parse().map_err(|_| malformed())?),
            ),
            Some(("links", index, _)) => (index, Answer::LinksOnly),
            Some(("lacks", index, _)) => (index, Answer::LacksAwk),
            _ => {
                let (index, seen) = job_line(host, line, jobs)?;
                if let Some(reported) = reported.get_mut(index) {
                    *reported = true;
                }
                (index, Answer::State(seen))
            }
        };
        on_answer(index, answer);
        Ok(())
    };
    run_script(
        host,
        shell,
        &script,
        Some(patience),
        &mut listener as &mut dyn Listener,
    )?;
    // Every script reports the state of each job, at its end at the latest.
    if reported.contains(&false) {
        return Err(unexpected(host, b"nothing about the job"));
    }
    Ok(())
}

fn result(word: &str) -> Option<AttemptResult> {
    Some(match word {
        "yes" => AttemptResult::Sent,
        "gone" => AttemptResult::Gone,
        "denied" => AttemptResult::Denied,
        "unconfirmed" => AttemptResult::Unconfirmed,
        _ => return None,
    })
}

impl Script {
    /// Sends signals to jobs and waits for the jobs to end.
    pub(super) fn signal(plan: &Plan) -> Result<Self, Failure> {
        let mut script = Self::about_jobs()?;
        script.needs = SIGNAL_FILES;
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
        script.set("rs_last", "settle")?;
        let Some(wait) = plan.wait else {
            return Ok(script);
        };
        script.call("await", &[&wait.as_millis().to_string()])?;
        if plan.jobs.iter().any(|job| job.then.is_some()) {
            for (index, job) in plan.jobs.iter().enumerate() {
                if let Some(attempt) = &job.then {
                    script.send(&["if_left"], index, job, attempt)?;
                }
            }
            script.call("await", &[&plan.then_wait.as_millis().to_string()])?;
        }
        script.call("remaining", &[])?;
        Ok(script)
    }

    /// Adds a call that sends a signal, with the words `before` in front of it.
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
}
