//! How much of a name server one guest may take.
//!
//! Promise: the same over UDP and TCP, and over however many connections
//! (`a_guest_asks_only_so_fast_and_disturbs_nobody`).

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

/// How many questions a guest may ask in a second, and how many at once after a time of silence.
const RATE: f64 = 100.0;
const BURST: f64 = 400.0;
/// Questions of one guest that may be under way at a time: an eighth of what there is room for.
const UNDER_WAY: usize = super::UNDER_WAY / 8;
/// Connections of one guest at a time.
const CONNECTIONS: usize = super::CONNECTIONS / 8;

/// The guests that have asked.
#[derive(Default)]
pub(super) struct Askers {
    // At most as many as there are addresses in a user's range: others are not let through.
    of: HashMap<Ipv4Addr, Asker>,
}

struct Asker {
    left: f64,
    last: Instant,
    under_way: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Asker {
    fn new(now: Instant) -> Self {
        let [under_way, connections] =
            [UNDER_WAY, CONNECTIONS].map(|room| Arc::new(Semaphore::new(room)));
        Self { left: BURST, last: now, under_way, connections }
    }
}

impl Askers {
    /// Counts a question of `guest`, and says where there is room for it. `None`: it asks too fast.
    pub(super) fn admit(&mut self, guest: Ipv4Addr, now: Instant) -> Option<Arc<Semaphore>> {
        let asker = self.of.entry(guest).or_insert_with(|| Asker::new(now));
        let gained = now.duration_since(asker.last).as_secs_f64() * RATE;
        asker.last = now;
        asker.left = (asker.left + gained).min(BURST);
        if asker.left < 1.0 {
            return None;
        }
        asker.left -= 1.0;
        Some(asker.under_way.clone())
    }

    /// Where there is room for connections of `guest`.
    pub(super) fn connections(&mut self, guest: Ipv4Addr) -> Arc<Semaphore> {
        self.of.entry(guest).or_insert_with(|| Asker::new(Instant::now())).connections.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_guest_asks_only_so_fast_and_disturbs_nobody() {
        let (mut askers, now) = (Askers::default(), Instant::now());
        let [one, other] = [2, 3].map(|last| Ipv4Addr::new(10, 0, 1, last));
        let heard = (0..1000).filter(|_| askers.admit(one, now).is_some()).count();
        assert_eq!(heard, 400);
        assert!(askers.admit(other, now).is_some());
        let later = now + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| askers.admit(one, later).is_some()).count(), 100);
    }

    #[test]
    fn a_guest_has_only_so_much_room() {
        let mut askers = Askers::default();
        let [one, other] = [2, 3].map(|last| Ipv4Addr::new(10, 0, 1, last));
        let room = CONNECTIONS;
        let held: Vec<_> =
            (0..room).filter_map(|_| askers.connections(one).try_acquire_owned().ok()).collect();
        assert_eq!(held.len(), room);
        assert!(askers.connections(one).try_acquire_owned().is_err());
        assert!(askers.connections(other).try_acquire_owned().is_ok());
    }
}
