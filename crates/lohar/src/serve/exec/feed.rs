//! From the host to a command's stdin, and the host's kill.

use std::convert::Infallible;
use std::future::pending;

use bhatti_link::MessageReader;
use bhatti_wire::message::{ExecInput, ExecInputEvent as Event, MAX_CHUNK};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, mpsc};

/// Chunks queued for a command that does not read. A kill is heard while no more than this, and
/// what the link itself holds, is before it in the stream.
const QUEUED_CHUNKS: usize = 4;

/// Passes input on until the command has ended, which is when the caller drops this.
///
/// The end of the input, good or bad, ends stdin and nothing else.
pub(super) async fn feed<R>(input: R, stdin: Option<pipe::Sender>, kill: &Notify) -> Infallible
where
    R: AsyncRead + Unpin,
{
    let (queue, queued) = mpsc::channel(QUEUED_CHUNKS);
    tokio::join!(listen(input, queue, kill), write(stdin, queued));
    pending().await
}

async fn listen<R: AsyncRead + Unpin>(input: R, queue: mpsc::Sender<Bytes>, kill: &Notify) {
    // Room for the largest chunk and the bytes that say it is one.
    let mut messages = MessageReader::new(input, MAX_CHUNK + 64);
    let mut queue = Some(queue);
    while let Ok(Some(message)) = messages.next::<ExecInput>().await {
        match message.event {
            Some(Event::Data(bytes)) => {
                if let Some(queue) = &queue {
                    // An error is a stdin nobody reads any more; input for it is dropped.
                    queue.send(bytes).await.ok();
                }
            }
            Some(Event::Eof(_)) => queue = None,
            Some(Event::Kill(_)) => kill.notify_one(),
            // Something this agent does not know.
            None => {}
        }
    }
}

async fn write(stdin: Option<pipe::Sender>, mut queued: mpsc::Receiver<Bytes>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(bytes) = queued.recv().await {
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
