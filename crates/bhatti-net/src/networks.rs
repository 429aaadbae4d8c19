//! The applied state: which users have a network, and who is changing it.
//!
//! Promises:
//! - One user's network is changed by one task at a time; callers that ask for the same thing at
//!   the same time share one change (`concurrent_callers_share_one_network`).
//! - Changes run in tasks of their own: dropping a future loses the answer, not the change.
//! - Users do not wait for each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use bhatti_types::EngineId;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::apply::{self, Program};
use crate::plan::{self, Names, UserPlan, Wanted};
use crate::{Ipv4Net, NetError};

/// How networks are named and addressed.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// What the names of namespaces begin with; the interface and table names follow from it.
    /// Two daemons on one host need different ones.
    pub prefix: String,
    /// The range between the namespaces and the host, a /16. If the host uses a part of it,
    /// another one is taken and logged.
    pub transit: Ipv4Net,
}

impl Default for NetConfig {
    fn default() -> Self {
        let transit = Ipv4Net::new(Ipv4Addr::new(100, 127, 0, 0), 16);
        Self { prefix: "bhatti-".to_owned(), transit: transit.expect("the host bits are zero") }
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

struct Inner {
    names: Names,
    transit: Ipv4Net,
    users: Mutex<HashMap<u32, Arc<tokio::sync::Mutex<Slot>>>>,
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
    Ready,
}

impl Networks {
    /// Checks what networks need, chooses the transit range, loads the host's rules and turns
    /// forwarding on. Users' networks of a former daemon are left as they are.
    pub async fn open(config: NetConfig) -> Result<Self, NetError> {
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
        let (users, rules_seen) = (Mutex::default(), Mutex::default());
        let networks = Self { inner: Arc::new(Inner { names, transit, users, rules_seen }) };
        // Rules before forwarding: no packet is forwarded that they have not seen.
        networks.inner.load_host_rules().await?;
        if apply::enable_forwarding()? {
            tracing::info!("turned on net.ipv4.ip_forward");
        }
        networks.warn_of_other_firewalls().await;
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

    /// Opens the TAP of machine `id` on the bridge of user `index`, whose network is
    /// made or repaired if needed, as are the host's rules: restarting the nftables service flushes
    /// every table on the host. The TAP vanishes when its last descriptor closes.
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
                    *slot = Slot::Unknown;
                    inner.ensure(index, &mut slot).await?;
                    apply::open_tap(&namespace, &id).await
                }
                other => other,
            }
        })
        .await
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
    /// they were; in the others, the TAPs that no machine holds. For the start of the daemon, after
    /// machines have been adopted or ended and before any is started.
    pub async fn sweep(&self, keep: &[u32]) -> Result<Vec<u32>, NetError> {
        let (kept, found): (Vec<u32>, Vec<u32>) =
            self.inner.found()?.into_iter().partition(|index| keep.contains(index));
        for index in kept {
            let (inner, _slot) = self.lock(index).await;
            inner.remove_unheld(index).await?;
        }
        for &index in &found {
            let (inner, mut slot) = self.lock(index).await;
            complete(async move { inner.remove(index, &mut slot).await }).await?;
        }
        Ok(found)
    }

    /// Removes the host's rules and the claim to the transit range if no user has a network.
    /// Forwarding stays on: others may rely on it by now.
    pub async fn close(&self) -> Result<Closed, NetError> {
        let left = self.inner.found()?;
        if !left.is_empty() {
            return Ok(Closed::InUse(left.into_iter().collect()));
        }
        apply::load_host_rules(&plan::no_rules(&self.inner.names)).await?;
        apply::release_transit(&self.inner.names).await?;
        Ok(Closed::Everything)
    }

    /// The only right to change the network of user `index`.
    async fn lock(&self, index: u32) -> (Arc<Inner>, OwnedMutexGuard<Slot>) {
        let slot = {
            let mut users = self.inner.users.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(users.entry(index).or_default())
        };
        (Arc::clone(&self.inner), slot.lock_owned().await)
    }
}

/// Runs a change in a task of its own, so that it also completes when the caller goes away.
async fn complete<T: Send + 'static>(
    change: impl Future<Output = Result<T, NetError>> + Send + 'static,
) -> Result<T, NetError> {
    tokio::spawn(change).await.map_err(|_| NetError::TaskDied)?
}

/// Looks and repairs. What was seen can be gone when it is acted on (the kernel is still taking a
/// removed namespace's links away), so a refusal means to look again.
async fn build(plan: &UserPlan) -> Result<(), NetError> {
    let mut attempts = 1..=3;
    loop {
        attempts.next();
        let attempt = async {
            let observed = apply::observe(plan).await?;
            apply::repair(plan, observed.namespace, &plan.repair(&observed)).await
        };
        match attempt.await {
            Err(error @ NetError::Refused { .. }) if !attempts.is_empty() => {
                tracing::debug!(%error, namespace = plan.namespace, "looking again");
            }
            other => return other,
        }
    }
}

impl Inner {
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

    /// Makes or repairs the network of a user. Idempotent. Returns its namespace.
    async fn ensure(&self, index: u32, slot: &mut Slot) -> Result<String, NetError> {
        let wanted = Wanted { index, policies: BTreeMap::new() };
        let plan = UserPlan::new(&self.names, self.transit, &wanted)?;
        if matches!(slot, Slot::Unknown) {
            build(&plan).await?;
            *slot = Slot::Ready;
            tracing::debug!(index, namespace = plan.namespace, "user's network is ready");
        }
        Ok(plan.namespace)
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
        *slot = Slot::Unknown;
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
