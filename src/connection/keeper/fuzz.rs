//! A keeper without a host, for the fuzz targets, which make up what commands and shells send to it.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channel::{ShellChannel, Stage};
use super::client_stream::Client;
use super::protocol::{self, FRAME_MAX, Frame, Reply, Request, VERSION};
use super::quirks::{breaks_on_open, refuses_signals};
use super::relay::{ClientId, Relay, Trust};
use super::server::Keeper;
use super::transport::Transport;
use crate::connection::Primer;
use crate::connection::local::Launcher;
use crate::host::{Connect, Destination};

/// The job whose relay is held from the start, and the word that begins the relay's lines.
const JOB: &str = "0123abcd";
const WORD: &str = "W";
/// Maximum number of commands.
const COMMANDS_MAX: usize = 4;

/// Decodes what one side sends, in pieces of `size` bytes. Returns the frames, encoded again, and whether an invalid
/// one ended them.
fn decode_all<T: DeserializeOwned + Serialize>(bytes: &[u8], size: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut buffer, mut all) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(size) {
        buffer.extend_from_slice(piece);
        loop {
            match protocol::take::<T>(&mut buffer) {
                Ok(Some(frame)) => all.push(encode_again(frame)),
                Ok(None) => break,
                Err(_) => return (all, true),
            }
        }
        assert!(buffer.len() < FRAME_MAX + 5 + size);
    }
    (all, false)
}

/// Encodes a frame again. Checks that a message does not change when it is encoded and decoded.
fn encode_again<T: DeserializeOwned + Serialize>(frame: Frame<T>) -> Vec<u8> {
    match frame {
        Frame::Bytes(bytes) => protocol::bytes(false, &bytes),
        Frame::ErrorBytes(bytes) => protocol::bytes(true, &bytes),
        Frame::Message(message) => {
            let encoded = protocol::message(&message);
            let mut buffer = encoded.clone();
            if encoded.len() <= FRAME_MAX {
                let again = protocol::take::<T>(&mut buffer).expect("a message");
                let Some(Frame::Message(again)) = again else {
                    panic!("no message");
                };
                assert_eq!(protocol::message(&again), encoded);
                assert!(buffer.is_empty());
            }
            encoded
        }
    }
}

/// Decodes bytes as requests and as replies, in one piece and in several.
pub fn frames(data: &[u8]) {
    for size in [1, 7] {
        let all = data.len().max(1);
        assert_eq!(
            decode_all::<Request>(data, size),
            decode_all::<Request>(data, all)
        );
        assert_eq!(
            decode_all::<Reply>(data, size),
            decode_all::<Reply>(data, all)
        );
    }
    let mut stream = data;
    let mut buffer = Vec::new();
    while let Ok(frame) = protocol::read::<Reply>(&mut stream, &mut buffer) {
        drop(encode_again(frame));
    }
    let banner = String::from_utf8_lossy(data);
    let _ = (breaks_on_open(&banner), refuses_signals(&banner, "root"));
}

/// Runs steps of one keeper and its commands. A step is its kind, its recipient, the number of bytes that follow, and
/// these bytes.
pub fn steps(mut data: &[u8]) {
    let mut harness = Harness::begin();
    while let [step, whom, length, rest @ ..] = data {
        let (bytes, remaining) = rest.split_at(usize::from(*length).min(rest.len()));
        harness.step(*step, *whom, bytes);
        data = remaining;
    }
    harness.end();
}

/// The keeper, and the commands' ends of its sockets.
struct Harness {
    keeper: Keeper,
    commands: Vec<(ClientId, UnixStream, Vec<u8>)>,
    now: Instant,
}

impl Harness {
    fn begin() -> Self {
        thread_local! {
            static SOCKET: (tempfile::TempDir, UnixListener) = {
                let directory = tempfile::tempdir().expect("a directory");
                let listener = UnixListener::bind(directory.path().join("s")).expect("a socket");
                (directory, listener)
            };
        }
        let destination = Destination {
            host: "local".parse().expect("a host"),
            connect: Connect::default(),
        };
        let transport = Launcher::new(&destination, None).map(Transport::Processes);
        let (socket, listener) = SOCKET.with(|(directory, listener)| {
            let path = directory.path().join("s");
            (path, listener.try_clone().expect("a descriptor"))
        });
        let primer = Primer {
            text: b"primer\n".to_vec(),
            mark: 7,
        };
        // A keeper that is told to end removes its socket.
        if !socket.exists() {
            drop(UnixListener::bind(&socket));
        }
        let keeper = Keeper::new(
            &destination,
            transport.expect("a directory to be in"),
            listener,
            &socket,
            Duration::from_secs(600),
            primer,
        );
        let mut harness = Self {
            keeper: keeper.expect("a keeper"),
            commands: Vec::new(),
            now: Instant::now(),
        };
        let mut channel = ShellChannel::new("exec /bin/sh -s".into(), 1 << 18, b"");
        let relay = Relay::new(JOB.into(), WORD.into(), Trust::Assumed, harness.now);
        (channel.relay, channel.stage) = (Some(relay), Stage::Open);
        harness.keeper.channels.insert(1, channel);
        harness.keeper.next_id = 1;
        harness.greet();
        harness
    }

    /// Connects one more command, which sends its greeting.
    fn greet(&mut self) {
        let (own, mut other) = UnixStream::pair().expect("a pair of sockets");
        own.set_nonblocking(true).expect("a socket");
        other.set_nonblocking(true).expect("a socket");
        self.keeper.next_id += 1;
        let id = self.keeper.next_id;
        let client = Client {
            stream: own,
            input: Vec::new(),
            output: VecDeque::new(),
            greeted: false,
            connected_at: self.now,
            channel: None,
            waiting_since: None,
            was_told_wanted: false,
            heartbeat: None,
            is_closing: false,
        };
        self.keeper.clients.insert(id, client);
        let hello = protocol::message(&Request::Hello {
            version: VERSION.to_owned(),
        });
        drop(other.write_all(&hello));
        self.commands.push((id, other, Vec::new()));
    }

    fn step(&mut self, step: u8, whom: u8, bytes: &[u8]) {
        let command = usize::from(whom) % self.commands.len().max(1);
        let mut say = |bytes: &[u8]| {
            if let Some((_, stream, _)) = self.commands.get_mut(command) {
                // Fails if the keeper has disconnected the command.
                drop(stream.write_all(bytes));
            }
        };
        match step % 8 {
            0 => say(bytes),
            1 => {
                let head = u32::try_from(bytes.len())
                    .expect("a short one")
                    .to_le_bytes();
                say(&[&head[..], &[0], bytes].concat());
            }
            2 => say(&protocol::bytes(whom & 0x80 != 0, bytes)),
            3 => self.shell_says(whom, bytes),
            4 => self.advance(bytes),
            5 => self.assign(),
            6 if self.commands.len() < COMMANDS_MAX => self.greet(),
            _ => {
                if let Some((id, ..)) = self.commands.get(command) {
                    self.keeper.drop_client(*id);
                }
            }
        }
        for id in self.keeper.clients.keys().copied().collect::<Vec<_>>() {
            self.keeper.serve_client(id, self.now);
        }
        self.read_replies();
    }

    fn shell_says(&mut self, whom: u8, bytes: &[u8]) {
        let ids: Vec<u64> = self.keeper.channels.keys().copied().collect();
        let Some(id) = ids.get(usize::from(whom) % ids.len().max(1)) else {
            return;
        };
        let Some(channel) = self.keeper.channels.get_mut(id) else {
            return;
        };
        channel.scan_output(bytes);
        channel.buffer_noise(whom & 0x80 != 0, bytes);
        let actions = channel
            .relay
            .as_mut()
            .map(|relay| relay.receive(bytes, self.now));
        self.keeper.act(*id, actions.unwrap_or_default());
    }

    fn advance(&mut self, bytes: &[u8]) {
        self.now += Duration::from_millis(bytes.len() as u64 * 100);
        self.keeper.tick(self.now);
    }

    /// Gives shells to the commands that wait. All shells start at once.
    fn assign(&mut self) {
        self.keeper.assign();
        for channel in self.keeper.channels.values_mut() {
            if matches!(channel.stage, Stage::Opening | Stage::Starting) {
                channel.stage = Stage::Open;
                channel.is_proven = true;
            }
        }
        self.keeper.assign();
    }

    /// Reads the replies. Every command must be able to decode them.
    fn read_replies(&mut self) {
        for (_, stream, buffer) in &mut self.commands {
            let mut chunk = [0; 4096];
            while let Ok(size @ 1..) = stream.read(&mut chunk) {
                buffer.extend_from_slice(&chunk[..size]);
            }
            while let Some(frame) = protocol::take::<Reply>(buffer).expect("a reply") {
                drop(encode_again(frame));
            }
        }
    }

    fn end(mut self) {
        let status = self.keeper.status();
        drop(protocol::message(&Reply::Status(status)));
        self.keeper.fail_clients("it broke");
        for client in self.keeper.clients.values_mut() {
            drop(client.flush());
        }
        self.read_replies();
    }
}
