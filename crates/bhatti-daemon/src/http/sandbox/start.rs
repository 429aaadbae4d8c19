//! `POST /sandboxes/:sandbox/start`

use std::sync::Arc;

use axum::Extension;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use bhatti_api::{Sandbox, StartSandbox};

use super::view;
use crate::http::body::{Named, Read, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Answers when the guest does. Starting what runs is fine.
pub(in crate::http) async fn start(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    request: Request,
) -> Result<Written<Sandbox>, ApiError> {
    let force = forced(request).await;
    let row = api.sandboxes.start(&caller, &sandbox, force).await?;
    Ok(Written(StatusCode::OK, view(row)))
}

/// Most clients send nothing; what says nothing is an ordinary start, as the contract has it.
async fn forced(request: Request) -> bool {
    let body = Read::<StartSandbox>::from_request(request, &()).await;
    body.is_ok_and(|Read(StartSandbox { force })| force)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[tokio::test]
    async fn only_a_clear_wish_is_force() {
        for (body, wanted) in [
            ("{\"force\":true}", true),
            ("{\"Force\":true} trailing", true),
            ("{\"force\":false}", false),
            ("{}", false),
            ("", false),
            ("force", false),
            ("{\"force\":\"yes\"}", false),
        ] {
            assert_eq!(forced(Request::new(Body::from(body))).await, wanted, "{body:?}");
        }
        let huge = " ".repeat(2 << 20) + "{\"force\":true}";
        assert!(!forced(Request::new(Body::from(huge))).await, "beyond the bound nothing is read");
    }
}
