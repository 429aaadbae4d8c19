//! Puts everything that was written to files on the disk.

use std::sync::Arc;

use bhatti_wire::message::{ErrorKind, Failure};

use crate::guest::Guest;

/// The disks were not written out.
#[derive(Debug, thiserror::Error)]
pub enum QuiesceError {
    #[error("the agent is powering off")]
    Ending,
    #[error("the thread that writes the disks out ended early")]
    Thread(#[source] tokio::task::JoinError),
}

impl QuiesceError {
    /// As the host sees it.
    pub fn failure(&self) -> Failure {
        super::failure(ErrorKind::Other, self)
    }
}

/// Returns when what was written before the call is on the disks.
///
/// One at a time: somebody's network file system may hold a `sync` up for ever, and a thread
/// with it. The later ones then wait without one, and their hosts give up.
pub async fn quiesce(guest: &Guest) -> Result<(), QuiesceError> {
    let turn = Arc::clone(&guest.quiesce).acquire_owned().await;
    let turn = turn.map_err(|_| QuiesceError::Ending)?;
    let syncing = tokio::task::spawn_blocking(move || {
        nix::unistd::sync();
        drop(turn);
    });
    syncing.await.map_err(QuiesceError::Thread)
}
