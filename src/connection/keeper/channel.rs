//! One channel of the keeper's session, from its opening to its close: the bytes that wait to go in, and what is to be
//! done next.
//!
//! libssh2's rule: a call that could send only a part of its packet owns the session until it is repeated. So every
//! call is an [`Op`] that can be made again with the same arguments.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::memmem;
use nix::poll::PollFd;

use super::relay::{ClientId, Relay};
use super::transport::{Carrier, Transport};
use crate::connection::local::READY;

/// A channel of the connection.
pub type ChannelId = u64;

/// The largest piece that is written at once.
const PIECE: usize = 32 << 10;
/// How much is kept of what an unused shell says.
const NOISE_MAX: usize = 4 << 10;
/// How many scripts a shell runs, and for how long it is kept.
const SCRIPTS_MAX: u32 = 1000;
const AGE_MAX: Duration = Duration::from_secs(600);
/// How long a process may take to answer a probe, and to end once its input has.
const PROBE_MAX: Duration = Duration::from_secs(1);
const END_MAX: Duration = Duration::from_secs(60);
/// A shell that ends sooner than this before its first script is no shell.
const USELESS_MAX: Duration = Duration::from_secs(1);

/// A call of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Open the channel.
    Open,
    /// Set the next variable.
    SetEnv,
    /// Ask for the shell.
    Exec,
    /// Write the first waiting piece.
    Write,
    /// Ask for the first waiting signal.
    Signal,
    /// Send the end of the input.
    SendEof,
    /// Read standard error (true) or standard output.
    Read(bool),
    /// Close the channel.
    Free,
}

/// Where a channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The server has not opened it yet, or its variables are being set.
    Opening,
    /// The server has not answered the request for the shell yet. Input may be sent already.
    Starting,
    /// The shell is there.
    Open,
    /// The shell is done with: what still comes is thrown away until its end of file.
    Draining,
    /// The close is under way.
    Closing,
}

/// A channel.
pub struct ShellChannel {
    carrier: Option<Carrier>,
    /// What the login shell is asked for.
    command: Arc<str>,
    window: u32,
    /// How many variables were set.
    variables_set: usize,
    /// Where it stands.
    pub stage: Stage,
    input: VecDeque<Vec<u8>>,
    /// How much of the first piece the server has.
    written: usize,
    signals: VecDeque<&'static str>,
    /// The end of the input is to be sent.
    closing_input: bool,
    input_closed: bool,
    /// The command that has checked it out.
    pub client: Option<ClientId>,
    /// Since when it has worked for somebody.
    pub given: Option<Instant>,
    /// What its shell prints when it is ready for another script.
    done: Option<Vec<u8>>,
    /// Its script is its last.
    is_last: bool,
    /// The end of what it has printed, as far as it may be the beginning of that.
    tail: Vec<u8>,
    /// What it has said before anybody used it, for the first command: a login may say why it gives no shell.
    noise: Vec<(bool, Vec<u8>)>,
    /// It has said a word since a command had it.
    pub is_proven: bool,
    /// By when it has to be ready again, to answer a probe, or to have ended.
    pub due: Option<Instant>,
    /// How many scripts it has run.
    pub scripts: u32,
    /// Since when it is open, and since when nobody has used it.
    pub opened: Instant,
    pub idle_since: Instant,
    /// The relay that it is.
    pub relay: Option<Relay>,
}

impl ShellChannel {
    /// A channel that is to be opened, on which a server may send `window` bytes ahead of what was read. Its shell is
    /// given `primer` at once.
    pub fn new(command: Arc<str>, window: u32, primer: &[u8]) -> Self {
        let mut channel = Self {
            command,
            window,
            carrier: None,
            variables_set: 0,
            stage: Stage::Opening,
            input: VecDeque::new(),
            written: 0,
            signals: VecDeque::new(),
            closing_input: false,
            input_closed: false,
            client: None,
            given: None,
            done: None,
            is_last: false,
            tail: Vec::new(),
            noise: Vec::new(),
            is_proven: false,
            due: None,
            scripts: 0,
            opened: Instant::now(),
            idle_since: Instant::now(),
            relay: None,
        };
        channel.write(primer);
        channel
    }

    /// Whether it is nobody's, and can be given to a command now or once it is open.
    pub fn is_free(&self) -> bool {
        matches!(self.stage, Stage::Opening | Stage::Starting | Stage::Open)
            && self.client.is_none()
            && self.done.is_none()
            && self.relay.is_none()
            && !self.closing_input
    }

    /// Whether its shell is there.
    pub fn is_there(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Draining)
    }

    /// Whether its shell has yet to print the end of the script of a command that has checked it in.
    pub fn is_returning(&self) -> bool {
        self.stage == Stage::Open && self.due.is_some()
    }

    /// Asks a shell that is a process for a word before it is given to a command. The program in front of it can hang, as
    /// podman-exec(1) does at times when its container is restarted.
    pub fn probe(&mut self) {
        if self.stage == Stage::Open && !self.is_proven {
            self.stage = Stage::Starting;
            self.due = Some(Instant::now() + PROBE_MAX);
            self.write(READY.0);
        }
    }

    /// Closes the input of a process, and says whether it has ended.
    pub fn has_left(&mut self) -> bool {
        self.carrier.as_mut().is_none_or(|carrier| {
            // That of a process can always be closed.
            let _ = carrier.send_eof();
            carrier.has_exited()
        })
    }

    /// Ends a process that does not answer, or does not end.
    pub fn kill(&mut self) {
        self.due = None;
        if let Some(carrier) = &mut self.carrier
            && carrier.kill()
        {
            self.close();
        }
    }

    /// Whether its shell has run too many scripts, or for too long.
    pub fn is_old(&self) -> bool {
        self.scripts >= SCRIPTS_MAX || self.opened.elapsed() >= AGE_MAX
    }

    /// Whether it broke down before it could be used.
    pub fn was_useless(&self) -> bool {
        self.is_free() && self.scripts == 0 && self.opened.elapsed() < USELESS_MAX
    }

    /// A script follows, after which the shell prints `done`; without it, the script is its last.
    pub fn begin_script(&mut self, done: Option<String>) {
        self.is_last = done.is_none();
        (self.done, self.tail) = (done.map(String::into_bytes), Vec::new());
        self.due = None;
    }

    /// Its command wants no more of it: it goes back to the pool, at once or when it is ready.
    pub fn check_in(&mut self, due: Instant) {
        if self.is_last {
            return self.finish();
        }
        (self.client, self.due) = (None, self.done.as_ref().map(|_| due));
    }

    /// Its command has gone: so does a shell whose script has not ended.
    pub fn abandon(&mut self) {
        self.client = None;
        if self.is_last || self.done.is_some() {
            self.finish();
        }
    }

    /// Keeps the first of what it says while it is nobody's.
    pub fn keep_noise(&mut self, error_stream: bool, bytes: &[u8]) {
        let kept: usize = self.noise.iter().map(|(_, bytes)| bytes.len()).sum();
        let room = NOISE_MAX.saturating_sub(kept).min(bytes.len());
        if self.scripts == 0 && room > 0 {
            let bytes = bytes.get(..room).unwrap_or_default().to_vec();
            self.noise.push((error_stream, bytes));
        }
    }

    pub fn take_noise(&mut self) -> Vec<(bool, Vec<u8>)> {
        std::mem::take(&mut self.noise)
    }

    /// Looks for the end of the script in what the shell has printed.
    pub fn hear(&mut self, bytes: &[u8]) {
        let Some(done) = &self.done else { return };
        if self.tail.is_empty() && memchr::memchr(b'\x01', bytes).is_none() {
            return;
        }
        self.tail.extend_from_slice(bytes);
        if memmem::find(&self.tail, done).is_none() {
            let over = self.tail.len().saturating_sub(done.len() - 1);
            self.tail.drain(..over);
            return;
        }
        (self.done, self.due, self.given) = (None, None, None);
        self.tail.clear();
        self.scripts += 1;
        self.idle_since = Instant::now();
    }

    /// Whether it is a relay and no command's any more: it ends only when its job does.
    pub fn is_relay_alone(&self) -> bool {
        self.relay.is_some() && self.client.is_none()
    }

    /// Whether its shell ends in a moment, as far as can be told: it has been given a script less than `short` ago, or its
    /// end is under way.
    pub fn is_about_to_end(&self, short: Duration) -> bool {
        let working = self.relay.is_none()
            && self.done.is_none()
            && self.given.is_some_and(|given| given.elapsed() < short);
        working || matches!(self.stage, Stage::Draining | Stage::Closing)
    }

    /// Queues a command's bytes for the shell. Without a word about the script that they are, it is the last.
    pub fn write_script(&mut self, bytes: &[u8]) {
        self.is_last |= self.done.is_none();
        self.write(bytes);
    }

    /// Queues bytes for the shell.
    pub fn write(&mut self, bytes: &[u8]) {
        self.input.extend(bytes.chunks(PIECE).map(<[u8]>::to_vec));
    }

    /// How many bytes wait to be sent.
    pub fn waiting(&self) -> usize {
        self.input.iter().map(Vec::len).sum()
    }

    /// Queues a signal.
    pub fn signal(&mut self, name: &'static str) {
        self.signals.push_back(name);
    }

    /// Ends the shell: by the end of its input, and by hearing it no more.
    pub fn finish(&mut self) {
        self.closing_input = true;
        (self.client, self.due) = (None, Some(Instant::now() + END_MAX));
        if self.stage == Stage::Open {
            self.stage = Stage::Draining;
        }
    }

    /// What can be done now, in this order. `listen`: somebody takes what is read.
    pub fn to_do(&self, listen: bool) -> Vec<Op> {
        let mut ops = Vec::new();
        match self.stage {
            Stage::Opening if self.carrier.is_some() => return vec![Op::SetEnv],
            Stage::Opening => return vec![Op::Open],
            Stage::Closing => return vec![Op::Free],
            Stage::Starting => ops.push(Op::Exec),
            Stage::Open | Stage::Draining => {}
        }
        if !self.input.is_empty() {
            ops.push(Op::Write);
        } else if self.closing_input && !self.input_closed && self.stage != Stage::Starting {
            ops.push(Op::SendEof);
        }
        if !self.signals.is_empty() && self.stage == Stage::Open {
            ops.push(Op::Signal);
        }
        if self.stage != Stage::Starting && (listen || self.stage == Stage::Draining) {
            ops.extend([Op::Read(false), Op::Read(true)]);
        }
        ops
    }

    /// Whether there is something to read that was taken in already.
    pub fn has_bytes(&self) -> bool {
        self.carrier.as_ref().is_some_and(Carrier::has_bytes)
    }

    /// Takes in what has come for any of the connection's channels, and renews keys.
    pub fn take_in(&self) -> io::Result<()> {
        self.carrier.iter().try_for_each(Carrier::take_in)
    }

    /// Whether bytes were taken in, and can be read now. `listen` as in [`ShellChannel::to_do`].
    pub fn has_more(&self, listen: bool) -> bool {
        self.to_do(listen).contains(&Op::Read(false)) && self.has_bytes()
    }

    /// What to poll for it beside the connection. `listen` as in [`ShellChannel::to_do`].
    pub fn fds(&self, listen: bool) -> impl Iterator<Item = PollFd<'_>> {
        let reads = listen || self.stage != Stage::Open;
        let writes = !self.input.is_empty();
        self.carrier
            .iter()
            .flat_map(move |carrier| carrier.fds(reads, writes))
    }

    /// Makes a call. What was read is in `buffer`, as many bytes as the result says.
    pub fn perform(
        &mut self,
        transport: &Transport,
        op: Op,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        if op == Op::Open {
            self.carrier = Some(transport.open(self.window)?);
            self.leave_opening(transport);
            return Ok(0);
        }
        let Some(channel) = self.carrier.as_mut() else {
            return Err(ErrorKind::NotConnected.into());
        };
        match op {
            Op::Open => Ok(0),
            Op::SetEnv => {
                if let Some(variable) = transport.environment().get(self.variables_set) {
                    channel.set_env(variable)?;
                    self.variables_set += 1;
                }
                self.leave_opening(transport);
                Ok(0)
            }
            Op::Exec => {
                channel.begin(&self.command, buffer)?;
                self.stage = if self.closing_input {
                    Stage::Draining
                } else {
                    (self.due, self.is_proven) = (None, true);
                    Stage::Open
                };
                Ok(0)
            }
            Op::Write => {
                let piece = self
                    .input
                    .front()
                    .and_then(|piece| piece.get(self.written..))
                    .unwrap_or_default();
                let (size, length) = (channel.write(piece)?, piece.len());
                self.written += size;
                if size == length {
                    self.input.pop_front();
                    self.written = 0;
                }
                Ok(size)
            }
            Op::Signal => {
                if let Some(name) = self.signals.front() {
                    channel.signal(name)?;
                    self.signals.pop_front();
                }
                Ok(0)
            }
            Op::SendEof => {
                channel.send_eof()?;
                self.input_closed = true;
                Ok(0)
            }
            Op::Read(error_stream) => channel.read(error_stream, buffer),
            Op::Free => {
                channel.free()?;
                self.carrier = None;
                Ok(0)
            }
        }
    }

    /// It is open: once its variables are set, the shell can be asked for.
    fn leave_opening(&mut self, transport: &Transport) {
        if self.variables_set >= transport.environment().len() {
            self.stage = Stage::Starting;
        }
    }

    /// Whether the shell has said all it ever will. Then the channel can be closed.
    pub fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Draining)
            && self.carrier.as_ref().is_some_and(Carrier::at_end)
    }

    /// Closes the channel, which must have come to its end.
    pub fn close(&mut self) {
        self.stage = Stage::Closing;
        self.client = None;
        self.input.clear();
        self.signals.clear();
    }
}
