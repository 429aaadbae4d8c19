//! Telling what guests were denied, where there is a policy.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use bhatti_types::NetPolicy;
use tokio::time::MissedTickBehavior;

use crate::apply::{self, Attempt};
use crate::directory::Denied;
use crate::networks::Inner;

/// How often the kernel is asked. It remembers for longer.
const OFTEN: Duration = Duration::from_secs(10);

/// Tells the directory what was denied to guests of user `index`, once for each address and port
/// that they want for as long as they do.
pub(super) async fn watch(networks: Weak<Inner>, index: u32) {
    let mut ticks = tokio::time::interval(OFTEN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: BTreeSet<Attempt> = BTreeSet::new();
    loop {
        ticks.tick().await;
        let Some(networks) = networks.upgrade() else { return };
        let Ok(guests) = networks.directory.guests(index) else { continue };
        if guests.values().all(|guest| guest.policy == NetPolicy::default()) {
            continue;
        }
        let namespace = networks.names.namespace(index);
        match apply::attempts(&namespace, networks.names.table()).await {
            Ok(attempts) => {
                for new in attempts.difference(&told) {
                    let &Attempt { guest, to, protocol, port } = new;
                    if let Some(guest) = guests.get(&guest) {
                        let what = Denied::Address { to, protocol, port };
                        networks.directory.denied(index, guest, &what);
                    }
                }
                told = attempts;
            }
            Err(error) => tracing::debug!(index, %error, "what was denied cannot be looked up"),
        }
    }
}
