//! `GET /sandboxes/:sandbox/ports` and `GET /ports`: what listens

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bhatti_api::{Port, route};
use futures_util::StreamExt;

use super::files::{Use, failed};
use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// How many guests are asked at a time.
const AT_ONCE: usize = 32;

/// Of one sandbox, which wakes for it. Its ports are reached under the name it was asked by.
pub(in crate::http) async fn ports(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
) -> Result<Response, ApiError> {
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    let used = Use::of(&api, &row).await?;
    let asked = used.lease.guest().listening_ports().await.map_err(failed);
    let answered = asked.map(|found| {
        let ports: Vec<Port> = shown(&sandbox, found).collect();
        Written(StatusCode::OK, ports).into_response()
    });
    Ok(used.answer(answered))
}

/// Of all sandboxes of the caller that are awake. Wakes nothing and keeps nothing awake; who does
/// not answer is left out.
pub(in crate::http) async fn all_ports(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
) -> Result<Written<Vec<Port>>, ApiError> {
    let rows = api.sandboxes.list(&caller).await?;
    let asking = futures_util::stream::iter(rows).map(|row| {
        let api = &api;
        async move {
            let guest = api.sandboxes.guest_if_hot(&row).await?;
            let found = guest.listening_ports().await.ok()?;
            let id = row.id.to_string();
            let ports = shown(&id, found);
            Some(ports.map(|port| Port { sandbox_id: Some(id.clone()), ..port }).collect())
        }
    });
    let found: Vec<Option<Vec<Port>>> = asking.buffered(AT_ONCE).collect().await;
    Ok(Written(StatusCode::OK, found.into_iter().flatten().flatten().collect()))
}

fn shown(sandbox: &str, found: BTreeSet<u16>) -> impl Iterator<Item = Port> {
    found.into_iter().map(move |port| Port {
        sandbox_id: None,
        container_port: port,
        proxy_url: route::proxy(sandbox, port),
    })
}
