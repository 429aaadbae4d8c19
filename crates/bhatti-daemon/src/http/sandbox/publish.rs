//! `/sandboxes/:sandbox/publish`: ports that anybody may ask. Wakes nothing.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{FromRequest, RawPathParams, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bhatti_api::{Publish, PublishRule, Published, TOKEN_NAME, route};
use bhatti_lifecycle::ServiceError;
use bhatti_store::{PublishRow, Published as Outcome, SandboxRow, StoreError};
use bhatti_types::{Alias, BadAlias, EventKind, PublishToken};
use serde_json::json;

use super::proxy::port;
use crate::http::body::{Named, Read, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// How often another random alias is tried.
const TRIES: usize = 4;

/// `POST`: publishes a port, or says that it is.
pub(in crate::http) async fn publish(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    request: Request,
) -> Result<Response, ApiError> {
    // 404 comes before complaints about the body, so the body is read here.
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    let bad = |text: &str| ApiError::BadRequest(text.to_owned());
    let body = Read::<Publish>::from_request(request, &()).await;
    let Read(wanted) = body.map_err(|_| bad("invalid request body"))?;
    let port = u16::try_from(wanted.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| bad("port must be 1-65535"))?;
    let outcome = if wanted.alias.is_empty() {
        record_random(&api, &row, port, wanted.auth).await
    } else {
        let alias = wanted.alias.parse::<Alias>();
        let alias = alias.and_then(|alias| {
            let apis = api.public.is_apis(&alias);
            if apis { Err(BadAlias::Reserved(alias.to_string())) } else { Ok(alias) }
        });
        let alias = alias.map_err(|error| ApiError::BadRequest(error.to_string()))?;
        record(&api, &row, port, alias, wanted.auth).await
    };
    let (outcome, token) = outcome.map_err(|error| failed(error, sandbox))?;
    let (status, rule) = match outcome {
        Outcome::New(rule) => (StatusCode::CREATED, rule),
        Outcome::Existing(rule) => (StatusCode::OK, rule),
    };
    if status == StatusCode::CREATED {
        // Not there for who hangs up just now: then the first visitor's handshake does it.
        api.public.announce(&rule.alias, &row.owner);
    }
    let mut response = Written(status, shown(&api, rule, token)).into_response();
    if status == StatusCode::OK {
        let name = HeaderName::from_static(route::EXISTING_HEADER);
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// A rule, and its token if it is to ask for one. Who was inside before that is put out.
async fn record(
    api: &Arc<Api>,
    row: &SandboxRow,
    port: u16,
    alias: Alias,
    auth: bool,
) -> Result<(Outcome, Option<PublishToken>), StoreError> {
    let (all, row) = (Arc::clone(api), row.clone());
    // All of it on the store's thread: a client that hangs up in between takes nothing along.
    let recorded = api.db.call(move |store| {
        let outcome = store.publish(&row.id, port, &alias, auth)?;
        match &outcome {
            (Outcome::Existing(rule), Some(_)) => all.public.put_out(&rule.id),
            (Outcome::Existing(_), None) => {}
            (Outcome::New(rule), _) => {
                tracing::info!(sandbox = %row.id, port, alias = %rule.alias, "published a port");
                let url = all.public.url(&rule.alias);
                let meta =
                    json!({ "sandbox": row.name, "port": port, "alias": rule.alias, "url": url });
                all.events.record(EventKind::PublishCreated, Some(&row.owner), Some(&row.id), meta);
            }
        }
        Ok(outcome)
    });
    recorded.await
}

async fn record_random(
    api: &Arc<Api>,
    row: &SandboxRow,
    port: u16,
    auth: bool,
) -> Result<(Outcome, Option<PublishToken>), StoreError> {
    let mut tried = 0;
    loop {
        tried += 1;
        match record(api, row, port, Alias::random(row.name.as_str()), auth).await {
            Err(StoreError::AliasTaken(_)) if tried < TRIES => {}
            outcome => return outcome,
        }
    }
}

fn failed(error: StoreError, sandbox: String) -> ApiError {
    match error {
        // Destroyed in between.
        StoreError::NoSandbox(_) => ServiceError::NoSandbox(sandbox).into(),
        taken @ (StoreError::AliasTaken(_) | StoreError::TooManyPublished(_)) => {
            ApiError::Taken(taken.to_string())
        }
        other => ServiceError::from(other).into(),
    }
}

fn shown(api: &Api, rule: PublishRow, token: Option<PublishToken>) -> Published {
    let url = api.public.url(&rule.alias);
    let token = token.map(|token| token.reveal().to_owned());
    Published {
        auth: rule.is_protected(),
        link: token
            .as_ref()
            .map(|token| format!("{}/?{TOKEN_NAME}={token}", url.trim_end_matches('/'))),
        token,
        url,
        alias: rule.alias.to_string(),
        created_at: rule.created_at,
        id: rule.id.to_string(),
        port: rule.port,
        sandbox_id: rule.sandbox.to_string(),
    }
}

/// `GET`: what of the sandbox is published.
pub(in crate::http) async fn published(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
) -> Result<Written<Vec<PublishRule>>, ApiError> {
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    let rules = api.db.call({
        let id = row.id.clone();
        move |store| store.publish_rules(&id)
    });
    let rules = rules.await.map_err(ServiceError::from)?;
    let shown = |rule: PublishRow| PublishRule {
        auth: rule.is_protected(),
        id: rule.id.to_string(),
        sandbox_id: rule.sandbox.to_string(),
        user_id: row.owner.to_string(),
        port: rule.port,
        url: api.public.url(&rule.alias),
        alias: rule.alias.to_string(),
        created_at: rule.created_at,
    };
    Ok(Written(StatusCode::OK, rules.into_iter().map(shown).collect()))
}

/// `DELETE …/:port`: from here on nobody is answered, and who is being answered is cut off.
pub(in crate::http) async fn unpublish(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    params: RawPathParams,
) -> Result<StatusCode, ApiError> {
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    let port = port(&params).ok_or(ApiError::BadRequest("invalid port in path".to_owned()))?;
    let all = Arc::clone(&api);
    // All of it on the store's thread: a client that hangs up in between must save nobody inside, nor
    // leave it unsaid.
    let taken_back = api.db.call(move |store| {
        let Some(rule) = store.unpublish(&row.id, port)? else { return Ok(false) };
        all.public.put_out(&rule.id);
        all.proxy.forget(&row.id, port);
        tracing::info!(sandbox = %row.id, port, alias = %rule.alias, "unpublished a port");
        let meta = json!({ "sandbox": row.name, "port": port, "alias": rule.alias });
        all.events.record(EventKind::PublishDeleted, Some(&row.owner), Some(&row.id), meta);
        Ok(true)
    });
    if taken_back.await.map_err(ServiceError::from)? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        let text = format!("no publish rule for port {port} on this sandbox");
        Err(ApiError::NotFound(text))
    }
}
