//! The calls of libssh2 for all channels of a connection.
//!
//! A call that could send only a part of its packet owns the session: it is repeated before any other.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::channel::{ChannelId, Op, ShellChannel, Stage};
use super::protocol::Reply;
use super::server::Keeper;
use crate::sys::channel::is_of_channel;
use crate::sys::inflow;

/// How many rounds of calls are made before the commands are looked after again: a server can always have more to say.
const ROUNDS_MAX: usize = 32;
/// The pause after a refused channel, doubled with each further one up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long a server may take to count a channel that was closed as closed.
pub(super) const CLOSE_LAG: Duration = Duration::from_secs(1);

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    /// Something was done.
    Moved,
    /// Nothing can be done now.
    Waits,
    /// Its packet is half sent: nothing else may be called.
    Owes,
}

impl Keeper {
    /// Makes every call that does not have to wait, and says whether there may be more.
    pub(super) fn pump(&mut self) -> io::Result<bool> {
        for _ in 0..ROUNDS_MAX {
            if let Some((id, op)) = self.owed.take() {
                // What is owed may be a part of new keys, and not of this call.
                self.channels.values().try_for_each(ShellChannel::take_in)?;
                if self.call(id, op)? == Called::Owes {
                    return Ok(false);
                }
            }
            self.assign();
            let (mut moved, mut taken_in) = (false, false);
            for id in self.channels.keys().copied().collect::<Vec<_>>() {
                match self.drive(id, &mut taken_in)? {
                    Called::Owes => return Ok(false),
                    Called::Moved => moved = true,
                    Called::Waits => {}
                }
            }
            if !moved {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether calls for a channel may be made: one channel is opened at a time, and not before its time. Variables are not set
    /// while another shell is asked for: libssh2 would take the one answer for the other.
    pub(super) fn is_due(&self, id: ChannelId, channel: &ShellChannel) -> bool {
        let first = || {
            self.channels
                .iter()
                .find(|(_, channel)| channel.stage == Stage::Opening)
                .map(|(id, _)| *id)
        };
        let is_clear = || {
            let mut channels = self.channels.values();
            self.transport.environment().is_empty()
                || !channels.any(|channel| channel.stage == Stage::Starting)
        };
        channel.stage != Stage::Opening
            || first() == Some(id) && Instant::now() >= self.not_before && is_clear()
    }

    /// Whether somebody takes what a channel says.
    pub(super) fn listens(&self, channel: &ShellChannel) -> bool {
        channel
            .client
            .and_then(|client| self.clients.get(&client))
            .map_or(0, |client| client.output.len())
            < self.backlog
    }

    /// Makes the calls of one channel.
    ///
    /// A reading takes in all that has come for any of them: `taken_in` says that one has, and then the others read what is
    /// there for them alone.
    fn drive(&mut self, id: ChannelId, taken_in: &mut bool) -> io::Result<Called> {
        // Nothing more is sent to a shell that has ended.
        if self.channels.get(&id).is_some_and(ShellChannel::has_ended) {
            self.channel_ended(id, &Reply::End);
        }
        let Some(channel) = self
            .channels
            .get(&id)
            .filter(|channel| self.is_due(id, channel))
        else {
            return Ok(Called::Waits);
        };
        let mut result = Called::Waits;
        for op in channel.to_do(self.listens(channel)) {
            let has_bytes = || self.channels.get(&id).is_some_and(ShellChannel::has_bytes);
            if matches!(op, Op::Read(_))
                && self.transport.ssh().is_some()
                && std::mem::replace(taken_in, true)
                && !has_bytes()
            {
                continue;
            }
            match self.call(id, op)? {
                Called::Owes => return Ok(Called::Owes),
                Called::Moved => result = Called::Moved,
                Called::Waits => {}
            }
        }
        if self.channels.get(&id).is_some_and(ShellChannel::has_ended) {
            self.channel_ended(id, &Reply::End);
            result = Called::Moved;
        }
        Ok(result)
    }

    /// Makes one call, and passes on what it read.
    fn call(&mut self, id: ChannelId, op: Op) -> io::Result<Called> {
        let Some(channel) = self.channels.get_mut(&id) else {
            return Ok(Called::Waits);
        };
        let result = channel.perform(&self.transport, op, &mut self.buffer);
        match result {
            Ok(0) if matches!(op, Op::Read(_)) => Ok(Called::Waits),
            Ok(size) => {
                if let Op::Read(error_stream) = op {
                    self.heard(id, error_stream, size);
                }
                if op == Op::Exec {
                    inflow::acknowledge_later();
                }
                if op == Op::Free {
                    self.channels.remove(&id);
                    self.freed = Some(Instant::now());
                }
                Ok(Called::Moved)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if self.transport.owes_output() {
                    self.owed = Some((id, op));
                    return Ok(Called::Owes);
                }
                Ok(Called::Waits)
            }
            Err(error) if self.transport.ssh().is_none() && matches!(op, Op::Open | Op::Exec) => {
                if channel.due.is_some() {
                    // The end of one that had been there says nothing about the next.
                    channel.close();
                    return Ok(Called::Moved);
                }
                self.channels.remove(&id);
                if !self.channels.values().any(ShellChannel::is_there) {
                    // The commands that wait start a shell themselves, and find out why there is none.
                    return Err(error);
                }
                self.sessions = self.channels.len();
                self.pause();
                Ok(Called::Moved)
            }
            Err(error) if self.transport.ssh().is_none() || is_of_channel(&error) => {
                if op == Op::Open {
                    self.refused(id);
                } else if op == Op::Free {
                    // The session frees it in the end.
                    self.channels.remove(&id);
                } else {
                    let message = format!("the shell was broken off: {error}");
                    self.channel_ended(id, &Reply::Broken { message });
                }
                Ok(Called::Moved)
            }
            Err(error) => Err(error),
        }
    }

    /// Passes on what a channel said.
    fn heard(&mut self, id: ChannelId, error_stream: bool, size: usize) {
        let bytes = self.buffer.get(..size).unwrap_or_default();
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let actions = match &mut channel.relay {
            Some(relay) if !error_stream => relay.hear(bytes, Instant::now()),
            _ => Vec::new(),
        };
        if let Some(relay) = &channel.relay {
            self.trust = relay.finding().unwrap_or(self.trust);
        }
        if !error_stream {
            channel.hear(bytes);
        }
        if let Some(client) = channel
            .client
            .and_then(|client| self.clients.get_mut(&client))
        {
            self.failures = 0;
            // What it does not take now is written when it can.
            drop(client.pass_on(error_stream, bytes));
        } else if channel.relay.is_none() {
            channel.keep_noise(error_stream, bytes);
        }
        self.act(id, actions);
    }

    /// A channel has come to its end, or is lost.
    pub(super) fn channel_ended(&mut self, id: ChannelId, reply: &Reply) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let useless = channel.was_useless();
        let client = channel.client.take();
        let actions = channel
            .relay
            .take()
            .map(|mut relay| relay.end(None))
            .unwrap_or_default();
        channel.close();
        self.act(id, actions);
        if let Some(client) = client {
            self.tell(client, reply);
            if let Some(client) = self.clients.get_mut(&client) {
                client.channel = None;
                client.done = true;
            }
        }
        if useless {
            // Such a server (one that gives no shell, say) is not to be asked in a circle.
            self.pause();
        }
    }

    /// Asks for no channel for a while, the longer the more were of no use.
    fn pause(&mut self) {
        self.not_before =
            Instant::now() + (PAUSE * 2_u32.pow(self.failures.min(16))).min(PAUSE_MAX);
        self.failures += 1;
    }

    /// The server refused a channel: it allows no more than are open, or counts some that were closed a moment ago.
    fn refused(&mut self, id: ChannelId) {
        self.channels.remove(&id);
        self.pause();
        let all_relays =
            !self.channels.is_empty() && self.channels.values().all(ShellChannel::is_relay_alone);
        let lags = self.freed.is_some_and(|freed| freed.elapsed() < CLOSE_LAG) && !all_relays;
        let closing = self
            .channels
            .values()
            .any(|channel| matches!(channel.stage, Stage::Draining | Stage::Closing));
        if lags || closing {
            return;
        }
        self.sessions = self.channels.len().max(1);
        while self.relays() > self.relays_allowed() {
            let oldest = self
                .channels
                .iter()
                .find(|(_, channel)| channel.relay.is_some())
                .map(|(id, _)| *id);
            let Some(oldest) = oldest else { return };
            self.give_up_relay(oldest);
        }
    }
}
