//! The keeper's channels and their assignment: shells for commands, a spare one, and the relays of jobs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::{ChannelId, ShellChannel, Stage};
use super::client_stream::Client;
use super::protocol::{self, Reply};
use super::relay::{Action, ClientId, RELAYS_MAX};
use super::server::{Keeper, SHORT_SCRIPT_MAX, WANTED_AFTER};
use crate::connection::local::READY;

/// Minimum number of channels kept free of relays: the spare one, and one in use.
const SPARE_CHANNELS: usize = 2;
/// Commands that have held a shell this long are asked for it when another has waited [`WANTED_AFTER`].
const HELD_MIN: Duration = Duration::from_millis(500);
/// How long an unused shell other than the first is kept.
const IDLE_SHELL_MAX: Duration = Duration::from_secs(20);
/// Maximum time for a process to become a shell.
const START_MAX: Duration = Duration::from_secs(20);
/// Maximum delay between the end of a script that has signalled a job and the end of the job's relay.
const RELAY_END_LAG: Duration = Duration::from_millis(50);
/// A relay is started once no command has connected for `QUIET_BEFORE_RELAY`, but at most `RELAY_DELAY_MAX` after its
/// job: starting it takes processor time from a caller that starts jobs in a loop.
const QUIET_BEFORE_RELAY: Duration = Duration::from_millis(150);
const RELAY_DELAY_MAX: Duration = Duration::from_secs(2);
/// Maximum wait for the keeper's last processes to end.
const PROCESS_END_MAX: Duration = Duration::from_millis(500);
use super::pump::CLOSE_LAG;

impl Keeper {
    /// Gives free channels to the commands that wait for one, and opens more as needed, including a spare one.
    pub(super) fn assign(&mut self) {
        if self.keepalive.is_doubted() {
            return;
        }
        let mut waiting: Vec<(Instant, ClientId)> = self
            .clients
            .iter()
            .filter_map(|(id, client)| client.waiting_since.map(|since| (since, *id)))
            .collect();
        waiting.sort_unstable();
        // Only open channels are given: the server can still refuse the others. A process must have become a shell.
        let is_ssh = self.transport.ssh().is_some();
        let is_pending =
            |stage: Stage| stage == Stage::Opening || !is_ssh && stage == Stage::Starting;
        if !(is_ssh || waiting.is_empty() && self.cancel_scripts.is_empty()) {
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
        // A shell that is about to return to the pool is ready sooner than a new process.
        let returning = self
            .channels
            .values()
            .filter(|channel| !is_ssh && channel.is_returning())
            .count();
        let opening = free.iter().filter(|(_, stage)| is_pending(*stage)).count() + returning;
        free.retain(|(_, stage)| !is_pending(*stage));
        free.sort_by_key(|(id, stage)| (*stage != Stage::Open, *id));
        let mut free = free.into_iter();
        let mut wanted = 0;
        let held_back = self.must_defer_open(Duration::ZERO);
        for (since, client_id) in waiting {
            let Some((channel_id, _)) = free.next() else {
                wanted += usize::from(!held_back || since.elapsed() >= CLOSE_LAG);
                continue;
            };
            self.give(channel_id, client_id);
        }
        while !self.cancel_scripts.is_empty() {
            let Some((channel, _)) = free.next() else {
                wanted += 1;
                break;
            };
            if let Some(script) = self.cancel_scripts.pop_front()
                && let Some(channel) = self.channels.get_mut(&channel)
            {
                channel.write(script.as_bytes());
                channel.finish();
            }
        }
        // Relays get the channels that are left; `relays_allowed` keeps some for commands.
        let due = self.relays_due();
        self.relays_deferred_until = due.filter(|due| *due > Instant::now());
        while self.relays_deferred_until.is_none() && !self.pending_relays.is_empty() {
            if self.relays() >= self.relays_allowed() {
                self.pending_relays.clear();
                break;
            }
            let Some((channel, _)) = free.next() else {
                wanted += 1;
                break;
            };
            if let Some((_, relay, script)) = self.pending_relays.pop_front()
                && let Some(channel) = self.channels.get_mut(&channel)
            {
                let proven = if relay.is_proven() { "1" } else { "" };
                channel.write(format!("rs_number={proven}\n{script}").as_bytes());
                channel.relay = Some(relay);
            }
        }
        // One channel for each command that still waits, and a spare one if the server has room for it.
        wanted += usize::from(
            free.next().is_none()
                // A spare is not worth starting a process, which is slow and takes processor time from a waiting
                // command.
                && is_ssh
                && self.stop_deadline.is_none()
                && !self.must_defer_open(SHORT_SCRIPT_MAX)
                // A private keeper's command seldom needs a second shell.
                && (self.lifeline.is_none() || self.channels.is_empty()),
        );
        let room = self.sessions.saturating_sub(self.channels.len());
        if Instant::now() >= self.open_not_before {
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
        channel.checked_out_at = Some(Instant::now());
        client.channel = Some(channel_id);
        (client.waiting_since, client.was_told_wanted) = (None, false);
        let noise = channel.take_noise();
        let reply = Reply::Shell {
            primed: self.primer.mark,
            may_hang: self.may_hang,
        };
        self.send_reply(client_id, &reply);
        if let Some(client) = self.clients.get_mut(&client_id) {
            for (error_stream, bytes) in noise {
                // What the socket does not take now is written later.
                drop(client.forward(error_stream, &bytes));
            }
        }
    }

    /// Whether channels must not be opened yet, because a shell is ending or will end in a moment: one that was given a
    /// script less than `short` ago, or the relay of a job that a script may just have ended.
    pub(super) fn must_defer_open(&self, short: Duration) -> bool {
        let relay_may_end = || {
            self.relays() > 0
                && self
                    .last_close
                    .is_some_and(|freed| freed.elapsed() < RELAY_END_LAG)
        };
        self.breaks_on_open
            && (self
                .channels
                .values()
                .any(|channel| channel.is_about_to_end(short))
                || relay_may_end())
    }

    /// When the next relay is to be started.
    fn relays_due(&self) -> Option<Instant> {
        let (since, ..) = self.pending_relays.front()?;
        Some((self.last_connect + QUIET_BEFORE_RELAY).min(*since + RELAY_DELAY_MAX))
    }

    pub(super) fn relays(&self) -> usize {
        self.channels
            .values()
            .filter(|channel| channel.relay.is_some())
            .count()
    }

    /// Maximum number of relays, so that scripts have channels too.
    pub(super) fn relays_allowed(&self) -> usize {
        if self.transport.ssh().is_none() {
            return 0;
        }
        RELAYS_MAX.min(self.sessions.saturating_sub(SPARE_CHANNELS))
    }

    /// Stops using a channel as a relay. A command whose script runs there is served to the end.
    pub(super) fn drop_relay(&mut self, id: ChannelId) {
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

    /// Carries out a relay's actions.
    pub(super) fn act(&mut self, id: ChannelId, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Signal(name) => {
                    if let Some(channel) = self.channels.get_mut(&id) {
                        channel.signal(name);
                    }
                }
                Action::Tell(client, reply) => self.send_reply(client, &reply),
                Action::Send(client, number, name) => {
                    let heard = self.send_number(id, client, number);
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
                Action::GiveUp => self.drop_relay(id),
            }
        }
    }

    /// Tells a command the number of its signal. Returns false if the command is gone: it has not received the number,
    /// and never will.
    pub(super) fn send_number(&mut self, channel: ChannelId, id: ClientId, number: u32) -> bool {
        let Some(job) = self
            .channels
            .get(&channel)
            .and_then(|channel| channel.relay.as_ref())
            .map(|relay| relay.job.clone())
        else {
            return false;
        };
        let Some(client) = self
            .clients
            .get_mut(&id)
            .filter(|client| client.is_connected())
        else {
            return false;
        };
        client
            .output
            .extend(protocol::message(&Reply::Numbered { job, number }));
        let heard = client.flush().is_ok() && client.output.is_empty();
        if !heard {
            // At most part of the message is in the socket, and the rest never follows.
            self.drop_client(id);
        }
        heard
    }

    /// If the server allows no more sessions and a command waits, asks the commands that have held a shell for a while
    /// to give it back.
    pub(super) fn ask_for_shells(&mut self, now: Instant) {
        let waits = |client: &Client| {
            client
                .waiting_since
                .is_some_and(|since| now >= since + WANTED_AFTER)
        };
        if self.channels.len() < self.sessions || !self.clients.values().any(waits) {
            return;
        }
        for channel in self.channels.values() {
            let is_long = channel
                .checked_out_at
                .is_some_and(|given| now >= given + HELD_MIN);
            if let Some(client) = channel
                .client
                .and_then(|client| self.clients.get_mut(&client))
                && is_long
                && !std::mem::replace(&mut client.was_told_wanted, true)
            {
                client.output.extend(protocol::message(&Reply::Wanted));
                // What can't be written now is written when the socket is ready.
                drop(client.flush());
            }
        }
    }

    /// Ends unused processes before the keeper exits: one that hangs would be left behind.
    pub(super) fn end_processes(&mut self) {
        if self.transport.ssh().is_some() {
            return;
        }
        let until = Instant::now() + PROCESS_END_MAX;
        let mut idle: Vec<&mut ShellChannel> = self.channels.values_mut().collect();
        idle.retain(|channel| channel.client.is_none() && !channel.is_returning());
        loop {
            idle.retain_mut(|channel| !channel.close_and_check_exit());
            if idle.is_empty() || Instant::now() >= until {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        idle.into_iter().for_each(ShellChannel::kill);
    }

    /// Closes shells that missed a deadline (to be ready again, to answer or to end), old ones, and all but one of
    /// those that were unused for a while.
    pub(super) fn close_shells(&mut self, now: Instant) {
        let mut free = 0;
        for channel in self.channels.values_mut() {
            let is_stuck =
                channel.stage == Stage::Starting && channel.opened.elapsed() >= START_MAX;
            let late = channel.due.map_or(is_stuck, |due| now >= due);
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
