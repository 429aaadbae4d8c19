//! Golden snapshots: what new machines are made from.
//!
//! Promises: only complete ones are recorded, and none is forgotten while a sandbox, one of its
//! generations or a named snapshot stands on its memory.

use bhatti_types::{GoldenId, Mib};
use jiff::Timestamp;
use rusqlite::Row;

use crate::row::{Reader, bytes, json, readable};
use crate::{Store, StoreError};

/// A golden snapshot that is complete on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoldenRow {
    pub id: GoldenId,
    /// Everything its use depends on; at most one golden has it.
    pub key: String,
    /// The name of the image, for people.
    pub image: String,
    pub vcpus: u32,
    pub memory: Mib,
    /// Size of its files.
    pub bytes: u64,
    /// What the engine said of its disk.
    pub disk: serde_json::Value,
    pub created_at: Timestamp,
    /// When a machine was last made from it.
    pub used_at: Timestamp,
}

/// True of a row of `goldens` that something stands on. The foreign keys know of the columns, not
/// of what is in the JSON. Looks at everything once, however many goldens are asked about.
const IN_USE: &str = "goldens.id IN (
    SELECT golden FROM sandboxes WHERE golden IS NOT NULL
    UNION ALL SELECT golden FROM snapshots WHERE golden IS NOT NULL
    UNION ALL SELECT json_extract(value, '$.golden') FROM sandboxes, json_each(generations)
              WHERE json_extract(value, '$.golden') IS NOT NULL)";

fn read(row: &Row<'_>) -> Result<GoldenRow, StoreError> {
    let r = Reader { row, table: "goldens", key: row.get("id").unwrap_or_default() };
    Ok(GoldenRow {
        id: r.parse("id")?,
        key: r.get("key")?,
        image: r.get("image")?,
        vcpus: r.get("vcpus")?,
        memory: Mib(r.get("memory_mb")?),
        bytes: r.bytes("bytes")?,
        disk: r.json("disk")?,
        created_at: r.parse("created_at")?,
        used_at: r.parse("used_at")?,
    })
}

/// Begins the key of a golden that no machine is made from any more.
const RETIRED: &str = "retired ";

impl GoldenRow {
    /// Whether it is kept only for those that stand on it.
    pub fn is_retired(&self) -> bool {
        self.key.starts_with(RETIRED)
    }
}

impl Store {
    /// The golden for that key.
    pub fn golden_by_key(&self, key: &str) -> Result<Option<GoldenRow>, StoreError> {
        let sql = "SELECT * FROM goldens WHERE key = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([key])?;
        rows.next()?.map(read).transpose()
    }

    /// Records a golden whose files are complete and on the medium.
    pub fn add_golden(&mut self, golden: &GoldenRow) -> Result<(), StoreError> {
        let added = self.connection.execute(
            "INSERT INTO goldens (id, key, image, vcpus, memory_mb, bytes, disk, created_at,
                 used_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (key) DO NOTHING",
            rusqlite::params![
                golden.id.as_str(),
                golden.key,
                golden.image,
                golden.vcpus,
                golden.memory.0,
                bytes(golden.bytes),
                json(&golden.disk),
                golden.created_at.to_string(),
                golden.used_at.to_string(),
            ],
        )?;
        if added == 1 { Ok(()) } else { Err(StoreError::GoldenExists(golden.key.clone())) }
    }

    /// A machine is made from it now.
    pub fn use_golden(&mut self, id: &GoldenId) -> Result<(), StoreError> {
        let changed = self.connection.execute(
            "UPDATE goldens SET used_at = ?2 WHERE id = ?1",
            [id.as_str(), &Timestamp::now().to_string()],
        )?;
        if changed == 1 { Ok(()) } else { Err(StoreError::NoGolden(id.to_string())) }
    }

    /// No machine is made from it any more, although it stays for those that stand on it.
    pub fn retire_golden(&mut self, id: &GoldenId) -> Result<(), StoreError> {
        // Keys are hex, so no other is ever equal to this one.
        let key = format!("{RETIRED}{id}");
        let sql = "UPDATE goldens SET key = ?2 WHERE id = ?1";
        self.connection.execute(sql, [id.as_str(), &key])?;
        Ok(())
    }

    /// Every golden that can be read, least recently used first, and whether something stands on
    /// it.
    pub fn goldens(&self) -> Result<Vec<(GoldenRow, bool)>, StoreError> {
        let sql = format!("SELECT *, {IN_USE} AS in_use FROM goldens ORDER BY used_at, id");
        let mut statement = self.connection.prepare_cached(&sql)?;
        readable(statement.query([])?, |row| Ok((read(row)?, row.get("in_use")?)))
    }

    /// The ids of every golden, the unreadable ones included: what a sweep must keep.
    pub fn golden_ids(&self) -> Result<Vec<GoldenId>, StoreError> {
        self.ids("SELECT id FROM goldens")
    }

    /// Forgets a golden. False, and nothing is done, while something stands on it.
    pub fn remove_golden(&mut self, id: &GoldenId) -> Result<bool, StoreError> {
        let sql = format!("DELETE FROM goldens WHERE id = ?1 AND NOT {IN_USE}");
        let removed = self.connection.execute(&sql, [id.as_str()])?;
        let sql = "SELECT EXISTS (SELECT 1 FROM goldens WHERE id = ?1)";
        // Forgetting twice is fine.
        Ok(removed == 1 || !self.connection.query_row(sql, [id.as_str()], |row| row.get(0))?)
    }

    /// The ids a query names. What has no id of ours has no files of ours either.
    pub(crate) fn ids<T: std::str::FromStr>(&self, sql: &str) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let ids: Vec<String> =
            statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }
}
