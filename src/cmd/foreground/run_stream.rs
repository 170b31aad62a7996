//! Passes a foreground job's output on as it arrives.

use std::sync::Arc;
use std::time::Duration;

use super::{ACK_EVERY, Phase, RunContext};
use crate::connection::{PrivateConnection, ShellInput};
use crate::error::Failure;
use crate::job::{EndedBy, State};
use crate::remote::stream::{JobEnd, Runner};
use crate::remote::{Sink, Stream};

/// The streams of a run, over one shell.
pub(super) struct RunStream<'s, 'h, 'a, 'k> {
    pub(super) held: &'h RunContext<'a>,
    pub(super) sink: &'s mut Sink<'k>,
    pub(super) private: Option<&'s PrivateConnection>,
    /// The input of the script that passes the streams on.
    pub(super) input: Option<Arc<ShellInput>>,
    pub(super) forgets: bool,
    pub(super) forgotten: bool,
    /// The script runs.
    pub(super) begun: bool,
    /// The connection before broke, and the user was told.
    pub(super) is_again: bool,
    /// Number of bytes carried, of output and input.
    pub(super) moved: u64,
}

impl Runner for RunStream<'_, '_, '_, '_> {
    fn begun(&mut self) {
        self.begun = true;
        if self.is_again {
            (self.held.note)(&format!("{}: connected again", self.held.destination));
        }
        let Some(input) = self.input.clone() else {
            return;
        };
        if let Some(every) = self.held.heartbeat {
            input.start_heartbeat(every);
        }
        let mut shared = self.held.shared();
        (shared.input, shared.sent, shared.room_asked, shared.told) =
            (Some(input), None, None, false);
        drop(shared);
        self.held.changed.notify_all();
    }

    fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        (self.sink)(stream, bytes)?;
        self.moved += bytes.len() as u64;
        if let Some(private) = self.private {
            private.count_bytes(self.moved);
        }
        let mut shared = self.held.shared();
        match stream {
            Stream::Out => shared.delivered.out += bytes.len() as u64,
            Stream::Err => shared.delivered.err += bytes.len() as u64,
        }
        if shared.delivered.out + shared.delivered.err >= shared.acknowledged + ACK_EVERY {
            self.held.changed.notify_all();
        }
        Ok(())
    }

    fn have(&mut self, total: u64, room: u64) {
        let mut shared = self.held.shared();
        shared.sent = shared.sent.or(Some(total));
        let gone = usize::try_from(total.saturating_sub(shared.has))
            .unwrap_or(usize::MAX)
            .min(shared.kept.len());
        shared.kept.drain(..gone);
        shared.has += gone as u64;
        self.moved += gone as u64;
        shared.room = room;
        drop(shared);
        self.held.changed.notify_all();
    }

    fn unkept(&mut self) {
        let mut shared = self.held.shared();
        if let Phase::Runs(record) = &mut shared.phase
            && !std::mem::replace(&mut record.unkept, true)
            && let Some(caution) = record.caution()
        {
            (self.held.note)(&caution);
        }
    }

    fn finish(&mut self, line: &str, patience: Duration) -> bool {
        let said = self
            .input
            .as_ref()
            .is_none_or(|input| input.finish(line, patience));
        self.forgotten &= said;
        said
    }

    fn ping(&mut self, line: &[u8]) {
        if let Some(input) = &self.input {
            input.try_write(line);
        }
    }

    fn wants_pause(&self) -> bool {
        self.private.is_some_and(PrivateConnection::is_ready)
    }

    fn may_forget(&mut self, end: &JobEnd) -> bool {
        // A job that was ended by its tether is kept, so that its user can find out what happened.
        let is_over = end.state == State::Exited && end.ended_by != Some(EndedBy::Tether);
        self.forgotten = self.forgets && is_over;
        self.forgotten
    }
}
