//! Small bodies that belong to no resource.

use serde::{Deserialize, Serialize};

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Always `ok`: an answer is the check.
    pub status: String,
    /// Since the daemon started, as `2h15m30s`.
    pub uptime: String,
    /// Which engine runs the machines, e.g. `qemu (tcg)`. Older servers do not say.
    #[serde(default)]
    pub engine: String,
}

/// What a mutation without a record answers, e.g. `{"status":"destroyed"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusBody {
    pub status: String,
}
