//! Samples of one thing, and what is said about them.

use std::time::Duration;

use anyhow::{Result, ensure};

/// One thing measured again and again, a sample a round.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    samples: Vec<Duration>,
}

impl Series {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, samples: Vec::new() }
    }

    pub(crate) fn push(&mut self, sample: Duration) {
        self.samples.push(sample);
    }

    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// In milliseconds, in the order of the rounds.
    pub(crate) fn millis(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.as_secs_f64() * 1e3).collect()
    }

    /// The percentile in milliseconds, by nearest rank: always a sample that was seen.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        nearest_rank(self.millis(), percent)
    }

    /// The median of what this took over `base`, in milliseconds, round by round.
    pub(crate) fn median_difference(&self, base: &Self) -> Result<f64> {
        self.paired(base, |own, base| own - base)
    }

    /// The median of this over `base`, round by round.
    pub(crate) fn median_ratio(&self, base: &Self) -> Result<f64> {
        self.paired(base, |own, base| own / base)
    }

    fn paired(&self, base: &Self, combine: impl Fn(f64, f64) -> f64) -> Result<f64> {
        ensure!(
            self.len() == base.len(),
            "{} and {} were not measured in the same rounds",
            self.name,
            base.name
        );
        let both = self.millis().into_iter().zip(base.millis());
        Ok(nearest_rank(both.map(|(own, base)| combine(own, base)).collect(), 50))
    }
}

/// NaN for no samples: it is in no budget.
fn nearest_rank(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// The order of `n` things in round `round`: each comes first equally often, so that no one
/// always runs after the same neighbour's end.
pub(crate) fn order(round: usize, n: usize) -> impl Iterator<Item = usize> {
    (0..n).map(move |place| (place + round) % n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(millis: &[u64]) -> Series {
        let mut series = Series::new("x");
        millis.iter().for_each(|ms| series.push(Duration::from_millis(*ms)));
        series
    }

    #[test]
    fn percentiles_are_samples() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        for (millis, p50, p99) in [
            (&[7][..], 7.0, 7.0),
            (&[3, 1, 2], 2.0, 3.0),
            (&[4, 1, 3, 2], 2.0, 4.0),
            (&hundred, 50.0, 99.0),
        ] {
            let series = series(millis);
            assert_eq!((series.percentile(50), series.percentile(99)), (p50, p99), "{millis:?}");
        }
        assert!(series(&[]).percentile(50).is_nan());
    }

    #[test]
    fn rounds_are_compared_with_themselves() {
        // The middle round was slow for both, as under a burst of other load.
        let (base, own) = (series(&[10, 100, 10]), series(&[12, 120, 12]));
        assert!((own.median_ratio(&base).unwrap() - 1.2).abs() < 1e-9);
        assert!((own.median_difference(&base).unwrap() - 2.0).abs() < 1e-9);
        assert!(own.median_ratio(&series(&[1])).is_err(), "other rounds");
    }

    #[test]
    fn everything_comes_first_in_turn() {
        let firsts: Vec<_> = (0..4).map(|round| order(round, 4).next()).collect();
        assert_eq!(firsts, [Some(0), Some(1), Some(2), Some(3)]);
        for round in 0..4 {
            let mut all: Vec<_> = order(round, 4).collect();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3]);
        }
    }
}
