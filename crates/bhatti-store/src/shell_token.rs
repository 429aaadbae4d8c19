//! What opens the web shell of a sandbox.
//!
//! Promises: only the hash of a token is stored; a sandbox has at most one; it goes with the
//! sandbox, and neither a rename nor a snapshot carries it elsewhere.

use bhatti_types::{SandboxId, ShellToken};
use rusqlite::OptionalExtension;

use crate::secret::{hash, same};
use crate::{SandboxRow, Store, StoreError};

impl Store {
    /// Makes the token of a sandbox; the one it had opens nothing any more.
    pub fn set_shell_token(&mut self, id: &SandboxId) -> Result<ShellToken, StoreError> {
        let token = ShellToken::random();
        self.write_shell_token(id, Some(&hash(token.reveal())))?;
        Ok(token)
    }

    /// Takes the token back, if there is one.
    pub fn revoke_shell_token(&mut self, id: &SandboxId) -> Result<(), StoreError> {
        self.write_shell_token(id, None)
    }

    fn write_shell_token(&mut self, id: &SandboxId, hash: Option<&str>) -> Result<(), StoreError> {
        let sql = "UPDATE sandboxes SET shell_token_hash = ?2 WHERE id = ?1";
        match self.connection.execute(sql, (id.as_str(), hash))? {
            1 => Ok(()),
            _ => Err(StoreError::NoSandbox(id.to_string())),
        }
    }

    /// The sandbox that `token` opens, if `id` is that one.
    ///
    /// A sandbox that is not there, one without a token and a wrong token take the same time but
    /// for the look-up, and are the same answer.
    pub fn sandbox_by_shell_token(
        &self,
        id: &str,
        token: &ShellToken,
    ) -> Result<Option<SandboxRow>, StoreError> {
        let offered = hash(token.reveal());
        let sql = "SELECT shell_token_hash FROM sandboxes WHERE id = ?1";
        let stored: Option<Option<String>> =
            self.connection.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
        // Compared even with nothing: no hash is 64 zeros but by breaking SHA-256.
        let stored = stored.flatten().unwrap_or_else(|| "0".repeat(64));
        if !same(&stored, &offered) {
            return Ok(None);
        }
        match id.parse() {
            Ok(id) => self.sandbox(&id).map(Some),
            Err(_) => Ok(None),
        }
    }
}
