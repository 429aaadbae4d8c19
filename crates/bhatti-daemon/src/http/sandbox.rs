//! `/sandboxes`: one file an operation.

mod archive;
mod checkpoint;
mod create;
mod destroy;
mod exec;
mod files;
mod forward;
mod get;
mod list;
mod patch;
mod piped;
mod ports;
mod proxy;
mod publish;
pub(super) mod relay;
mod sessions;
pub(super) mod shell;
mod start;
mod stop;

pub(super) use archive::{pack, unpack};
pub(super) use checkpoint::checkpoint;
pub(super) use create::{create, sandbox_name};
pub(super) use destroy::destroy;
pub(crate) use exec::Room;
pub(super) use exec::{exec, exec_stream};
pub(super) use files::{look as look_at_file, read as read_file, write as write_file};
pub(super) use forward::forward;
pub(super) use get::get;
pub(super) use list::list;
pub(super) use patch::patch;
pub(super) use piped::piped;
pub(super) use ports::{all_ports, ports};
pub(super) use proxy::proxy;
pub(super) use publish::{publish, published, unpublish};
pub(super) use sessions::sessions;
pub(super) use shell::shell;
pub(super) use start::start;
pub(super) use stop::stop;

use bhatti_api::{Sandbox, Transition};
use bhatti_store::SandboxRow;
use bhatti_types::{NetPolicy, Phase, Status};

use super::ApiError;

/// The record as clients see it. `thermal` and `urls` belong to listings, `last_transition` does
/// not.
pub(super) fn view(row: SandboxRow) -> Sandbox {
    let reason = match row.phase {
        // The cause quotes paths and system errors, which are the operator's business.
        Phase::Unknown => "its state cannot be told; the daemon's log says why".to_owned(),
        _ => row.reason,
    };
    let last_transition =
        Some(Transition { to: row.phase.to_string(), reason, at: row.changed_at });
    let status = row.phase.wire().map_or(Status::Unknown, |(status, _)| status);
    Sandbox {
        id: row.id.to_string(),
        name: row.name.to_string(),
        template_id: String::new(),
        engine_id: row.engine_id.to_string(),
        status,
        ip: row.ip.to_string(),
        engine_meta: Default::default(),
        created_by: row.owner.to_string(),
        created_at: row.created_at,
        stopped_at: row.stopped_at,
        keep_hot: row.keep_hot,
        cpus: row.cpus.as_f64(),
        memory_mb: row.memory.0,
        disk_size_mb: row.disk_size.0,
        image: row.image,
        labels: row.labels,
        thermal: None,
        urls: Vec::new(),
        last_transition,
        net_policy: (row.net_policy != NetPolicy::default()).then(|| written(&row.net_policy)),
        egress_denied: None,
        held_back: None,
    }
}

/// A policy as clients write it.
fn written(policy: &NetPolicy) -> bhatti_api::NetPolicy {
    bhatti_api::NetPolicy {
        default: policy.default_egress().to_string(),
        allow_hosts: policy.allow_hosts().iter().map(ToString::to_string).collect(),
        allow_cidrs: policy.allow_cidrs().iter().map(ToString::to_string).collect(),
    }
}

/// A policy as a client wrote it.
pub(super) fn net_policy(
    written: Option<bhatti_api::NetPolicy>,
) -> Result<Option<NetPolicy>, ApiError> {
    let Some(bhatti_api::NetPolicy { default, allow_hosts, allow_cidrs }) = written else {
        return Ok(None);
    };
    match NetPolicy::parse(&default, &allow_hosts, &allow_cidrs) {
        Ok(policy) => Ok(Some(policy)),
        Err(error) => Err(ApiError::BadRequest(format!("invalid net_policy: {error}"))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use bhatti_types::{Cpus, EngineId, Mib, SandboxId, UserId};
    use jiff::Timestamp;

    /// A record as the store has it.
    pub(in crate::http) fn row(phase: Phase, reason: &str) -> SandboxRow {
        SandboxRow {
            id: SandboxId::random(),
            owner: UserId::random(),
            name: "dev".parse().expect("a name"),
            hostname: "dev".to_owned(),
            engine_id: EngineId::random(),
            phase,
            reason: reason.to_owned(),
            changed_at: Timestamp::UNIX_EPOCH,
            ip: std::net::Ipv4Addr::new(10, 0, 1, 2),
            image: "minimal".to_owned(),
            cpus: Cpus::ONE,
            memory: Mib(1024),
            disk_size: Mib(0),
            hugepages: false,
            keep_hot: false,
            labels: Default::default(),
            env: Default::default(),
            init: String::new(),
            files_digest: String::new(),
            net_policy: Default::default(),
            vmm_uid: 1,
            root_disk: None,
            vm: None,
            golden: None,
            generations: Vec::new(),
            serial: 0,
            created_at: Timestamp::UNIX_EPOCH,
            stopped_at: None,
        }
    }

    #[test]
    fn one_sandbox_says_how_it_came_to_its_state() {
        let shown = |phase, reason| {
            let sandbox = view(row(phase, reason));
            (sandbox.status, sandbox.thermal, sandbox.last_transition.map(|t| (t.to, t.reason)))
        };
        let idle = "idle for 31 s";
        let said = |to: &str| Some((to.to_owned(), idle.to_owned()));
        assert_eq!(shown(Phase::Warm, idle), (Status::Running, None, said("warm")));
        assert_eq!(shown(Phase::Cold, idle), (Status::Stopped, None, said("cold")));
        let (status, _, transition) = shown(Phase::Unknown, "failed to open /var/lib/x");
        assert_eq!(status, Status::Unknown);
        assert!(!transition.expect("always there").1.contains("/var"));
    }
}
