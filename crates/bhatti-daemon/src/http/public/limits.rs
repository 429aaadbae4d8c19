//! How often strangers may ask: all of them, one of them, and for one alias; and how often in vain.

use std::net::IpAddr;
use std::num::NonZeroU32;

use bhatti_config::PublicLimits;
use bhatti_types::PublishId;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::http::web_shell::household;

/// From how many keys on those that have been quiet are forgotten. Every one that is remembered
/// has asked within the last seconds.
const MANY: usize = 4096;

/// How often a minute it is told that a token is needed; beyond that, that it was too often.
const REFUSALS: u32 = 120;

/// Bursts are in the contract's proportions: all of a minute, a third of it, two fifths of it.
pub(super) struct Limits {
    all: DefaultDirectRateLimiter,
    peers: DefaultKeyedRateLimiter<IpAddr>,
    aliases: DefaultKeyedRateLimiter<PublishId>,
    /// Those who have no token.
    refusals: DefaultKeyedRateLimiter<PublishId>,
}

fn quota(burst: u32, per_minute: u32) -> Quota {
    let number = |n| NonZeroU32::new(n).expect("the configuration takes none below 60");
    Quota::per_minute(number(per_minute)).allow_burst(number(burst))
}

impl Limits {
    pub(super) fn new(config: PublicLimits) -> Self {
        let PublicLimits { requests_per_min: all, client_per_min, alias_per_min } = config;
        Self {
            all: RateLimiter::direct(quota(all, all)),
            peers: RateLimiter::keyed(quota(client_per_min / 3, client_per_min)),
            aliases: RateLimiter::keyed(quota(alias_per_min / 5 * 2, alias_per_min)),
            refusals: RateLimiter::keyed(quota(REFUSALS, REFUSALS)),
        }
    }

    /// Whether `peer` may ask once more, for whatever. On this host there are no strangers: what
    /// comes from here is a developer's browser, which asks for hundreds of modules at once, or
    /// a web server that speaks for many.
    pub(super) fn allow_peer(&self, peer: IpAddr) -> bool {
        if self.peers.len() > MANY {
            self.peers.retain_recent();
        }
        peer.is_loopback() || self.peers.check_key(&household(peer)).is_ok()
    }

    /// Whether one more request is answered under a rule. Comes after [`Self::allow_peer`]: who is
    /// refused there has used up nobody else's share.
    pub(super) fn allow(&self, rule: &PublishId) -> bool {
        if self.aliases.len() > MANY {
            self.aliases.retain_recent();
        }
        self.aliases.check_key(rule).is_ok() && self.all.check().is_ok()
    }

    /// Whether one more is told that a token is needed. Those who have it are not counted here, nor
    /// are these in [`Self::allow`]: who tries a lot keeps nobody out who need not.
    pub(super) fn allow_refusal(&self, rule: &PublishId) -> bool {
        if self.refusals.len() > MANY {
            self.refusals.retain_recent();
        }
        self.refusals.check_key(rule).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_an_alias_and_all_have_their_share() {
        let limits = Limits::new(PublicLimits::default());
        let (one, two) = (PublishId::random(), PublishId::random());
        let peer = |n: u8| IpAddr::from([192, 0, 2, n]);
        let allowed = |n, rule: &PublishId, count: usize| {
            (0..count).filter(|_| limits.allow_peer(peer(n)) && limits.allow(rule)).count()
        };
        // What comes back while this runs is a few at most.
        let about = |count: usize, wanted: usize| (wanted..wanted + 60).contains(&count);
        assert!(about(allowed(1, &one, 1000), 500), "one stranger");
        assert!(about((2..9).map(|n| allowed(n, &one, 400)).sum::<usize>(), 1500), "one alias");
        assert_eq!(allowed(9, &two, 100), 100, "the neighbour's share is its own");
    }

    #[test]
    fn what_is_refused_uses_up_nobodys_share() {
        let limits = Limits::new(PublicLimits::default());
        let (one, two) = (PublishId::random(), PublishId::random());
        let (greedy, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let ask = |peer, rule| limits.allow_peer(peer) && limits.allow(rule);
        for _ in 0..20_000 {
            ask(greedy, &one);
        }
        assert!(ask(other, &one), "of the same alias");
        assert!(ask(other, &two), "of another");
        let refused = (0..5000).filter(|_| limits.allow_refusal(&one)).count();
        assert!((120..180).contains(&refused), "{refused}");
        assert!(limits.allow_refusal(&two) && limits.allow(&one), "who has the token");
    }
}
