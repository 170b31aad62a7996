//! Makes the libssh2 calls for all channels of a connection.
//!
//! A call that could send only part of its packet must be repeated before any other call on the session.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::channel::{ChannelId, Op, ShellChannel, Stage};
use super::protocol::Reply;
use super::server::Keeper;
use crate::sys::channel::is_channel_error;
use crate::sys::socket_callbacks;

/// Maximum number of rounds of calls before the commands are served again: a server can send without end.
const ROUNDS_MAX: usize = 32;
/// The pause after a refused channel, doubled with each further refusal up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long a server may go on counting a channel that was closed.
pub(super) const CLOSE_LAG: Duration = Duration::from_secs(1);

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallResult {
    /// Something was done.
    Progress,
    /// Nothing can be done now.
    Blocked,
    /// Its packet is half sent: no other call may be made.
    HalfSent,
}

impl Keeper {
    /// Makes all calls that do not block. Returns whether there may be more.
    pub(super) fn pump(&mut self) -> io::Result<bool> {
        for _ in 0..ROUNDS_MAX {
            if let Some((id, op)) = self.half_sent_call.take() {
                // The half-sent packet may belong to a key exchange, and not to this call.
                self.channels
                    .values()
                    .try_for_each(ShellChannel::receive_all)?;
                if self.call(id, op)? == CallResult::HalfSent {
                    return Ok(false);
                }
            }
            self.assign();
            let (mut moved, mut taken_in) = (false, false);
            for id in self.channels.keys().copied().collect::<Vec<_>>() {
                match self.drive(id, &mut taken_in)? {
                    CallResult::HalfSent => return Ok(false),
                    CallResult::Progress => moved = true,
                    CallResult::Blocked => {}
                }
            }
            if !moved {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether calls may be made for a channel. Only one channel is opened at a time, and none before `open_not_before`.
    /// Variables are not set while another shell is being requested: libssh2 would mistake one reply for the other.
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
            || first() == Some(id) && Instant::now() >= self.open_not_before && is_clear()
    }

    /// Whether a channel's output can be passed on now.
    pub(super) fn has_reader(&self, channel: &ShellChannel) -> bool {
        channel
            .client
            .and_then(|client| self.clients.get(&client))
            .map_or(0, |client| client.output.len())
            < self.backlog
    }

    /// Makes the calls of one channel.
    ///
    /// A read receives what has arrived for all channels. `taken_in` tells that one was made in this round: the other
    /// channels then read only what the library has received for them.
    fn drive(&mut self, id: ChannelId, taken_in: &mut bool) -> io::Result<CallResult> {
        // Nothing more is sent to a shell that has ended.
        if self.channels.get(&id).is_some_and(ShellChannel::has_ended) {
            self.channel_ended(id, &Reply::End);
        }
        let Some(channel) = self
            .channels
            .get(&id)
            .filter(|channel| self.is_due(id, channel))
        else {
            return Ok(CallResult::Blocked);
        };
        let mut result = CallResult::Blocked;
        for op in channel.next_ops(self.has_reader(channel)) {
            let has_bytes = || self.channels.get(&id).is_some_and(ShellChannel::has_bytes);
            if matches!(op, Op::Read(_))
                && self.transport.ssh().is_some()
                && std::mem::replace(taken_in, true)
                && !has_bytes()
            {
                continue;
            }
            match self.call(id, op)? {
                CallResult::HalfSent => return Ok(CallResult::HalfSent),
                CallResult::Progress => result = CallResult::Progress,
                CallResult::Blocked => {}
            }
        }
        if self.channels.get(&id).is_some_and(ShellChannel::has_ended) {
            self.channel_ended(id, &Reply::End);
            result = CallResult::Progress;
        }
        Ok(result)
    }

    /// Makes one call, and forwards what it read.
    fn call(&mut self, id: ChannelId, op: Op) -> io::Result<CallResult> {
        let Some(channel) = self.channels.get_mut(&id) else {
            return Ok(CallResult::Blocked);
        };
        let result = channel.perform(&self.transport, op, &mut self.buffer);
        match result {
            Ok(0) if matches!(op, Op::Read(_)) => Ok(CallResult::Blocked),
            Ok(size) => {
                if let Op::Read(error_stream) = op {
                    self.forward_output(id, error_stream, size);
                }
                if op == Op::Exec {
                    socket_callbacks::acknowledge_later();
                }
                if op == Op::Free {
                    self.channels.remove(&id);
                    self.last_close = Some(Instant::now());
                }
                Ok(CallResult::Progress)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if self.transport.has_partial_packet() {
                    self.half_sent_call = Some((id, op));
                    return Ok(CallResult::HalfSent);
                }
                Ok(CallResult::Blocked)
            }
            Err(error) if self.transport.ssh().is_none() && matches!(op, Op::Open | Op::Exec) => {
                if channel.due.is_some() {
                    // The end of a shell that was running before says nothing about the next one.
                    channel.close();
                    return Ok(CallResult::Progress);
                }
                self.channels.remove(&id);
                if !self.channels.values().any(ShellChannel::is_running) {
                    // The waiting commands then start a shell themselves, and find out why that fails.
                    return Err(error);
                }
                self.sessions = self.channels.len();
                self.back_off();
                Ok(CallResult::Progress)
            }
            Err(error) if self.transport.ssh().is_none() || is_channel_error(&error) => {
                if op == Op::Open {
                    self.handle_refusal(id);
                } else if op == Op::Free {
                    // It is freed with the session.
                    self.channels.remove(&id);
                } else {
                    let message = format!("the shell was broken off: {error}");
                    self.channel_ended(id, &Reply::Broken { message });
                }
                Ok(CallResult::Progress)
            }
            Err(error) => Err(error),
        }
    }

    /// Forwards a channel's output.
    fn forward_output(&mut self, id: ChannelId, error_stream: bool, size: usize) {
        let bytes = self.buffer.get(..size).unwrap_or_default();
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let actions = match &mut channel.relay {
            Some(relay) if !error_stream => relay.receive(bytes, Instant::now()),
            _ => Vec::new(),
        };
        if let Some(relay) = &channel.relay {
            self.signal_support = relay.probe_result().unwrap_or(self.signal_support);
        }
        if !error_stream {
            channel.scan_output(bytes);
        }
        if let Some(client) = channel
            .client
            .and_then(|client| self.clients.get_mut(&client))
        {
            self.failures = 0;
            // What the socket does not take now is written later.
            drop(client.forward(error_stream, bytes));
        } else if channel.relay.is_none() {
            channel.buffer_noise(error_stream, bytes);
        }
        self.act(id, actions);
    }

    /// Handles the end or the loss of a channel.
    pub(super) fn channel_ended(&mut self, id: ChannelId, reply: &Reply) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let useless = channel.failed_before_use();
        let client = channel.client.take();
        let actions = channel
            .relay
            .take()
            .map(|mut relay| relay.end(None))
            .unwrap_or_default();
        channel.close();
        self.act(id, actions);
        if let Some(client) = client {
            self.send_reply(client, reply);
            if let Some(client) = self.clients.get_mut(&client) {
                client.channel = None;
                client.is_closing = true;
            }
        }
        if useless {
            // A server that gives no shell, for example, must not be asked in a tight loop.
            self.back_off();
        }
    }

    /// Requests no channel for a while, longer after each failure in a row.
    fn back_off(&mut self) {
        self.open_not_before =
            Instant::now() + (PAUSE_MIN * 2_u32.pow(self.failures.min(16))).min(PAUSE_MAX);
        self.failures += 1;
    }

    /// Handles a refused channel: the server allows no more than are open, or still counts some that were closed a
    /// moment ago.
    fn handle_refusal(&mut self, id: ChannelId) {
        self.channels.remove(&id);
        self.back_off();
        let all_relays = !self.channels.is_empty()
            && self
                .channels
                .values()
                .all(ShellChannel::is_unattended_relay);
        let lags = self
            .last_close
            .is_some_and(|freed| freed.elapsed() < CLOSE_LAG)
            && !all_relays;
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
            self.drop_relay(oldest);
        }
    }
}
