//! Reading and writing JSON bodies as the contract does, in one place.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::{from_json, route, to_json};
use bytes::Bytes;
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
