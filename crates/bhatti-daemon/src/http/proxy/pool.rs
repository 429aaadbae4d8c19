//! Connections to programs that wait for their next request.
//!
//! Promises:
//! - What is in here keeps no sandbox awake: it holds no lease, and goes within a second after the link
//!   or the program has.
//! - A connection waits for a few seconds, less than the servers people use give it, and no longer
//!   than the program has said.
//! - What one sandbox and all together may leave here is bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bhatti_lifecycle::Tasks;
use bhatti_types::SandboxId;
use tokio::time::{Instant, sleep};

use super::conversation::Conversation;

/// How long one waits. Node and Python's servers hang up after five seconds, and one that handles
/// a connection at a time handles nobody else meanwhile.
const WAIT: Duration = Duration::from_secs(4);

/// The most that wait of one sandbox. With those that are under way, and the owner's commands, they
/// are fewer than a link has streams.
const MAX_OF_SANDBOX: usize = 64;

/// The most that wait of all sandboxes.
const MAX: usize = 1024;

/// How often those are looked for that have waited long enough.
const SWEEP: Duration = Duration::from_secs(1);

/// Conversations nobody takes part in at the moment.
#[derive(Clone)]
pub(super) struct Pool {
    tasks: Tasks,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    count: usize,
    /// Those of a sandbox; the last one has waited least.
    of: HashMap<SandboxId, Vec<Idle>>,
    /// A task removes those that have waited long enough.
    swept: bool,
}

struct Idle {
    port: u16,
    conversation: Conversation,
    until: Instant,
}

impl Pool {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { tasks, waiting: Arc::default() }
    }

    /// One with that program, if one waits. It may be over by the time it is asked.
    pub(super) fn take(&self, sandbox: &SandboxId, port: u16) -> Option<Conversation> {
        let mut waiting = lock(&self.waiting);
        loop {
            let all = waiting.of.get_mut(sandbox)?;
            let at = all.iter().rposition(|idle| idle.port == port)?;
            let Idle { mut conversation, until, .. } = all.remove(at);
            if all.is_empty() {
                waiting.of.remove(sandbox);
            }
            waiting.count -= 1;
            if until > Instant::now() && conversation.is_ready() {
                return Some(conversation);
            }
        }
    }

    /// Keeps one for the next request. `said` is how long the program would.
    pub(super) fn keep(
        &self,
        sandbox: &SandboxId,
        port: u16,
        mut conversation: Conversation,
        said: Option<Duration>,
    ) {
        // A second less: the other end counts from earlier.
        let wait = said.map_or(WAIT, |said| WAIT.min(said.saturating_sub(Duration::from_secs(1))));
        let mut waiting = lock(&self.waiting);
        let Waiting { count, of, swept } = &mut *waiting;
        if wait.is_zero() || conversation.is_closed() || *count >= MAX {
            return;
        }
        let all = of.entry(sandbox.clone()).or_default();
        if all.len() >= MAX_OF_SANDBOX {
            all.remove(0);
            *count -= 1;
        }
        all.push(Idle { port, conversation, until: Instant::now() + wait });
        *count += 1;
        if !std::mem::replace(swept, true) {
            self.sweep();
        }
    }

    /// Ends those with one program.
    pub(super) fn forget(&self, sandbox: &SandboxId, port: u16) {
        lock(&self.waiting).retain(|of, idle| of != sandbox || idle.port != port);
    }

    /// Removes what has waited long enough, as long as anything waits.
    fn sweep(&self) {
        let waiting = Arc::clone(&self.waiting);
        self.tasks.spawn("kept connections", move |stop| async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => {
                        lock(&waiting).retain(|_, _| false);
                        return;
                    }
                    () = sleep(SWEEP) => {}
                }
                let mut waiting = lock(&waiting);
                let now = Instant::now();
                waiting.retain(|_, idle| idle.until > now && !idle.conversation.is_closed());
                if waiting.count == 0 {
                    waiting.swept = false;
                    return;
                }
            }
        });
    }
}

impl Waiting {
    fn retain(&mut self, keep: impl Fn(&SandboxId, &mut Idle) -> bool) {
        let Self { count, of, .. } = self;
        of.retain(|sandbox, all| {
            all.retain_mut(|idle| keep(sandbox, idle));
            !all.is_empty()
        });
        *count = of.values().map(Vec::len).sum();
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    // Nothing in there can be left half changed.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
