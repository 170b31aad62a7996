//! The keeper: holds one SSH connection for all commands that need its host.
//!
//! One thread, one `poll`. It always has a shell ready, so that the next script costs one round trip, and keeps the
//! channels of a few jobs as their relays. It decides nothing about jobs: when it dies, nothing is lost.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::lane::{Lane, Op, Stage};
use super::place::is_ours;
use super::protocol::{self, FRAME_MAX, Frame, Relayed, Reply, Request, Status, VERSION};
use super::pulse::{self, Pulse, Stake, Verdict};
use super::relay::{Action, ClientId, Relay, Trust, channel_signal};
use crate::connection::Primer;
use crate::connection::ssh::connect::Connection;
use crate::sys::channel::{Channel, is_of_channel};
use crate::sys::inflow;

/// How many sessions a server allows on a connection, until it says otherwise (`MaxSessions` of `sshd_config(5)`).
const SESSIONS: usize = 10;
/// How many relays are held at most: some channels must stay free for scripts.
const RELAYS: usize = 6;
/// How many channels stay free of relays at least: the ready one, and one that is at work.
const FREE: usize = 2;
/// How much may wait for a command that does not read; then its channel is not read either.
const BACKLOG: usize = 64 << 10;
/// The same where much is to be carried.
const BACKLOG_OF_MUCH: usize = 256 << 10;
/// How many commands are served at once.
const CLIENTS: usize = 128;
/// How often an idle connection is asked for a sign of life, where `ServerAliveInterval` does not say.
const ALIVE: Duration = Duration::from_secs(60);
/// The least that libssh2 lets pass between two questions for a sign of life, in seconds.
const ALIVE_LEAST: u32 = 2;
/// The pause after a refused channel, doubled with each further one up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long a server may take to count a channel that was closed as closed.
const LAG: Duration = Duration::from_secs(1);
/// How long a command waits for a channel before it is told to find another way.
const BUSY: Duration = Duration::from_secs(2);
/// How long a command may take to greet.
const GREETING: Duration = Duration::from_secs(10);
/// How long a command waits for a shell before others are asked for theirs, and how long those have had them by then.
const WANTED_AFTER: Duration = Duration::from_millis(100);
const HELD_LONG: Duration = Duration::from_millis(500);
/// How long a shell may take to be ready again once its script has answered.
const RETURNING: Duration = Duration::from_secs(2);
/// How long a shell beyond the first is kept that nobody uses.
const POOLED: Duration = Duration::from_secs(20);
/// How long a script runs at most that is worth waiting for.
const SHORT: Duration = Duration::from_secs(2);
/// How soon after a script that has signalled a job the job's relay ends.
const FOLLOWS: Duration = Duration::from_millis(50);
/// How long the commands at work have when the keeper is told to end.
const LEAVING: Duration = Duration::from_secs(2);
/// How many rounds of calls are made before the commands are looked after again: a server can always have more to say.
const ROUNDS: usize = 32;

/// The window of a channel that carries short answers.
const WINDOW: u32 = 256 << 10;
/// The window of one that carries much. 100 ms of round trip let 40 MB/s through, and a larger one costs OpenSSH more
/// than it gives.
const WINDOW_OF_MUCH: u32 = 4 << 20;
/// How soon is looked again where bytes are here that no reading took.
const TAKEN_IN: Duration = Duration::from_millis(2);
/// The same while the server has a request to answer, or a shell of it is about to end.
const UNTOLD: Duration = Duration::from_millis(50);
/// How often the keeper looks whether its socket is still there.
const SOCKET: Duration = Duration::from_secs(20);

type LaneId = u64;

/// A command at the other end of the socket.
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: VecDeque<u8>,
    greeted: bool,
    since: Instant,
    /// The channel that works for it.
    lane: Option<LaneId>,
    /// Since when it waits for a channel.
    waits: Option<Instant>,
    /// It was told that another one wants its shell.
    told_wanted: bool,
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
    /// How much a server may send on a channel ahead of what was read.
    window: u32,
    /// How much may wait for a command.
    backlog: usize,
    /// What every shell is given ahead of its script.
    primer: Primer,
    clients: BTreeMap<ClientId, Client>,
    /// Relays that get a channel when one is spare, and the scripts that start them.
    relays_to_be: VecDeque<(Relay, String)>,
    lanes: BTreeMap<LaneId, Lane>,
    next_id: u64,
    /// A call that must be repeated before any other.
    owed: Option<(LaneId, Op)>,
    /// How many channels the server seems to allow.
    sessions: usize,
    /// No channel is asked for before.
    not_before: Instant,
    /// How many channels were refused, or of no use, one after the other.
    failures: u32,
    /// When a channel was last closed.
    freed: Option<Instant>,
    /// The server breaks when a shell ends while a channel is opened.
    breaks_on_open: bool,
    /// Whether the server is thought to pass signals on.
    trust: Trust,
    pulse: Pulse,
    idle_since: Instant,
    idle_max: Duration,
    since: i64,
    /// By when it ends, once it was told to.
    leaves_by: Option<Instant>,
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
    pub fn new(
        host: String,
        connection: Connection,
        listener: UnixListener,
        socket: &Path,
        idle_max: Duration,
        primer: Primer,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        connection.session().set_blocking(false);
        // Without it, nothing is sent.
        connection.session().set_keepalive(true, ALIVE_LEAST);
        let now = Instant::now();
        let alive = connection
            .resolved()
            .server_alive_interval
            .unwrap_or(ALIVE)
            .max(Duration::from_secs(5));
        let banner = connection.session().banner().unwrap_or_default().to_owned();
        Ok(Self {
            host,
            trust: if refuses_signals(&banner, &connection.resolved().user) {
                Trust::Doubted
            } else {
                Trust::Hoped
            },
            breaks_on_open: breaks_on_open(&banner),
            pulse: Pulse::new(alive, now, pulse::asleep()),
            connection,
            listener,
            socket: (socket.to_owned(), std::fs::symlink_metadata(socket)?.ino()),
            socket_seen: now,
            lifeline: None,
            window: WINDOW,
            backlog: BACKLOG,
            primer,
            clients: BTreeMap::new(),
            relays_to_be: VecDeque::new(),
            lanes: BTreeMap::new(),
            next_id: 0,
            owed: None,
            sessions: SESSIONS,
            not_before: now,
            failures: 0,
            freed: None,
            idle_since: now,
            idle_max,
            since: crate::job::now(),
            leaves_by: None,
            buffer: vec![0; 32 << 10],
        })
    }

    /// Makes it one command's own: it ends when `lifeline` does, and its channels carry much.
    pub fn be_private(&mut self, lifeline: OwnedFd) {
        self.lifeline = Some(lifeline);
        self.window = WINDOW_OF_MUCH;
        self.backlog = BACKLOG_OF_MUCH;
        self.buffer = vec![0; BACKLOG_OF_MUCH];
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
    pub fn is_found(&self) -> bool {
        std::fs::symlink_metadata(&self.socket.0)
            .is_ok_and(|metadata| metadata.ino() == self.socket.1)
    }

    fn is_over(&self) -> bool {
        let quiet =
            self.clients.is_empty() && !self.lanes.values().any(|lane| lane.relay.is_some());
        let served = || {
            self.clients
                .values()
                .all(|client| client.output.is_empty() && client.lane.is_none())
        };
        self.leaves_by
            .is_some_and(|by| served() || Instant::now() >= by)
            || quiet && self.idle_since.elapsed() >= self.idle_max
    }

    /// One turn: waits for something to happen, and does what follows from it.
    fn turn(&mut self) -> io::Result<()> {
        let more = self.pump()?;
        if inflow::has_come() {
            // The answer to a question, say: any call may have taken it in, and poll says nothing of it then.
            self.pulse.hear(Instant::now());
        }
        let until = if more {
            Instant::now()
        } else {
            self.next_deadline()
        };
        let (ssh_ready, new_clients, ready) = self.poll(until)?;
        let now = Instant::now();
        if ssh_ready {
            self.pulse.hear(now);
        }
        // Before the commands are heard: after a sleep they must not be served by a connection that is gone.
        self.look_alive(now)?;
        if new_clients {
            self.accept(now);
        }
        for id in ready {
            self.serve(id, now);
        }
        self.tick(now);
        if !self.clients.is_empty() || self.lanes.values().any(|lane| lane.relay.is_some()) {
            self.idle_since = now;
        }
        Ok(())
    }

    fn poll(&self, until: Instant) -> io::Result<(bool, bool, Vec<ClientId>)> {
        let mut flags = PollFlags::empty();
        // What no call would read must not wake this up again and again.
        flags.set(
            PollFlags::POLLIN,
            self.lanes.iter().any(|(id, lane)| self.is_due(*id, lane)),
        );
        flags.set(
            PollFlags::POLLOUT,
            Channel::owes_output(self.connection.session()),
        );
        let socket: BorrowedFd<'_> = self.connection.as_fd();
        let full = self.clients.len() >= CLIENTS;
        let lifeline = self
            .lifeline
            .as_ref()
            .map_or(self.listener.as_fd(), AsFd::as_fd);
        let mut fds = vec![
            PollFd::new(socket, flags),
            // Whoever is too much waits outside, and finds another way.
            PollFd::new(
                self.listener.as_fd(),
                if full {
                    PollFlags::empty()
                } else {
                    PollFlags::POLLIN
                },
            ),
            // With nobody at its other end, a pipe is always ready.
            PollFd::new(
                lifeline,
                if self.lifeline.is_some() {
                    PollFlags::POLLIN
                } else {
                    PollFlags::empty()
                },
            ),
        ];
        let mut ids = Vec::with_capacity(self.clients.len());
        for (id, client) in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, self.takes_input(client));
            flags.set(PollFlags::POLLOUT, !client.output.is_empty());
            ids.push(*id);
            fds.push(PollFd::new(client.stream.as_fd(), flags));
        }
        if !crate::connection::wait(&mut fds, until)? {
            return Ok((false, false, Vec::new()));
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let has =
            |fd: &PollFd<'_>, flags| fd.revents().is_some_and(|events| events.intersects(flags));
        let mut fds = fds.iter();
        let ssh = fds.next();
        if !flags.contains(PollFlags::POLLIN)
            && ssh.is_some_and(|fd| {
                has(
                    fd,
                    PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL,
                )
            })
        {
            return Err(io::Error::new(
                ErrorKind::ConnectionReset,
                "the connection is closed",
            ));
        }
        let listener = fds.next().is_some_and(ready);
        if fds.next().is_some_and(ready) && self.lifeline.is_some() {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the command has gone",
            ));
        }
        let ready = fds
            .zip(ids)
            .filter(|(fd, _)| ready(fd))
            .map(|(_, id)| id)
            .collect();
        Ok((
            ssh.is_some_and(|fd| has(fd, PollFlags::POLLIN)),
            listener,
            ready,
        ))
    }

    /// Whether more may be read from a command: neither what it has sent nor what it was told must pile up here.
    fn takes_input(&self, client: &Client) -> bool {
        let in_lane = client
            .lane
            .and_then(|lane| self.lanes.get(&lane))
            .map_or(0, Lane::waiting);
        in_lane < self.backlog && client.output.len() < self.backlog && !client.done
    }

    fn next_deadline(&self) -> Instant {
        let mut until = self
            .pulse
            .next(self.stake())
            .min(self.idle_since + self.idle_max);
        let relays = self
            .lanes
            .values()
            .filter_map(|lane| lane.relay.as_ref()?.deadline());
        let greetings = self
            .clients
            .values()
            .filter(|client| !client.greeted)
            .map(|client| client.since + GREETING);
        let returns = self.lanes.values().filter_map(|lane| lane.ready_by);
        let waits = self
            .clients
            .values()
            .filter_map(|client| client.waits)
            .map(|since| {
                let now = Instant::now();
                if now < since + WANTED_AFTER {
                    since + WANTED_AFTER
                } else {
                    (now + WANTED_AFTER).min(since + BUSY)
                }
            });
        let beats = self
            .clients
            .values()
            .filter_map(|client| client.beat.map(|(_, due)| due));
        for deadline in relays
            .chain(greetings)
            .chain(waits)
            .chain(returns)
            .chain(beats)
            .chain(self.leaves_by)
        {
            until = until.min(deadline);
        }
        if self.not_before > Instant::now() {
            until = until.min(self.not_before);
        }
        // What came may have been taken in by the last call for another channel, and the socket says nothing of it. Of
        // an answer to a request, and of room for what is to be sent, nothing does.
        let now = Instant::now();
        let untold = |lane: &Lane| {
            !matches!(lane.stage, Stage::Open | Stage::Draining) || lane.waiting() > 0
        };
        if self.must_hold_back(SHORT) {
            until = until.min(now + UNTOLD);
        }
        if self
            .lanes
            .values()
            .any(|lane| lane.has_more(self.listens(lane)))
        {
            until = until.min(now + TAKEN_IN);
        } else if matches!(self.stake(), Stake::Waited) && self.lanes.values().any(untold) {
            until = until.min(now + UNTOLD);
        }
        // The machine may have slept through a deadline: look now and then.
        until.min(Instant::now() + SOCKET)
    }

    /// What depends on the server's next word.
    fn stake(&self) -> Stake {
        let relays = || self.lanes.values().filter_map(|lane| lane.relay.as_ref());
        if self
            .clients
            .values()
            .any(|client| client.lane.is_some() || client.waits.is_some())
            || relays().any(Relay::is_asked)
        {
            Stake::Waited
        } else if relays().any(Relay::is_watched) {
            Stake::Watched
        } else {
            Stake::Idle
        }
    }

    /// Makes every call that does not have to wait, and says whether there may be more.
    fn pump(&mut self) -> io::Result<bool> {
        for _ in 0..ROUNDS {
            if let Some((id, op)) = self.owed.take()
                && self.call(id, op)? == Called::Owes
            {
                return Ok(false);
            }
            self.assign();
            let (mut moved, mut taken_in) = (false, false);
            for id in self.lanes.keys().copied().collect::<Vec<_>>() {
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

    /// Whether calls for a channel may be made: one channel is opened at a time, and not before its time.
    fn is_due(&self, id: LaneId, lane: &Lane) -> bool {
        let first = || {
            self.lanes
                .iter()
                .find(|(_, lane)| lane.stage == Stage::Opening)
                .map(|(id, _)| *id)
        };
        lane.stage != Stage::Opening || first() == Some(id) && Instant::now() >= self.not_before
    }

    /// Whether somebody takes what a channel says.
    fn listens(&self, lane: &Lane) -> bool {
        lane.client
            .and_then(|client| self.clients.get(&client))
            .map_or(0, |client| client.output.len())
            < self.backlog
    }

    /// Makes the calls of one channel.
    ///
    /// A reading takes in all that has come for any of them: `taken_in` says that one has, and then the others read what is
    /// there for them alone.
    fn drive(&mut self, id: LaneId, taken_in: &mut bool) -> io::Result<Called> {
        // Nothing more is sent to a shell that has ended.
        if self.lanes.get(&id).is_some_and(Lane::has_ended) {
            self.lane_ended(id, &Reply::End);
        }
        let Some(lane) = self.lanes.get(&id).filter(|lane| self.is_due(id, lane)) else {
            return Ok(Called::Waits);
        };
        let mut result = Called::Waits;
        for op in lane.to_do(self.listens(lane)) {
            let has_bytes = || self.lanes.get(&id).is_some_and(Lane::has_bytes);
            if matches!(op, Op::Read(_)) && std::mem::replace(taken_in, true) && !has_bytes() {
                continue;
            }
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
        let Some(lane) = self.lanes.get_mut(&id) else {
            return Ok(Called::Waits);
        };
        let result = lane.perform(self.connection.session(), op, &mut self.buffer);
        match result {
            Ok(0) if matches!(op, Op::Read(_)) => Ok(Called::Waits),
            Ok(size) => {
                if let Op::Read(error_stream) = op {
                    self.heard(id, error_stream, size);
                }
                if op == Op::Free {
                    self.lanes.remove(&id);
                    self.freed = Some(Instant::now());
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
                    self.refused(id);
                } else if op == Op::Free {
                    // The session frees it in the end.
                    self.lanes.remove(&id);
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
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        let actions = match &mut lane.relay {
            Some(relay) if !error_stream => relay.hear(bytes, Instant::now()),
            _ => Vec::new(),
        };
        if let Some(relay) = &lane.relay {
            self.trust = relay.finding().unwrap_or(self.trust);
        }
        if !error_stream {
            lane.hear(bytes);
        }
        if let Some(client) = lane.client.and_then(|client| self.clients.get_mut(&client)) {
            self.failures = 0;
            // What it does not take now is written when it can.
            drop(client.pass_on(error_stream, bytes));
        }
        self.act(id, actions);
    }

    /// Carries out what a relay wants.
    fn act(&mut self, id: LaneId, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Signal(name) => {
                    if let Some(lane) = self.lanes.get_mut(&id) {
                        lane.signal(name);
                    }
                }
                Action::Tell(client, reply) => self.tell(client, &reply),
                Action::Send(client, number, name) => {
                    let heard = self.tell_number(id, client, number);
                    let Some(lane) = self.lanes.get_mut(&id) else {
                        return;
                    };
                    if heard {
                        lane.signal(name);
                    } else if let Some(relay) = &mut lane.relay {
                        relay.forget(client);
                        actions.extend(relay.withdraw(number, Instant::now()));
                    }
                }
                Action::GiveUp => self.give_up_relay(id),
            }
        }
    }

    /// Tells a command the number of its signal. False: it is not there to hear it, and will never hear it.
    fn tell_number(&mut self, lane: LaneId, id: ClientId, number: u32) -> bool {
        let Some(job) = self
            .lanes
            .get(&lane)
            .and_then(|lane| lane.relay.as_ref())
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

    /// A channel has come to its end, or is lost.
    fn lane_ended(&mut self, id: LaneId, reply: &Reply) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        let useless = lane.was_useless();
        let client = lane.client.take();
        let actions = lane
            .relay
            .take()
            .map(|mut relay| relay.end(None))
            .unwrap_or_default();
        lane.close();
        self.act(id, actions);
        if let Some(client) = client {
            self.tell(client, reply);
            if let Some(client) = self.clients.get_mut(&client) {
                client.lane = None;
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
    fn refused(&mut self, id: LaneId) {
        self.lanes.remove(&id);
        self.pause();
        let all_relays = !self.lanes.is_empty() && self.lanes.values().all(Lane::is_relay_alone);
        let lags = self.freed.is_some_and(|freed| freed.elapsed() < LAG) && !all_relays;
        let closing = self
            .lanes
            .values()
            .any(|lane| matches!(lane.stage, Stage::Draining | Stage::Closing));
        if lags || closing {
            return;
        }
        self.sessions = self.lanes.len().max(1);
        while self.relays() > self.relays_allowed() {
            let oldest = self
                .lanes
                .iter()
                .find(|(_, lane)| lane.relay.is_some())
                .map(|(id, _)| *id);
            let Some(oldest) = oldest else { return };
            self.give_up_relay(oldest);
        }
    }

    fn relays(&self) -> usize {
        self.lanes
            .values()
            .filter(|lane| lane.relay.is_some())
            .count()
    }

    /// How many relays there may be, so that scripts have channels too.
    fn relays_allowed(&self) -> usize {
        RELAYS.min(self.sessions.saturating_sub(FREE))
    }

    /// From now on a channel is a relay no more. A command whose script runs there is served to the end.
    fn give_up_relay(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        let actions = lane
            .relay
            .take()
            .map(|mut relay| relay.end(None))
            .unwrap_or_default();
        if lane.client.is_none() {
            lane.finish();
        }
        self.act(id, actions);
    }

    /// Gives free channels to the commands that wait for one, and sees to it that one more is ready.
    fn assign(&mut self) {
        if self.pulse.is_doubted() {
            return;
        }
        let mut waiting: Vec<(Instant, ClientId)> = self
            .clients
            .iter()
            .filter_map(|(id, client)| client.waits.map(|since| (since, *id)))
            .collect();
        waiting.sort_unstable();
        // One that is open at least: the server can still refuse the others.
        let mut free: Vec<(LaneId, Stage)> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.is_free())
            .map(|(id, lane)| (*id, lane.stage))
            .collect();
        let opening = free
            .iter()
            .filter(|(_, stage)| *stage == Stage::Opening)
            .count();
        free.retain(|(_, stage)| *stage != Stage::Opening);
        free.sort_by_key(|(id, stage)| (*stage != Stage::Open, *id));
        let mut free = free.into_iter();
        let mut wanted = 0;
        let held_back = self.must_hold_back(Duration::ZERO);
        for (since, client_id) in waiting {
            let Some((lane_id, _)) = free.next() else {
                wanted += usize::from(!held_back || since.elapsed() >= LAG);
                continue;
            };
            let (Some(client), Some(lane)) = (
                self.clients.get_mut(&client_id),
                self.lanes.get_mut(&lane_id),
            ) else {
                continue;
            };
            lane.client = Some(client_id);
            lane.given = Some(Instant::now());
            client.lane = Some(lane_id);
            (client.waits, client.told_wanted) = (None, false);
            let primed = self.primer.mark;
            self.tell(client_id, &Reply::Shell { primed });
        }
        // Relays get what is left, and never the last shell.
        while self.relays_to_be.front().is_some() {
            if self.relays() >= self.relays_allowed() {
                self.relays_to_be.clear();
                break;
            }
            let Some((lane, _)) = free.next() else {
                wanted += 1;
                break;
            };
            if let Some((relay, script)) = self.relays_to_be.pop_front()
                && let Some(lane) = self.lanes.get_mut(&lane)
            {
                let proven = if relay.is_proven() { "1" } else { "" };
                lane.write(format!("rs_number={proven}\n{script}").as_bytes());
                lane.relay = Some(relay);
            }
        }
        // One for each that still waits, and a spare one where the server has room for it.
        wanted += usize::from(
            free.next().is_none()
                && self.leaves_by.is_none()
                && !self.must_hold_back(SHORT)
                // A private keeper's command seldom needs a second shell.
                && (self.lifeline.is_none() || self.lanes.is_empty()),
        );
        let room = self.sessions.saturating_sub(self.lanes.len());
        if Instant::now() >= self.not_before {
            for _ in 0..wanted.saturating_sub(opening).min(room) {
                self.next_id += 1;
                self.lanes
                    .insert(self.next_id, Lane::new(self.window, &self.primer.text));
            }
        }
    }

    /// Whether a channel is not to be opened yet, because of a shell that is ending, or that will end in a moment: one that
    /// was given a script less than `short` ago, or the relay of a job that a script may just have ended.
    fn must_hold_back(&self, short: Duration) -> bool {
        let follows =
            || self.relays() > 0 && self.freed.is_some_and(|freed| freed.elapsed() < FOLLOWS);
        self.breaks_on_open
            && (self.lanes.values().any(|lane| lane.is_about_to_end(short)) || follows())
    }

    /// Looks after what has to happen at some time.
    fn tick(&mut self, now: Instant) {
        for id in self.lanes.keys().copied().collect::<Vec<_>>() {
            let Some(relay) = self.lanes.get_mut(&id).and_then(|lane| lane.relay.as_mut()) else {
                continue;
            };
            let actions = relay.tick(now);
            self.trust = relay.finding().unwrap_or(self.trust);
            self.act(id, actions);
        }
        self.close_shells(now);
        self.ask_for_shells(now);
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            if let Some((every, due)) = client.beat.filter(|(_, due)| now >= *due) {
                client.beat = Some((every, due.max(now) + every));
                if let Some(lane) = client.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
                    lane.write(b"\n");
                }
            }
            if client.waits.is_some_and(|since| now >= since + BUSY) {
                (client.waits, client.done) = (None, true);
                self.tell(id, &Reply::Busy);
            } else if !client.greeted && now >= client.since + GREETING {
                self.clients.remove(&id);
            }
        }
        if now.saturating_duration_since(self.socket_seen) >= SOCKET {
            self.socket_seen = now;
            if !self.is_found() {
                self.leaves_by.get_or_insert(now + LEAVING);
            }
        }
    }

    /// Where the server allows no more sessions and a command waits, asks those for their shells that have had them for a
    /// while.
    fn ask_for_shells(&mut self, now: Instant) {
        let waits = |client: &Client| {
            client
                .waits
                .is_some_and(|since| now >= since + WANTED_AFTER)
        };
        if self.lanes.len() < self.sessions || !self.clients.values().any(waits) {
            return;
        }
        for lane in self.lanes.values() {
            let is_long = lane.given.is_some_and(|given| now >= given + HELD_LONG);
            if let Some(client) = lane.client.and_then(|client| self.clients.get_mut(&client))
                && is_long
                && !std::mem::replace(&mut client.told_wanted, true)
            {
                client.output.extend(protocol::message(&Reply::Wanted));
                // What can't be written now is tried again when the socket is ready.
                drop(client.flush());
            }
        }
    }

    /// Closes shells that did not get ready again, that are old, and those that nobody has used for a while but one.
    fn close_shells(&mut self, now: Instant) {
        let mut free = 0;
        for lane in self.lanes.values_mut() {
            let late = lane.ready_by.is_some_and(|by| now >= by);
            let unused = lane.is_free() && lane.stage == Stage::Open;
            free += usize::from(unused);
            let surplus = free > 1 && now.saturating_duration_since(lane.idle_since) >= POOLED;
            if late || unused && (lane.is_old() || surplus) {
                lane.finish();
            }
        }
    }

    /// Asks a silent server for a sign of life, and gives one up that gives none.
    fn look_alive(&mut self, now: Instant) -> io::Result<()> {
        match self.pulse.check(now, pulse::asleep(), self.stake()) {
            Verdict::Fine => Ok(()),
            Verdict::Dead => Err(io::Error::new(
                ErrorKind::TimedOut,
                "the server no longer answers",
            )),
            Verdict::Ask => {
                self.pulse.ask(now);
                // The library forgets what it can't send whole, so it is asked only where there is room.
                let mut fds = [PollFd::new(self.connection.as_fd(), PollFlags::POLLOUT)];
                let writable = crate::connection::wait(&mut fds, now)?;
                if writable && !Channel::owes_output(self.connection.session()) {
                    self.connection
                        .session()
                        .keepalive_send()
                        .map_err(io::Error::other)?;
                }
                Ok(())
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        // Whatever accept says, the next turn tries again.
        while self.clients.len() < CLIENTS
            && let Ok((stream, _)) = self.listener.accept()
        {
            if !is_ours(&stream) || stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.next_id += 1;
            let client = Client {
                stream,
                input: Vec::new(),
                output: VecDeque::new(),
                greeted: false,
                since: now,
                lane: None,
                waits: None,
                told_wanted: false,
                beat: None,
                done: false,
            };
            self.clients.insert(self.next_id, client);
            let jobs = self
                .lanes
                .values()
                .filter_map(|lane| lane.relay.as_ref())
                .map(|relay| relay.job.clone());
            let hello = Reply::Hello {
                version: VERSION.to_owned(),
                jobs: jobs.collect(),
            };
            self.tell(self.next_id, &hello);
        }
    }

    /// Queues a reply, and sends what the socket takes.
    fn tell(&mut self, id: ClientId, reply: &Reply) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.output.extend(protocol::message(reply));
            // What can't be written now is tried again when the socket is ready, and told then.
            drop(client.flush());
        }
    }

    /// Reads from a command and writes to it. What it asked for before it left is still done.
    fn serve(&mut self, id: ClientId, now: Instant) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        let takes = self.takes_input(client);
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        // One that reads no more may have said something before.
        let (reads, writes) = (client.flush(), if takes { client.fill() } else { Ok(true) });
        let is_open = reads.is_ok() && writes.unwrap_or(false);
        loop {
            let Some(client) = self
                .clients
                .get_mut(&id)
                .filter(|client| !is_open || client.output.len() < self.backlog)
            else {
                return;
            };
            match protocol::take::<Request>(&mut client.input) {
                Ok(Some(frame)) => {
                    if !self.obey(id, frame, now) {
                        return self.dismiss(id);
                    }
                }
                Ok(None) => break,
                Err(_) => return self.dismiss(id),
            }
        }
        if !is_open
            || self
                .clients
                .get(&id)
                .is_some_and(|client| client.done && client.output.is_empty())
        {
            self.dismiss(id);
        }
    }

    /// Carries out a command's request. False: it makes no sense.
    fn obey(&mut self, id: ClientId, frame: Frame<Request>, now: Instant) -> bool {
        let Some(client) = self.clients.get_mut(&id) else {
            return false;
        };
        let request = match frame {
            Frame::Bytes(bytes) => {
                // Without a channel, its shell has ended.
                if let Some(lane) = client.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
                    lane.write_script(&bytes);
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
                if client.lane.is_some() || client.waits.is_some() {
                    return false;
                }
                client.waits = Some(now);
            }
            Request::Script { done } => {
                if let Some(lane) = client.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
                    lane.begin_script(done);
                }
            }
            Request::CheckIn => {
                let lane = client.lane.take();
                if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(&lane)) {
                    lane.check_in(now + RETURNING);
                }
            }
            Request::Relay { job, word, script } => {
                if self.lifeline.is_none() && self.relays_to_be.len() < RELAYS {
                    let relay = Relay::new(job, word, self.trust, now);
                    self.relays_to_be.push_back((relay, script));
                }
            }
            Request::Beat { seconds } => {
                let every = Duration::from_secs(seconds.max(1));
                client.beat = Some((every, now + every));
            }
            Request::Signal { job, name } => self.wants_signal(id, &job, &name, now),
            Request::Watch { job } => {
                let relay = self
                    .lanes
                    .values_mut()
                    .filter_map(|lane| lane.relay.as_mut())
                    .find(|relay| relay.job == job);
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
                self.leaves_by.get_or_insert(now + LEAVING);
                // The next command starts another.
                if self.is_found() {
                    drop(std::fs::remove_file(&self.socket.0));
                }
                let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
                lanes.into_iter().for_each(|lane| self.give_up_relay(lane));
                let status = self.status();
                self.tell(id, &Reply::Status(status));
            }
        }
        true
    }

    fn wants_signal(&mut self, id: ClientId, job: &str, name: &str, now: Instant) {
        match self.relay_for_signal(job).zip(channel_signal(name)) {
            Some(((lane, relay), name)) => {
                let actions = relay.signal(id, name, now);
                self.act(lane, actions);
            }
            None => {
                self.tell(
                    id,
                    &Reply::Signalled {
                        job: job.to_owned(),
                        relayed: Relayed::NotHeld,
                    },
                );
            }
        }
    }

    /// The relay of a job, on a connection that is not in doubt.
    fn relay_for_signal(&mut self, job: &str) -> Option<(LaneId, &mut Relay)> {
        let mut lanes = self.lanes.iter_mut().filter(|_| !self.pulse.is_doubted());
        lanes.find_map(|(id, lane)| {
            lane.relay
                .as_mut()
                .filter(|relay| relay.job == job)
                .map(|relay| (*id, relay))
        })
    }

    fn status(&self) -> Status {
        let relays = self.lanes.values().filter_map(|lane| lane.relay.as_ref());
        Status {
            host: self.host.clone(),
            pid: std::process::id(),
            since: self.since,
            relays: relays
                .map(|relay| (relay.job.clone(), relay.takes_signals()))
                .collect(),
            channels: self.lanes.len(),
            commands: self.clients.len().saturating_sub(1),
            idle: self.idle_since.elapsed().as_secs(),
        }
    }

    /// A command has gone, or is not wanted any more.
    fn dismiss(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        for lane in self.lanes.values_mut() {
            if let Some(relay) = &mut lane.relay {
                relay.forget(id);
            }
        }
        if let Some(lane) = client.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.abandon();
        }
    }

    /// The connection broke: whoever waits is told, as well as it can be.
    fn break_off(&mut self, why: &str) {
        for id in self.lanes.keys().copied().collect::<Vec<_>>() {
            self.lane_ended(
                id,
                &Reply::Broken {
                    message: why.to_owned(),
                },
            );
        }
        // Whoever waits for a channel sees the end of the socket, and knows that nothing was sent.
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

/// Whether a server is known to take a channel that has no shell yet for one whose shell has ended, and to end itself over
/// that, when another one's ends: Dropbear before 2024.86.
fn breaks_on_open(banner: &str) -> bool {
    let version = banner
        .split_once("dropbear_")
        .and_then(|(_, rest)| rest.split_once('.'));
    let number = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit())
            .next()
            .and_then(|digits| digits.parse().ok())
    };
    version.is_some_and(|(year, minor)| {
        (number(year).unwrap_or(0), number(minor).unwrap_or(0)) < (2024_u32, 86_u32)
    })
}

/// Whether a server is known to refuse the signals of a login: OpenSSH before 10 did so to root.
fn refuses_signals(banner: &str, user: &str) -> bool {
    let version = banner
        .split_once("OpenSSH_")
        .and_then(|(_, rest)| rest.split(['.', 'p', ' ']).next());
    user == "root"
        && version
            .and_then(|major| major.parse().ok())
            .is_some_and(|major: u32| major < 10)
}

impl Client {
    /// Whether its end of the socket is still open, as far as can be told without reading.
    fn is_there(&self) -> bool {
        use nix::sys::socket::{MsgFlags, recv};
        let peeked = recv(
            self.stream.as_raw_fd(),
            &mut [0],
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        );
        matches!(peeked, Ok(1..) | Err(nix::errno::Errno::EAGAIN))
    }

    /// Passes on what a shell said: as much as the socket takes goes there without a copy.
    fn pass_on(&mut self, error_stream: bool, bytes: &[u8]) -> io::Result<()> {
        for content in bytes.chunks(FRAME_MAX) {
            let head = protocol::head_of_bytes(error_stream, content);
            let written = if self.output.is_empty() {
                self.stream
                    .write_vectored(&[IoSlice::new(&head), IoSlice::new(content)])
            } else {
                Ok(0)
            };
            let written = match written {
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    0
                }
                other => other?,
            };
            self.output.extend(head.get(written..).unwrap_or_default());
            self.output.extend(
                content
                    .get(written.saturating_sub(head.len())..)
                    .unwrap_or_default(),
            );
        }
        Ok(())
    }

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

    /// Reads what is there, up to a frame or so, and says whether the other side is still open.
    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        while self.input.len() < FRAME_MAX * 2 {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(size) => self
                    .input
                    .extend_from_slice(chunk.get(..size).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::{breaks_on_open, refuses_signals};

    #[test]
    fn what_is_known_of_servers() {
        for (banner, user, refuses) in [
            ("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3", "root", true),
            ("SSH-2.0-OpenSSH_9.2p1", "alice", false),
            ("SSH-2.0-OpenSSH_10.0p2", "root", false),
            ("SSH-2.0-OpenSSH_for_Windows_9.5", "root", false),
            ("SSH-2.0-dropbear_2022.83", "root", false),
            ("", "root", false),
        ] {
            assert_eq!(refuses_signals(banner, user), refuses, "{banner}");
        }
        for (banner, breaks) in [
            ("SSH-2.0-dropbear_2022.83", true),
            ("SSH-2.0-dropbear_2024.85", true),
            ("SSH-2.0-dropbear_2024.86", false),
            ("SSH-2.0-dropbear_2025.88-3", false),
            ("SSH-2.0-dropbear", false),
            ("SSH-2.0-OpenSSH_9.2p1", false),
        ] {
            assert_eq!(breaks_on_open(banner), breaks, "{banner}");
        }
    }
}
