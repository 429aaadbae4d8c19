//! Accounts.

use std::fmt::Write as _;

use bhatti_store::UserRow;
use serde::Serialize;

/// A new account and its key, shown this once.
#[derive(Serialize)]
pub(crate) struct CreatedUser {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) subnet_index: u32,
    pub(crate) api_key: String,
}

/// A new key for an account, shown this once.
#[derive(Serialize)]
pub(crate) struct RotatedKey {
    pub(crate) name: String,
    pub(crate) api_key: String,
}

/// One account with `--json`.
#[derive(Serialize)]
pub(crate) struct UserListRow {
    id: String,
    name: String,
    max_sandboxes: u32,
    max_cpus_per_sandbox: u32,
    max_memory_mb_per_sandbox: u32,
    subnet_index: u32,
    max_volume_storage_mb: u32,
    max_images: u32,
    max_snapshots: u32,
    created_at: jiff::Timestamp,
}

impl From<&UserRow> for UserListRow {
    fn from(user: &UserRow) -> Self {
        Self {
            id: user.id.to_string(),
            name: user.name.clone(),
            max_sandboxes: user.max_sandboxes,
            max_cpus_per_sandbox: user.max_cpus,
            max_memory_mb_per_sandbox: user.max_memory.0,
            subnet_index: user.subnet_index,
            max_volume_storage_mb: user.max_volume_storage.0,
            max_images: user.max_images,
            max_snapshots: user.max_snapshots,
            created_at: user.created_at,
        }
    }
}

/// The installer takes the last word of the line with `API key:`.
pub(crate) fn user_created(user: &CreatedUser, url: &str) -> String {
    let CreatedUser { id, name, subnet_index, api_key } = user;
    format!(
        "User created:
  ID:       {id}
  Name:     {name}
  Subnet:   {subnet_index}
  API key:  {api_key}

This key will not be shown again. Save it now.

Quick start:
  export BHATTI_URL={url}
  export BHATTI_TOKEN={api_key}
  bhatti create --name my-sandbox
"
    )
}

pub(crate) fn key_rotated(rotated: &RotatedKey) -> String {
    let RotatedKey { name, api_key } = rotated;
    format!(
        "API key rotated for {name:?}
  New key: {api_key}

The old key is immediately invalidated.
This key will not be shown again. Save it now.
"
    )
}

pub(crate) fn user_list(users: &[UserRow]) -> String {
    let mut out = format!(
        "{:<12} {:<20} {:<8} {:<6} {:<6} {:<8}\n",
        "ID", "NAME", "SANDBOXES", "CPUS", "MEM", "SUBNET"
    );
    for user in users {
        let (id, name, used, most) =
            (user.id.as_str(), &user.name, user.sandboxes, user.max_sandboxes);
        let (cpus, memory, subnet) = (user.max_cpus, user.max_memory.0, user.subnet_index);
        writeln!(out, "{id:<12} {name:<20} {used}/{most:<6} {cpus:<6} {memory:<6} {subnet:<8}")
            .expect("a String takes all text");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bhatti_types::Mib;

    #[test]
    fn users_stand_in_columns() {
        let user = UserRow {
            id: "usr_1a2b3c4d".parse().expect("an id"),
            name: "alice".to_owned(),
            max_sandboxes: 5,
            max_cpus: 4,
            max_memory: Mib(4096),
            max_volume_storage: Mib(20480),
            max_images: 10,
            max_snapshots: 5,
            subnet_index: 2,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            sandboxes: 1,
        };
        assert_eq!(
            user_list(std::slice::from_ref(&user)),
            "ID           NAME                 SANDBOXES CPUS   MEM    SUBNET  \n\
             usr_1a2b3c4d alice                1/5      4      4096   2       \n"
        );
        let json = serde_json::to_string(&UserListRow::from(&user)).expect("serialises");
        assert_eq!(
            json,
            r#"{"id":"usr_1a2b3c4d","name":"alice","max_sandboxes":5,"max_cpus_per_sandbox":4,"max_memory_mb_per_sandbox":4096,"subnet_index":2,"max_volume_storage_mb":20480,"max_images":10,"max_snapshots":5,"created_at":"1970-01-01T00:00:00Z"}"#
        );
    }

    #[test]
    fn the_installer_finds_the_key() {
        let user = CreatedUser {
            id: "usr_1a2b3c4d".to_owned(),
            name: "a".to_owned(),
            subnet_index: 1,
            api_key: "bht_00".to_owned(),
        };
        let text = user_created(&user, "http://localhost:8080");
        let line = text.lines().find(|line| line.contains("API key:")).expect("the line");
        assert_eq!(line.split_whitespace().next_back(), Some("bht_00"));
        assert!(
            text.ends_with("  export BHATTI_TOKEN=bht_00\n  bhatti create --name my-sandbox\n")
        );
    }
}
