//! Sizes that cannot be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A size in MiB (2^20 bytes).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Mib(pub u32);

impl Mib {
    /// The same size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }

    /// The smallest whole number of MiB that holds `bytes`.
    pub fn holding(bytes: u64) -> Self {
        Self(u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A number of CPUs, possibly fractional, kept in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus(u32);

/// Not a usable number of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("cpus must be a number from 0.1 to 256, got {0}")]
pub struct BadCpus(pub f64);

impl Cpus {
    /// One whole CPU.
    pub const ONE: Self = Self(1000);

    /// In thousandths of a CPU.
    pub fn milli(self) -> u32 {
        self.0
    }

    /// As the API writes it.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1000.0
    }

    /// From thousandths, as stored.
    pub fn from_milli(milli: u32) -> Self {
        Self(milli)
    }
}

impl TryFrom<f64> for Cpus {
    type Error = BadCpus;
    fn try_from(value: f64) -> Result<Self, BadCpus> {
        if (0.1..=256.0).contains(&value) {
            // In range, so neither truncation nor a sign can be lost.
            Ok(Self((value * 1000.0).round() as u32))
        } else {
            Err(BadCpus(value))
        }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_up() {
        assert_eq!(Mib::holding(0), Mib(0));
        assert_eq!(Mib::holding(1), Mib(1));
        assert_eq!(Mib::holding(1 << 20), Mib(1));
        assert_eq!(Mib(2).bytes(), 2 << 20);
    }

    #[test]
    fn cpus_keep_their_fraction() {
        assert_eq!(Cpus::try_from(0.5).map(Cpus::milli), Ok(500));
        assert_eq!(Cpus::try_from(2.0).map(|c| c.to_string()), Ok("2".to_owned()));
        for bad in [0.0, -1.0, 257.0, f64::NAN, f64::INFINITY] {
            assert!(Cpus::try_from(bad).is_err());
        }
    }
}
