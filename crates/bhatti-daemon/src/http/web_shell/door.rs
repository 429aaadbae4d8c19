//! Who may come in: how often a peer may knock, how many may wait to say who they are, how many
//! may be in, and that a revoked token puts out everybody at once.
//!
//! Promises:
//! - A client whose token was revoked is either refused or put out: the token is looked at and the
//!   client is counted under one lock, which revoking takes too (`revoking_puts_out_those_inside`).
//! - What a stranger can make us remember is bounded.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bhatti_store::{SandboxRow, StoreError};
use bhatti_types::SandboxId;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// How many clients a sandbox has at most.
const MAX_CLIENTS: u32 = 5;

/// How often one peer may connect, in a second; as often at once.
const KNOCKS: u32 = 10;

/// How many clients of the whole daemon may be there without a token that was proven. All of them
/// together do not take all the sockets.
const MAX_WAITING: usize = 192;

/// How long each of them may be there: until it has said its token, and until it is gone.
pub(super) const HELLO: Duration = Duration::from_secs(10);
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

// One peer alone, at its rate, does not take all the places.
const _: () = {
    let stays = HELLO.as_secs() + FAREWELL.as_secs();
    assert!(KNOCKS as u64 * (1 + stays) < MAX_WAITING as u64);
};

/// From how many peers on those that have been quiet are forgotten.
const MANY_PEERS: usize = 1024;

/// Everything that is asked of those who come.
pub(crate) struct WebShells {
    knocks: DefaultKeyedRateLimiter<IpAddr>,
    waiting: Arc<Semaphore>,
    inside: Inside,
}

type Inside = Arc<Mutex<HashMap<SandboxId, Clients>>>;

#[derive(Default)]
struct Clients {
    count: u32,
    /// Fires for all of them together.
    out: CancellationToken,
}

/// Why somebody does not come in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the token opens nothing")]
    Unauthorized,
    #[error("there are as many clients as there may be")]
    Crowded,
    #[error("the token could not be looked up")]
    Store(#[from] StoreError),
}

impl Default for WebShells {
    fn default() -> Self {
        let knocks = NonZeroU32::new(KNOCKS).expect("it is not zero");
        Self {
            knocks: RateLimiter::keyed(Quota::per_second(knocks)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            inside: Inside::default(),
        }
    }
}

impl WebShells {
    /// Whether `peer` may connect once more.
    pub(super) fn knock(&self, peer: IpAddr) -> bool {
        if self.knocks.len() > MANY_PEERS {
            self.knocks.retain_recent();
        }
        self.knocks.check_key(&household(peer)).is_ok()
    }

    /// A place to wait in until the token is said.
    pub(super) fn waiting_room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.waiting).try_acquire_owned().ok()
    }

    /// Lets a client in if `look_up` finds the sandbox its token opens. `look_up` is short.
    pub(super) fn admit(
        &self,
        look_up: impl FnOnce() -> Result<Option<SandboxRow>, StoreError>,
    ) -> Result<(SandboxRow, Place), Refused> {
        let mut inside = lock(&self.inside);
        let row = look_up()?.ok_or(Refused::Unauthorized)?;
        let clients = inside.entry(row.id.clone()).or_default();
        if clients.count >= MAX_CLIENTS {
            return Err(Refused::Crowded);
        }
        clients.count += 1;
        let out = clients.out.clone();
        let place = Place { inside: Arc::clone(&self.inside), id: row.id.clone(), out };
        Ok((row, place))
    }

    /// Puts out everybody who is in `sandbox`.
    pub(in crate::http) fn put_out(&self, sandbox: &SandboxId) {
        if let Some(clients) = lock(&self.inside).get_mut(sandbox) {
            // Those who come in with the next token are none of them.
            std::mem::take(&mut clients.out).cancel();
        }
    }
}

/// The place of one client; free again when this is dropped.
pub(super) struct Place {
    inside: Inside,
    id: SandboxId,
    out: CancellationToken,
}

impl Place {
    /// Resolves when the client has to go.
    pub(super) async fn put_out(&self) {
        self.out.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = lock(&self.inside);
        if let Some(clients) = inside.get_mut(&self.id) {
            clients.count -= 1;
            if clients.count == 0 {
                inside.remove(&self.id);
            }
        }
    }
}

fn lock(inside: &Inside) -> MutexGuard<'_, HashMap<SandboxId, Clients>> {
    // Nothing in there can be left half changed.
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who counts as one peer: whoever has an IPv6 network has 2^64 addresses in it.
pub(in crate::http) fn household(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::sandbox::tests::row;
    use bhatti_types::Phase;
    use futures_util::FutureExt;

    fn admit(shells: &WebShells, row: &SandboxRow) -> Result<Place, Refused> {
        shells.admit(|| Ok(Some(row.clone()))).map(|(_, place)| place)
    }

    #[test]
    fn a_sandbox_has_five_places_and_each_is_free_again() {
        let shells = WebShells::default();
        let (dev, other) = (row(Phase::Hot, ""), row(Phase::Hot, ""));
        let mut places: Vec<Place> =
            (0..5).map(|_| admit(&shells, &dev).expect("a place")).collect();
        assert!(matches!(admit(&shells, &dev), Err(Refused::Crowded)));
        admit(&shells, &other).expect("the neighbour's places are its own");
        places.pop();
        places.push(admit(&shells, &dev).expect("free again"));
        drop(places);
        assert!(lock(&shells.inside).is_empty(), "nothing is remembered of those who left");
    }

    #[test]
    fn a_stranger_takes_no_place() {
        let shells = WebShells::default();
        assert!(matches!(shells.admit(|| Ok(None)), Err(Refused::Unauthorized)));
        assert!(matches!(shells.admit(|| Err(StoreError::Closed)), Err(Refused::Store(_))));
        assert!(lock(&shells.inside).is_empty());
    }

    #[test]
    fn revoking_puts_out_those_inside() {
        let shells = WebShells::default();
        let (dev, other) = (row(Phase::Hot, ""), row(Phase::Hot, ""));
        let place = admit(&shells, &dev).expect("a place");
        let neighbour = admit(&shells, &other).expect("a place");
        shells.put_out(&dev.id);
        let next = admit(&shells, &dev).expect("a place");
        assert!(place.put_out().now_or_never().is_some());
        assert!(neighbour.put_out().now_or_never().is_none(), "another sandbox");
        assert!(next.put_out().now_or_never().is_none(), "came with the next token");
        shells.put_out(&SandboxRow { ..row(Phase::Hot, "") }.id);
    }

    #[test]
    fn a_peer_may_knock_ten_times_at_once() {
        let shells = WebShells::default();
        let knocks = |peer: &str| {
            let peer = peer.parse().expect("an address");
            (0..20).filter(|_| shells.knock(peer)).count()
        };
        assert_eq!(knocks("192.0.2.1"), 10);
        assert_eq!(knocks("192.0.2.2"), 10, "another peer");
        assert_eq!(knocks("2001:db8::1"), 10);
        assert_eq!(knocks("2001:db8::2"), 0, "the same network");
        assert_eq!(knocks("2001:db8:0:1::1"), 10, "another network");
        assert_eq!(knocks("::ffff:192.0.2.1"), 0, "the same peer");
    }
}
