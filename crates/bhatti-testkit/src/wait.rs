//! Waiting for a state, never for a moment.

use std::time::{Duration, Instant};

/// Longer than anything takes on two busy cores under software emulation.
pub const DEADLINE: Duration = Duration::from_secs(90);
/// Slow enough that a probe through the API stays under its rate limit.
const STEP: Duration = Duration::from_millis(100);

/// Waits until `probe` gives a value; panics with `what` at the deadline.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "{what} did not happen within {DEADLINE:?}");
        std::thread::sleep(STEP);
    }
}
