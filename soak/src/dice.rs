//! Random choices that a seed repeats.

/// A stream of numbers; equal seeds give equal streams, on every machine.
pub(crate) struct Dice(u64);

impl Dice {
    /// The stream of one cycle. Each cycle has its own, so that what happened in one does not
    /// change what the next ones choose.
    pub(crate) fn of_cycle(seed: u64, cycle: u64) -> Self {
        let mut dice = Self(seed);
        let mixed = dice.next() ^ cycle;
        Self(mixed)
    }

    /// SplitMix64: one addition and one bijective mix a number.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        // The bias is that of 64 bits to a handful of choices: none that anybody could see.
        (self.next() % end.max(1) as u64) as usize
    }

    /// True `percent` times in a hundred.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// `wanted` different numbers below `end`, or all of them.
    pub(crate) fn distinct(&mut self, wanted: usize, end: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..end).collect();
        for at in 0..wanted.min(end) {
            let other = at + self.below(end - at);
            all.swap(at, other);
        }
        all.truncate(wanted);
        all
    }

    /// One of several, each as often as its weight says.
    pub(crate) fn weighted<T: Copy>(&mut self, choices: &[(usize, T)]) -> T {
        let mut at = self.below(choices.iter().map(|(weight, _)| weight).sum());
        for &(weight, choice) in choices {
            if at < weight {
                return choice;
            }
            at -= weight;
        }
        unreachable!("the number is below the sum of the weights")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_cycles_differ() {
        let roll = |seed, cycle| {
            let mut dice = Dice::of_cycle(seed, cycle);
            (0..8).map(|_| dice.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(roll(1, 1), roll(1, 1));
        assert_ne!(roll(1, 1), roll(1, 2));
        assert_ne!(roll(1, 1), roll(2, 1));
    }

    #[test]
    fn choices_stay_within_their_bounds() {
        let mut dice = Dice::of_cycle(7, 0);
        for _ in 0..1000 {
            let mut some = dice.distinct(3, 5);
            some.sort_unstable();
            some.dedup();
            assert!(some.len() == 3 && some.iter().all(|n| *n < 5), "{some:?}");
            assert_eq!(dice.weighted(&[(0, 'a'), (3, 'b')]), 'b');
        }
        assert_eq!(dice.distinct(9, 2).len(), 2);
    }
}
