//! Waiting for a state, never for a moment.

use std::time::{Duration, Instant};

/// Longer than anything takes on two busy cores under software emulation.
const DEADLINE: Duration = Duration::from_secs(90);
/// Slow enough that a probe through the API stays under its rate limit.
const STEP: Duration = Duration::from_millis(100);

/// The longest a test waits for one thing: 90 s, as many times as `BHATTI_TEST_PATIENCE` says. On a
/// host that is itself emulated, everything takes ten times as long.
pub fn deadline() -> Duration {
    let times = std::env::var("BHATTI_TEST_PATIENCE").ok();
    DEADLINE * times.map_or(1, |text| text.parse().expect("BHATTI_TEST_PATIENCE is a number"))
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
