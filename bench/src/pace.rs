//! Staying below the daemon's rate limits, by waiting between rounds.
//!
//! The limits are part of what is measured, so they are not turned off. Waiting happens before a
//! round begins, never while a clock runs.

use std::time::{Duration, Instant};

/// A copy of one of the daemon's token buckets, a little poorer than the original.
pub(crate) struct Pace {
    burst: f64,
    per_second: f64,
    tokens: f64,
    counted: Instant,
}

impl Pace {
    /// For `POST /sandboxes`.
    pub(crate) fn of_creates(now: Instant) -> Self {
        Self::new(10, 30, now)
    }

    /// For `POST /sandboxes/:s/exec`.
    pub(crate) fn of_execs(now: Instant) -> Self {
        Self::new(30, 600, now)
    }

    /// For everything else.
    pub(crate) fn of_reads(now: Instant) -> Self {
        Self::new(60, 1200, now)
    }

    fn new(burst: u32, per_minute: u32, now: Instant) -> Self {
        // The original may not be full when this is made, and its clock need not run as ours does:
        // a fifth less of everything.
        let (burst, per_second) = (f64::from(burst) * 0.8, f64::from(per_minute) / 60.0 * 0.8);
        Self { burst, per_second, tokens: burst, counted: now }
    }

    /// Takes `n` tokens at `now`, on credit if need be; how long to wait before using them.
    pub(crate) fn take(&mut self, n: u32, now: Instant) -> Duration {
        let earned = (now - self.counted).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + earned).min(self.burst) - f64::from(n);
        self.counted = now;
        Duration::from_secs_f64((-self.tokens).max(0.0) / self.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_it_takes_time() {
        let start = Instant::now();
        let mut pace = Pace::new(10, 60, start);
        assert_eq!(pace.take(8, start), Duration::ZERO);
        let wait = pace.take(1, start);
        assert!(wait > Duration::from_secs(1), "never faster than the original: {wait:?}");
        assert!(wait < Duration::from_millis(1300), "{wait:?}");
        // The debt is remembered.
        assert!(pace.take(1, start + wait) > Duration::from_secs(1));
    }

    #[test]
    fn resting_fills_it_to_the_brim_only() {
        let start = Instant::now();
        let mut pace = Pace::new(10, 60, start);
        assert!(pace.take(20, start) > Duration::ZERO);
        let later = start + Duration::from_secs(3600);
        assert_eq!(pace.take(8, later), Duration::ZERO);
        assert!(pace.take(1, later) > Duration::ZERO);
    }
}
