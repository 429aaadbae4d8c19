//! Connections to what listens in the guest.

use std::time::Duration;

use bhatti_link::{Stream, read_message};
use bhatti_wire::message::{Dial, Operation, Reply};

use crate::guest::within;
use crate::{Guest, GuestError};

/// How long a guest may take to connect. Longer than its agent tries, so that its word is heard.
const DIAL: Duration = Duration::from_secs(15);

impl Guest {
    /// Connects to a TCP port of the guest's loopback. What the stream carries is what the program
    /// there says, and is bounded by the reader.
    ///
    /// [`GuestError::Refused`]: nobody listens. [`GuestError::Unsupported`]: the agent is from
    /// before there was this operation.
    pub async fn dial(&self, port: u16) -> Result<Stream, GuestError> {
        within(DIAL, "connect to the port", async {
            let dial = Dial { port: u32::from(port) };
            let mut stream = self.request(Operation::Dial(dial)).await?;
            // Not a byte more than the answer: what follows is the program's.
            let reply: Option<Reply> =
                read_message(&mut stream).await.map_err(GuestError::reading)?;
            match reply.ok_or(GuestError::LinkLost(None))?.failure {
                Some(failure) => Err(failure.into()),
                None => Ok(stream),
            }
        })
        .await
    }
}
