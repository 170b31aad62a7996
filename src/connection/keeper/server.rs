//! The keeper: holds one SSH connection, or a pool of child processes, for all commands that need its host.
//!
//! One thread, one `poll`. A spare shell is kept ready, so that the next script costs one round trip, and some channels
//! are relays of jobs. The keeper decides nothing about jobs: if it dies, nothing is lost.

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
use crate::sys::socket_callbacks;

/// Maximum number of sessions assumed until the server refuses one (`MaxSessions`, `sshd_config(5)`).
const SESSIONS_DEFAULT: usize = 10;
/// Bytes queued for a command that does not read; its channel is not read either beyond this.
const BACKLOG: usize = 64 << 10;
/// The same for a private keeper, which carries bulk data.
const BULK_BACKLOG: usize = 256 << 10;
/// Maximum number of commands served at once.
pub(super) const CLIENTS_MAX: usize = 128;
/// Interval between keepalives on an idle connection, unless `ServerAliveInterval` sets it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// Minimum interval between two keepalives in libssh2, in seconds.
const KEEPALIVE_SECONDS_MIN: u32 = 2;
/// Maximum wait of a command for a channel; then it is told to find another way.
const SHELL_WAIT_MAX: Duration = Duration::from_secs(2);
/// Maximum wait for a command's greeting.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// How long a command waits for a shell before others are asked for theirs.
pub(super) const WANTED_AFTER: Duration = Duration::from_millis(100);
/// A script that started less than this ago is expected to end soon, and is worth waiting for.
pub(super) const SHORT_SCRIPT_MAX: Duration = Duration::from_secs(2);
/// How long the commands in progress may go on after the keeper was told to end.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(2);
/// Receive window of a channel that carries short answers, in bytes.
const WINDOW: u32 = 256 << 10;
/// Receive window of a channel that carries bulk data, in bytes. It allows 40 MB/s at a round-trip time of 100 ms; a
/// larger one costs OpenSSH more than it gains.
const BULK_WINDOW: u32 = 4 << 20;
/// Interval between checks while the library has received bytes that no read has taken.
const BUFFERED_RECHECK: Duration = Duration::from_millis(2);
/// The same while the server owes a reply, or one of its shells is about to end.
const RECHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Interval between checks that the keeper's socket is still there.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(20);

/// The keeper of one host.
pub struct Keeper {
    pub(super) host: String,
    /// The command line for the login shell, which any login shell understands. It runs the shell that reads the
    /// scripts.
    pub(super) command: Arc<str>,
    pub(super) transport: Transport,
    pub(super) listener: UnixListener,
    /// The socket's path and inode. A keeper that can't be found there any more is of no use.
    pub(super) socket: (PathBuf, u64),
    pub(super) socket_seen: Instant,
    /// Set for a private keeper: closes when the command that owns the keeper ends.
    pub(super) lifeline: Option<OwnedFd>,
    /// Receive window of each channel, in bytes.
    pub(super) window: u32,
    /// Maximum number of bytes queued for a command.
    pub(super) backlog: usize,
    /// What every shell is sent before its first script.
    pub(super) primer: Primer,
    pub(super) clients: BTreeMap<ClientId, Client>,
    /// Relays that wait for a spare channel: since when they wait, and the scripts that start them.
    pub(super) pending_relays: VecDeque<(Instant, Relay, String)>,
    /// When the next of them is due, if that is in the future.
    pub(super) relays_deferred_until: Option<Instant>,
    /// When the last command connected.
    pub(super) last_connect: Instant,
    /// Scripts that cancel starts that were given up.
    pub(super) cancel_scripts: VecDeque<String>,
    pub(super) channels: BTreeMap<ChannelId, ShellChannel>,
    pub(super) next_id: u64,
    /// A call that must be repeated before any other.
    pub(super) half_sent_call: Option<(ChannelId, Op)>,
    /// Number of channels that the server seems to allow.
    pub(super) sessions: usize,
    /// No channel is requested before this time.
    pub(super) open_not_before: Instant,
    /// Number of channels in a row that were refused or useless.
    pub(super) failures: u32,
    /// When a channel was last closed.
    pub(super) last_close: Option<Instant>,
    /// The server breaks if a shell ends while a channel is being opened.
    pub(super) breaks_on_open: bool,
    /// Whether the server is expected to pass signals on.
    pub(super) signal_support: Trust,
    pub(super) may_hang: bool,
    /// Timeout for connecting to the host.
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: Keepalive,
    pub(super) idle_since: Instant,
    pub(super) idle_max: Duration,
    pub(super) since: i64,
    /// Deadline to end, once the keeper was told to.
    pub(super) stop_deadline: Option<Instant>,
    pub(super) buffer: Vec<u8>,
}

/// Why a keeper ends.
#[derive(Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// It was told to, or was idle for long enough.
    Done,
    /// Its connection broke.
    Broken(String),
}

/// Uses `exec`, so that no login shell stays as the parent.
fn command(destination: &Destination) -> String {
    // No word contains a NUL: they come from a command-line argument.
    let words = shlex::try_join(destination.shell()).unwrap_or_default();
    format!("exec {words}")
}

impl Keeper {
    /// A keeper over `transport`, for the commands that connect to `listener`.
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
        let (mut keepalive_interval, mut banner, mut user) = (None, String::new(), "");
        let mut connect_timeout = crate::connection::ssh::CONNECT_TIMEOUT;
        if let Some(connection) = transport.ssh() {
            let session = connection.session();
            session.set_blocking(false);
            // Without an interval, libssh2 sends no keepalives.
            session.set_keepalive(true, KEEPALIVE_SECONDS_MIN);
            session.banner().unwrap_or_default().clone_into(&mut banner);
            keepalive_interval = connection.resolved().server_alive_interval;
            user = &connection.resolved().user;
            connect_timeout = connection.resolved().connect_timeout();
        }
        let keepalive_interval = keepalive_interval
            .unwrap_or(KEEPALIVE_INTERVAL)
            .max(Duration::from_secs(5));
        Ok(Self {
            host: destination.to_string(),
            command: command(destination).into(),
            may_hang: destination.has_prefix(),
            connect_timeout,
            signal_support: if refuses_signals(&banner, user) {
                Trust::Unlikely
            } else {
                Trust::Assumed
            },
            breaks_on_open: breaks_on_open(&banner),
            keepalive: Keepalive::new(keepalive_interval, now, keepalive::asleep()),
            transport,
            listener,
            socket: (socket.to_owned(), std::fs::symlink_metadata(socket)?.ino()),
            socket_seen: now,
            lifeline: None,
            window: WINDOW,
            backlog: BACKLOG,
            primer,
            clients: BTreeMap::new(),
            pending_relays: VecDeque::new(),
            relays_deferred_until: None,
            last_connect: now,
            cancel_scripts: VecDeque::new(),
            channels: BTreeMap::new(),
            next_id: 0,
            half_sent_call: None,
            sessions: SESSIONS_DEFAULT,
            open_not_before: now,
            failures: 0,
            last_close: None,
            idle_since: now,
            idle_max,
            since: crate::job::now(),
            stop_deadline: None,
            buffer: vec![0; 32 << 10],
        })
    }

    /// Makes the keeper private to one command: it ends when `lifeline` closes, and its channels carry bulk data.
    pub fn make_private(&mut self, lifeline: OwnedFd) {
        self.lifeline = Some(lifeline);
        self.window = BULK_WINDOW;
        self.backlog = BULK_BACKLOG;
        self.buffer = vec![0; BULK_BACKLOG];
    }

    /// Serves commands until the keeper is to end, or its connection breaks.
    pub fn run(&mut self) -> ShutdownReason {
        loop {
            if let Err(error) = self.run_once() {
                let why = error.to_string();
                self.fail_clients(&why);
                return ShutdownReason::Broken(why);
            }
            if self.is_over() {
                self.end_processes();
                return ShutdownReason::Done;
            }
        }
    }

    /// Whether its socket is still where commands look for it.
    pub fn owns_socket(&self) -> bool {
        std::fs::symlink_metadata(&self.socket.0)
            .is_ok_and(|metadata| metadata.ino() == self.socket.1)
    }

    fn is_over(&self) -> bool {
        let quiet = self.clients.is_empty()
            && !self
                .channels
                .values()
                .any(|channel| channel.relay.is_some());
        // A private keeper's only command is gone, but the shells that it checked in may still be cleaning up.
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
        self.stop_deadline
            .is_some_and(|by| served() || Instant::now() >= by)
            || quiet && self.idle_since.elapsed() >= self.idle_max
    }

    /// One turn of the event loop.
    fn run_once(&mut self) -> io::Result<()> {
        if let Some(socket) = self.transport.socket() {
            socket_callbacks::send_queue(socket.as_raw_fd())?;
        }
        let more = self.pump()?;
        if socket_callbacks::has_read() {
            // The reply to a keepalive, for example: any call may have read it, and then poll does not report it.
            self.keepalive.record_contact(Instant::now());
        }
        // The calls may have done the last thing that the keeper had to do.
        let until = if more || self.is_over() {
            Instant::now()
        } else {
            self.next_deadline()
        };
        let (ssh_ready, new_clients, orphaned, ready) = self.poll(until)?;
        let now = Instant::now();
        if orphaned {
            self.stop_deadline = Some(now + STOP_GRACE);
        }
        // While no call would read, silence proves nothing.
        if ssh_ready || self.may_call() && !self.reads() {
            self.keepalive.record_contact(now);
        }
        // Before requests are read: after a sleep they must not be served over a connection that is gone.
        self.check_keepalive(now)?;
        if new_clients {
            self.accept(now);
        }
        for id in ready {
            self.serve_client(id, now);
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
    fn may_call(&self) -> bool {
        self.channels
            .iter()
            .any(|(id, channel)| self.is_due(*id, channel))
    }

    /// Whether any call would read from the connection. None does while the only readers can take no more for now.
    fn reads(&self) -> bool {
        self.channels.iter().any(|(id, channel)| {
            self.is_due(*id, channel) && !channel.next_ops(self.has_reader(channel)).is_empty()
        })
    }

    fn poll(&self, until: Instant) -> io::Result<(bool, bool, bool, Vec<ClientId>)> {
        let mut flags = PollFlags::empty();
        // Data that no call would read must not wake the loop up again and again.
        flags.set(PollFlags::POLLIN, self.reads());
        flags.set(
            PollFlags::POLLOUT,
            self.transport.has_partial_packet() || socket_callbacks::has_queue(),
        );
        let full = self.clients.len() >= CLIENTS_MAX;
        let lifeline = self
            .lifeline
            .as_ref()
            .filter(|_| self.has_lifeline())
            .map_or(self.listener.as_fd(), AsFd::as_fd);
        // poll(2) always reports the end of a connection, so the socket is left out while no call would read.
        let socket = self
            .transport
            .socket()
            .filter(|_| !flags.is_empty() || !self.may_call());
        let is_ssh = socket.is_some();
        let mut fds = vec![
            PollFd::new(
                socket.unwrap_or(self.listener.as_fd()),
                if is_ssh { flags } else { PollFlags::empty() },
            ),
            // Commands beyond the limit are not accepted yet, and find another way.
            PollFd::new(
                self.listener.as_fd(),
                if full {
                    PollFlags::empty()
                } else {
                    PollFlags::POLLIN
                },
            ),
            // poll(2) always reports a pipe whose other end is closed, so it is left out once that is known.
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
            // poll(2) always reports the end of a connection; here it is noticed when the client is served again.
            if flags.is_empty() {
                continue;
            }
            ids.push(*id);
            fds.push(PollFd::new(client.stream.as_fd(), flags));
        }
        for channel in self.channels.values() {
            fds.extend(channel.fds(self.has_reader(channel)));
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

    /// Whether it is private, and its command is still there.
    fn has_lifeline(&self) -> bool {
        self.lifeline.is_some() && self.stop_deadline.is_none()
    }

    /// Whether more may be read from a command: neither its input nor the output for it may pile up here. While it has
    /// a channel, its input makes no output here, and goes on while it takes none.
    pub(super) fn takes_input(&self, client: &Client) -> bool {
        let in_channel = client
            .channel
            .and_then(|channel| self.channels.get(&channel))
            .map_or(0, ShellChannel::queued_bytes);
        client.is_closing || in_channel < self.backlog && client.takes_requests(self.backlog)
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
            .map(|client| client.connected_at + GREETING_MAX);
        let returns = self.channels.values().filter_map(|channel| channel.due);
        let waits = self
            .clients
            .values()
            .filter_map(|client| client.waiting_since)
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
            .filter_map(|client| client.heartbeat.map(|(_, due)| due));
        for deadline in relays
            .chain(greetings)
            .chain(waits)
            .chain(returns)
            .chain(beats)
            .chain(self.relays_deferred_until)
            .chain(self.stop_deadline)
        {
            until = until.min(deadline);
        }
        if self.open_not_before > Instant::now() {
            until = until.min(self.open_not_before);
        }
        // The last call for another channel may have received data for this one, and then poll does not report it. A
        // reply to a request, and room to send more, are not reported by anything.
        let now = Instant::now();
        let untold = |channel: &ShellChannel| {
            !matches!(channel.stage, Stage::Open | Stage::Draining) || channel.queued_bytes() > 0
        };
        if self.must_defer_open(SHORT_SCRIPT_MAX) {
            until = until.min(now + RECHECK_INTERVAL);
        }
        if self
            .channels
            .values()
            .any(|channel| channel.has_more(self.has_reader(channel)))
        {
            until = until.min(now + BUFFERED_RECHECK);
        } else if matches!(self.urgency(), Urgency::Awaited) && self.channels.values().any(untold) {
            until = until.min(now + RECHECK_INTERVAL);
        }
        // The machine may have slept through a deadline, so check from time to time.
        until.min(Instant::now() + SOCKET_CHECK_INTERVAL)
    }

    /// What the server's next message is needed for.
    fn urgency(&self) -> Urgency {
        let relays = || {
            self.channels
                .values()
                .filter_map(|channel| channel.relay.as_ref())
        };
        if self
            .clients
            .values()
            .any(|client| client.channel.is_some() || client.waiting_since.is_some())
            || relays().any(Relay::owes_answer)
        {
            Urgency::Awaited
        } else if relays().any(Relay::is_watched) {
            Urgency::Watched
        } else {
            Urgency::Idle
        }
    }

    /// Handles the deadlines that have passed.
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
            self.signal_support = relay.probe_result().unwrap_or(self.signal_support);
            self.act(id, actions);
        }
        self.close_shells(now);
        self.ask_for_shells(now);
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            if let Some((every, due)) = client.heartbeat.filter(|(_, due)| now >= *due) {
                client.heartbeat = Some((every, due.max(now) + every));
                if let Some(channel) = client
                    .channel
                    .and_then(|channel| self.channels.get_mut(&channel))
                {
                    channel.write(b"\n");
                }
            }
            if client
                .waiting_since
                .is_some_and(|since| now >= since + SHELL_WAIT_MAX)
            {
                (client.waiting_since, client.is_closing) = (None, true);
                self.send_reply(id, &Reply::Busy);
            } else if !client.greeted && now >= client.connected_at + GREETING_MAX {
                self.clients.remove(&id);
            }
        }
        if now.saturating_duration_since(self.socket_seen) >= SOCKET_CHECK_INTERVAL {
            self.socket_seen = now;
            if !self.owns_socket() {
                self.stop_deadline.get_or_insert(now + STOP_GRACE);
            }
        }
    }

    /// Sends a keepalive to a silent server, and fails if the server stays silent.
    fn check_keepalive(&mut self, now: Instant) -> io::Result<()> {
        let Some(connection) = self.transport.ssh() else {
            return Ok(());
        };
        match self
            .keepalive
            .check(now, keepalive::asleep(), self.urgency())
        {
            Liveness::Ok => Ok(()),
            Liveness::Dead => Err(io::Error::new(
                ErrorKind::TimedOut,
                "the server no longer answers",
            )),
            Liveness::SendKeepalive => {
                self.keepalive.record_sent(now);
                // While a packet is half sent, the library drops a keepalive without sending it.
                if !self.transport.has_partial_packet() {
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
