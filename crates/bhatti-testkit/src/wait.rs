//! Waiting for a state, never for a moment.

use std::time::{Duration, Instant};

/// Longer than anything takes on two busy cores under software emulation.
const DEADLINE: Duration = Duration::from_secs(90);
/// Slow enough that a probe through the API stays under its rate limit.
const STEP: Duration = Duration::from_millis(100);

/// The longest a test waits for one thing.
pub const fn deadline() -> Duration {
    DEADLINE
}

/// Waits until `probe` gives a value; panics with `what` at the deadline.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let (started, deadline) = (Instant::now(), deadline());
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(started.elapsed() < deadline, "{what} did not happen within {deadline:?}");
        std::thread::sleep(STEP);
    }
}
