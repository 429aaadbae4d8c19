//! The recorder of events: whoever sees something happen says so and goes on.
//!
//! ```text
//!  anybody ─ record ─▶ queue of 1000 ─▶ one task ─ every 500 ms, or 100 at once ─▶ store
//!               └ limiter: what anybody can bring about, a few a minute each, the rest counted
//! ```
//!
//! Promises:
//! - Saying it never waits and never fails. What finds no room is counted, and the log says how
//!   many there were.
//! - What strangers and guests can bring about does not fill the disk: a bucket for each kind, account
//!   and sandbox; what it holds back is told as a number with the next one, which comes whether or not
//!   there is another (`what_is_held_back_is_told_as_a_number`).
//! - After [`Recorder::close`] all that was said is recorded. A daemon that dies takes at most half
//!   a second of events with it.

mod limiter;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bhatti_store::{Db, NewEvent, StoreError};
use bhatti_types::{EventKind, SandboxId, UserId};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use limiter::Limiter;

/// How many may wait to be recorded.
const QUEUE: usize = 1000;

/// How many are recorded in one transaction, and how long one waits for others at most.
const BATCH: usize = 100;
const LINGER: Duration = Duration::from_millis(500);

/// How often old events are forgotten.
const TIDY: Duration = Duration::from_secs(3600);

/// How long an event is kept, and how many there are at most: under 200 MB.
const KEPT: SignedDuration = SignedDuration::from_hours(90 * 24);
const MOST: u32 = 500_000;

/// How many are forgotten in one transaction.
const FORGET: u32 = 5_000;

/// Where to say what happened. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<NewEvent>,
    limiter: Arc<Mutex<Limiter>>,
    dropped: Arc<AtomicU64>,
}

/// The task that records. Dropping it leaves it running for as long as there are [`Events`].
pub struct Recorder {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Events {
    /// Starts the recorder of a daemon.
    pub fn start(db: Db) -> (Self, Recorder) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let events = Self { queue, limiter: Arc::default(), dropped: Arc::default() };
        let stop = CancellationToken::new();
        let writer = Writer {
            db,
            waiting,
            batch: Vec::new(),
            limiter: events.limiter.clone(),
            dropped: events.dropped.clone(),
        };
        let task = tokio::spawn(writer.run(stop.clone()));
        (events, Recorder { stop, task })
    }

    /// Says that something happened. `meta` is an object, with what `docs/events.md` names for the
    /// kind: what is secret does not belong into it.
    pub fn record(
        &self,
        kind: EventKind,
        user: Option<&UserId>,
        sandbox: Option<&SandboxId>,
        meta: Value,
    ) {
        let event = NewEvent::now(kind, user, sandbox, meta);
        let event = if kind.is_anybodys() {
            lock(&self.limiter).pass(event, Instant::now())
        } else {
            Some(event)
        };
        if event.is_some_and(|event| self.queue.try_send(event).is_err()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Recorder {
    /// Records what has been said until now, and ends. What is said later is lost.
    pub async fn close(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the recorder of events failed");
        }
    }
}

struct Writer {
    db: Db,
    waiting: mpsc::Receiver<NewEvent>,
    batch: Vec<NewEvent>,
    limiter: Arc<Mutex<Limiter>>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) {
        let mut ticks = interval_at(Instant::now() + LINGER, LINGER);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tidied: Option<Instant> = None;
        loop {
            let room = BATCH - self.batch.len();
            let got = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                got = self.waiting.recv_many(&mut self.batch, room) => Some(got),
                _ = ticks.tick() => None,
            };
            match got {
                // Nobody is left who could say anything.
                Some(0) => break,
                Some(_) if self.batch.len() < BATCH => {}
                Some(_) => self.flush().await,
                None => {
                    self.batch.extend(lock(&self.limiter).overdue(Instant::now()));
                    self.flush().await;
                    if tidied.is_none_or(|last| last.elapsed() >= TIDY) {
                        tidied = Some(Instant::now());
                        self.tidy().await;
                    }
                }
            }
        }
        self.waiting.close();
        while self.waiting.recv_many(&mut self.batch, BATCH).await > 0 {
            self.flush().await;
        }
        self.batch.extend(lock(&self.limiter).rest());
        self.flush().await;
    }

    async fn flush(&mut self) {
        let lost = self.dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "events were not recorded: more happened than could be written");
        }
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let lost = batch.len();
        if let Err(error) = self.db.call(move |store| store.record(&batch)).await {
            tracing::warn!(lost, error = crate::chain(&error), "failed to record events");
        }
    }

    async fn tidy(&self) {
        let forgotten = async {
            let mut sum = 0;
            loop {
                let oldest = Timestamp::now() - KEPT;
                let gone = move |store: &mut bhatti_store::Store| {
                    store.forget_events(oldest, MOST, FORGET)
                };
                match self.db.call(gone).await? {
                    0 => return Ok::<_, StoreError>(sum),
                    gone => sum += gone,
                }
            }
        };
        match forgotten.await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "forgot old events"),
            Err(error) => tracing::warn!(error = crate::chain(&error), "failed to forget events"),
        }
    }
}

fn lock(limiter: &Mutex<Limiter>) -> std::sync::MutexGuard<'_, Limiter> {
    // Numbers; nothing panics between them.
    limiter.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
