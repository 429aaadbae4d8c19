//! What listens in the guest.

use std::collections::BTreeSet;
use std::time::Duration;

use bhatti_link::MessageReader;
use bhatti_wire::message::{ListeningPorts, MAX_MESSAGE, Operation, PortsReply};

use crate::guest::within;
use crate::{Guest, GuestError};

/// Short: it is asked of many guests at once, and one of them may have just fallen asleep.
const PORTS: Duration = Duration::from_secs(5);

impl Guest {
    /// The TCP ports on which something listens, on any address.
    pub async fn listening_ports(&self) -> Result<BTreeSet<u16>, GuestError> {
        within(PORTS, "say what listens", async {
            let stream = self.request(Operation::ListeningPorts(ListeningPorts {})).await?;
            let reply = MessageReader::new(&stream, MAX_MESSAGE).next().await;
            let reply: PortsReply =
                reply.map_err(GuestError::reading)?.ok_or(GuestError::LinkLost(None))?;
            if let Some(failure) = reply.failure {
                return Err(failure.into());
            }
            Ok(reply.ports.into_iter().filter_map(|port| u16::try_from(port).ok()).collect())
        })
        .await
    }
}
