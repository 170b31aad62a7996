//! Whether the server at the other end is still there: when it is asked for a sign of life, and when its silence counts
//! as its end. No I/O.
//!
//! `Instant` does not count the time that the machine sleeps, and a connection seldom survives that. So the time asleep
//! is watched too, and a connection that slept is asked at once and not believed for long.

use std::time::{Duration, Instant};

/// What a server's silence keeps from going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stake {
    /// Nothing.
    Idle,
    /// Somebody wants to hear of a job's end, which may be far off.
    Watched,
    /// A command waits for an answer.
    Waited,
}

/// What is to be done about a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
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
pub struct Pulse {
    /// How often an idle connection is asked.
    alive: Duration,
    heard: Instant,
    asked: Option<Instant>,
    /// The first question since something was heard.
    unanswered: Option<Instant>,
    /// What depended on the server's word when last checked.
    stake: Stake,
    /// How long this machine has slept in all.
    asleep: Duration,
    doubted: Option<Instant>,
}

impl Pulse {
    /// A connection that has just been made, on a machine that has slept for `asleep` since its boot.
    pub fn new(alive: Duration, now: Instant, asleep: Duration) -> Self {
        Self {
            alive,
            heard: now,
            asked: None,
            unanswered: None,
            stake: Stake::Idle,
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
    fn patience(&self, stake: Stake) -> (Duration, Duration) {
        match stake {
            Stake::Waited => (Duration::from_secs(3), Duration::from_secs(6)),
            Stake::Watched => (Duration::from_secs(10), Duration::from_secs(15)),
            Stake::Idle => (self.alive, self.alive * 2),
        }
    }

    /// What the silence means.
    pub fn check(&mut self, now: Instant, asleep: Duration, stake: Stake) -> Verdict {
        if asleep > self.asleep + NAP {
            self.asleep = asleep;
            self.doubted = Some(now);
            // What was asked before the sleep says nothing.
            self.unanswered = None;
            return Verdict::Ask;
        }
        if stake > self.stake {
            // A question of quieter times had longer to be answered: it is asked anew before its silence counts.
            (self.asked, self.unanswered) = (None, None);
        }
        self.stake = stake;
        let (silence, answer) = self.patience(stake);
        let since = |then: Instant| now.saturating_duration_since(then);
        if self.doubted.is_some_and(|then| since(then) >= WAKING)
            || self.unanswered.is_some_and(|then| since(then) >= answer)
        {
            return Verdict::Dead;
        }
        if since(self.heard) >= silence && self.asked.is_none_or(|then| since(then) >= silence) {
            return Verdict::Ask;
        }
        Verdict::Fine
    }

    /// When [`Pulse::check`] will next have something to say.
    pub fn next(&self, stake: Stake) -> Instant {
        let (silence, answer) = self.patience(stake);
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
        for (stake, ask, dead) in [
            (Stake::Waited, 3, 9),
            (Stake::Watched, 10, 25),
            (Stake::Idle, 60, 180),
        ] {
            let start = Instant::now();
            let mut pulse = Pulse::new(seconds(60), start, seconds(5));
            let mut asked = None;
            let end = (0..400).find(|second| {
                let now = start + seconds(*second);
                match pulse.check(now, seconds(5), stake) {
                    Verdict::Ask => {
                        asked.get_or_insert(*second);
                        pulse.ask(now);
                        false
                    }
                    verdict => verdict == Verdict::Dead,
                }
            });
            assert_eq!((asked, end), (Some(ask), Some(dead)), "{stake:?}");
        }
    }

    #[test]
    fn a_command_that_comes_after_a_long_silence_does_not_end_it() {
        let start = Instant::now();
        let mut pulse = Pulse::new(seconds(60), start, seconds(0));
        let now = start + seconds(50);
        assert_eq!(pulse.check(now, seconds(0), Stake::Waited), Verdict::Ask);
        pulse.ask(now);
        assert_eq!(
            pulse.check(now + seconds(1), seconds(0), Stake::Waited),
            Verdict::Fine
        );
        pulse.hear(now + seconds(2));
        assert_eq!(
            pulse.check(now + seconds(3), seconds(0), Stake::Waited),
            Verdict::Fine
        );
    }

    #[test]
    fn a_question_of_quieter_times_is_asked_anew() {
        for (before, after, answer) in [
            (Stake::Idle, Stake::Waited, 6),
            (Stake::Idle, Stake::Watched, 15),
            (Stake::Watched, Stake::Waited, 6),
        ] {
            let start = Instant::now();
            let mut pulse = Pulse::new(seconds(10), start, seconds(0));
            let asked = start + seconds(10);
            assert_eq!(pulse.check(asked, seconds(0), before), Verdict::Ask);
            pulse.ask(asked);
            let now = asked + seconds(9);
            assert_eq!(
                pulse.check(now, seconds(0), before),
                Verdict::Fine,
                "{before:?}"
            );
            assert_eq!(
                pulse.check(now, seconds(0), after),
                Verdict::Ask,
                "{before:?} {after:?}"
            );
            pulse.ask(now);
            assert_ne!(
                pulse.check(now + seconds(answer - 1), seconds(0), after),
                Verdict::Dead,
                "{before:?} {after:?}"
            );
            assert_eq!(
                pulse.check(now + seconds(answer), seconds(0), after),
                Verdict::Dead,
                "{before:?} {after:?}"
            );
        }
    }

    #[test]
    fn after_a_sleep_it_has_seconds_to_answer() {
        let start = Instant::now();
        let mut pulse = Pulse::new(seconds(60), start, seconds(0));
        assert_eq!(pulse.check(start, seconds(3600), Stake::Idle), Verdict::Ask);
        pulse.ask(start);
        assert!(pulse.is_doubted());
        assert!(pulse.next(Stake::Idle) <= start + seconds(3));
        assert_eq!(
            pulse.check(start + seconds(2), seconds(3600), Stake::Idle),
            Verdict::Fine
        );
        assert_eq!(
            pulse.check(start + seconds(3), seconds(3600), Stake::Idle),
            Verdict::Dead
        );
        pulse.hear(start + seconds(2));
        assert!(!pulse.is_doubted());
        assert_eq!(
            pulse.check(start + seconds(3), seconds(3600), Stake::Idle),
            Verdict::Fine
        );
    }
}
