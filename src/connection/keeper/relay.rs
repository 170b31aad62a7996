//! One job's relay, as the keeper sees it: its lines, its count of signals, and which commands wait for what.
//!
//! No I/O: each step returns a list of what is to be sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::protocol::{RelayResult, RelayedEnd, Reply};

/// Identifies a command that is being served.
pub type ClientId = u64;

/// Maximum number of relays of a keeper: some channels must stay free for scripts.
pub const RELAYS_MAX: usize = 6;
/// Maximum wait for a relay's answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Maximum number of bytes kept of a line. Valid lines are shorter.
const LINE_MAX: usize = 512;
/// Maximum time for a relay to get ready.
const READY_MAX: Duration = Duration::from_secs(10);
/// Maximum number of signals queued for one relay.
const QUEUE_MAX: usize = 1024;
/// The signal sent as the probe: any that servers accept would do.
const PROBE: &str = "USR1";

/// What is to be done after a step.
#[derive(Debug)]
pub enum Action {
    /// Request a signal on the relay's channel.
    Signal(&'static str),
    /// Send a reply to a command.
    Tell(ClientId, Reply),
    /// Tell a command the number of its signal. If the command got the number, request the signal; if not, call
    /// [`Relay::withdraw`].
    Send(ClientId, u32, &'static str),
    /// The relay will never get ready: give its channel up.
    GiveUp,
}

/// The signals that servers accept, by their names on the wire (RFC 4254 6.10).
const CHANNEL_SIGNALS: [&str; 6] = ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2"];

/// The name on the wire of a signal that servers accept.
pub fn channel_signal(name: &str) -> Option<&'static str> {
    CHANNEL_SIGNALS.into_iter().find(|known| *known == name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its script has not reported ready yet.
    Starting,
    /// The probe was sent: whether this server passes signals on is not known yet.
    Probing,
    /// It takes signals.
    Taking,
    /// It takes no signals, for this reason, but still reports the job's end.
    EndOnly(RelayResult),
}

/// Whether a server is expected to pass signals on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is not: signals do not wait for the probe.
    Unlikely,
    /// It is: most servers do.
    Assumed,
    /// A probe was answered on this connection: further relays need none.
    Proven,
}

struct Pending {
    client: ClientId,
    number: u32,
    until: Instant,
}

pub struct Relay {
    /// The job's id.
    pub job: String,
    word: String,
    stage: Stage,
    /// The line being read.
    line: Vec<u8>,
    /// The number of the last signal.
    number: u32,
    pending: Option<Pending>,
    probe_until: Option<Instant>,
    /// Deadline to be ready.
    ready_until: Option<Instant>,
    /// Whether its server is expected to pass signals on.
    trust: Trust,
    /// Signals that wait for earlier ones.
    queue: VecDeque<(ClientId, &'static str)>,
    watchers: Vec<ClientId>,
    ended: Option<RelayedEnd>,
}

impl Relay {
    /// A relay whose script is about to be sent.
    pub fn new(job: String, word: String, trust: Trust, now: Instant) -> Self {
        Self {
            job,
            word,
            stage: Stage::Starting,
            line: Vec::new(),
            number: 0,
            pending: None,
            probe_until: None,
            ready_until: Some(now + READY_MAX),
            trust,
            queue: VecDeque::new(),
            watchers: Vec::new(),
            ended: None,
        }
    }

    /// Whether it takes signals.
    pub fn takes_signals(&self) -> bool {
        matches!(self.stage, Stage::Probing | Stage::Taking) && self.ended.is_none()
    }

    /// Whether its job has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether it needs no probe.
    pub fn is_proven(&self) -> bool {
        self.trust == Trust::Proven
    }

    /// Whether it passes signals on without delay: it takes them, and no probe is under way.
    pub fn passes_signals(&self) -> bool {
        matches!(self.stage, Stage::Taking) && self.ended.is_none()
    }

    /// What the probe has shown about the server, once that is known.
    pub fn probe_result(&self) -> Option<Trust> {
        match self.stage {
            Stage::Taking => Some(Trust::Proven),
            Stage::EndOnly(RelayResult::NotHonoured) => Some(Trust::Unlikely),
            _ => None,
        }
    }

    /// Whether the relay owes an answer.
    pub fn owes_answer(&self) -> bool {
        self.deadline().is_some()
    }

    /// Whether a command waits for the job's end.
    pub fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// When [`Relay::tick`] next has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let pending = self.pending.as_ref().map(|pending| pending.until);
        [pending, self.probe_until, self.ready_until]
            .into_iter()
            .flatten()
            .min()
    }

    /// Sends a signal for a command, or queues it.
    pub fn signal(&mut self, client: ClientId, name: &'static str, now: Instant) -> Vec<Action> {
        match self.stage {
            Stage::EndOnly(why) => return vec![self.answer(client, why)],
            Stage::Probing if self.trust == Trust::Unlikely => {
                return vec![self.answer(client, RelayResult::NotHonoured)];
            }
            _ if !self.takes_signals() || self.queue.len() >= QUEUE_MAX => {
                return vec![self.answer(client, RelayResult::NotHeld)];
            }
            _ => {}
        }
        self.queue.push_back((client, name));
        self.send_next(now)
    }

    /// Registers a command that wants to be told of the job's end.
    pub fn watch(&mut self, client: ClientId) -> Reply {
        let job = self.job.clone();
        match self.ended {
            Some(end) => Reply::Ended { job, end },
            None if self.stage == Stage::Starting => Reply::NotWatching { job },
            None => {
                self.watchers.push(client);
                Reply::Watching { job }
            }
        }
    }

    /// Takes a number back, since the command that was to be told it is gone: nothing was sent under it.
    pub fn withdraw(&mut self, number: u32, now: Instant) -> Vec<Action> {
        if self
            .pending
            .take_if(|pending| pending.number == number)
            .is_some()
        {
            self.number -= 1;
        }
        self.send_next(now)
    }

    /// Drops what a command that is gone was waiting for.
    pub fn forget(&mut self, client: ClientId) {
        self.queue.retain(|(waiting, _)| *waiting != client);
        self.watchers.retain(|watcher| *watcher != client);
    }

    /// Processes output of the relay.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                // A longer line is not from the relay; its beginning is enough to tell.
                if self.line.len() < LINE_MAX {
                    self.line.push(*byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let words = std::str::from_utf8(&line)
                .ok()
                .and_then(|line| line.strip_prefix(&self.word))
                .map(str::to_owned);
            if let Some(words) = words {
                let words: Vec<&str> = words.split_ascii_whitespace().collect();
                actions.extend(self.handle_line(&words, now));
            }
        }
        actions
    }

    fn handle_line(&mut self, words: &[&str], now: Instant) -> Vec<Action> {
        match words {
            ["ready"] if self.stage == Stage::Starting && self.trust == Trust::Proven => {
                self.stage = Stage::Taking;
                self.ready_until = None;
                self.send_next(now)
            }
            ["ready"] if self.stage == Stage::Starting => {
                self.stage = Stage::Probing;
                self.ready_until = None;
                self.probe_until = Some(now + ANSWER_MAX);
                vec![Action::Signal(PROBE)]
            }
            // Even if it is late, since it still proves that the server passes signals on.
            ["probe"]
                if matches!(
                    self.stage,
                    Stage::Probing | Stage::EndOnly(RelayResult::NotHonoured)
                ) =>
            {
                self.stage = Stage::Taking;
                self.probe_until = None;
                self.send_next(now)
            }
            ["sent", number, result] => self.handle_sent(number, result, now),
            ["end", status, at, why @ ..] => {
                let (Ok(status), Ok(at)) = (status.parse(), at.parse()) else {
                    return Vec::new();
                };
                self.end(Some(RelayedEnd {
                    status,
                    at,
                    timed_out: why == ["timeout"],
                }))
            }
            _ => Vec::new(),
        }
    }

    fn handle_sent(&mut self, number: &str, result: &str, now: Instant) -> Vec<Action> {
        let Some(pending) = self
            .pending
            .take_if(|pending| number.parse() == Ok(pending.number))
        else {
            return Vec::new();
        };
        let mut actions = vec![self.answer(pending.client, parse_result(result))];
        actions.extend(self.send_next(now));
        actions
    }

    /// Sends the next queued signal. Signals go in order, one at a time.
    fn send_next(&mut self, now: Instant) -> Vec<Action> {
        if self.stage != Stage::Taking || self.pending.is_some() {
            return Vec::new();
        }
        let Some((client, name)) = self.queue.pop_front() else {
            return Vec::new();
        };
        self.number += 1;
        self.pending = Some(Pending {
            client,
            number: self.number,
            until: now + ANSWER_MAX,
        });
        // The number is told before the signal is sent: a command that was told no number knows that nothing was sent.
        vec![Action::Send(client, self.number, name)]
    }

    /// Checks whether an answer is overdue. A relay that was late is sent no more signals: its next answer could be to
    /// an earlier one.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.deadline().is_none_or(|until| now < until) {
            return Vec::new();
        }
        if self.stage == Stage::Starting {
            self.ready_until = None;
            return vec![Action::GiveUp];
        }
        let unprobed = self.probe_until.is_some_and(|until| now >= until);
        self.retire(if unprobed {
            RelayResult::NotHonoured
        } else {
            RelayResult::Retired
        })
    }

    fn retire(&mut self, why: RelayResult) -> Vec<Action> {
        self.stage = Stage::EndOnly(why);
        (self.probe_until, self.ready_until) = (None, None);
        let pending = self.pending.take().map(|pending| pending.client);
        let unanswered = pending.map(|client| self.answer(client, RelayResult::Unanswered));
        let queue = std::mem::take(&mut self.queue);
        let unsent = queue.iter().map(|(client, _)| self.answer(*client, why));
        unanswered.into_iter().chain(unsent).collect()
    }

    /// Handles the end of the job or, if `end` is `None`, of the channel: then nothing is known about the job.
    pub fn end(&mut self, end: Option<RelayedEnd>) -> Vec<Action> {
        if self.ended.is_some() {
            return Vec::new();
        }
        self.ended = end;
        let mut actions = self.retire(RelayResult::NotHeld);
        let job = self.job.clone();
        actions.extend(self.watchers.drain(..).map(|client| {
            let job = job.clone();
            Action::Tell(
                client,
                match end {
                    Some(end) => Reply::Ended { job, end },
                    None => Reply::NotWatching { job },
                },
            )
        }));
        actions
    }

    fn answer(&self, client: ClientId, relayed: RelayResult) -> Action {
        Action::Tell(
            client,
            Reply::Signalled {
                job: self.job.clone(),
                relayed,
            },
        )
    }
}

/// Parses the result that a relay reports for a signal.
fn parse_result(result: &str) -> RelayResult {
    match result {
        "yes" => RelayResult::Sent,
        "denied" => RelayResult::Denied,
        _ => RelayResult::NotHeld,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(actions: Vec<Action>) -> Vec<String> {
        actions
            .into_iter()
            .map(|action| match action {
                Action::Signal(name) => format!("signal {name}"),
                Action::Send(client, number, name) => {
                    format!("{client}: number {number}, signal {name}")
                }
                Action::GiveUp => "give up".to_owned(),
                Action::Tell(client, Reply::Signalled { relayed, .. }) => {
                    format!("{client}: {relayed:?}")
                }
                Action::Tell(client, Reply::Ended { end, .. }) => {
                    format!(
                        "{client}: ended {}{}",
                        end.status,
                        if end.timed_out { ", timed out" } else { "" }
                    )
                }
                Action::Tell(client, other) => format!("{client}: {other:?}"),
            })
            .collect()
    }

    fn taking(now: Instant) -> Relay {
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Assumed, now);
        assert_eq!(shown(relay.receive(b"noise\nW rea", now)), [""; 0]);
        assert_eq!(shown(relay.receive(b"dy\n", now)), ["signal USR1"]);
        assert_eq!(shown(relay.receive(b"W probe\n", now)), [""; 0]);
        relay
    }

    #[test]
    fn signals_go_one_at_a_time() {
        let now = Instant::now();
        let mut relay = taking(now);
        assert_eq!(
            shown(relay.signal(1, "TERM", now)),
            ["1: number 1, signal TERM"]
        );
        assert_eq!(shown(relay.signal(2, "HUP", now)), [""; 0]);
        assert_eq!(
            shown(relay.receive(b"W sent 1 yes\n", now)),
            ["1: Sent", "2: number 2, signal HUP"]
        );
        assert_eq!(shown(relay.receive(b"W sent 1 yes\n", now)), [""; 0]);
        assert_eq!(
            shown(relay.receive(b"W sent 2 unsent\n", now)),
            ["2: NotHeld"]
        );
    }

    #[test]
    fn a_late_relay_is_retired() {
        let now = Instant::now();
        let mut relay = taking(now);
        relay.signal(1, "TERM", now);
        relay.signal(2, "TERM", now);
        assert_eq!(shown(relay.tick(now)), [""; 0]);
        assert_eq!(
            shown(relay.tick(now + ANSWER_MAX)),
            ["1: Unanswered", "2: Retired"]
        );
        assert_eq!(shown(relay.receive(b"W sent 1 yes\n", now)), [""; 0]);
        assert_eq!(shown(relay.signal(3, "TERM", now)), ["3: Retired"]);
        assert!(matches!(relay.watch(3), Reply::Watching { .. }));
        assert_eq!(shown(relay.receive(b"W end 7 1\n", now)), ["3: ended 7"]);
        let mut relay = taking(now);
        relay.watch(1);
        assert_eq!(
            shown(relay.receive(b"W end 143 1 timeout\n", now)),
            ["1: ended 143, timed out"]
        );
    }

    #[test]
    fn a_server_that_takes_no_signals_still_tells_of_the_end() {
        let now = Instant::now();
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Assumed, now);
        assert_eq!(shown(relay.signal(1, "TERM", now)), ["1: NotHeld"]);
        relay.receive(b"W ready\n", now);
        assert_eq!(shown(relay.signal(1, "TERM", now)), [""; 0]);
        assert_eq!(shown(relay.tick(now + ANSWER_MAX)), ["1: NotHonoured"]);
        assert_eq!(shown(relay.signal(2, "TERM", now)), ["2: NotHonoured"]);
        relay.watch(1);
        assert_eq!(shown(relay.end(None)), ["1: NotWatching { job: \"job\" }"]);
    }

    #[test]
    fn whoever_has_gone_is_not_served() {
        let now = Instant::now();
        let mut relay = taking(now);
        relay.signal(1, "TERM", now);
        relay.signal(2, "TERM", now);
        relay.watch(2);
        relay.forget(2);
        assert_eq!(
            shown(relay.receive(b"W sent 1 yes\nW end 0 1\n", now)),
            ["1: Sent"]
        );
    }

    #[test]
    fn a_number_that_nobody_heard_is_given_to_the_next() {
        let now = Instant::now();
        let mut relay = taking(now);
        relay.signal(1, "TERM", now);
        relay.signal(2, "HUP", now);
        relay.forget(1);
        assert_eq!(shown(relay.withdraw(1, now)), ["2: number 1, signal HUP"]);
        assert_eq!(shown(relay.receive(b"W sent 1 yes\n", now)), ["2: Sent"]);
    }

    #[test]
    fn a_relay_that_never_gets_ready_is_given_up() {
        let now = Instant::now();
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Assumed, now);
        assert_eq!(shown(relay.tick(now)), [""; 0]);
        assert_eq!(shown(relay.tick(now + READY_MAX)), ["give up"]);
        let relay = taking(now);
        assert_eq!(relay.deadline(), None);
    }

    #[test]
    fn an_end_before_it_was_ready_leaves_nothing_to_wait_for() {
        let now = Instant::now();
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Assumed, now);
        assert_eq!(shown(relay.receive(b"W end 0 1\n", now)), [""; 0]);
        assert_eq!(relay.deadline(), None);
    }

    #[test]
    fn where_signals_are_known_to_arrive_there_is_no_probe() {
        let now = Instant::now();
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Proven, now);
        assert_eq!(shown(relay.signal(1, "TERM", now)), ["1: NotHeld"]);
        assert_eq!(shown(relay.receive(b"W ready\n", now)), [""; 0]);
        assert_eq!(
            shown(relay.signal(1, "TERM", now)),
            ["1: number 1, signal TERM"]
        );
    }

    #[test]
    fn where_no_signal_is_expected_to_arrive_none_waits_for_the_probe() {
        let now = Instant::now();
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Unlikely, now);
        relay.receive(b"W ready\n", now);
        assert_eq!(shown(relay.signal(1, "TERM", now)), ["1: NotHonoured"]);
        relay.receive(b"W probe\n", now);
        assert_eq!(
            shown(relay.signal(1, "TERM", now)),
            ["1: number 1, signal TERM"]
        );
    }
}
