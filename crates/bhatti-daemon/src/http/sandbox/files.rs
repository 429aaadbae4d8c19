//! `/sandboxes/:sandbox/files?path=…`: what reading and writing have in common.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bhatti_guest_client::{Download, GuestError};
use bhatti_lifecycle::{Lease, chain};
use bhatti_store::{SandboxRow, UserRow};
use bytes::Bytes;
use futures_util::StreamExt;

use super::exec::warned;
use crate::http::{Api, ApiError, body};

mod read;
mod write;

pub(in crate::http) use read::{look, read};
pub(in crate::http) use write::write;

/// How long a client may be without sending a byte of its body.
const STALL: Duration = Duration::from_secs(120);

/// What a query says; of two values of a name the last counts.
pub(super) type Words = HashMap<String, String>;

/// A path in the guest. Relative ones begin at its root.
pub(super) fn path(query: &Words) -> Result<String, ApiError> {
    match query.get("path").map(String::as_str) {
        None | Some("") => Err(ApiError::BadRequest("path query parameter required".to_owned())),
        Some(path) if path.starts_with('/') => Ok(path.to_owned()),
        Some(path) => Ok(format!("/{path}")),
    }
}

/// A sandbox that is awake for one request.
pub(super) struct Use {
    pub(super) lease: Lease,
    /// What it lost in waking.
    loss: Option<String>,
}

impl Use {
    /// Wakes the sandbox.
    pub(super) async fn of(api: &Arc<Api>, row: &SandboxRow) -> Result<Self, ApiError> {
        let lease = api.sandboxes.lease_of(row).await?;
        Ok(Self { lease, loss: api.sandboxes.loss_since(row) })
    }

    /// The answer, whatever it is: the sandbox is not what it was.
    pub(super) fn answer(self, answered: Result<Response, ApiError>) -> Response {
        warned(answered.unwrap_or_else(IntoResponse::into_response), self.loss)
    }
}

/// 404 comes before complaints about the query, and those before anything is woken for it.
pub(super) async fn find(
    api: &Arc<Api>,
    caller: &UserRow,
    sandbox: &str,
    query: &Words,
) -> Result<(SandboxRow, String), ApiError> {
    let row = api.sandboxes.get(caller, sandbox).await?;
    Ok((row, path(query)?))
}

/// What comes out of a guest as the body of an answer. The sandbox stays awake until its end.
pub(super) fn outgoing(content: Download, lease: Lease) -> Body {
    let pieces = futures_util::stream::unfold((content, lease), |(mut content, lease)| async {
        match content.next().await {
            Ok(bytes) => Some((Ok(bytes?), (content, lease))),
            Err(error) => {
                // All the client sees of it is a body that breaks off.
                tracing::warn!(error = chain(&error), "a transfer out of a guest broke off");
                Some((Err(error), (content, lease)))
            }
        }
    });
    Body::from_stream(pieces)
}

/// The body of a request, piece by piece.
pub(super) struct Incoming {
    pieces: BodyDataStream,
    /// The client sends nothing before it has been asked to.
    waits: bool,
}

impl Incoming {
    pub(super) fn new(request: Request) -> Self {
        let waits = body::waits(request.headers());
        Self { pieces: request.into_body().into_data_stream(), waits }
    }

    /// `None` at its end. A body that breaks off, or stands still, is an error.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        self.waits = false;
        match tokio::time::timeout(STALL, self.pieces.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(error))) => Err(ApiError::BadRequest(format!("body ended early: {error}"))),
            Err(_) => {
                let seconds = STALL.as_secs();
                Err(ApiError::BadRequest(format!("no byte of the body came for {seconds} s")))
            }
        }
    }

    /// Takes the rest, before a refusal is answered.
    pub(super) async fn discard(self) {
        if !self.waits {
            body::discard(self.pieces).await;
        }
    }
}

/// An error of the guest's about files.
pub(super) fn failed(error: GuestError) -> ApiError {
    ApiError::Files(error)
}
