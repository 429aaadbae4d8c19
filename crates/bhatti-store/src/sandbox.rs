//! Sandboxes: intent first, facts as they become true.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use bhatti_types::{
    Cpus, EngineId, GoldenId, Labels, Mib, Name, NetPolicy, Phase, SandboxId, UserId,
};
use jiff::Timestamp;
use rusqlite::Row;

use crate::row::{Reader, json, readable};
use crate::{Generation, Store, StoreError};

/// A sandbox as recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxRow {
    pub id: SandboxId,
    pub owner: UserId,
    pub name: Name,
    /// What the guest is called inside; a rename does not change it.
    pub hostname: String,
    pub engine_id: EngineId,
    pub phase: Phase,
    /// Why it is in this phase, one sentence.
    pub reason: String,
    /// When it came to this phase.
    pub changed_at: Timestamp,
    pub ip: Ipv4Addr,
    pub image: String,
    pub cpus: Cpus,
    pub memory: Mib,
    /// 0: the image's size.
    pub disk_size: Mib,
    /// Its memory is in pages of 2 MiB.
    pub hugepages: bool,
    pub keep_hot: bool,
    pub labels: Labels,
    pub env: BTreeMap<String, String>,
    pub init: String,
    /// Of the files create was given; empty for none.
    pub files_digest: String,
    /// What it may reach.
    pub net_policy: NetPolicy,
    /// The identity its VMM runs as.
    pub vmm_uid: u32,
    /// What the engine said of the root disk, once it is made.
    pub root_disk: Option<serde_json::Value>,
    /// What the engine needs to find the machine again, while there is one.
    pub vm: Option<serde_json::Value>,
    /// Whose memory the machine and its generations stand on. `None`: its own.
    pub golden: Option<GoldenId>,
    /// What it can continue from, newest first, at most two.
    pub generations: Vec<Generation>,
    /// The last generation number given out.
    pub serial: u32,
    pub created_at: Timestamp,
    pub stopped_at: Option<Timestamp>,
}

/// A sandbox whose record this program cannot read.
#[derive(Debug)]
pub struct Unreadable {
    /// Its machine's name, if at least that can be read.
    pub engine_id: Option<EngineId>,
    pub error: StoreError,
}

/// What a create wants.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSandbox {
    pub owner: UserId,
    pub name: Name,
    pub image: String,
    pub cpus: Cpus,
    pub memory: Mib,
    pub disk_size: Mib,
    /// Its memory is in pages of 2 MiB.
    pub hugepages: bool,
    pub keep_hot: bool,
    pub labels: Labels,
    pub env: BTreeMap<String, String>,
    pub init: String,
    pub files_digest: String,
    /// What it may reach.
    pub net_policy: NetPolicy,
    /// Uids for VMMs: the first, and how many.
    pub uids: (u32, u32),
}

/// What reserving a name came to.
#[derive(Debug)]
pub enum Reserved {
    /// The row is new, in phase `creating`.
    New(Box<SandboxRow>),
    /// That name was there.
    Existing(Box<SandboxRow>),
    /// The owner has as many as they may.
    Quota { used: u32, max: u32 },
    /// The owner's address range is exhausted.
    NoAddress,
}

/// What `PATCH` changes; `None` stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PatchRow {
    pub name: Option<Name>,
    pub labels_add: Labels,
    pub labels_remove: Vec<String>,
    pub keep_hot: Option<bool>,
    pub net_policy: Option<NetPolicy>,
}

/// What each request about a sandbox asks.
pub(crate) const FIND: &str = "SELECT * FROM sandboxes WHERE owner = ?1 AND (id = ?2 OR name = ?2)
    ORDER BY id = ?2 DESC";

/// What each listing asks.
pub(crate) const OF_OWNER: &str =
    "SELECT * FROM sandboxes WHERE owner = ?1 ORDER BY created_at DESC, id";

fn read(row: &Row<'_>) -> Result<SandboxRow, StoreError> {
    let r = Reader { row, table: "sandboxes", key: row.get("id").unwrap_or_default() };
    Ok(SandboxRow {
        id: r.parse("id")?,
        owner: r.parse("owner")?,
        name: r.parse("name")?,
        hostname: r.get("hostname")?,
        engine_id: r.parse("engine_id")?,
        phase: r.parse("phase")?,
        reason: r.get("reason")?,
        changed_at: r.parse("changed_at")?,
        ip: r.parse("ip")?,
        image: r.get("image")?,
        cpus: Cpus::from_milli(r.get("milli_cpus")?),
        memory: Mib(r.get("memory_mb")?),
        disk_size: Mib(r.get("disk_size_mb")?),
        hugepages: r.get("hugepages")?,
        keep_hot: r.get("keep_hot")?,
        labels: r.json("labels")?,
        env: r.json("env")?,
        init: r.get("init")?,
        files_digest: r.get("files_digest")?,
        net_policy: r.json("net_policy")?,
        vmm_uid: r.get("vmm_uid")?,
        root_disk: r.json_opt("root_disk")?,
        vm: r.json_opt("vm")?,
        golden: r.parse_opt("golden")?,
        generations: r.json("generations")?,
        serial: r.get("serial")?,
        created_at: r.parse("created_at")?,
        stopped_at: r.parse_opt("stopped_at")?,
    })
}

impl Store {
    /// Takes the name, an address and a uid, all or nothing, and records the intent.
    ///
    /// `pick` chooses an address given those in use by the owner. An existing sandbox of that
    /// name is returned even at the quota, so that a create can be run again.
    pub fn reserve_sandbox(
        &mut self,
        new: &NewSandbox,
        pick: impl FnOnce(&[Ipv4Addr]) -> Option<Ipv4Addr>,
    ) -> Result<Reserved, StoreError> {
        let max = self.user(&new.owner)?.max_sandboxes;
        if let Some(row) = self.sandbox_named(&new.owner, new.name.as_str())? {
            return Ok(Reserved::Existing(Box::new(row)));
        }
        let taken = self.addresses_of(&new.owner)?;
        let used = u32::try_from(taken.len()).unwrap_or(u32::MAX);
        if used >= max {
            return Ok(Reserved::Quota { used, max });
        }
        let taken: Vec<Ipv4Addr> = taken.iter().filter_map(|ip| ip.parse().ok()).collect();
        let Some(ip) = pick(&taken) else { return Ok(Reserved::NoAddress) };
        let vmm_uid = self.free_uid(new.uids)?;
        let id = SandboxId::random();
        // One connection writes in the daemon, and host-only commands do not make sandboxes, so
        // nothing can have come between the checks above and this insert; the constraints hold
        // all the same.
        self.connection.execute(
            "INSERT INTO sandboxes (id, owner, name, engine_id, phase, ip, image, milli_cpus,
                 memory_mb, disk_size_mb, keep_hot, labels, env, init, files_digest, vmm_uid,
                 created_at, changed_at, hostname, hugepages, net_policy)
             VALUES (?1, ?2, ?3, ?4, 'creating', ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14,
                 ?15, ?16, ?16, ?17, ?18, ?19)",
            rusqlite::params![
                id.as_str(),
                new.owner.as_str(),
                new.name.as_str(),
                EngineId::random().as_str(),
                ip.to_string(),
                new.image,
                new.cpus.milli(),
                new.memory.0,
                new.disk_size.0,
                new.keep_hot,
                json(&new.labels),
                json(&new.env),
                new.init,
                new.files_digest,
                vmm_uid,
                Timestamp::now().to_string(),
                new.name.hostname(),
                new.hugepages,
                json(&new.net_policy),
            ],
        )?;
        Ok(Reserved::New(Box::new(self.sandbox(&id)?)))
    }

    /// What each sandbox of `owner` has for an address, the unreadable ones included.
    fn addresses_of(&self, owner: &UserId) -> Result<Vec<String>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT ip FROM sandboxes WHERE owner = ?1")?;
        let addresses = statement.query_map([owner.as_str()], |row| row.get(0))?;
        Ok(addresses.collect::<Result<_, _>>()?)
    }

    fn free_uid(&self, (first, count): (u32, u32)) -> Result<u32, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT vmm_uid FROM sandboxes ORDER BY vmm_uid")?;
        let taken: Vec<u32> =
            statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        (first..first.saturating_add(count))
            .find(|uid| taken.binary_search(uid).is_err())
            .ok_or(StoreError::NoUid)
    }

    /// The sandbox with that id.
    pub fn sandbox(&self, id: &SandboxId) -> Result<SandboxRow, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT * FROM sandboxes WHERE id = ?1")?;
        let mut rows = statement.query([id.as_str()])?;
        match rows.next()? {
            Some(row) => read(row),
            None => Err(StoreError::NoSandbox(id.to_string())),
        }
    }

    /// What `owner` calls `key`: an id first, then a name.
    pub fn find_sandbox(
        &self,
        owner: &UserId,
        key: &str,
    ) -> Result<Option<SandboxRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(FIND)?;
        let mut rows = statement.query([owner.as_str(), key])?;
        rows.next()?.map(read).transpose()
    }

    fn sandbox_named(&self, owner: &UserId, name: &str) -> Result<Option<SandboxRow>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT * FROM sandboxes WHERE owner = ?1 AND name = ?2")?;
        let mut rows = statement.query([owner.as_str(), name])?;
        rows.next()?.map(read).transpose()
    }

    /// Every sandbox of `owner` that can be read, newest first, in whatever phase.
    pub fn sandboxes_of(&self, owner: &UserId) -> Result<Vec<SandboxRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(OF_OWNER)?;
        readable(statement.query([owner.as_str()])?, read)
    }

    /// Every sandbox there is, for recovery, and apart from them the rows that cannot be read:
    /// their machines are not to be touched, whatever is wrong with the record.
    pub fn all_sandboxes(&self) -> Result<(Vec<SandboxRow>, Vec<Unreadable>), StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT * FROM sandboxes ORDER BY created_at, id")?;
        let mut rows = statement.query([])?;
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            match read(row) {
                Ok(row) => found.push(row),
                Err(error) => {
                    let engine_id: String = row.get("engine_id")?;
                    unreadable.push(Unreadable { engine_id: engine_id.parse().ok(), error });
                }
            }
        }
        Ok((found, unreadable))
    }

    /// The root disk exists now.
    pub fn set_root_disk(
        &mut self,
        id: &SandboxId,
        disk: &serde_json::Value,
    ) -> Result<(), StoreError> {
        self.changed_one(
            id,
            "UPDATE sandboxes SET root_disk = ?2 WHERE id = ?1",
            &[&id.as_str(), &json(disk)],
        )
    }

    /// A machine runs (not yet usable): recorded so that a crash from here on finds it.
    pub fn set_vm(&mut self, id: &SandboxId, vm: &serde_json::Value) -> Result<(), StoreError> {
        self.changed_one(
            id,
            "UPDATE sandboxes SET vm = ?2 WHERE id = ?1",
            &[&id.as_str(), &json(vm)],
        )
    }

    /// Applies a patch, all of it or nothing.
    pub fn patch_sandbox(
        &mut self,
        id: &SandboxId,
        patch: &PatchRow,
    ) -> Result<SandboxRow, StoreError> {
        let tx = self.connection.transaction()?;
        if let Some(name) = &patch.name {
            tx.execute(
                "UPDATE sandboxes SET name = ?2 WHERE id = ?1",
                [id.as_str(), name.as_str()],
            )
            .map_err(|error| match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::ConstraintViolation) => {
                    StoreError::NameTaken(name.to_string())
                }
                _ => error.into(),
            })?;
        }
        if !patch.labels_add.is_empty() || !patch.labels_remove.is_empty() {
            let text: String = tx
                .query_row("SELECT labels FROM sandboxes WHERE id = ?1", [id.as_str()], |row| {
                    row.get(0)
                })
                .map_err(|error| match error {
                    rusqlite::Error::QueryReturnedNoRows => StoreError::NoSandbox(id.to_string()),
                    other => other.into(),
                })?;
            let mut labels: Labels = serde_json::from_str(&text).map_err(|_| {
                StoreError::Corrupt { table: "sandboxes", key: id.to_string(), column: "labels" }
            })?;
            labels.extend(patch.labels_add.clone());
            labels.retain(|key, _| !patch.labels_remove.contains(key));
            tx.execute(
                "UPDATE sandboxes SET labels = ?2 WHERE id = ?1",
                [id.as_str(), &json(&labels)],
            )?;
        }
        if let Some(keep_hot) = patch.keep_hot {
            tx.execute(
                "UPDATE sandboxes SET keep_hot = ?2 WHERE id = ?1",
                rusqlite::params![id.as_str(), keep_hot],
            )?;
        }
        if let Some(policy) = &patch.net_policy {
            tx.execute(
                "UPDATE sandboxes SET net_policy = ?2 WHERE id = ?1",
                [id.as_str(), &json(policy)],
            )?;
        }
        tx.commit()?;
        self.sandbox(id)
    }

    /// Forgets a sandbox, after its last trace is gone. Forgetting twice is fine.
    pub fn remove_sandbox(&mut self, id: &SandboxId) -> Result<(), StoreError> {
        self.connection.execute("DELETE FROM sandboxes WHERE id = ?1", [id.as_str()])?;
        Ok(())
    }

    pub(crate) fn changed_one(
        &mut self,
        id: &SandboxId,
        sql: &str,
        params: &[&dyn rusqlite::ToSql],
    ) -> Result<(), StoreError> {
        match self.connection.execute(sql, params)? {
            1 => Ok(()),
            _ => Err(StoreError::NoSandbox(id.to_string())),
        }
    }
}
