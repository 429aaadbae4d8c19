//! The applied state: which users have a network, and who is changing it.
//!
//! Promises:
//! - One user's network is changed by one task at a time; callers that ask for the same thing at
//!   the same time share one change (`concurrent_callers_share_one_network`).
//! - Changes run in tasks of their own: dropping a future loses the answer, not the change.
//! - Users do not wait for each other, and none is kept from starting by another's broken network
//!   (`one_broken_network_keeps_nobody_else_waiting`).
//! - A network that could not be built is tried again until it can, or nobody needs it
//!   (`a_failed_rebuild_is_made_up_for`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bhatti_types::{Egress, EngineId};
use tokio::net::TcpStream;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::apply::{self, Program};
use crate::bindings::Bindings;
use crate::dial::{self, Reach, Spare};
use crate::directory::Directory;
use crate::dns::{Server, Upstreams};
use crate::next::Next;
use crate::plan::{self, Guest, Names, UserPlan, Wanted};
use crate::{Ipv4Net, NetError};

/// How soon, and how often at last, it is tried again to build a network that could not be built.
const MEND_FIRST: Duration = Duration::from_millis(250);
const MEND_LAST: Duration = Duration::from_secs(60);

/// How networks are named and addressed.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// What the names of namespaces begin with; the interface and table names follow from it.
    /// Two daemons on one host need different ones.
    pub prefix: String,
    /// The range between the namespaces and the host, a /16. If the host uses a part of it,
    /// another one is taken and logged.
    pub transit: Ipv4Net,
    /// Whom a name is asked of that is no sibling's.
    pub upstreams: Upstreams,
}

impl Default for NetConfig {
    fn default() -> Self {
        let transit = Ipv4Net::new(Ipv4Addr::new(100, 127, 0, 0), 16);
        Self {
            prefix: "bhatti-".to_owned(),
            transit: transit.expect("the host bits are zero"),
            upstreams: Upstreams::OfTheHost,
        }
    }
}

/// What [`Networks::release_user`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The network is gone.
    Removed,
    /// Nothing was changed: this many machines still hold a TAP in it.
    InUse(usize),
}

/// What [`Networks::close`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Nothing of ours is left on the host but an empty lock file in `/run`.
    Everything,
    /// The host's rules stay, because these users still have a network.
    InUse(Vec<u32>),
}

/// All users' networks on this host. Cheap to clone.
#[derive(Clone)]
pub struct Networks {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) names: Names,
    transit: Ipv4Net,
    pub(crate) upstreams: Upstreams,
    pub(crate) directory: Arc<dyn Directory>,
    users: Mutex<HashMap<u32, Arc<tokio::sync::Mutex<Slot>>>>,
    /// The networks that are ready, for who dials; whoever holds the slot keeps it in step.
    reach: Mutex<HashMap<u32, Arc<Reach>>>,
    /// A namespace with nobody's rules, for the next user who has none.
    next: Next,
    /// The generation of the host's rules in which ours were last seen.
    rules_seen: Mutex<Option<u32>>,
}

/// What this process knows of one user's network.
#[derive(Default)]
enum Slot {
    /// Nothing: it may not exist, or be half-built by a former daemon.
    #[default]
    Unknown,
    /// It was verified or built.
    Ready(Box<Ready>),
    /// It could not be built. The task in there goes on trying, for as long as this is so.
    Broken { _mender: JoinSet<()> },
}

/// One user's network as this process has made it.
struct Ready {
    /// The guests its rules are for.
    guests: BTreeMap<Ipv4Addr, Guest>,
    bindings: Bindings,
    server: Server,
    spare: Arc<Spare>,
}

impl Ready {
    fn reach(&self) -> Arc<Reach> {
        let guests = self.guests.iter().map(|(address, guest)| (*address, guest.id.clone()));
        Arc::new(Reach { guests: guests.collect(), spare: self.spare.clone() })
    }
}

impl Networks {
    /// Checks what networks need, chooses the transit range, loads the host's rules and turns
    /// forwarding on. Users' networks of a former daemon are left as they are.
    pub async fn open(config: NetConfig, directory: Arc<dyn Directory>) -> Result<Self, NetError> {
        let names = Names::new(&config.prefix)?;
        Program::Ip.run("print its version", &["-V"], "").await?;
        Program::Nft.run("print its version", &["--version"], "").await?;
        std::fs::File::open(apply::TUN).map_err(|source| NetError::File {
            action: "open",
            path: apply::TUN.into(),
            source,
        })?;
        let transit = apply::choose_transit(&names, config.transit).await?;
        if transit != config.transit {
            tracing::warn!(wanted = %config.transit, %transit, "took another transit range");
        }
        let (users, reach, rules_seen, next) = Default::default();
        let upstreams = config.upstreams;
        let inner = Inner { names, transit, upstreams, directory, users, reach, next, rules_seen };
        let networks = Self { inner: Arc::new(inner) };
        // Rules before forwarding: no packet is forwarded that they have not seen.
        networks.inner.load_host_rules().await?;
        if apply::enable_forwarding()? {
            tracing::info!("turned on net.ipv4.ip_forward");
        }
        networks.warn_of_other_firewalls().await;
        networks.inner.prepare_next();
        Ok(networks)
    }

    async fn warn_of_other_firewalls(&self) {
        match apply::foreign_drops(self.inner.names.table()).await {
            Ok(chains) => {
                for chain in chains {
                    tracing::warn!(
                        chain,
                        "drops forwarded packets by default; guests reach only what it lets through"
                    );
                }
            }
            // Only advice is lost; an nft built without JSON, for one, cannot list chains.
            Err(error) => tracing::debug!(%error, "did not look for other firewalls"),
        }
    }

    /// Opens the TAP of machine `id`, which is in the directory, on the bridge of user `index`, whose
    /// network is made or repaired if needed, as are the host's rules: restarting the nftables
    /// service flushes every table on the host. Its policy is in force before the TAP exists. The
    /// TAP vanishes when its last descriptor closes.
    pub async fn open_tap(&self, index: u32, id: &EngineId) -> Result<OwnedFd, NetError> {
        let id = id.clone();
        let (inner, mut slot) = self.lock(index).await;
        complete(async move {
            inner.ensure_host_rules().await?;
            let namespace = inner.ensure(index, &mut slot).await?;
            match apply::open_tap(&namespace, &id).await {
                // Somebody removed it behind our back. Once: a second time is no accident.
                Err(NetError::Namespace { source, .. }) => {
                    tracing::warn!(index, %source, "a user's namespace has vanished; rebuilding");
                    inner.forget(index, &mut slot).await;
                    inner.ensure(index, &mut slot).await?;
                    apply::open_tap(&namespace, &id).await
                }
                other => other,
            }
        })
        .await
    }

    /// Brings the rules of user `index` to what the directory says, if they have a network.
    pub async fn apply(&self, index: u32) -> Result<(), NetError> {
        let (inner, mut slot) = self.lock(index).await;
        complete(async move {
            if matches!(*slot, Slot::Ready(_)) || inner.found()?.contains(&index) {
                inner.ensure(index, &mut slot).await?;
            }
            Ok(())
        })
        .await
    }

    /// How many packets of the guest of user `index` at `address` its policy has denied since its
    /// network was made.
    pub async fn denied(&self, index: u32, address: Ipv4Addr) -> Result<u64, NetError> {
        let namespace = self.inner.names.namespace(index);
        match apply::carried(&namespace, self.inner.names.table()).await {
            Ok(carried) => Ok(carried.denials.get(&address).copied().unwrap_or(0)),
            // It is made when it is needed.
            Err(NetError::Namespace { .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Connects to a TCP port of machine `id` of user `index`, whose address this is. A machine that
    /// has no network, or whose network this process has not seen to, is not there.
    ///
    /// Takes as long as the guest does: the caller brings the deadline. Dropping this hangs up.
    pub async fn dial(
        &self,
        index: u32,
        id: &EngineId,
        address: Ipv4Addr,
        port: u16,
    ) -> Result<TcpStream, NetError> {
        let reach = self.inner.reach().get(&index).cloned();
        let Some(reach) = reach.filter(|reach| reach.has(id, address)) else {
            return Err(NetError::NotThere { id: id.to_string(), address });
        };
        let socket = reach.spare.take(&self.inner.names.namespace(index), id).await?;
        dial::connect(socket, address, port).await
    }

    /// A TAP that leads nowhere, for a machine that belongs to nobody.
    pub async fn open_detached_tap(&self) -> Result<OwnedFd, NetError> {
        apply::open_detached_tap().await
    }

    /// Removes the network of user `index` unless a machine still holds a TAP in it; one that has
    /// just ended gets half a second to let go. Idempotent.
    pub async fn release_user(&self, index: u32) -> Result<Released, NetError> {
        let end = Instant::now() + apply::LINGER;
        loop {
            let (inner, mut slot) = self.lock(index).await;
            let released = complete(async move { inner.release(index, &mut slot).await }).await?;
            match released {
                Released::InUse(_) if Instant::now() < end => {
                    tokio::time::sleep(apply::LINGER_STEP).await;
                }
                Released::InUse(_) | Released::Removed => return Ok(released),
            }
        }
    }

    /// Removes every network of ours whose user is not in `keep`, TAPs or not, and returns whose
    /// they were; in the others, the TAPs that no machine holds, and their rules are brought up to
    /// date and their names answered for. For the start of the daemon, after machines have been
    /// adopted or ended and before any is started. One user's network that cannot be dealt with is
    /// logged, and does not keep the others waiting.
    pub async fn sweep(&self, keep: &[u32]) -> Result<Vec<u32>, NetError> {
        let mut removed = Vec::new();
        for index in self.inner.found()? {
            let (inner, mut slot) = self.lock(index).await;
            if keep.contains(&index) {
                let repaired = complete(async move {
                    let unheld = inner.remove_unheld(index).await;
                    inner.ensure(index, &mut slot).await?;
                    unheld
                });
                if let Err(error) = repaired.await {
                    say(index, &error, "a user's network could not be repaired; it is tried again");
                }
            } else {
                match complete(async move { inner.remove(index, &mut slot).await }).await {
                    Ok(()) => removed.push(index),
                    Err(error) => say(index, &error, "a network of nobody could not be removed"),
                }
            }
        }
        Ok(removed)
    }

    /// Removes the networks that no machine holds a TAP in (they are made again when they are needed),
    /// and, if that was all, the host's rules and the claim to the transit range. Forwarding stays
    /// on: others may rely on it by now.
    pub async fn close(&self) -> Result<Closed, NetError> {
        let end = Instant::now() + apply::LINGER;
        let left = loop {
            for index in self.inner.found()? {
                let (inner, mut slot) = self.lock(index).await;
                let release = async move { inner.release(index, &mut slot).await };
                if let Err(error) = complete(release).await {
                    say(index, &error, "a user's network could not be removed");
                }
            }
            let left = self.inner.found()?;
            if left.is_empty() || Instant::now() >= end {
                break left;
            }
            tokio::time::sleep(apply::LINGER_STEP).await;
        };
        if !left.is_empty() {
            return Ok(Closed::InUse(left.into_iter().collect()));
        }
        self.inner.next.discard().await;
        apply::load_host_rules(&plan::no_rules(&self.inner.names)).await?;
        apply::release_transit(&self.inner.names).await?;
        Ok(Closed::Everything)
    }

    /// The only right to change the network of user `index`.
    async fn lock(&self, index: u32) -> (Arc<Inner>, OwnedMutexGuard<Slot>) {
        (Arc::clone(&self.inner), self.inner.slot(index).lock_owned().await)
    }
}

/// Runs a change in a task of its own, so that it also completes when the caller goes away.
async fn complete<T: Send + 'static>(
    change: impl Future<Output = Result<T, NetError>> + Send + 'static,
) -> Result<T, NetError> {
    tokio::spawn(change).await.map_err(|_| NetError::TaskDied)?
}

/// Logs what is wrong with one user's network, for an operator.
fn say(index: u32, error: &NetError, what: &str) {
    let cause = std::error::Error::source(error);
    tracing::error!(index, %error, cause, "{what}");
}

/// Tries to build the network of user `index` until it is not broken any more.
fn mend(networks: Weak<Inner>, index: u32) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    // Boxed: building one starts this, which builds it.
    Box::pin(async move {
        let mut pause = MEND_FIRST;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MEND_LAST);
            let Some(inner) = networks.upgrade() else { return };
            let mut slot = inner.slot(index).lock_owned().await;
            if !matches!(*slot, Slot::Broken { .. }) {
                return;
            }
            match inner.directory.guests(index) {
                // It is made when it is needed.
                Ok(guests) if guests.is_empty() => {
                    *slot = Slot::Unknown;
                    return;
                }
                _ => match inner.ensure(index, &mut slot).await {
                    Ok(_) => {
                        tracing::info!(index, "a user's network is whole again");
                        return;
                    }
                    Err(error) => say(index, &error, "a user's network is still broken"),
                },
            }
        }
    })
}

/// Looks and repairs. What was seen can be gone when it is acted on (the kernel is still taking a
/// removed namespace's links away), so a refusal means to look again.
async fn build(plan: &UserPlan, next: &Next) -> Result<plan::Observed, NetError> {
    let mut attempts = 1..=3;
    loop {
        attempts.next();
        let attempt = async {
            let observed = apply::observe(plan).await?;
            let repair = plan.repair(&observed);
            let prepared = if repair.create_namespace { next.take() } else { None };
            apply::repair(plan, observed.namespace, &repair, prepared).await?;
            Ok(observed)
        };
        match attempt.await {
            Err(error @ (NetError::Refused { .. } | NetError::Link { .. }))
                if !attempts.is_empty() =>
            {
                tracing::debug!(%error, namespace = plan.namespace, "looking again");
            }
            other => return other,
        }
    }
}

impl Inner {
    fn slot(&self, index: u32) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(users.entry(index).or_default())
    }

    fn prepare_next(&self) {
        self.next.prepare(plan::nobodys_rules(&self.names));
    }

    fn reach(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Arc<Reach>>> {
        // Nothing panics while it is held.
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is known any more of a user's network; a name server that was there has let go of its
    /// port, and nobody is mending or dialling.
    async fn forget(&self, index: u32, slot: &mut Slot) {
        self.reach().remove(&index);
        if let Slot::Ready(ready) = std::mem::take(slot) {
            ready.server.stop().await;
        }
    }

    async fn load_host_rules(&self) -> Result<(), NetError> {
        apply::load_host_rules(&plan::host_rules(&self.names, self.transit)).await
    }

    async fn ensure_host_rules(&self) -> Result<(), NetError> {
        // Asked before looking: what changes meanwhile is another generation.
        let generation = apply::rules_generation();
        if generation.is_some() && *self.rules_seen() == generation {
            return Ok(());
        }
        if !apply::host_rules_are_there(self.names.table()).await? {
            tracing::error!("the host's firewall rules have vanished; loading them again");
            return self.load_host_rules().await;
        }
        *self.rules_seen() = generation;
        Ok(())
    }

    fn rules_seen(&self) -> std::sync::MutexGuard<'_, Option<u32>> {
        // A number; nothing panics while it is held.
        self.rules_seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes or repairs the network of a user, with rules for the guests there are now. Idempotent.
    /// Returns its namespace.
    async fn ensure(self: &Arc<Self>, index: u32, slot: &mut Slot) -> Result<String, NetError> {
        let guests = self.directory.guests(index).map_err(NetError::Directory)?;
        if let Slot::Ready(ready) = slot
            && let Err(error) = self.bring_up_to_date(index, ready, &guests).await
        {
            tracing::warn!(index, %error, "a user's rules could not be changed; rebuilding");
            self.forget(index, slot).await;
        }
        if !matches!(slot, Slot::Ready(_)) {
            match self.make(index, guests).await {
                Ok(ready) => {
                    self.reach().insert(index, ready.reach());
                    *slot = Slot::Ready(Box::new(ready));
                }
                Err(error) => {
                    if matches!(slot, Slot::Unknown) {
                        let mut mender = JoinSet::new();
                        mender.spawn(mend(Arc::downgrade(self), index));
                        *slot = Slot::Broken { _mender: mender };
                    }
                    return Err(error);
                }
            }
        }
        Ok(self.names.namespace(index))
    }

    /// Builds what is missing of the network of a user, and answers for its names.
    async fn make(
        self: &Arc<Self>,
        index: u32,
        guests: BTreeMap<Ipv4Addr, Guest>,
    ) -> Result<Ready, NetError> {
        let wanted = Wanted { index, guests: guests.clone() };
        let plan = UserPlan::new(&self.names, self.transit, wanted)?;
        let observed = build(&plan, &self.next).await?;
        self.prepare_next();
        let bindings = Bindings::found(&observed.carried.bindings, std::time::Instant::now());
        let (namespace, gateway) = (&plan.namespace, plan.gateway);
        let server = Server::start(Arc::downgrade(self), index, namespace, gateway).await?;
        tracing::debug!(index, namespace, "user's network is ready");
        Ok(Ready { guests, bindings, server, spare: Arc::default() })
    }

    /// Changes rules that were for other guests, or the same with other policies.
    async fn bring_up_to_date(
        &self,
        index: u32,
        ready: &mut Ready,
        guests: &BTreeMap<Ipv4Addr, Guest>,
    ) -> Result<(), NetError> {
        let namespace = self.names.namespace(index);
        let void = plan::unbound(&ready.guests, guests).any(|guest| ready.bindings.has(guest));
        if void {
            // No binding is made meanwhile: that takes the same lock.
            let mut carried = apply::carried(&namespace, self.names.table()).await?;
            ready.bindings.keep(&ready.guests, guests, &mut carried.bindings);
            let reset = |guest: &Ipv4Addr| {
                guests.get(guest).map(|guest| &guest.id)
                    != ready.guests.get(guest).map(|guest| &guest.id)
            };
            carried.denials.retain(|guest, _| !reset(guest));
            let rules = plan::namespace_rules(&self.names, guests, &carried);
            apply::load_rules(&namespace, rules).await?;
        } else {
            let change = plan::change(&ready.guests, guests);
            apply::change_elements(&namespace, self.names.table(), &change).await?;
        }
        ready.guests.clone_from(guests);
        self.reach().insert(index, ready.reach());
        Ok(())
    }

    /// Binds `addresses` for `guest`, which asked for `name`. False: it may not have that name.
    pub(crate) async fn bind(
        self: &Arc<Self>,
        index: u32,
        guest: Ipv4Addr,
        name: &str,
        addresses: &BTreeSet<Ipv4Addr>,
    ) -> Result<bool, NetError> {
        let mut slot = self.slot(index).lock_owned().await;
        let Slot::Ready(ready) = &mut *slot else { return Ok(false) };
        // What the rules are for, not what the directory says by now: they go together.
        let policy = ready.guests.get(&guest).map(|guest| &guest.policy);
        if !policy.is_some_and(|policy| policy.allows_name(name)) {
            return Ok(false);
        }
        if policy.is_some_and(|policy| policy.default_egress() == Egress::Public) {
            return Ok(true);
        }
        let now = std::time::Instant::now();
        let mut wanting = ready.bindings.wanting(guest, name, addresses, now);
        if wanting.is_err() && ready.bindings.is_worth_a_look(guest, now) {
            let namespace = self.names.namespace(index);
            let carried = apply::carried(&namespace, self.names.table()).await?;
            ready.bindings.settle(guest, &carried.bindings, now);
            wanting = ready.bindings.wanting(guest, name, addresses, now);
        }
        let wanting = wanting.map_err(|_| NetError::TooManyBindings { guest })?;
        if !wanting.is_empty() {
            let namespace = self.names.namespace(index);
            let binding = plan::bind(guest, &wanting);
            apply::change_elements(&namespace, self.names.table(), &binding).await?;
            ready.bindings.bind(guest, name, &wanting, now);
        }
        Ok(true)
    }

    async fn release(&self, index: u32, slot: &mut Slot) -> Result<Released, NetError> {
        match apply::taps_in(&self.names.namespace(index)).await {
            Ok(0) => {}
            Ok(taps) => return Ok(Released::InUse(taps)),
            // Absent, or no namespace at all; removing deals with both.
            Err(NetError::Namespace { .. }) => {}
            Err(error) => return Err(error),
        }
        self.remove(index, slot).await?;
        Ok(Released::Removed)
    }

    /// Removes what a daemon has left that died while it handed a TAP over.
    async fn remove_unheld(&self, index: u32) -> Result<(), NetError> {
        let namespace = self.names.namespace(index);
        match apply::remove_unheld(&namespace).await {
            Ok(taps) => {
                for tap in taps {
                    tracing::info!(namespace, tap, "removed a network device that nobody held");
                }
                Ok(())
            }
            // Absent: it is made when it is needed.
            Err(NetError::Namespace { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, index: u32, slot: &mut Slot) -> Result<(), NetError> {
        self.forget(index, slot).await;
        apply::remove(&self.names.namespace(index), &self.names.veth(index)).await
    }

    /// Whose networks, or parts of one, exist on the host.
    fn found(&self) -> Result<BTreeSet<u32>, NetError> {
        let (namespaces, links) = apply::names_in_use()?;
        let namespaces = namespaces.iter().filter_map(|n| self.names.index_of_namespace(n));
        let links = links.iter().filter_map(|n| self.names.index_of_veth(n));
        Ok(namespaces.chain(links).collect())
    }
}
