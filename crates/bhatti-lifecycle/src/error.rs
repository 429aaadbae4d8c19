//! What the daemon answers, as types. Texts are the contract's; statuses are the daemon's.

use bhatti_engine::EngineError;
use bhatti_guest_client::GuestError;
use bhatti_storage::{DiskError, ImageError};
use bhatti_store::StoreError;

use crate::Denied;

/// An operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Missing, or somebody else's: the two look the same.
    #[error("sandbox {0:?} not found")]
    NoSandbox(String),
    #[error("image {name:?} not found; there is: {}", .available.join(", "))]
    NoImage { name: String, available: Vec<String> },
    /// The image's file is gone or is something else.
    #[error("image {name:?} cannot be used")]
    BadImage { name: String, source: ImageError },
    /// The request makes no sense; the text says why.
    #[error("{0}")]
    Invalid(String),
    #[error(
        "sandbox {name:?} already exists with a different configuration: {}",
        .differences.join("; ")
    )]
    Exists { name: String, differences: Vec<String> },
    #[error("name {0:?} is already in use")]
    NameTaken(String),
    #[error("snapshot {0:?} not found")]
    NoSnapshot(String),
    #[error("snapshot {0:?} already exists — delete first")]
    SnapshotExists(String),
    #[error("snapshot limit reached ({used}/{max})")]
    SnapshotQuota { used: u32, max: u32 },
    /// There is nothing to save: it does not run, and was not frozen.
    #[error("sandbox {0:?} is not running")]
    NotRunning(String),
    #[error("sandbox limit reached ({used}/{max})")]
    Quota { used: u32, max: u32 },
    #[error("IP pool exhausted (253 VMs per user)")]
    NoAddress,
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The host's disk has no room.
    #[error("no space left on the host's disk: {free_mib} MiB free, {needed_mib} MiB needed")]
    HostFull { free_mib: u64, needed_mib: u64 },
    #[error("no space left on the host's disk")]
    StoreFull(#[source] StoreError),
    /// The same, found out on the way.
    #[error("no space left on the host's disk")]
    Full(#[source] WakeError),
    /// The guest could not be made ready.
    #[error("wake sandbox")]
    Wake(#[source] WakeError),
    /// Something else could not be done with a sandbox or a snapshot; `doing` says what.
    #[error("{doing}")]
    Failed {
        doing: &'static str,
        #[source]
        cause: WakeError,
    },
    /// Making a new sandbox failed after the request itself was found good.
    #[error("sandbox did not start")]
    Create(#[source] WakeError),
    /// The guest refused or broke.
    #[error("the guest could not do it")]
    Guest(#[source] GuestError),
    /// The daemon is going down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    #[error("store failed")]
    Store(#[source] StoreError),
    #[error("data directory failed")]
    Disk(#[source] DiskError),
    #[error("network failed")]
    Network(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("engine failed")]
    Engine(#[source] EngineError),
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSandbox(id) => Self::NoSandbox(id),
            StoreError::NameTaken(name) => Self::NameTaken(name),
            full @ StoreError::Full(_) => Self::StoreFull(full),
            other => Self::Store(other),
        }
    }
}

/// Why a guest is not ready for work.
#[derive(Debug, thiserror::Error)]
pub enum WakeError {
    #[error("engine failed")]
    Engine(#[source] EngineError),
    #[error("image {name:?} cannot be used")]
    Image { name: String, source: ImageError },
    #[error("image {0:?} is gone")]
    NoImage(String),
    #[error("network failed")]
    Network(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("store failed")]
    Store(#[from] StoreError),
    #[error("data directory failed")]
    Disk(#[from] DiskError),
    /// The machine ended before the agent answered; `console` is the end of what it printed.
    #[error("the machine ended before its agent answered ({how}){}", tail(.console))]
    Died { how: String, console: String },
    #[error("the agent did not answer within {seconds} s{}", tail(.console))]
    Silent { seconds: u64, console: String },
    #[error("guest refused")]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// The actor is gone: the sandbox was destroyed meanwhile.
    #[error("sandbox is gone")]
    Gone,
    /// It stays as it is, with all it could wake from. The cause says what is wrong.
    #[error(
        "sandbox {name:?} could not be woken as it was: {} — use 'bhatti start --force' to start \
         it from its disk or from an older state", .cause.public()
    )]
    NotAsItWas { name: bhatti_types::Name, cause: Box<WakeError> },
    /// It was deleted after it had been found.
    #[error("snapshot {0:?} was deleted meanwhile")]
    SnapshotGone(bhatti_types::Name),
    /// A snapshot was asked of what has no memory.
    #[error("sandbox is not running, and was not frozen: there is no memory to save")]
    NothingToSave,
    #[error("an internal record is unreadable: {0}")]
    Record(String),
}

impl WakeError {
    /// True if the request could not have worked, whatever the host does.
    pub fn is_the_requests(&self) -> bool {
        matches!(
            self,
            Self::Guest(
                GuestError::Invalid(_)
                    | GuestError::NotFound(_)
                    | GuestError::NoSpace(_)
                    | GuestError::TooLarge(_)
                    | GuestError::Denied(_)
            )
        )
    }

    /// True if what is to be continued is whole and another engine's or host's.
    pub fn is_foreign(&self) -> bool {
        match self {
            Self::NotAsItWas { cause, .. } => cause.is_foreign(),
            other => matches!(other, Self::Engine(EngineError::Foreign { .. })),
        }
    }

    /// True if the guest, not the host, is why it failed: nothing for an operator to look at.
    pub fn is_the_guests(&self) -> bool {
        match self {
            Self::NotAsItWas { cause, .. } => cause.is_the_guests(),
            other => matches!(other, Self::Guest(_) | Self::Died { .. } | Self::Silent { .. }),
        }
    }

    /// True if what failed needs room on the host's disk, and there is none.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::Store(StoreError::Full(_)) | Self::Disk(DiskError::Full { .. }) => true,
            Self::Engine(EngineError::NoSpace { .. }) => true,
            Self::Engine(EngineError::File { source, .. }) => {
                matches!(source.kind(), StorageFull | QuotaExceeded)
            }
            _ => false,
        }
    }

    /// The sentence a client may read: what failed, without the paths and system errors below.
    pub fn public(&self) -> String {
        match self {
            full if full.is_full()
                && !matches!(full, Self::Engine(EngineError::NoSpace { .. })) =>
            {
                "no space left on the host's disk".to_owned()
            }
            // Command lines and paths are the operator's business.
            Self::Engine(EngineError::DiedEarly { .. } | EngineError::Confine { .. }) => {
                "the machine could not be started".to_owned()
            }
            Self::Engine(EngineError::File { .. }) => {
                "a file of the machine could not be used".to_owned()
            }
            Self::Engine(EngineError::Control { .. }) => {
                "the machine did not do as it was told".to_owned()
            }
            Self::Engine(engine) => engine.to_string(),
            Self::Store(_) | Self::Disk(_) | Self::Record(_) => "internal error".to_owned(),
            Self::Image { .. } | Self::Guest(_) => chain(self),
            other => other.to_string(),
        }
    }
}

fn tail(console: &str) -> String {
    let console = console.trim();
    if console.is_empty() { String::new() } else { format!("; console: {console}") }
}

/// Joins an error with its causes. The only place that walks the chain.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_wherever_it_was_met() {
        let io = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let path = camino::Utf8PathBuf::from("/secret");
        let file = EngineError::File { action: "write", path: path.clone(), source: io() };
        for error in [
            WakeError::Engine(file),
            WakeError::Disk(DiskError::Full { path: path.clone(), source: io() }),
        ] {
            assert!(error.is_full());
            assert_eq!(error.public(), "no space left on the host's disk");
        }
        let other = std::io::Error::other("no luck");
        let other = EngineError::File { action: "write", path, source: other };
        assert!(!WakeError::Engine(other).is_full());
    }

    #[test]
    fn a_chain_says_everything_once() {
        let error = ServiceError::Wake(WakeError::Image {
            name: "x".to_owned(),
            source: ImageError::Missing { path: "/x".into() },
        });
        assert_eq!(
            chain(&error),
            "wake sandbox: image \"x\" cannot be used: image file /x does not exist"
        );
    }
}
