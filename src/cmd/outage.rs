//! What a wait says of a host that can't be asked for a while, and when it asks again.

use std::time::Duration;

use crate::connection::Backoff;
use crate::error::Failure;

/// How many connections may break one after the other before the user is told.
const QUIET_BREAKS_MAX: u32 = 2;

/// The time in which a host can't be asked, or says nothing of a job.
#[derive(Default)]
pub struct Outage {
    pub had_contact: bool,
    pub failures: u32,
    told: bool,
    backoff: Backoff,
}

impl Outage {
    /// Tells the user once. Gives the pause before the next attempt.
    pub fn lasts(&mut self, failure: &Failure, connected: bool, note: fn(&str)) -> Duration {
        self.had_contact |= connected;
        self.failures += 1;
        // What is over with the next attempt is not worth a message.
        if !self.told && (!connected || self.failures > QUIET_BREAKS_MAX) {
            self.told = true;
            note(&format!("{failure}; still waiting"));
        }
        self.backoff.next()
    }

    /// Tells the user, if the outage was told.
    pub fn end(&mut self, host: &str, note: fn(&str)) {
        if self.told {
            note(&format!("{host}: in contact again"));
        }
        *self = Self {
            had_contact: true,
            ..Self::default()
        };
    }
}
