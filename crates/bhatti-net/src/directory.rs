//! Who is in a user's network: asked each time, never remembered.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::plan::Guest;

/// Whoever knows which guests there should be. It is asked when rules are made and for each name a
/// guest wants resolved, so it answers at once, and what it says holds from then on: there is
/// nothing to be told after a rename, a wake or a restart.
pub trait Directory: Send + Sync {
    /// The guests of user `index`, running or not, by address.
    fn guests(
        &self,
        index: u32,
    ) -> Result<BTreeMap<Ipv4Addr, Guest>, Box<dyn std::error::Error + Send + Sync>>;
}
