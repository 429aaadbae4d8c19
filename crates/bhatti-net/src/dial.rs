//! Connections from the host to a guest's own address, for whoever passes requests on to programs.
//!
//! Promises:
//! - A connection is with the machine it was asked for or with none. Its socket bears that machine's
//!   mark, and the rules let a mark speak with the address that is its machine's at that moment
//!   (set `dialled`): neither the first packet nor any repeated one reaches who has the address next,
//!   and nothing of theirs comes in (`a_connection_is_with_one_machine`).
//! - Who dials waits for nobody who changes the network or looks at it
//!   (`who_dials_does_not_wait_for_a_change`).
//! - Nothing is opened for guests: what they may begin is as before.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bhatti_types::EngineId;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use tokio::net::{TcpSocket, TcpStream};

use crate::NetError;
use crate::apply::in_namespace;

/// How many sockets are made at a time: each visit to a namespace costs a thread.
const BATCH: usize = 16;

/// What dialling needs of one user's network, as it was when it was last changed. What has changed since
/// does no harm: the rules decide whom a mark may speak with.
pub(crate) struct Reach {
    pub(crate) guests: BTreeMap<Ipv4Addr, EngineId>,
    pub(crate) spare: Arc<Spare>,
}

impl Reach {
    pub(crate) fn has(&self, id: &EngineId, address: Ipv4Addr) -> bool {
        self.guests.get(&address) == Some(id)
    }
}

/// Sockets in one user's namespace that nobody has connected yet. They go with that namespace.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    /// Held only while more are made, in one visit for all who wait.
    sockets: tokio::sync::Mutex<Vec<OwnedFd>>,
}

impl Spare {
    /// One that speaks with machine `id` alone.
    pub(crate) async fn take(&self, namespace: &str, id: &EngineId) -> Result<TcpSocket, NetError> {
        let mut sockets = self.sockets.lock().await;
        if sockets.is_empty() {
            *sockets = in_namespace(namespace, || {
                let made: nix::Result<_> = (0..BATCH).map(|_| unconnected()).collect();
                made.map_err(|errno| NetError::Socket(errno.into()))
            })
            .await?;
        }
        let socket = sockets.pop().ok_or(NetError::TaskDied)?;
        drop(sockets);
        marked(socket, id).map_err(NetError::Socket)
    }
}

fn unconnected() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Inet, SockType::Stream, flags, None)
}

fn marked(socket: OwnedFd, id: &EngineId) -> io::Result<TcpSocket> {
    setsockopt(&socket, sockopt::Mark, &mark(id))?;
    let socket = TcpSocket::from_std_stream(socket.into());
    // What is passed on in pieces is meant to arrive in pieces.
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Connects to that port. The kernel takes minutes to give up: the caller brings the deadline.
pub(crate) async fn connect(
    socket: TcpSocket,
    address: Ipv4Addr,
    port: u16,
) -> Result<TcpStream, NetError> {
    let address = SocketAddr::from((address, port));
    socket.connect(address).await.map_err(|source| NetError::Connect { address, source })
}

/// What sockets to machine `id` are marked with: what its TAP is named after, and never zero, which
/// is no mark.
pub(crate) fn mark(id: &EngineId) -> u32 {
    let digits = id.as_str().get(..8).unwrap_or_default();
    u32::from_str_radix(digits, 16).unwrap_or_default().max(1)
}
