//! How many sandboxes strangers may have woken at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bhatti_types::SandboxId;

/// Sandboxes, not requests: all who wait for one wake count once.
const MAX_WAKES: usize = 10;

/// Who waits for which sandbox to wake.
#[derive(Default)]
pub(super) struct Wakes {
    waiting: Waiting,
}

type Waiting = Arc<Mutex<HashMap<SandboxId, usize>>>;

impl Wakes {
    /// Waits with those who wait for `sandbox`, if there is room for another wake.
    pub(super) fn join(&self, sandbox: &SandboxId) -> Option<Waking> {
        let mut waiting = lock(&self.waiting);
        if !waiting.contains_key(sandbox) && waiting.len() >= MAX_WAKES {
            return None;
        }
        *waiting.entry(sandbox.clone()).or_default() += 1;
        Some(Waking { waiting: Arc::clone(&self.waiting), sandbox: sandbox.clone() })
    }
}

/// One who waits, until this is dropped.
pub(super) struct Waking {
    waiting: Waiting,
    sandbox: SandboxId,
}

impl Drop for Waking {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waiting);
        if let Some(count) = waiting.get_mut(&self.sandbox) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.sandbox);
            }
        }
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<SandboxId, usize>> {
    // Nothing in there can be left half changed.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_may_wait_for_each_of_ten() {
        let wakes = Wakes::default();
        let sandboxes: Vec<SandboxId> = (0..11).map(|_| SandboxId::random()).collect();
        let join = |n: usize| wakes.join(&sandboxes[n]);
        let mut waiting: Vec<_> = (0..10).map(|n| join(n).expect("room")).collect();
        waiting.extend((0..100).map(|_| join(3).expect("it is being woken")));
        assert!(join(10).is_none());
        waiting.remove(0);
        assert!(join(10).is_some());
        drop(waiting);
        assert!(lock(&wakes.waiting).is_empty());
    }
}
