//! Delivery by a job's relay, and the ends that it tells of.
//!
//! Whatever is not settled here is left to the scripts. A signal whose number was told may have been sent, so a script
//! that takes over claims that number; one whose number was not told was not sent.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::course::Course;
use super::{Outcome, Sent, Via, Ways};
use crate::connection::keeper::protocol::{Relayed, Reply};
use crate::connection::{Line, Relays};
use crate::error::Kind;
use crate::job::Target;
use crate::remote::signal::Hit;

/// How long a keeper may take to answer: what it gives the relay, and the signals that wait in front of this one.
const ANSWER: Duration = Duration::from_secs(15);

/// What a job's relay was asked and has answered.
#[derive(Clone, Copy, Default)]
struct Asked {
    /// The signal was asked for.
    signal: bool,
    /// What came of that.
    relayed: Option<Relayed>,
    watch: bool,
    watched: Option<bool>,
    /// It was there to answer.
    answered: bool,
    settled: bool,
    /// Its outcome was passed on.
    told: bool,
}

impl Asked {
    fn is_waited_for(self) -> bool {
        (self.signal && self.relayed.is_none()) || (self.watch && self.watched.is_none())
    }
}

/// Sends what can go by relay. Where the relays of all jobs tell of their ends, also waits for those until `until`.
/// What is left in `courses` is for the scripts. Says whether a relay has answered.
pub fn deliver(
    line: &mut Line,
    courses: &mut Vec<Course>,
    until: Option<Instant>,
    on_outcome: &mut dyn FnMut(Outcome),
) -> bool {
    let started = Instant::now();
    let mut asked = vec![Asked::default(); courses.len()];
    if courses
        .iter()
        .any(|course| until.is_some() || by_channel(course).is_some())
        && let Some(mut relays) = line.relays()
    {
        // A keeper that goes leaves all to the scripts.
        drop(converse(
            relays.as_mut(),
            courses,
            &mut asked,
            until,
            &mut |course, asked| {
                course.outcome.waited = started.elapsed();
                on_outcome(course.outcome.clone());
                asked.told = true;
            },
        ));
        if asked.iter().copied().any(Asked::is_waited_for) {
            // What it does not know of must not be sent after all, when a script has sent it already.
            relays
                .part()
                .into_iter()
                .for_each(|reply| take(&reply, courses, &mut asked, until.is_some()));
        }
    }
    let answered = asked.iter().any(|asked| asked.answered);
    let time_is_over = until.is_some_and(|until| Instant::now() >= until);
    let mut asked = asked.into_iter();
    courses.retain_mut(|course| {
        let Some(asked) = asked.next() else {
            return true;
        };
        course.outcome.waited = started.elapsed();
        let mut settled = asked.settled;
        if !settled && course.unsent().is_some() && course.order.ways == Ways::Channel {
            settled = refuse(course, asked);
        }
        // Sent, and nobody waits; or the relay has not told of an end in the time given.
        if !settled && course.unsent().is_none() && course.then_unsent().is_none() {
            settled = until.is_none() || time_is_over && asked.watched == Some(true);
            course.outcome.still_running = (settled && until.is_some()).then_some(true);
        }
        if settled && !asked.told {
            on_outcome(course.outcome.clone());
        }
        !settled
    });
    answered
}

/// Asks the relays, and hears their answers. While ends are waited for, each is told as it comes.
fn converse(
    relays: &mut dyn Relays,
    courses: &mut [Course],
    asked: &mut [Asked],
    until: Option<Instant>,
    tell: &mut dyn FnMut(&mut Course, &mut Asked),
) -> std::io::Result<()> {
    let held = courses
        .iter_mut()
        .zip(asked.iter_mut())
        .filter(|(course, _)| relays.holds(&course.order.record.id));
    let held: Vec<_> = held.collect();
    for (course, asked) in held {
        let id = &course.order.record.id;
        // Asked first, so that an end that follows from the signal is not missed.
        if until.is_some() {
            asked.watch = true;
            relays.watch(id)?;
        }
        if let Some(name) = by_channel(course) {
            asked.signal = true;
            relays.signal(id, name)?;
        }
    }
    let patience = Instant::now() + ANSWER;
    while asked.iter().copied().any(Asked::is_waited_for) {
        take(&relays.next(patience)?, courses, asked, until.is_some());
    }
    let Some(until) = until else { return Ok(()) };
    let told = |(course, asked): (&Course, &Asked)| {
        asked.settled || course.unsent().is_none() && asked.watched == Some(true)
    };
    while courses.iter().zip(asked.iter()).all(told) {
        let news = courses
            .iter_mut()
            .zip(asked.iter_mut())
            .filter(|(_, asked)| asked.settled && !asked.told);
        news.for_each(|(course, asked)| tell(course, asked));
        if asked.iter().all(|asked| asked.settled) {
            break;
        }
        match relays.next(until) {
            Ok(reply) => take(&reply, courses, asked, true),
            Err(error) if error.kind() == ErrorKind::TimedOut => break,
            Err(error) => {
                asked
                    .iter_mut()
                    .for_each(|asked| asked.watched = Some(false));
                return Err(error);
            }
        }
    }
    Ok(())
}

/// The name under which a course's signal can go by channel, if it can.
fn by_channel(course: &Course) -> Option<&'static str> {
    let order = &course.order;
    let suits = order.ways != Ways::Pid && order.target == Target::Group && !order.wake;
    course.unsent().filter(|_| suits)?.channel_name()
}

/// Takes an answer.
fn take(reply: &Reply, courses: &mut [Course], asked: &mut [Asked], waiting: bool) {
    let (Reply::Numbered { job, .. }
    | Reply::Signalled { job, .. }
    | Reply::Watching { job }
    | Reply::NotWatching { job }
    | Reply::Ended { job, .. }) = reply
    else {
        return;
    };
    let place = courses
        .iter()
        .position(|course| course.order.record.id.as_str() == job);
    let Some((course, asked)) =
        place.and_then(|place| courses.get_mut(place).zip(asked.get_mut(place)))
    else {
        return;
    };
    match reply {
        Reply::Numbered { number, .. } => {
            course.claim = format!("c{number}");
            course.asked = true;
        }
        Reply::Signalled { relayed, .. } => {
            asked.relayed = Some(*relayed);
            let hit = match relayed {
                Relayed::Sent => Hit::Sent,
                Relayed::Gone => Hit::Gone,
                Relayed::Denied => Hit::Denied,
                Relayed::NotHeld | Relayed::NotHonoured | Relayed::Retired => {
                    // Nothing was sent: no number was told.
                    course.asked = false;
                    return;
                }
                Relayed::Unanswered => return,
            };
            asked.settled |= course.hit(Via::Channel, hit, waiting);
        }
        Reply::Watching { .. } => (asked.watched, asked.answered) = (Some(true), true),
        Reply::NotWatching { .. } => asked.watched = Some(false),
        Reply::Ended { end, .. } => {
            asked.watched = Some(true);
            // An end from before the signal is the scripts' to judge.
            if course.unsent().is_none() {
                course.end(*end);
                asked.settled = true;
            }
        }
        _ => {}
    }
}

/// A signal that was to go by channel alone, and did not.
fn refuse(course: &mut Course, asked: Asked) -> bool {
    let signal = course
        .order
        .signal
        .map(|signal| signal.name())
        .unwrap_or_default();
    let why = match asked.relayed {
        _ if by_channel(course).is_none() => format!(
            "{signal} to this target never goes by channel: servers take HUP, INT, QUIT, TERM, USR1 and USR2, for the \
             whole group"
        ),
        Some(Relayed::NotHonoured) => {
            "its server does not pass channel signals on for this login (OpenSSH before 10 \
                                       refuses them to root, and to forced commands)"
                .to_owned()
        }
        Some(Relayed::Retired) => {
            "its relay once answered too late, and is not used any more".to_owned()
        }
        Some(Relayed::Unanswered) | None if course.asked => {
            course.outcome.sent = Sent::Unknown;
            return course.fail(
                Kind::Unconfirmed,
                "its relay did not answer in time; whether the signal was sent is not known",
            );
        }
        _ => {
            "no channel of it is held: it was started without a keeper, or that connection is gone"
                .to_owned()
        }
    };
    course.fail(
        Kind::NoChannel,
        &format!("{why}; nothing was sent. Leave --via out to send by pid"),
    )
}
