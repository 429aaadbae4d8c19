//! `/sandboxes`: the record, and what creates and changes it.

use std::collections::BTreeMap;

use bhatti_types::{Labels, Status, Thermal};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A sandbox as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    pub id: String,
    pub name: String,
    /// Empty if it was not made from a template.
    #[serde(default)]
    pub template_id: String,
    /// The engine's name for the machine; not the sandbox id.
    #[serde(default)]
    pub engine_id: String,
    pub status: Status,
    /// Private address, empty if there is none.
    #[serde(default)]
    pub ip: String,
    /// Always `{}`; older clients expect the field.
    #[serde(default)]
    pub engine_meta: BTreeMap<String, String>,
    #[serde(default)]
    pub created_by: String,
    pub created_at: Timestamp,
    /// Left out until the first stop; stays set afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Timestamp>,
    #[serde(default)]
    pub keep_hot: bool,
    /// As requested, fraction kept.
    #[serde(default, serialize_with = "shortest")]
    pub cpus: f64,
    #[serde(default)]
    pub memory_mb: u32,
    /// 0: the image's size.
    #[serde(default)]
    pub disk_size_mb: u32,
    #[serde(default)]
    pub image: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// In listings, for running sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thermal: Option<Thermal>,
    /// In listings, when something is published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// How it came to be what it is; for one sandbox, not in listings. Older servers do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition: Option<Transition>,
    /// What it may reach, if that is not what every sandbox may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_policy: Option<NetPolicy>,
    /// How many packets of it were denied; for one sandbox that has a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_denied: Option<u64>,
    /// How often its limits held it back since its machine was started; for one sandbox that has a machine
    /// and limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<HeldBack>,
}

/// How often a sandbox had to wait because it had used what its limits allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeldBack {
    /// Reading or writing its disk.
    pub disk: u64,
    /// Sending to the network.
    pub sent: u64,
    /// Receiving from it.
    pub received: u64,
}

/// What a sandbox may reach beyond its owner's other sandboxes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetPolicy {
    /// `public` (the internet, and no private network) or `deny` (nothing); empty: `public`.
    pub default: String,
    /// Names, and `*.` with what they end in, that may be resolved and spoken to. With `deny` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_hosts: Vec<String>,
    /// IPv4 ranges that may be spoken to, private ones too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_cidrs: Vec<String>,
}

/// The last change of a sandbox's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// The state it is in since: `hot`, `warm`, `cold`, `stopped`, `unknown`.
    pub to: String,
    /// Why, in a few words.
    pub reason: String,
    pub at: Timestamp,
}

impl Transition {
    /// What a sandbox lost on its way to this state, if it lost something.
    pub fn loss(&self) -> Option<&str> {
        bhatti_types::tells_of_loss(&self.reason).then_some(self.reason.as_str())
    }
}

/// `2`, not `2.0`: the form every existing client has seen.
fn shortest<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    // In range and without a fraction, so nothing is lost.
    if value.fract() == 0.0 && (0.0..1e9).contains(value) {
        serializer.serialize_u64(*value as u64)
    } else {
        serializer.serialize_f64(*value)
    }
}

/// `POST /sandboxes`. Every field is optional; what is absent or zero takes the server's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateSandbox {
    /// Empty: generated.
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub template_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<i64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub init: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_hot: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileSpec>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_policy: Option<NetPolicy>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub persistent_volumes: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub new_volumes: Vec<serde_json::Value>,
}

/// A file put into the guest before anything of the user's runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileSpec {
    /// Absolute path.
    pub guest_path: String,
    /// Standard base64.
    pub content: String,
    /// Octal, `0644` when empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
}

/// `PATCH /sandboxes/:s`: what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PatchSandbox {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_hot: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels_add: Labels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels_remove: Vec<String>,
    /// In place of all of the former.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_policy: Option<NetPolicy>,
}

/// `POST /sandboxes/:s/start`. No body, or one that is not this, is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartSandbox {
    /// Lose what must be lost, rather than not start: memory first, then what was written since
    /// an older state.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}
