//! What aliases stand for, as long as nothing has been written since it was read.
//!
//! Reading a rule and its sandbox is a sixth of what a request costs, and most requests come when
//! nothing has changed. Only what is published is remembered: a stranger cannot add to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bhatti_store::{Db, PublishRow, SandboxRow, StoreError};

/// The most aliases that are remembered.
const MOST: usize = 1024;

/// What an alias stands for.
#[derive(Debug)]
pub(super) struct Stands {
    pub(super) rule: PublishRow,
    /// Its sandbox.
    pub(super) row: SandboxRow,
}

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
        let mut memory = self.memory();
        if memory.writes != writes || memory.aliases.len() >= MOST {
            *memory = Memory { writes, aliases: HashMap::new() };
        }
        if let Some(known) = memory.aliases.get(alias) {
            return Ok(Some(Arc::clone(known)));
        }
        let found = db.read(|store| store.published(alias))?;
        let found = found.map(|(rule, row)| Arc::new(Stands { rule, row }));
        if let Some(found) = &found {
            memory.aliases.insert(alias.to_owned(), Arc::clone(found));
        }
        Ok(found)
    }

    /// Reads all of it anew: something has been written that is not counted yet.
    pub(super) fn forget(&self) {
        *self.memory() = Memory::default();
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing in there can be left half changed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::fill;
    use bhatti_store::{NewUser, Store};
    use bhatti_types::{Alias, Mib, SandboxId};

    fn look(known: &Known, db: &Db) -> Option<Arc<Stands>> {
        known.published(db, "web").expect("it can be read")
    }

    #[tokio::test]
    async fn what_is_written_is_known_from_then_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = Store::open(&dir.path().join("state.db")).expect("a store");
        let (name, max_memory) = ("alice".to_owned(), Mib(4096));
        let new = NewUser { name, max_sandboxes: 1, max_cpus: 4, max_memory };
        let (alice, _) = store.create_user(&new).expect("a user");
        let sandbox: SandboxId = fill(&mut store, &alice).parse().expect("an id");
        let web: Alias = "web".parse().expect("an alias");
        let (db, known) = (Db::start(store).expect("a thread"), Arc::new(Known::default()));
        for _ in 0..2 {
            assert!(look(&known, &db).is_none());
            let (id, alias) = (sandbox.clone(), web.clone());
            let publish = db.call(move |store| store.publish(&id, 80, &alias, false));
            publish.await.expect("it is free");
            let first = look(&known, &db).expect("it is published");
            let second = look(&known, &db).expect("it still is");
            assert!(Arc::ptr_eq(&first, &second), "it was not read again");
            let id = sandbox.clone();
            let unpublish = db.call(move |store| store.unpublish(&id, 80));
            unpublish.await.expect("it was published");
        }
        let (id, its, all) = (sandbox.clone(), Arc::clone(&known), db.clone());
        let within = db.call(move |store| {
            store.publish(&id, 80, &web, false)?;
            let was = look(&its, &all);
            store.unpublish(&id, 80)?;
            its.forget();
            Ok((was, look(&its, &all)))
        });
        let (was, is) = within.await.expect("it is free");
        assert!(was.is_some() && is.is_none(), "also before the write is counted");
    }
}
