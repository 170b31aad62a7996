//! The order of what comes from many hosts: theirs, as long as none keeps the others waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Puts what comes in any order into its own, without waiting for long.
pub struct Turns<T> {
    waiting: BTreeMap<usize, (Instant, T)>,
    /// The first place that has not come yet.
    next: usize,
    /// Places behind that which have been let through.
    ahead: BTreeSet<usize>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            next: 0,
            ahead: BTreeSet::new(),
        }
    }
}

impl<T> Turns<T> {
    /// Takes what has come for a place.
    pub fn put(&mut self, place: usize, item: T, now: Instant) {
        self.waiting.insert(place, (now, item));
    }

    /// The next one: whose turn it is, or the first of those that are there when any has waited long enough.
    pub fn take(&mut self, now: Instant, patience: Duration) -> Option<T> {
        let overdue = self.overdue_at(patience).is_some_and(|at| at <= now);
        let first = self
            .waiting
            .first_entry()
            .filter(|first| overdue || *first.key() <= self.next)?;
        let (place, (_, item)) = first.remove_entry();
        self.ahead.insert(place);
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
        Some(item)
    }

    /// When the first of those that wait has waited long enough.
    pub fn overdue_at(&self, patience: Duration) -> Option<Instant> {
        self.waiting
            .values()
            .map(|(since, _)| *since + patience)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_of_turn_waits_for_a_while() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut turns = Turns::default();
        turns.put(1, "b", start);
        assert_eq!(turns.take(start, second), None);
        turns.put(0, "a", start);
        assert_eq!(
            [
                turns.take(start, second),
                turns.take(start, second),
                turns.take(start, second)
            ],
            [Some("a"), Some("b"), None]
        );
        turns.put(4, "e", start);
        turns.put(3, "d", start + second / 2);
        assert_eq!(
            (
                turns.take(start + second / 2, second),
                turns.overdue_at(second)
            ),
            (None, Some(start + second))
        );
        // One that is overdue takes those along that stand before it.
        assert_eq!(
            [
                turns.take(start + second, second),
                turns.take(start + second, second)
            ],
            [Some("d"), Some("e")]
        );
        turns.put(5, "f", start + second);
        assert_eq!(turns.take(start + second, second), None);
        turns.put(2, "c", start + second);
        assert_eq!(
            [
                turns.take(start + second, second),
                turns.take(start + second, second)
            ],
            [Some("c"), Some("f")]
        );
    }
}
