//! One job's relay, as the keeper sees it: its lines, its count of signals, and who waits for what.
//!
//! No I/O: what is to be sent and said comes out of each step as a list.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::protocol::{End, Relayed, Reply};

/// A command that is being served.
pub type ClientId = u64;

/// How many relays a keeper holds: some channels must stay free for scripts.
pub const RELAYS_MAX: usize = 6;
/// How long a relay may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The longest line that makes sense.
const LINE_MAX: usize = 512;
/// How long a relay may take to get ready.
const READY_MAX: Duration = Duration::from_secs(10);
/// How many signals may wait for one relay.
const QUEUE_MAX: usize = 1024;
/// The probe's signal: any of those that servers take.
const PROBE: &str = "USR1";

/// What a step leads to.
#[derive(Debug)]
pub enum Action {
    /// Ask the server for a signal on the relay's channel.
    Signal(&'static str),
    /// Tell a command.
    Tell(ClientId, Reply),
    /// Tell a command the number of its signal, and only if it has heard that, ask the server for the signal; else
    /// [`Relay::withdraw`].
    Send(ClientId, u32, &'static str),
    /// It will never get ready: give its channel up.
    GiveUp,
}

/// The signals that servers take, by their names on the wire (RFC 4254 6.10).
const CHANNEL_SIGNALS: [&str; 6] = ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2"];

/// A signal that servers take.
pub fn channel_signal(name: &str) -> Option<&'static str> {
    CHANNEL_SIGNALS.into_iter().find(|known| *known == name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its script has not got there yet.
    Starting,
    /// The probe is under way: whether this server passes signals on is not known yet.
    Probing,
    /// It takes signals.
    Taking,
    /// It takes none, for this reason, and still tells of the end.
    TellingOnly(Relayed),
}

/// Whether a server is thought to pass signals on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is not: no signal waits for the probe.
    Doubted,
    /// As servers do.
    Hoped,
    /// It has answered a probe on this connection: the next relays need none.
    Proven,
}

struct Pending {
    client: ClientId,
    number: u32,
    until: Instant,
}

/// A relay.
pub struct Relay {
    /// The job's id.
    pub job: String,
    word: String,
    stage: Stage,
    /// The line that is being read.
    line: Vec<u8>,
    /// The number of the last signal.
    number: u32,
    pending: Option<Pending>,
    probe_until: Option<Instant>,
    /// Until when it must be ready.
    ready_until: Option<Instant>,
    /// What its server is thought to do.
    trust: Trust,
    /// What waits for those before it.
    queue: VecDeque<(ClientId, &'static str)>,
    watchers: Vec<ClientId>,
    ended: Option<End>,
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

    /// Whether it needs no probe.
    pub fn is_proven(&self) -> bool {
        self.trust == Trust::Proven
    }

    /// What its probe has told of the server, once it has.
    pub fn finding(&self) -> Option<Trust> {
        match self.stage {
            Stage::Taking => Some(Trust::Proven),
            Stage::TellingOnly(Relayed::NotHonoured) => Some(Trust::Doubted),
            _ => None,
        }
    }

    /// Whether a command waits for an answer of it.
    pub fn is_asked(&self) -> bool {
        self.deadline().is_some()
    }

    /// Whether a command waits for the job's end.
    pub fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// When [`Relay::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let pending = self.pending.as_ref().map(|pending| pending.until);
        [pending, self.probe_until, self.ready_until]
            .into_iter()
            .flatten()
            .min()
    }

    /// A command wants a signal sent.
    pub fn signal(&mut self, client: ClientId, name: &'static str, now: Instant) -> Vec<Action> {
        match self.stage {
            Stage::TellingOnly(why) => return vec![self.answer(client, why)],
            Stage::Probing if self.trust == Trust::Doubted => {
                return vec![self.answer(client, Relayed::NotHonoured)];
            }
            _ if !self.takes_signals() || self.queue.len() >= QUEUE_MAX => {
                return vec![self.answer(client, Relayed::NotHeld)];
            }
            _ => {}
        }
        self.queue.push_back((client, name));
        self.next(now)
    }

    /// A command wants to hear of the end.
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

    /// The command that was to be told a number has gone: nothing was sent under it.
    pub fn withdraw(&mut self, number: u32, now: Instant) -> Vec<Action> {
        if self
            .pending
            .take_if(|pending| pending.number == number)
            .is_some()
        {
            self.number -= 1;
        }
        self.next(now)
    }

    /// A command has gone: what it waited for is nobody's business any more.
    pub fn forget(&mut self, client: ClientId) {
        self.queue.retain(|(waiting, _)| *waiting != client);
        self.watchers.retain(|watcher| *watcher != client);
    }

    /// Takes in what came on the channel.
    pub fn hear(&mut self, bytes: &[u8], now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                // A longer line is none of the relay's; its beginning is enough to see that.
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
                actions.extend(self.line(&words, now));
            }
        }
        actions
    }

    fn line(&mut self, words: &[&str], now: Instant) -> Vec<Action> {
        match words {
            ["ready"] if self.stage == Stage::Starting && self.trust == Trust::Proven => {
                self.stage = Stage::Taking;
                self.ready_until = None;
                self.next(now)
            }
            ["ready"] if self.stage == Stage::Starting => {
                self.stage = Stage::Probing;
                self.ready_until = None;
                self.probe_until = Some(now + ANSWER_MAX);
                vec![Action::Signal(PROBE)]
            }
            // A late one too: what it says of the server is as true.
            ["probe"]
                if matches!(
                    self.stage,
                    Stage::Probing | Stage::TellingOnly(Relayed::NotHonoured)
                ) =>
            {
                self.stage = Stage::Taking;
                self.probe_until = None;
                self.next(now)
            }
            ["sent", number, result] => self.sent(number, result, now),
            ["end", status, at, why @ ..] => {
                let (Ok(status), Ok(at)) = (status.parse(), at.parse()) else {
                    return Vec::new();
                };
                self.end(Some(End {
                    status,
                    at,
                    timed_out: why == ["timeout"],
                }))
            }
            _ => Vec::new(),
        }
    }

    fn sent(&mut self, number: &str, result: &str, now: Instant) -> Vec<Action> {
        let Some(pending) = self
            .pending
            .take_if(|pending| number.parse() == Ok(pending.number))
        else {
            return Vec::new();
        };
        let mut actions = vec![self.answer(pending.client, relayed(result))];
        actions.extend(self.next(now));
        actions
    }

    /// Sends what waits, in the order in which it came, one at a time.
    fn next(&mut self, now: Instant) -> Vec<Action> {
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
        // Told before it is sent: whoever hears nothing of a number knows that nothing was sent.
        vec![Action::Send(client, self.number, name)]
    }

    /// Looks whether an answer is overdue. A relay that is late is never sent a signal again: its next answer could
    /// be to the last one.
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
            Relayed::NotHonoured
        } else {
            Relayed::Retired
        })
    }

    fn retire(&mut self, why: Relayed) -> Vec<Action> {
        self.stage = Stage::TellingOnly(why);
        self.probe_until = None;
        let pending = self.pending.take().map(|pending| pending.client);
        let unanswered = pending.map(|client| self.answer(client, Relayed::Unanswered));
        let queue = std::mem::take(&mut self.queue);
        let unsent = queue.iter().map(|(client, _)| self.answer(*client, why));
        unanswered.into_iter().chain(unsent).collect()
    }

    /// The job has ended, or the channel has: then nothing is known of the job.
    pub fn end(&mut self, end: Option<End>) -> Vec<Action> {
        if self.ended.is_some() {
            return Vec::new();
        }
        self.ended = end;
        let mut actions = self.retire(Relayed::NotHeld);
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

    fn answer(&self, client: ClientId, relayed: Relayed) -> Action {
        Action::Tell(
            client,
            Reply::Signalled {
                job: self.job.clone(),
                relayed,
            },
        )
    }
}

/// What a relay says of a signal.
fn relayed(result: &str) -> Relayed {
    match result {
        "yes" => Relayed::Sent,
        "denied" => Relayed::Denied,
        _ => Relayed::NotHeld,
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
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Hoped, now);
        assert_eq!(shown(relay.hear(b"noise\nW rea", now)), [""; 0]);
        assert_eq!(shown(relay.hear(b"dy\n", now)), ["signal USR1"]);
        assert_eq!(shown(relay.hear(b"W probe\n", now)), [""; 0]);
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
            shown(relay.hear(b"W sent 1 yes\n", now)),
            ["1: Sent", "2: number 2, signal HUP"]
        );
        assert_eq!(shown(relay.hear(b"W sent 1 yes\n", now)), [""; 0]);
        assert_eq!(shown(relay.hear(b"W sent 2 unsent\n", now)), ["2: NotHeld"]);
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
        assert_eq!(shown(relay.hear(b"W sent 1 yes\n", now)), [""; 0]);
        assert_eq!(shown(relay.signal(3, "TERM", now)), ["3: Retired"]);
        assert!(matches!(relay.watch(3), Reply::Watching { .. }));
        assert_eq!(shown(relay.hear(b"W end 7 1\n", now)), ["3: ended 7"]);
        let mut relay = taking(now);
        relay.watch(1);
        assert_eq!(
            shown(relay.hear(b"W end 143 1 timeout\n", now)),
            ["1: ended 143, timed out"]
        );
    }

    #[test]
    fn a_server_that_takes_no_signals_still_tells_of_the_end() {
        let now = Instant::now();
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Hoped, now);
        assert_eq!(shown(relay.signal(1, "TERM", now)), ["1: NotHeld"]);
        relay.hear(b"W ready\n", now);
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
            shown(relay.hear(b"W sent 1 yes\nW end 0 1\n", now)),
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
        assert_eq!(shown(relay.hear(b"W sent 1 yes\n", now)), ["2: Sent"]);
    }

    #[test]
    fn a_relay_that_never_gets_ready_is_given_up() {
        let now = Instant::now();
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Hoped, now);
        assert_eq!(shown(relay.tick(now)), [""; 0]);
        assert_eq!(shown(relay.tick(now + READY_MAX)), ["give up"]);
        let relay = taking(now);
        assert_eq!(relay.deadline(), None);
    }

    #[test]
    fn where_signals_are_known_to_arrive_there_is_no_probe() {
        let now = Instant::now();
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Proven, now);
        assert_eq!(shown(relay.signal(1, "TERM", now)), ["1: NotHeld"]);
        assert_eq!(shown(relay.hear(b"W ready\n", now)), [""; 0]);
        assert_eq!(
            shown(relay.signal(1, "TERM", now)),
            ["1: number 1, signal TERM"]
        );
    }

    #[test]
    fn where_no_signal_is_expected_to_arrive_none_waits_for_the_probe() {
        let now = Instant::now();
        let mut relay = Relay::new("job".into(), "W".into(), Trust::Doubted, now);
        relay.hear(b"W ready\n", now);
        assert_eq!(shown(relay.signal(1, "TERM", now)), ["1: NotHonoured"]);
        relay.hear(b"W probe\n", now);
        assert_eq!(
            shown(relay.signal(1, "TERM", now)),
            ["1: number 1, signal TERM"]
        );
    }
}
