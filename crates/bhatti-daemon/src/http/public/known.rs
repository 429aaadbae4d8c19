//! What aliases stand for, as long as nothing has been written since it was read.
//!
//! Reading a rule and its sandbox is a sixth of what a request costs, and most requests come when
//! nothing has changed. Only what is published is remembered: a stranger cannot add to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bhatti_store::{Db, PublishRow, SandboxRow, StoreError};

/// The most aliases that are remembered.
const MOST: usize = 1024;

/// A rule, and its sandbox.
pub(super) type Stands = (PublishRow, SandboxRow);

#[derive(Default)]
pub(super) struct Known {
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// How much had been written before any of it was read.
    writes: u64,
    aliases: HashMap<String, Arc<Stands>>,
}

impl Known {
    /// What is recorded of `alias` now.
    pub(super) fn published(
        &self,
        db: &Db,
        alias: &str,
    ) -> Result<Option<Arc<Stands>>, StoreError> {
        let writes = db.writes();
        // Nothing in there can be left half changed.
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.writes != writes || memory.aliases.len() >= MOST {
            *memory = Memory { writes, aliases: HashMap::new() };
        }
        if let Some(known) = memory.aliases.get(alias) {
            return Ok(Some(Arc::clone(known)));
        }
        let found = db.read(|store| store.published(alias))?.map(Arc::new);
        if let Some(found) = &found {
            memory.aliases.insert(alias.to_owned(), Arc::clone(found));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::fill;
    use bhatti_store::{NewUser, Store};
    use bhatti_types::{Mib, SandboxId};

    #[tokio::test]
    async fn what_is_written_is_known_from_then_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = Store::open(&dir.path().join("state.db")).expect("a store");
        let (name, max_memory) = ("alice".to_owned(), Mib(4096));
        let new = NewUser { name, max_sandboxes: 1, max_cpus: 4, max_memory };
        let (alice, _) = store.create_user(&new).expect("a user");
        let sandbox: SandboxId = fill(&mut store, &alice).parse().expect("an id");
        let alias = |name: &str| name.parse().expect("an alias");
        let db = Db::start(store).expect("a thread");
        let known = Known::default();
        let look = |name: &str| known.published(&db, name).expect("it can be read");
        assert!(look("web").is_none());
        let (id, web) = (sandbox.clone(), alias("web"));
        let publish = db.call(move |store| store.publish(&id, 80, &web, false));
        publish.await.expect("it is free");
        let first = look("web").expect("it is published");
        assert!(Arc::ptr_eq(&first, &look("web").expect("it still is")), "it was not read again");
        db.call(move |store| store.unpublish(&sandbox, 80)).await.expect("it was published");
        assert!(look("web").is_none());
    }
}
