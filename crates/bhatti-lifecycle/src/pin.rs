//! Who uses a sandbox right now, and since when nobody does.
//!
//! Every operation that needs the guest holds a [`Pin`] for as long as it lasts. The actor looks
//! at the count before it lets anything sleep, so nothing else has to remember to.
//!
//! While the guest answers and its actor waits for something to do, the [`Door`] is open: who wants a
//! pin then takes it without asking the actor. It is closed before the actor does anything, so what
//! the actor counts stays true for as long as that takes.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::dial::Dialer;

/// All pins of one sandbox. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Pins {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when the last pin goes, if somebody has asked.
    released: Notify,
}

struct State {
    count: usize,
    /// When the last pin went, or when somebody said that there was activity.
    last: Instant,
    /// Somebody has found it in use.
    awaited: bool,
    /// Leads to the guest, while the door is open.
    way: Option<Dialer>,
}

impl Default for State {
    fn default() -> Self {
        Self { count: 0, last: Instant::now(), awaited: false, way: None }
    }
}

/// Open until this is dropped.
pub(crate) struct Door<'a>(&'a Pins);

impl Drop for Door<'_> {
    fn drop(&mut self) {
        self.0.shared.state().way = None;
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

    /// Lets in whoever comes, to the guest that `way` leads to.
    pub(crate) fn open(&self, way: Dialer) -> Door<'_> {
        self.shared.state().way = Some(way);
        Door(self)
    }

    /// Goes in, if the door is open and the guest is there.
    pub(crate) fn enter(&self) -> Option<(Dialer, Pin)> {
        let mut state = self.shared.state();
        let way = state.way.clone().filter(|way| !way.guest().is_gone())?;
        state.count += 1;
        drop(state);
        Some((way, Pin { shared: self.shared.clone() }))
    }

    /// Whether somebody uses the sandbox. If so, [`Pins::released`] tells when nobody does any more.
    pub(crate) fn in_use(&self) -> bool {
        let mut state = self.shared.state();
        state.awaited = state.count > 0;
        state.awaited
    }

    /// When somebody last used the sandbox. Meaningless while somebody does.
    pub(crate) fn last_use(&self) -> Instant {
        self.shared.state().last
    }

    /// Notes activity that needed no pin.
    pub(crate) fn touch(&self) {
        self.shared.state().last = Instant::now();
    }

    /// Resolves when the last pin goes of a sandbox that was found [in use](Pins::in_use); at once if
    /// that has happened and nobody was told.
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
        if state.count == 0 && std::mem::take(&mut state.awaited) {
            self.shared.released.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_pin_to_go_says_so_to_who_asked() {
        let pins = Pins::default();
        let wait = || timeout(Duration::from_secs(1), pins.released());
        let first = pins.pin();
        let second = first.clone();
        assert!(pins.in_use());
        drop(first);
        assert!(pins.in_use() && wait().await.is_err(), "one is left");
        drop(second);
        assert_eq!(pins.last_use(), Instant::now());
        wait().await.expect("told, also later");
        assert!(!pins.in_use());
        drop(pins.pin());
        assert!(wait().await.is_err(), "nobody has seen that one");
    }
}
