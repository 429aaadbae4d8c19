//! Who uses a sandbox right now, and since when nobody does.
//!
//! Every operation that needs the guest holds a [`Pin`] for as long as it lasts. The actor looks
//! at the count before it lets anything sleep, so nothing else has to remember to.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// All pins of one sandbox. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Pins {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when the last pin goes.
    released: Notify,
}

struct State {
    count: usize,
    /// When the last pin went, or when somebody said that there was activity.
    last: Instant,
}

impl Default for State {
    fn default() -> Self {
        Self { count: 0, last: Instant::now() }
    }
}

/// One user of the sandbox, until it is dropped.
pub(crate) struct Pin {
    shared: Arc<Shared>,
}

impl Pins {
    pub(crate) fn pin(&self) -> Pin {
        self.shared.state().count += 1;
        Pin { shared: self.shared.clone() }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.shared.state().count
    }

    /// When somebody last used the sandbox. Meaningless while somebody does.
    pub(crate) fn last_use(&self) -> Instant {
        self.shared.state().last
    }

    /// Notes activity that needed no pin.
    pub(crate) fn touch(&self) {
        self.shared.state().last = Instant::now();
    }

    /// Resolves when the last pin goes; at once if that happened since the last call.
    pub(crate) async fn released(&self) {
        self.shared.released.notified().await;
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Two numbers; nothing panics between them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        self.shared.state().count += 1;
        Self { shared: self.shared.clone() }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.count -= 1;
        state.last = Instant::now();
        if state.count == 0 {
            self.shared.released.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_pin_to_go_says_so() {
        let pins = Pins::default();
        let first = pins.pin();
        let second = first.clone();
        drop(first);
        assert_eq!(pins.count(), 1);
        let waiting = tokio::time::timeout(std::time::Duration::from_secs(1), pins.released());
        assert!(waiting.await.is_err(), "one is left");
        drop(second);
        assert_eq!(pins.last_use(), Instant::now());
        pins.released().await;
        assert_eq!(pins.count(), 0);
    }
}
