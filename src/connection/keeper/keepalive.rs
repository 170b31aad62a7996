//! Decides when a keepalive is sent to the server, and when the server's silence means that it is gone. No I/O.
//!
//! `Instant` does not count the time that the machine sleeps, and a connection seldom survives a sleep. So that time is
//! measured too: after a sleep, a keepalive is sent at once, and its reply must come soon.

use std::time::{Duration, Instant};

/// What a silent server is holding up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing.
    Idle,
    /// A command waits for a job's end, which may be far off.
    Watched,
    /// A command waits for a reply.
    Awaited,
}

/// What to do about a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Nothing yet.
    Ok,
    /// Send a keepalive.
    SendKeepalive,
    /// The server is gone.
    Dead,
}

/// A shorter difference does not count as a sleep: the two clocks are read one after the other.
const SLEEP_MIN: Duration = Duration::from_secs(3);
/// Maximum wait for a reply after a sleep.
const WAKE_REPLY_MAX: Duration = Duration::from_secs(3);

/// Tracks the silence of one connection.
pub struct Keepalive {
    /// Interval between keepalives on an idle connection.
    idle_interval: Duration,
    heard: Instant,
    asked: Option<Instant>,
    /// The first keepalive since anything was received.
    unanswered: Option<Instant>,
    /// The urgency at the last check.
    urgency: Urgency,
    /// How long this machine has slept since its boot.
    asleep: Duration,
    doubted: Option<Instant>,
}

impl Keepalive {
    /// For a new connection, on a machine that has slept for `asleep` since its boot.
    pub fn new(idle_interval: Duration, now: Instant, asleep: Duration) -> Self {
        Self {
            idle_interval,
            heard: now,
            asked: None,
            unanswered: None,
            urgency: Urgency::Idle,
            asleep,
            doubted: None,
        }
    }

    /// Records that something was received.
    pub fn record_contact(&mut self, now: Instant) {
        (self.heard, self.unanswered, self.doubted) = (now, None, None);
    }

    /// Records that a keepalive was sent.
    pub fn record_sent(&mut self, now: Instant) {
        self.asked = Some(now);
        self.unanswered.get_or_insert(now);
    }

    /// Whether the machine slept since anything was last received: what is sent now may be lost.
    pub fn is_doubted(&self) -> bool {
        self.doubted.is_some()
    }

    /// The silence after which a keepalive is sent, and the maximum wait for its reply.
    fn timeouts(&self, urgency: Urgency) -> (Duration, Duration) {
        match urgency {
            Urgency::Awaited => (Duration::from_secs(3), Duration::from_secs(6)),
            Urgency::Watched => (Duration::from_secs(10), Duration::from_secs(15)),
            Urgency::Idle => (self.idle_interval, self.idle_interval * 2),
        }
    }

    /// Decides what to do about the silence.
    pub fn check(&mut self, now: Instant, asleep: Duration, urgency: Urgency) -> Liveness {
        if asleep > self.asleep + SLEEP_MIN {
            self.asleep = asleep;
            self.doubted = Some(now);
            // A keepalive from before the sleep proves nothing.
            self.unanswered = None;
            return Liveness::SendKeepalive;
        }
        if urgency > self.urgency {
            // A keepalive sent at a lower urgency had more time for its reply, so another one is sent before the
            // shorter wait applies.
            (self.asked, self.unanswered) = (None, None);
        }
        self.urgency = urgency;
        let (silence, answer) = self.timeouts(urgency);
        let since = |then: Instant| now.saturating_duration_since(then);
        if self
            .doubted
            .is_some_and(|then| since(then) >= WAKE_REPLY_MAX)
            || self.unanswered.is_some_and(|then| since(then) >= answer)
        {
            return Liveness::Dead;
        }
        if since(self.heard) >= silence && self.asked.is_none_or(|then| since(then) >= silence) {
            return Liveness::SendKeepalive;
        }
        Liveness::Ok
    }

    /// When [`Keepalive::check`] may next return something other than [`Liveness::Ok`].
    pub fn next(&self, urgency: Urgency) -> Instant {
        let (silence, answer) = self.timeouts(urgency);
        let ask = self.asked.map_or(self.heard, |asked| asked.max(self.heard)) + silence;
        let dead = self.unanswered.map(|then| then + answer);
        let doubt = self.doubted.map(|then| then + WAKE_REPLY_MAX);
        [Some(ask), dead, doubt]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(ask)
    }
}

/// How long this machine has slept since its boot: the difference of two clocks (`clock_gettime(2)`). Zero on systems
/// where it is unknown.
pub fn asleep() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use nix::time::{ClockId, clock_gettime};
        let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
        let awake = read(ClockId::CLOCK_MONOTONIC);
        read(ClockId::CLOCK_BOOTTIME).saturating_sub(awake)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn silence_is_asked_about_and_then_believed() {
        for (urgency, ask, dead) in [
            (Urgency::Awaited, 3, 9),
            (Urgency::Watched, 10, 25),
            (Urgency::Idle, 60, 180),
        ] {
            let start = Instant::now();
            let mut keepalive = Keepalive::new(seconds(60), start, seconds(5));
            let mut asked = None;
            let end = (0..400).find(|second| {
                let now = start + seconds(*second);
                match keepalive.check(now, seconds(5), urgency) {
                    Liveness::SendKeepalive => {
                        asked.get_or_insert(*second);
                        keepalive.record_sent(now);
                        false
                    }
                    verdict => verdict == Liveness::Dead,
                }
            });
            assert_eq!((asked, end), (Some(ask), Some(dead)), "{urgency:?}");
        }
    }

    #[test]
    fn a_command_that_comes_after_a_long_silence_does_not_end_it() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(seconds(60), start, seconds(0));
        let now = start + seconds(50);
        assert_eq!(
            keepalive.check(now, seconds(0), Urgency::Awaited),
            Liveness::SendKeepalive
        );
        keepalive.record_sent(now);
        assert_eq!(
            keepalive.check(now + seconds(1), seconds(0), Urgency::Awaited),
            Liveness::Ok
        );
        keepalive.record_contact(now + seconds(2));
        assert_eq!(
            keepalive.check(now + seconds(3), seconds(0), Urgency::Awaited),
            Liveness::Ok
        );
    }

    #[test]
    fn a_question_of_quieter_times_is_asked_anew() {
        for (before, after, answer) in [
            (Urgency::Idle, Urgency::Awaited, 6),
            (Urgency::Idle, Urgency::Watched, 15),
            (Urgency::Watched, Urgency::Awaited, 6),
        ] {
            let start = Instant::now();
            let mut keepalive = Keepalive::new(seconds(10), start, seconds(0));
            let asked = start + seconds(10);
            assert_eq!(
                keepalive.check(asked, seconds(0), before),
                Liveness::SendKeepalive
            );
            keepalive.record_sent(asked);
            let now = asked + seconds(9);
            assert_eq!(
                keepalive.check(now, seconds(0), before),
                Liveness::Ok,
                "{before:?}"
            );
            assert_eq!(
                keepalive.check(now, seconds(0), after),
                Liveness::SendKeepalive,
                "{before:?} {after:?}"
            );
            keepalive.record_sent(now);
            assert_ne!(
                keepalive.check(now + seconds(answer - 1), seconds(0), after),
                Liveness::Dead,
                "{before:?} {after:?}"
            );
            assert_eq!(
                keepalive.check(now + seconds(answer), seconds(0), after),
                Liveness::Dead,
                "{before:?} {after:?}"
            );
        }
    }

    #[test]
    fn after_a_sleep_it_has_seconds_to_answer() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(seconds(60), start, seconds(0));
        assert_eq!(
            keepalive.check(start, seconds(3600), Urgency::Idle),
            Liveness::SendKeepalive
        );
        keepalive.record_sent(start);
        assert!(keepalive.is_doubted());
        assert!(keepalive.next(Urgency::Idle) <= start + seconds(3));
        assert_eq!(
            keepalive.check(start + seconds(2), seconds(3600), Urgency::Idle),
            Liveness::Ok
        );
        assert_eq!(
            keepalive.check(start + seconds(3), seconds(3600), Urgency::Idle),
            Liveness::Dead
        );
        keepalive.record_contact(start + seconds(2));
        assert!(!keepalive.is_doubted());
        assert_eq!(
            keepalive.check(start + seconds(3), seconds(3600), Urgency::Idle),
            Liveness::Ok
        );
    }
}
