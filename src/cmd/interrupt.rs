//! Commands that a signal ends, and starts that are given up.

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

/// How long a start that is given up may take to be cancelled.
const CANCEL_MAX: Duration = Duration::from_millis(800);

/// For how long it is tried where nobody waits for that.
const CANCEL_LATER_MAX: Duration = Duration::from_secs(300);

/// Has the signals that end a command end this one even where the kernel would drop them: the first process of a
/// container gets no signal that it does not handle (pid_namespaces(7)).
pub fn end_first_process() -> Result<(), Failure> {
    if std::process::id() == 1 {
        on_signal(|| ())?;
    }
    Ok(())
}

/// Ends the process at the first signal that asks for it, after `last`. A signal that was ignored at the start stays so.
pub fn on_signal(last: impl FnOnce() + Send + 'static) -> Result<Caught, Failure> {
    let caught = Caught::default();
    let all = [SIGINT, SIGTERM, SIGHUP, SIGQUIT]
        .into_iter()
        .filter(|number| !sys::process::is_ignored(*number));
    let failed =
        |what: &str| Failure::new(Kind::Failed, format!("signals can't be caught: {what}"));
    for signal in all.clone() {
        signal_hook::flag::register(signal, Arc::clone(&caught.0))
            .map_err(|error| failed(&reason(&error)))?;
    }
    let mut signals = Signals::new(all).map_err(|error| failed(&reason(&error)))?;
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

/// Whether such a signal has come.
#[derive(Default)]
pub struct Caught(Arc<AtomicBool>);

impl Caught {
    /// Leaves the end of the process to the signal, if one has come: it reaches what this process has started too, and
    /// what fails then is of no interest.
    pub fn give_way(&self) {
        while self.0.load(Ordering::Relaxed) {
            std::thread::park();
        }
    }
}

/// Ends this process as the signal would have: a shell that runs a script stops it then.
fn die(signal: i32) -> ! {
    if std::process::id() != 1 {
        drop(low_level::emulate_default_handler(signal));
    }
    low_level::exit(128 + signal)
}

/// The starts of a command that have not come to an end.
#[derive(Default)]
pub struct Starts(Mutex<Vec<Start>>);

struct Start {
    record: Record,
    /// The connection over which the host was asked for the job, or is about to be.
    asked: Option<DetachedConnection>,
}

impl Starts {
    fn lock(&self) -> MutexGuard<'_, Vec<Start>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job is recorded.
    pub fn begin(&self, record: &Record) {
        let record = record.clone();
        let asked = None;
        self.lock().push(Start { record, asked });
    }

    /// The host is about to be asked for it. Where all is given up, this does not return.
    pub fn asked(&self, id: &JobId, connection: DetachedConnection) {
        let mut starts = self.lock();
        if let Some(start) = starts.iter_mut().find(|start| start.record.id == *id) {
            start.asked = Some(connection);
        }
    }

    /// Tells the user what became of it. Where all is given up, this does not return.
    pub fn end(&self, id: &JobId, tell: impl FnOnce()) {
        let mut starts = self.lock();
        starts.retain(|start| start.record.id != *id);
        tell();
    }

    /// Gives all of them up. Those whose host was not asked do not happen; the others are cancelled, or the user is told.
    pub fn give_up(&self) {
        // Held to the end, so that no other start is sent meanwhile.
        let mut starts = self.lock();
        let mut over: Vec<Record> = Vec::new();
        let cancelled: Vec<_> = starts
            .drain(..)
            .map(|Start { record, asked }| {
                let place = record.job_dir();
                let thread = asked
                    .map(|line| std::thread::Builder::new().spawn(move || give_up(line, place)));
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
        // No start may be sent from now on.
        std::mem::forget(starts);
    }
}

/// Cancels a start that was given up as soon as its host can be reached, in a thread that nobody waits for.
pub fn cancel_later(line: DetachedConnection, place: String) {
    if let Ok(script) = cancelling_script(&place) {
        // Here and not in the thread: this process may end at once, and a shared keeper does it then.
        line.connection().leave_script(script);
    }
    let work = move || {
        let mut line = line.connection();
        let until = Instant::now() + CANCEL_LATER_MAX;
        let left = || until.saturating_duration_since(Instant::now());
        // After that, the job's time limit ends it.
        let _ = keep_trying(left, || {
            let host = line.host();
            let cancelled = line.ask(|shell| cancel(&host, shell, &place));
            if cancelled.is_err() {
                line.hang_up();
            }
            cancelled
        });
    };
    // Without a thread, its time limit ends it too.
    let _ = std::thread::Builder::new().spawn(work);
}

/// Cancels a start that was given up, and says whether the host has confirmed that in time. Where it has not, a shared
/// keeper does it when it can.
pub fn give_up(line: DetachedConnection, place: String) -> bool {
    let script = cancelling_script(&place);
    let (sender, receiver) = mpsc::channel();
    let line = Arc::new(line);
    let own = Arc::clone(&line);
    let work = move || {
        let mut line = own.connection();
        let host = line.host();
        let cancelled = line
            .shell()
            .and_then(|mut shell| cancel(&host, shell.as_mut(), &place));
        // The receiver is dropped when the time is over.
        let _ = sender.send(cancelled.is_ok());
    };
    let started = std::thread::Builder::new().spawn(work);
    let confirmed = started.is_ok() && receiver.recv_timeout(CANCEL_MAX).unwrap_or(false);
    if !confirmed && let Ok(script) = script {
        line.connection().leave_script(script);
    }
    confirmed
}
