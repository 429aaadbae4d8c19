//! Published ports: which program of which sandbox an alias stands for.
//!
//! Promises: an alias is one sandbox's at a time, whoever's; a port of a sandbox has at most one; a
//! rule goes with its sandbox and stays through everything else. Of what opens one that is not for
//! anybody only the hash is stored.

use bhatti_types::{Alias, PublishId, PublishToken, SandboxId, UserId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row};

use crate::row::{Reader, all, readable};
use crate::secret::{hash, same};
use crate::{SandboxRow, Store, StoreError};

/// The most rules of one sandbox.
const MAX_RULES: u32 = 100;

/// A rule as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRow {
    pub id: PublishId,
    pub sandbox: SandboxId,
    pub port: u16,
    pub alias: Alias,
    pub created_at: Timestamp,
    /// The hash of what opens it; `None`: anybody may ask.
    token_hash: Option<String>,
}

impl PublishRow {
    /// Whether only those who have the token may ask.
    pub fn is_protected(&self) -> bool {
        self.token_hash.is_some()
    }

    /// Whether `offered` is its token.
    pub fn opens(&self, offered: &str) -> bool {
        self.token_hash.as_deref().is_some_and(|stored| same(stored, &hash(offered)))
    }
}

/// What publishing came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    New(PublishRow),
    /// The port was published, under whatever alias.
    Existing(PublishRow),
}

fn read(row: &Row<'_>) -> Result<PublishRow, StoreError> {
    let r = Reader { row, table: "publish_rules", key: row.get("id").unwrap_or_default() };
    Ok(PublishRow {
        id: r.parse("id")?,
        sandbox: r.parse("sandbox")?,
        port: r.get("port")?,
        alias: r.parse("alias")?,
        created_at: r.parse("created_at")?,
        token_hash: r.get("token_hash")?,
    })
}

impl Store {
    /// Publishes a port under an alias, unless it is published already. With `protect` whoever
    /// asks needs the token that comes back; one there was before opens nothing any more.
    pub fn publish(
        &mut self,
        sandbox: &SandboxId,
        port: u16,
        alias: &Alias,
        protect: bool,
    ) -> Result<(Published, Option<PublishToken>), StoreError> {
        let token = protect.then(PublishToken::random);
        let token_hash = token.as_ref().map(|token| hash(token.reveal()));
        if let Some(mut row) = self.publish_rule(sandbox, port)? {
            if token_hash.is_some() {
                let sql = "UPDATE publish_rules SET token_hash = ?2 WHERE id = ?1";
                self.connection.execute(sql, (row.id.as_str(), &token_hash))?;
                row.token_hash = token_hash;
            }
            return Ok((Published::Existing(row), token));
        }
        self.insert_rule(sandbox, port, alias, token_hash).map(|row| (Published::New(row), token))
    }

    fn insert_rule(
        &mut self,
        sandbox: &SandboxId,
        port: u16,
        alias: &Alias,
        token_hash: Option<String>,
    ) -> Result<PublishRow, StoreError> {
        // Nobody else writes rules, so nothing can come between these looks and the insert; the
        // constraints hold all the same.
        let count: u32 = self.connection.query_row(
            "SELECT count(*) FROM publish_rules WHERE sandbox = ?1",
            [sandbox.as_str()],
            |row| row.get(0),
        )?;
        if count >= MAX_RULES {
            return Err(StoreError::TooManyPublished(MAX_RULES));
        }
        let row = PublishRow {
            id: PublishId::random(),
            sandbox: sandbox.clone(),
            port,
            alias: alias.clone(),
            created_at: Timestamp::now(),
            token_hash,
        };
        let inserted = self.connection.execute(
            "INSERT INTO publish_rules (id, sandbox, port, alias, created_at, token_hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            rusqlite::params![
                row.id.as_str(),
                sandbox.as_str(),
                port,
                alias.as_str(),
                row.created_at.to_string(),
                row.token_hash,
            ],
        );
        match inserted {
            Ok(_) => Ok(row),
            Err(error) => Err(refused(error, sandbox, alias)),
        }
    }

    /// The rule of one port, if it is published.
    fn publish_rule(
        &self,
        sandbox: &SandboxId,
        port: u16,
    ) -> Result<Option<PublishRow>, StoreError> {
        let sql = "SELECT * FROM publish_rules WHERE sandbox = ?1 AND port = ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(rusqlite::params![sandbox.as_str(), port])?;
        rows.next()?.map(read).transpose()
    }

    /// The rules of a sandbox, the oldest first.
    pub fn publish_rules(&self, sandbox: &SandboxId) -> Result<Vec<PublishRow>, StoreError> {
        let sql = "SELECT * FROM publish_rules WHERE sandbox = ?1 ORDER BY created_at, id";
        all(self.connection.prepare_cached(sql)?.query([sandbox.as_str()])?, read)
    }

    /// The rules of all sandboxes of `owner`, the oldest first.
    pub fn publish_rules_of(&self, owner: &UserId) -> Result<Vec<PublishRow>, StoreError> {
        let sql = "SELECT publish_rules.* FROM publish_rules
             JOIN sandboxes ON sandboxes.id = publish_rules.sandbox
             WHERE sandboxes.owner = ?1 ORDER BY publish_rules.created_at, publish_rules.id";
        readable(self.connection.prepare_cached(sql)?.query([owner.as_str()])?, read)
    }

    /// Takes a rule back; the one there was.
    pub fn unpublish(
        &mut self,
        sandbox: &SandboxId,
        port: u16,
    ) -> Result<Option<PublishRow>, StoreError> {
        let Some(row) = self.publish_rule(sandbox, port)? else { return Ok(None) };
        self.connection.execute("DELETE FROM publish_rules WHERE id = ?1", [row.id.as_str()])?;
        Ok(Some(row))
    }

    /// What an alias stands for. What is no alias stands for nothing.
    pub fn published(&self, alias: &str) -> Result<Option<(PublishRow, SandboxRow)>, StoreError> {
        let sql = "SELECT * FROM publish_rules WHERE alias = ?1";
        let both = |rule: PublishRow| {
            let sandbox = self.sandbox(&rule.sandbox)?;
            Ok((rule, sandbox))
        };
        // The second query inside the first: they see one state of the store, and lock it once.
        self.connection
            .prepare_cached(sql)?
            .query_row([alias], |row| Ok(read(row).and_then(both)))
            .optional()?
            .transpose()
    }
}

fn refused(error: rusqlite::Error, sandbox: &SandboxId, alias: &Alias) -> StoreError {
    match error.sqlite_error().map(|sqlite| sqlite.extended_code) {
        Some(rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => {
            StoreError::NoSandbox(sandbox.to_string())
        }
        Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE) => StoreError::AliasTaken(alias.to_string()),
        _ => error.into(),
    }
}
