//! The namespace of the next user who has none, made before anybody waits for it.
//!
//! Loading rules takes `nft` as long as a create may take for its network in all. They are the same for
//! everybody but for what is in their sets, so they are loaded in advance, with nothing in the sets.
//!
//! Promises:
//! - It has no name and no link until it is somebody's, and goes with this process
//!   (`nothing_is_left`).
//! - Whose network it becomes has the same as one whose rules were loaded for them
//!   (`what_was_prepared_is_like_what_is_made`).
//! - Nobody waits for it: who comes too soon makes their own.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::apply::{self, Prepared};

/// At most one namespace; whoever makes it holds the lock meanwhile.
#[derive(Default)]
pub(crate) struct Next {
    prepared: Arc<Mutex<Option<Prepared>>>,
}

impl Next {
    /// It, if it is there.
    pub(crate) fn take(&self) -> Option<Prepared> {
        self.prepared.try_lock().ok()?.take()
    }

    /// Has one made with these rules, unless there is one, or somebody is about it.
    pub(crate) fn prepare(&self, rules: String) {
        let Ok(mut place) = self.prepared.clone().try_lock_owned() else { return };
        if place.is_some() {
            return;
        }
        tokio::spawn(async move {
            match apply::prepare(rules).await {
                Ok(prepared) => *place = Some(prepared),
                // The next user's network is made while they wait, and says what is wrong.
                Err(error) => tracing::debug!(%error, "no network is prepared"),
            }
        });
    }

    /// Lets it go, also one that is being made.
    pub(crate) async fn discard(&self) {
        drop(self.prepared.lock().await.take());
    }
}
