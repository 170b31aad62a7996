//! The keeper: holds one SSH connection, or a pool of child processes, for all commands that need its host.
//!
//! One thread, one `poll`. It always has a shell ready, so that the next script costs one round trip, and keeps the
//! channels of a few jobs as their relays. It decides nothing about jobs: when it dies, nothing is lost.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::channel::{ChannelId, Op, ShellChannel, Stage};
use super::client_stream::Client;
use super::keepalive::{self, Keepalive, Liveness, Urgency};
use super::protocol::Reply;
use super::quirks::{breaks_on_open, refuses_signals};
use super::relay::{ClientId, Relay, Trust};
use super::transport::Transport;
use crate::connection::Primer;
use crate::host::Destination;
use crate::sys::inflow;

/// How many sessions a server allows on a connection, until it says otherwise (`MaxSessions` of `sshd_config(5)`).
const SESSIONS_DEFAULT: usize = 10;
/// How much may wait for a command that does not read; then its channel is not read either.
const BACKLOG: usize = 64 << 10;
/// The same where much is to be carried.
const BULK_BACKLOG: usize = 256 << 10;
/// How many commands are served at once.
const CLIENTS_MAX: usize = 128;
/// How often an idle connection is asked for a sign of life, where `ServerAliveInterval` does not say.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// The least that libssh2 lets pass between two questions for a sign of life, in seconds.
const KEEPALIVE_SECONDS_MIN: u32 = 2;
/// How long a command waits for a channel before it is told to find another way.
const SHELL_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a command may take to greet.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// How long a command waits for a shell before others are asked for theirs, and how long those have had them by then.
const WANTED_AFTER: Duration = Duration::from_millis(100);
/// How long a script runs at most that is worth waiting for.
const SHORT_SCRIPT_MAX: Duration = Duration::from_secs(2);
/// How long the commands at work have when the keeper is told to end.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// The window of a channel that carries short answers.
const WINDOW: u32 = 256 << 10;
/// The window of one that carries much. 100 ms of round trip let 40 MB/s through, and a larger one costs OpenSSH more
/// than it gives.
const BULK_WINDOW: u32 = 4 << 20;
/// How soon is looked again where bytes are here that no reading took.
const BUFFERED_RECHECK: Duration = Duration::from_millis(2);
/// The same while the server has a request to answer, or a shell of it is about to end.
const RECHECK_INTERVAL: Duration = Duration::from_millis(50);
/// How often the keeper looks whether its socket is still there.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(20);

/// The keeper of one host.
pub struct Keeper {
    pub(super) host: String,
    /// What every login shell understands, and what then reads the scripts.
    pub(super) command: Arc<str>,
    pub(super) transport: Transport,
    pub(super) listener: UnixListener,
    /// The socket's path and inode: a keeper that can't be found any more is of no use.
    pub(super) socket: (PathBuf, u64),
    pub(super) socket_seen: Instant,
    /// The command whose own it is, as long as that lives.
    pub(super) lifeline: Option<OwnedFd>,
    /// How much a server may send on a channel ahead of what was read.
    pub(super) window: u32,
    /// How much may wait for a command.
    pub(super) backlog: usize,
    /// What every shell is given ahead of its script.
    pub(super) primer: Primer,
    pub(super) clients: BTreeMap<ClientId, Client>,
    /// Relays that get a channel when one is spare: since when they wait, and the scripts that start them.
    pub(super) relays_to_be: VecDeque<(Instant, Relay, String)>,
    /// Until when, where it is too early for them.
    pub(super) relays_put_off: Option<Instant>,
    /// When the last command came.
    pub(super) visited: Instant,
    /// Scripts that cancel starts which were given up.
    pub(super) cancels: VecDeque<String>,
    pub(super) channels: BTreeMap<ChannelId, ShellChannel>,
    pub(super) next_id: u64,
    /// A call that must be repeated before any other.
    pub(super) owed: Option<(ChannelId, Op)>,
    /// How many channels the server seems to allow.
    pub(super) sessions: usize,
    /// No channel is asked for before.
    pub(super) not_before: Instant,
    /// How many channels were refused, or of no use, one after the other.
    pub(super) failures: u32,
    /// When a channel was last closed.
    pub(super) freed: Option<Instant>,
    /// The server breaks when a shell ends while a channel is opened.
    pub(super) breaks_on_open: bool,
    /// Whether the server is thought to pass signals on.
    pub(super) trust: Trust,
    pub(super) may_hang: bool,
    /// How long its host may take to be connected to.
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: Keepalive,
    pub(super) idle_since: Instant,
    pub(super) idle_max: Duration,
    pub(super) since: i64,
    /// By when it ends, once it was told to.
    pub(super) leaves_by: Option<Instant>,
    pub(super) buffer: Vec<u8>,
}

/// Why a keeper ends.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to, or had nothing to do for long enough.
    Done,
    /// Its connection broke.
    Broken(String),
}

/// `exec`, so that no login shell stays above.
fn command(destination: &Destination) -> String {
    // A NUL is in none of the words: they come from an argument.
    let words = shlex::try_join(destination.shell()).unwrap_or_default();
    format!("exec {words}")
}

impl Keeper {
    /// A keeper over a connection, for whoever connects to `listener`.
    pub fn new(
        destination: &Destination,
        transport: Transport,
        listener: UnixListener,
        socket: &Path,
        idle_max: Duration,
        primer: Primer,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let now = Instant::now();
        let (mut alive, mut banner, mut user) = (None, String::new(), "");
        let mut connect_timeout = crate::connection::ssh::CONNECT_TIMEOUT;
        if let Some(connection) = transport.ssh() {
            let session = connection.session();
            session.set_blocking(false);
            // Without it, nothing is sent.
            session.set_keepalive(true, KEEPALIVE_SECONDS_MIN);
            session.banner().unwrap_or_default().clone_into(&mut banner);
            alive = connection.resolved().server_alive_interval;
            user = &connection.resolved().user;
            connect_timeout = connection.resolved().connect_timeout();
        }
        let alive = alive
            .unwrap_or(KEEPALIVE_INTERVAL)
            .max(Duration::from_secs(5));
        Ok(Self {
            host: destination.to_string(),
            command: command(destination).into(),
            may_hang: destination.has_prefix(),
            connect_timeout,
            trust: if refuses_signals(&banner, user) {
                Trust::Doubted
            } else {
                Trust::Hoped
            },
            breaks_on_open: breaks_on_open(&banner),
            keepalive: Keepalive::new(alive, now, keepalive::asleep()),
            transport,
            listener,
            socket: (socket.to_owned(), std::fs::symlink_metadata(socket)?.ino()),
            socket_seen: now,
            lifeline: None,
            window: WINDOW,
            backlog: BACKLOG,
            primer,
            clients: BTreeMap::new(),
            relays_to_be: VecDeque::new(),
            relays_put_off: None,
            visited: now,
            cancels: VecDeque::new(),
            channels: BTreeMap::new(),
            next_id: 0,
            owed: None,
            sessions: SESSIONS_DEFAULT,
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
        self.window = BULK_WINDOW;
        self.backlog = BULK_BACKLOG;
        self.buffer = vec![0; BULK_BACKLOG];
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
                self.end_processes();
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
        let quiet = self.clients.is_empty()
            && !self
                .channels
                .values()
                .any(|channel| channel.relay.is_some());
        // A private one's only command has gone, but what it checked in may still clean up.
        let served = || match self.lifeline {
            Some(_) => self
                .channels
                .values()
                .all(|channel| !channel.is_returning()),
            None => self
                .clients
                .values()
                .all(|client| client.output.is_empty() && client.channel.is_none()),
        };
        self.leaves_by
            .is_some_and(|by| served() || Instant::now() >= by)
            || quiet && self.idle_since.elapsed() >= self.idle_max
    }

    /// One turn: waits for something to happen, and does what follows from it.
    fn turn(&mut self) -> io::Result<()> {
        if let Some(socket) = self.transport.socket() {
            inflow::send_queue(socket.as_raw_fd())?;
        }
        let more = self.pump()?;
        if inflow::has_come() {
            // The answer to a question, say: any call may have taken it in, and poll says nothing of it then.
            self.keepalive.hear(Instant::now());
        }
        let until = if more {
            Instant::now()
        } else {
            self.next_deadline()
        };
        let (ssh_ready, new_clients, orphaned, ready) = self.poll(until)?;
        let now = Instant::now();
        if orphaned {
            self.leaves_by = Some(now + STOP_GRACE);
        }
        // Where nothing is read, silence means nothing.
        if ssh_ready || self.has_due() && !self.reads() {
            self.keepalive.hear(now);
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
        if !self.clients.is_empty()
            || self
                .channels
                .values()
                .any(|channel| channel.relay.is_some())
        {
            self.idle_since = now;
        }
        Ok(())
    }

    /// Whether calls may be made for any channel.
    fn has_due(&self) -> bool {
        self.channels
            .iter()
            .any(|(id, channel)| self.is_due(*id, channel))
    }

    /// Whether any call would read from the connection. None does while the only ones to listen take no more for now.
    fn reads(&self) -> bool {
        self.channels.iter().any(|(id, channel)| {
            self.is_due(*id, channel) && !channel.to_do(self.listens(channel)).is_empty()
        })
    }

    fn poll(&self, until: Instant) -> io::Result<(bool, bool, bool, Vec<ClientId>)> {
        let mut flags = PollFlags::empty();
        // What no call would read must not wake this up again and again.
        flags.set(PollFlags::POLLIN, self.reads());
        flags.set(
            PollFlags::POLLOUT,
            self.transport.owes_output() || inflow::has_queue(),
        );
        let full = self.clients.len() >= CLIENTS_MAX;
        let lifeline = self
            .lifeline
            .as_ref()
            .map_or(self.listener.as_fd(), AsFd::as_fd);
        // poll(2) reports the end of a connection unasked. While nothing is to be read, the socket is left out.
        let socket = self
            .transport
            .socket()
            .filter(|_| !flags.is_empty() || !self.has_due());
        let is_ssh = socket.is_some();
        let mut fds = vec![
            PollFd::new(
                socket.unwrap_or(self.listener.as_fd()),
                if is_ssh { flags } else { PollFlags::empty() },
            ),
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
                if self.has_lifeline() {
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
        for channel in self.channels.values() {
            fds.extend(channel.fds(self.listens(channel)));
        }
        if !crate::connection::wait(&mut fds, until)? {
            return Ok((false, false, false, Vec::new()));
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let has =
            |fd: &PollFd<'_>, flags| fd.revents().is_some_and(|events| events.intersects(flags));
        let mut fds = fds.iter();
        let ssh = fds.next();
        if is_ssh
            && !flags.contains(PollFlags::POLLIN)
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
        let orphaned = fds.next().is_some_and(ready) && self.has_lifeline();
        let ready = fds
            .zip(ids)
            .filter(|(fd, _)| ready(fd))
            .map(|(_, id)| id)
            .collect();
        Ok((
            ssh.is_some_and(|fd| has(fd, PollFlags::POLLIN)),
            listener,
            orphaned,
            ready,
        ))
    }

    /// Whether it serves one command that is still there.
    fn has_lifeline(&self) -> bool {
        self.lifeline.is_some() && self.leaves_by.is_none()
    }

    /// Whether more may be read from a command: neither what it has sent nor what it was told must pile up here.
    pub(super) fn takes_input(&self, client: &Client) -> bool {
        let in_channel = client
            .channel
            .and_then(|channel| self.channels.get(&channel))
            .map_or(0, ShellChannel::waiting);
        client.done || in_channel < self.backlog && client.output.len() < self.backlog
    }

    fn next_deadline(&self) -> Instant {
        let mut until = self.idle_since + self.idle_max;
        if self.transport.ssh().is_some() {
            until = until.min(self.keepalive.next(self.urgency()));
        }
        let relays = self
            .channels
            .values()
            .filter_map(|channel| channel.relay.as_ref()?.deadline());
        let greetings = self
            .clients
            .values()
            .filter(|client| !client.greeted)
            .map(|client| client.since + GREETING_MAX);
        let returns = self.channels.values().filter_map(|channel| channel.due);
        let waits = self
            .clients
            .values()
            .filter_map(|client| client.waits)
            .map(|since| {
                let now = Instant::now();
                if now < since + WANTED_AFTER {
                    since + WANTED_AFTER
                } else {
                    (now + WANTED_AFTER).min(since + SHELL_WAIT_MAX)
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
            .chain(self.relays_put_off)
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
        let untold = |channel: &ShellChannel| {
            !matches!(channel.stage, Stage::Open | Stage::Draining) || channel.waiting() > 0
        };
        if self.must_hold_back(SHORT_SCRIPT_MAX) {
            until = until.min(now + RECHECK_INTERVAL);
        }
        if self
            .channels
            .values()
            .any(|channel| channel.has_more(self.listens(channel)))
        {
            until = until.min(now + BUFFERED_RECHECK);
        } else if matches!(self.urgency(), Urgency::Waited) && self.channels.values().any(untold) {
            until = until.min(now + RECHECK_INTERVAL);
        }
        // The machine may have slept through a deadline: look now and then.
        until.min(Instant::now() + SOCKET_CHECK_INTERVAL)
    }

    /// What depends on the server's next word.
    fn urgency(&self) -> Urgency {
        let relays = || {
            self.channels
                .values()
                .filter_map(|channel| channel.relay.as_ref())
        };
        if self
            .clients
            .values()
            .any(|client| client.channel.is_some() || client.waits.is_some())
            || relays().any(Relay::is_asked)
        {
            Urgency::Waited
        } else if relays().any(Relay::is_watched) {
            Urgency::Watched
        } else {
            Urgency::Idle
        }
    }

    /// Looks after what has to happen at some time.
    pub(super) fn tick(&mut self, now: Instant) {
        for id in self.channels.keys().copied().collect::<Vec<_>>() {
            let Some(relay) = self
                .channels
                .get_mut(&id)
                .and_then(|channel| channel.relay.as_mut())
            else {
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
                if let Some(channel) = client
                    .channel
                    .and_then(|channel| self.channels.get_mut(&channel))
                {
                    channel.write(b"\n");
                }
            }
            if client
                .waits
                .is_some_and(|since| now >= since + SHELL_WAIT_MAX)
            {
                (client.waits, client.done) = (None, true);
                self.tell(id, &Reply::Busy);
            } else if !client.greeted && now >= client.since + GREETING_MAX {
                self.clients.remove(&id);
            }
        }
        if now.saturating_duration_since(self.socket_seen) >= SOCKET_CHECK_INTERVAL {
            self.socket_seen = now;
            if !self.is_found() {
                self.leaves_by.get_or_insert(now + STOP_GRACE);
            }
        }
    }

    /// Asks a silent server for a sign of life, and gives one up that gives none.
    fn look_alive(&mut self, now: Instant) -> io::Result<()> {
        let Some(connection) = self.transport.ssh() else {
            return Ok(());
        };
        match self
            .keepalive
            .check(now, keepalive::asleep(), self.urgency())
        {
            Liveness::Fine => Ok(()),
            Liveness::Dead => Err(io::Error::new(
                ErrorKind::TimedOut,
                "the server no longer answers",
            )),
            Liveness::Ask => {
                self.keepalive.ask(now);
                // Behind a packet that is half sent, the library forgets it.
                if !self.transport.owes_output() {
                    connection
                        .session()
                        .keepalive_send()
                        .map_err(io::Error::other)?;
                }
                Ok(())
            }
        }
    }
}
