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

    /// A guest of user `index` was denied something by its policy. Does not wait. A guest may bring
    /// about any number of these.
    fn denied(&self, index: u32, guest: &Guest, what: &Denied);
}

/// What a guest was denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// To know what a name leads to.
    Name(String),
    /// To know what a name leads to, since that is this address, which is denied.
    Rebinding(String, Ipv4Addr),
    /// To speak to an address.
    Address { to: Ipv4Addr, protocol: &'static str, port: u16 },
}
