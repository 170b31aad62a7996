//! Delivery by pid, and waiting without a relay: scripts that do both for all of a host's jobs.

use std::time::{Duration, Instant};

use super::course::Course;
use super::{Clock, Outcome, Via};
use crate::connection::Line;
use crate::error::{Failure, Kind};
use crate::job::Target;
use crate::remote::signal::{Event, Plan, carry_out};

/// The longest that one script waits: what breaks silently is found out after that.
const SCRIPT: Duration = Duration::from_secs(10);

/// What the next script does: what has not been sent is sent, what has is waited for. The second signals go into the
/// script in which the time runs out, so that the host decides whether they are needed.
pub fn plan(courses: &[Course], clock: Option<&Clock>) -> Plan {
    // What is left of a tree is known only in the script that has signalled it.
    let longest = if courses
        .iter()
        .any(|course| course.order.target == Target::Tree)
    {
        Duration::MAX
    } else {
        SCRIPT
    };
    let left = clock.map(|clock| clock.until.saturating_duration_since(Instant::now()));
    let mut plan = Plan {
        wait: left.map(|left| left.min(longest)),
        ..Plan::default()
    };
    let time_for_second =
        clock.is_some_and(|clock| !clock.second) && left.is_some_and(|left| left <= longest);
    for (index, course) in courses.iter().enumerate() {
        plan.jobs.push((
            course.place(),
            course
                .unsent()
                .map(|signal| course.shot(signal, &course.claim, course.asked)),
        ));
        if let Some(signal) = course.then_unsent().filter(|_| time_for_second) {
            plan.then.push((
                index,
                course.shot(signal, &course.then_claim, course.then_asked),
            ));
        }
    }
    plan.then_wait = clock.map(|clock| clock.wait.min(longest));
    plan
}

/// Carries out one script, and takes the jobs out of `courses` that it settles.
pub fn carry_out_plan(
    line: &mut Line,
    courses: &mut Vec<Course>,
    plan: &Plan,
    started: Instant,
    on_outcome: &mut dyn FnMut(Outcome),
) -> Result<(), Failure> {
    let host = line.host();
    let mut shell = line.shell()?;
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
        let (Event::Hit(index, _)
        | Event::Seen(index, _)
        | Event::Kin(index, _)
        | Event::LinksOnly(index)
        | Event::Lacks(index)) = event;
        let (Some(course), Some(settled)) = (courses.get_mut(index), settled.get_mut(index)) else {
            return;
        };
        if *settled {
            return;
        }
        *settled = match event {
            Event::Hit(_, hit) => course.hit(Via::Pid, hit, plan.wait.is_some()),
            Event::Seen(_, seen) => course.see(&seen, plan.wait.is_some()),
            Event::Kin(_, number) => {
                course.kin = number;
                false
            }
            Event::Lacks(_) => course.fail(
                Kind::Failed,
                "its host has no awk, which --target tree needs to find the processes; nothing was sent. Leave it out to \
                 signal the group",
            ),
            Event::LinksOnly(_) => {
                course.only_links();
                false
            }
        };
        if *settled {
            course.outcome.waited = started.elapsed();
            on_outcome(course.outcome.clone());
        }
    });
    let mut settled = settled.into_iter();
    courses.retain_mut(|course| {
        course.outcome.waited = started.elapsed();
        !settled.next().unwrap_or_default()
    });
    result
}
