//! A TCP proxy with a delay line, for slow and broken networks.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

/// How often a blocked write looks whether its connection was cut.
const LOOK: Duration = Duration::from_millis(20);
/// Chunks under way in one direction; when that many are, the proxy stops reading, as a network would.
const LINE: usize = 4096;
const CHUNK: usize = 16 * 1024;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// Forwards 127.0.0.1:[`port`](Proxy::port) to a server, each chunk `delay` after it came, whatever is under
/// way before it: 50 ms make a round trip of 100 ms.
///
/// The delay holds for bytes and for their end, not for the three-way handshake of TCP: the proxy accepts at
/// once. On drop all connections are cut.
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
    lanes: [Lane; 2],
    /// Counts the cuts: a connection from before the last one is dead.
    cuts: u64,
    accepted: u64,
    open: Vec<Weak<Connection>>,
    /// The last connection that is held for itself, and with it all before.
    frozen: u64,
    turns: u64,
    last: Option<Direction>,
    refusing: bool,
    closing: bool,
}

/// One direction, over all connections.
#[derive(Default)]
struct Lane {
    held: bool,
    bytes: u64,
    /// How many bytes still pass before all connections are cut.
    until_cut: Option<u64>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// [`State::cuts`] when it began.
    cuts: u64,
    /// [`State::accepted`] when it came.
    number: u64,
    last: Mutex<Option<Direction>>,
    shared: Arc<Shared>,
}

/// What goes through the delay line.
struct Parcel {
    due: Instant,
    /// None is the end of the stream.
    bytes: Option<Vec<u8>>,
}

impl Proxy {
    /// To a server on a port of 127.0.0.1, with this delay each way.
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

    /// The delay each way of what comes from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Breaks all connections now, by RST on both sides; what was under way is lost. New ones are accepted.
    pub fn cut(&self) {
        let broken = self.shared.break_all();
        super::poll_until(
            "the proxy's connections are cut",
            Duration::from_secs(10),
            || {
                broken
                    .iter()
                    .all(|connection| connection.strong_count() == 0)
            },
        );
    }

    /// Lets `count` more bytes through in this direction, over all connections, and then closes them all.
    /// These bytes arrive; the end after them is a FIN.
    pub fn cut_after_bytes(&self, direction: Direction, count: u64) {
        self.shared.lock().lane(direction).until_cut = Some(count);
    }

    /// Stops forwarding in one direction, silently: both sides see an open connection on which nothing comes.
    pub fn hold(&self, direction: Direction) {
        self.shared.lock().lane(direction).held = true;
    }

    /// [`hold`](Self::hold) in both directions.
    pub fn hold_both(&self) {
        self.hold(Direction::ToServer);
        self.hold(Direction::ToClient);
    }

    /// Holds the connections that are open now, both ways, and no others: as those are that a machine slept through.
    pub fn freeze(&self) {
        let mut state = self.shared.lock();
        state.frozen = state.accepted;
    }

    /// Forwards again, first what came meanwhile.
    pub fn release(&self) {
        let mut state = self.shared.lock();
        state.frozen = 0;
        for lane in &mut state.lanes {
            lane.held = false;
        }
        self.shared.changed.notify_all();
    }

    /// Whether new connections are closed at once. It does not touch those that are open.
    pub fn refuse(&self, refusing: bool) {
        self.shared.lock().refusing = refusing;
    }

    /// How many connections have come so far, refused ones included.
    pub fn connections(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.shared
            .lock()
            .open
            .iter()
            .filter(|connection| connection.strong_count() > 0)
            .count()
    }

    /// How many bytes have been forwarded in this direction.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.lock().lane(direction).bytes
    }

    /// How often the direction changed within a connection. Two make a round trip that somebody waited for,
    /// unless both sides speak at once, as SSH does with its banners.
    pub fn turns(&self) -> u64 {
        self.shared.lock().turns
    }

    /// Where the last bytes went to, over all connections.
    pub fn last(&self) -> Option<Direction> {
        self.shared.lock().last
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        // Wakes the acceptor up; when it fails there is none to wake.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.shared.break_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, state: &mut State) {
        state.cuts += 1;
        for lane in &mut state.lanes {
            lane.until_cut = None;
        }
        self.changed.notify_all();
    }

    fn break_all(&self) -> Vec<Weak<Connection>> {
        let mut state = self.lock();
        self.cut(&mut state);
        let broken = std::mem::take(&mut state.open);
        for connection in broken.iter().filter_map(Weak::upgrade) {
            connection.break_off();
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
                .and_then(|()| stream.set_write_timeout(Some(LOOK)));
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
            let (line, parcels) = sync_channel(LINE);
            let reader = Arc::clone(&connection);
            thread::spawn(move || reader.read_into(&line, direction));
            let writer = Arc::clone(&connection);
            thread::spawn(move || writer.write_from(&parcels, direction));
        }
    }
}

impl State {
    fn lane(&mut self, direction: Direction) -> &mut Lane {
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
        let mut buffer = vec![0; CHUNK];
        loop {
            // An error ends the stream as its end does: the other side sees a close.
            let count = source.read(&mut buffer).unwrap_or(0);
            let due = Instant::now() + self.arrived(direction, count);
            let bytes = (count > 0).then(|| buffer[..count].to_vec());
            // It fails when the writer is gone, because the connection was cut or its side has closed.
            if line.send(Parcel { due, bytes }).is_err() || count == 0 {
                return;
            }
        }
    }

    /// Counts, and tells the delay of what has just come.
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
                // After a cut a close would say FIN where RST is meant.
                if self.shared.lock().cuts == self.cuts {
                    self.close();
                }
                return;
            }
        }
    }

    /// Writes what may pass; false when the connection is at its end.
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

    /// Waits until a parcel is due and its lane is open: how much of it may pass. None when the connection was cut.
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

    /// Ends both sides; what was written arrives. The threads notice and end.
    fn close(&self) {
        // It fails only on a side that has ended.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    /// Has both sides end by RST once the threads have let go of them.
    fn break_off(&self) {
        for stream in [&self.client, &self.server] {
            let at_once = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            // Both fail only on a side that has ended. Reading alone is shut: shutting all would send a FIN.
            let _ = setsockopt(stream, sockopt::Linger, &at_once);
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}
