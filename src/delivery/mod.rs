//! Gets signals to the jobs of one host, each exactly once, and follows the jobs to their ends.
//!
//! Each delivery has a claim: a word that the host turns into a file, which only one script or relay can create. So
//! whatever breaks, a later attempt with the same claim sends nothing twice. A signal goes by its job's relay if one is
//! held ([`relay`]), else by pid in a script ([`script`]). What can't be asked any more is reported as unknown, never as
//! done.

mod progress;
mod relay;
mod script;

use std::time::{Duration, Instant};

use progress::Delivery;
pub use progress::{NOT_BELIEVED, ended_before};

use crate::clock;
use crate::connection::HostConnection;
use crate::error::{Failure, Kind};
use crate::job::{self, Record, Target};
pub use crate::job::{Sent, Via};
use crate::remote::Seen;
use crate::remote::signal::Answer;
use crate::signal::Signal;

/// The shortest time from one script of a wait to the next.
const SCRIPT_INTERVAL: Duration = Duration::from_millis(200);
/// How often a broken connection is made anew before a delivery gives up.
const RETRIES: u32 = 2;
/// A script that fails after this time has found a silent host.
const SILENCE: Duration = Duration::from_secs(25);
/// How long a wait outlives its host: a server that is restarted takes less.
const OUTAGE_MAX: Duration = Duration::from_secs(30);

/// What is to happen to one job.
#[derive(Clone)]
pub struct SignalRequest {
    /// The job.
    pub record: Record,
    /// What is sent at once; nothing when the job is only waited for.
    pub signal: Option<Signal>,
    /// What is sent when it still runs after the wait.
    pub then: Option<Signal>,
    /// To which of its processes.
    pub target: Target,
    /// A stopped job gets CONT after the signal, so that it can die of it.
    pub wake: bool,
    /// Which ways the signals may take.
    pub ways: Ways,
}

impl SignalRequest {
    /// Sends nothing.
    pub fn wait(record: Record) -> Self {
        Self {
            record,
            signal: None,
            then: None,
            target: Target::Group,
            wake: false,
            ways: Ways::Any,
        }
    }
}

/// How a signal may be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Ways {
    /// By the SSH channel if one is held, else by pid
    #[default]
    #[value(name = "auto")]
    Any,
    /// By the SSH channel's signal request only
    Channel,
    /// By a kill on the host only
    Pid,
}

/// How one job came out.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The job, as its host says it stands now.
    pub record: Record,
    /// What became of the first signal.
    pub sent: Sent,
    /// What became of the second, if there was one to send and time came for it.
    pub then: Option<Sent>,
    /// Whether it still runs, where that was asked.
    pub still_running: Option<bool>,
    /// How long it was waited for.
    pub waited: Duration,
    /// Why it came out badly.
    pub error: Option<Failure>,
    /// What the user should know.
    pub note: Option<String>,
}

impl Outcome {
    /// What a host's word on a job comes to for whoever waits for it.
    pub fn seen(record: Record, seen: Seen) -> Self {
        let mut delivery = Delivery::new(SignalRequest::wait(record), "");
        delivery.answer(Answer::State(seen), true);
        delivery.outcome
    }

    /// A job that nothing was done to.
    pub fn of(record: Record) -> Self {
        Self {
            record,
            sent: Sent::No,
            then: None,
            still_running: None,
            waited: Duration::ZERO,
            error: None,
            note: None,
        }
    }
}

/// The deliveries that are not settled yet, and where the settled ones go.
struct Batch<'a> {
    deliveries: Vec<Delivery>,
    started: Instant,
    /// Whether the ends of the jobs are waited for.
    waiting: bool,
    on_outcome: &'a mut dyn FnMut(Outcome),
}

impl Batch<'_> {
    /// Changes a delivery, and passes its outcome on if that settles it.
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

/// How long the jobs are waited for.
struct Deadlines {
    /// After each of the two signals.
    wait: Duration,
    /// When that is over for the current one.
    until: Instant,
    /// The second signals are sent.
    second: bool,
}

/// Sends signals to jobs of one host, and waits for the jobs for `wait` after each of the two signals. Each job's outcome
/// is passed on as soon as it is known.
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
    // A keeper may hold no more than the memory of a connection.
    let mut last_contact = (!connection.may_be_stale()).then_some(started);
    if relay::deliver(connection, batch, wait.map(|wait| started + wait)) {
        last_contact = Some(Instant::now());
    }
    let mut deadlines = wait.map(|wait| Deadlines {
        wait,
        until: started + wait,
        second: false,
    });
    let (mut breaks, mut silent_shells) = (0, 0);
    // What had been asked for before the first shell that ended without a word.
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
                (breaks, silent_shells, asked_before) = (0, 0, None);
                last_contact = Some(Instant::now());
            }
            // It may have been killed after it had sent something: only if a second one is silent too, neither was a
            // shell, and nothing was sent.
            Err(failure) if failure.kind.is_without_shell() => {
                silent_shells += 1;
                asked_before.get_or_insert(asked);
                if connection.gives_another(silent_shells) {
                    continue;
                }
                let asked = asked_before.unwrap_or_default();
                for (delivery, asked) in batch.deliveries.iter_mut().zip(asked) {
                    (delivery.asked, delivery.then_asked) = asked;
                }
                return Err(failure);
            }
            // Nothing is lost with a wait alone: who waits may begin it anew.
            Err(failure)
                if failure.kind.is_worth_another_try()
                    && breaks < RETRIES
                    && batch.sends_signals() =>
            {
                // It takes long to find out that a host is silent: one more attempt, not two.
                let is_silent = begun.elapsed() >= clock::long(SILENCE);
                breaks += if is_silent { RETRIES } else { 1 };
                let patience = last_contact
                    .zip(deadlines.as_ref())
                    .map(|(last, deadlines)| deadlines.until.min(last + clock::long(OUTAGE_MAX)));
                connection.connect_again(&failure, patience.unwrap_or(begun))?;
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
        // A script can't wait for a job that is about to start.
        let interval = SCRIPT_INTERVAL.saturating_sub(begun.elapsed());
        std::thread::sleep(interval.min(deadlines.until.saturating_duration_since(now)));
    }
    Ok(())
}
