//! Delivery by pid, and waiting without a relay: each script does both for all jobs of a host.

use std::time::{Duration, Instant};

use super::progress::Delivery;
use super::{Batch, Deadlines};
use crate::connection::HostConnection;
use crate::error::Failure;
use crate::remote::signal::{self, JobPlan, Plan};

/// Maximum time for which one script waits. Other commands may be waiting for its shell, and a broken connection is
/// noticed only after it.
const SCRIPT_MAX: Duration = Duration::from_secs(1);

/// Plans the next script: unsent signals are sent, and jobs are waited for. The second signals go into the script in
/// which the wait ends, so that the host decides whether they are still needed.
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

/// Runs one script, and settles deliveries with its answers.
pub fn carry_out(
    connection: &mut HostConnection,
    batch: &mut Batch,
    plan: &Plan,
) -> Result<(), Failure> {
    let host = connection.host();
    let mut shell = connection.shell()?;
    for (delivery, job) in batch.deliveries.iter_mut().zip(&plan.jobs) {
        delivery.asked = true;
        delivery.processes = 0;
        delivery.then_asked |= job.then.is_some();
    }
    let result = signal::carry_out(&host, shell.as_mut(), plan, &mut |index, answer| {
        batch.update(index, |delivery, waiting| {
            delivery.apply_answer(answer, waiting);
        });
    });
    let elapsed = batch.started.elapsed();
    batch.update_all(|_, delivery, _| delivery.outcome.waited = elapsed);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::{SignalRequest, ViaPolicy};
    use crate::host::Destination;
    use crate::job::{JobId, Record, Target};
    use crate::signal::{Os, SignalWord};

    #[test]
    fn the_second_signal_goes_into_the_script_in_which_the_time_runs_out() {
        let destination = Destination {
            host: "local".parse().unwrap(),
            connect: <_>::default(),
        };
        let request = SignalRequest {
            record: Record::new(JobId::random().unwrap(), None, destination, Vec::new()),
            signal: SignalWord::TERM.on(Os::Linux).ok(),
            then: SignalWord::KILL.on(Os::Linux).ok(),
            target: Target::Group,
            wake: false,
            ways: ViaPolicy::Any,
        };
        let deliveries = [Delivery::new(request, "nonce")];
        let now = Instant::now();
        // The time left in ms, whether the second signals were sent; whether this script sends them, and its two waits.
        for (left, second, then, wait, then_wait) in [
            (5000, false, false, 1000, 0),
            (1001, false, false, 1000, 0),
            (1000, false, true, 1000, 0),
            (300, false, true, 300, 700),
            (0, false, true, 0, 1000),
            (300, true, false, 300, 0),
        ] {
            let ms = Duration::from_millis;
            let deadlines = Deadlines {
                wait: ms(5000),
                until: now + ms(left),
                second,
            };
            let plan = plan(&deliveries, Some(&deadlines), now);
            assert_eq!(plan.jobs[0].then.is_some(), then, "{left} ms left");
            assert_eq!((plan.wait, plan.then_wait), (Some(ms(wait)), ms(then_wait)));
        }
        assert_eq!(plan(&deliveries, None, now).wait, None);
    }
}
