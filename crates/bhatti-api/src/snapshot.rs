//! `/snapshots`: the record, and what makes and uses it.

use crate::NetPolicy;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A named snapshot as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: String,
    #[serde(default)]
    pub user_id: String,
    pub name: String,
    /// Id of the sandbox it was taken of, which may be gone by now.
    #[serde(default)]
    pub source_sandbox: String,
    /// What its files take on disk, rounded up.
    #[serde(default)]
    pub size_mb: u64,
    pub created_at: Timestamp,
}

/// `POST /sandboxes/:s/checkpoint`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checkpoint {
    /// Of the snapshot.
    pub name: String,
}

/// `POST /snapshots/:n/resume`. The body must be there, if only as `{}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResumeSnapshot {
    /// Of the new sandbox; empty: `<snapshot>-<6 hex>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What the new sandbox may reach; without it, what the snapshot's source could.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_policy: Option<NetPolicy>,
}
