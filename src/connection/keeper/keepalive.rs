//! Whether the server at the other end is still there: when it is asked for a sign of life, and when its silence counts
//! as its end. No I/O.
//!
//! `Instant` does not count the time that the machine sleeps, and a connection seldom survives that. So the time asleep
//! is watched too, and a connection that slept is asked at once and not believed for long.

use std::time::{Duration, Instant};

/// What a server's silence keeps from going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing.
    Idle,
    /// Somebody wants to hear of a job's end, which may be far off.
    Watched,
    /// A command waits for an answer.
    Waited,
}

/// What is to be done about a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Nothing yet.
    Fine,
    /// Ask for a sign of life.
    Ask,
    /// Nobody is there any more.
    Dead,
}

/// A sleep shorter than this is none: clocks are read one after the other.
const NAP: Duration = Duration::from_secs(3);
/// How long a connection that slept may take to answer.
const WAKING: Duration = Duration::from_secs(3);

/// The silence of one connection.
pub struct Keepalive {
    /// How often an idle connection is asked.
    alive: Duration,
    heard: Instant,
    asked: Option<Instant>,
    /// The first question since something was heard.
    unanswered: Option<Instant>,
    /// What depended on the server's word when last checked.
    urgency: Urgency,
    /// How long this machine has slept in all.
    asleep: Duration,
    doubted: Option<Instant>,
}

impl Keepalive {
    /// A connection that has just been made, on a machine that has slept for `asleep` since its boot.
    pub fn new(alive: Duration, now: Instant, asleep: Duration) -> Self {
        Self {
            alive,
            heard: now,
            asked: None,
            unanswered: None,
            urgency: Urgency::Idle,
            asleep,
            doubted: None,
        }
    }

    /// Something came.
    pub fn hear(&mut self, now: Instant) {
        (self.heard, self.unanswered, self.doubted) = (now, None, None);
    }

    /// The question went out.
    pub fn ask(&mut self, now: Instant) {
        self.asked = Some(now);
        self.unanswered.get_or_insert(now);
    }

    /// Whether the machine slept since the last sign of life: what is sent now may go nowhere.
    pub fn is_doubted(&self) -> bool {
        self.doubted.is_some()
    }

    /// After how much silence it is asked, and how long it may take to answer.
    fn patience(&self, urgency: Urgency) -> (Duration, Duration) {
        match urgency {
            Urgency::Waited => (Duration::from_secs(3), Duration::from_secs(6)),
            Urgency::Watched => (Duration::from_secs(10), Duration::from_secs(15)),
            Urgency::Idle => (self.alive, self.alive * 2),
        }
    }

    /// What the silence means.
    pub fn check(&mut self, now: Instant, asleep: Duration, urgency: Urgency) -> Liveness {
        if asleep > self.asleep + NAP {
            self.asleep = asleep;
            self.doubted = Some(now);
            // What was asked before the sleep says nothing.
            self.unanswered = None;
            return Liveness::Ask;
        }
        if urgency > self.urgency {
            // A question of quieter times had longer to be answered: it is asked anew before its silence counts.
            (self.asked, self.unanswered) = (None, None);
        }
        self.urgency = urgency;
        let (silence, answer) = self.patience(urgency);
        let since = |then: Instant| now.saturating_duration_since(then);
        if self.doubted.is_some_and(|then| since(then) >= WAKING)
            || self.unanswered.is_some_and(|then| since(then) >= answer)
        {
            return Liveness::Dead;
        }
        if since(self.heard) >= silence && self.asked.is_none_or(|then| since(then) >= silence) {
            return Liveness::Ask;
        }
        Liveness::Fine
    }

    /// When [`Keepalive::check`] will next have something to say.
    pub fn next(&self, urgency: Urgency) -> Instant {
        let (silence, answer) = self.patience(urgency);
        let ask = self.asked.map_or(self.heard, |asked| asked.max(self.heard)) + silence;
        let dead = self.unanswered.map(|then| then + answer);
        let doubt = self.doubted.map(|then| then + WAKING);
        [Some(ask), dead, doubt]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(ask)
    }
}

/// How long this machine has slept since its boot: the difference of two clocks (`clock_gettime(2)`). Zero where there
/// is no telling.
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
            (Urgency::Waited, 3, 9),
            (Urgency::Watched, 10, 25),
            (Urgency::Idle, 60, 180),
        ] {
            let start = Instant::now();
            let mut keepalive = Keepalive::new(seconds(60), start, seconds(5));
            let mut asked = None;
            let end = (0..400).find(|second| {
                let now = start + seconds(*second);
                match keepalive.check(now, seconds(5), urgency) {
                    Liveness::Ask => {
                        asked.get_or_insert(*second);
                        keepalive.ask(now);
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
            keepalive.check(now, seconds(0), Urgency::Waited),
            Liveness::Ask
        );
        keepalive.ask(now);
        assert_eq!(
            keepalive.check(now + seconds(1), seconds(0), Urgency::Waited),
            Liveness::Fine
        );
        keepalive.hear(now + seconds(2));
        assert_eq!(
            keepalive.check(now + seconds(3), seconds(0), Urgency::Waited),
            Liveness::Fine
        );
    }

    #[test]
    fn a_question_of_quieter_times_is_asked_anew() {
        for (before, after, answer) in [
            (Urgency::Idle, Urgency::Waited, 6),
            (Urgency::Idle, Urgency::Watched, 15),
            (Urgency::Watched, Urgency::Waited, 6),
        ] {
            let start = Instant::now();
            let mut keepalive = Keepalive::new(seconds(10), start, seconds(0));
            let asked = start + seconds(10);
            assert_eq!(keepalive.check(asked, seconds(0), before), Liveness::Ask);
            keepalive.ask(asked);
            let now = asked + seconds(9);
            assert_eq!(
                keepalive.check(now, seconds(0), before),
                Liveness::Fine,
                "{before:?}"
            );
            assert_eq!(
                keepalive.check(now, seconds(0), after),
                Liveness::Ask,
                "{before:?} {after:?}"
            );
            keepalive.ask(now);
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
            Liveness::Ask
        );
        keepalive.ask(start);
        assert!(keepalive.is_doubted());
        assert!(keepalive.next(Urgency::Idle) <= start + seconds(3));
        assert_eq!(
            keepalive.check(start + seconds(2), seconds(3600), Urgency::Idle),
            Liveness::Fine
        );
        assert_eq!(
            keepalive.check(start + seconds(3), seconds(3600), Urgency::Idle),
            Liveness::Dead
        );
        keepalive.hear(start + seconds(2));
        assert!(!keepalive.is_doubted());
        assert_eq!(
            keepalive.check(start + seconds(3), seconds(3600), Urgency::Idle),
            Liveness::Fine
        );
    }
}
