//! How many may do something at once.

use std::sync::{Condvar, Mutex, PoisonError};

/// Places of which everybody takes one for a while.
pub struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

/// A place that is taken; dropped, it is free again.
pub struct Slot<'a>(&'a Slots);

impl Slots {
    /// So many places.
    pub fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(count),
            freed: Condvar::new(),
        }
    }

    /// Waits for a place.
    pub fn take(&self) -> Slot<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .freed
            .wait_while(free, |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Slot(self)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}
