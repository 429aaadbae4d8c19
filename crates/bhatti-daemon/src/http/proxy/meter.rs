//! When a byte last moved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// A clock that several directions of one conversation set back.
#[derive(Debug)]
pub(in crate::http) struct Meter {
    started: Instant,
    /// Milliseconds after `started`.
    last: AtomicU64,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    pub(in crate::http) fn new() -> Self {
        Self { started: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Something moved.
    pub(in crate::http) fn touch(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }

    /// Resolves when nothing has moved for `limit`.
    pub(in crate::http) async fn quiet_for(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let quiet = self.started.elapsed().saturating_sub(last);
            match limit.checked_sub(quiet) {
                None | Some(Duration::ZERO) => return,
                Some(left) => sleep(left).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_moves_now_and_then_is_not_quiet() {
        let meter = Meter::new();
        let limit = Duration::from_secs(10);
        let started = Instant::now();
        let moving = async {
            for _ in 0..5 {
                tokio::time::advance(Duration::from_secs(9)).await;
                meter.touch();
            }
        };
        tokio::join!(meter.quiet_for(limit), moving);
        assert_eq!(started.elapsed().as_secs(), 55);
    }
}
