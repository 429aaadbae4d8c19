//! `/ports` and `/sandboxes/:s/ports`: what listens.

use serde::{Deserialize, Serialize};

/// A TCP port of a guest on which something listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Only in the list of all sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    pub container_port: u16,
    /// Where requests to it go, as a path of the API.
    pub proxy_url: String,
}
