//! `/sandboxes`: one file an operation.

mod create;
mod destroy;
mod exec;
mod get;
mod list;
mod patch;

pub(super) use create::create;
pub(super) use destroy::destroy;
pub(super) use exec::exec;
pub(super) use get::get;
pub(super) use list::list;
pub(super) use patch::patch;

use bhatti_api::Sandbox;
use bhatti_store::SandboxRow;
use bhatti_types::Status;

/// The record as clients see it. `thermal` and `urls` belong to listings.
fn view(row: SandboxRow) -> Sandbox {
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
        last_transition: None,
    }
}
