//! Scaling of waits of ten seconds or more, so that tests can shorten them.

use std::sync::LazyLock;
use std::time::Duration;

/// Environment variable with the divisor of long waits. Only for rsig's own tests.
const VARIABLE: &str = "RSIG_TEST_CLOCK";

/// Returns `wait`, divided by `RSIG_TEST_CLOCK` if a test sets it.
pub fn scaled(wait: Duration) -> Duration {
    static DIVISOR: LazyLock<u32> = LazyLock::new(|| {
        let value = std::env::var(VARIABLE).ok();
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or(1)
            .max(1)
    });
    wait / *DIVISOR
}
