//! `GET /sandboxes/:sandbox/forward/:port`: a connection to a port of the guest, as raw bytes.
//!
//! Promise: a client never takes for the end of what a program said that it broke off, that its
//! machine went, or that this daemon stops: such a connection is reset, or, with TLS, ends without a
//! good-bye.

use std::io::Cursor;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawPathParams, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bhatti_api::route;
use bhatti_lifecycle::chain;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::files::Use;
use super::proxy::port;
use crate::http::body::Named;
use crate::http::connection::{Outspoken, Patient};
use crate::http::gate::Caller;
use crate::http::proxy::{Relay, relay};
use crate::http::{Api, ApiError};

/// Joins the two until one ends it or the daemon stops.
async fn join(
    client: Upgraded,
    program: impl AsyncRead + AsyncWrite + Send,
    stop: &CancellationToken,
) -> Relay {
    let plain = client.downcast::<TokioIo<Outspoken<Patient<TcpStream>>>>();
    let Parts { io, read_buf, .. } = match plain {
        Ok(plain) => plain,
        // By TLS, where an end without a good-bye is seen to be one.
        Err(client) => return until(stop, relay(TokioIo::new(client), program, None)).await,
    };
    let mut client = io.into_inner().into_inner().into_inner();
    let (from, to) = client.split();
    let from = Cursor::new(read_buf).chain(from);
    let end = until(stop, relay(tokio::io::join(from, to), program, None)).await;
    if end != Relay::Closed
        && let Err(error) = client.set_zero_linger()
    {
        tracing::debug!(%error, "a forwarded connection was not reset");
    }
    end
}

async fn until(stop: &CancellationToken, relayed: impl Future<Output = Relay>) -> Relay {
    tokio::select! {
        end = relayed => end,
        () = stop.cancelled() => Relay::Broke,
    }
}

/// Connects, and gives the connection over to the client's until one of the two ends it. As long
/// as it is open the sandbox stays awake; a client that vanishes is noticed by the kernel.
pub(in crate::http) async fn forward(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    params: RawPathParams,
    mut request: Request,
) -> Result<Response, ApiError> {
    let port = port(&params).ok_or(ApiError::BadRequest("invalid port".to_owned()))?;
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    let protocol = request.headers().get(header::UPGRADE);
    let asked_for = protocol.is_some_and(|protocol| protocol == route::FORWARD_PROTOCOL);
    let client = request.extensions_mut().remove::<OnUpgrade>().filter(|_| asked_for);
    let client = client.ok_or(ApiError::NotAnUpgrade)?;
    let tunnel = api.proxy.tunnel().ok_or(ApiError::Busy)?;
    let place = api.proxy.enter(&row.id).ok_or(ApiError::Busy)?;
    let used = Use::of(&api, &row).await?;
    let program = match used.lease.guest().dial(port).await {
        Ok(program) => program,
        Err(error) => {
            let refused = ApiError::Gateway(format!("tunnel failed: {error}"));
            return Ok(used.answer(Err(refused)));
        }
    };
    let lease = used.lease.clone();
    api.proxy.spawn("forward", move |stop| async move {
        match client.await {
            Ok(client) => {
                let end = join(client, program, &stop).await;
                tracing::debug!(?end, port, "a forwarded connection ended");
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "a forwarded connection did not begin");
            }
        }
        drop((lease, place, tunnel));
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(route::FORWARD_PROTOCOL));
    Ok(used.answer(Ok(response)))
}
