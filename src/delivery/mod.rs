//! Gets signals to the jobs of one host, each exactly once, and follows the jobs to their ends.
//!
//! Each delivery has a claim: a word that the host turns into a file which only one script can create. Whatever breaks
//! in between, whoever comes later with the same claim sends nothing twice. A signal goes by its job's relay where one is
//! held ([`relay`]), else by pid in a script ([`script`]). What can't be asked any more is said to be unknown, never to
//! be done.

mod course;
mod relay;
mod script;

use std::time::{Duration, Instant};

use course::Course;
pub use course::{NOT_BELIEVED, ended_before};

use crate::clock;
use crate::connection::Line;
use crate::error::{Failure, Kind};
use crate::job::{Record, Target};
use crate::signal::Signal;

/// The shortest time from one script of a wait to the next.
const SHORTEST: Duration = Duration::from_millis(200);
/// How often a broken connection is made anew before a delivery gives up.
const RETRIES: u32 = 2;
/// A try that fails after this time, beyond what was waited, has found a silent host.
const SILENT: Duration = Duration::from_secs(25);
/// For how long a wait outlives the host that it asks: a server that is started anew takes less.
const GONE: Duration = Duration::from_secs(30);

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
    /// Which ways the signals may take.
    pub ways: Ways,
}

/// Which ways a signal may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ways {
    /// By the job's relay where one is held, else by pid.
    #[default]
    Any,
    /// By the relay alone.
    Channel,
    /// By pid alone.
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

/// How long is waited, and for what.
pub struct Clock {
    /// How long for each of the two signals.
    pub wait: Duration,
    /// When that is over for the one at hand.
    pub until: Instant,
    /// The second signals have had their time.
    pub second: bool,
}

/// Carries out orders for jobs of one host: sends the signals, and waits for the jobs for as long as `wait` says, if at
/// all. Each job's outcome is passed on as soon as it is known.
pub fn deliver(
    line: &mut Line,
    orders: Vec<Order>,
    wait: Option<Duration>,
    on_outcome: &mut dyn FnMut(Outcome),
) {
    let mut courses = Vec::with_capacity(orders.len());
    for order in orders {
        let record = order.record.clone();
        match Course::new(order) {
            Ok(course) => courses.push(course),
            Err(failure) => on_outcome(Outcome {
                error: Some(failure),
                ..Outcome::of(record)
            }),
        }
    }
    if let Err(failure) = line.connect() {
        return give_up(courses, &failure, wait.is_some(), on_outcome);
    }
    let started = Instant::now();
    // When the host was last known to be there; at first a keeper may hold no more than the memory of a connection.
    let mut there = (!line.may_be_stale()).then_some(started);
    if relay::deliver(
        line,
        &mut courses,
        wait.map(|wait| started + wait),
        on_outcome,
    ) {
        there = Some(Instant::now());
    }
    let mut clock = wait.map(|wait| Clock {
        wait,
        until: started + wait,
        second: false,
    });
    let (mut breaks, mut wordless) = (0, 0);
    // What had been asked for before the first shell that ended without a word.
    let mut before = None;
    while !courses.is_empty() {
        let asked_at = Instant::now();
        let asked: Vec<(bool, bool)> = courses
            .iter()
            .map(|course| (course.asked, course.then_asked))
            .collect();
        let plan = script::plan(&courses, clock.as_ref());
        let seconds = plan.then_wait.filter(|_| !plan.then.is_empty());
        match script::carry_out_plan(line, &mut courses, &plan, started, on_outcome) {
            Ok(()) => (breaks, wordless, before, there) = (0, 0, None, Some(Instant::now())),
            // Killed in the middle, perhaps: only where there is none a second time, there was none the first time.
            Err(failure) if failure.kind == Kind::NoShell => {
                wordless += 1;
                before.get_or_insert(asked);
                if line.gives_another(wordless) {
                    continue;
                }
                for (course, asked) in courses.iter_mut().zip(before.unwrap_or_default()) {
                    (course.asked, course.then_asked) = asked;
                }
                return give_up(courses, &failure, wait.is_some(), on_outcome);
            }
            Err(failure) if failure.kind == Kind::Unreachable && breaks < RETRIES => {
                // A silent host takes long to find out about: it is tried once more, not twice.
                breaks += if asked_at.elapsed() < clock::long(SILENT) {
                    1
                } else {
                    RETRIES
                };
                let patience = there
                    .zip(clock.as_ref())
                    .map(|(there, clock)| clock.until.min(there + clock::long(GONE)));
                if let Err(failure) = line.connect_again(&failure, patience.unwrap_or(asked_at)) {
                    return give_up(courses, &failure, wait.is_some(), on_outcome);
                }
                there = there.map(|_| Instant::now());
                continue;
            }
            Err(failure) => return give_up(courses, &failure, wait.is_some(), on_outcome),
        }
        if courses.is_empty() {
            return;
        }
        let Some(clock) = &mut clock else {
            let failure = Failure::new(
                Kind::Failed,
                format!("{}: it gave no answer about the job", line.host()),
            );
            return give_up(courses, &failure, wait.is_some(), on_outcome);
        };
        if let Some(then_wait) = seconds {
            clock.second = true;
            clock.until = Instant::now() + clock.wait.saturating_sub(then_wait);
        }
        let more = !clock.second && courses.iter().any(|course| course.then_unsent().is_some());
        if Instant::now() >= clock.until && !more {
            courses
                .into_iter()
                .for_each(|course| on_outcome(course.outcome));
            return;
        }
        // A job that is only about to start can't be waited for there.
        std::thread::sleep(
            SHORTEST
                .saturating_sub(asked_at.elapsed())
                .min(clock.until.saturating_duration_since(asked_at)),
        );
    }
}

fn give_up(
    courses: Vec<Course>,
    failure: &Failure,
    waiting: bool,
    on_outcome: &mut dyn FnMut(Outcome),
) {
    for mut course in courses {
        course.give_up(failure, waiting);
        on_outcome(course.outcome);
    }
}
