//! `/sandboxes/:s/forward/:port`: connections to ports of a guest.

use bhatti_api::route;
use http::{Method, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::client::{Answer, Call, MAX_ERROR, collect};
use crate::sandbox::MACHINE;
use crate::{Client, ClientError};

/// A connection to a port of a guest: raw bytes, each direction to its half-close. Dropping it hangs
/// up.
pub type Forwarded = TokioIo<Upgraded>;

impl Client {
    /// Connects to a port of a guest, which wakes. That nobody listens there is an error of the
    /// server's, 502.
    pub async fn forward(&self, sandbox: &str, port: u16) -> Result<Forwarded, ClientError> {
        let late = |_| ClientError::Timeout { seconds: MACHINE.as_secs() };
        timeout(MACHINE, self.begin_forward(sandbox, port)).await.map_err(late)?
    }

    async fn begin_forward(&self, sandbox: &str, port: u16) -> Result<Forwarded, ClientError> {
        let path = route::forward(sandbox, port);
        let mut call = Call::new(Method::GET, &path);
        call.protocol = Some(route::FORWARD_PROTOCOL);
        let Answer { response, stopwatch, .. } = self.send(&call).await?;
        self.record(stopwatch);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = response.into_parts();
            let body = collect(body, MAX_ERROR).await;
            return Err(ClientError::from_body(parts.status, &body.unwrap_or_default()));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| {
            ClientError::caused("the connection broke while it was being forwarded", error)
        })?;
        Ok(TokioIo::new(upgraded))
    }
}
