//! How many certificates are ordered, and in whose name.
//!
//! Promises:
//! - Authorities limit how many they issue: so many an hour are begun for all together, of which one
//!   account has half at most, and a few for each account whatever the others do.
//! - Orders under way are few, and one account has one of them: who publishes a lot waits for
//!   himself, and others for one order of his at most.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use bhatti_types::UserId;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// In whose name: an account's, or the operator's, who has the API's own name.
pub(crate) type Owner = Option<UserId>;

/// Orders begun for names that have none yet, an hour: of each account whatever the others do, of
/// one account beyond that, and of all beyond theirs.
const OWN: u32 = 2;
const EACH: u32 = 10;
const ALL: u32 = 20;

/// How many are under way at once.
const PLACES: usize = 2;

pub(super) struct Pace {
    own: DefaultKeyedRateLimiter<Owner>,
    each: DefaultKeyedRateLimiter<Owner>,
    all: DefaultDirectRateLimiter,
    places: Arc<Semaphore>,
    /// Those with an order under way, or who wait for one.
    turns: Mutex<HashMap<Owner, Arc<Semaphore>>>,
}

/// A place among the orders under way, until this is dropped.
pub(super) struct Turn {
    _own: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Pace {
    pub(super) fn new() -> Self {
        let hourly = |n| Quota::per_hour(NonZeroU32::new(n).expect("it is not zero"));
        Self {
            own: RateLimiter::keyed(hourly(OWN)),
            each: RateLimiter::keyed(hourly(EACH)),
            all: RateLimiter::direct(hourly(ALL)),
            places: Arc::new(Semaphore::new(PLACES)),
            turns: Mutex::default(),
        }
    }

    /// Whether one more order is begun. Who has had enough uses up nothing of the others'.
    pub(super) fn allow(&self, owner: &Owner) -> bool {
        self.own.check_key(owner).is_ok()
            || self.each.check_key(owner).is_ok() && self.all.check().is_ok()
    }

    /// Waits for a place, after what `owner` has asked for before. `None` cannot be: no semaphore in
    /// here is ever closed.
    pub(super) async fn turn(&self, owner: &Owner) -> Option<Turn> {
        self.own.retain_recent();
        self.each.retain_recent();
        let own = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever waits or is at it holds one too.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(owner.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        let own = own.acquire_owned().await.ok()?;
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        Some(Turn { _own: own, _place: place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Duration, timeout};

    #[test]
    fn who_publishes_a_lot_leaves_some_for_the_others() {
        let pace = Pace::new();
        let greedy: Vec<Owner> = (0..3).map(|_| Some(UserId::random())).collect();
        let begun = |owner: &Owner| (0..1000).filter(|_| pace.allow(owner)).count();
        // What comes back while this runs is none.
        assert_eq!(begun(&greedy[0]), 12);
        assert_eq!(begun(&greedy[1]), 12);
        assert_eq!(begun(&greedy[2]), 2, "its own, though all of the rest is used up");
        assert_eq!(begun(&None), 2, "the API's name");
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_waits_for_its_own_orders() {
        let pace = Pace::new();
        let [one, two, three] = [(); 3].map(|()| Some(UserId::random()));
        let soon = Duration::from_secs(1);
        let first = pace.turn(&one).await.expect("a place");
        assert!(timeout(soon, pace.turn(&one)).await.is_err(), "it has one already");
        let second = pace.turn(&two).await.expect("another's");
        assert!(timeout(soon, pace.turn(&three)).await.is_err(), "all places are taken");
        drop(second);
        assert!(timeout(soon, pace.turn(&three)).await.is_ok());
        drop(first);
        assert!(timeout(soon, pace.turn(&one)).await.is_ok());
        let waiting = pace.turns.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert_eq!(waiting, 1, "nobody is remembered who has ordered");
    }
}
