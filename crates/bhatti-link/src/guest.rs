//! The guest's end.

use std::future::poll_fn;
use std::io;

use bhatti_wire::Violation;
use bhatti_wire::mux::{Mux, Role as MuxRole};
use bhatti_wire::record::{RECORD_LEN, Record, RecordKind};
use bhatti_wire::session::{GuestEvent, GuestSession};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::pump::{Pump, Role, Stop};
use crate::stream::{Shared, Stream};

/// What a guest writes when it starts to listen, before [`serve`], so that a host which is
/// already there says hello again.
pub fn ready_record() -> [u8; RECORD_LEN] {
    Record::ready().encode()
}

/// Serves sessions on `io` until it is at its end (`Ok`) or fails.
///
/// Every stream the host opens is handed to `on_stream`, which must not block: it spawns.
/// When a host begins a new session, the streams of the former one fail with
/// [`ConnectionAborted`](io::ErrorKind::ConnectionAborted), as they do when this returns or is
/// dropped. Bytes that make no sense are skipped until the next handshake.
pub async fn serve<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    on_stream: impl FnMut(Stream),
) -> io::Result<()> {
    let role = Guest { session: GuestSession::new(), streams: None, on_stream };
    let mut pump = Pump::new(io, role);
    match poll_fn(|context| pump.poll_until(context, |_| false)).await {
        Ok(()) | Err(Stop::Eof) => Ok(()),
        Err(Stop::Io(error)) => Err(error),
        // Neither happens: a guest survives every violation and nobody here closes a session.
        Err(Stop::Violation(violation)) => Err(io::Error::other(violation)),
        Err(Stop::Closed) => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

struct Guest<F> {
    session: GuestSession,
    streams: Option<Shared>,
    on_stream: F,
}

impl<F> Guest<F> {
    fn end_session(&mut self) {
        if let Some(streams) = self.streams.take() {
            streams.with(Mux::kill);
        }
    }
}

impl<F> Drop for Guest<F> {
    fn drop(&mut self) {
        self.end_session();
    }
}

impl<F: FnMut(Stream)> Role for Guest<F> {
    fn receive(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Violation> {
        let mut used = 0;
        loop {
            let (taken, event) = self.session.next(&input[used..]);
            used += taken;
            match event {
                None => return Ok(used),
                Some(GuestEvent::Started(nonce)) => {
                    self.end_session();
                    self.streams = Some(Shared::new(Mux::new(MuxRole::Guest, nonce)));
                    output.extend(Record::new(RecordKind::Ack, nonce).encode());
                }
                Some(GuestEvent::Lost(_)) => {
                    self.end_session();
                    output.extend(ready_record());
                }
                Some(GuestEvent::Frame(frame)) => {
                    let Some(streams) = &self.streams else { continue };
                    match streams.with(|mux| mux.receive(frame)) {
                        Ok(None) => {}
                        Ok(Some(id)) => (self.on_stream)(Stream::new(streams.clone(), id)),
                        Err(_) => {
                            self.session.abandon();
                            self.end_session();
                            output.extend(ready_record());
                        }
                    }
                }
            }
        }
    }

    fn streams(&self) -> Option<&Shared> {
        self.streams.as_ref()
    }
}
