//! Per-user rate limits, one token bucket a class.

use std::num::NonZeroU32;

use axum::http::Method;
use bhatti_types::UserId;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// The buckets of all users. In memory; there is at most one entry per account.
pub(crate) struct Limits {
    create: DefaultKeyedRateLimiter<UserId>,
    exec: DefaultKeyedRateLimiter<UserId>,
    read: DefaultKeyedRateLimiter<UserId>,
}

/// What a request counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Create,
    Exec,
    Read,
}

fn bucket(burst: u32, per_minute: u32) -> DefaultKeyedRateLimiter<UserId> {
    let number = |n| NonZeroU32::new(n).expect("the numbers below are not zero");
    RateLimiter::keyed(Quota::per_minute(number(per_minute)).allow_burst(number(burst)))
}

impl Default for Limits {
    /// The figures of the contract.
    fn default() -> Self {
        Self { create: bucket(10, 30), exec: bucket(30, 600), read: bucket(60, 1200) }
    }
}

impl Limits {
    /// Takes one token; false if there is none.
    pub(super) fn allow(&self, user: &UserId, class: Class) -> bool {
        let limiter = match class {
            Class::Create => &self.create,
            Class::Exec => &self.exec,
            Class::Read => &self.read,
        };
        limiter.check_key(user).is_ok()
    }
}

impl Class {
    /// Substrings, literally, as the contract has it.
    pub(super) fn of(method: &Method, path: &str) -> Self {
        if method == Method::POST && path == bhatti_api::route::SANDBOXES {
            Self::Create
        } else if (method == Method::POST && path.contains("/exec"))
            || (method == Method::PUT && path.contains("/files"))
            || path.contains("/ws")
            || path.ends_with("/exec/stream")
        {
            Self::Exec
        } else {
            Self::Read
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_fall_into_their_class() {
        let class = |method: Method, path| Class::of(&method, path);
        assert_eq!(class(Method::POST, "/sandboxes"), Class::Create);
        assert_eq!(class(Method::POST, "/sandboxes/x/exec"), Class::Exec);
        assert_eq!(class(Method::GET, "/sandboxes/x/ws"), Class::Exec);
        assert_eq!(class(Method::GET, "/sandboxes/x/exec/stream"), Class::Exec);
        assert_eq!(class(Method::PUT, "/sandboxes/x/files"), Class::Exec);
        assert_eq!(class(Method::GET, "/sandboxes"), Class::Read);
        assert_eq!(class(Method::DELETE, "/sandboxes/x"), Class::Read);
    }

    #[test]
    fn a_burst_is_allowed_and_then_no_more() {
        let limits = Limits::default();
        let (alice, bob) = (UserId::random(), UserId::random());
        let create = |user| limits.allow(user, Class::Create);
        assert_eq!((0..20).filter(|_| create(&alice)).count(), 10);
        assert!(create(&bob), "one user's bucket is not another's");
        assert!(limits.allow(&alice, Class::Read));
    }
}
