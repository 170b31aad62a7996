//! Waits of ten seconds and more, which tests shorten.

use std::sync::LazyLock;
use std::time::Duration;

/// Divides the long waits. For the tests of rsig alone.
const VARIABLE: &str = "RSIG_TEST_CLOCK";

/// A long wait: as given, or shortened where a test says so.
pub fn long(wait: Duration) -> Duration {
    static DIVISOR: LazyLock<u32> = LazyLock::new(|| {
        let value = std::env::var(VARIABLE).ok();
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or(1)
            .max(1)
    });
    wait / *DIVISOR
}
