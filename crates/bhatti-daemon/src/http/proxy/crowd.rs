//! How many are somewhere at once, and putting them out.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Counts those inside, by key. Remembers nothing of keys nobody is inside with.
pub(in crate::http) struct Crowd<K> {
    max: usize,
    inside: Inside<K>,
}

type Inside<K> = Arc<Mutex<HashMap<K, Company>>>;

/// Those inside with one key.
#[derive(Default)]
struct Company {
    count: usize,
    /// Fires for all of them together.
    out: CancellationToken,
}

/// What became of somebody at the door.
pub(in crate::http) enum Admitted<K: Eq + Hash + Clone, T> {
    In(Place<K>, T),
    /// There are as many inside as may be.
    Full,
    /// Nothing was found to come in for.
    Nothing,
}

impl<K: Eq + Hash + Clone> Crowd<K> {
    /// At most `max` with each key.
    pub(in crate::http) fn new(max: usize) -> Self {
        Self { max, inside: Inside::default() }
    }

    /// Takes a place, if there is one.
    pub(in crate::http) fn enter(&self, key: K) -> Option<Place<K>> {
        self.take(&mut lock(&self.inside), key)
    }

    /// Takes a place for what `look_up` finds. `look_up` is short: whoever is put out either is
    /// not found by it, or has a place already and is told through that.
    pub(in crate::http) fn admit<T, E>(
        &self,
        look_up: impl FnOnce() -> Result<Option<(K, T)>, E>,
    ) -> Result<Admitted<K, T>, E> {
        let mut inside = lock(&self.inside);
        let Some((key, found)) = look_up()? else { return Ok(Admitted::Nothing) };
        Ok(match self.take(&mut inside, key) {
            Some(place) => Admitted::In(place, found),
            None => Admitted::Full,
        })
    }

    fn take(&self, inside: &mut HashMap<K, Company>, key: K) -> Option<Place<K>> {
        let company = inside.entry(key.clone()).or_default();
        if company.count >= self.max {
            return None;
        }
        company.count += 1;
        let out = company.out.clone();
        Some(Place { inside: Arc::clone(&self.inside), key, out })
    }

    /// Puts out everybody who is inside with `key`.
    pub(in crate::http) fn put_out(&self, key: &K) {
        if let Some(company) = lock(&self.inside).get_mut(key) {
            // Those who come in later are none of them.
            std::mem::take(&mut company.out).cancel();
        }
    }
}

/// A place inside; free again when this is dropped.
pub(in crate::http) struct Place<K: Eq + Hash + Clone> {
    inside: Inside<K>,
    key: K,
    /// Fires when whoever has this place has to go.
    pub(in crate::http) out: CancellationToken,
}

impl<K: Eq + Hash + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let mut inside = lock(&self.inside);
        if let Some(company) = inside.get_mut(&self.key) {
            company.count -= 1;
            if company.count == 0 {
                inside.remove(&self.key);
            }
        }
    }
}

fn lock<K>(inside: &Inside<K>) -> MutexGuard<'_, HashMap<K, Company>> {
    // Nothing in there can be left half changed.
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_key_and_free_again() {
        let crowd = Crowd::new(2);
        let mut places: Vec<_> = (0..2).map(|_| crowd.enter("a").expect("a place")).collect();
        assert!(crowd.enter("a").is_none());
        drop(crowd.enter("b").expect("another's places are its own"));
        places.pop();
        places.push(crowd.enter("a").expect("free again"));
        drop(places);
        assert!(lock(&crowd.inside).is_empty(), "nothing is remembered of those who left");
    }

    #[test]
    fn those_inside_are_put_out_and_nobody_else() {
        let crowd = Crowd::new(9);
        let (a, b) = (crowd.enter("a").expect("a place"), crowd.enter("b").expect("a place"));
        crowd.put_out(&"a");
        let later = crowd.enter("a").expect("a place");
        let out = [&a, &b, &later].map(|place| place.out.is_cancelled());
        assert_eq!(out, [true, false, false]);
    }

    #[test]
    fn nobody_comes_in_for_nothing() {
        let crowd: Crowd<&str> = Crowd::new(1);
        let nothing = || Ok::<Option<(&str, ())>, ()>(None);
        assert!(matches!(crowd.admit(nothing), Ok(Admitted::Nothing)));
        let place = crowd.admit(|| Ok::<_, ()>(Some(("a", 7))));
        assert!(matches!(&place, Ok(Admitted::In(_, 7))));
        assert!(matches!(crowd.admit(|| Ok::<_, ()>(Some(("a", 7)))), Ok(Admitted::Full)));
    }
}
