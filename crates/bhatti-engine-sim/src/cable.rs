//! The cable between host and guest: what is on its way stays there while the guest is stopped.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, split};
use tokio::sync::watch;

const PIECE: usize = 8 * 1024;

/// Carries bytes both ways until both sides have closed, either breaks, or the machine ends.
pub(crate) async fn carry(host: DuplexStream, guest: DuplexStream, paused: watch::Receiver<bool>) {
    let (from_host, to_host) = split(host);
    let (from_guest, to_guest) = split(guest);
    let there = one_way(from_host, to_guest, paused.clone());
    let back = one_way(from_guest, to_host, paused);
    tokio::join!(there, back);
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut paused: watch::Receiver<bool>,
) {
    let mut piece = [0; PIECE];
    // An end of either side, or of the machine, is seen at the streams.
    while let Ok(n) = from.read(&mut piece).await {
        if paused.wait_for(|paused| !paused).await.is_err() {
            return;
        }
        if n == 0 {
            to.shutdown().await.ok();
            return;
        }
        if to.write_all(&piece[..n]).await.is_err() {
            return;
        }
    }
}
