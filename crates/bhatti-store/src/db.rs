//! The daemon's handle: one thread owns the writing connection, everyone else sends it closures.
//! Short reads have a connection of their own and are done where they are asked for: a hop to
//! another thread and back costs more than the query.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::{Store, StoreError};

type Job = Box<dyn FnOnce(&mut Store) + Send>;

/// An async handle to the store. Cheap to clone; the thread ends with the last handle.
#[derive(Clone)]
pub struct Db {
    jobs: mpsc::Sender<Job>,
    reader: Arc<Mutex<Store>>,
    writes: Arc<AtomicU64>,
}

/// How many calls may wait for the writer before callers wait too.
const QUEUE: usize = 256;

impl Db {
    /// Starts the writer thread.
    pub fn start(mut store: Store) -> Result<Self, StoreError> {
        let reader = Arc::new(Mutex::new(store.open_again()?));
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut store);
            }
        });
        thread.map_err(StoreError::Thread)?;
        Ok(Self { jobs, reader, writes: Arc::default() })
    }

    /// Reads a few rows by key, here and now. It sees everything that was written before.
    ///
    /// Blocks for the time of the query, some tens of microseconds: not for lists of everything.
    pub fn read<T>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // A panic in a query leaves the connection as it was.
        work(&self.reader.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How often something may have been written. What was read after this was asked for stands for as
    /// long as the answer stays the same. Not counted: a write whose [`Db::call`] has not returned, and
    /// what another process writes (`bhatti user`, while the daemon runs).
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Acquire)
    }

    /// Runs `work` on the writer thread.
    ///
    /// Cancel-safe: once sent, `work` runs to its end whether or not anybody still listens.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let writes = Arc::clone(&self.writes);
        let job: Job = Box::new(move |store| {
            let done = work(store);
            // Before the asker hears of it.
            writes.fetch_add(1, Ordering::Release);
            // The asker may have hung up; the work is done all the same.
            drop(reply.send(done));
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}
