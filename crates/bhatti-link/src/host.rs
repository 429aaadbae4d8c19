//! The host's end.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bhatti_wire::Violation;
use bhatti_wire::mux::{CannotOpen, Mux, Role as MuxRole};
use bhatti_wire::record::{BURST_RECORDS, Nonce};
use bhatti_wire::session::{HostEvent, HostSession};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::pump::{Pump, Role, Stop};
use crate::stream::{Shared, Stream};

/// How long to wait for the first answer before saying hello in a burst, and again with twice
/// the patience each time.
///
/// A burst is only for a guest that was stopped in the middle of a frame, which is rare; one that
/// was just restored under emulation takes 60 to 150 ms for its first answer, longer when many
/// wake at once, and reading 64 KiB of hellos would cost it as much again.
const FIRST_PATIENCE: Duration = Duration::from_millis(400);
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// What is known about the guest when a carrier is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It was just started, so it is not in the middle of anything. One hello is enough, and one
    /// more when it says that it is listening.
    FirstBoot,
    /// It has lived before, under this daemon or another: it may wait for the rest of a frame
    /// that will never come. If it does not answer at once it gets enough hellos to fill that.
    Reconnect,
}

/// Why there is no link, or no stream.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the link to the guest is closed")]
    Closed,
    #[error("too many operations are under way in the guest")]
    TooManyStreams,
    #[error("the guest hung up during the handshake")]
    HungUp,
    #[error("the carrier of the link failed")]
    Carrier(#[source] io::Error),
    #[error("the guest broke the link protocol")]
    Violation(#[source] Violation),
}

/// How a link ended.
#[derive(Debug)]
pub enum LinkEnd {
    /// The carrier is at its end: the VMM is gone or hung up.
    CarrierClosed,
    /// The carrier failed.
    Carrier(io::Error),
    /// The guest broke the protocol. It is not to be trusted with this link any more.
    Violation(Violation),
    /// [`Link::close`] was called.
    Closed,
}

/// Opens streams to one guest, over one carrier. Cheap to clone; dropping it ends nothing.
#[derive(Clone)]
pub struct Link {
    streams: Shared,
    /// Its sender lives in the driver.
    driver: watch::Receiver<()>,
}

impl Link {
    /// Opens a stream. Does not wait for the guest.
    pub fn open(&self) -> Result<Stream, LinkError> {
        match self.streams.with(Mux::open) {
            Ok(id) => Ok(Stream::new(self.streams.clone(), id)),
            Err(CannotOpen::TooMany) => Err(LinkError::TooManyStreams),
            Err(CannotOpen::Lost) => Err(LinkError::Closed),
            Err(CannotOpen::Exhausted) => {
                // Four billion operations later a new session starts with new numbers.
                self.close();
                Err(LinkError::Closed)
            }
        }
    }

    /// Whether the link has ended. It does not come back.
    pub fn is_closed(&self) -> bool {
        self.streams.with(|mux| mux.is_dead())
    }

    /// Resolves when the link has ended and its driver is gone. Cancel-safe.
    pub async fn closed(&self) {
        let mut driver = self.driver.clone();
        while driver.changed().await.is_ok() {}
    }

    /// Ends the link: all streams fail, the driver returns and drops the carrier.
    pub fn close(&self) {
        self.streams.with(Mux::kill);
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// Begins a session on a carrier with `nonce`, sixteen fresh random bytes. Waits as long as the
/// guest takes: the caller brings the deadline, and dropping this drops the carrier.
///
/// The caller spawns the returned driver. The link lives as long as that does.
pub async fn connect<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    io: IO,
    nonce: [u8; 16],
    mode: Mode,
) -> Result<(Link, impl Future<Output = LinkEnd> + Send + 'static), LinkError> {
    let nonce = Nonce::new(nonce);
    let (alive, driver) = watch::channel(());
    let streams = Shared::new(Mux::new(MuxRole::Host, nonce));
    let role = Host { session: HostSession::new(nonce), streams: streams.clone(), _alive: alive };
    let mut pump = Pump::new(io, role);
    shake_hands(&mut pump, mode).await.map_err(|stop| match stop {
        Stop::Eof => LinkError::HungUp,
        Stop::Io(error) => LinkError::Carrier(error),
        Stop::Violation(violation) => LinkError::Violation(violation),
        Stop::Closed => LinkError::Closed,
    })?;
    let run = async move {
        match poll_fn(|context| pump.poll_until(context, |_| false)).await {
            Ok(()) | Err(Stop::Closed) => LinkEnd::Closed,
            Err(Stop::Eof) => LinkEnd::CarrierClosed,
            Err(Stop::Io(error)) => LinkEnd::Carrier(error),
            Err(Stop::Violation(violation)) => LinkEnd::Violation(violation),
        }
    };
    Ok((Link { streams, driver }, run))
}

async fn shake_hands<IO: AsyncRead + AsyncWrite + Unpin>(
    pump: &mut Pump<IO, Host>,
    mode: Mode,
) -> Result<(), Stop> {
    let hello = pump.role.session.hello().encode();
    pump.send(&hello);
    let mut patience = FIRST_PATIENCE;
    loop {
        let established =
            poll_fn(|context| pump.poll_until(context, |host| host.session.is_established()));
        match mode {
            Mode::FirstBoot => return established.await,
            Mode::Reconnect => match timeout(patience, established).await {
                Ok(result) => return result,
                // A guest that does not even read needs no second burst behind the first.
                Err(_) if pump.is_drained() => pump.send(&hello.repeat(BURST_RECORDS)),
                Err(_) => {}
            },
        }
        patience = (patience * 2).min(LAST_PATIENCE);
    }
}

struct Host {
    session: HostSession,
    streams: Shared,
    _alive: watch::Sender<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.streams.with(Mux::kill);
    }
}

impl Role for Host {
    fn receive(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Violation> {
        let mut used = 0;
        let mut says_ready = false;
        loop {
            let (taken, event) = self.session.next(&input[used..])?;
            used += taken;
            match event {
                None => break,
                Some(HostEvent::Ready) => says_ready = true,
                // It had seen a hello after all.
                Some(HostEvent::Established) => says_ready = false,
                Some(HostEvent::Frame(frame)) => {
                    self.streams.with(|mux| mux.receive(frame))?;
                }
            }
        }
        if says_ready {
            output.extend(self.session.hello().encode());
        }
        Ok(used)
    }

    fn streams(&self) -> Option<&Shared> {
        Some(&self.streams)
    }
}
