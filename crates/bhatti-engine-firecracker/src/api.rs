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

/// What came of a request that a VMM has answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Its reason.
    Refused(String),
}

impl Outcome {
    /// Done, or an error.
    pub(crate) fn done(self, path: &str) -> Result<(), EngineError> {
        match self {
            Self::Done => Ok(()),
            Self::Refused(message) => {
                Err(EngineError::Control { command: path.to_owned(), message })
            }
        }
    }
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
        self.tell(Method::PUT, path, body, PATIENCE).await?.done(path)
    }

    pub(crate) async fn patch(&self, path: &str, body: &impl Serialize) -> Result<(), EngineError> {
        self.tell(Method::PATCH, path, body, PATIENCE).await?.done(path)
    }

    /// A request whose answer is "done" or a refusal. An error means that there was no answer.
    pub(crate) async fn tell(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> Result<Outcome, EngineError> {
        let answer = self.exchange(method, path, encode(path, body)?, patience).await?;
        let done = answer.status.is_success();
        Ok(if done { Outcome::Done } else { Outcome::Refused(reason(&answer)) })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, EngineError> {
        let answer = self.exchange(Method::GET, path, Bytes::new(), PATIENCE).await?;
        if !answer.status.is_success() {
            Outcome::Refused(reason(&answer)).done(path)?;
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

/// Why a request was refused.
fn reason(answer: &Answer) -> String {
    match serde_json::from_slice::<Fault>(&answer.body) {
        Ok(fault) => fault.fault_message.chars().take(SHOWN).collect(),
        Err(_) => format!("status {}", answer.status.as_u16()),
    }
}

fn broken(path: &str, error: &(impl std::error::Error + ?Sized)) -> EngineError {
    EngineError::Control { command: path.to_owned(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::config::{InstanceInfo, InstanceState, Vm, VmState};

    /// A way to somebody who listens where a VMM does.
    fn api() -> (tempfile::TempDir, UnixListener, Api) {
        let scratch = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(scratch.path().join(API_SOCKET)).unwrap();
        let dir = MachineDir::open(Utf8Path::from_path(scratch.path()).unwrap()).unwrap();
        let owner = dir.owner().unwrap();
        (scratch, listener, Api::new(Arc::new(dir), owner))
    }

    /// Takes one request and says this.
    async fn play(listener: &UnixListener, says: &[u8]) -> String {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let count = peer.read(&mut request).await.unwrap();
        // Who was told too much hangs up.
        peer.write_all(says).await.ok();
        String::from_utf8_lossy(&request[..count]).into_owned()
    }

    fn said(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
    }

    async fn pause(api: &Api) -> Result<Outcome, EngineError> {
        let pause = Vm { state: VmState::Paused };
        api.tell(Method::PATCH, "/vm", &pause, Duration::from_secs(20)).await
    }

    #[tokio::test]
    async fn what_is_done_refused_and_broken_are_three_things() {
        let (_keep, listener, api) = api();
        let (done, request) = tokio::join!(pause(&api), play(&listener, b"HTTP/1.1 204 \r\n\r\n"));
        assert_eq!(done.unwrap(), Outcome::Done);
        assert!(request.starts_with("PATCH /vm HTTP/1.1\r\n"), "{request}");
        assert!(request.ends_with("{\"state\":\"Paused\"}"), "{request}");

        let refusal = said("400 Bad Request", "{\"fault_message\": \"it is asleep\"}");
        let (refused, _) = tokio::join!(pause(&api), play(&listener, &refusal));
        let refused = refused.unwrap();
        assert_eq!(refused, Outcome::Refused("it is asleep".to_owned()));
        let error = refused.done("/vm").unwrap_err().to_string();
        assert_eq!(error, "VMM command /vm failed: it is asleep");

        for half in [&b""[..], b"HTTP/1.1 204", b"HTTP/1.1 400 \r\nContent-Length: 9\r\n\r\n{"] {
            let (broken, _) = tokio::join!(pause(&api), play(&listener, half));
            assert!(matches!(broken, Err(EngineError::Control { .. })), "{broken:?}");
        }
    }

    #[tokio::test]
    async fn no_answer_is_longer_than_its_bound() {
        let (_keep, listener, api) = api();
        let endless = said("400 Bad Request", &"x".repeat(MOST_ANSWER + 1));
        let (told, _) = tokio::join!(pause(&api), play(&listener, &endless));
        assert!(matches!(told, Err(EngineError::Control { .. })), "{told:?}");
        let wordy = format!("{{\"fault_message\": \"{}\"}}", "x".repeat(SHOWN * 2));
        let wordy = said("400 Bad Request", &wordy);
        let (told, _) = tokio::join!(pause(&api), play(&listener, &wordy));
        assert_eq!(told.unwrap(), Outcome::Refused("x".repeat(SHOWN)));
    }

    #[tokio::test]
    async fn what_is_asked_is_understood_or_an_error() {
        let (_keep, listener, api) = api();
        let runs = said("200 OK", "{\"id\": \"x\", \"state\": \"Running\"}");
        let (info, _) = tokio::join!(api.get::<InstanceInfo>("/"), play(&listener, &runs));
        assert_eq!(info.unwrap().state, InstanceState::Running);
        for other in [said("200 OK", "[]"), said("400 Bad Request", "{\"state\": \"Running\"}")] {
            let (info, _) = tokio::join!(api.get::<InstanceInfo>("/"), play(&listener, &other));
            assert!(matches!(info, Err(EngineError::Control { .. })), "{info:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline() {
        let (_keep, _listener, api) = api();
        let told = pause(&api).await;
        assert!(matches!(told, Err(EngineError::Timeout { seconds: 20, .. })), "{told:?}");
    }
}
