//! `/health` and `/sandboxes`.

use std::time::Duration;

use bhatti_api::{
    CreateSandbox, Health, PatchSandbox, Sandbox, StartSandbox, StatusBody, route, to_json,
};
use bhatti_types::Labels;
use http::Method;

use crate::client::Call;
use crate::{Client, ClientError};

/// For what boots a machine, perhaps as the first to use an image, or moves a whole memory to or
/// from disk.
pub(crate) const MACHINE: Duration = Duration::from_secs(900);

/// What a create led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Created {
    pub sandbox: Sandbox,
    /// An identical sandbox was there already.
    pub existing: bool,
}

impl Client {
    /// `GET /health`
    pub async fn health(&self) -> Result<Health, ClientError> {
        Ok(self.json(Call::new(Method::GET, route::HEALTH)).await?.0)
    }

    /// `GET /sandboxes`, those that have all of `labels`.
    pub async fn list(&self, labels: &Labels) -> Result<Vec<Sandbox>, ClientError> {
        let mut path = route::SANDBOXES.to_owned();
        for (index, (key, value)) in labels.iter().enumerate() {
            path.push(if index == 0 { '?' } else { '&' });
            path.push_str("label=");
            path.push_str(&route::escape(&format!("{key}={value}")));
        }
        let mut listed: Vec<Sandbox> = self.json(Call::new(Method::GET, &path)).await?.0;
        for url in listed.iter_mut().flat_map(|sandbox| &mut sandbox.urls) {
            *url = self.reachable(std::mem::take(url));
        }
        Ok(listed)
    }

    /// `GET /sandboxes/:s`, by name or id.
    pub async fn get(&self, sandbox: &str) -> Result<Sandbox, ClientError> {
        Ok(self.json(Call::new(Method::GET, &route::sandbox(sandbox))).await?.0)
    }

    /// `POST /sandboxes`
    pub async fn create(&self, wanted: &CreateSandbox) -> Result<Created, ClientError> {
        let mut call = Call::new(Method::POST, route::SANDBOXES);
        call.body = Some(to_json(wanted));
        call.limit = MACHINE;
        let (sandbox, headers) = self.json(call).await?;
        let existing = headers.get(route::EXISTING_HEADER).is_some_and(|value| value == "true");
        Ok(Created { sandbox, existing })
    }

    /// `PATCH /sandboxes/:s`
    pub async fn patch(
        &self,
        sandbox: &str,
        change: &PatchSandbox,
    ) -> Result<Sandbox, ClientError> {
        let path = route::sandbox(sandbox);
        let mut call = Call::new(Method::PATCH, &path);
        call.body = Some(to_json(change));
        if change.keep_hot == Some(true) {
            // What is to stay hot is woken.
            call.limit = MACHINE;
        }
        Ok(self.json(call).await?.0)
    }

    /// `POST /sandboxes/:s/stop`: memory to disk, and no machine any more.
    pub async fn stop(&self, sandbox: &str) -> Result<Sandbox, ClientError> {
        let path = route::stop(sandbox);
        let mut call = Call::new(Method::POST, &path);
        call.limit = MACHINE;
        Ok(self.json(call).await?.0)
    }

    /// `POST /sandboxes/:s/start`. `force` loses what must be lost, rather than not start.
    pub async fn start(&self, sandbox: &str, force: bool) -> Result<Sandbox, ClientError> {
        let path = route::start(sandbox);
        let mut call = Call::new(Method::POST, &path);
        call.body = force.then(|| to_json(&StartSandbox { force }));
        call.limit = MACHINE;
        Ok(self.json(call).await?.0)
    }

    /// `DELETE /sandboxes/:s`
    pub async fn destroy(&self, sandbox: &str) -> Result<StatusBody, ClientError> {
        Ok(self.json(Call::new(Method::DELETE, &route::sandbox(sandbox))).await?.0)
    }
}
