//! Who is in a user's network.

use std::net::Ipv4Addr;

use bhatti_types::{EngineId, NetPolicy, SandboxId, UserId};

use crate::row::Reader;
use crate::{Store, StoreError};

/// A sandbox, as far as the network cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRow {
    pub sandbox: SandboxId,
    pub owner: UserId,
    pub name: String,
    pub engine_id: EngineId,
    pub ip: Ipv4Addr,
    pub net_policy: NetPolicy,
}

impl Store {
    /// Every sandbox of the user with that subnet index, in whatever phase. One whose policy cannot
    /// be read may reach nothing; what else cannot be read makes it nobody.
    pub fn guests_in(&self, subnet: u32) -> Result<Vec<GuestRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT sandboxes.id, sandboxes.owner, sandboxes.name, engine_id, ip, net_policy
             FROM sandboxes JOIN users ON users.id = sandboxes.owner
             WHERE users.subnet_index = ?1 ORDER BY sandboxes.created_at, sandboxes.id",
        )?;
        let mut rows = statement.query([subnet])?;
        let mut guests = Vec::new();
        while let Some(row) = rows.next()? {
            let r = Reader { row, table: "sandboxes", key: row.get("id").unwrap_or_default() };
            let net_policy = r.json("net_policy").unwrap_or_else(|error| {
                tracing::error!(%error, "a network policy cannot be read; nothing is reachable");
                NetPolicy::closed()
            });
            let guest = || {
                Ok::<_, StoreError>(GuestRow {
                    sandbox: r.parse("id")?,
                    owner: r.parse("owner")?,
                    name: r.get("name")?,
                    engine_id: r.parse("engine_id")?,
                    ip: r.parse("ip")?,
                    net_policy,
                })
            };
            match guest() {
                Ok(guest) => guests.push(guest),
                Err(error) => tracing::debug!(%error, "a sandbox without a place in its network"),
            }
        }
        Ok(guests)
    }
}
