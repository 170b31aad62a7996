//! Which channels there are and who has them: shells for commands, a spare one, and the relays of jobs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::{ChannelId, ShellChannel, Stage};
use super::client_stream::Client;
use super::protocol::{self, Reply};
use super::relay::{Action, ClientId, RELAYS_MAX};
use super::server::Keeper;
use crate::connection::local::READY;

/// How many channels stay free of relays at least: the ready one, and one that is at work.
const SPARE_CHANNELS: usize = 2;
/// How long a command waits for a shell before others are asked for theirs, and how long those have had them by then.
const WANTED_AFTER: Duration = Duration::from_millis(100);
const HELD_LONG: Duration = Duration::from_millis(500);
/// How long a shell beyond the first is kept that nobody uses.
const IDLE_SHELL_MAX: Duration = Duration::from_secs(20);
/// How long a script runs at most that is worth waiting for.
const SHORT_SCRIPT_MAX: Duration = Duration::from_secs(2);
/// How soon after a script that has signalled a job the job's relay ends.
const RELAY_END_LAG: Duration = Duration::from_millis(50);
/// A relay is started once no command has come for so long, but not later than so long after its job: it takes the
/// processors of whoever starts jobs in a loop.
const QUIET_BEFORE_RELAY: Duration = Duration::from_millis(150);
const RELAY_DELAY_MAX: Duration = Duration::from_secs(2);
/// How long the keeper's last processes may take to end.
const PROCESS_END_MAX: Duration = Duration::from_millis(500);
use super::pump::CLOSE_LAG;

impl Keeper {
    /// Gives free channels to the commands that wait for one, and sees to it that one more is ready.
    pub(super) fn assign(&mut self) {
        if self.keepalive.is_doubted() {
            return;
        }
        let mut waiting: Vec<(Instant, ClientId)> = self
            .clients
            .iter()
            .filter_map(|(id, client)| client.waits.map(|since| (since, *id)))
            .collect();
        waiting.sort_unstable();
        // One that is open at least: the server can still refuse the others. A process must be a shell.
        let is_ssh = self.transport.ssh().is_some();
        let comes = |stage: Stage| stage == Stage::Opening || !is_ssh && stage == Stage::Starting;
        if !(is_ssh || waiting.is_empty() && self.cancels.is_empty()) {
            let free = self.channels.values_mut();
            free.filter(|channel| channel.is_free())
                .for_each(ShellChannel::probe);
        }
        let mut free: Vec<(ChannelId, Stage)> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.is_free())
            .map(|(id, channel)| (*id, channel.stage))
            .collect();
        // A shell that is about to be ready again is there sooner than a new process.
        let returns = self
            .channels
            .values()
            .filter(|channel| !is_ssh && channel.is_returning())
            .count();
        let opening = free.iter().filter(|(_, stage)| comes(*stage)).count() + returns;
        free.retain(|(_, stage)| !comes(*stage));
        free.sort_by_key(|(id, stage)| (*stage != Stage::Open, *id));
        let mut free = free.into_iter();
        let mut wanted = 0;
        let held_back = self.must_hold_back(Duration::ZERO);
        for (since, client_id) in waiting {
            let Some((channel_id, _)) = free.next() else {
                wanted += usize::from(!held_back || since.elapsed() >= CLOSE_LAG);
                continue;
            };
            self.give(channel_id, client_id);
        }
        while !self.cancels.is_empty() {
            let Some((channel, _)) = free.next() else {
                wanted += 1;
                break;
            };
            if let Some(script) = self.cancels.pop_front()
                && let Some(channel) = self.channels.get_mut(&channel)
            {
                channel.write(script.as_bytes());
                channel.finish();
            }
        }
        // Relays get what is left, and never the last shell.
        let due = self.relays_due();
        self.relays_put_off = due.filter(|due| *due > Instant::now());
        while self.relays_put_off.is_none() && !self.relays_to_be.is_empty() {
            if self.relays() >= self.relays_allowed() {
                self.relays_to_be.clear();
                break;
            }
            let Some((channel, _)) = free.next() else {
                wanted += 1;
                break;
            };
            if let Some((_, relay, script)) = self.relays_to_be.pop_front()
                && let Some(channel) = self.channels.get_mut(&channel)
            {
                let proven = if relay.is_proven() { "1" } else { "" };
                channel.write(format!("rs_number={proven}\n{script}").as_bytes());
                channel.relay = Some(relay);
            }
        }
        // One for each that still waits, and a spare one where the server has room for it.
        wanted += usize::from(
            free.next().is_none()
                // Nor is it worth the start of a process, which takes long and the processor of whoever waits.
                && is_ssh
                && self.leaves_by.is_none()
                && !self.must_hold_back(SHORT_SCRIPT_MAX)
                // A private keeper's command seldom needs a second shell.
                && (self.lifeline.is_none() || self.channels.is_empty()),
        );
        let room = self.sessions.saturating_sub(self.channels.len());
        if Instant::now() >= self.not_before {
            for _ in 0..wanted.saturating_sub(opening).min(room) {
                self.next_id += 1;
                let mut channel =
                    ShellChannel::new(Arc::clone(&self.command), self.window, &self.primer.text);
                if !is_ssh {
                    channel.write(READY.0);
                }
                self.channels.insert(self.next_id, channel);
            }
        }
    }

    /// Gives a free channel to a command.
    fn give(&mut self, channel_id: ChannelId, client_id: ClientId) {
        let (Some(client), Some(channel)) = (
            self.clients.get_mut(&client_id),
            self.channels.get_mut(&channel_id),
        ) else {
            return;
        };
        channel.client = Some(client_id);
        channel.is_proven = false;
        channel.given = Some(Instant::now());
        client.channel = Some(channel_id);
        (client.waits, client.told_wanted) = (None, false);
        let noise = channel.take_noise();
        let reply = Reply::Shell {
            primed: self.primer.mark,
            may_hang: self.may_hang,
        };
        self.tell(client_id, &reply);
        if let Some(client) = self.clients.get_mut(&client_id) {
            for (error_stream, bytes) in noise {
                // What it does not take now is written when it can.
                drop(client.pass_on(error_stream, &bytes));
            }
        }
    }

    /// Whether a channel is not to be opened yet, because of a shell that is ending, or that will end in a moment: one that
    /// was given a script less than `short` ago, or the relay of a job that a script may just have ended.
    pub(super) fn must_hold_back(&self, short: Duration) -> bool {
        let follows = || {
            self.relays() > 0
                && self
                    .freed
                    .is_some_and(|freed| freed.elapsed() < RELAY_END_LAG)
        };
        self.breaks_on_open
            && (self
                .channels
                .values()
                .any(|channel| channel.is_about_to_end(short))
                || follows())
    }

    /// When the next relay is to be started.
    fn relays_due(&self) -> Option<Instant> {
        let (since, ..) = self.relays_to_be.front()?;
        Some((self.visited + QUIET_BEFORE_RELAY).min(*since + RELAY_DELAY_MAX))
    }

    pub(super) fn relays(&self) -> usize {
        self.channels
            .values()
            .filter(|channel| channel.relay.is_some())
            .count()
    }

    /// How many relays there may be, so that scripts have channels too.
    pub(super) fn relays_allowed(&self) -> usize {
        if self.transport.ssh().is_none() {
            return 0;
        }
        RELAYS_MAX.min(self.sessions.saturating_sub(SPARE_CHANNELS))
    }

    /// From now on a channel is a relay no more. A command whose script runs there is served to the end.
    pub(super) fn give_up_relay(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let actions = channel
            .relay
            .take()
            .map(|mut relay| relay.end(None))
            .unwrap_or_default();
        if channel.client.is_none() {
            channel.finish();
        }
        self.act(id, actions);
    }

    /// Carries out what a relay wants.
    pub(super) fn act(&mut self, id: ChannelId, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Signal(name) => {
                    if let Some(channel) = self.channels.get_mut(&id) {
                        channel.signal(name);
                    }
                }
                Action::Tell(client, reply) => self.tell(client, &reply),
                Action::Send(client, number, name) => {
                    let heard = self.tell_number(id, client, number);
                    let Some(channel) = self.channels.get_mut(&id) else {
                        return;
                    };
                    if heard {
                        channel.signal(name);
                    } else if let Some(relay) = &mut channel.relay {
                        relay.forget(client);
                        actions.extend(relay.withdraw(number, Instant::now()));
                    }
                }
                Action::GiveUp => self.give_up_relay(id),
            }
        }
    }

    /// Tells a command the number of its signal. False: it is not there to hear it, and will never hear it.
    pub(super) fn tell_number(&mut self, channel: ChannelId, id: ClientId, number: u32) -> bool {
        let Some(job) = self
            .channels
            .get(&channel)
            .and_then(|channel| channel.relay.as_ref())
            .map(|relay| relay.job.clone())
        else {
            return false;
        };
        let Some(client) = self.clients.get_mut(&id).filter(|client| client.is_there()) else {
            return false;
        };
        client
            .output
            .extend(protocol::message(&Reply::Numbered { job, number }));
        let heard = client.flush().is_ok() && client.output.is_empty();
        if !heard {
            // A part of it is in the socket at most, and no more of it follows.
            self.clients.remove(&id);
        }
        heard
    }

    /// Where the server allows no more sessions and a command waits, asks those for their shells that have had them for a
    /// while.
    pub(super) fn ask_for_shells(&mut self, now: Instant) {
        let waits = |client: &Client| {
            client
                .waits
                .is_some_and(|since| now >= since + WANTED_AFTER)
        };
        if self.channels.len() < self.sessions || !self.clients.values().any(waits) {
            return;
        }
        for channel in self.channels.values() {
            let is_long = channel.given.is_some_and(|given| now >= given + HELD_LONG);
            if let Some(client) = channel
                .client
                .and_then(|client| self.clients.get_mut(&client))
                && is_long
                && !std::mem::replace(&mut client.told_wanted, true)
            {
                client.output.extend(protocol::message(&Reply::Wanted));
                // What can't be written now is tried again when the socket is ready.
                drop(client.flush());
            }
        }
    }

    /// Ends the processes that nobody uses, before the keeper does: one that hangs would stay.
    pub(super) fn end_processes(&mut self) {
        if self.transport.ssh().is_some() {
            return;
        }
        let by = Instant::now() + PROCESS_END_MAX;
        let mut idle: Vec<&mut ShellChannel> = self.channels.values_mut().collect();
        idle.retain(|channel| channel.client.is_none() && !channel.is_returning());
        loop {
            idle.retain_mut(|channel| !channel.has_left());
            if idle.is_empty() || Instant::now() >= by {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        idle.into_iter().for_each(ShellChannel::kill);
    }

    /// Closes shells that did not get ready again, that do not answer or end, that are old, and those that nobody has used
    /// for a while but one.
    pub(super) fn close_shells(&mut self, now: Instant) {
        let mut free = 0;
        for channel in self.channels.values_mut() {
            let late = channel.due.is_some_and(|due| now >= due);
            if late && channel.stage != Stage::Open {
                channel.kill();
                continue;
            }
            let unused = channel.is_free() && channel.stage == Stage::Open;
            free += usize::from(unused);
            let surplus =
                free > 1 && now.saturating_duration_since(channel.idle_since) >= IDLE_SHELL_MAX;
            if late || unused && (channel.is_old() || surplus) {
                channel.finish();
            }
        }
    }
}
