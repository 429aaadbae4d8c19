//! `PUT /sandboxes/:sandbox/files`: one file, all of it or nothing

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::{MAX_FILE, StatusBody};
use bhatti_guest_client::{GuestError, NewFile};

use super::{Incoming, Use, Words, failed, find};
use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// The mode of a new file about which nothing is said.
const MODE: u32 = 0o644;

/// Streams the body into the guest. Dropping this (the client hung up) leaves what was there.
pub(in crate::http) async fn write(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    Query(query): Query<Words>,
    request: Request,
) -> Response {
    let size = size(request.headers());
    let mut body = Incoming::new(request);
    let begun = async {
        let (row, path) = find(&api, &caller, &sandbox, &query).await?;
        let mode = mode(&query);
        let file =
            NewFile { path, mode: mode.unwrap_or(MODE), keep_mode: mode.is_none(), size: size? };
        Ok::<_, ApiError>((Use::of(&api, &row).await?, file))
    };
    let answered = match begun.await {
        Ok((used, file)) => {
            let answered = receive(&used, file, &mut body).await;
            used.answer(answered)
        }
        Err(error) => error.into_response(),
    };
    if !answered.status().is_success() {
        body.discard().await;
    }
    answered
}

async fn receive(used: &Use, file: NewFile, body: &mut Incoming) -> Result<Response, ApiError> {
    let mut upload = used.lease.guest().begin_file(file).await.map_err(failed)?;
    while let Some(bytes) = body.next().await? {
        upload.write(&bytes).await.map_err(failed)?;
    }
    upload.finish().await.map_err(failed)?;
    Ok(Written(StatusCode::OK, StatusBody { status: "ok".to_owned() }).into_response())
}

/// The permission bits asked for. What is no octal number, or 0, asks for nothing.
fn mode(query: &Words) -> Option<u32> {
    let mode = u32::from_str_radix(query.get("mode")?, 8).ok()? & 0o7777;
    (mode != 0).then_some(mode)
}

fn size(headers: &HeaderMap) -> Result<u64, ApiError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let size = length.and_then(|length| length.parse().ok()).ok_or_else(|| {
        ApiError::BadRequest("Content-Length header required for file upload".to_owned())
    })?;
    if size > MAX_FILE {
        let text = format!("file too large: {size} bytes (max {MAX_FILE})");
        return Err(failed(GuestError::TooLarge(text)));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_octal_or_nothing() {
        let given = |mode: &str| super::mode(&[("mode".to_owned(), mode.to_owned())].into());
        assert_eq!(given("0755"), Some(0o755));
        assert_eq!(given("600"), Some(0o600));
        assert_eq!(given("107777"), Some(0o7777));
        for nothing in ["", "0", "8", "rwx", "-1", "77777777777777"] {
            assert_eq!(given(nothing), None, "{nothing}");
        }
        assert_eq!(mode(&Words::new()), None);
    }
}
