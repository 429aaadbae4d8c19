//! The daemon's handle: one thread owns the connection, everyone else sends it closures.

use tokio::sync::{mpsc, oneshot};

use crate::{Store, StoreError};

type Job = Box<dyn FnOnce(&mut Store) + Send>;

/// An async handle to the store. Cheap to clone; the thread ends with the last handle.
#[derive(Clone)]
pub struct Db {
    jobs: mpsc::Sender<Job>,
}

/// How many calls may wait for the writer before callers wait too.
const QUEUE: usize = 256;

impl Db {
    /// Starts the writer thread.
    pub fn start(mut store: Store) -> Result<Self, std::io::Error> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut store);
            }
        })?;
        Ok(Self { jobs })
    }

    /// Runs `work` on the writer thread.
    ///
    /// Cancel-safe: once sent, `work` runs to its end whether or not anybody still listens.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |store| {
            // The asker may have hung up; the work is done all the same.
            drop(reply.send(work(store)));
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}
