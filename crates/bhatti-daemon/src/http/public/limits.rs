//! How often strangers may ask: all of them, one of them, and for one alias.

use std::net::IpAddr;
use std::num::NonZeroU32;

use bhatti_types::PublishId;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::http::web_shell::household;

/// From how many keys on those that have been quiet are forgotten. Every one that is remembered
/// has asked within the last seconds, and all together ask a bounded number of times.
const MANY: usize = 4096;

/// The figures of the contract, as burst and per minute.
pub(super) struct Limits {
    all: DefaultDirectRateLimiter,
    peers: DefaultKeyedRateLimiter<IpAddr>,
    aliases: DefaultKeyedRateLimiter<PublishId>,
}

fn quota(burst: u32, per_minute: u32) -> Quota {
    let number = |n| NonZeroU32::new(n).expect("the numbers below are not zero");
    Quota::per_minute(number(per_minute)).allow_burst(number(burst))
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            all: RateLimiter::direct(quota(10_000, 10_000)),
            peers: RateLimiter::keyed(quota(500, 1500)),
            aliases: RateLimiter::keyed(quota(2000, 5000)),
        }
    }
}

impl Limits {
    /// Whether one more request of `peer` is answered.
    pub(super) fn allow(&self, peer: IpAddr, rule: &PublishId) -> bool {
        if self.peers.len() > MANY {
            self.peers.retain_recent();
        }
        if self.aliases.len() > MANY {
            self.aliases.retain_recent();
        }
        self.all.check().is_ok()
            && self.peers.check_key(&household(peer)).is_ok()
            && self.aliases.check_key(rule).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_an_alias_and_all_have_their_share() {
        let limits = Limits::default();
        let (one, two) = (PublishId::random(), PublishId::random());
        let peer = |n: u8| IpAddr::from([192, 0, 2, n]);
        let allowed = |n, rule: &PublishId, count: usize| {
            (0..count).filter(|_| limits.allow(peer(n), rule)).count()
        };
        // What comes back while this runs is a few at most.
        let about = |count: usize, wanted: usize| (wanted..wanted + 60).contains(&count);
        assert!(about(allowed(1, &one, 1000), 500), "one stranger");
        assert!(about((2..9).map(|n| allowed(n, &one, 400)).sum::<usize>(), 1500), "one alias");
        assert_eq!(allowed(9, &two, 100), 100, "the neighbour's share is its own");
    }
}
