//! `top`: a live view of the jobs of all hosts on a terminal. [`crate::terminal::screen`] decides what is on the screen
//! and what keys do.
//!
//! Each host is asked by a thread of its own, so that a host that does not respond delays no other. The action of a key
//! is carried out by the code of the other verbs, in a thread with its own context. The main thread owns the screen.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, IsTerminal as _};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, KeyEvent};
use ratatui::crossterm::execute;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::args::{ConnectionOptions, Parallel};
use super::complete;
use super::context::Context;
use super::deliver::{SendOptions, send};
use super::jobs::{Job, Jobs, by_host};
use super::ps::{Filter, Listing, recorded};
use super::report;
use super::stop::GRACE;
use super::values::{self, Hosts};
use super::wait::{self, WaitOptions};
use crate::connection::{HostConnection, Permits, Policy};
use crate::error::{Failure, Kind, exit, no_thread};
use crate::host::Destination;
use crate::job::{JobId, Record, State, Target};
use crate::remote::{Glance, glance};
use crate::signal::SignalWord;
use crate::sys::process::is_ignored;
use crate::terminal::screen::{Action, Screen, SortKey};
use crate::terminal::{self, ListedJob};

/// Time without an answer after which a host's jobs are shown as unknown.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Pause before a host is asked again after a failure.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);
/// Time that the main thread has to end this process after a signal.
const END_MAX: Duration = Duration::from_secs(1);
/// Interval at which the screen is drawn if nothing happens.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);
/// Interval at which the state file is read.
const LIST_INTERVAL: Duration = Duration::from_secs(1);
/// The exit status of a Rust program that panics.
const PANIC_STATUS: i32 = 101;

/// Watch jobs on a terminal: their resource use and latest output, with keys for signals
#[derive(Args, Debug)]
pub struct Top {
    /// Exited jobs too
    #[arg(short, long)]
    all: bool,
    /// Jobs started on these hosts (spelled as in `spawn`)
    #[arg(long, value_name = "HOST[,HOST]", add = ArgValueCompleter::new(complete::recorded_host))]
    host: Vec<Hosts>,
    /// The key that jobs are sorted by at the start
    #[arg(long, value_name = "KEY", value_enum, default_value_t)]
    sort: SortKey,
    /// The pause between two queries of a host
    #[arg(long, value_name = "DURATION", default_value = "1500ms", value_parser = values::duration)]
    interval: Duration,
    /// Connect directly, without the host's keeper (as with RSIG_KEEPER=0)
    #[arg(long)]
    no_keeper: bool,
    #[command(flatten)]
    parallel: Parallel,
}

impl Top {
    pub fn run(self) -> Result<u8, Failure> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Err(Failure::usage(
                "top needs a terminal as its standard input and output; `rsig ps -r` prints the same once",
            ));
        }
        let (sender, events) = mpsc::channel();
        let (no_keeper, parallel) = (self.no_keeper, self.parallel);
        let new_context = move || new_context(no_keeper, parallel);
        let context = new_context()?;
        let mut top = Watcher {
            permits: Arc::new(Permits::new(context.policy.parallel)),
            screen: Screen::new(self.sort, terminal::is_coloured()),
            interval: self.interval,
            all: self.all,
            filter: Filter {
                all: true,
                host: self.host,
                ..Filter::default()
            },
            context,
            new_context: Arc::new(new_context),
            hosts: HashMap::new(),
            shown: None,
            sender,
        };
        // These steps can fail, so they come before the terminal is taken over.
        top.list()?;
        on_signals(&top.sender)?;
        let mut screen = FullScreen::enter()?;
        on_keys(&top.sender)?;
        top.run_until_end(&mut screen.0, &events)
    }
}

/// Messages that the other verbs print on standard error.
static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn notes() -> Vec<String> {
    std::mem::take(&mut NOTES.lock().unwrap_or_else(PoisonError::into_inner))
}

fn new_context(no_keeper: bool, parallel: Parallel) -> Result<Context, Failure> {
    let reach = ConnectionOptions {
        verbose: false,
        no_keeper,
        quiet: true,
    };
    let note = |text: &str| {
        let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push(text.to_owned());
    };
    let mut context = reach.context_with(note)?;
    context.policy.parallel = parallel.number();
    // No prompts: the screen occupies the terminal.
    context.policy.batch = true;
    Ok(context)
}

/// An event while the screen is shown.
enum Update {
    Key(KeyEvent),
    Resized,
    Answer(Destination, Task, Result<Glance, Failure>),
    /// The result of a key's action, as text.
    Told(String),
    /// A signal; HUP also if the terminal is gone.
    Signal(i32),
}

/// What a host is asked about.
struct Task {
    jobs: Vec<Record>,
    /// The job whose output is shown.
    shown: Option<JobId>,
}

/// A host, and the thread that asks it.
struct Host {
    tasks: Sender<Task>,
    /// When the host was asked, while its answer is pending.
    asked: Option<Instant>,
    /// When the host is to be asked next.
    due: Instant,
    failure: Option<String>,
}

struct Watcher {
    screen: Screen,
    interval: Duration,
    all: bool,
    filter: Filter,
    context: Context,
    new_context: Arc<dyn Fn() -> Result<Context, Failure> + Send + Sync>,
    permits: Arc<Permits>,
    hosts: HashMap<Destination, Host>,
    /// The job whose output was requested last.
    shown: Option<JobId>,
    sender: Sender<Update>,
}

impl Watcher {
    /// Runs until the user quits or a signal arrives. Returns the exit status.
    fn run_until_end(
        &mut self,
        terminal: &mut DefaultTerminal,
        events: &Receiver<Update>,
    ) -> Result<u8, Failure> {
        let mut listed = Instant::now();
        loop {
            if listed.elapsed() >= LIST_INTERVAL {
                listed = Instant::now();
                if let Err(failure) = self.list() {
                    self.screen.message = failure.message;
                }
            }
            self.ask();
            self.screen.host_errors = self.silent_hosts();
            terminal
                .draw(|frame| self.screen.draw(frame))
                .map_err(|error| unusable(&error))?;
            let mut next = events.recv_timeout(DRAW_INTERVAL).ok();
            while let Some(event) = next {
                if let Some(status) = self.take(event) {
                    return Ok(status);
                }
                next = events.try_recv().ok();
            }
            if let Some(text) = notes().pop() {
                self.screen.message = text;
            }
        }
    }

    /// Lists the recorded jobs. Keeps what hosts have reported since, and jobs that have ended meanwhile.
    fn list(&mut self) -> Result<(), Failure> {
        let mut listing = Listing::default();
        recorded(&self.context, &self.filter, &mut listing)?;
        let shown = std::mem::take(&mut self.screen.jobs).into_iter();
        let mut known: HashMap<JobId, ListedJob> =
            shown.map(|job| (job.record.id.clone(), job)).collect();
        for mut job in listing.jobs {
            let known = known.remove(&job.record.id);
            if !self.all && known.is_none() && job.state == State::Exited {
                continue;
            }
            if let Some(known) = known {
                job.usage = known.usage;
                if job.record.state != State::Exited {
                    job.state = known.state;
                }
            }
            self.screen.jobs.push(job);
        }
        Ok(())
    }

    /// Asks each host that is due.
    fn ask(&mut self) {
        let selected = self.screen.selected().cloned();
        let shown = selected.as_ref().map(|record| record.id.clone());
        if shown != self.shown {
            self.shown.clone_from(&shown);
            if let Some(host) = selected.and_then(|record| self.hosts.get_mut(&record.destination))
            {
                host.due = Instant::now();
            }
        }
        let is_asked =
            |job: &&ListedJob| job.state != State::Exited || Some(&job.record.id) == shown.as_ref();
        let jobs = self.screen.jobs.iter().filter(is_asked);
        let groups = by_host(jobs.map(|job| Job::from(job.record.clone())).collect());
        self.hosts
            .retain(|host, _| groups.iter().any(|(destination, _)| destination == host));
        for (destination, jobs) in groups {
            let host = match self.hosts.entry(destination) {
                Entry::Occupied(host) => host.into_mut(),
                Entry::Vacant(entry) => {
                    let (permits, sender) = (Arc::clone(&self.permits), self.sender.clone());
                    match on_host(entry.key().clone(), self.context.policy, permits, sender) {
                        Ok(tasks) => entry.insert(Host {
                            tasks,
                            asked: None,
                            due: Instant::now(),
                            failure: None,
                        }),
                        Err(failure) => {
                            drop(self.sender.send(Update::Told(failure.message)));
                            continue;
                        }
                    }
                }
            };
            if host.asked.is_some() || host.due > Instant::now() {
                continue;
            }
            let jobs: Vec<Record> = jobs.into_iter().map(|job| job.record).collect();
            let has_shown = jobs.iter().any(|record| Some(&record.id) == shown.as_ref());
            let shown = shown.clone().filter(|_| has_shown);
            host.asked = Some(Instant::now());
            // Can't fail: the host's thread lasts as long as this sender.
            drop(host.tasks.send(Task { jobs, shown }));
        }
    }

    /// Messages on hosts that fail or do not respond, sorted. Marks the jobs of hosts that do not respond as unknown.
    fn silent_hosts(&mut self) -> Vec<String> {
        let mut troubles = Vec::new();
        for (destination, host) in &self.hosts {
            let waited = host.asked.map(|asked| asked.elapsed()).unwrap_or_default();
            if waited < ANSWER_MAX {
                troubles.extend(host.failure.clone());
                continue;
            }
            troubles.push(format!(
                "{destination}: no answer for {} s",
                waited.as_secs()
            ));
            for job in &mut self.screen.jobs {
                if job.record.destination == *destination && !job.state.is_finished() {
                    job.state = State::Unknown;
                }
            }
        }
        troubles.sort();
        troubles
    }

    /// Handles an event. Returns an exit status if this process is to end.
    fn take(&mut self, event: Update) -> Option<u8> {
        match event {
            Update::Key(key) => return self.screen.key(key).and_then(|action| self.act(action)),
            Update::Resized => {}
            Update::Answer(destination, task, answer) => {
                self.take_answer(&destination, task, answer);
            }
            Update::Told(text) => {
                self.screen.message = text;
                let now = Instant::now();
                self.hosts
                    .values_mut()
                    .for_each(|host| host.due = host.due.min(now));
            }
            Update::Signal(signal) => return u8::try_from(128 + signal).ok(),
        }
        None
    }

    fn take_answer(
        &mut self,
        destination: &Destination,
        task: Task,
        answer: Result<Glance, Failure>,
    ) {
        let (answer, failure) = match answer {
            Ok(glance) => (Some(glance), None),
            Err(failure) => (None, Some(failure.message)),
        };
        if let Some(host) = self.hosts.get_mut(destination) {
            let pause = failure.as_ref().map_or(self.interval, |_| FAILURE_PAUSE);
            host.asked = None;
            host.due = Instant::now() + pause;
            host.failure = failure;
        }
        let mut seen = Vec::new();
        if let Some(glance) = answer {
            seen = glance.jobs;
            if let Some(shown) = &task.shown {
                self.screen.take_output(shown, &glance.out, &glance.err);
            }
        }
        let mut seen = seen.into_iter();
        let mut changed = Vec::new();
        for record in task.jobs {
            let answer = seen.next();
            let mut jobs = self.screen.jobs.iter_mut();
            let Some(job) = jobs.find(|job| job.record.id == record.id) else {
                continue;
            };
            let before = job.record.clone();
            job.take(answer);
            // A change of the check's time alone is not written.
            let mut now = job.record.clone();
            now.checked_at = before.checked_at;
            if now != before {
                changed.push(job.record.clone());
            }
        }
        self.context.store.update(&changed);
    }

    fn act(&mut self, action: Action) -> Option<u8> {
        match action {
            Action::Quit => return Some(exit::DONE),
            Action::Interrupt => return u8::try_from(128 + SIGINT).ok(),
            Action::Send(signal, jobs) => {
                self.signal(jobs, signal, SendOptions::default());
            }
            Action::End(jobs) => {
                let sending = SendOptions::stop(GRACE, Target::default());
                self.signal(jobs, SignalWord::TERM, sending);
            }
            Action::Wait(jobs) => {
                "waiting for the end".clone_into(&mut self.screen.message);
                self.start(move |context, tell| {
                    let until = WaitOptions {
                        patient: true,
                        ..WaitOptions::default()
                    };
                    for report in wait::wait(context, named(jobs), until) {
                        tell(match &report.outcome {
                            Ok(outcome) if outcome.error.is_none() => wait::line(&outcome.record),
                            _ => report
                                .failure()
                                .map_or_else(String::new, ToString::to_string),
                        });
                    }
                });
            }
        }
        None
    }

    fn signal(&mut self, jobs: Vec<Record>, signal: SignalWord, sending: SendOptions) {
        self.screen.message = format!("sending {signal}");
        self.start(move |context, tell| {
            let mut all = Vec::new();
            for report in send(context, named(jobs), signal, &sending) {
                all.push(report::sentence(&report, &sending));
                tell(all.join("; "));
            }
        });
    }

    /// Carries out a key's action in a thread that is never joined.
    fn start(&self, work: impl FnOnce(&mut Context, &dyn Fn(String)) + Send + 'static) {
        let (new_context, sender) = (Arc::clone(&self.new_context), self.sender.clone());
        let told = sender.clone();
        let started = in_thread(move || {
            let tell = |text| drop(sender.send(Update::Told(text)));
            match new_context() {
                Ok(mut context) => work(&mut context, &tell),
                Err(failure) => tell(failure.message),
            }
        });
        if let Err(failure) = started {
            drop(told.send(Update::Told(failure.message)));
        }
    }
}

fn named(jobs: Vec<Record>) -> Jobs {
    Jobs {
        found: jobs.into_iter().map(Job::from).collect(),
        ..Jobs::default()
    }
}

/// Starts the thread that asks a host. It ends when the returned sender is dropped.
fn on_host(
    destination: Destination,
    policy: Policy,
    permits: Arc<Permits>,
    events: Sender<Update>,
) -> Result<Sender<Task>, Failure> {
    let (tasks, received) = mpsc::channel::<Task>();
    let ask = move || {
        let mut connection = HostConnection::new(&destination, &policy).with_permits(permits);
        let host = connection.host();
        for task in received {
            let places: Vec<String> = task.jobs.iter().map(Record::job_dir).collect();
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            let is_shown = |record: &Record| Some(&record.id) == task.shown.as_ref();
            let shown = task.jobs.iter().position(is_shown);
            let shown = shown.and_then(|index| places.get(index).copied());
            let answer = connection.ask(|shell| glance(&host, shell, &places, shown));
            if answer.is_err() {
                connection.close();
            }
            drop(events.send(Update::Answer(destination.clone(), task, answer)));
        }
    };
    in_thread(ask).map(|()| tasks)
}

fn in_thread(work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let started = std::thread::Builder::new().spawn(work);
    started.map(drop).map_err(|error| no_thread(&error))
}

fn on_keys(events: &Sender<Update>) -> Result<(), Failure> {
    let events = events.clone();
    in_thread(move || {
        loop {
            let event = match event::read() {
                Ok(event::Event::Key(key)) => Update::Key(key),
                Ok(_) => Update::Resized,
                Err(_) => Update::Signal(SIGHUP),
            };
            let is_over = matches!(event, Update::Signal(_));
            if events.send(event).is_err() || is_over {
                return;
            }
        }
    })
}

/// Ends this process on the signals that end other programs, with its terminal restored, even if the main thread is
/// blocked.
fn on_signals(events: &Sender<Update>) -> Result<(), Failure> {
    let taken = [SIGHUP, SIGINT, SIGTERM]
        .into_iter()
        .filter(|signal| !is_ignored(*signal));
    let mut signals = Signals::new(taken).map_err(|error| {
        Failure::new(Kind::Failed, format!("signals can't be received: {error}"))
    })?;
    let events = events.clone();
    in_thread(move || {
        if let Some(signal) = signals.forever().next() {
            drop(events.send(Update::Signal(signal)));
            std::thread::sleep(END_MAX);
            restore();
            std::process::exit(128 + signal);
        }
    })
}

/// The terminal in full-screen mode, until this is dropped.
struct FullScreen(DefaultTerminal);

/// Restores the terminal and shows the cursor, which ratatui does only when its own terminal is dropped. Errors are
/// ignored: the terminal may be gone.
fn restore() {
    drop(ratatui::try_restore());
    drop(execute!(io::stdout(), Show));
}

impl FullScreen {
    fn enter() -> Result<Self, Failure> {
        let terminal = ratatui::try_init().map_err(|error| {
            restore();
            unusable(&error)
        })?;
        // A panic in any thread ends the process: the other threads must not go on drawing.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
            std::process::exit(PANIC_STATUS);
        }));
        Ok(Self(terminal))
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        restore();
    }
}

fn unusable(error: &io::Error) -> Failure {
    Failure::new(Kind::Failed, format!("the terminal can't be used: {error}"))
}
