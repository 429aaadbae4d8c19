//! `/snapshots`, and what makes one.

use bhatti_api::{Checkpoint, ResumeSnapshot, Sandbox, Snapshot, StatusBody, route, to_json};
use http::Method;

use crate::client::Call;
use crate::sandbox::MACHINE;
use crate::{Client, ClientError};

impl Client {
    /// `POST /sandboxes/:s/checkpoint`
    pub async fn checkpoint(&self, sandbox: &str, name: &str) -> Result<Snapshot, ClientError> {
        let path = route::checkpoint(sandbox);
        let mut call = Call::new(Method::POST, &path);
        call.body = Some(to_json(&Checkpoint { name: name.to_owned() }));
        call.limit = MACHINE;
        Ok(self.json(call).await?.0)
    }

    /// `GET /snapshots`, newest first.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, ClientError> {
        Ok(self.json(Call::new(Method::GET, route::SNAPSHOTS)).await?.0)
    }

    /// `GET /snapshots/:n`
    pub async fn snapshot(&self, snapshot: &str) -> Result<Snapshot, ClientError> {
        Ok(self.json(Call::new(Method::GET, &route::snapshot(snapshot))).await?.0)
    }

    /// `DELETE /snapshots/:n`
    pub async fn delete_snapshot(&self, snapshot: &str) -> Result<StatusBody, ClientError> {
        Ok(self.json(Call::new(Method::DELETE, &route::snapshot(snapshot))).await?.0)
    }

    /// `POST /snapshots/:n/resume`: a new sandbox that goes on from there. Without a name it gets
    /// one of the snapshot's.
    pub async fn resume_snapshot(
        &self,
        snapshot: &str,
        wanted: &ResumeSnapshot,
    ) -> Result<Sandbox, ClientError> {
        let path = route::resume(snapshot);
        let mut call = Call::new(Method::POST, &path);
        call.body = Some(to_json(wanted));
        call.limit = MACHINE;
        Ok(self.json(call).await?.0)
    }
}
