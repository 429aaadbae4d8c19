//! What callers may branch on.

use std::path::PathBuf;

use bhatti_types::GoldenId;

/// The store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to open the database {path}", path = .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("failed to open the database file {path}", path = .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("database schema {found} is newer than this program knows ({known}); update bhatti")]
    TooNew { found: u32, known: u32 },
    #[error("migration {number} failed")]
    Migration {
        number: u32,
        #[source]
        source: rusqlite::Error,
    },
    #[error("database query failed")]
    Query(#[source] rusqlite::Error),
    /// The file system the database is on has no room.
    #[error("no space left for the database")]
    Full(#[source] rusqlite::Error),
    /// A row holds something this program cannot read.
    #[error("{table} row {key} has an unreadable {column}")]
    Corrupt { table: &'static str, key: String, column: &'static str },
    #[error("user {0:?} already exists")]
    UserExists(String),
    #[error("user {0:?} not found")]
    NoUser(String),
    #[error("user has {0} active sandbox(es) — destroy them first")]
    UserHasSandboxes(u32),
    #[error("user has {0} snapshot(s) — delete them first")]
    UserHasSnapshots(u32),
    #[error("all subnets are in use")]
    NoSubnet,
    /// The row changed or vanished between reading and writing.
    #[error("sandbox {0} is gone")]
    NoSandbox(String),
    #[error("golden snapshot {0} is gone")]
    NoGolden(String),
    #[error("there is a golden snapshot for {0:?} already")]
    GoldenExists(String),
    #[error("snapshot {0} is gone")]
    NoSnapshot(String),
    #[error("name {0:?} is already in use")]
    NameTaken(String),
    #[error("alias {0:?} is already taken")]
    AliasTaken(String),
    #[error("a sandbox publishes at most {0} ports; unpublish one of them first")]
    TooManyPublished(u32),
    #[error("no free uid for another VMM")]
    NoUid,
    #[error("failed to start the database thread")]
    Thread(#[source] std::io::Error),
    #[error("the database writer has stopped")]
    Closed,
}

impl StoreError {
    /// A write that named a golden, and failed.
    pub(crate) fn no_golden(error: rusqlite::Error, named: Option<&Option<GoldenId>>) -> Self {
        match (error.sqlite_error(), named) {
            (Some(sqlite), Some(Some(golden)))
                if sqlite.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY =>
            {
                Self::NoGolden(golden.to_string())
            }
            _ => error.into(),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full(error),
            _ => Self::Query(error),
        }
    }
}
