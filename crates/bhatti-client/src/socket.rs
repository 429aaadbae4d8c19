//! WebSockets: from a request like any other to two halves that carry messages.
//!
//! The upgrade goes over the client's ordinary connection, so address, key, TLS, timing and errors
//! are those of every request.
//!
//! Promises:
//! - A server that says nothing for ninety seconds, not even a ping, is given up: it pings
//!   every thirty.
//! - Only a close with code 1000 is an end; every other is an error
//!   (`a_broken_exec_stream_is_an_error`).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Builder;
use http::{HeaderMap, Method, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::client::{Answer, Call, MAX_ERROR, collect};
use crate::timing::Stopwatch;
use crate::{Client, ClientError};

/// The largest message that is read, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// How much is read from the connection at once, in bytes.
const READ_BUFFER: usize = 64 * 1024;
/// What the protocol calls a close frame that says nothing.
const NO_STATUS: u16 = 1005;
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(90);

/// What a request for a socket says besides its path.
#[derive(Clone, Copy)]
pub(crate) struct Upgrade<'a> {
    key: &'a str,
    protocol: Option<&'static str>,
}

impl Upgrade<'_> {
    pub(crate) fn ask(&self, request: Builder) -> Builder {
        let request = request
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, self.key);
        match self.protocol {
            Some(protocol) => request.header(SEC_WEBSOCKET_PROTOCOL, protocol),
            None => request,
        }
    }

    /// Whether the server has understood.
    fn is_answered_by(&self, headers: &HeaderMap) -> bool {
        let wanted = derive_accept_key(self.key.as_bytes());
        headers.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|accept| *accept == wanted)
            && headers.get(SEC_WEBSOCKET_PROTOCOL).map(|chosen| chosen.as_bytes())
                == self.protocol.map(str::as_bytes)
    }
}

/// One open WebSocket, in its two halves.
pub(crate) struct Socket {
    pub(crate) sender: SocketSender,
    pub(crate) receiver: SocketReceiver,
    /// Runs until somebody records it.
    pub(crate) stopwatch: Stopwatch,
}

/// What a message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Text(String),
    Binary(Bytes),
}

impl Client {
    /// Opens a WebSocket within `limit`, which waking a machine counts against. A refusal is the
    /// error that it would be for any request.
    pub(crate) async fn socket(
        &self,
        path: &str,
        protocol: Option<&'static str>,
        limit: Duration,
    ) -> Result<Socket, ClientError> {
        let late = |_| ClientError::Timeout { seconds: limit.as_secs() };
        timeout(limit, self.open_socket(path, protocol)).await.map_err(late)?
    }

    async fn open_socket(
        &self,
        path: &str,
        protocol: Option<&'static str>,
    ) -> Result<Socket, ClientError> {
        let mut key = [0; 16];
        getrandom::fill(&mut key)
            .map_err(|error| ClientError::caused("this system has no randomness", error))?;
        let key = STANDARD.encode(key);
        let mut call = Call::new(Method::GET, path);
        let upgrade = Upgrade { key: &key, protocol };
        call.upgrade = Some(upgrade);
        let Answer { response, stopwatch, .. } = self.send(&call).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = response.into_parts();
            let body = collect(body, MAX_ERROR).await;
            self.record(stopwatch);
            return Err(ClientError::from_body(parts.status, &body.unwrap_or_default()));
        }
        if !upgrade.is_answered_by(response.headers()) {
            return Err(ClientError::protocol("the server's upgrade is not the one asked for"));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| {
            ClientError::caused("the connection broke while it became a WebSocket", error)
        })?;
        Ok(Socket::new(upgraded, stopwatch).await)
    }
}

impl Socket {
    async fn new(upgraded: Upgraded, stopwatch: Stopwatch) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let io = TokioIo::new(upgraded);
        let stream = WebSocketStream::from_raw_socket(io, Role::Client, Some(config)).await;
        let (sink, stream) = stream.split();
        let sender = SocketSender { sink: Arc::new(Mutex::new(sink)) };
        Self { sender, receiver: SocketReceiver { stream }, stopwatch }
    }
}

type Stream = WebSocketStream<TokioIo<Upgraded>>;

/// The way to the server. Cheap to clone; messages go out whole and one after the other.
#[derive(Clone)]
pub(crate) struct SocketSender {
    sink: Arc<Mutex<SplitSink<Stream, Message>>>,
}

impl SocketSender {
    /// Sends text, waiting while the server does not take it.
    pub(crate) async fn text(&self, text: String) -> Result<(), ClientError> {
        self.send(Message::text(text)).await
    }

    /// Sends bytes, waiting while the server does not take them.
    pub(crate) async fn binary(&self, bytes: Bytes) -> Result<(), ClientError> {
        self.send(Message::binary(bytes)).await
    }

    /// Says that this is the end. What was sent before arrives.
    pub(crate) async fn close(&self) -> Result<(), ClientError> {
        self.sink.lock().await.close().await.map_err(broken)
    }

    async fn send(&self, message: Message) -> Result<(), ClientError> {
        self.sink.lock().await.send(message).await.map_err(broken)
    }
}

/// The way from the server.
pub(crate) struct SocketReceiver {
    stream: SplitStream<Stream>,
}

impl SocketReceiver {
    /// The next message; `None` once the server has closed with 1000. Cancel-safe.
    ///
    /// Pings are answered only while somebody waits here.
    pub(crate) async fn next(&mut self) -> Result<Option<Incoming>, ClientError> {
        loop {
            let late = |_| ClientError::Timeout { seconds: SILENCE.as_secs() };
            let message = match timeout(SILENCE, self.stream.next()).await.map_err(late)? {
                Some(message) => message.map_err(broken)?,
                None => return Err(ended()),
            };
            match message {
                Message::Text(text) => return Ok(Some(Incoming::Text(text.as_str().to_owned()))),
                Message::Binary(bytes) => return Ok(Some(Incoming::Binary(bytes))),
                Message::Close(Some(frame)) if frame.code == CloseCode::Normal => return Ok(None),
                Message::Close(frame) => {
                    let (code, reason) = match frame {
                        Some(frame) => (frame.code.into(), crate::error::clean(&frame.reason)),
                        None => (NO_STATUS, String::new()),
                    };
                    return Err(ClientError::Closed { code, reason });
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

fn ended() -> ClientError {
    ClientError::protocol("the connection to the server ended unexpectedly")
}

fn broken(error: WsError) -> ClientError {
    match error {
        WsError::ConnectionClosed | WsError::AlreadyClosed => ended(),
        WsError::Io(error) => ClientError::caused("the connection to the server broke", error),
        error => ClientError::caused("the connection to the server broke", error),
    }
}
