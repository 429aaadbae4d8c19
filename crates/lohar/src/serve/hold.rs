//! Stops everything but the agent, for a machine that is about to stand.
//!
//! ```text
//! Hold ─▶ step aside ─▶ freeze the others … the machine stands, is copied, goes on …
//!                                                                        │
//!          let go ◀─ identity ◀─ randomness ◀─ clock ◀────── Hello ◀─────┘
//! ```
//!
//! Who goes on from a standing machine has the time it stopped at, and if it is a copy the
//! randomness and the names of its siblings too. So nothing goes on before the host has put that
//! right, which is what [`super::hello`] does.
//!
//! Promises:
//! - Nothing is started while something is held: a command waits until it is let go.
//! - Letting go when nothing is held asks nothing of the kernel.
//! - A host that does not come back holds nothing up for longer than [`FAILSAFE`].

use std::sync::Arc;
use std::time::Duration;

use bhatti_wire::message::{ErrorKind, Failure};
use tokio::sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::sleep;

use crate::console::{Chain, report};
use crate::guest::Guest;
use crate::process::{Frozen, GroupError, Groups};

/// How long processes may take to stop. One that waits for a dead network file system never does.
const PATIENCE: Duration = Duration::from_millis(500);

/// After this time of the guest's own, which stands still with the machine, everything goes on by
/// itself: the host died before it could stop the machine, and none has come since. Longer than a
/// clone on any host waits for its greeting, since until then it is not to be itself.
pub const FAILSAFE: Duration = Duration::from_secs(30);

/// Something may still run.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    #[error("this kernel cannot freeze control groups")]
    Unsupported,
    #[error("nothing is held")]
    Nothing(#[source] GroupError),
    #[error("not everything is held")]
    Incomplete(#[source] GroupError),
    #[error("the thread that freezes ended early")]
    Thread(#[source] tokio::task::JoinError),
}

impl HoldError {
    /// As the host sees it.
    pub fn failure(&self) -> Failure {
        let kind = match self {
            Self::Unsupported => ErrorKind::Unsupported,
            Self::Nothing(_) | Self::Incomplete(_) | Self::Thread(_) => ErrorKind::Other,
        };
        super::failure(kind, self)
    }
}

/// Whether anything but the agent may run.
#[derive(Debug, Default)]
pub struct Hold {
    /// `None`: this kernel has none.
    groups: Option<Arc<Groups>>,
    held: Mutex<Option<Held>>,
    /// Who starts a command reads; while something is held, that writes.
    gate: Arc<RwLock<()>>,
}

#[derive(Debug)]
struct Held {
    frozen: Frozen,
    /// Shared with the task that lets go if nobody else does: that it is still the same time.
    mark: Arc<()>,
    _gate: OwnedRwLockWriteGuard<()>,
}

impl Hold {
    /// What can be held: everything in `groups`.
    pub fn new(groups: Option<Groups>) -> Self {
        Self { groups: groups.map(Arc::new), ..Self::default() }
    }

    /// Nothing is held as long as the returned guard lives. Not to be kept across an await.
    pub async fn wait_until_let_go(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.gate).read_owned().await
    }

    /// Lets everything go on.
    pub async fn let_go(&self) {
        let held = self.held.lock().await.take();
        if let Some(held) = held {
            self.thaw(held);
        }
    }

    /// Everything that has been held since `mark` was made, if it still is.
    async fn let_go_of(&self, mark: &Arc<()>) {
        let held = self.held.lock().await.take_if(|held| Arc::ptr_eq(&held.mark, mark));
        if let Some(held) = held {
            report(format_args!("held for {} s and never greeted: going on", FAILSAFE.as_secs()));
            self.thaw(held);
        }
    }

    fn thaw(&self, Held { frozen, mark: _, _gate }: Held) {
        for error in frozen.thaw() {
            report(format_args!("still frozen: {}", Chain(&error)));
        }
        // Before the gate opens: what is started next must be where it is frozen next.
        if let Some(Err(error)) = self.groups.as_ref().map(|groups| groups.step_back()) {
            report(format_args!("new commands cannot be held: {}", Chain(&error)));
        }
    }
}

/// Returns when nothing but the agent runs. After an error something else may, too.
pub async fn hold(guest: &Arc<Guest>) -> Result<(), HoldError> {
    let hold = &guest.hold;
    let groups = hold.groups.clone().ok_or(HoldError::Unsupported)?;
    let mut held = hold.held.lock().await;
    if let Some(former) = held.take() {
        hold.thaw(former);
    }
    let gate = Arc::clone(&hold.gate).write_owned().await;
    let freezing = tokio::task::spawn_blocking(move || {
        groups.step_aside()?;
        Ok(groups.freeze_others(PATIENCE))
    });
    let mut frozen = freezing.await.map_err(HoldError::Thread)?.map_err(HoldError::Nothing)?;
    let missed = frozen.missed.take();
    let mark = Arc::new(());
    *held = Some(Held { frozen, mark: Arc::clone(&mark), _gate: gate });
    let guest = Arc::clone(guest);
    // Ends by itself.
    drop(tokio::spawn(async move {
        sleep(FAILSAFE).await;
        guest.hold.let_go_of(&mark).await;
    }));
    missed.map_or(Ok(()), |error| Err(HoldError::Incomplete(error)))
}
