//! Accounts and their keys. A change of an account is never without its event.

use bhatti_types::{ApiKey, EventKind, Mib, UserId};
use jiff::Timestamp;
use rusqlite::{Connection, Row};
use serde_json::json;

use crate::event::{NewEvent, insert};
use crate::row::{Reader, all};
use crate::secret::{hash, same};
use crate::{Store, StoreError};

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    pub id: UserId,
    pub name: String,
    pub max_sandboxes: u32,
    pub max_cpus: u32,
    pub max_memory: Mib,
    pub max_volume_storage: Mib,
    pub max_images: u32,
    pub max_snapshots: u32,
    /// Which /24 is theirs, from 1.
    pub subnet_index: u32,
    pub created_at: Timestamp,
    /// How many sandboxes they have now, whatever their phase.
    pub sandboxes: u32,
}

/// What `user create` gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewUser {
    pub name: String,
    pub max_sandboxes: u32,
    pub max_cpus: u32,
    pub max_memory: Mib,
}

/// The highest subnet index: 10.254.254.0/24.
const MAX_SUBNET: u32 = 254 * 255 + 254;

const COLUMNS: &str = "id, name, max_sandboxes, max_cpus_per_sandbox, max_memory_mb_per_sandbox, \
     max_volume_storage_mb, max_images, max_snapshots, subnet_index, created_at, \
     (SELECT count(*) FROM sandboxes WHERE owner = users.id) AS sandboxes";

fn read(row: &Row<'_>) -> Result<UserRow, StoreError> {
    let r = Reader { row, table: "users", key: row.get("id").unwrap_or_default() };
    Ok(UserRow {
        id: r.parse("id")?,
        name: r.get("name")?,
        max_sandboxes: r.get("max_sandboxes")?,
        max_cpus: r.get("max_cpus_per_sandbox")?,
        max_memory: Mib(r.get("max_memory_mb_per_sandbox")?),
        max_volume_storage: Mib(r.get("max_volume_storage_mb")?),
        max_images: r.get("max_images")?,
        max_snapshots: r.get("max_snapshots")?,
        subnet_index: r.get("subnet_index")?,
        created_at: r.parse("created_at")?,
        sandboxes: r.get("sandboxes")?,
    })
}

fn one_user(
    connection: &Connection,
    column: &'static str,
    value: &str,
) -> Result<Option<UserRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM users WHERE {column} = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([value])?;
    rows.next()?.map(read).transpose()
}

impl Store {
    /// Makes an account with a key that is returned once and never stored.
    pub fn create_user(&mut self, new: &NewUser) -> Result<(UserRow, ApiKey), StoreError> {
        let key = ApiKey::random();
        let id = UserId::random();
        let tx = self.connection.transaction()?;
        let taken: bool = tx.query_row(
            "SELECT EXISTS (SELECT 1 FROM users WHERE name = ?1)",
            [&new.name],
            |r| r.get(0),
        )?;
        if taken {
            return Err(StoreError::UserExists(new.name.clone()));
        }
        let subnet: u32 =
            tx.query_row("SELECT coalesce(max(subnet_index), 0) + 1 FROM users", [], |r| r.get(0))?;
        if subnet > MAX_SUBNET {
            return Err(StoreError::NoSubnet);
        }
        tx.execute(
            "INSERT INTO users (id, name, api_key_hash, max_sandboxes, max_cpus_per_sandbox,
                                max_memory_mb_per_sandbox, subnet_index, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            rusqlite::params![
                id.as_str(),
                new.name,
                hash(key.reveal()),
                new.max_sandboxes,
                new.max_cpus,
                new.max_memory.0,
                subnet,
                Timestamp::now().to_string(),
            ],
        )?;
        let meta = json!({
            "name": new.name,
            "max_sandboxes": new.max_sandboxes,
            "subnet_index": subnet,
        });
        insert(&tx, &NewEvent::now(EventKind::UserCreated, Some(&id), None, meta))?;
        tx.commit()?;
        Ok((self.user_named(&new.name)?, key))
    }

    /// Every account, oldest first.
    pub fn users(&self) -> Result<Vec<UserRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM users ORDER BY created_at, id");
        let mut statement = self.connection.prepare_cached(&sql)?;
        all(statement.query([])?, read)
    }

    /// The account of that name.
    pub fn user_named(&self, name: &str) -> Result<UserRow, StoreError> {
        one_user(&self.connection, "name", name)?.ok_or_else(|| StoreError::NoUser(name.to_owned()))
    }

    /// The account with that id.
    pub fn user(&self, id: &UserId) -> Result<UserRow, StoreError> {
        one_user(&self.connection, "id", id.as_str())?
            .ok_or_else(|| StoreError::NoUser(id.to_string()))
    }

    /// The account a key belongs to. `None`: nobody's.
    ///
    /// The look-up is by hash, and the hash is compared again in constant time, so timing tells
    /// an attacker nothing about a stored key.
    pub fn user_by_key(&self, key: &ApiKey) -> Result<Option<UserRow>, StoreError> {
        let offered = hash(key.reveal());
        let sql = format!("SELECT {COLUMNS}, api_key_hash FROM users WHERE api_key_hash = ?1");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([&offered])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let stored: String = row.get("api_key_hash")?;
        if same(&stored, &offered) { read(row).map(Some) } else { Ok(None) }
    }

    /// Gives the account a new key; the old one stops working with this call.
    pub fn rotate_key(&mut self, name: &str) -> Result<ApiKey, StoreError> {
        let key = ApiKey::random();
        let tx = self.connection.transaction()?;
        let user =
            one_user(&tx, "name", name)?.ok_or_else(|| StoreError::NoUser(name.to_owned()))?;
        let sql = "UPDATE users SET api_key_hash = ?2 WHERE id = ?1";
        tx.execute(sql, [user.id.as_str(), &hash(key.reveal())])?;
        let meta = json!({ "name": name });
        insert(&tx, &NewEvent::now(EventKind::UserKeyRotated, Some(&user.id), None, meta))?;
        tx.commit()?;
        Ok(key)
    }

    /// Removes an account that owns nothing any more.
    pub fn delete_user(&mut self, name: &str) -> Result<UserRow, StoreError> {
        // The daemon writes the same file: what is counted must still be so when it is deleted.
        let tx = self.connection.transaction()?;
        let user =
            one_user(&tx, "name", name)?.ok_or_else(|| StoreError::NoUser(name.to_owned()))?;
        if user.sandboxes > 0 {
            return Err(StoreError::UserHasSandboxes(user.sandboxes));
        }
        let sql = "SELECT count(*) FROM snapshots WHERE owner = ?1";
        let snapshots = tx.query_row(sql, [user.id.as_str()], |row| row.get(0))?;
        if snapshots > 0 {
            return Err(StoreError::UserHasSnapshots(snapshots));
        }
        tx.execute("DELETE FROM users WHERE id = ?1", [user.id.as_str()])?;
        let meta = json!({ "name": name });
        insert(&tx, &NewEvent::now(EventKind::UserDeleted, Some(&user.id), None, meta))?;
        tx.commit()?;
        Ok(user)
    }
}
