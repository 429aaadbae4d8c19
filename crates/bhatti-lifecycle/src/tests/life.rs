//! A daemon's life, which a test can end between any two steps, as `kill -9` would.
//!
//! Every task of a daemon is polled through its [`Life`]. A poll is a step: what a task does
//! between two waits. When the allowed steps are used up, no task gets another one, and all are
//! dropped. What was sent to another thread (a transaction, file operations) is done to its end,
//! as if the daemon had died just after.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio_util::sync::CancellationToken;

/// Shared by all tasks of one daemon. Without a limit it lasts.
#[derive(Clone)]
pub(crate) struct Life {
    left: Arc<AtomicUsize>,
    death: CancellationToken,
}

impl Default for Life {
    fn default() -> Self {
        Self { left: Arc::new(AtomicUsize::new(usize::MAX)), death: CancellationToken::default() }
    }
}

impl Life {
    /// From now on it has so many steps left.
    pub(crate) fn limit(&self, steps: usize) {
        self.left.store(steps, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.death.cancel();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.death.is_cancelled()
    }

    /// Resolves when it is over.
    pub(crate) async fn over(&self) {
        self.death.cancelled().await;
    }

    /// `future`, for as long as this life lasts. `None`: it ended first.
    pub(crate) async fn guard<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let mut death = pin!(self.death.cancelled());
        std::future::poll_fn(|context| {
            if death.as_mut().poll(context).is_ready() || !self.step() {
                return Poll::Ready(None);
            }
            future.as_mut().poll(context).map(Some)
        })
        .await
    }

    fn step(&self) -> bool {
        let one_less = |left: usize| match left {
            usize::MAX => Some(left),
            left => left.checked_sub(1),
        };
        let had = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        if had.is_err() {
            self.end();
        }
        had.is_ok()
    }
}
