//! Passes the user's signals to a foreground job, and applies their effects on the run itself.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{Builder, Scope};
use std::time::{Duration, Instant};

use super::{CONNECT_MAX, PassedSignal, Phase, RunContext, Shared};
use crate::cmd::interrupt::give_up;
use crate::connection::HostConnection;
use crate::delivery::{self, SignalRequest, ViaPolicy};
use crate::error::Kind;
use crate::job::{Record, Target};
use crate::signal::{Os, SignalWord};
use crate::state::{SignalEntry, Store};

/// Maximum wait until another process sends the heartbeats, before this process stops itself.
const HANDOVER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Time that a job whose output can't be delivered any more has to end before KILL.
const END_GRACE: Duration = Duration::from_secs(10);
/// A signal that follows another within this time is passed on but not counted.
const ECHO_WINDOW: Duration = Duration::from_millis(500);
/// Number of INT signals after which the job is killed at once.
const INTERRUPTS_MAX: u32 = 3;
/// Longest sleep of the thread for signals, which is woken by each signal and by the end of the run.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// A signal to deliver.
struct Order {
    record: Box<Record>,
    signal: SignalWord,
    /// Tells, when dropped, that it was delivered.
    _done: Sender<()>,
}

impl<'a> RunContext<'a> {
    /// Stops this process. It sends no heartbeats while stopped, so this first waits until another process does.
    pub(super) fn stop(&self) {
        if self.heartbeat.is_some() {
            let unheld = |shared: &mut Shared<'a>| shared.input.is_none() && !shared.over;
            drop(
                self.changed
                    .wait_timeout_while(self.shared(), HANDOVER_WAIT_MAX, unheld),
            );
        }
        (self.stop)();
    }

    /// Starts the threads that pass the user's signals to the job.
    pub(super) fn start_passing<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        signals: Receiver<Option<PassedSignal>>,
    ) -> io::Result<()> {
        let (orders, queued) = mpsc::channel();
        // A host that hangs holds up each delivery, and must not hold up the end of the run.
        let deliver = move || {
            for Order { record, signal, .. } in queued {
                self.deliver(&record, signal, None, None);
            }
        };
        Builder::new().spawn_scoped(scope, deliver)?;
        Builder::new().spawn_scoped(scope, move || self.pass_signals(&signals, &orders))?;
        Ok(())
    }

    /// Passes the user's signals to the job. After a signal that asks the job to end, makes sure that the job and this
    /// process do end.
    fn pass_signals(&self, signals: &Receiver<Option<PassedSignal>>, orders: &Sender<Order>) {
        // A failed send means that the run is over.
        let send = |record: &Record, signal, done| {
            let record = Box::new(record.clone());
            drop(orders.send(Order {
                record,
                signal,
                _done: done,
            }));
        };
        let (mut kill_at, mut give_up): (Option<Instant>, Option<(Instant, u8)>) = (None, None);
        let (mut interrupts, mut last) = (0, None::<Instant>);
        while !self.shared().over {
            let now = Instant::now();
            let next = kill_at.into_iter().chain(give_up.map(|(at, _)| at)).min();
            let wait = next.map_or(SLEEP_MAX, |at| at.saturating_duration_since(now));
            // `run` holds a sender, so an error can only be the timeout.
            let pass = signals.recv_timeout(wait).ok().flatten();
            let now = Instant::now();
            let record = {
                let mut shared = self.shared();
                let record = match &shared.phase {
                    Phase::Runs(record) => Some(record.clone()),
                    _ => None,
                };
                shared.given_up |= record.is_none() && pass.is_some_and(|pass| pass.quits);
                record
            };
            let Some(record) = record else {
                if let Some(pass) = pass.filter(|pass| pass.quits) {
                    self.quit(pass.status);
                    return;
                }
                continue;
            };
            if let Some(pass) = pass {
                let (done, delivered) = mpsc::channel();
                send(&record, pass.signal, done);
                if pass.stops {
                    // Ends when the order is dropped.
                    let _ = delivered.recv();
                    self.stop();
                }
                let at = pass.at;
                let counts = pass.ends && last.is_none_or(|last| at - last >= ECHO_WINDOW);
                if counts {
                    last = Some(at);
                    interrupts += u32::from(pass.interrupts);
                    give_up.get_or_insert((at + self.grace + CONNECT_MAX, pass.status));
                    if kill_at.is_none() {
                        kill_at = Some(at + self.grace);
                    }
                    if interrupts == INTERRUPTS_MAX {
                        kill_at = Some(now);
                    }
                }
            }
            if kill_at.is_some_and(|at| now >= at) {
                kill_at = Some(now + self.grace);
                send(&record, SignalWord::KILL, mpsc::channel().0);
            }
            if let Some((_, status)) = give_up.filter(|(at, _)| now >= *at) {
                (self.note)(&format!(
                    "{}: how it ended is not known; `rsig wait {}` asks again",
                    record.label(),
                    record.id
                ));
                (self.exit)(status);
                return;
            }
        }
    }

    /// Gives up a run whose job does not run yet. A start request that was sent is cancelled.
    pub(super) fn quit(&self, status: u8) {
        let (connection, asked) = {
            let shared = self.shared();
            let connection = match &shared.phase {
                Phase::Asked(connection) => Some(connection.detach()),
                _ => None,
            };
            (connection, shared.asked.clone())
        };
        if let (Some(connection), Some(id)) = (connection, asked)
            && !give_up(connection, self.destination.place_of(id.as_str()))
        {
            (self.note)(&format!(
                "{}: job {id} may still start; its tether ends it then",
                self.destination
            ));
        }
        (self.exit)(status);
    }

    /// Ends a job whose output can't be delivered any more: with TERM, then KILL after `END_GRACE`.
    pub(super) fn end_job(&self, record: &Record) {
        self.deliver(
            record,
            SignalWord::TERM,
            Some(SignalWord::KILL),
            Some(END_GRACE),
        );
    }

    pub(super) fn deliver(
        &self,
        record: &Record,
        signal: SignalWord,
        then: Option<SignalWord>,
        wait: Option<Duration>,
    ) {
        let os = record.system().unwrap_or(Os::Other);
        let signals = signal
            .on(os)
            .and_then(|signal| Ok((signal, then.map(|then| then.on(os)).transpose()?)));
        let Ok((signal, then)) = signals else { return };
        let connection = self.shared().connection.as_ref().map(HostConnection::share);
        let mut connection =
            connection.unwrap_or_else(|| HostConnection::new(self.destination, self.policy));
        let (target, wake) = (Target::Group, then.is_some());
        let order = SignalRequest {
            record: record.clone(),
            signal: Some(signal),
            then,
            target,
            wake,
            ways: ViaPolicy::Pid,
        };
        delivery::deliver(&mut connection, vec![order], wait, &mut |outcome| {
            let sent = [
                Some(SignalEntry {
                    signal,
                    sent: outcome.sent,
                }),
                then.zip(outcome.then)
                    .map(|(signal, sent)| SignalEntry { signal, sent }),
            ];
            if let Ok(mut store) = Store::open(self.note) {
                store.signalled(&outcome.record, target, sent.into_iter().flatten());
            }
            if let Some(failure) = outcome
                .error
                .filter(|failure| failure.kind != Kind::NotRunning)
            {
                (self.note)(&failure.message);
            }
        });
    }
}
