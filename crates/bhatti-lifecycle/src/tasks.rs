//! One owner of background tasks, so that shutdown waits for all of them.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Owns every background task of a daemon. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tasks {
    stop: CancellationToken,
    tracker: TaskTracker,
    #[cfg(test)]
    pub(crate) life: crate::tests::Life,
}

impl Tasks {
    /// Starts a task; it should end soon after the token fires.
    pub fn spawn<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // It may outlive what started it by far: its lines are no part of that request.
        let span = tracing::info_span!(parent: None, "task", name);
        let future = task(self.stop.child_token());
        #[cfg(test)]
        let future = {
            let life = self.life.clone();
            async move { life.guard(future).await.unwrap_or_default() }
        };
        drop(self.tracker.spawn(future.instrument(span)));
    }

    /// Fires when shutdown begins.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Asks every task to end and waits. `Err` says how many did not in time.
    pub async fn shut_down(self, patience: Duration) -> Result<(), usize> {
        self.stop.cancel();
        self.tracker.close();
        match tokio::time::timeout(patience, self.tracker.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.tracker.len()),
        }
    }
}
