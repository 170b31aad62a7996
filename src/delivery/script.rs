//! Delivery by pid, and waiting without a relay: scripts that do both for all jobs of a host.

use std::time::{Duration, Instant};

use super::progress::Delivery;
use super::{Batch, Deadlines};
use crate::connection::Line;
use crate::error::Failure;
use crate::remote::signal::{self, JobPlan, Plan};

/// How long one script waits at most. Others may wait for its shell, and a broken connection is noticed after it.
const SCRIPT_MAX: Duration = Duration::from_secs(1);

/// Plans the next script: what is unsent is sent, what is sent is waited for. The second signals go into the script in
/// which the time runs out, so that it is the host that decides whether they are needed.
pub fn plan(deliveries: &[Delivery], deadlines: Option<&Deadlines>, now: Instant) -> Plan {
    let left = deadlines.map(|deadlines| deadlines.until.saturating_duration_since(now));
    let is_last = deadlines.is_some_and(|deadlines| !deadlines.second)
        && left.is_some_and(|left| left <= SCRIPT_MAX);
    let jobs = deliveries.iter().map(|delivery| JobPlan {
        job_dir: delivery.job_dir(),
        target: delivery.target,
        first: delivery.first_attempt(),
        then: delivery.then_attempt().filter(|_| is_last),
    });
    let jobs: Vec<_> = jobs.collect();
    let wait = left.map(|left| left.min(SCRIPT_MAX));
    let rest = SCRIPT_MAX.saturating_sub(wait.unwrap_or_default());
    let then_wait = deadlines
        .filter(|_| jobs.iter().any(|job| job.then.is_some()))
        .map_or(Duration::ZERO, |deadlines| deadlines.wait.min(rest));
    Plan {
        jobs,
        wait,
        then_wait,
    }
}

/// Carries out one script, and settles what it settles.
pub fn carry_out(line: &mut Line, batch: &mut Batch, plan: &Plan) -> Result<(), Failure> {
    let host = line.host();
    let mut shell = line.shell()?;
    for (delivery, job) in batch.deliveries.iter_mut().zip(&plan.jobs) {
        delivery.asked = true;
        delivery.processes = 0;
        delivery.then_asked |= job.then.is_some();
    }
    let result = signal::carry_out(&host, shell.as_mut(), plan, &mut |index, answer| {
        batch.update(index, |delivery, waiting| delivery.answer(answer, waiting));
    });
    let elapsed = batch.started.elapsed();
    batch.update_all(|_, delivery, _| delivery.outcome.waited = elapsed);
    result
}
