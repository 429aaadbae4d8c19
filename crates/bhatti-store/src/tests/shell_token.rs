//! What opens a web shell, and what does not.

use super::{open, reserve, user, wanted};
use crate::{Store, StoreError};
use bhatti_types::{Phase, SandboxId, ShellToken};

fn opens(store: &Store, id: &str, token: &ShellToken) -> Option<String> {
    let row = store.sandbox_by_shell_token(id, token).unwrap();
    row.map(|row| row.name.to_string())
}

#[test]
fn a_token_opens_its_sandbox_until_the_next_one() {
    let (_dir, mut store) = open();
    let owner = user(&mut store, "alice", 5);
    let dev = reserve(&mut store, &wanted(&owner, "dev")).id;
    let other = reserve(&mut store, &wanted(&owner, "other")).id;
    let first = store.set_shell_token(&dev).unwrap();
    assert_eq!(opens(&store, dev.as_str(), &first).as_deref(), Some("dev"));
    assert_eq!(opens(&store, other.as_str(), &first), None, "another sandbox of the same owner");
    assert_eq!(opens(&store, "dev", &first), None, "a name is no id");
    let second = store.set_shell_token(&dev).unwrap();
    assert_eq!(opens(&store, dev.as_str(), &first), None, "it was replaced");
    assert_eq!(opens(&store, dev.as_str(), &second).as_deref(), Some("dev"));
    store.revoke_shell_token(&dev).unwrap();
    assert_eq!(opens(&store, dev.as_str(), &second), None, "it was revoked");
    store.revoke_shell_token(&dev).unwrap();
}

#[test]
fn nothing_opens_what_has_no_token() {
    let (_dir, mut store) = open();
    let owner = user(&mut store, "alice", 5);
    let dev = reserve(&mut store, &wanted(&owner, "dev")).id;
    for id in [dev.as_str(), SandboxId::random().as_str(), "", "nobody", "'"] {
        for token in ["", "0", &"0".repeat(64)] {
            assert_eq!(opens(&store, id, &token.parse().unwrap()), None, "{id:?} {token:?}");
        }
    }
}

#[test]
fn only_the_hash_is_on_the_disk_and_it_goes_with_the_sandbox() {
    let (dir, mut store) = open();
    let owner = user(&mut store, "alice", 5);
    let dev = reserve(&mut store, &wanted(&owner, "dev")).id;
    let token = store.set_shell_token(&dev).unwrap();
    store.connection.pragma_update(None, "wal_checkpoint", "truncate").unwrap();
    let file = std::fs::read(dir.path().join("state.db")).unwrap();
    let found = |text: &str| file.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(found(&crate::secret::hash(token.reveal())) && !found(token.reveal()));
    store
        .set_phase(&dev, &[Phase::Creating], Phase::Destroying, "why", &Default::default())
        .unwrap();
    store.remove_sandbox(&dev).unwrap();
    assert_eq!(opens(&store, dev.as_str(), &token), None);
    let gone = store.set_shell_token(&dev).err().unwrap();
    assert!(matches!(gone, StoreError::NoSandbox(_)), "{gone}");
}
