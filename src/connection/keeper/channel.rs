//! One channel of the keeper's session, from open to close: the bytes queued for its shell, and which call comes next.
//!
//! libssh2's rule: a call that could send only part of its packet must be repeated before any other call on the
//! session. So every call is an [`Op`], which can be repeated with the same arguments.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::memmem;
use nix::poll::PollFd;

use super::relay::{ClientId, Relay};
use super::transport::{ShellTransport, Transport};
use crate::connection::local::READY;

pub type ChannelId = u64;

/// Maximum number of bytes written by one call.
const WRITE_MAX: usize = 32 << 10;
/// Maximum number of bytes kept of what a shell prints before its first use.
const NOISE_MAX: usize = 4 << 10;
/// A shell is closed after this many scripts, or at this age.
const SCRIPTS_MAX: u32 = 1000;
const AGE_MAX: Duration = Duration::from_secs(600);
/// Maximum time for a process to answer a probe, and to end after its input was closed.
const PROBE_MAX: Duration = Duration::from_secs(1);
const END_MAX: Duration = Duration::from_secs(60);
/// A channel that ends before its first script, and within this time of being created, gave no usable shell.
const USELESS_MAX: Duration = Duration::from_secs(1);

/// A call of libssh2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Open the channel.
    Open,
    /// Set the next environment variable.
    SetEnv,
    /// Request the shell.
    Exec,
    /// Write the first queued piece of input.
    Write,
    /// Request the first queued signal.
    Signal,
    /// Send end of file.
    SendEof,
    /// Read standard error (true) or standard output.
    Read(bool),
    /// Close the channel.
    Free,
}

/// The state of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The server has not opened it yet, or its environment variables are being set.
    Opening,
    /// The server has not answered the request for the shell yet. Input may already be sent.
    Starting,
    /// The shell is running.
    Open,
    /// The shell is no longer needed: its output is discarded until end of file.
    Draining,
    /// The channel is being closed.
    Closing,
}

/// A channel and its shell, or a child process in its place.
pub struct ShellChannel {
    carrier: Option<ShellTransport>,
    /// The command line that the login shell is asked to run.
    command: Arc<str>,
    window: u32,
    /// Number of environment variables set so far.
    variables_set: usize,
    pub stage: Stage,
    input: VecDeque<Vec<u8>>,
    /// Bytes of the first piece of `input` that were written.
    written: usize,
    signals: VecDeque<&'static str>,
    /// End of file is to be sent after `input`.
    closing_input: bool,
    input_closed: bool,
    /// The command that has checked it out.
    pub client: Option<ClientId>,
    /// When it was checked out. Cleared when its script has ended.
    pub checked_out_at: Option<Instant>,
    /// What the shell prints when it is ready for another script.
    done: Option<Vec<u8>>,
    /// The current script is the shell's last.
    is_last: bool,
    /// The end of the shell's output, as far as it may be the beginning of `done`.
    tail: Vec<u8>,
    /// What the shell printed before its first use, for the first command: a login may print why it gives no shell.
    /// True marks standard error.
    early_output: Vec<(bool, Vec<u8>)>,
    /// It has started, or answered a probe, since it was last checked out.
    pub is_proven: bool,
    /// Deadline to be ready again, to answer a probe, or to have ended.
    pub due: Option<Instant>,
    /// Number of scripts it has run.
    pub scripts: u32,
    /// When it was created, and since when it has been unused.
    pub opened: Instant,
    pub idle_since: Instant,
    /// The relay that runs on it, if any.
    pub relay: Option<Relay>,
}

impl ShellChannel {
    /// A channel that is not opened yet, with a receive window of `window` bytes. `primer` is the first input of its
    /// shell.
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
            checked_out_at: None,
            done: None,
            is_last: false,
            tail: Vec::new(),
            early_output: Vec::new(),
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

    /// Whether it is unused, and can be given to a command now or once it is open.
    pub fn is_free(&self) -> bool {
        matches!(self.stage, Stage::Opening | Stage::Starting | Stage::Open)
            && self.client.is_none()
            && self.done.is_none()
            && self.relay.is_none()
            && !self.closing_input
    }

    /// Whether its shell is running.
    pub fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Draining)
    }

    /// Whether its command has checked it in, but its script has not ended yet.
    pub fn is_returning(&self) -> bool {
        self.stage == Stage::Open && self.due.is_some()
    }

    /// Makes a shell that is a process answer before it is given to a command. The program in front of it can hang, as
    /// podman-exec(1) sometimes does when its container is restarted.
    pub fn probe(&mut self) {
        if self.stage == Stage::Open && !self.is_proven {
            self.stage = Stage::Starting;
            self.due = Some(Instant::now() + PROBE_MAX);
            self.write(READY.0);
        }
    }

    /// Closes the input of a process. Returns whether the process has exited.
    pub fn close_and_check_exit(&mut self) -> bool {
        self.carrier.as_mut().is_none_or(|carrier| {
            // Closing the input of a process never fails.
            let _ = carrier.send_eof();
            carrier.has_exited()
        })
    }

    /// Kills a process that does not answer, or does not end.
    pub fn kill(&mut self) {
        self.due = None;
        if let Some(carrier) = &mut self.carrier
            && carrier.kill()
        {
            self.close();
        }
    }

    /// Whether its shell has run too many scripts, or is too old.
    pub fn is_old(&self) -> bool {
        self.scripts >= SCRIPTS_MAX || self.opened.elapsed() >= AGE_MAX
    }

    /// Whether it failed before it could be used.
    pub fn failed_before_use(&self) -> bool {
        self.is_free() && self.scripts == 0 && self.opened.elapsed() < USELESS_MAX
    }

    /// Announces a script, after which the shell prints `done`. Without `done`, the script is the shell's last.
    pub fn begin_script(&mut self, done: Option<String>) {
        self.is_last = done.is_none();
        (self.done, self.tail) = (done.map(String::into_bytes), Vec::new());
        self.due = None;
    }

    /// Returns the shell to the pool, at once or when its script has ended, by `due` at the latest.
    pub fn check_in(&mut self, due: Instant) {
        if self.is_last {
            return self.finish();
        }
        (self.client, self.due) = (None, self.done.as_ref().map(|_| due));
    }

    /// Handles the loss of the command. A shell whose script has not ended is closed.
    pub fn abandon(&mut self) {
        self.client = None;
        if self.is_last || self.done.is_some() {
            self.finish();
        }
    }

    /// Keeps the beginning of what the shell prints before its first use.
    pub fn buffer_noise(&mut self, error_stream: bool, bytes: &[u8]) {
        let kept: usize = self.early_output.iter().map(|(_, bytes)| bytes.len()).sum();
        let room = NOISE_MAX.saturating_sub(kept).min(bytes.len());
        if self.scripts == 0 && room > 0 {
            let bytes = bytes.get(..room).unwrap_or_default().to_vec();
            self.early_output.push((error_stream, bytes));
        }
    }

    pub fn take_noise(&mut self) -> Vec<(bool, Vec<u8>)> {
        std::mem::take(&mut self.early_output)
    }

    /// Looks for the end of the script in the shell's output.
    pub fn scan_output(&mut self, bytes: &[u8]) {
        let Some(done) = &self.done else { return };
        if self.tail.is_empty() && memchr::memchr(b'\x01', bytes).is_none() {
            return;
        }
        self.tail.extend_from_slice(bytes);
        if memmem::find(&self.tail, done).is_none() {
            let excess = self.tail.len().saturating_sub(done.len() - 1);
            self.tail.drain(..excess);
            return;
        }
        (self.done, self.due, self.checked_out_at) = (None, None, None);
        self.tail.clear();
        self.scripts += 1;
        self.idle_since = Instant::now();
    }

    /// Whether it is a relay that no command uses any more: it ends only when its job does.
    pub fn is_unattended_relay(&self) -> bool {
        self.relay.is_some() && self.client.is_none()
    }

    /// Whether its shell is expected to end in a moment: it was given a script less than `short` ago, or is already
    /// ending.
    pub fn is_about_to_end(&self, short: Duration) -> bool {
        let working = self.relay.is_none()
            && self.done.is_none()
            && self
                .checked_out_at
                .is_some_and(|given| given.elapsed() < short);
        working
            || self.relay.as_ref().is_some_and(Relay::has_ended)
            || matches!(self.stage, Stage::Draining | Stage::Closing)
    }

    /// Queues a command's bytes for the shell. If they were not announced with a `done`, they are its last script.
    pub fn write_script(&mut self, bytes: &[u8]) {
        self.is_last |= self.done.is_none();
        self.write(bytes);
    }

    /// Queues bytes for the shell.
    pub fn write(&mut self, bytes: &[u8]) {
        self.input
            .extend(bytes.chunks(WRITE_MAX).map(<[u8]>::to_vec));
    }

    /// Number of bytes queued for the shell.
    pub fn queued_bytes(&self) -> usize {
        self.input.iter().map(Vec::len).sum()
    }

    /// Queues a signal.
    pub fn signal(&mut self, name: &'static str) {
        self.signals.push_back(name);
    }

    /// Ends the shell: sends end of file after the queued bytes, and discards the output from now on.
    pub fn finish(&mut self) {
        self.closing_input = true;
        (self.client, self.due) = (None, Some(Instant::now() + END_MAX));
        if self.stage == Stage::Open {
            self.stage = Stage::Draining;
        }
    }

    /// The calls to make now, in this order. `listen`: output that is read can be passed on.
    pub fn next_ops(&self, listen: bool) -> Vec<Op> {
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

    /// Whether the library has received bytes of this channel that were not read yet.
    pub fn has_bytes(&self) -> bool {
        self.carrier.as_ref().is_some_and(ShellTransport::has_bytes)
    }

    /// Receives what has arrived for all channels of the connection, and continues a key exchange.
    pub fn receive_all(&self) -> io::Result<()> {
        self.carrier
            .iter()
            .try_for_each(ShellTransport::receive_all)
    }

    /// Whether the library has received bytes that can be read now. `listen` as in [`ShellChannel::next_ops`].
    pub fn has_more(&self, listen: bool) -> bool {
        self.next_ops(listen).contains(&Op::Read(false)) && self.has_bytes()
    }

    /// What to poll for it in addition to the connection. `listen` as in [`ShellChannel::next_ops`].
    pub fn fds(&self, listen: bool) -> impl Iterator<Item = PollFd<'_>> {
        let reads = listen || self.stage != Stage::Open;
        let writes = !self.input.is_empty();
        self.carrier
            .iter()
            .flat_map(move |carrier| carrier.fds(reads, writes))
    }

    /// Makes a call. After a read, the result is the number of bytes in `buffer`.
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

    /// Lets the shell be requested, once the channel is open and all environment variables are set.
    fn leave_opening(&mut self, transport: &Transport) {
        if self.variables_set >= transport.environment().len() {
            self.stage = Stage::Starting;
        }
    }

    /// Whether all output was read up to end of file. Then the channel can be closed.
    pub fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Draining)
            && self.carrier.as_ref().is_some_and(ShellTransport::at_end)
    }

    /// Starts to close a channel that has ended, broke, or whose process was killed.
    pub fn close(&mut self) {
        self.stage = Stage::Closing;
        self.client = None;
        self.input.clear();
        self.signals.clear();
    }
}
