//! Named snapshots: reserved first, then made, then ready.

use std::collections::BTreeMap;
use std::str::FromStr;

use bhatti_types::{Cpus, GoldenId, Mib, Name, NetPolicy, SandboxId, SnapshotId, UserId};
use jiff::Timestamp;
use rusqlite::Row;

use crate::row::{Reader, bytes, json, readable};
use crate::{Store, StoreError};

/// A named snapshot as recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotRow {
    pub id: SnapshotId,
    pub owner: UserId,
    pub name: Name,
    /// Whence it came; that sandbox may be gone.
    pub source_sandbox: SandboxId,
    pub state: SnapshotState,
    pub image: String,
    pub cpus: Cpus,
    pub memory: Mib,
    /// 0: the image's size.
    pub disk_size: Mib,
    pub hugepages: bool,
    pub env: BTreeMap<String, String>,
    pub init: String,
    /// What the guest was called inside.
    pub hostname: String,
    /// What its source could reach when it was taken.
    pub net_policy: NetPolicy,
    /// Whose memory it stands on. `None`: its own.
    pub golden: Option<GoldenId>,
    /// What the engine said of its disk, once it is made.
    pub disk: Option<serde_json::Value>,
    /// Size of its files, once they are made.
    pub bytes: u64,
    pub created_at: Timestamp,
}

/// Whether a snapshot can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    /// The name is taken; nothing is promised yet. Found at a start, it is to be removed.
    Creating,
    Ready,
}

/// What a checkpoint wants.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSnapshot {
    pub owner: UserId,
    pub name: Name,
    pub source_sandbox: SandboxId,
    pub image: String,
    pub cpus: Cpus,
    pub memory: Mib,
    pub disk_size: Mib,
    pub hugepages: bool,
    pub env: BTreeMap<String, String>,
    pub init: String,
    pub hostname: String,
    pub net_policy: NetPolicy,
}

/// What reserving a snapshot's name came to.
#[derive(Debug)]
pub enum ReservedSnapshot {
    /// The row is new and [`SnapshotState::Creating`].
    New(Box<SnapshotRow>),
    /// The owner has as many as they may.
    Quota { used: u32, max: u32 },
    /// That name is there.
    Taken,
}

impl SnapshotState {
    /// The word in the database.
    fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
        }
    }
}

impl FromStr for SnapshotState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Creating, Self::Ready]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a state of a snapshot"))
    }
}

fn read(row: &Row<'_>) -> Result<SnapshotRow, StoreError> {
    let r = Reader { row, table: "snapshots", key: row.get("id").unwrap_or_default() };
    Ok(SnapshotRow {
        id: r.parse("id")?,
        owner: r.parse("owner")?,
        name: r.parse("name")?,
        source_sandbox: r.parse("source_sandbox")?,
        state: r.parse("state")?,
        image: r.get("image")?,
        cpus: Cpus::from_milli(r.get("milli_cpus")?),
        memory: Mib(r.get("memory_mb")?),
        disk_size: Mib(r.get("disk_size_mb")?),
        hugepages: r.get("hugepages")?,
        env: r.json("env")?,
        init: r.get("init")?,
        hostname: r.get("hostname")?,
        net_policy: r.json("net_policy")?,
        golden: r.parse_opt("golden")?,
        disk: r.json_opt("disk")?,
        bytes: r.bytes("bytes")?,
        created_at: r.parse("created_at")?,
    })
}

impl Store {
    /// Takes the name, and records the intent.
    pub fn reserve_snapshot(&mut self, new: &NewSnapshot) -> Result<ReservedSnapshot, StoreError> {
        let max = self.user(&new.owner)?.max_snapshots;
        let used: u32 = self.connection.query_row(
            "SELECT count(*) FROM snapshots WHERE owner = ?1",
            [new.owner.as_str()],
            |row| row.get(0),
        )?;
        if used >= max {
            return Ok(ReservedSnapshot::Quota { used, max });
        }
        let id = SnapshotId::random();
        let added = self.connection.execute(
            "INSERT INTO snapshots (id, owner, name, source_sandbox, state, image, milli_cpus,
                 memory_mb, disk_size_mb, hugepages, env, init, hostname, created_at, net_policy)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
             ON CONFLICT (owner, name) DO NOTHING",
            rusqlite::params![
                id.as_str(),
                new.owner.as_str(),
                new.name.as_str(),
                new.source_sandbox.as_str(),
                SnapshotState::Creating.as_str(),
                new.image,
                new.cpus.milli(),
                new.memory.0,
                new.disk_size.0,
                new.hugepages,
                json(&new.env),
                new.init,
                new.hostname,
                Timestamp::now().to_string(),
                json(&new.net_policy),
            ],
        )?;
        match added {
            1 => Ok(ReservedSnapshot::New(Box::new(self.snapshot(&id)?))),
            _ => Ok(ReservedSnapshot::Taken),
        }
    }

    /// Its files are complete and on the medium: it can be used from now on.
    pub fn finish_snapshot(
        &mut self,
        id: &SnapshotId,
        golden: Option<&GoldenId>,
        disk: &serde_json::Value,
        size: u64,
    ) -> Result<SnapshotRow, StoreError> {
        let changed = self.connection.execute(
            "UPDATE snapshots SET state = ?2, golden = ?3, disk = ?4, bytes = ?5
             WHERE id = ?1 AND state = ?6",
            rusqlite::params![
                id.as_str(),
                SnapshotState::Ready.as_str(),
                golden.map(GoldenId::as_str),
                json(disk),
                bytes(size),
                SnapshotState::Creating.as_str(),
            ],
        );
        match changed.map_err(|error| StoreError::no_golden(error, Some(&golden.cloned())))? {
            1 => self.snapshot(id),
            _ => Err(StoreError::NoSnapshot(id.to_string())),
        }
    }

    fn snapshot(&self, id: &SnapshotId) -> Result<SnapshotRow, StoreError> {
        let sql = "SELECT * FROM snapshots WHERE id = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([id.as_str()])?;
        match rows.next()? {
            Some(row) => read(row),
            None => Err(StoreError::NoSnapshot(id.to_string())),
        }
    }

    /// The snapshots of `owner` that can be used and read, newest first.
    pub fn snapshots_of(&self, owner: &UserId) -> Result<Vec<SnapshotRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT * FROM snapshots WHERE owner = ?1 AND state = 'ready'
             ORDER BY created_at DESC, id",
        )?;
        readable(statement.query([owner.as_str()])?, read)
    }

    /// The snapshot that `owner` calls `name`, if it can be used.
    pub fn find_snapshot(
        &self,
        owner: &UserId,
        name: &str,
    ) -> Result<Option<SnapshotRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT * FROM snapshots WHERE owner = ?1 AND name = ?2 AND state = 'ready'",
        )?;
        let mut rows = statement.query([owner.as_str(), name])?;
        rows.next()?.map(read).transpose()
    }

    /// Which snapshot `owner` calls `name`, if it can be used; also one that cannot be read, which can
    /// still be removed.
    pub fn find_snapshot_id(
        &self,
        owner: &UserId,
        name: &str,
    ) -> Result<Option<SnapshotId>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id FROM snapshots WHERE owner = ?1 AND name = ?2 AND state = 'ready'",
        )?;
        let mut rows = statement.query([owner.as_str(), name])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let id: String = row.get(0)?;
        let parsed = id.parse();
        let corrupt = |_| StoreError::Corrupt { table: "snapshots", key: id, column: "id" };
        parsed.map(Some).map_err(corrupt)
    }

    /// Every snapshot that can be read, in whatever state, oldest first; for recovery.
    pub fn all_snapshots(&self) -> Result<Vec<SnapshotRow>, StoreError> {
        let sql = "SELECT * FROM snapshots ORDER BY created_at, id";
        let mut statement = self.connection.prepare_cached(sql)?;
        readable(statement.query([])?, read)
    }

    /// The ids of every snapshot, the unreadable ones included: what a sweep must keep.
    pub fn snapshot_ids(&self) -> Result<Vec<SnapshotId>, StoreError> {
        self.ids("SELECT id FROM snapshots")
    }

    /// Forgets a snapshot; its files are to be removed afterwards. Forgetting twice is fine.
    pub fn remove_snapshot(&mut self, id: &SnapshotId) -> Result<(), StoreError> {
        self.connection.execute("DELETE FROM snapshots WHERE id = ?1", [id.as_str()])?;
        Ok(())
    }
}
