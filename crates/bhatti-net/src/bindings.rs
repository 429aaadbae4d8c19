//! Which addresses were bound for which name: what the kernel cannot say of its set.
//!
//! Promises: bounded for each guest, also for one that keeps each of its bindings alive with a packet
//! (`what_the_kernel_keeps_is_counted`); what is not in here is known of nobody, and goes when a policy is
//! narrowed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bhatti_types::NetPolicy;

use crate::plan::{BOUND, Guest};

/// The most addresses bound for one guest at a time.
const MAX_ADDRESSES: usize = 1024;
/// The most names remembered of one address; those beyond give it no longer life.
const MAX_NAMES: usize = 4;
/// Asking the kernel what is left of a guest's bindings is worth it when so many may be gone.
const WORTH_A_LOOK: usize = MAX_ADDRESSES / 8;
/// A binding is not made again while it is good for longer than this.
const FRESH: Duration = Duration::from_secs(BOUND as u64 / 2);

/// The bindings of one namespace.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    of: HashMap<Ipv4Addr, BTreeMap<Ipv4Addr, Binding>>,
}

#[derive(Debug)]
struct Binding {
    names: BTreeSet<String>,
    /// Until when it is good without a packet; the kernel, which sees the packets, may keep it longer.
    until: Instant,
}

/// There are as many as one guest may have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Bindings {
    /// Those the kernel had when its rules were loaded by somebody who is gone.
    pub(crate) fn found(bindings: &[(Ipv4Addr, Ipv4Addr, u32)], now: Instant) -> Self {
        let mut found = Self::default();
        for &(guest, address, seconds) in bindings {
            let until = now + Duration::from_secs(seconds.into());
            let binding = Binding { names: BTreeSet::new(), until };
            found.of.entry(guest).or_default().insert(address, binding);
        }
        found
    }

    /// Whether anything may be bound for `guest`.
    pub(crate) fn has(&self, guest: Ipv4Addr) -> bool {
        self.of.contains_key(&guest)
    }

    /// Those of `addresses` that the kernel has to be told of because `guest` asked for `name`.
    pub(crate) fn wanting(
        &mut self,
        guest: Ipv4Addr,
        name: &str,
        addresses: &BTreeSet<Ipv4Addr>,
        now: Instant,
    ) -> Result<Vec<Ipv4Addr>, Full> {
        let bound = self.of.entry(guest).or_default();
        if bound.keys().chain(addresses).collect::<BTreeSet<_>>().len() > MAX_ADDRESSES {
            return Err(Full);
        }
        Ok(addresses
            .iter()
            .copied()
            .filter(|address| match bound.get_mut(address) {
                Some(binding) if binding.until > now + FRESH => {
                    if binding.names.len() < MAX_NAMES {
                        binding.names.insert(name.to_owned());
                    }
                    false
                }
                _ => true,
            })
            .collect())
    }

    /// Whether enough of what `guest` has may be gone that it is worth asking the kernel.
    pub(crate) fn is_worth_a_look(&self, guest: Ipv4Addr, now: Instant) -> bool {
        let bound = self.of.get(&guest).into_iter().flat_map(BTreeMap::values);
        bound.filter(|binding| binding.until <= now).count() >= WORTH_A_LOOK
    }

    /// Forgets what `guest` has no more: `kernel` has not got it.
    pub(crate) fn settle(
        &mut self,
        guest: Ipv4Addr,
        kernel: &[(Ipv4Addr, Ipv4Addr, u32)],
        now: Instant,
    ) {
        let Some(bound) = self.of.get_mut(&guest) else { return };
        let left = kernel.iter().filter(|(of, ..)| *of == guest);
        let left: BTreeMap<Ipv4Addr, u32> =
            left.map(|&(_, address, seconds)| (address, seconds)).collect();
        bound.retain(|address, binding| match left.get(address) {
            Some(&seconds) => {
                binding.until = now + Duration::from_secs(seconds.into());
                true
            }
            None => false,
        });
    }

    /// The kernel was told.
    pub(crate) fn bind(
        &mut self,
        guest: Ipv4Addr,
        name: &str,
        addresses: &[Ipv4Addr],
        now: Instant,
    ) {
        let until = now + Duration::from_secs(BOUND.into());
        let bound = self.of.entry(guest).or_default();
        for &address in addresses {
            let binding = bound.entry(address).or_insert(Binding { names: BTreeSet::new(), until });
            binding.until = until;
            if binding.names.len() < MAX_NAMES {
                binding.names.insert(name.to_owned());
            }
        }
    }

    /// What is left of `kernel`'s bindings when guests are no longer `old` but `new`: those of
    /// guests whose names did not change, and those that a name still allowed has led to.
    pub(crate) fn keep(
        &mut self,
        old: &BTreeMap<Ipv4Addr, Guest>,
        new: &BTreeMap<Ipv4Addr, Guest>,
        kernel: &mut Vec<(Ipv4Addr, Ipv4Addr, u32)>,
    ) {
        let void: BTreeSet<Ipv4Addr> = crate::plan::unbound(old, new).collect();
        let same = |guest: &Ipv4Addr| {
            let ids = [old, new].map(|guests| guests.get(guest).map(|guest| &guest.id));
            ids[0] == ids[1]
        };
        for guest in &void {
            let policy = new.get(guest).filter(|_| same(guest)).map(|guest| &guest.policy);
            let bound = self.of.entry(*guest).or_default();
            bound.retain(|_, binding| policy.is_some_and(|policy| binding.is_allowed_by(policy)));
        }
        kernel.retain(|(guest, address, _)| {
            let known = |bound: &BTreeMap<Ipv4Addr, Binding>| bound.contains_key(address);
            !void.contains(guest) || self.of.get(guest).is_some_and(known)
        });
        self.of.retain(|_, bound| !bound.is_empty());
    }
}

impl Binding {
    fn is_allowed_by(&self, policy: &NetPolicy) -> bool {
        policy.default_egress() == bhatti_types::Egress::Deny
            && self.names.iter().any(|name| policy.allows_name(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bhatti_types::EngineId;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);

    fn guests(id: &EngineId, hosts: &[&str]) -> BTreeMap<Ipv4Addr, Guest> {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let policy = NetPolicy::parse("deny", &hosts, &[]).unwrap();
        BTreeMap::from([(GUEST, Guest { name: "a".into(), id: id.clone(), policy })])
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    #[test]
    fn narrowing_keeps_what_an_allowed_name_has_led_to() {
        let now = Instant::now();
        let mut bindings = Bindings::found(&[(GUEST, address(9), 60)], now);
        bindings.bind(GUEST, "a.example", &[address(1), address(2)], now);
        bindings.bind(GUEST, "b.example", &[address(2), address(3)], now);
        let id = EngineId::random();
        let (old, new) = (guests(&id, &["a.example", "b.example"]), guests(&id, &["b.example"]));
        let mut kernel: Vec<_> = [1, 2, 3, 9].map(|last| (GUEST, address(last), 60)).into();
        bindings.keep(&old, &old, &mut kernel);
        assert_eq!(kernel.len(), 4, "nothing has changed");
        bindings.keep(&old, &new, &mut kernel);
        assert_eq!(kernel, [2, 3].map(|last| (GUEST, address(last), 60)));
        let somebody_else = guests(&EngineId::random(), &["b.example"]);
        bindings.keep(&new, &somebody_else, &mut kernel);
        assert!(kernel.is_empty() && !bindings.has(GUEST));
    }

    #[test]
    fn what_is_fresh_is_not_bound_again_and_a_guest_has_only_so_many() {
        let now = Instant::now();
        let mut bindings = Bindings::default();
        let asked = BTreeSet::from([address(1), address(2)]);
        let wanting = bindings.wanting(GUEST, "a.example", &asked, now).unwrap();
        assert_eq!(wanting, [address(1), address(2)]);
        bindings.bind(GUEST, "a.example", &wanting, now);
        assert_eq!(bindings.wanting(GUEST, "a.example", &asked, now), Ok(vec![]));
        let later = now + FRESH;
        assert_eq!(bindings.wanting(GUEST, "a.example", &asked, later).unwrap().len(), 2);
        let many = (0..1024).map(Ipv4Addr::from_bits).collect();
        assert_eq!(bindings.wanting(GUEST, "a.example", &many, later), Err(Full));
    }

    #[test]
    fn what_the_kernel_keeps_is_counted() {
        let now = Instant::now();
        let mut bindings = Bindings::default();
        let many: Vec<Ipv4Addr> = (0..1024).map(Ipv4Addr::from_bits).collect();
        bindings.bind(GUEST, "a.example", &many, now);
        assert!(!bindings.is_worth_a_look(GUEST, now));
        // Nobody says that they are gone.
        let later = now + Duration::from_secs(BOUND.into());
        let other = BTreeSet::from([address(1)]);
        assert_eq!(bindings.wanting(GUEST, "a.example", &other, later), Err(Full));
        assert!(bindings.is_worth_a_look(GUEST, later));
        let kept: Vec<_> = many.iter().map(|&address| (GUEST, address, 300)).collect();
        bindings.settle(GUEST, &kept, later);
        assert!(!bindings.is_worth_a_look(GUEST, later), "not again at once");
        assert_eq!(bindings.wanting(GUEST, "a.example", &other, later), Err(Full));
        bindings.settle(GUEST, &kept[..1], later);
        assert_eq!(bindings.wanting(GUEST, "a.example", &other, later), Ok(vec![address(1)]));
        // One in use for long is still known by its name when a policy is narrowed.
        let id = EngineId::random();
        let (old, new) = (guests(&id, &["a.example", "b.example"]), guests(&id, &["a.example"]));
        let mut kernel = kept[..2].to_vec();
        bindings.keep(&old, &new, &mut kernel);
        assert_eq!(kernel, kept[..1]);
    }
}
