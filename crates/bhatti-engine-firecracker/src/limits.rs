//! How fast a machine may use its disk, its network and the host's randomness; pure.
//!
//! Firecracker's token buckets: so many tokens at once, and as many again in so much time. A limit is
//! part of what a machine is saved as, so whoever restores one says what holds today
//! ([`Limits::again`]), also that nothing does.

use serde::Serialize;

/// A bucket is filled again in this time, if it can be: short enough that nobody notices the steps.
const REFILL_MS: u64 = 100;

/// The most of each a machine may use in a second; `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes read and written on the disk.
    pub disk_bytes: Option<u64>,
    /// Reads and writes on the disk.
    pub disk_operations: Option<u64>,
    /// Bytes sent, and as many received.
    pub network_bytes: Option<u64>,
}

/// `RateLimiter`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RateLimiter {
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<TokenBucket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ops: Option<TokenBucket>,
}

/// `TokenBucket`; one of size 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct TokenBucket {
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    one_time_burst: Option<u64>,
    refill_time: u64,
}

impl TokenBucket {
    fn of(per_second: u64) -> Self {
        // A bucket of what does not divide would keep another limit than was asked for.
        let parts = 1000 / REFILL_MS;
        let (size, refill_time) = match per_second % parts {
            0 => (per_second / parts, REFILL_MS),
            _ => (per_second, 1000),
        };
        Self { size, one_time_burst: None, refill_time }
    }

    const NONE: Self = Self { size: 0, one_time_burst: None, refill_time: 0 };
}

impl Limits {
    /// Whether there is one.
    pub(crate) fn any(&self) -> bool {
        *self != Self::default()
    }

    /// For a disk that is made.
    pub(crate) fn disk(&self) -> Option<RateLimiter> {
        limiter(self.disk_bytes, self.disk_operations)
    }

    /// For a network card that is made; each direction has one.
    pub(crate) fn network(&self) -> Option<RateLimiter> {
        limiter(self.network_bytes, None)
    }

    /// What holds for the disk and for the network of a machine that comes back, whatever it was
    /// saved with.
    pub(crate) fn again(&self) -> (RateLimiter, RateLimiter) {
        let said = |limit: Option<u64>| Some(limit.map_or(TokenBucket::NONE, TokenBucket::of));
        let disk =
            RateLimiter { bandwidth: said(self.disk_bytes), ops: said(self.disk_operations) };
        (disk, RateLimiter { bandwidth: said(self.network_bytes), ops: None })
    }
}

fn limiter(bytes: Option<u64>, operations: Option<u64>) -> Option<RateLimiter> {
    let (bandwidth, ops) = (bytes.map(TokenBucket::of), operations.map(TokenBucket::of));
    (bandwidth.is_some() || ops.is_some()).then_some(RateLimiter { bandwidth, ops })
}

/// The host's randomness is everybody's: 10 KiB in a second, and 8 KiB at once for a start.
pub(crate) fn entropy() -> RateLimiter {
    let bucket = TokenBucket { size: 1 << 10, one_time_burst: Some(8 << 10), refill_time: 100 };
    RateLimiter { bandwidth: Some(bucket), ops: None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_is_limited_that_was_not_asked_for() {
        let none = Limits::default();
        assert_eq!((none.disk(), none.network()), (None, None));
        let off = json!({"size": 0, "refill_time": 0});
        let (disk, network) = none.again();
        assert_eq!(serde_json::to_value(disk).unwrap(), json!({"bandwidth": off, "ops": off}));
        assert_eq!(serde_json::to_value(network).unwrap(), json!({"bandwidth": off}));
    }

    #[test]
    fn a_limit_is_so_much_in_a_second() {
        let limits =
            Limits { disk_bytes: Some(50 << 20), disk_operations: Some(1000), network_bytes: None };
        let expected = json!({
            "bandwidth": {"size": 5 << 20, "refill_time": 100},
            "ops": {"size": 100, "refill_time": 100},
        });
        assert_eq!(serde_json::to_value(limits.disk()).unwrap(), expected);
        assert_eq!(serde_json::to_value(limits.again().0).unwrap(), expected);
        assert_eq!(limits.network(), None);
        let least = Limits { network_bytes: Some(1), ..Limits::default() };
        let expected = json!({"bandwidth": {"size": 1, "refill_time": 1000}});
        assert_eq!(serde_json::to_value(least.network()).unwrap(), expected, "0 would be no limit");
    }

    #[test]
    fn no_limit_is_rounded() {
        for per_second in [1, 10, 19, 100, 101, 1 << 30] {
            let TokenBucket { size, refill_time, .. } = TokenBucket::of(per_second);
            assert_eq!(size * 1000 / refill_time, per_second);
        }
    }
}
