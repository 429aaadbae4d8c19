//! What is said to Firecracker, as types; pure.
//!
//! Field names are those of the published description of the API. Only what we use is here;
//! the tests compare every request with an extract of that description.
//!
//! Choices that look odd, with the reason:
//! - The root disk is no "root device": the initramfs finds and mounts it, and Firecracker would add
//!   words to the kernel's line that say otherwise.
//! - `cache_type` stays `Unsafe`: a flush by the guest costs nothing, and what it has written is in
//!   the file, for everybody who reads it, at once. What is to survive a loss of power is synced by
//!   whoever freezes the machine.

use serde::{Deserialize, Serialize};

use crate::limits::RateLimiter;

/// Names inside the VMM's root; its working directory is the machine's own.
pub(crate) const ROOT_DISK: &str = "root.raw";
pub(crate) const API_SOCKET: &str = "api.sock";
pub(crate) const VSOCK: &str = "vsock.sock";
/// Where it hands over memory on huge pages ([`crate::handover`]).
pub(crate) const HANDOVER: &str = "memory.sock";
/// Where the saved state is read from.
pub(crate) const STATE_PIPE: &str = "state.pipe";
/// Where it says how often its limits held the machine back ([`crate::counters`]).
pub(crate) const METRICS_PIPE: &str = "metrics.pipe";
/// Never opened: the saving of the state ends in an error before.
pub(crate) const NO_MEMORY_FILE: &str = "none";

pub(crate) const DRIVE: &str = "root";
pub(crate) const INTERFACE: &str = "eth0";
/// Any number from 3 on; each machine has its own socket, so all may have the same.
pub(crate) const GUEST_CID: u32 = 3;
/// Where the agent listens.
pub(crate) const AGENT_PORT: u32 = 52;

/// `PUT /machine-config`, and what `GET` says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineConfig {
    pub vcpu_count: u32,
    pub mem_size_mib: u32,
    /// What it says of them nobody asks.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    pub huge_pages: Option<HugePages>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum HugePages {
    #[serde(rename = "2M")]
    TwoMib,
}

/// `PUT /boot-source`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BootSource {
    pub kernel_image_path: &'static str,
    pub initrd_path: &'static str,
    pub boot_args: &'static str,
}

/// `PUT /drives/{drive_id}`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Drive {
    pub drive_id: &'static str,
    pub path_on_host: &'static str,
    pub is_root_device: bool,
    pub is_read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Drive {
    /// The one disk.
    pub(crate) fn root(rate_limiter: Option<RateLimiter>) -> Self {
        Self {
            drive_id: DRIVE,
            path_on_host: ROOT_DISK,
            is_root_device: false,
            is_read_only: false,
            rate_limiter,
        }
    }
}

/// `PATCH /drives/{drive_id}`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartialDrive {
    pub drive_id: &'static str,
    /// Has it look at the file again, which has grown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<&'static str>,
    pub rate_limiter: RateLimiter,
}

/// `PUT /network-interfaces/{iface_id}`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NetworkInterface {
    pub iface_id: &'static str,
    pub guest_mac: String,
    pub host_dev_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PATCH /network-interfaces/{iface_id}`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartialNetworkInterface {
    pub iface_id: &'static str,
    pub rx_rate_limiter: RateLimiter,
    pub tx_rate_limiter: RateLimiter,
}

/// `PUT /vsock`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Vsock {
    pub guest_cid: u32,
    pub uds_path: &'static str,
}

/// `PUT /entropy`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entropy {
    pub rate_limiter: RateLimiter,
}

/// `PUT /balloon`: a device that takes nothing from the guest and hears which memory it has freed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Balloon {
    pub amount_mib: u32,
    pub deflate_on_oom: bool,
    pub free_page_reporting: bool,
}

impl Balloon {
    /// Gives back to the host what the guest reports as free.
    pub(crate) const REPORTING: Self =
        Self { amount_mib: 0, deflate_on_oom: true, free_page_reporting: true };
}

/// `PUT /actions`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Action {
    pub action_type: ActionType,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) enum ActionType {
    InstanceStart,
    FlushMetrics,
}

/// `PATCH /vm`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Vm {
    pub state: VmState,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) enum VmState {
    Paused,
    Resumed,
}

/// `PUT /snapshot/create`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SnapshotCreate {
    pub snapshot_type: SnapshotType,
    pub snapshot_path: &'static str,
    pub mem_file_path: &'static str,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) enum SnapshotType {
    Full,
}

/// `PUT /snapshot/load`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SnapshotLoad {
    pub snapshot_path: String,
    pub mem_backend: MemoryBackend,
    pub resume_vm: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct MemoryBackend {
    pub backend_path: String,
    pub backend_type: BackendType,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) enum BackendType {
    File,
    Uffd,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct NetworkOverride {
    pub iface_id: &'static str,
    pub host_dev_name: String,
}

/// What `GET /` says.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct InstanceInfo {
    pub state: InstanceState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum InstanceState {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

/// The body of every refusal.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Fault {
    pub fault_message: String,
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
