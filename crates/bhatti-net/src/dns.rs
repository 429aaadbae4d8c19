//! The name server of one user's network: siblings by name, everything else as their policy has it.
//!
//! It listens on the gateway's address inside the user's namespace, so nobody else can ask it, and
//! whoever asks is who the address says: the bridge lets no false source through. What it does not
//! know it asks of the host's name servers, from the host.
//!
//! Promises, each with the test that holds it (`tests/all/names.rs`, `dns/reply/tests.rs`):
//! - A sibling's name is what the store says at that moment, whether it runs or not
//!   (`siblings_have_names`); other users' names are nobody's.
//! - Under a policy only allowed names are resolved; others are refused (`names_under_a_policy`).
//! - An address is bound for the guest before the guest is told of it, and one in denied space is
//!   told to nobody (`an_answer_does_not_open_what_is_denied`).
//! - Everything is bounded: questions per guest and second, those under way, connections, lengths
//!   and times; and no guest takes what its siblings need
//!   (`a_guest_with_many_questions_keeps_no_sibling_waiting`).

mod asker;
#[cfg(any(test, feature = "hostile"))]
pub mod hostile;
mod reply;
mod upstream;
mod watch;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::directory::Denied;
use crate::networks::Inner;
use crate::plan::Guest;
use crate::{NetError, apply};
use asker::Askers;
use reply::{Judged, Transport, Verdict};

/// Questions of one user that may be under way at a time; those beyond are not heard.
const UNDER_WAY: usize = 256;
/// Connections of one user at a time.
const CONNECTIONS: usize = 64;
/// A question is one name; this leaves room for whatever is said beside it.
const MAX_QUESTION: usize = 4096;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// How many questions one connection may ask.
const MAX_PER_CONNECTION: u32 = 1000;

/// Which servers are asked.
#[derive(Clone, Debug)]
pub enum Upstreams {
    /// These.
    Fixed(Vec<IpAddr>),
    /// Those the host asks, read when they are needed: they change with the networks it is in.
    OfTheHost,
}

impl Upstreams {
    fn servers(&self) -> Vec<IpAddr> {
        match self {
            Self::Fixed(servers) => servers.clone(),
            Self::OfTheHost => crate::host_nameservers(),
        }
    }
}

/// A running name server. It ends when this is stopped or dropped.
pub(crate) struct Server {
    tasks: JoinSet<()>,
}

impl Server {
    /// Listens on `gateway` in `namespace` for the guests of user `index`.
    pub(crate) async fn start(
        networks: Weak<Inner>,
        index: u32,
        namespace: &str,
        gateway: Ipv4Addr,
    ) -> Result<Self, NetError> {
        let (udp, tcp) = apply::in_namespace(namespace, move || {
            let failed = |source| NetError::Listen { address: gateway, source };
            let at = (gateway, 53);
            let udp = patiently(|| std::net::UdpSocket::bind(at)).map_err(failed)?;
            let tcp = patiently(|| std::net::TcpListener::bind(at)).map_err(failed)?;
            udp.set_nonblocking(true).map_err(failed)?;
            tcp.set_nonblocking(true).map_err(failed)?;
            Ok((udp, tcp))
        })
        .await?;
        let failed = |source| NetError::Listen { address: gateway, source };
        let udp = Arc::new(UdpSocket::from_std(udp).map_err(failed)?);
        let tcp = TcpListener::from_std(tcp).map_err(failed)?;
        let room = Arc::new(Semaphore::new(UNDER_WAY));
        let desk = Arc::new(Desk { networks, index, room, askers: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(desk.clone().hear(udp));
        tasks.spawn(watch::watch(desk.networks.clone(), index));
        tasks.spawn(desk.accept(tcp));
        Ok(Self { tasks })
    }

    /// Ends it; its port is free afterwards.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Binds a port that a former daemon may only just have let go: a process that was being started had
/// a copy of it.
fn patiently<T>(bind: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
    let end = Instant::now() + apply::LINGER;
    loop {
        match bind() {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(apply::LINGER_STEP);
            }
            bound => return bound,
        }
    }
}

/// Where questions of one user's guests are answered.
struct Desk {
    networks: Weak<Inner>,
    index: u32,
    room: Arc<Semaphore>,
    askers: Mutex<Askers>,
}

/// Room for one question: of its guest, and of all.
type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Desk {
    fn askers(&self) -> std::sync::MutexGuard<'_, Askers> {
        // Numbers; nothing panics while they are held.
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, guest: Ipv4Addr) -> Option<Arc<Semaphore>> {
        self.askers().admit(guest, Instant::now())
    }

    async fn hear(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut under_way = JoinSet::new();
        let mut buffer = vec![0; MAX_QUESTION];
        loop {
            while under_way.try_join_next().is_some() {}
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok((length, SocketAddr::V4(from))) => (length, from),
                Ok(_) => continue,
                // Told of a guest that was gone when it was answered, and the like.
                Err(error) => {
                    tracing::debug!(index = self.index, %error, "a name server hears nothing");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let Some(own) = self.admit(*from.ip()) else { continue };
            let Ok(own) = own.try_acquire_owned() else { continue };
            let Ok(all) = self.room.clone().try_acquire_owned() else { continue };
            let bytes = buffer.get(..length).unwrap_or_default().to_vec();
            let (desk, socket) = (self.clone(), socket.clone());
            under_way.spawn(async move {
                if let Some(answer) =
                    desk.answer(*from.ip(), &bytes, Transport::Udp, (own, all)).await
                    && let Err(error) = socket.send_to(&answer, from).await
                {
                    tracing::debug!(%error, "a guest did not get its answer");
                }
            });
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok((stream, SocketAddr::V4(from))) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            // Dropping the connection closes it: better told than kept waiting.
            let own = self.askers().connections(*from.ip());
            let Ok(own) = own.try_acquire_owned() else { continue };
            let Ok(all) = room.clone().try_acquire_owned() else { continue };
            let desk = self.clone();
            connections.spawn(async move {
                // It went away, or said nothing for too long.
                desk.converse(stream, *from.ip()).await;
                drop((own, all));
            });
        }
    }

    /// Answers one connection's questions, one after the other.
    async fn converse(self: &Arc<Self>, mut stream: TcpStream, from: Ipv4Addr) -> Option<()> {
        for _ in 0..MAX_PER_CONNECTION {
            let length = timed(stream.read_u16()).await?;
            let mut question = vec![0; usize::from(length)];
            if question.len() > MAX_QUESTION {
                return None;
            }
            timed(stream.read_exact(&mut question)).await?;
            let own = self.admit(from)?.acquire_owned().await.ok()?;
            let all = self.room.clone().acquire_owned().await.ok()?;
            let answer = self.answer(from, &question, Transport::Tcp, (own, all)).await?;
            let length = u16::try_from(answer.len()).ok()?;
            timed(stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())).await?;
        }
        Some(())
    }

    /// The bytes to send back; `None`: nothing.
    async fn answer(
        &self,
        from: Ipv4Addr,
        bytes: &[u8],
        transport: Transport,
        _room: Room,
    ) -> Option<Vec<u8>> {
        let message = Message::from_vec(bytes).ok()?;
        let networks = self.networks.upgrade()?;
        let guests = match networks.directory.guests(self.index) {
            Ok(guests) => guests,
            Err(error) => {
                tracing::error!(%error, "a name server cannot look up who there is");
                let reply = reply::answer(&message, ResponseCode::ServFail);
                return reply::encode(&message, &reply, transport);
            }
        };
        let reply = match reply::decide(self.index, &guests, from, &message)? {
            Verdict::Answer(reply) => {
                if reply.metadata.response_code == ResponseCode::Refused
                    && let (Some(asker), Some(query)) = (guests.get(&from), reply.queries.first())
                {
                    let what = Denied::Name(reply::plain(query.name()));
                    networks.directory.denied(self.index, asker, &what);
                }
                *reply
            }
            Verdict::Forward(query) => {
                let asker = guests.get(&from)?;
                self.forward(&networks, (from, asker), &message, &query).await
            }
        };
        reply::encode(&message, &reply, transport)
    }

    async fn forward(
        &self,
        networks: &Arc<Inner>,
        (from, asker): (Ipv4Addr, &Guest),
        message: &Message,
        query: &Query,
    ) -> Message {
        let failed = |code| reply::answer(message, code);
        let dnssec_ok = message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let servers = networks.upstreams.servers();
        let Some(outside) = upstream::ask(&servers, query, dnssec_ok).await else {
            return failed(ResponseCode::ServFail);
        };
        let name = reply::plain(query.name());
        match reply::judge(&asker.policy, query, &outside) {
            Judged::Rebinding(address) => {
                let what = Denied::Rebinding(name, address);
                networks.directory.denied(self.index, asker, &what);
                return failed(ResponseCode::Refused);
            }
            Judged::Pass(addresses) if addresses.is_empty() => {}
            Judged::Pass(addresses) => {
                match networks.bind(self.index, from, &name, &addresses).await {
                    Ok(true) => {}
                    // Its policy has changed meanwhile.
                    Ok(false) => return failed(ResponseCode::Refused),
                    Err(error) => {
                        tracing::warn!(index = self.index, sandbox = asker.name, %error,
                            "a name could not be bound");
                        return failed(ResponseCode::ServFail);
                    }
                }
            }
        }
        reply::pass_on(message, &asker.policy, outside)
    }
}

async fn timed<T>(work: impl Future<Output = std::io::Result<T>>) -> Option<T> {
    tokio::time::timeout(SILENCE, work).await.ok()?.ok()
}
