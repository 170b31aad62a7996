//! Gets signals to the jobs of one host, each exactly once, and follows the jobs to their ends.
//!
//! Each delivery has a claim: a random word that the host turns into a file which only one script can create. Whatever
//! breaks in between, a script that is sent again with the same claim sends nothing twice. What can't be asked any more
//! is said to be unknown, never to be done. Today every delivery goes by pid, in a script of [`crate::remote::signal`].

use std::time::{Duration, Instant};

use crate::error::{Failure, Kind};
use crate::job::{self, Record, State, Target};
use crate::printable::printable;
use crate::remote::signal::{Event, Hit, Plan, Shot, carry_out};
use crate::remote::{Seen, Standing};
use crate::signal::Signal;
use crate::transport::Line;

/// The longest that one script waits: what breaks silently is found out after that.
const SCRIPT: Duration = Duration::from_secs(10);
/// The shortest time from one script of a wait to the next.
const SHORTEST: Duration = Duration::from_millis(200);
/// How often a broken connection is made anew before a delivery gives up.
const RETRIES: u32 = 2;
/// A try that fails after this time, beyond what was waited, has found a silent host.
const SILENT: Duration = Duration::from_secs(25);

/// The way that a signal took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// By the SSH channel's own signal request.
    Channel,
    /// By a `kill` on the host.
    Pid,
}

impl Via {
    /// The word of the JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Pid => "pid",
        }
    }
}

/// What became of a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sent {
    /// Nothing was sent.
    #[default]
    No,
    /// The host confirmed it.
    Yes(Via),
    /// The connection broke, and the host can't be asked.
    Unknown,
}

/// What is to happen to one job.
#[derive(Clone)]
pub struct Order {
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
}

impl Outcome {
    /// A job that nothing was done to.
    #[must_use]
    pub fn of(record: Record) -> Self {
        Self { record, sent: Sent::No, then: None, still_running: None, waited: Duration::ZERO, error: None }
    }
}

/// One job on its way.
struct Course {
    order: Order,
    claim: String,
    then_claim: String,
    outcome: Outcome,
    /// A script with the first signal was handed over: it may have been sent, whatever came back.
    asked: bool,
    /// The same for the second.
    then_asked: bool,
}

impl Course {
    fn new(order: Order) -> Result<Self, Failure> {
        let outcome = Outcome::of(order.record.clone());
        let (claim, then_claim) = (job::random_hex::<8>()?, job::random_hex::<8>()?);
        Ok(Self { order, claim, then_claim, outcome, asked: false, then_asked: false })
    }

    /// The job's directory on its host, or its id where that is not known yet.
    fn place(&self) -> String {
        let record = &self.outcome.record;
        record.dir.clone().unwrap_or_else(|| record.id.to_string())
    }

    /// The first signal, if it still has to be sent.
    fn unsent(&self) -> Option<Signal> {
        self.order.signal.filter(|_| self.outcome.sent == Sent::No)
    }

    /// The second signal, if it still has to be sent.
    fn then_unsent(&self) -> Option<Signal> {
        self.order.then.filter(|_| self.outcome.then.is_none())
    }

    fn shot(&self, signal: Signal, claim: &str, retry: bool) -> Shot {
        let (target, wake) = (self.order.target, self.order.wake);
        Shot { place: self.place(), claim: claim.to_owned(), signal, target, wake, retry }
    }

    fn fail(&mut self, kind: Kind, what: &str) -> bool {
        self.outcome.error = Some(Failure::new(kind, format!("{}: {what}", self.order.record.label())));
        true
    }

    /// Takes the answer to a shot, and says whether that settles the job.
    fn hit(&mut self, hit: Hit, waiting: bool) -> bool {
        let sent = match hit {
            Hit::Sent => Sent::Yes(Via::Pid),
            Hit::Gone | Hit::Denied => Sent::No,
            Hit::Unconfirmed => Sent::Unknown,
        };
        if self.unsent().is_some() {
            self.outcome.sent = sent;
        } else {
            self.outcome.then = Some(sent);
        }
        match hit {
            Hit::Sent => false,
            Hit::Gone if waiting => false,
            Hit::Gone => {
                self.outcome.still_running = Some(false);
                self.fail(Kind::NotRunning, "its process was gone; nothing was sent")
            }
            Hit::Denied => self.fail(
                Kind::NotPermitted,
                "its processes are another user's by now; its host lets nobody else signal them",
            ),
            Hit::Unconfirmed => self
                .fail(Kind::Unconfirmed, "the host cut an earlier try short; whether the signal was sent is not known"),
        }
    }

    /// Takes what the host says of the job, and says whether that settles it.
    fn see(&mut self, seen: &Seen, waiting: bool) -> bool {
        let state = seen.state(&self.outcome.record);
        seen.update(&mut self.outcome.record);
        match (state, seen.standing) {
            (State::Exited | State::Lost, _) => {
                self.outcome.still_running = Some(false);
                if !waiting && self.unsent().is_some() {
                    self.outcome.error = Some(ended_before(&self.outcome.record));
                }
                true
            }
            (State::Unknown, Standing::Elsewhere) => {
                let node = printable(seen.node.as_deref().unwrap_or("another machine"), 80);
                self.fail(
                    Kind::Unreachable,
                    &format!("it runs on {node}, and another machine answers under that host's name; nothing was sent"),
                )
            }
            (State::Unknown, _) => self
                .fail(Kind::Failed, "others could have written to its directory there, so nothing in it is believed"),
            (State::Starting, _) if self.unsent().is_some() => {
                self.fail(Kind::Failed, "it has not started yet; try again in a moment")
            }
            _ => {
                self.outcome.still_running = Some(true);
                if !waiting && self.unsent().is_some_and(|signal| !signal.is_existence_check()) {
                    self.outcome.sent = Sent::Unknown;
                    return self.fail(Kind::Unconfirmed, "its host does not say whether the signal was sent");
                }
                !waiting
            }
        }
    }

    /// The host can't be asked any more.
    fn give_up(&mut self, failure: &Failure, waiting: bool) {
        if !waiting && matches!(self.outcome.sent, Sent::Yes(_)) {
            // Only how the job stood then is missing.
            return;
        }
        if self.unsent().is_some() && self.asked {
            self.outcome.sent = Sent::Unknown;
        } else if self.then_unsent().is_some() && self.then_asked {
            self.outcome.then = Some(Sent::Unknown);
        } else {
            self.outcome.error = Some(failure.clone());
            return;
        }
        let message = format!(
            "{}: the connection broke before the host confirmed the signal, and can't be made again, so whether it was \
             sent is not known ({failure})",
            self.order.record.label()
        );
        self.outcome.error = Some(Failure::new(Kind::Unconfirmed, message));
    }
}

/// The failure of a signal for a job that is over.
#[must_use]
pub fn ended_before(record: &Record) -> Failure {
    let end = match (record.state, record.exit_status) {
        (State::Exited, Some(status)) => format!("it had already ended with status {status}"),
        _ => "it is lost: gone, and nothing recorded its end".to_owned(),
    };
    Failure::new(Kind::NotRunning, format!("{}: {end}; nothing was sent", record.label()))
}

/// How long is waited, and for what.
struct Clock {
    wait: Duration,
    until: Instant,
    /// The second signals have had their time.
    second: bool,
}

/// Carries out orders for jobs of one host: sends the signals, and waits for the jobs for as long as `wait` says, if at
/// all. Each job's outcome is passed on as soon as it is known.
pub fn deliver(line: &mut Line, orders: Vec<Order>, wait: Option<Duration>, on_outcome: &mut dyn FnMut(Outcome)) {
    let mut courses = Vec::with_capacity(orders.len());
    for order in orders {
        let record = order.record.clone();
        match Course::new(order) {
            Ok(course) => courses.push(course),
            Err(failure) => on_outcome(Outcome { error: Some(failure), ..Outcome::of(record) }),
        }
    }
    if let Err(failure) = line.connect() {
        return give_up(courses, &failure, wait.is_some(), on_outcome);
    }
    let started = Instant::now();
    let mut clock = wait.map(|wait| Clock { wait, until: started + wait, second: false });
    let mut breaks = 0;
    while !courses.is_empty() {
        let asked_at = Instant::now();
        let plan = plan(&courses, clock.as_ref());
        let seconds = plan.then_wait.filter(|_| !plan.then.is_empty());
        match carry_out_plan(line, &mut courses, &plan, started, on_outcome) {
            Ok(()) => breaks = 0,
            Err(failure) if failure.kind == Kind::Unreachable && breaks < RETRIES => {
                // A silent host takes long to find out about: it is tried once more, not twice.
                breaks += if asked_at.elapsed() < SILENT { 1 } else { RETRIES };
                line.hang_up();
                if let Err(failure) = line.connect() {
                    return give_up(courses, &failure, wait.is_some(), on_outcome);
                }
                continue;
            }
            Err(failure) => return give_up(courses, &failure, wait.is_some(), on_outcome),
        }
        let Some(clock) = &mut clock else {
            let failure = Failure::new(Kind::Failed, format!("{}: it gave no answer about the job", line.host()));
            return give_up(courses, &failure, wait.is_some(), on_outcome);
        };
        if let Some(then_wait) = seconds {
            clock.second = true;
            clock.until = Instant::now() + clock.wait.saturating_sub(then_wait);
        }
        let more = !clock.second && courses.iter().any(|course| course.then_unsent().is_some());
        if Instant::now() >= clock.until && !more {
            courses.into_iter().for_each(|course| on_outcome(course.outcome));
            return;
        }
        // A job that is only about to start can't be waited for there.
        std::thread::sleep(
            SHORTEST.saturating_sub(asked_at.elapsed()).min(clock.until.saturating_duration_since(asked_at)),
        );
    }
}

fn give_up(courses: Vec<Course>, failure: &Failure, waiting: bool, on_outcome: &mut dyn FnMut(Outcome)) {
    for mut course in courses {
        course.give_up(failure, waiting);
        on_outcome(course.outcome);
    }
}

/// What the next script does: what has not been sent is sent, what has is waited for. The second signals go into the
/// script in which the time runs out, so that the host decides whether they are needed.
fn plan(courses: &[Course], clock: Option<&Clock>) -> Plan {
    let left = clock.map(|clock| clock.until.saturating_duration_since(Instant::now()));
    let mut plan = Plan { wait: left.map(|left| left.min(SCRIPT)), ..Plan::default() };
    let time_for_second = clock.is_some_and(|clock| !clock.second) && left.is_some_and(|left| left <= SCRIPT);
    for (index, course) in courses.iter().enumerate() {
        plan.jobs
            .push((course.place(), course.unsent().map(|signal| course.shot(signal, &course.claim, course.asked))));
        if let Some(signal) = course.then_unsent().filter(|_| time_for_second) {
            plan.then.push((index, course.shot(signal, &course.then_claim, course.then_asked)));
        }
    }
    plan.then_wait = clock.map(|clock| clock.wait.min(SCRIPT));
    plan
}

/// Carries out one script, and takes the jobs out of `courses` that it settles.
fn carry_out_plan(
    line: &mut Line,
    courses: &mut Vec<Course>,
    plan: &Plan,
    started: Instant,
    on_outcome: &mut dyn FnMut(Outcome),
) -> Result<(), Failure> {
    let host = line.host();
    let mut shell = line.shell()?;
    let asked_before: Vec<(bool, bool)> = courses.iter().map(|course| (course.asked, course.then_asked)).collect();
    for course in courses.iter_mut() {
        course.asked = true;
    }
    for (index, _) in &plan.then {
        if let Some(course) = courses.get_mut(*index) {
            course.then_asked = true;
        }
    }
    let mut settled = vec![false; courses.len()];
    let result = carry_out(&host, shell.as_mut(), plan, &mut |event| {
        let (Event::Hit(index, _) | Event::Seen(index, _)) = event;
        let (Some(course), Some(settled)) = (courses.get_mut(index), settled.get_mut(index)) else { return };
        if *settled {
            return;
        }
        *settled = match event {
            Event::Hit(_, hit) => course.hit(hit, plan.wait.is_some()),
            Event::Seen(_, seen) => course.see(&seen, plan.wait.is_some()),
        };
        if *settled {
            course.outcome.waited = started.elapsed();
            on_outcome(course.outcome.clone());
        }
    });
    if matches!(&result, Err(failure) if failure.kind == Kind::NoShell) {
        for (course, before) in courses.iter_mut().zip(asked_before) {
            (course.asked, course.then_asked) = before;
        }
    }
    let mut settled = settled.into_iter();
    courses.retain_mut(|course| {
        course.outcome.waited = started.elapsed();
        !settled.next().unwrap_or_default()
    });
    result
}
