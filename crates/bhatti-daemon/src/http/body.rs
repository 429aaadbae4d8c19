//! Reading and writing JSON bodies as the contract does, in one place.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::{from_json, route, to_json};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ApiError;

/// A JSON request body of at most `MAX` bytes.
pub(super) struct Read<T, const MAX: usize = { route::MAX_JSON }>(pub(super) T);

/// A body must arrive within this, however slowly it is sent.
const PATIENCE: Duration = Duration::from_secs(60);

impl<S: Send + Sync, T: DeserializeOwned, const MAX: usize> FromRequest<S> for Read<T, MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let body = read(request.into_body(), MAX).await?;
        from_json(&body).map(Read).map_err(|bad| ApiError::Json(bad.0))
    }
}

async fn read(body: Body, max: usize) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(PATIENCE, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::Json("http: request body too large".to_owned()))
        }
        Ok(Err(error)) => Err(ApiError::Json(format!("body ended early: {error}"))),
        Err(_) => {
            Err(ApiError::Json(format!("body did not arrive within {} s", PATIENCE.as_secs())))
        }
    }
}

/// Takes what is still being sent, as far as that is bearable: a client that is cut off while it
/// sends may never read why.
pub(super) async fn discard(mut body: BodyDataStream) {
    const MOST: usize = 128 << 20;
    const PATIENCE: Duration = Duration::from_secs(10);
    let discarding = async {
        let mut left = MOST;
        while let Some(Ok(bytes)) = body.next().await
            && left > 0
        {
            left = left.saturating_sub(bytes.len());
        }
    };
    // What is not taken by then is cut off.
    drop(tokio::time::timeout(PATIENCE, discarding).await);
}

/// Whether the client sends its body only when it has been asked to.
pub(super) fn waits(headers: &HeaderMap) -> bool {
    headers.contains_key(header::EXPECT)
}

/// What a path names first: a sandbox by id or name, or a snapshot.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // What is no text after decoding is nobody's name.
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|_| ApiError::UnknownPath)?;
        let first = params.iter().next().ok_or(ApiError::UnknownPath)?;
        Ok(Named(first.1.to_owned()))
    }
}

/// A JSON answer.
pub(super) struct Written<T>(pub(super) StatusCode, pub(super) T);

impl<T: Serialize> IntoResponse for Written<T> {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, "application/json")];
        (self.0, headers, to_json(&self.1)).into_response()
    }
}
