//! Snapshots.

use std::fmt::Write as _;

use bhatti_api::{Sandbox, Snapshot};
use serde::Serialize;

/// A new snapshot with `--json`.
#[derive(Serialize)]
pub(crate) struct CreatedSnapshot<'a> {
    id: &'a str,
    name: &'a str,
    size_mb: u64,
}

impl<'a> From<&'a Snapshot> for CreatedSnapshot<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        Self { id: &snapshot.id, name: &snapshot.name, size_mb: snapshot.size_mb }
    }
}

/// One snapshot of `snapshot list --json`.
#[derive(Serialize)]
pub(crate) struct SnapshotListRow<'a> {
    id: &'a str,
    name: &'a str,
    source_sandbox: &'a str,
    size_mb: u64,
}

impl<'a> From<&'a Snapshot> for SnapshotListRow<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        Self {
            id: &snapshot.id,
            name: &snapshot.name,
            source_sandbox: &snapshot.source_sandbox,
            size_mb: snapshot.size_mb,
        }
    }
}

/// What a resume made, with `--json`.
#[derive(Serialize)]
pub(crate) struct ResumedSnapshot<'a> {
    id: &'a str,
    name: &'a str,
    ip: &'a str,
}

impl<'a> From<&'a Sandbox> for ResumedSnapshot<'a> {
    fn from(sandbox: &'a Sandbox) -> Self {
        Self { id: &sandbox.id, name: &sandbox.name, ip: &sandbox.ip }
    }
}

pub(crate) fn snapshot_created(snapshot: &Snapshot) -> String {
    format!("checkpoint {:?} created ({}MB)\n", snapshot.name, snapshot.size_mb)
}

pub(crate) fn snapshot_resumed(sandbox: &Sandbox) -> String {
    format!("{}\t{}\t{}\n", sandbox.id, sandbox.name, sandbox.ip)
}

/// The same on a terminal, as `create` says it.
pub(crate) fn snapshot_resumed_for_people(sandbox: &Sandbox, snapshot: &str) -> String {
    let Sandbox { name, ip, .. } = sandbox;
    format!(
        "sandbox/{name} resumed from snapshot {snapshot:?}\n  IP:    {ip}\n  \
         Shell: bhatti shell {name}\n"
    )
}

pub(crate) fn snapshot_list(snapshots: &[Snapshot]) -> String {
    let mut out = format!("{:<20} {:<20} {:<20} {:<10}\n", "ID", "NAME", "SOURCE", "SIZE");
    for Snapshot { id, name, source_sandbox, size_mb, .. } in snapshots {
        writeln!(out, "{id:<20} {name:<20} {source_sandbox:<20} {size_mb}MB")
            .expect("a String takes all text");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_stand_in_columns() {
        let json = r#"{"id":"0123456789abcdef","user_id":"usr_1a2b3c4d","name":"before",
            "source_sandbox":"fedcba9876543210","size_mb":37,
            "created_at":"2026-04-01T10:00:00Z"}"#;
        let snapshot: Snapshot = serde_json::from_str(json).expect("a snapshot");
        assert_eq!(
            snapshot_list(std::slice::from_ref(&snapshot)),
            "ID                   NAME                 SOURCE               SIZE      \n\
             0123456789abcdef     before               fedcba9876543210     37MB\n"
        );
        let row = serde_json::to_string(&SnapshotListRow::from(&snapshot)).expect("JSON");
        assert_eq!(
            row,
            r#"{"id":"0123456789abcdef","name":"before","source_sandbox":"fedcba9876543210","size_mb":37}"#
        );
        assert_eq!(snapshot_created(&snapshot), "checkpoint \"before\" created (37MB)\n");
    }
}
