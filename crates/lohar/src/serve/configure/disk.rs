//! Grows the root file system of a machine whose disk has become larger while it ran.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::boot::ROOT_DEVICE;
use crate::boot::root::{device_bytes, grow_mounted};

/// How long the news of a larger disk may take. It is sent with the restore that comes just
/// before this, and handled by the kernel when it gets to it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often to look.
const TICK: Duration = Duration::from_millis(1);

/// The file system has not grown.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("the root disk has {has} bytes, not {wanted}")]
    Small { has: u64, wanted: u64 },
    #[error("failed to read the size of the root disk")]
    Size(#[source] io::Error),
    #[error("failed to grow the root file system")]
    Grow(#[source] io::Error),
}

/// Waits until the root disk has `wanted` bytes and gives the file system all of them.
pub async fn grow_root(wanted: u64) -> Result<(), DiskError> {
    let name = ROOT_DEVICE.trim_start_matches("/dev/");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let has = device_bytes(name).map_err(DiskError::Size)?;
        if has >= wanted {
            break;
        }
        if Instant::now() >= deadline {
            return Err(DiskError::Small { has, wanted });
        }
        sleep(TICK).await;
    }
    // It writes out the journal, which the other operations need not wait for.
    tokio::task::spawn_blocking(|| grow_mounted(Path::new("/"), Path::new(ROOT_DEVICE)))
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(DiskError::Grow)
}
