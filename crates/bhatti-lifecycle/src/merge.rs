//! When to merge the layers of a disk, and which: pure.
//!
//! Each sleep leaves a layer, and a disk can have so many only. Merging copies, so it is done as a
//! log-structured store does it: a byte is copied only into a layer at least half as large again
//! as the one it was in, and so as often as the logarithm of its disk's size.
//!
//! Layers a sandbox shares with what it was made from come last: once copied they are its own.

/// The layers of its own that a sandbox may have before any are merged.
const FEW: usize = 8;
/// The layers of its own that a merge leaves, if it can afford that.
const REST: usize = 4;
/// With so many layers something is merged whatever it costs.
const FULL: usize = 20;
/// So many are kept then.
const MOST: usize = 16;

/// How many of these layers to keep when the others are merged into the top; `None` to let them
/// be. The lowest comes first; sizes are bytes on the medium. From `own_from` on layers are the
/// sandbox's own.
///
/// With 20 or more layers at most 16 are kept.
pub(crate) fn keep(layer_bytes: &[u64], top_bytes: u64, own_from: usize) -> Option<usize> {
    let count = layer_bytes.len();
    let own = count.saturating_sub(own_from);
    if own <= FEW && count < FULL {
        return None;
    }
    // The least copying comes first; what comes later leaves fewer layers.
    let mut chosen = None;
    let (mut merged, mut largest) = (top_bytes, 0);
    for (at, bytes) in layer_bytes.iter().enumerate().skip(own_from).rev() {
        merged = merged.saturating_add(*bytes);
        largest = largest.max(*bytes);
        if merged >= largest.saturating_add(largest / 2) {
            chosen = Some(at);
            if at <= own_from + REST {
                break;
            }
        }
    }
    match chosen {
        Some(at) if count < FULL || at <= MOST => Some(at),
        _ if count < FULL => None,
        _ => Some(MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk in the simulation: what it has copied, and what was written to it.
    #[derive(Default)]
    struct Disk {
        layers: Vec<u64>,
        own_from: usize,
        copied: u64,
        written: u64,
        merges: u64,
        most: usize,
    }

    impl Disk {
        /// Wakes, writes, and sleeps again. Nothing is written twice, which is the worst case:
        /// a merge frees nothing.
        fn live(&mut self, top: u64) {
            self.written += top;
            let mut sealed = top;
            if let Some(keep) = keep(&self.layers, top, self.own_from) {
                assert!(keep < self.layers.len(), "a merge of nothing");
                let merged: u64 = self.layers.drain(keep..).sum();
                self.own_from = self.own_from.min(keep);
                self.copied += merged;
                self.merges += 1;
                sealed += merged;
            }
            self.layers.push(sealed);
            self.most = self.most.max(self.layers.len());
        }

        /// How often a byte was copied, on the average, for each doubling of the disk.
        fn copies(&self, least: u64) -> f64 {
            let doublings = (self.written as f64 / least as f64).log2().max(1.0);
            self.copied as f64 / self.written as f64 / doublings
        }
    }

    /// A sequence without a pattern, the same every time.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }
    }

    /// The copies per doubling if every merge makes a byte's layer half as large again.
    const BOUND: f64 = 1.71;

    #[test]
    fn random_lives_cost_little_and_stay_short() {
        const LEAST: u64 = 1 << 18;
        for seed in 1..200 {
            let mut dice = Dice(seed * 0x9e37_79b9);
            let mut disk = Disk::default();
            for _ in 0..2000 {
                // From an idle wake to a gigabyte, every magnitude as likely.
                disk.live(LEAST + (dice.roll() >> 20) % (LEAST << (dice.roll() % 13)));
            }
            assert!(disk.most < 24, "{seed}: {} layers", disk.most);
            assert!(disk.copies(LEAST) < BOUND, "{seed}: {}", disk.copies(LEAST));
            assert!(disk.merges < 2000 / 2, "{seed}: a merge in every other sleep");
        }
    }

    #[test]
    fn whatever_the_pattern_it_stays_short() {
        type Size = fn(u64) -> u64;
        let patterns: [(&str, Size); 6] = [
            ("equal", |_| 10 << 20),
            ("growing", |n| (n + 1) << 18),
            ("shrinking", |n| (5000 - n) << 18),
            ("halving, again and again", |n| 1 << (40 - n % 22)),
            ("thirds, thrice each", |n| 3u64.pow((23 - n / 3 % 12) as u32)),
            ("nothing", |_| 0),
        ];
        for (name, size) in patterns {
            for own_from in [0, 1, 7, 19, 23] {
                let mut disk =
                    Disk { own_from, layers: vec![300 << 20; own_from], ..Disk::default() };
                for n in 0..4000 {
                    disk.live(size(n));
                    assert!(disk.layers.len() < 24, "{name} over {own_from}, life {n}");
                }
            }
        }
    }

    #[test]
    fn few_are_let_be() {
        assert_eq!(keep(&[], 1, 0), None);
        assert_eq!(keep(&[1; 8], 1, 0), None);
        assert_eq!(keep(&[1; 14], 1, 6), None, "others' layers do not count");
    }

    #[test]
    fn small_ones_are_merged_and_a_large_one_is_not() {
        let mut layers = vec![1000, 400];
        layers.extend([10; 7]);
        assert_eq!(keep(&layers, 10, 0), Some(4));
        assert_eq!(keep(&layers, 2000, 0), Some(4), "the size of the top costs nothing");
        // Another's layer is kept while there is room.
        assert_eq!(keep(&[10; 12], 10, 3), Some(7));
        assert_eq!(keep(&[10; 20], 10, 20), Some(16));
    }

    #[test]
    fn what_would_be_copied_for_nothing_waits() {
        // Each more than all above it.
        let layers: Vec<u64> = (0..12).map(|n| 4u64.pow(20 - n)).collect();
        assert_eq!(keep(&layers, 1, 0), None);
        let layers: Vec<u64> = (0..20).map(|n| 4u64.pow(20 - n)).collect();
        assert_eq!(keep(&layers, 1, 0), Some(16));
    }
}
