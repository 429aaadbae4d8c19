//! What people see: pure functions from values to text. The formats are the contract's.

mod check;
mod event;
mod file;
mod sandbox;
mod session;
mod snapshot;
mod timing;
mod user;
mod version;

pub(crate) use check::host_check;
pub(crate) use event::{EventListRow, events};
pub(crate) use file::{FileRow, PortRow, files, on_one_line, ports};
pub(crate) use sandbox::{DiskUse, ListRow, created, detached, edited, inspected, list, list_wide};
pub(crate) use session::{SessionRow, sessions};
pub(crate) use snapshot::{
    CreatedSnapshot, ResumedSnapshot, SnapshotListRow, snapshot_created, snapshot_list,
    snapshot_resumed, snapshot_resumed_for_people,
};
pub(crate) use timing::timing;
pub(crate) use user::{CreatedUser, RotatedKey, UserListRow, key_rotated, user_created, user_list};
pub(crate) use version::outdated;
