//! Ids, names, sizes and phases: the vocabulary every other crate shares.
//!
//! Text becomes one of these types at the edge (HTTP, command line, database) and stays one.
//! No I/O, no async, no SQL.

mod alias;
mod event;
mod id;
mod label;
mod name;
mod net_policy;
mod phase;
mod range;
mod secret;
mod size;

pub use alias::{Alias, BadAlias};
pub use event::EventKind;
pub use id::{
    BadId, EngineId, GoldenId, ImageId, PublishId, RequestId, SandboxId, SnapshotId, UserId,
};
pub use label::{BadLabel, Labels, check_label_key};
pub use name::{BadName, Name};
pub use net_policy::{BadPolicy, Egress, HostPattern, NetPolicy};
pub use phase::{Phase, Status, Thermal, tells_of_loss};
pub use range::{BadNet, Ipv4Net, NEVER, PRIVATE};
pub use secret::{ApiKey, PublishToken, Redacted, ShellToken};
pub use size::{BadCpus, Cpus, Mib};
