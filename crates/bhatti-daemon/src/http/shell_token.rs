//! `/sandboxes/:sandbox/shell-token`: what opens a sandbox's web shell.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::{ShellToken, route};
use bhatti_lifecycle::ServiceError;
use bhatti_store::StoreError;

use super::body::{Named, Written};
use super::gate::Caller;
use super::{Api, ApiError};

/// `POST`: a new token; those inside stay there. Wakes nothing.
pub(super) async fn share(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
) -> Result<Written<ShellToken>, ApiError> {
    let id = api.sandboxes.get(&caller, &sandbox).await?.id;
    let set = api.db.call({
        let id = id.clone();
        move |store| store.set_shell_token(&id)
    });
    let token = set.await.map_err(|error| failed("set", sandbox, error))?.reveal().to_owned();
    // The daemon knows no public name; who asked knows how it got here.
    let url = format!("https://{}#token={token}", route::web_shell(id.as_str()));
    Ok(Written(StatusCode::OK, ShellToken { token, url }))
}

/// `DELETE`: nothing opens the shell any more, and those inside are put out.
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
) -> Result<StatusCode, ApiError> {
    let id = api.sandboxes.get(&caller, &sandbox).await?.id;
    let shells = Arc::clone(&api.web_shells);
    // Both on the store's thread: a client that hangs up in between must not save those inside.
    let revoked = api.db.call(move |store| {
        store.revoke_shell_token(&id)?;
        shells.put_out(&id);
        Ok(())
    });
    revoked.await.map_err(|error| failed("revoke", sandbox, error))?;
    Ok(StatusCode::NO_CONTENT)
}

fn failed(doing: &'static str, sandbox: String, error: StoreError) -> ApiError {
    match error {
        // Destroyed in between.
        StoreError::NoSandbox(_) => ServiceError::NoSandbox(sandbox).into(),
        cause => ApiError::ShellToken { doing, cause },
    }
}
