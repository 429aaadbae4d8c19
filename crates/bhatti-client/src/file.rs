//! `/sandboxes/:s/files`: one file at a time.

use std::time::Duration;

use bhatti_api::{FileInfo, StatusBody, route};
use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::client::{Answer, Call, MAX_ERROR, collect};
use crate::connect::Sender;
use crate::sandbox::MACHINE;
use crate::timing::Stopwatch;
use crate::{Client, ClientError};

/// How long a server may be without sending a byte. Longer than it waits for a guest.
const STALL: Duration = Duration::from_secs(180);

/// What is known of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// In bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    pub is_dir: bool,
}

/// For what moves a whole file, after it may have woken a machine.
fn limit(size: u64) -> Duration {
    /// Bytes a second that the slowest connection has.
    const PACE: u64 = 50_000;
    MACHINE + Duration::from_secs(size / PACE)
}

impl Client {
    /// `GET /sandboxes/:s/files`: the content, as it comes.
    pub async fn read_file(
        &self,
        sandbox: &str,
        path: &str,
    ) -> Result<ByteStream<'_>, ClientError> {
        self.read_bytes(&route::files(sandbox, path)).await
    }

    /// Asks for bytes, and waits for the first of them.
    pub(crate) async fn read_bytes(&self, path: &str) -> Result<ByteStream<'_>, ClientError> {
        let late = |_| ClientError::Timeout { seconds: MACHINE.as_secs() };
        let call = Call::new(Method::GET, path);
        let Answer { response, stopwatch, sender } =
            timeout(MACHINE, self.send(&call)).await.map_err(late)??;
        let (parts, body) = response.into_parts();
        if !parts.status.is_success() {
            let body = timeout(MACHINE, collect(body, MAX_ERROR)).await.map_err(late)?;
            self.record(stopwatch);
            return Err(ClientError::from_body(parts.status, &body.unwrap_or_default()));
        }
        Ok(ByteStream { client: self, body, rest: Some((sender, stopwatch)) })
    }

    /// `PUT /sandboxes/:s/files`: all of it, or nothing. At most [`bhatti_api::MAX_FILE`] bytes are
    /// taken. `mode`: permission bits; without, those
    /// of the file that is there, or the usual ones.
    pub async fn write_file(
        &self,
        sandbox: &str,
        path: &str,
        mode: Option<u32>,
        content: Bytes,
    ) -> Result<StatusBody, ClientError> {
        let mut path = route::files(sandbox, path);
        if let Some(mode) = mode {
            path.push_str(&format!("&mode={mode:04o}"));
        }
        let mut call = Call::new(Method::PUT, &path);
        call.limit = limit(content.len() as u64);
        call.content = Some(content);
        Ok(self.json(call).await?.0)
    }

    /// `HEAD /sandboxes/:s/files`: what the path leads to; `None` if to nothing.
    pub async fn stat_file(
        &self,
        sandbox: &str,
        path: &str,
    ) -> Result<Option<FileStat>, ClientError> {
        let late = |_| ClientError::Timeout { seconds: MACHINE.as_secs() };
        let url = route::files(sandbox, path);
        let call = Call::new(Method::HEAD, &url);
        let Answer { response, stopwatch, sender } =
            timeout(MACHINE, self.send(&call)).await.map_err(late)??;
        self.record(stopwatch);
        self.keep(sender);
        // An answer without a body cannot say what is missing: the sandbox or the file.
        match response.status() {
            http::StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => stat(response.headers()).map(Some),
            // Nor why it is refused: who asks for the content is told.
            status => match self.read_file(sandbox, path).await {
                Err(told) if told.status() == Some(status) => Err(told),
                _ => Err(ClientError::from_body(status, b"")),
            },
        }
    }

    /// `GET /sandboxes/:s/files?ls=true`: the entries of a directory.
    pub async fn list_files(
        &self,
        sandbox: &str,
        path: &str,
    ) -> Result<Vec<FileInfo>, ClientError> {
        let path = format!("{}&ls=true", route::files(sandbox, path));
        let mut call = Call::new(Method::GET, &path);
        call.limit = MACHINE;
        Ok(self.json(call).await?.0)
    }
}

fn stat(headers: &HeaderMap) -> Result<FileStat, ClientError> {
    let said = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let stat = || {
        Some(FileStat {
            size: said(route::FILE_SIZE_HEADER)?.parse().ok()?,
            mode: u32::from_str_radix(said(route::FILE_MODE_HEADER)?, 8).ok()?,
            is_dir: said(route::FILE_IS_DIR_HEADER)? == "true",
        })
    };
    stat().ok_or_else(|| ClientError::protocol("the server does not say what sort of file it is"))
}

/// Bytes that come from the server.
pub struct ByteStream<'a> {
    client: &'a Client,
    body: Incoming,
    /// Taken at the end.
    rest: Option<(Sender, Stopwatch)>,
}

impl ByteStream<'_> {
    /// The next bytes; `None` when all have come. Bytes that break off are an error. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let late = |_| ClientError::Timeout { seconds: STALL.as_secs() };
            match timeout(STALL, self.body.frame()).await.map_err(late)? {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    return Err(ClientError::caused("the transfer broke off", error));
                }
                None => {
                    if let Some((sender, stopwatch)) = self.rest.take() {
                        self.client.record(stopwatch);
                        self.client.keep(sender);
                    }
                    return Ok(None);
                }
            }
        }
    }
}
