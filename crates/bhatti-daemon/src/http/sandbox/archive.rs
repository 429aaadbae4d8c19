//! `/sandboxes/:sandbox/archive?path=…`: whole trees as tar, in both directions

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::{Unpacked, route};

use super::files::{Incoming, Use, Words, failed, find, outgoing};
use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// `GET`: the file or tree at the path. `name`: what it is called in the archive.
pub(in crate::http) async fn pack(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    Query(query): Query<Words>,
) -> Result<Response, ApiError> {
    let (row, path) = find(&api, &caller, &sandbox, &query).await?;
    let used = Use::of(&api, &row).await?;
    let name = query.get("name").map_or("", String::as_str);
    let opened = used.lease.guest().read_archive(&path, name).await.map_err(failed);
    let answered = opened.map(|archive| {
        let headers = [(header::CONTENT_TYPE, route::TAR)];
        (headers, outgoing(archive.content, used.lease.clone())).into_response()
    });
    Ok(used.answer(answered))
}

/// `PUT`: unpacks the body beneath the path, which has to be a directory. Dropping this (the
/// client hung up) leaves the files that had arrived whole.
pub(in crate::http) async fn unpack(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    Query(query): Query<Words>,
    request: Request,
) -> Response {
    let mut body = Incoming::new(request);
    let begun = async {
        let (row, path) = find(&api, &caller, &sandbox, &query).await?;
        Ok::<_, ApiError>((Use::of(&api, &row).await?, path))
    };
    let answered = match begun.await {
        Ok((used, path)) => {
            let answered = receive(&used, &path, &mut body).await;
            used.answer(answered)
        }
        Err(error) => error.into_response(),
    };
    if !answered.status().is_success() {
        body.discard().await;
    }
    answered
}

async fn receive(used: &Use, path: &str, body: &mut Incoming) -> Result<Response, ApiError> {
    let mut upload = used.lease.guest().begin_archive(path).await.map_err(failed)?;
    while let Some(bytes) = body.next().await? {
        upload.write(&bytes).await.map_err(failed)?;
    }
    let unpacked = upload.finish().await.map_err(failed)?;
    let answer = Unpacked {
        status: "ok".to_owned(),
        files: unpacked.files,
        bytes: unpacked.bytes,
        problems: unpacked.problems,
        problem_count: unpacked.problem_count,
    };
    Ok(Written(StatusCode::OK, answer).into_response())
}
