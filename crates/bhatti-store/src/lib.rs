//! SQLite: the record of what should exist.
//!
//! [`Store`] is synchronous and owns one connection: the host-only commands use it directly.
//! [`Db`] gives the daemon one writer thread and an async handle; a call that was sent runs to
//! its end even if the caller is dropped, so a transaction is never half-observed.
//!
//! Promises: a file of ours is migrated before anything reads it, each migration in its own
//! transaction, and a failed one stops the program. Constraints live in the schema; their
//! violation becomes a variant here and nowhere else. No SQL outside this crate.

mod db;
mod error;
mod event;
mod golden;
mod image;
mod migrate;
mod network;
mod phase;
mod publish;
mod row;
mod sandbox;
mod secret;
mod shell_token;
mod snapshot;
mod user;

pub use db::Db;
pub use error::StoreError;
pub use event::{EventFilter, EventRow, NewEvent};
pub use golden::GoldenRow;
pub use image::ImageRow;
pub use network::GuestRow;
pub use phase::{Change, Generation};
pub use publish::{PublishRow, Published};
pub use sandbox::{NewSandbox, PatchRow, Reserved, SandboxRow, Unreadable};
pub use snapshot::{NewSnapshot, ReservedSnapshot, SnapshotRow, SnapshotState};
pub use user::{NewUser, UserRow};

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior};

/// One connection to `state.db`.
pub struct Store {
    connection: Connection,
}

impl Store {
    /// Opens the database, making and migrating it as needed. The file is readable by its owner
    /// only.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        restrict(path)?;
        let mut connection = Connection::open(path).map_err(open)?;
        // The host-only commands write the same file while the daemon runs.
        connection.busy_timeout(Duration::from_secs(5)).map_err(open)?;
        // A transaction that reads before it writes would otherwise fail at once, without the
        // patience of above, where somebody else wrote in between.
        connection.set_transaction_behavior(TransactionBehavior::Immediate);
        // Otherwise a plan depends on what is asked, and statements are compiled for each question.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(open)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(open)?;
        connection.pragma_update(None, "synchronous", "full").map_err(open)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(open)?;
        migrate::migrate(&mut connection)?;
        Ok(Self { connection })
    }

    /// A second connection to the same file.
    fn open_again(&self) -> Result<Self, StoreError> {
        Self::open(Path::new(self.connection.path().unwrap_or_default()))
    }
}

/// Creates the file with mode 0600 before SQLite would with the umask's.
fn restrict(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|source| StoreError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
