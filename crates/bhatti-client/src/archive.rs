//! `/sandboxes/:s/archive`: whole trees as tar.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bhatti_api::{Unpacked, route};
use bytes::Bytes;
use futures_util::stream;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc::Receiver;

use crate::client::Call;
use crate::file::ByteStream;
use crate::sandbox::MACHINE;
use crate::{Client, ClientError};

impl Client {
    /// `GET /sandboxes/:s/archive`: a file or a tree, called `name` in the archive.
    pub async fn read_archive(
        &self,
        sandbox: &str,
        path: &str,
        name: &str,
    ) -> Result<ByteStream<'_>, ClientError> {
        let path = format!("{}&name={}", route::archive(sandbox, path), route::escape(name));
        self.read_bytes(&path).await
    }

    /// `PUT /sandboxes/:s/archive`: unpacks what `pieces` bring beneath a directory. An error
    /// among them breaks the transfer off.
    pub async fn write_archive(
        &self,
        sandbox: &str,
        directory: &str,
        pieces: Receiver<io::Result<Bytes>>,
    ) -> Result<Unpacked, ClientError> {
        let path = route::archive(sandbox, directory);
        let call = Call::new(Method::PUT, &path);
        let taken = Arc::new(AtomicU64::new(0));
        let frames = stream::unfold((pieces, taken.clone()), |(mut pieces, taken)| async {
            let piece = pieces.recv().await?;
            taken.fetch_add(1, Relaxed);
            Some((piece.map(Frame::data), (pieces, taken)))
        });
        let body = StreamBody::new(frames).boxed_unsync();
        let work = async { self.read_json(self.send_stream(&call, body).await?).await };
        Ok(while_moving(&taken, work).await?.0)
    }
}

/// Waits for `work` for as long as `taken` grows. Once it stands still, the server has as long as
/// waking a machine and emptying its caches takes.
async fn while_moving<T>(
    taken: &AtomicU64,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    const STEP: Duration = MACHINE;
    let mut work = std::pin::pin!(work);
    loop {
        let before = taken.load(Relaxed);
        match tokio::time::timeout(STEP, &mut work).await {
            Ok(done) => return done,
            Err(_) if taken.load(Relaxed) == before => {
                return Err(ClientError::Timeout { seconds: STEP.as_secs() });
            }
            Err(_) => {}
        }
    }
}
