//! A TCP proxy with a delay line, for slow and broken networks.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

/// How often a blocked write checks whether its connection was cut.
const WRITE_TIMEOUT: Duration = Duration::from_millis(20);
/// Maximum number of chunks in transit in one direction. Beyond it the proxy stops reading, as a network would.
const IN_TRANSIT_MAX: usize = 4096;
const CHUNK_MAX: usize = 16 * 1024;

/// Direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// Forwards 127.0.0.1:[`port`](Proxy::port) to a server. Each chunk is forwarded `delay` after it was received,
/// whatever is in transit before it: 50 ms make a round trip of 100 ms.
///
/// The delay applies to data and to the end of the stream, not to TCP's three-way handshake: the proxy accepts at once.
/// On drop all connections are cut.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    delay: Duration,
    lanes: [Pipe; 2],
    /// Number of cuts. A connection that was accepted before the last cut is dead.
    cuts: u64,
    accepted: u64,
    open: Vec<Weak<Connection>>,
    /// Number of the last frozen connection; all earlier ones are frozen too.
    frozen: u64,
    turns: u64,
    last: Option<Direction>,
    refusing: bool,
    closing: bool,
}

/// One direction of all connections.
#[derive(Default)]
struct Pipe {
    held: bool,
    /// Bytes received, and bytes forwarded.
    arrived: u64,
    bytes: u64,
    /// Bytes that are still forwarded before all connections are cut.
    until_cut: Option<u64>,
    /// What that becomes after a cut.
    again: Option<u64>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// [`State::cuts`] when the connection was accepted.
    cuts: u64,
    /// The connection's number: [`State::accepted`] after it was accepted.
    number: u64,
    last: Mutex<Option<Direction>>,
    shared: Arc<Shared>,
}

/// A chunk in the delay line.
struct Parcel {
    due: Instant,
    /// None is the end of the stream.
    bytes: Option<Vec<u8>>,
}

impl Proxy {
    /// Starts a proxy for a server on a port of 127.0.0.1, with this delay each way.
    pub fn start(target_port: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener
            .local_addr()
            .expect("a listener has an address")
            .port();
        let shared = Arc::new(Shared {
            target: (Ipv4Addr::LOCALHOST, target_port).into(),
            state: Mutex::new(State {
                delay,
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept_from(&listener)
        });
        Self {
            port,
            shared,
            acceptor: Some(acceptor),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets the delay each way for data received from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Resets all connections now, by RST on both sides; data in transit is lost. New ones are accepted.
    pub fn cut(&self) {
        let broken = self.shared.reset_all();
        super::poll_until(
            "the proxy's connections are cut",
            super::STEP_TIMEOUT,
            || {
                broken
                    .iter()
                    .all(|connection| connection.strong_count() == 0)
            },
        );
    }

    /// Forwards `count` more bytes in this direction, over all connections, and then closes all of them. These bytes
    /// arrive, followed by a FIN.
    pub fn cut_after_bytes(&self, direction: Direction, count: u64) {
        self.shared.lock().lane(direction).until_cut = Some(count);
    }

    /// [`cut_after_bytes`](Self::cut_after_bytes), and again after each cut.
    pub fn cut_every_bytes(&self, direction: Direction, count: u64) {
        let mut state = self.shared.lock();
        let lane = state.lane(direction);
        (lane.until_cut, lane.again) = (Some(count), Some(count));
    }

    /// Stops forwarding in one direction, silently: both sides see an open connection without data.
    pub fn hold(&self, direction: Direction) {
        self.shared.lock().lane(direction).held = true;
    }

    /// [`hold`](Self::hold) in both directions.
    pub fn hold_both(&self) {
        self.hold(Direction::ToServer);
        self.hold(Direction::ToClient);
    }

    /// Holds the connections that are open now, both ways, and no later ones: as if the machine had been suspended.
    pub fn freeze(&self) {
        let mut state = self.shared.lock();
        state.frozen = state.accepted;
    }

    /// Forwards again, beginning with the data received in the meantime.
    pub fn release(&self) {
        let mut state = self.shared.lock();
        state.frozen = 0;
        for lane in &mut state.lanes {
            lane.held = false;
        }
        self.shared.changed.notify_all();
    }

    /// Sets whether new connections are closed at once. Open connections are not affected.
    pub fn refuse(&self, refusing: bool) {
        self.shared.lock().refusing = refusing;
    }

    /// Number of connections so far, including refused ones.
    pub fn connections(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// Number of connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.shared
            .lock()
            .open
            .iter()
            .filter(|connection| connection.strong_count() > 0)
            .count()
    }

    /// Number of bytes forwarded in this direction.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.lock().lane(direction).bytes
    }

    /// Number of bytes received for this direction, those that are held or delayed included.
    pub fn arrived(&self, direction: Direction) -> u64 {
        self.shared.lock().lane(direction).arrived
    }

    /// How often the direction changed within a connection. Two changes are a round trip that one side waited for,
    /// unless both sides send at once, as with SSH's version lines.
    pub fn direction_changes(&self) -> u64 {
        self.shared.lock().turns
    }

    /// Direction of the last data received, over all connections.
    pub fn last_direction(&self) -> Option<Direction> {
        self.shared.lock().last
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        // Wakes the acceptor. An error means that it has ended.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.shared.reset_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, state: &mut State) {
        state.cuts += 1;
        for lane in &mut state.lanes {
            lane.until_cut = lane.again;
        }
        self.changed.notify_all();
    }

    fn reset_all(&self) -> Vec<Weak<Connection>> {
        let mut state = self.lock();
        self.cut(&mut state);
        let broken = std::mem::take(&mut state.open);
        for connection in broken.iter().filter_map(Weak::upgrade) {
            connection.reset();
        }
        broken
    }

    fn accept_from(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            let mut state = self.lock();
            if state.closing {
                return;
            }
            let Ok(client) = client else { continue };
            state.accepted += 1;
            state
                .open
                .retain(|connection| connection.strong_count() > 0);
            let (refusing, cuts, number) = (state.refusing, state.cuts, state.accepted);
            drop(state);
            if !refusing && let Ok(server) = TcpStream::connect(self.target) {
                self.connect(client, server, cuts, number);
            }
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream, cuts: u64, number: u64) {
        for stream in [&client, &server] {
            let ready = stream
                .set_nodelay(true)
                .and_then(|()| stream.set_write_timeout(Some(WRITE_TIMEOUT)));
            if ready.is_err() {
                return;
            }
        }
        let shared = Arc::clone(self);
        let connection = Arc::new(Connection {
            client,
            server,
            cuts,
            number,
            last: Mutex::new(None),
            shared,
        });
        let mut state = self.lock();
        if state.cuts != cuts {
            return;
        }
        state.open.push(Arc::downgrade(&connection));
        drop(state);
        for direction in [Direction::ToServer, Direction::ToClient] {
            let (line, parcels) = sync_channel(IN_TRANSIT_MAX);
            let reader = Arc::clone(&connection);
            thread::spawn(move || reader.read_into(&line, direction));
            let writer = Arc::clone(&connection);
            thread::spawn(move || writer.write_from(&parcels, direction));
        }
    }
}

impl State {
    fn lane(&mut self, direction: Direction) -> &mut Pipe {
        let [to_server, to_client] = &mut self.lanes;
        match direction {
            Direction::ToServer => to_server,
            Direction::ToClient => to_client,
        }
    }
}

impl Connection {
    fn read_into(&self, line: &SyncSender<Parcel>, direction: Direction) {
        let mut source = match direction {
            Direction::ToServer => &self.client,
            Direction::ToClient => &self.server,
        };
        let mut buffer = vec![0; CHUNK_MAX];
        loop {
            // A read error is treated as the end of the stream: the other side sees a close.
            let count = source.read(&mut buffer).unwrap_or(0);
            let due = Instant::now() + self.arrived(direction, count);
            let bytes = (count > 0).then(|| buffer[..count].to_vec());
            // Fails if the writer has ended, because the connection was cut or its side was closed.
            if line.send(Parcel { due, bytes }).is_err() || count == 0 {
                return;
            }
        }
    }

    /// Updates the counters, and returns the delay for data that was just received.
    fn arrived(&self, direction: Direction, count: usize) -> Duration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.shared.lock();
        if count > 0
            && last
                .replace(direction)
                .is_some_and(|before| before != direction)
        {
            state.turns += 1;
        }
        if count > 0 {
            state.last = Some(direction);
        }
        state.lane(direction).arrived += count as u64;
        state.delay
    }

    fn write_from(&self, parcels: &Receiver<Parcel>, direction: Direction) {
        let sink = match direction {
            Direction::ToServer => &self.server,
            Direction::ToClient => &self.client,
        };
        for Parcel { due, bytes } in parcels {
            let forwarded = match bytes {
                Some(bytes) => self.forward(sink, &bytes, due, direction),
                None => {
                    self.admit(0, due, direction).is_some()
                        && sink.shutdown(Shutdown::Write).is_ok()
                }
            };
            if !forwarded {
                // After a cut the connection must end with RST; a close here would send a FIN.
                if self.shared.lock().cuts == self.cuts {
                    self.close();
                }
                return;
            }
        }
    }

    /// Writes what may pass. Returns false if the connection is to end.
    fn forward(&self, sink: &TcpStream, bytes: &[u8], due: Instant, direction: Direction) -> bool {
        let Some(count) = self.admit(bytes.len(), due, direction) else {
            return false;
        };
        let written = bytes
            .get(..count)
            .is_some_and(|part| self.write_all(sink, part));
        let mut state = self.shared.lock();
        let lane = state.lane(direction);
        if lane.until_cut == Some(0) {
            self.shared.cut(&mut state);
            for other in state.open.iter().filter_map(Weak::upgrade) {
                other.close();
            }
            return false;
        }
        written
    }

    /// Waits until a parcel is due and its lane is not held. Returns how many bytes may pass, None if the connection
    /// was cut.
    fn admit(&self, count: usize, due: Instant, direction: Direction) -> Option<usize> {
        let mut state = self.shared.lock();
        loop {
            if state.cuts != self.cuts {
                return None;
            }
            let early = due.saturating_duration_since(Instant::now());
            if state.lane(direction).held || self.number <= state.frozen {
                state = self
                    .shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            } else if !early.is_zero() {
                let waited = self.shared.changed.wait_timeout(state, early);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else {
                break;
            }
        }
        let lane = state.lane(direction);
        let passing = match &mut lane.until_cut {
            Some(left) => {
                let passing = usize::try_from(*left).unwrap_or(usize::MAX).min(count);
                *left -= passing as u64;
                passing
            }
            None => count,
        };
        lane.bytes += passing as u64;
        Some(passing)
    }

    fn write_all(&self, mut sink: &TcpStream, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match sink.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    if self.shared.lock().cuts != self.cuts {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Closes both sides; data already written arrives. The threads notice and end.
    fn close(&self) {
        // Errors mean that the side has ended.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    /// Makes both sides end with RST once the threads have dropped them.
    fn reset(&self) {
        for stream in [&self.client, &self.server] {
            let at_once = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            // Errors mean that the side has ended. Only reading is shut down: shutting down both would send a FIN.
            let _ = setsockopt(stream, sockopt::Linger, &at_once);
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}
