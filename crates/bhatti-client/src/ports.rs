//! `/ports` and `/sandboxes/:s/ports`.

use bhatti_api::{Port, route};
use http::Method;

use crate::client::Call;
use crate::sandbox::MACHINE;
use crate::{Client, ClientError};

impl Client {
    /// `GET /sandboxes/:s/ports`: what listens in one sandbox, which wakes.
    pub async fn ports(&self, sandbox: &str) -> Result<Vec<Port>, ClientError> {
        let path = route::ports(sandbox);
        let mut call = Call::new(Method::GET, &path);
        call.limit = MACHINE;
        Ok(self.json(call).await?.0)
    }

    /// `GET /ports`: what listens in all sandboxes that are awake.
    pub async fn all_ports(&self) -> Result<Vec<Port>, ClientError> {
        Ok(self.json(Call::new(Method::GET, route::PORTS)).await?.0)
    }
}
