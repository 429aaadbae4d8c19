//! Requests that are answered by a program in a guest.
//!
//! ```text
//!  client ─ request ─▶ head ─▶ upstream ─▶ conversation ─▶ Dialer::dial ─▶ the program
//!         ◀─ answer ───────────  Answer ◀─┘  └─ pool ─┘ until the next one
//!         ◀═ upgraded: raw bytes ═ relay ══════════▶
//! ```
//!
//! Promises:
//! - Whatever the two ends do, a request ends: with the client, with the program, or when no byte
//!   has moved for too long (`upstream::Limit`).
//! - A sandbox is kept awake exactly as long as something of it is under way here.
//! - Nothing is queued: a client that does not read is not read for, and so the other way.
//! - Neither an API key nor a header in which we speak to our own clients crosses to a program or
//!   back (`head`).
//! - The programs of one sandbox cannot take all streams of its link: there is always room for the
//!   owner's commands ([`MAX_IN_SANDBOX`]).
//!
//! Not here: who may ask, and for what. That is `sandbox::proxy`, `sandbox::forward` and `public`.

mod conversation;
mod crowd;
mod head;
mod hints;
mod meter;
mod pool;
mod relay;
mod upstream;

use std::sync::Arc;

use bhatti_lifecycle::Tasks;
use bhatti_types::SandboxId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use pool::Pool;

pub(super) use crowd::{Admitted, Crowd, Place};
pub(super) use head::{Asker, Keys, is_ambiguous, target};
pub(super) use relay::{Relay, relay};
pub(super) use upstream::{Failure, Limit, Visit, exchange, words};

/// The most connections to programs of one sandbox; a link carries 512 streams.
const MAX_IN_SANDBOX: usize = 384;

/// The most connections of the whole daemon that became tunnels: they are no requests any more,
/// which the listeners count.
const MAX_TUNNELS: usize = 1024;

/// What requests to programs have in common.
pub(crate) struct Proxy {
    tasks: Tasks,
    /// Connections, by sandbox.
    sandboxes: Crowd<SandboxId>,
    tunnels: Arc<Semaphore>,
    pool: Pool,
}

impl Proxy {
    /// Tunnels are tasks of `tasks`.
    pub(crate) fn new(tasks: Tasks) -> Self {
        let tunnels = Arc::new(Semaphore::new(MAX_TUNNELS));
        let pool = Pool::new(tasks.clone());
        Self { tasks, sandboxes: Crowd::new(MAX_IN_SANDBOX), tunnels, pool }
    }

    /// A place for one connection to a program of that sandbox.
    pub(super) fn enter(&self, sandbox: &SandboxId) -> Option<Place<SandboxId>> {
        self.sandboxes.enter(sandbox.clone())
    }

    /// A place for one more tunnel.
    pub(super) fn tunnel(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.tunnels).try_acquire_owned().ok()
    }

    /// Ends the connections that wait for requests to one program.
    pub(super) fn forget(&self, sandbox: &SandboxId, port: u16) {
        self.pool.forget(sandbox, port);
    }

    /// Fires when the daemon is about to stop.
    pub(super) fn stopping(&self) -> CancellationToken {
        self.tasks.stopping()
    }

    /// Runs what outlives its request.
    pub(super) fn spawn<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(name, task);
    }
}
