//! Ends commands on signals, and cancels starts that are given up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::connection::{DetachedConnection, keep_trying};
use crate::error::{Failure, Kind, reason};
use crate::job::{JobId, Record};
use crate::remote::start::{cancel, cancelling_script};
use crate::state::Store;
use crate::sys;
use crate::terminal::warn;

/// Maximum wait for the host to confirm that a start was cancelled.
const CANCEL_WAIT_MAX: Duration = Duration::from_millis(800);

/// Maximum time during which a cancellation is tried in the background.
const CANCEL_RETRY_MAX: Duration = Duration::from_secs(300);

/// Makes the signals that end a command end this one even if the kernel would drop them: the first process of a
/// container gets no signal that it does not handle (pid_namespaces(7)).
pub fn end_first_process() -> Result<(), Failure> {
    if std::process::id() == 1 {
        on_signal(|| ())?;
    }
    Ok(())
}

/// Calls `last` and ends the process at the first signal that asks it to end. Signals that were ignored at the start
/// stay ignored.
pub fn on_signal(last: impl FnOnce() + Send + 'static) -> Result<InterruptFlag, Failure> {
    let caught = InterruptFlag::default();
    let all = [SIGINT, SIGTERM, SIGHUP, SIGQUIT]
        .into_iter()
        .filter(|number| !sys::process::is_ignored(*number));
    let failed =
        |what: &str| Failure::new(Kind::Failed, format!("signals can't be caught: {what}"));
    // First, so that no signal is caught that does not end the process.
    let mut signals = Signals::new(all.clone()).map_err(|error| failed(&reason(&error)))?;
    for signal in all {
        signal_hook::flag::register(signal, Arc::clone(&caught.0))
            .map_err(|error| failed(&reason(&error)))?;
    }
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            last();
            die(signal);
        }
    };
    let started = std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait);
    started
        .map(|_| caught)
        .map_err(|error| failed(&reason(&error)))
}

/// Whether such a signal has arrived.
#[derive(Default)]
pub struct InterruptFlag(Arc<AtomicBool>);

impl InterruptFlag {
    /// Blocks if a signal has arrived, until it ends the process. The signal reaches child processes too, and the
    /// failures that this causes are not worth reporting.
    pub fn yield_to_signal(&self) {
        while self.0.load(Ordering::Relaxed) {
            std::thread::park();
        }
    }
}

/// Ends this process as the signal would have, so that a shell that runs a script stops the script.
fn die(signal: i32) -> ! {
    if std::process::id() != 1 {
        drop(low_level::emulate_default_handler(signal));
    }
    low_level::exit(128 + signal)
}

/// The starts of a command that are not completed.
#[derive(Default)]
pub struct Starts(Mutex<Vec<Start>>);

struct Start {
    record: Record,
    /// The connection over which the start request was sent, or is about to be.
    asked: Option<DetachedConnection>,
}

impl Starts {
    fn lock(&self) -> MutexGuard<'_, Vec<Start>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called once a job is recorded.
    pub fn begin(&self, record: &Record) {
        let record = record.clone();
        let asked = None;
        self.lock().push(Start { record, asked });
    }

    /// To be called just before the start request is sent. Does not return once all starts are given up.
    pub fn mark_requested(&self, id: &JobId, connection: DetachedConnection) {
        let mut starts = self.lock();
        if let Some(start) = starts.iter_mut().find(|start| start.record.id == *id) {
            start.asked = Some(connection);
        }
    }

    /// Completes a start: `tell` reports the result to the user. Does not return once all starts are given up.
    pub fn end(&self, id: &JobId, tell: impl FnOnce()) {
        let mut starts = self.lock();
        starts.retain(|start| start.record.id != *id);
        tell();
    }

    /// Gives up all starts. Those whose request was not sent do not happen. The others are cancelled, or the user is
    /// told that they may still happen.
    pub fn give_up(&self) {
        // The lock is held to the end, so that no other start request is sent meanwhile.
        let mut starts = self.lock();
        let mut over: Vec<Record> = Vec::new();
        let cancelled: Vec<_> = starts
            .drain(..)
            .map(|Start { record, asked }| {
                let place = record.job_dir();
                let thread = asked.map(|connection| {
                    std::thread::Builder::new().spawn(move || give_up(connection, place))
                });
                (record, thread)
            })
            .collect();
        for (record, thread) in cancelled {
            let (label, id) = (record.label(), &record.id);
            match thread.map(|thread| thread.is_ok_and(|thread| thread.join().unwrap_or(false))) {
                None => over.push(record),
                Some(true) => {
                    warn(&format!("{label}: its start was cancelled"));
                    over.push(record);
                }
                Some(false) => warn(&format!(
                    "{label}: it may still start; `rsig ps {id}` tells, and `rsig stop {id}` ends it"
                )),
            }
        }
        if !over.is_empty()
            && let Ok(mut store) = Store::open(warn)
        {
            over.iter()
                .for_each(|record| store.not_started(record, Kind::Failed));
        }
        // Leaks the lock: no start request may be sent from now on.
        std::mem::forget(starts);
    }
}

/// Cancels a start that was given up as soon as its host can be reached, in a thread that is never joined.
pub fn cancel_later(detached: DetachedConnection, place: String) {
    if let Ok(script) = cancelling_script(&place) {
        // Here and not in the thread: this process may end at once, and then a shared keeper runs the script.
        detached.connection().queue_script(script);
    }
    let work = move || {
        let mut connection = detached.connection();
        let until = Instant::now() + CANCEL_RETRY_MAX;
        let left = || until.saturating_duration_since(Instant::now());
        // If this fails, the job's time limit ends it.
        let _ = keep_trying(left, || {
            let host = connection.host();
            let cancelled = connection.ask(|shell| cancel(&host, shell, &place));
            if cancelled.is_err() {
                connection.close();
            }
            cancelled
        });
    };
    // If no thread can be started, the job's time limit ends it too.
    let _ = std::thread::Builder::new().spawn(work);
}

/// Cancels a start that was given up. Returns whether the host confirmed that in time. If not, a shared keeper cancels
/// the start when it can.
pub fn give_up(detached: DetachedConnection, place: String) -> bool {
    let script = cancelling_script(&place);
    let (sender, receiver) = mpsc::channel();
    let detached = Arc::new(detached);
    let own = Arc::clone(&detached);
    let work = move || {
        let mut connection = own.connection();
        let host = connection.host();
        let cancelled = connection.ask(|shell| cancel(&host, shell, &place));
        // Fails harmlessly after the timeout: the receiver is gone.
        let _ = sender.send(cancelled.is_ok());
    };
    let started = std::thread::Builder::new().spawn(work);
    let confirmed = started.is_ok() && receiver.recv_timeout(CANCEL_WAIT_MAX).unwrap_or(false);
    if !confirmed && let Ok(script) = script {
        detached.connection().queue_script(script);
    }
    confirmed
}
