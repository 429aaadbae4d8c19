//! `/snapshots`: one file an operation. They are made by `POST /sandboxes/:sandbox/checkpoint`.

mod delete;
mod get;
mod list;
mod resume;

pub(super) use delete::delete;
pub(super) use get::get;
pub(super) use list::list;
pub(super) use resume::resume;

use bhatti_api::Snapshot;
use bhatti_store::SnapshotRow;

/// The record as clients see it.
pub(super) fn view(row: SnapshotRow) -> Snapshot {
    Snapshot {
        id: row.id.to_string(),
        user_id: row.owner.to_string(),
        name: row.name.to_string(),
        source_sandbox: row.source_sandbox.to_string(),
        // Whatever there is takes at least 1 MB.
        size_mb: row.bytes.div_ceil(1 << 20),
        created_at: row.created_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bhatti_store::SnapshotState;
    use bhatti_types::{Cpus, Mib, SandboxId, SnapshotId, UserId};
    use jiff::Timestamp;

    #[test]
    fn sizes_round_up() {
        let shown = |bytes| {
            let row = SnapshotRow {
                id: SnapshotId::random(),
                owner: UserId::random(),
                name: "before".parse().expect("a name"),
                source_sandbox: SandboxId::random(),
                state: SnapshotState::Ready,
                image: "minimal".to_owned(),
                cpus: Cpus::ONE,
                memory: Mib(512),
                disk_size: Mib(0),
                hugepages: false,
                env: Default::default(),
                init: String::new(),
                hostname: "dev".to_owned(),
                net_policy: Default::default(),
                golden: None,
                disk: None,
                bytes,
                created_at: Timestamp::UNIX_EPOCH,
            };
            view(row).size_mb
        };
        assert_eq!([shown(0), shown(1), shown(1 << 20), shown((1 << 20) + 1)], [0, 1, 1, 2]);
    }
}
