//! How much is recorded of what anybody can bring about any number of times.
//!
//! One bucket for each kind of event, account and sandbox. What finds it empty is counted, and the
//! last of it is kept: it is told later, with the count. An account with many sandboxes has a bounded
//! number of buckets, so that the others have theirs. Pure; the time is handed in.

use std::collections::HashMap;
use std::time::Duration;

use bhatti_store::NewEvent;
use bhatti_types::{EventKind, SandboxId, UserId};
use tokio::time::Instant;

/// So many at once.
const BURST: u32 = 20;

/// And then one in so long: 260 000 in the time an event is kept.
const REFILL: Duration = Duration::from_secs(30);

/// For so many sandboxes, in all and of one account. Those of more share a bucket: with the others of
/// the same account, or with all if there are that many accounts.
const MOST_BUCKETS: usize = 1024;
const MOST_OF_USER: usize = 64;

type Key = (EventKind, Option<UserId>, Option<SandboxId>);

/// All buckets.
#[derive(Default)]
pub(super) struct Limiter {
    buckets: HashMap<Key, Bucket>,
}

struct Bucket {
    /// How many may pass at `at`.
    left: u32,
    /// When there was one more.
    at: Instant,
    /// The last that was held back, and how many were.
    held: Option<(NewEvent, u64)>,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { left: BURST, at: now, held: None }
    }

    fn refill(&mut self, now: Instant) {
        while self.left < BURST && now.duration_since(self.at) >= REFILL {
            self.left += 1;
            self.at += REFILL;
        }
        if self.left == BURST {
            self.at = now;
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

impl Limiter {
    /// What is to be recorded now: the event, or nothing yet.
    pub(super) fn pass(&mut self, event: NewEvent, now: Instant) -> Option<NewEvent> {
        let key = self.key(&event, now);
        let bucket = self.buckets.entry(key).or_insert_with(|| Bucket::new(now));
        let count = bucket.held.as_ref().map_or(0, |(_, count)| *count);
        if bucket.take(now) {
            bucket.held = None;
            Some(counted(event, count))
        } else {
            bucket.held = Some((event, count + 1));
            None
        }
    }

    /// What was held back and may be told by now, although nothing came after it.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<NewEvent> {
        let due = self.buckets.values_mut().filter(|bucket| bucket.held.is_some());
        due.filter_map(|bucket| if bucket.take(now) { bucket.held.take() } else { None })
            .map(|(event, count)| counted(event, count - 1))
            .collect()
    }

    /// All that is still held back.
    pub(super) fn rest(&mut self) -> Vec<NewEvent> {
        let held = self.buckets.drain().filter_map(|(_, bucket)| bucket.held);
        held.map(|(event, count)| counted(event, count - 1)).collect()
    }

    fn key(&mut self, event: &NewEvent, now: Instant) -> Key {
        let (kind, user) = (event.kind, &event.user);
        let key = (kind, user.clone(), event.sandbox.clone());
        if self.buckets.contains_key(&key) {
            return key;
        }
        if self.buckets.len() >= MOST_BUCKETS || self.of_user(user) >= MOST_OF_USER {
            self.buckets.retain(|_, bucket| {
                bucket.refill(now);
                bucket.left < BURST || bucket.held.is_some()
            });
        }
        // Each account may always have one a kind beyond its sandboxes'.
        let few = self.buckets.len() < MOST_BUCKETS;
        match self.of_user(user) {
            of_user if few && of_user < MOST_OF_USER => key,
            _ if self.buckets.len() < 2 * MOST_BUCKETS => (kind, user.clone(), None),
            _ => (kind, None, None),
        }
    }

    fn of_user(&self, user: &Option<UserId>) -> usize {
        self.buckets.keys().filter(|(_, of, _)| of == user).count()
    }
}

/// With the number of those of its kind that are not recorded.
fn counted(mut event: NewEvent, more: u64) -> NewEvent {
    if more > 0 {
        event.meta.insert("not_recorded".to_owned(), more.into());
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn failed(ip: &str) -> NewEvent {
        NewEvent::now(EventKind::AuthFailed, None, None, json!({ "ip": ip }))
    }

    fn of(sandbox: &SandboxId) -> NewEvent {
        NewEvent::now(EventKind::EgressDenied, None, Some(sandbox), json!({}))
    }

    #[test]
    fn what_is_held_back_is_told_as_a_number() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let passed = (0..1000).filter(|_| limiter.pass(failed("a"), start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(limiter.overdue(start), []);
        let later = limiter.pass(failed("b"), start + REFILL).expect("one may pass");
        assert_eq!(json!(later.meta), json!({ "ip": "b", "not_recorded": 980 }));
        assert!(limiter.pass(failed("c"), start + REFILL).is_none());
        assert!(limiter.pass(failed("d"), start + REFILL).is_none());
        let last = limiter.overdue(start + 2 * REFILL);
        let metas: Vec<_> = last.iter().map(|event| json!(event.meta)).collect();
        assert_eq!(metas, [json!({ "ip": "d", "not_recorded": 1 })], "nothing came after it");
        assert_eq!(limiter.overdue(start + 9 * REFILL), [], "once");
    }

    #[test]
    fn quiet_fills_the_bucket_and_no_more() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let at = |limiter: &mut Limiter, now| {
            (0..100).filter(|_| limiter.pass(failed("a"), now).is_some()).count()
        };
        assert_eq!(at(&mut limiter, start), BURST as usize);
        assert_eq!(at(&mut limiter, start + 3 * REFILL + REFILL / 2), 3);
        assert_eq!(at(&mut limiter, start + 4 * REFILL), 1, "halves are not lost");
        assert_eq!(at(&mut limiter, start + 1000 * REFILL), BURST as usize);
    }

    #[test]
    fn one_account_does_not_use_up_anothers() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let (loud, quiet) = (UserId::random(), UserId::random());
        let by = |user: &UserId, sandbox: Option<&SandboxId>| {
            NewEvent::now(EventKind::ProxyError, Some(user), sandbox, json!({}))
        };
        let of_sandboxes = |limiter: &mut Limiter, user: &UserId, count: usize| {
            let sandboxes = (0..count).map(|_| SandboxId::random());
            sandboxes.filter(|id| limiter.pass(by(user, Some(id)), start).is_some()).count()
        };
        let passed = of_sandboxes(&mut limiter, &loud, 3 * MOST_BUCKETS);
        assert_eq!(passed, MOST_OF_USER + BURST as usize, "one each, and what they share");
        assert_eq!(of_sandboxes(&mut limiter, &quiet, 10), 10);
        // Nor of what belongs to no sandbox.
        for _ in 0..100 {
            limiter.pass(by(&loud, None), start);
        }
        assert!(limiter.pass(by(&quiet, None), start).is_some());
    }

    #[test]
    fn one_sandbox_does_not_use_up_anothers_and_memory_is_bounded() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let (loud, quiet) = (SandboxId::random(), SandboxId::random());
        let passed = (0..100).filter(|_| limiter.pass(of(&loud), start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert!(limiter.pass(of(&quiet), start).is_some());
        for _ in 0..3 * MOST_BUCKETS {
            let mut event = of(&SandboxId::random());
            event.user = Some(UserId::random());
            limiter.pass(event, start);
        }
        assert!(limiter.buckets.len() <= 2 * MOST_BUCKETS + 1);
        let rest = limiter.rest();
        assert!(rest.iter().any(|event| event.sandbox.as_ref() == Some(&loud)));
        assert!(limiter.buckets.is_empty());
    }
}
