//! Connections to programs in a guest, by whichever way they can be had: its own address in its user's
//! network, or the link to its agent, which reaches what listens on the loopback only.
//!
//! Promises:
//! - Whoever dials holds a lease, so the machine is up. A connection by the network goes with the
//!   machine's link, as one by the link does: what slept, died or was destroyed leaves nobody waiting
//!   (`what_goes_by_the_network_ends_with_the_machine`).
//! - Before a machine is saved for sleep its connections are ended, while it can still hear of it
//!   ([`Route::end_all`]).
//! - A guest that drops what comes by its network costs a moment once in a while, not every time
//!   (`a_guest_that_does_not_answer_is_reached_by_the_link`).
//!
//! That no connection is with another machine is the network's promise (`bhatti_net`'s `dial`).

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bhatti_guest_client::{Guest, GuestError, Stream};
use bhatti_types::EngineId;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop;
use tokio::time::{Instant, timeout};

use crate::Taps;

/// How long the network is alone in trying. A guest's kernel answers at once, also for a program
/// that is busy.
const HEAD_START: Duration = Duration::from_millis(500);
/// How long it may take in all, when the link has been no use.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long a port is asked for by the link alone that refused by the network, or did not answer.
const REFUSED: Duration = Duration::from_secs(10);
const SILENT: Duration = Duration::from_secs(30);
/// The most ports of one sandbox that are remembered.
const MAX_REMEMBERED: usize = 64;

/// The way to one sandbox by its user's network, as long as there is the sandbox.
pub(crate) struct Route {
    taps: Arc<dyn Taps>,
    subnet: u32,
    id: EngineId,
    address: Ipv4Addr,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Ports that are reached by the link, and until when that is not tried again.
    by_link: HashMap<u16, Instant>,
    /// Connections there are.
    open: HashMap<u64, Open>,
    next: u64,
    /// How often all have been ended.
    ended: u64,
}

struct Open {
    port: u16,
    socket: RawFd,
    over: Arc<AtomicBool>,
}

impl Route {
    pub(crate) fn new(taps: Arc<dyn Taps>, subnet: u32, id: EngineId, address: Ipv4Addr) -> Self {
        Self { taps, subnet, id, address, state: Mutex::default() }
    }

    /// Ends every connection there is. When it returns, the guest has been sent the end of each.
    pub(crate) fn end_all(&self) {
        let mut state = self.state();
        state.ended += 1;
        for open in state.open.values() {
            open.over.store(true, Ordering::Relaxed);
            // The descriptor is open: its connection
            // takes itself out of here before it closes it.
            if let Err(error) = shutdown(open.socket, Shutdown::Both) {
                tracing::debug!(%error, "a connection to a program was over already");
            }
        }
    }

    fn is_by_link(&self, port: u16) -> bool {
        self.state().by_link.get(&port).is_some_and(|until| *until > Instant::now())
    }

    fn remember(&self, port: u16, how_long: Duration) {
        let now = Instant::now();
        let State { by_link, open, .. } = &mut *self.state();
        // One of many that were begun at once may be lost on the way.
        if open.values().any(|open| open.port == port) {
            return;
        }
        if by_link.len() >= MAX_REMEMBERED {
            by_link.retain(|_, until| *until > now);
        }
        if by_link.len() < MAX_REMEMBERED {
            by_link.insert(port, now + how_long);
        }
    }

    /// `None`: there is no network.
    async fn connect(
        self: &Arc<Self>,
        port: u16,
        guest: &Guest,
    ) -> Result<Option<ByNetwork>, NotReached> {
        let ended = self.state().ended;
        let dialled = self.taps.dial(self.subnet, &self.id, self.address, port).await;
        let stream = match dialled {
            Ok(Some(stream)) => stream,
            Ok(None) => return Ok(None),
            Err(error) => {
                let error = crate::chain(&*error);
                tracing::debug!(port, error, "a program is not reached by the network");
                return Err(NotReached);
            }
        };
        let mut state = self.state();
        if state.ended != ended {
            // The machine was put to sleep meanwhile.
            return Err(NotReached);
        }
        state.by_link.remove(&port);
        let number = state.next;
        state.next += 1;
        let over = Arc::new(AtomicBool::new(false));
        state.open.insert(number, Open { port, socket: stream.as_raw_fd(), over: over.clone() });
        drop(state);
        let link = guest.clone();
        let gone = Box::pin(async move { link.gone().await });
        Ok(Some(ByNetwork { stream, over, gone, route: self.clone(), number }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in there can be left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody took the connection at the guest's address.
struct NotReached;

/// Connects to programs in one guest. Cheap to clone; keeps nothing awake.
#[derive(Clone)]
pub struct Dialer {
    guest: Guest,
    route: Option<Arc<Route>>,
}

impl From<Guest> for Dialer {
    /// By the link alone.
    fn from(guest: Guest) -> Self {
        Self { guest, route: None }
    }
}

impl Dialer {
    pub(crate) fn new(guest: Guest, route: Arc<Route>) -> Self {
        Self { guest, route: Some(route) }
    }

    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Connects to a TCP port of the guest: at its address, or else on its loopback. Errors are those
    /// of [`Guest::dial`].
    pub async fn dial(&self, port: u16) -> Result<Connection, GuestError> {
        let Some(route) = self.route.as_ref().filter(|route| !route.is_by_link(port)) else {
            return self.dial_link(port).await;
        };
        let mut by_network = pin!(route.connect(port, &self.guest));
        match timeout(HEAD_START, &mut by_network).await {
            Ok(Ok(Some(connection))) => return Ok(Connection::Network(connection)),
            Ok(Ok(None)) => return self.dial_link(port).await,
            Ok(Err(NotReached)) => return self.dial_link_from(route, port, REFUSED).await,
            Err(_) => {}
        }
        let mut by_link = pin!(self.dial_link_from(route, port, SILENT));
        tokio::select! {
            connected = &mut by_network => match connected {
                Ok(Some(connection)) => Ok(Connection::Network(connection)),
                Ok(None) | Err(NotReached) => by_link.await,
            },
            dialled = &mut by_link => match dialled {
                Ok(connection) => Ok(connection),
                // It may listen at its address alone.
                Err(failure) => match timeout(PATIENCE, by_network).await {
                    Ok(Ok(Some(connection))) => Ok(Connection::Network(connection)),
                    _ => Err(failure),
                },
            },
        }
    }

    /// By the link, where the network was no use; for a while it is not tried again if that works.
    async fn dial_link_from(
        &self,
        route: &Route,
        port: u16,
        how_long: Duration,
    ) -> Result<Connection, GuestError> {
        let connection = self.dial_link(port).await?;
        route.remember(port, how_long);
        Ok(connection)
    }

    async fn dial_link(&self, port: u16) -> Result<Connection, GuestError> {
        self.guest.dial(port).await.map(Connection::Link)
    }
}

/// A connection to a program. Dropping it hangs up.
pub enum Connection {
    Network(ByNetwork),
    Link(Stream),
}

/// One that goes by the user's network.
pub struct ByNetwork {
    stream: TcpStream,
    /// It was ended from our side.
    over: Arc<AtomicBool>,
    /// Resolves with the end of the machine.
    gone: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    route: Arc<Route>,
    number: u64,
}

impl Drop for ByNetwork {
    fn drop(&mut self) {
        // Before the descriptor is closed, and its number somebody else's.
        self.route.state().open.remove(&self.number);
    }
}

impl ByNetwork {
    fn check(&self) -> io::Result<()> {
        if self.over.load(Ordering::Relaxed) { Err(ended()) } else { Ok(()) }
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the machine does not run any more")
}

impl AsyncRead for ByNetwork {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        match polled {
            // An end of ours is no end of the program's.
            Poll::Ready(Ok(())) if buffer.filled().len() == before => Poll::Ready(self.check()),
            Poll::Pending if !self.over.load(Ordering::Relaxed) => {
                if self.gone.as_mut().poll(context).is_ready() {
                    self.over.store(true, Ordering::Relaxed);
                    return Poll::Ready(Err(ended()));
                }
                Poll::Pending
            }
            Poll::Pending => Poll::Ready(Err(ended())),
            ready => ready,
        }
    }
}

impl AsyncWrite for ByNetwork {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Network(network) => Pin::new(network).poll_read(context, buffer),
            Self::Link(link) => {
                // Sockets do that by themselves: whoever reads what never ends gets to its deadline.
                let budget = ready!(coop::poll_proceed(context));
                let polled = Pin::new(link).poll_read(context, buffer);
                if polled.is_ready() {
                    budget.made_progress();
                }
                polled
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Network(network) => Pin::new(network).poll_write(context, bytes),
            Self::Link(link) => Pin::new(link).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Network(network) => Pin::new(network).poll_write_vectored(context, pieces),
            Self::Link(link) => Pin::new(link).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Network(network) => network.is_write_vectored(),
            Self::Link(link) => link.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Network(network) => Pin::new(network).poll_flush(context),
            Self::Link(link) => Pin::new(link).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Network(network) => Pin::new(network).poll_shutdown(context),
            Self::Link(link) => Pin::new(link).poll_shutdown(context),
        }
    }
}
