//! Carries out what commands request over the keeper's socket.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::channel::ChannelId;
use super::client_stream::Client;
use super::path::is_ours;
use super::protocol::{self, Frame, RelayResult, Reply, Request, Status, VERSION};
use super::relay::{ClientId, RELAYS_MAX, Relay, channel_signal};
use super::server::{CLIENTS_MAX, Keeper, STOP_GRACE};

/// Maximum time for a shell to be ready again after its script has answered.
const RETURN_MAX: Duration = Duration::from_secs(2);
/// Maximum interval between a shell's heartbeats, in seconds: a deadline must be within the clock's range.
const BEAT_SECONDS_MAX: u64 = 24 * 3600;

/// The interval between heartbeats, for a command's request.
fn beat_interval(seconds: u64) -> Duration {
    Duration::from_secs(seconds.clamp(1, BEAT_SECONDS_MAX))
}

impl Keeper {
    pub(super) fn accept(&mut self, now: Instant) {
        // If accept fails, the next turn tries again.
        while self.clients.len() < CLIENTS_MAX
            && let Ok((stream, _)) = self.listener.accept()
        {
            if !is_ours(&stream) || stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.last_connect = now;
            self.next_id += 1;
            let client = Client {
                stream,
                input: Vec::new(),
                output: VecDeque::new(),
                greeted: false,
                connected_at: now,
                channel: None,
                waiting_since: None,
                was_told_wanted: false,
                heartbeat: None,
                is_closing: false,
            };
            self.clients.insert(self.next_id, client);
            let jobs = self
                .channels
                .values()
                .filter_map(|channel| channel.relay.as_ref())
                .map(|relay| relay.job.clone());
            let hello = Reply::Hello {
                version: VERSION.to_owned(),
                jobs: jobs.collect(),
                connect_timeout: self.connect_timeout.as_secs(),
            };
            self.send_reply(self.next_id, &hello);
        }
    }

    /// Queues a reply, and sends what the socket takes.
    pub(super) fn send_reply(&mut self, id: ClientId, reply: &Reply) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.output.extend(protocol::message(reply));
            // What can't be written now is written when the socket is ready; an error is handled then.
            drop(client.flush());
        }
    }

    /// Reads from a command and writes to it. What it requested before it disconnected is still carried out.
    pub(super) fn serve_client(&mut self, id: ClientId, now: Instant) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        let takes_input = self.takes_input(client);
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        // A command that no longer reads may have sent requests before.
        let (flushed, filled) = (
            client.flush(),
            if takes_input { client.fill() } else { Ok(true) },
        );
        let is_open = flushed.is_ok() && filled.unwrap_or(false);
        if client.is_closing {
            // Its shell has ended. What it still sends is read and discarded, since it may block until all of that is
            // written.
            client.input.clear();
        }
        loop {
            let Some(client) = self
                .clients
                .get_mut(&id)
                .filter(|client| !is_open || client.takes_requests(self.backlog))
            else {
                return;
            };
            match protocol::take::<Request>(&mut client.input) {
                Ok(Some(frame)) => {
                    if !self.handle_request(id, frame, now) {
                        return self.drop_client(id);
                    }
                }
                Ok(None) => break,
                Err(_) => return self.drop_client(id),
            }
        }
        if !is_open
            || self
                .clients
                .get(&id)
                .is_some_and(|client| client.is_closing && client.output.is_empty())
        {
            self.drop_client(id);
        }
    }

    /// Carries out a command's request. Returns false if the request is invalid.
    fn handle_request(&mut self, id: ClientId, frame: Frame<Request>, now: Instant) -> bool {
        let Some(client) = self.clients.get_mut(&id) else {
            return false;
        };
        let request = match frame {
            Frame::Bytes(bytes) => {
                // Without a channel, its shell has ended.
                if let Some(channel) = client
                    .channel
                    .and_then(|channel| self.channels.get_mut(&channel))
                {
                    channel.write_script(&bytes);
                }
                return client.greeted;
            }
            Frame::ErrorBytes(_) => return false,
            Frame::Message(request) => request,
        };
        match request {
            Request::Hello { version } => {
                client.greeted = version == VERSION;
                return client.greeted;
            }
            _ if !client.greeted => return false,
            Request::Shell => {
                if client.channel.is_some() || client.waiting_since.is_some() {
                    return false;
                }
                client.waiting_since = Some(now);
            }
            Request::Script { done } => {
                if let Some(channel) = client
                    .channel
                    .and_then(|channel| self.channels.get_mut(&channel))
                {
                    channel.begin_script(done);
                }
            }
            Request::CheckIn => {
                let channel = client.channel.take();
                if let Some(channel) = channel.and_then(|channel| self.channels.get_mut(&channel)) {
                    channel.check_in(now + RETURN_MAX);
                }
            }
            Request::Relay { job, word, script } => {
                if self.lifeline.is_none() && self.pending_relays.len() < RELAYS_MAX {
                    let relay = Relay::new(job, word, self.signal_support, now);
                    self.pending_relays.push_back((now, relay, script));
                }
            }
            Request::Cancel { script } => {
                if self.cancel_scripts.len() < CLIENTS_MAX {
                    self.cancel_scripts.push_back(script);
                }
            }
            Request::Beat { seconds } => {
                let every = beat_interval(seconds);
                client.heartbeat = Some((every, now + every));
            }
            // These make output, see `takes_requests`.
            Request::Signal { .. } | Request::Watch { .. } | Request::Status
                if client.channel.is_some() =>
            {
                return false;
            }
            Request::Signal { job, name } => self.send_signal(id, &job, &name, now),
            Request::Watch { job } => {
                let relay = self
                    .channels
                    .values_mut()
                    .filter_map(|channel| channel.relay.as_mut())
                    .find(|relay| relay.job == job);
                let reply = match relay {
                    Some(relay) => relay.watch(id),
                    None => Reply::NotWatching { job },
                };
                self.send_reply(id, &reply);
            }
            Request::Status => {
                let status = self.status();
                self.send_reply(id, &Reply::Status(status));
            }
            Request::Stop => {
                self.stop_deadline.get_or_insert(now + STOP_GRACE);
                // Without the socket, the next command starts another keeper.
                if self.owns_socket() {
                    drop(std::fs::remove_file(&self.socket.0));
                }
                let channels: Vec<ChannelId> = self.channels.keys().copied().collect();
                channels
                    .into_iter()
                    .for_each(|channel| self.drop_relay(channel));
                let status = self.status();
                self.send_reply(id, &Reply::Status(status));
            }
        }
        true
    }

    fn send_signal(&mut self, id: ClientId, job: &str, name: &str, now: Instant) {
        match self.relay_for_signal(job).zip(channel_signal(name)) {
            Some(((channel, relay), name)) => {
                let actions = relay.signal(id, name, now);
                self.act(channel, actions);
            }
            None => {
                self.send_reply(
                    id,
                    &Reply::Signalled {
                        job: job.to_owned(),
                        relayed: RelayResult::NotHeld,
                    },
                );
            }
        }
    }

    /// The relay of a job, unless the connection is in doubt.
    fn relay_for_signal(&mut self, job: &str) -> Option<(ChannelId, &mut Relay)> {
        let mut channels = self
            .channels
            .iter_mut()
            .filter(|_| !self.keepalive.is_doubted());
        channels.find_map(|(id, channel)| {
            channel
                .relay
                .as_mut()
                .filter(|relay| relay.job == job)
                .map(|relay| (*id, relay))
        })
    }

    pub(super) fn status(&self) -> Status {
        let relays = self
            .channels
            .values()
            .filter_map(|channel| channel.relay.as_ref());
        Status {
            host: self.host.clone(),
            pid: std::process::id(),
            since: self.since,
            relays: relays
                .map(|relay| (relay.job.clone(), relay.passes_signals()))
                .collect(),
            channels: self.channels.len(),
            commands: self.clients.len().saturating_sub(1),
            idle: self.idle_since.elapsed().as_secs(),
        }
    }

    /// Disconnects a command, and gives up what it used.
    pub(super) fn drop_client(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        for channel in self.channels.values_mut() {
            if let Some(relay) = &mut channel.relay {
                relay.forget(id);
            }
        }
        if let Some(channel) = client
            .channel
            .and_then(|channel| self.channels.get_mut(&channel))
        {
            channel.abandon();
        }
    }

    /// Tells the commands that have a shell that the connection broke, as far as their sockets take it.
    pub(super) fn fail_clients(&mut self, why: &str) {
        for id in self.channels.keys().copied().collect::<Vec<_>>() {
            self.channel_ended(
                id,
                &Reply::Broken {
                    message: why.to_owned(),
                },
            );
        }
        // A command that waits for a channel sees end of file on its socket, and knows that nothing was sent.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_is_beyond_the_clock() {
        for (seconds, expected) in [(0, 1), (5, 5), (u64::MAX, BEAT_SECONDS_MAX)] {
            let every = beat_interval(seconds);
            assert_eq!(every.as_secs(), expected);
            assert!(Instant::now().checked_add(every).is_some());
        }
    }
}
