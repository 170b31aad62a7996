//! Delivery by the jobs' relays, which also report when the jobs end.
//!
//! Whatever is not settled here is left to the scripts. If the relay's keeper reported the number of a signal, the
//! signal may have been sent, so the script that takes over claims that number. Without a reported number, nothing was
//! sent.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::progress::Delivery;
use super::{Batch, SendOutcome, Via, ViaPolicy};
use crate::connection::keeper::protocol::{RelayResult, Reply};
use crate::connection::{HostConnection, Relays};
use crate::error::Kind;
use crate::job::Target;
use crate::remote::signal::AttemptResult;

/// Maximum time for a keeper to answer. It includes the time that the keeper gives the relay, and the signals queued
/// before this one.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What was requested of a job's relay, and its answers.
#[derive(Clone, Copy, Default)]
struct RelayRequest {
    signal: bool,
    relayed: Option<RelayResult>,
    watch: bool,
    watched: Option<bool>,
    /// The relay has confirmed something about the job.
    answered: bool,
}

impl RelayRequest {
    fn is_unanswered(self) -> bool {
        (self.signal && self.relayed.is_none()) || (self.watch && self.watched.is_none())
    }
}

/// Sends the signals that can go by relay. If the relays of all jobs watch for their ends, waits for these until
/// `until`. Returns whether a relay has answered.
pub fn deliver(connection: &mut HostConnection, batch: &mut Batch, until: Option<Instant>) -> bool {
    let mut asked = vec![RelayRequest::default(); batch.deliveries.len()];
    let goes_by_channel = |delivery: &Delivery| channel_name(delivery).is_some();
    if (until.is_some() || batch.deliveries.iter().any(goes_by_channel))
        && let Some(mut relays) = connection.relays()
    {
        // If the keeper is gone, the scripts do the rest.
        drop(send_and_wait(relays.as_mut(), batch, &mut asked, until));
        if asked.iter().copied().any(RelayRequest::is_unanswered) {
            // The keeper must not send a signal after a script has taken over.
            for reply in relays.finish() {
                apply(&reply, batch, &mut asked);
            }
        }
    }
    let is_over = until.is_some_and(|until| Instant::now() >= until);
    batch.update_all(|index, delivery, waiting| {
        let asked = asked[index];
        if delivery.unsent().is_some() && delivery.ways == ViaPolicy::Channel {
            fail_channel_only(delivery, asked);
        } else if delivery.unsent().is_none() && delivery.then_unsent().is_none() {
            // The signal was sent and there is no wait, or the relay has not reported the end in time.
            delivery.settled = !waiting || is_over && asked.watched == Some(true);
            delivery.outcome.still_running = (delivery.settled && waiting).then_some(true);
        }
    });
    asked.iter().any(|asked| asked.answered)
}

fn send_and_wait(
    relays: &mut dyn Relays,
    batch: &mut Batch,
    asked: &mut [RelayRequest],
    until: Option<Instant>,
) -> std::io::Result<()> {
    for (delivery, asked) in batch.deliveries.iter().zip(asked.iter_mut()) {
        let id = &delivery.outcome.record.id;
        if !relays.may_hold_relay(id) {
            continue;
        }
        // Requested first, so that an end caused by the signal is not missed.
        if until.is_some() {
            asked.watch = true;
            relays.watch(id)?;
        }
        if let Some(name) = channel_name(delivery) {
            asked.signal = true;
            relays.signal(id, name)?;
        }
    }
    let deadline = Instant::now() + ANSWER_MAX;
    while asked.iter().copied().any(RelayRequest::is_unanswered) {
        apply(&relays.next(deadline)?, batch, asked);
    }
    let Some(until) = until else { return Ok(()) };
    let is_left_to_relay = |(delivery, asked): (&Delivery, &RelayRequest)| {
        delivery.settled || delivery.unsent().is_none() && asked.watched == Some(true)
    };
    while batch
        .deliveries
        .iter()
        .zip(asked.iter())
        .all(is_left_to_relay)
        && batch.deliveries.iter().any(|delivery| !delivery.settled)
    {
        match relays.next(until) {
            Ok(reply) => apply(&reply, batch, asked),
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

/// The name under which a delivery's signal can go by channel, if it can go that way.
fn channel_name(delivery: &Delivery) -> Option<&'static str> {
    let is_eligible =
        delivery.ways != ViaPolicy::Pid && delivery.target == Target::Group && !delivery.wake;
    delivery.unsent().filter(|_| is_eligible)?.channel_name()
}

fn apply(reply: &Reply, batch: &mut Batch, asked: &mut [RelayRequest]) {
    let (Reply::Numbered { job, .. }
    | Reply::Signalled { job, .. }
    | Reply::Watching { job }
    | Reply::NotWatching { job }
    | Reply::Ended { job, .. }) = reply
    else {
        return;
    };
    let is_job = |delivery: &Delivery| delivery.outcome.record.id.as_str() == job;
    let Some(index) = batch.deliveries.iter().position(is_job) else {
        return;
    };
    let asked = &mut asked[index];
    batch.update(index, |delivery, waiting| match reply {
        Reply::Numbered { number, .. } => {
            delivery.claim = format!("c{number}");
            delivery.asked = true;
        }
        Reply::Signalled { relayed, .. } => {
            asked.relayed = Some(*relayed);
            match relayed {
                RelayResult::Sent => {
                    asked.answered = true;
                    delivery.apply_result(Via::Channel, AttemptResult::Sent, waiting);
                }
                RelayResult::Denied => {
                    delivery.apply_result(Via::Channel, AttemptResult::Denied, waiting);
                }
                RelayResult::NotHeld | RelayResult::NotHonoured | RelayResult::Retired => {
                    delivery.asked = false;
                }
                RelayResult::Unanswered => {}
            }
        }
        Reply::Ended { end, .. } => {
            asked.watched = Some(true);
            // Only a script can tell whether the job ended before the signal.
            if delivery.unsent().is_none() {
                delivery.apply_end(*end);
            }
        }
        Reply::Watching { .. } => (asked.watched, asked.answered) = (Some(true), true),
        _ => asked.watched = Some(false),
    });
}

/// Fails a delivery whose signal was to go by channel only and did not.
fn fail_channel_only(delivery: &mut Delivery, asked: RelayRequest) {
    let signal = delivery
        .signal
        .map(|signal| signal.name())
        .unwrap_or_default();
    let why = match asked.relayed {
        _ if channel_name(delivery).is_none() => format!(
            "{signal} can't go by channel to this target: servers take HUP, INT, QUIT, TERM, USR1 and USR2, for the \
             whole group"
        ),
        Some(RelayResult::NotHonoured) => {
            "its server does not pass channel signals on for this user (OpenSSH before 10 \
             refuses them for root and for forced commands)"
                .to_owned()
        }
        Some(RelayResult::Retired) => {
            "its relay once answered too late and is no longer used".to_owned()
        }
        Some(RelayResult::Unanswered) | None if delivery.asked => {
            delivery.outcome.sent = SendOutcome::Unknown;
            let what =
                "its relay did not answer in time, so whether the signal was sent is not known";
            return delivery.fail(Kind::Unconfirmed, what);
        }
        _ => "no channel is held for it: it was started a moment ago or without a keeper, or that \
             connection is gone"
            .to_owned(),
    };
    let what = format!("{why}; nothing was sent. Leave --via out to send by pid");
    delivery.fail(Kind::NoChannel, &what);
}
