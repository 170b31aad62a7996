//! Sends signals to the jobs of one host, each exactly once, and waits for the jobs to end.
//!
//! Each delivery has a claim: a word that the host turns into a file, which only one script or relay can create. So if
//! anything fails, a later attempt with the same claim sends nothing twice. A signal goes by the job's relay if one is
//! held ([`relay`]), otherwise by pid in a script ([`script`]). If the result can no longer be learned, it is reported
//! as unknown, never as sent.

mod progress;
mod relay;
mod script;

use std::time::{Duration, Instant};

use progress::Delivery;
pub use progress::{NOT_TRUSTED, ended_before};

use crate::clock;
use crate::connection::HostConnection;
use crate::error::{Failure, Kind};
use crate::job::{self, Record, Target};
pub use crate::job::{SendOutcome, Via};
use crate::remote::Observation;
use crate::remote::signal::Answer;
use crate::signal::Signal;

/// Minimum interval between two scripts of a wait.
const SCRIPT_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum number of reconnects in a row before a delivery gives up.
const RETRIES_MAX: u32 = 2;
/// A script that takes longer than this to fail has found a host that does not respond.
const SLOW_FAILURE_MIN: Duration = Duration::from_secs(25);
/// Maximum time to keep reconnecting after the last contact with the host. A server restarts in less.
const OUTAGE_MAX: Duration = Duration::from_secs(30);

/// The signals to send to one job.
#[derive(Clone)]
pub struct SignalRequest {
    pub record: Record,
    /// The signal to send at once; `None` if the job is only waited for.
    pub signal: Option<Signal>,
    /// The signal to send if the job still runs after the wait.
    pub then: Option<Signal>,
    /// The processes that get the signals.
    pub target: Target,
    /// Send CONT after the signal, so that a stopped job can act on it.
    pub wake: bool,
    /// How the signals may be delivered.
    pub ways: ViaPolicy,
}

impl SignalRequest {
    /// A request that sends nothing.
    pub fn wait(record: Record) -> Self {
        Self {
            record,
            signal: None,
            then: None,
            target: Target::Group,
            wake: false,
            ways: ViaPolicy::Any,
        }
    }
}

/// How a signal may be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ViaPolicy {
    /// By the SSH channel if one is held, else by pid
    #[default]
    #[value(name = "auto")]
    Any,
    /// By the SSH channel's signal request only
    Channel,
    /// By kill(1) on the host only
    Pid,
}

/// The result for one job.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The job, updated with its state on the host.
    pub record: Record,
    /// Whether the first signal was sent.
    pub sent: SendOutcome,
    /// Whether the second signal was sent; `None` if there is none or it was not due.
    pub then: Option<SendOutcome>,
    /// Whether the job still runs, if that was checked.
    pub still_running: Option<bool>,
    /// Time since the delivery began.
    pub waited: Duration,
    /// Why the delivery failed.
    pub error: Option<Failure>,
    /// A note for the user.
    pub note: Option<String>,
}

impl Outcome {
    /// The result of a wait for a job whose state on the host is `seen`.
    pub fn seen(record: Record, seen: Observation) -> Self {
        let mut delivery = Delivery::new(SignalRequest::wait(record), "");
        delivery.apply_answer(Answer::State(seen), true);
        delivery.outcome
    }

    /// An outcome for a job to which nothing has been done yet.
    pub fn of(record: Record) -> Self {
        Self {
            record,
            sent: SendOutcome::No,
            then: None,
            still_running: None,
            waited: Duration::ZERO,
            error: None,
            note: None,
        }
    }
}

/// The unsettled deliveries of one host, and the callback that gets the outcomes of settled ones.
struct Batch<'a> {
    deliveries: Vec<Delivery>,
    started: Instant,
    /// Whether to wait for the jobs to end.
    waiting: bool,
    on_outcome: &'a mut dyn FnMut(Outcome),
}

impl Batch<'_> {
    /// Changes a delivery. If that settles it, passes its outcome to `on_outcome`.
    fn update(&mut self, index: usize, change: impl FnOnce(&mut Delivery, bool)) {
        let Some(delivery) = self.deliveries.get_mut(index) else {
            return;
        };
        if !delivery.settled {
            change(delivery, self.waiting);
            if delivery.settled {
                delivery.outcome.waited = self.started.elapsed();
                (self.on_outcome)(delivery.outcome.clone());
            }
        }
    }

    fn sends_signals(&self) -> bool {
        self.deliveries
            .iter()
            .any(|delivery| delivery.signal.is_some())
    }

    fn update_all(&mut self, mut change: impl FnMut(usize, &mut Delivery, bool)) {
        for index in 0..self.deliveries.len() {
            self.update(index, |delivery, waiting| change(index, delivery, waiting));
        }
        self.deliveries.retain(|delivery| !delivery.settled);
    }
}

/// The time limits of a wait.
struct Deadlines {
    /// Time to wait after each of the two signals.
    wait: Duration,
    /// When the wait after the current signal ends.
    until: Instant,
    /// The second signals were sent.
    second: bool,
}

/// Sends signals to jobs of one host, and waits up to `wait` after each of the two signals for the jobs to end. Each
/// outcome is passed to `on_outcome` as soon as it is known.
pub fn deliver(
    connection: &mut HostConnection,
    requests: Vec<SignalRequest>,
    wait: Option<Duration>,
    on_outcome: &mut dyn FnMut(Outcome),
) {
    let nonce = job::random_hex::<8>();
    let name = nonce.as_deref().unwrap_or_default();
    let deliveries = requests
        .into_iter()
        .map(|request| Delivery::new(request, name))
        .collect();
    let mut batch = Batch {
        deliveries,
        started: Instant::now(),
        waiting: wait.is_some(),
        on_outcome,
    };
    let result = nonce
        .map_or_else(|error| Err(error.into()), |_| Ok(()))
        .and_then(|()| connection.connect())
        .and_then(|()| carry_out(connection, &mut batch, wait));
    if let Err(failure) = result {
        batch.update_all(|_, delivery, waiting| delivery.give_up(&failure, waiting));
    }
}

fn carry_out(
    connection: &mut HostConnection,
    batch: &mut Batch,
    wait: Option<Duration>,
) -> Result<(), Failure> {
    let started = Instant::now();
    batch.started = started;
    // A shared keeper may hold a connection that is already dead, so it does not count as contact.
    let mut last_contact = (!connection.was_shared_before()).then_some(started);
    if relay::deliver(connection, batch, wait.map(|wait| started + wait)) {
        last_contact = Some(Instant::now());
    }
    let mut deadlines = wait.map(|wait| Deadlines {
        wait,
        until: started + wait,
        second: false,
    });
    let (mut retries, mut silent_shells) = (0, 0);
    // The `asked` flags from before the first shell that ended without output.
    let mut asked_before = None;
    while !batch.deliveries.is_empty() {
        let begun = Instant::now();
        let asked: Vec<_> = batch
            .deliveries
            .iter()
            .map(|delivery| (delivery.asked, delivery.then_asked))
            .collect();
        let plan = script::plan(&batch.deliveries, deadlines.as_ref(), begun);
        match script::carry_out(connection, batch, &plan) {
            Ok(()) => {
                (retries, silent_shells, asked_before) = (0, 0, None);
                last_contact = Some(Instant::now());
            }
            // A shell that ended without output may have been killed after it sent a signal. Only if a second one fails
            // in the same way does the host have no shell, and nothing was sent.
            Err(failure) if failure.kind.has_no_shell() => {
                silent_shells += 1;
                asked_before.get_or_insert(asked);
                if connection.may_try_another(silent_shells) {
                    continue;
                }
                let asked = asked_before.unwrap_or_default();
                for (delivery, asked) in batch.deliveries.iter_mut().zip(asked) {
                    (delivery.asked, delivery.then_asked) = asked;
                }
                return Err(failure);
            }
            // A wait that sends no signals is not retried: its caller can start it again.
            Err(failure)
                if failure.kind.is_retryable()
                    && retries < RETRIES_MAX
                    && batch.sends_signals() =>
            {
                // A host that does not respond takes long to detect: make one more attempt, not two.
                let is_silent = begun.elapsed() >= clock::scaled(SLOW_FAILURE_MIN);
                retries += if is_silent { RETRIES_MAX } else { 1 };
                let retry_until = last_contact
                    .zip(deadlines.as_ref())
                    .map(|(last, deadlines)| deadlines.until.min(last + clock::scaled(OUTAGE_MAX)));
                connection.connect_again(&failure, retry_until.unwrap_or(begun))?;
                last_contact = last_contact.map(|_| Instant::now());
                continue;
            }
            Err(failure) => return Err(failure),
        }
        if batch.deliveries.is_empty() {
            break;
        }
        let Some(deadlines) = &mut deadlines else {
            let message = format!("{}: it did not answer about the job", connection.host());
            return Err(Failure::new(Kind::Failed, message));
        };
        if plan.jobs.iter().any(|job| job.then.is_some()) {
            deadlines.second = true;
            deadlines.until = Instant::now() + deadlines.wait.saturating_sub(plan.then_wait);
        }
        let is_then_due =
            |delivery: &Delivery| !deadlines.second && delivery.then_unsent().is_some();
        let now = Instant::now();
        if now >= deadlines.until && !batch.deliveries.iter().any(is_then_due) {
            batch.update_all(|_, delivery, _| delivery.settled = true);
            break;
        }
        // A script can't wait for a job that has not started yet, so keep an interval between scripts.
        let interval = SCRIPT_INTERVAL.saturating_sub(begun.elapsed());
        std::thread::sleep(interval.min(deadlines.until.saturating_duration_since(now)));
    }
    Ok(())
}
