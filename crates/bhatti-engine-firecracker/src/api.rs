//! Firecracker's API: one request at a time over its Unix socket, each with a deadline, no answer
//! longer than a bound.
//!
//! Who serves the socket is checked with each connection: whoever can write the machine's directory
//! could put another one there.

use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{EngineError, Private};
use bhatti_vmm::machine_dir::MachineDir;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::{API_SOCKET, Fault};

/// Answers have a few hundred bytes.
const MOST_ANSWER: usize = 64 << 10;
/// As much of a refusal as people are shown.
const SHOWN: usize = 2048;
/// How long a request may take that does nothing long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The way to one VMM.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    dir: Arc<MachineDir>,
    owner: Private,
}

/// What a VMM answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl Api {
    pub(crate) fn new(dir: Arc<MachineDir>, owner: Private) -> Self {
        Self { dir, owner }
    }

    /// Waits until the VMM listens.
    pub(crate) async fn until_served(&self, patience: Duration) -> Result<(), EngineError> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            match self.dir.connect(API_SOCKET, self.owner).await {
                Ok(_) => return Ok(()),
                Err(error) if !is_early(&error) => {
                    return Err(self.dir.error("connect to", API_SOCKET, error));
                }
                Err(_) if Instant::now() > deadline => {
                    let seconds = patience.as_secs();
                    return Err(EngineError::Timeout { action: "open its API", seconds });
                }
                // Not made or not listened on yet: there is nothing to wait for but time.
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_millis(4));
        }
    }

    pub(crate) async fn put(&self, path: &str, body: &impl Serialize) -> Result<(), EngineError> {
        self.tell(Method::PUT, path, body, PATIENCE).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &impl Serialize) -> Result<(), EngineError> {
        self.tell(Method::PATCH, path, body, PATIENCE).await
    }

    /// A request whose answer is "done" or a refusal.
    pub(crate) async fn tell(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> Result<(), EngineError> {
        let answer = self.exchange(method, path, encode(path, body)?, patience).await?;
        if answer.status.is_success() { Ok(()) } else { Err(refused(path, &answer)) }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, EngineError> {
        let answer = self.exchange(Method::GET, path, Bytes::new(), PATIENCE).await?;
        if !answer.status.is_success() {
            return Err(refused(path, &answer));
        }
        serde_json::from_slice(&answer.body).map_err(|error| broken(path, &error))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Answer, EngineError> {
        let deadline = Instant::now() + patience;
        let late = |_| EngineError::Timeout { action: "answer", seconds: patience.as_secs() };
        let connecting = timeout_at(deadline, self.dir.connect(API_SOCKET, self.owner));
        let connection = connecting.await.map_err(late)?;
        let connection =
            connection.map_err(|error| self.dir.error("connect to", API_SOCKET, error))?;
        timeout_at(deadline, over(connection, method, path, body)).await.map_err(late)?
    }
}

/// One request and its answer over a connection that is given up afterwards.
async fn over(
    connection: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Answer, EngineError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(|error| broken(path, &error))?;
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(connection))
        .await
        .map_err(|error| broken(path, &error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| broken(path, &e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_ANSWER).collect().await;
        let body = body.map_err(|error| broken(path, &*error))?.to_bytes();
        Ok(Answer { status, body })
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The connection is done; what it has brought is there.
        _ = driver => exchange.await,
    }
}

fn is_early(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound)
}

fn encode(path: &str, body: &impl Serialize) -> Result<Bytes, EngineError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| broken(path, &error))
}

fn refused(path: &str, answer: &Answer) -> EngineError {
    let message = match serde_json::from_slice::<Fault>(&answer.body) {
        Ok(fault) => fault.fault_message.chars().take(SHOWN).collect(),
        Err(_) => format!("status {}", answer.status.as_u16()),
    };
    EngineError::Control { command: path.to_owned(), message }
}

fn broken(path: &str, error: &(impl std::error::Error + ?Sized)) -> EngineError {
    EngineError::Control { command: path.to_owned(), message: error.to_string() }
}
