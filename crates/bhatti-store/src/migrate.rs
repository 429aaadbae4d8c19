//! Numbered migrations, each in its own transaction.

use rusqlite::Connection;

use crate::StoreError;

pub(crate) const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_users_sandboxes_images.sql"),
    include_str!("../migrations/0002_sleep.sql"),
    include_str!("../migrations/0003_shell_tokens.sql"),
    include_str!("../migrations/0004_publish.sql"),
    include_str!("../migrations/0005_events.sql"),
    include_str!("../migrations/0006_net_policy.sql"),
    include_str!("../migrations/0007_publish_tokens.sql"),
];

/// Applies what is missing. The version is `PRAGMA user_version`; a database of a newer program
/// is refused rather than guessed at.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = u32::try_from(MIGRATIONS.len()).expect("a handful of files");
    loop {
        // The version is read inside the write transaction (every one is, `Store::open`): two
        // programs starting at once must not both apply the same step.
        let tx = connection.transaction()?;
        let found: u32 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > known {
            return Err(StoreError::TooNew { found, known });
        }
        let Some(sql) = MIGRATIONS.get(found as usize) else { return Ok(()) };
        let number = found + 1;
        let failed = |source| StoreError::Migration { number, source };
        tx.execute_batch(sql).map_err(failed)?;
        tx.pragma_update(None, "user_version", number).map_err(failed)?;
        tx.commit().map_err(failed)?;
    }
}
