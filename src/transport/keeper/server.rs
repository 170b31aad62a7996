//! The keeper: holds one SSH connection for all commands that need its host.
//!
//! One thread, one `poll`. It always has a shell ready, so that the next script costs one round trip, and keeps the
//! channels of a few jobs as their relays. It decides nothing about jobs: when it dies, nothing is lost.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::lane::{Lane, Op, Stage};
use super::place::is_ours;
use super::protocol::{self, FRAME_MAX, Frame, Relayed, Reply, Request, Status, VERSION};
use super::relay::{Action, ClientId, Relay, channel_signal};
use crate::sys::channel::Channel;
use crate::transport::ssh::connect::Connection;

/// How many sessions a server allows on a connection, until it says otherwise (`MaxSessions` of `sshd_config(5)`).
const SESSIONS: usize = 10;
/// How many relays are held at most: some channels must stay free for scripts.
const RELAYS: usize = 6;
/// How many channels stay free of relays at least: the ready one, and one that is at work.
const FREE: usize = 2;
/// How much may wait for a command that does not read; then its channel is not read either.
const BACKLOG: usize = 256 << 10;
/// How many commands are served at once.
const CLIENTS: usize = 512;
/// How long a server may be silent while a command waits for it, before it is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(2);
/// How long it may be silent in all before the connection counts as broken.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How often an idle connection is asked for a sign of life, where `ServerAliveInterval` does not say.
const ALIVE: Duration = Duration::from_secs(60);
/// The pause after a refused channel: a freed slot lags behind its close.
const AFTER_REFUSAL: Duration = Duration::from_millis(50);

/// How soon is looked again where bytes are here that no reading took.
const TAKEN_IN: Duration = Duration::from_millis(2);
/// The same while the server has a request to answer.
const UNTOLD: Duration = Duration::from_millis(50);
/// How much a server may send on a channel ahead of what was read.
const WINDOW: u32 = 256 << 10;
/// The same where much is to be carried: 100 ms of round trip let 160 MB/s through.
const WINDOW_OF_MUCH: u32 = 16 << 20;
/// How often the keeper looks whether its socket is still there.
const SOCKET: Duration = Duration::from_secs(20);

type LaneId = u64;

/// A command at the other end of the socket.
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: VecDeque<u8>,
    greeted: bool,
    /// The channel that works for it.
    lane: Option<LaneId>,
    /// What is to be written to that channel, as long as it has none.
    early: Vec<u8>,
    /// Its relay, as long as it has no channel.
    relay: Option<Relay>,
    waits_for_lane: bool,
    /// How often its shell is sent an empty line, and when the next one is due.
    beat: Option<(Duration, Instant)>,
    /// All is said: it is let go when all is sent.
    done: bool,
}

/// The keeper of one host.
pub struct Keeper {
    host: String,
    connection: Connection,
    listener: UnixListener,
    /// The socket's path and inode: a keeper that can't be found any more is of no use.
    socket: (PathBuf, u64),
    socket_seen: Instant,
    /// The command whose own it is, as long as that lives.
    lifeline: Option<OwnedFd>,
    window: u32,
    clients: BTreeMap<ClientId, Client>,
    lanes: BTreeMap<LaneId, Lane>,
    next_id: u64,
    /// A call that must be repeated before any other.
    owed: Option<(LaneId, Op)>,
    /// How many channels the server seems to allow.
    sessions: usize,
    not_before: Instant,
    alive_interval: Duration,
    last_heard: Instant,
    last_probe: Instant,
    idle_since: Instant,
    idle_max: Duration,
    since: i64,
    stopped: bool,
    buffer: Vec<u8>,
}

/// Why a keeper ends.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to, or had nothing to do for long enough.
    Done,
    /// Its connection broke.
    Broken(String),
}

impl Keeper {
    /// A keeper over a connection, for whoever connects to `listener`.
    ///
    /// # Errors
    /// When the descriptors can't be made ones that do not block.
    pub fn new(
        host: String,
        connection: Connection,
        listener: UnixListener,
        socket: &Path,
        idle_max: Duration,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        connection.session().set_blocking(false);
        let now = Instant::now();
        Ok(Self {
            host,
            alive_interval: connection.resolved().server_alive_interval.unwrap_or(ALIVE),
            connection,
            listener,
            socket: (socket.to_owned(), std::fs::symlink_metadata(socket)?.ino()),
            socket_seen: now,
            lifeline: None,
            window: WINDOW,
            clients: BTreeMap::new(),
            lanes: BTreeMap::new(),
            next_id: 0,
            owed: None,
            sessions: SESSIONS,
            not_before: now,
            last_heard: now,
            last_probe: now,
            idle_since: now,
            idle_max,
            since: crate::job::now(),
            stopped: false,
            buffer: vec![0; 32 << 10],
        })
    }

    /// Makes it one command's own: it ends when `lifeline` does, and its channels carry much.
    pub fn be_private(&mut self, lifeline: OwnedFd) {
        self.lifeline = Some(lifeline);
        self.window = WINDOW_OF_MUCH;
    }

    /// Serves until there is nothing more to serve.
    pub fn run(&mut self) -> End {
        loop {
            if let Err(error) = self.turn() {
                let why = error.to_string();
                self.break_off(&why);
                return End::Broken(why);
            }
            if self.is_over() {
                return End::Done;
            }
        }
    }

    /// Whether its socket is where commands look for it.
    #[must_use]
    pub fn is_found(&self) -> bool {
        std::fs::symlink_metadata(&self.socket.0).is_ok_and(|metadata| metadata.ino() == self.socket.1)
    }

    fn is_over(&self) -> bool {
        let quiet = self.clients.is_empty() && !self.lanes.values().any(|lane| lane.relay.is_some());
        self.stopped && self.clients.values().all(|client| client.output.is_empty() && client.lane.is_none())
            || quiet && self.idle_since.elapsed() >= self.idle_max
    }

    /// One turn: waits for something to happen, and does what follows from it.
    fn turn(&mut self) -> io::Result<()> {
        self.pump()?;
        let until = self.next_deadline();
        let (ssh_ready, new_clients, ready) = self.poll(until)?;
        let now = Instant::now();
        if ssh_ready {
            self.last_heard = now;
        }
        if new_clients {
            self.accept();
        }
        for id in ready {
            self.serve(id);
        }
        self.tick(now)?;
        if !self.clients.is_empty() || self.lanes.values().any(|lane| lane.relay.is_some()) {
            self.idle_since = now;
        }
        Ok(())
    }

    fn poll(&self, until: Instant) -> io::Result<(bool, bool, Vec<ClientId>)> {
        let writing = Channel::owes_output(self.connection.session());
        let both = PollFlags::POLLIN | PollFlags::POLLOUT;
        let socket: BorrowedFd<'_> = self.connection.as_fd();
        let mut fds = vec![
            PollFd::new(socket, if writing { both } else { PollFlags::POLLIN }),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            // With nobody at its other end, a pipe is always ready.
            PollFd::new(self.lifeline.as_ref().map_or(self.listener.as_fd(), AsFd::as_fd), PollFlags::POLLIN),
        ];
        let mut ids = Vec::with_capacity(self.clients.len());
        for (id, client) in &self.clients {
            let mut flags = PollFlags::empty();
            if self.takes_input(client) {
                flags |= PollFlags::POLLIN;
            }
            if !client.output.is_empty() {
                flags |= PollFlags::POLLOUT;
            }
            ids.push(*id);
            fds.push(PollFd::new(client.stream.as_fd(), flags));
        }
        if !crate::transport::wait(&mut fds, until)? {
            return Ok((false, false, Vec::new()));
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let heard = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| events.intersects(PollFlags::POLLIN));
        let mut fds = fds.iter();
        let ssh = fds.next().is_some_and(heard);
        let listener = fds.next().is_some_and(ready);
        let alone = fds.next().is_some_and(ready) && self.lifeline.is_some();
        if alone {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the command has gone"));
        }
        let ready = fds.zip(ids).filter(|(fd, _)| ready(fd)).map(|(_, id)| id).collect();
        Ok((ssh, listener, ready))
    }

    /// Whether more may be read from a command: what it has sent must not pile up here.
    fn takes_input(&self, client: &Client) -> bool {
        let in_lane = client.lane.and_then(|lane| self.lanes.get(&lane)).map_or(0, Lane::waiting);
        client.early.len() + in_lane < BACKLOG && !client.done
    }

    fn next_deadline(&self) -> Instant {
        let waiting = self.is_waited_for();
        let mut until = self.last_heard.max(self.last_probe) + if waiting { SILENCE } else { self.alive_interval };
        until = until.min(self.idle_since + self.idle_max);
        for relay in self.lanes.values().filter_map(|lane| lane.relay.as_ref()) {
            until = until.min(relay.deadline().unwrap_or(until));
        }
        if self.wants_lane() {
            until = until.min(self.not_before);
        }
        // What came may have been taken in by the last call for another channel, and the socket says nothing of it. Of
        // an answer to a request, and of room for what is to be sent, nothing does.
        let now = Instant::now();
        let untold = |lane: &Lane| !matches!(lane.stage, Stage::Open | Stage::Draining) || lane.waiting() > 0;
        if self.lanes.values().any(|lane| lane.has_more(self.listens(lane))) {
            until = until.min(now + TAKEN_IN);
        } else if waiting && self.lanes.values().any(untold) {
            until = until.min(now + UNTOLD);
        }
        for (_, due) in self.clients.values().filter_map(|client| client.beat) {
            until = until.min(due);
        }
        // The machine may have slept through a deadline: look now and then.
        until.min(Instant::now() + SOCKET)
    }

    /// Whether a command waits for something that the server has to say.
    fn is_waited_for(&self) -> bool {
        self.clients.values().any(|client| client.lane.is_some() || client.waits_for_lane)
            || self.lanes.values().any(|lane| lane.relay.as_ref().is_some_and(|relay| relay.deadline().is_some()))
    }

    /// Makes every call that does not have to wait.
    fn pump(&mut self) -> io::Result<()> {
        loop {
            if let Some((id, op)) = self.owed.take()
                && self.call(id, op)? == Called::Owes
            {
                return Ok(());
            }
            self.assign();
            let mut moved = false;
            for id in self.lanes.keys().copied().collect::<Vec<_>>() {
                match self.drive(id)? {
                    Called::Owes => return Ok(()),
                    Called::Moved => moved = true,
                    Called::Waits => {}
                }
            }
            if !moved {
                return Ok(());
            }
        }
    }

    /// Whether somebody takes what a channel says.
    fn listens(&self, lane: &Lane) -> bool {
        lane.client.and_then(|client| self.clients.get(&client)).map_or(0, |client| client.output.len()) < BACKLOG
    }

    /// Makes the calls of one channel.
    fn drive(&mut self, id: LaneId) -> io::Result<Called> {
        let Some(lane) = self.lanes.get(&id) else { return Ok(Called::Waits) };
        let first = self.lanes.iter().find(|(_, lane)| lane.stage == Stage::Opening).map(|(id, _)| *id);
        if lane.stage == Stage::Opening && (first != Some(id) || Instant::now() < self.not_before) {
            return Ok(Called::Waits);
        }
        let mut result = Called::Waits;
        for op in lane.to_do(self.listens(lane)) {
            match self.call(id, op)? {
                Called::Owes => return Ok(Called::Owes),
                Called::Moved => result = Called::Moved,
                Called::Waits => {}
            }
        }
        if self.lanes.get(&id).is_some_and(Lane::has_ended) {
            self.lane_ended(id, &Reply::End);
            result = Called::Moved;
        }
        Ok(result)
    }

    /// Makes one call, and passes on what it read.
    fn call(&mut self, id: LaneId, op: Op) -> io::Result<Called> {
        let Some(lane) = self.lanes.get_mut(&id) else { return Ok(Called::Waits) };
        let result = lane.perform(self.connection.session(), op, &mut self.buffer);
        match result {
            Ok(0) if matches!(op, Op::Read(_)) => Ok(Called::Waits),
            Ok(size) => {
                if let Op::Read(error_stream) = op {
                    self.heard(id, error_stream, size);
                }
                if op == Op::Free {
                    self.lanes.remove(&id);
                }
                Ok(Called::Moved)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Channel::owes_output(self.connection.session()) {
                    self.owed = Some((id, op));
                    return Ok(Called::Owes);
                }
                Ok(Called::Waits)
            }
            Err(error) if is_of_channel(&error) => {
                if op == Op::Open {
                    self.refused(id, &error);
                } else {
                    let message = format!("the server broke the channel off: {error}");
                    self.lane_ended(id, &Reply::Broken { message });
                }
                Ok(Called::Moved)
            }
            Err(error) => Err(error),
        }
    }

    /// Passes on what a channel said.
    fn heard(&mut self, id: LaneId, error_stream: bool, size: usize) {
        let bytes = self.buffer.get(..size).unwrap_or_default();
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let actions = match &mut lane.relay {
            Some(relay) if !error_stream => relay.hear(bytes, Instant::now()),
            _ => Vec::new(),
        };
        if let Some(client) = lane.client.and_then(|client| self.clients.get_mut(&client)) {
            client.output.extend(protocol::bytes(error_stream, bytes));
        }
        self.act(id, actions);
    }

    /// Carries out what a relay wants.
    fn act(&mut self, id: LaneId, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Signal(name) => {
                    if let Some(lane) = self.lanes.get_mut(&id) {
                        lane.signal(name);
                    }
                }
                Action::Tell(client, reply) => self.tell(client, &reply),
            }
        }
    }

    /// A channel has come to its end, or is lost.
    fn lane_ended(&mut self, id: LaneId, reply: &Reply) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let client = lane.client.take();
        let actions = lane.relay.take().map(|mut relay| relay.end(None)).unwrap_or_default();
        lane.close();
        self.act(id, actions);
        if let Some(client) = client {
            self.tell(client, reply);
            if let Some(client) = self.clients.get_mut(&client) {
                client.lane = None;
                client.done = true;
            }
        }
    }

    /// The server refused a channel: it allows no more than are open.
    fn refused(&mut self, id: LaneId, error: &io::Error) {
        self.lanes.remove(&id);
        self.sessions = self.lanes.len().max(1);
        self.not_before = Instant::now() + AFTER_REFUSAL;
        let oldest_relay = self.lanes.iter().find(|(_, lane)| lane.relay.is_some()).map(|(id, _)| *id);
        if let Some(oldest) = oldest_relay.filter(|_| self.clients.values().any(|client| client.waits_for_lane)) {
            self.give_up_relay(oldest);
        } else if self.lanes.is_empty() {
            let message = format!("the server gives no channel: {error}");
            let waiting: Vec<ClientId> =
                self.clients.iter().filter(|(_, client)| client.waits_for_lane).map(|(id, _)| *id).collect();
            for client in waiting {
                self.tell(client, &Reply::Broken { message: message.clone() });
                if let Some(client) = self.clients.get_mut(&client) {
                    client.waits_for_lane = false;
                    client.done = true;
                }
            }
        }
    }

    fn give_up_relay(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let actions = lane.relay.take().map(|mut relay| relay.end(None)).unwrap_or_default();
        lane.finish();
        self.act(id, actions);
    }

    /// Gives free channels to the commands that wait for one, and sees to it that one more is ready.
    fn assign(&mut self) {
        let waiting: Vec<ClientId> =
            self.clients.iter().filter(|(_, client)| client.waits_for_lane).map(|(id, _)| *id).collect();
        let mut waiting = waiting.into_iter();
        // The furthest first: an open one costs no round trip.
        let mut free: Vec<(LaneId, Stage)> =
            self.lanes.iter().filter(|(_, lane)| lane.is_free()).map(|(id, lane)| (*id, lane.stage)).collect();
        free.sort_by_key(|(id, stage)| (*stage == Stage::Opening, *stage != Stage::Open, *id));
        let mut free = free.into_iter();
        let mut left = 0;
        for client_id in waiting.by_ref() {
            let Some((lane_id, _)) = free.next() else {
                left += 1;
                continue;
            };
            if let (Some(client), Some(lane)) = (self.clients.get_mut(&client_id), self.lanes.get_mut(&lane_id)) {
                lane.write(&std::mem::take(&mut client.early));
                lane.client = Some(client_id);
                lane.relay = client.relay.take();
                client.lane = Some(lane_id);
                client.waits_for_lane = false;
            }
        }
        // One for each that still waits, and a spare one where the server has room for it.
        let spare = usize::from(free.next().is_none() && !self.stopped);
        let room = self.sessions.saturating_sub(self.lanes.len());
        for _ in 0..(left + spare).min(room) {
            self.next_id += 1;
            self.lanes.insert(self.next_id, Lane::new(self.window));
        }
    }

    fn wants_lane(&self) -> bool {
        self.lanes.values().any(|lane| lane.stage == Stage::Opening)
            || self.clients.values().any(|client| client.waits_for_lane)
    }

    /// Looks after what has to happen at some time.
    fn tick(&mut self, now: Instant) -> io::Result<()> {
        for id in self.lanes.keys().copied().collect::<Vec<_>>() {
            let relay = self.lanes.get_mut(&id).and_then(|lane| lane.relay.as_mut());
            let actions = relay.map(|relay| relay.tick(now)).unwrap_or_default();
            self.act(id, actions);
        }
        for client in self.clients.values_mut() {
            if let Some((every, due)) = client.beat.filter(|(_, due)| now >= *due) {
                client.beat = Some((every, due.max(now) + every));
                if let Some(lane) = client.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
                    lane.write(b"\n");
                }
            }
        }
        if now.saturating_duration_since(self.socket_seen) >= SOCKET {
            self.socket_seen = now;
            self.stopped |= !self.is_found();
        }
        let silence = now.saturating_duration_since(self.last_heard);
        let waited_for = self.is_waited_for();
        let interval = if waited_for { SILENCE } else { self.alive_interval };
        if silence >= interval
            && now.saturating_duration_since(self.last_probe) >= interval
            && !Channel::owes_output(self.connection.session())
        {
            let unanswered = self.last_probe > self.last_heard;
            let long = silence >= if waited_for { SILENCE_MAX } else { self.alive_interval * 3 };
            if unanswered && long {
                return Err(io::Error::new(ErrorKind::TimedOut, "the server no longer answers"));
            }
            match self.connection.session().keepalive_send() {
                Ok(_) => self.last_probe = now,
                Err(error) if error.code() == ssh2::ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_EAGAIN) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        // Whatever accept says, the next turn tries again.
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= CLIENTS || !is_ours(&stream) || stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.next_id += 1;
            let client = Client {
                stream,
                input: Vec::new(),
                output: VecDeque::new(),
                greeted: false,
                lane: None,
                early: Vec::new(),
                relay: None,
                waits_for_lane: false,
                beat: None,
                done: false,
            };
            self.clients.insert(self.next_id, client);
            self.tell(self.next_id, &Reply::Hello { version: VERSION.to_owned() });
        }
    }

    /// Queues a reply, and sends what the socket takes: a number must be out before its signal is.
    fn tell(&mut self, id: ClientId, reply: &Reply) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.output.extend(protocol::message(reply));
            // What can't be written now is tried again when the socket is ready, and told then.
            drop(client.flush());
        }
    }

    /// Reads from a command and writes to it.
    fn serve(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(&id) else { return };
        let takes = self.takes_input(client);
        let Some(client) = self.clients.get_mut(&id) else { return };
        let alive = client.flush().and_then(|()| if takes { client.fill() } else { Ok(()) });
        if alive.is_err() {
            return self.dismiss(id);
        }
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            match protocol::take::<Request>(&mut client.input) {
                Ok(Some(frame)) => {
                    if !self.obey(id, frame) {
                        return self.dismiss(id);
                    }
                }
                Ok(None) => break,
                Err(_) => return self.dismiss(id),
            }
        }
        if self.clients.get(&id).is_some_and(|client| client.done && client.output.is_empty()) {
            self.dismiss(id);
        }
    }

    /// Carries out a command's request. False: it makes no sense.
    fn obey(&mut self, id: ClientId, frame: Frame<Request>) -> bool {
        let Some(client) = self.clients.get_mut(&id) else { return false };
        let request = match frame {
            Frame::Bytes(bytes) => {
                match client.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
                    Some(lane) => lane.write(&bytes),
                    None if client.waits_for_lane => client.early.extend(bytes),
                    // Its shell has ended.
                    None => {}
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
            Request::Shell { relay } => return self.wants_shell(id, relay),
            Request::Beat { seconds } => {
                let every = Duration::from_secs(seconds.max(1));
                client.beat = Some((every, Instant::now() + every));
            }
            Request::Signal { job, name } => self.wants_signal(id, &job, &name),
            Request::Watch { job } => {
                let relay =
                    self.lanes.values_mut().filter_map(|lane| lane.relay.as_mut()).find(|relay| relay.job == job);
                let reply = match relay {
                    Some(relay) => relay.watch(id),
                    None => Reply::NotWatching { job },
                };
                self.tell(id, &reply);
            }
            Request::Status => {
                let status = self.status();
                self.tell(id, &Reply::Status(status));
            }
            Request::Stop => {
                self.stopped = true;
                let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
                lanes.into_iter().for_each(|lane| self.give_up_relay(lane));
                let status = self.status();
                self.tell(id, &Reply::Status(status));
            }
        }
        true
    }

    fn wants_shell(&mut self, id: ClientId, relay: Option<protocol::RelayFor>) -> bool {
        let relays = self.lanes.values().filter(|lane| lane.relay.is_some()).count();
        let room = relays < RELAYS.min(self.sessions.saturating_sub(FREE));
        let Some(client) = self.clients.get_mut(&id) else { return false };
        if client.lane.is_some() || client.waits_for_lane {
            return false;
        }
        client.waits_for_lane = true;
        client.relay = relay.filter(|_| room).map(|relay| Relay::new(relay.job, relay.word));
        let relay = client.relay.is_some();
        self.tell(id, &Reply::Shell { relay });
        true
    }

    fn wants_signal(&mut self, id: ClientId, job: &str, name: &str) {
        let lane = self.lanes.iter_mut().find_map(|(lane_id, lane)| {
            lane.relay.as_mut().filter(|relay| relay.job == job).map(|relay| (*lane_id, relay))
        });
        match lane.zip(channel_signal(name)) {
            Some(((lane, relay), name)) => {
                let actions = relay.signal(id, name, Instant::now());
                self.act(lane, actions);
            }
            None => {
                self.tell(id, &Reply::Signalled { job: job.to_owned(), relayed: Relayed::NotHeld });
            }
        }
    }

    fn status(&self) -> Status {
        let relays = self.lanes.values().filter_map(|lane| lane.relay.as_ref());
        Status {
            host: self.host.clone(),
            pid: std::process::id(),
            since: self.since,
            relays: relays.map(|relay| (relay.job.clone(), relay.takes_signals())).collect(),
            channels: self.lanes.len(),
            commands: self.clients.len().saturating_sub(1),
            idle: self.idle_since.elapsed().as_secs(),
        }
    }

    /// A command has gone, or is not wanted any more.
    fn dismiss(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else { return };
        for lane in self.lanes.values_mut() {
            if let Some(relay) = &mut lane.relay {
                relay.forget(id);
            }
        }
        if let Some(lane) = client.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            // A relay's channel goes on without the command that made it.
            lane.client = None;
            if lane.relay.is_none() {
                lane.finish();
            }
        }
    }

    /// The connection broke: whoever waits is told, as well as it can be.
    fn break_off(&mut self, why: &str) {
        for id in self.lanes.keys().copied().collect::<Vec<_>>() {
            self.lane_ended(id, &Reply::Broken { message: why.to_owned() });
        }
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            if self.clients.get(&id).is_some_and(|client| client.waits_for_lane) {
                self.tell(id, &Reply::Broken { message: why.to_owned() });
            }
        }
    }
}

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

/// Whether an error is about one channel, and the connection is as good as before.
fn is_of_channel(error: &io::Error) -> bool {
    use libssh2_sys as raw;
    let code = error.get_ref().and_then(|error| error.downcast_ref::<ssh2::Error>()).map(ssh2::Error::code);
    let Some(ssh2::ErrorCode::Session(code)) = code else { return false };
    [
        raw::LIBSSH2_ERROR_CHANNEL_OUTOFORDER,
        raw::LIBSSH2_ERROR_CHANNEL_FAILURE,
        raw::LIBSSH2_ERROR_CHANNEL_REQUEST_DENIED,
        raw::LIBSSH2_ERROR_CHANNEL_UNKNOWN,
        raw::LIBSSH2_ERROR_CHANNEL_WINDOW_EXCEEDED,
        raw::LIBSSH2_ERROR_CHANNEL_PACKET_EXCEEDED,
        raw::LIBSSH2_ERROR_CHANNEL_CLOSED,
        raw::LIBSSH2_ERROR_CHANNEL_EOF_SENT,
    ]
    .contains(&code)
}

impl Client {
    /// Writes as much as the socket takes.
    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(self.output.as_slices().0) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(size) => drop(self.output.drain(..size)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there, up to a frame or so.
    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        while self.input.len() < FRAME_MAX * 2 {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(size) => self.input.extend_from_slice(chunk.get(..size).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
