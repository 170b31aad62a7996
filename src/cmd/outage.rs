//! An outage of a host while its jobs are waited for: what the user is told, and when to try again.

use std::time::Duration;

use crate::connection::Backoff;
use crate::error::Failure;

/// Number of connections that may break in a row before the user is told.
const QUIET_BREAKS_MAX: u32 = 2;

/// The time during which a host can't be reached or does not know a job's state.
#[derive(Default)]
pub struct Outage {
    pub had_contact: bool,
    pub failures: u32,
    is_told: bool,
    backoff: Backoff,
}

impl Outage {
    /// Records a failed attempt, and tells the user once. Returns the pause before the next attempt.
    pub fn record_failure(
        &mut self,
        failure: &Failure,
        connected: bool,
        note: fn(&str),
    ) -> Duration {
        self.had_contact |= connected;
        self.failures += 1;
        // An outage that the next attempt may end is not worth a message.
        if !self.is_told && (!connected || self.failures > QUIET_BREAKS_MAX) {
            self.is_told = true;
            note(&format!("{failure}; still waiting"));
        }
        self.backoff.next()
    }

    /// Ends the outage, and tells the user if they were told of it.
    pub fn end(&mut self, host: &str, note: fn(&str)) {
        if self.is_told {
            note(&format!("{host}: in contact again"));
        }
        *self = Self {
            had_contact: true,
            ..Self::default()
        };
    }
}
