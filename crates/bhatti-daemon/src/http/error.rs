//! The one place where an error becomes a status code.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::ErrorBody;
use bhatti_guest_client::GuestError;
use bhatti_lifecycle::{ServiceError, chain};
use bhatti_store::StoreError;

use super::body::Written;

/// Everything a handler may answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("invalid json: {0}")]
    Json(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("missing {0}")]
    Missing(&'static str),
    #[error("not found")]
    UnknownPath,
    /// Some other thing than a sandbox that was named and is not there.
    #[error("{0}")]
    NotFound(String),
    #[error("method not allowed")]
    MethodNotAllowed,
    #[error("authorization required")]
    NoToken,
    #[error("invalid api key")]
    BadToken,
    #[error("rate limit exceeded")]
    RateLimited,
    /// A WebSocket was expected.
    #[error("Bad Request")]
    NotAnUpgrade,
    #[error("too many requests")]
    TooManyKnocks,
    #[error("failed to {doing} shell token")]
    ShellToken {
        doing: &'static str,
        #[source]
        cause: StoreError,
    },
    #[error("too many requests are under way: wait for some to end")]
    TooManyUnderWay,
    #[error("too many open WebSockets: close some, or try again later")]
    TooManySockets,
    /// Somebody else has it, or there are as many as may be.
    #[error("{0}")]
    Taken(String),
    /// As many requests to programs of a sandbox are under way as may be, or as many tunnels.
    #[error("server busy, retry shortly")]
    Busy,
    /// A program in a guest did not answer; the text says why.
    #[error("{0}")]
    Gateway(String),
    /// Asked for something this version does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The guest's files are not as the request would have them.
    #[error("{}", guests_words(.0))]
    Files(GuestError),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// What a guest said of its files, without what we put before it.
fn guests_words(error: &GuestError) -> String {
    match error {
        GuestError::NotFound(text)
        | GuestError::Invalid(text)
        | GuestError::TooLarge(text)
        | GuestError::Denied(text)
        | GuestError::NoSpace(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Left in a response by an internal failure; the gate gives it a request id and logs it.
#[derive(Clone, Debug)]
pub(super) struct Internal {
    pub(super) cause: String,
    /// A tenant's own doing: logged, but no reason for an operator to look.
    pub(super) guests_fault: bool,
}

impl ApiError {
    /// No `_` arm: a new error must choose its status to compile.
    fn status(&self) -> StatusCode {
        use StatusCode as S;
        match self {
            Self::Json(_) | Self::BadRequest(_) | Self::Missing(_) | Self::NotAnUpgrade => {
                S::BAD_REQUEST
            }
            Self::UnknownPath | Self::NotFound(_) => S::NOT_FOUND,
            Self::MethodNotAllowed => S::METHOD_NOT_ALLOWED,
            Self::NoToken | Self::BadToken => S::UNAUTHORIZED,
            Self::RateLimited
            | Self::TooManyUnderWay
            | Self::TooManySockets
            | Self::TooManyKnocks => S::TOO_MANY_REQUESTS,
            Self::ShellToken { .. } => S::INTERNAL_SERVER_ERROR,
            Self::Unsupported(_) => S::NOT_IMPLEMENTED,
            Self::Taken(_) => S::CONFLICT,
            Self::Busy => S::SERVICE_UNAVAILABLE,
            Self::Gateway(_) => S::BAD_GATEWAY,
            Self::Files(error) => guests_status(error),
            Self::Service(error) => match error {
                ServiceError::NoSandbox(_)
                | ServiceError::NoImage { .. }
                | ServiceError::NoSnapshot(_) => S::NOT_FOUND,
                ServiceError::Invalid(_) | ServiceError::BadImage { .. } => S::BAD_REQUEST,
                ServiceError::Exists { .. }
                | ServiceError::NameTaken(_)
                | ServiceError::SnapshotExists(_)
                | ServiceError::NotRunning(_)
                | ServiceError::Denied(_) => S::CONFLICT,
                ServiceError::Quota { .. }
                | ServiceError::SnapshotQuota { .. }
                | ServiceError::NoAddress => S::TOO_MANY_REQUESTS,
                ServiceError::HostFull { .. }
                | ServiceError::StoreFull(_)
                | ServiceError::Full(_)
                | ServiceError::ShuttingDown => S::SERVICE_UNAVAILABLE,
                ServiceError::Create(cause) if cause.is_the_requests() => S::BAD_REQUEST,
                ServiceError::Create(cause) | ServiceError::Wake(cause) if cause.is_foreign() => {
                    S::CONFLICT
                }
                ServiceError::Guest(error) => guests_status(error),
                ServiceError::Wake(_)
                | ServiceError::Failed { .. }
                | ServiceError::Create(_)
                | ServiceError::Store(_)
                | ServiceError::Disk(_)
                | ServiceError::Network(_)
                | ServiceError::Engine(_) => S::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// What the client reads. `None`: only the log says; the client gets a request id.
    pub(super) fn public(&self) -> Option<String> {
        match self {
            Self::Service(
                ServiceError::Store(_)
                | ServiceError::Disk(_)
                | ServiceError::Network(_)
                | ServiceError::Engine(_),
            ) => None,
            Self::Service(ServiceError::Wake(cause)) => {
                Some(format!("wake sandbox: {}", cause.public()))
            }
            Self::Service(ServiceError::Failed { doing, cause }) => {
                Some(format!("{doing}: {}", cause.public()))
            }
            Self::Service(ServiceError::Create(cause)) => {
                Some(format!("sandbox did not start: {}", cause.public()))
            }
            Self::Service(ServiceError::Guest(cause)) => Some(cause.to_string()),
            Self::Service(error @ ServiceError::BadImage { .. }) => Some(chain(error)),
            other => Some(other.to_string()),
        }
    }
}

/// Whichever way a guest was asked.
fn guests_status(error: &GuestError) -> StatusCode {
    use StatusCode as S;
    match error {
        GuestError::NotFound(_) => S::NOT_FOUND,
        GuestError::Invalid(_) | GuestError::NotExecutable(_) => S::BAD_REQUEST,
        GuestError::TooLarge(_) => S::PAYLOAD_TOO_LARGE,
        GuestError::Denied(_) => S::CONFLICT,
        GuestError::NoSpace(_) => S::INSUFFICIENT_STORAGE,
        GuestError::Unsupported(_) => S::NOT_IMPLEMENTED,
        GuestError::TooManyOperations => S::SERVICE_UNAVAILABLE,
        GuestError::LinkLost(_) | GuestError::Deadline { .. } | GuestError::Refused(_) => {
            S::BAD_GATEWAY
        }
        GuestError::Failed(_) | GuestError::Incompatible { .. } | GuestError::Protocol(_) => {
            S::INTERNAL_SERVER_ERROR
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::NotAnUpgrade = self {
            // The contract has plain text here.
            let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            return (self.status(), headers, format!("{self}\n")).into_response();
        }
        let status = self.status();
        let error = self.public().unwrap_or_else(|| "internal error".to_owned());
        let mut response = Written(status, ErrorBody { error, request_id: None }).into_response();
        // What this version does not do is nobody's fault, and a tenant's full disk is the tenant's,
        // as is a program that does not answer: nothing to look up in a log.
        let unlogged = [StatusCode::NOT_IMPLEMENTED, StatusCode::INSUFFICIENT_STORAGE];
        let quiet = matches!(self, Self::Busy | Self::Gateway(_));
        if status.is_server_error() && !unlogged.contains(&status) && !quiet {
            let guests_fault = match &self {
                Self::Service(ServiceError::Guest(_)) | Self::Files(_) => true,
                Self::Service(
                    ServiceError::Create(cause)
                    | ServiceError::Wake(cause)
                    | ServiceError::Failed { cause, .. },
                ) => cause.is_the_guests(),
                _ => false,
            };
            let internal = Internal { cause: chain(&self), guests_fault };
            response.extensions_mut().insert(internal);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bhatti_lifecycle::{Denied, WakeError};

    /// Every hint the CLI derives from a message must be reachable from a real error.
    #[test]
    fn hints_match_the_errors_we_send() {
        let hint = |error: ServiceError| {
            let text = ApiError::from(error).public().expect("public");
            bhatti_api::hint_for(&text).map(|hint| hint.text)
        };
        assert_eq!(hint(ServiceError::NoSandbox("x".into())), Some("Check sandbox name:"));
        let image = ServiceError::NoImage { name: "x".into(), available: vec!["minimal".into()] };
        assert_eq!(image.to_string(), "image \"x\" not found; there is: minimal");
        assert_eq!(hint(image), None, "the sentence has the next step in it");
        let quota = ServiceError::Quota { used: 5, max: 5 };
        assert_eq!(hint(quota), Some("Destroy unused sandboxes to free capacity:"));
        let exists =
            ServiceError::Exists { name: "x".into(), differences: vec!["its memory".into()] };
        let other_name = Some("Use a different name or destroy the existing one:");
        assert_eq!(hint(exists), other_name);
        assert_eq!(hint(ServiceError::NameTaken("x".into())), other_name);
        assert_eq!(hint(ServiceError::NotRunning("x".into())), Some("Resume it first:"));
        assert_eq!(hint(ServiceError::NoSnapshot("x".into())), Some("Check snapshot name:"));
        assert_eq!(
            hint(ServiceError::SnapshotExists("x".into())),
            Some("Use a different name or delete the existing one:")
        );
        let quota = ServiceError::SnapshotQuota { used: 5, max: 5 };
        assert_eq!(hint(quota), Some("Delete snapshots you no longer need:"));
    }

    /// The contract's words and numbers.
    #[test]
    fn snapshots_are_refused_in_the_contracts_words() {
        let shown = |error: ServiceError| {
            let error = ApiError::from(error);
            (error.status().as_u16(), error.public().expect("public"))
        };
        assert_eq!(
            shown(ServiceError::NoSnapshot("x".into())),
            (404, "snapshot \"x\" not found".to_owned())
        );
        assert_eq!(
            shown(ServiceError::SnapshotExists("x".into())),
            (409, "snapshot \"x\" already exists — delete first".to_owned())
        );
        assert_eq!(
            shown(ServiceError::SnapshotQuota { used: 5, max: 5 }),
            (429, "snapshot limit reached (5/5)".to_owned())
        );
        let (status, text) = shown(ServiceError::NotRunning("x".into()));
        assert!(status == 409 && text.contains("not running"), "{status} {text}");
    }

    #[test]
    fn each_way_a_guest_can_refuse_has_its_status_and_the_guests_words() {
        let text = || "failed to write /x: why".to_owned();
        for (error, status) in [
            (GuestError::NotFound(text()), 404),
            (GuestError::Invalid(text()), 400),
            (GuestError::Denied(text()), 409),
            (GuestError::TooLarge(text()), 413),
            (GuestError::NoSpace(text()), 507),
        ] {
            let error = ApiError::Files(error);
            assert_eq!(error.status().as_u16(), status);
            assert_eq!(error.public(), Some(text()));
            let response = error.into_response();
            assert!(response.extensions().get::<Internal>().is_none(), "nothing to look up");
        }
        let old = ApiError::Files(GuestError::Unsupported("agent 0.1.0".to_owned()));
        assert_eq!(old.status(), StatusCode::NOT_IMPLEMENTED);
        let shells = ServiceError::Guest(GuestError::Unsupported("agent 0.1.0".to_owned()));
        assert_eq!(ApiError::from(shells).status(), StatusCode::NOT_IMPLEMENTED);
        let busy = ServiceError::Guest(GuestError::TooManyOperations);
        assert_eq!(ApiError::from(busy).status(), StatusCode::SERVICE_UNAVAILABLE);
        let lost = ApiError::Files(GuestError::LinkLost(None)).into_response();
        assert_eq!(lost.status(), StatusCode::BAD_GATEWAY);
        let internal = lost.extensions().get::<Internal>().expect("the log says more");
        assert!(internal.guests_fault);
        assert_eq!(bhatti_api::hint_for("file not found"), None, "no list of files helps");
    }

    #[test]
    fn an_error_says_what_was_being_done() {
        let control = |message: &str| {
            let (command, message) = ("stop".to_owned(), message.to_owned());
            WakeError::Engine(bhatti_engine::EngineError::Control { command, message })
        };
        let stop = ServiceError::Failed { doing: "stop sandbox", cause: control("/secret") };
        let stop = ApiError::from(stop);
        let text = stop.public().expect("public");
        assert_eq!(text, "stop sandbox: the machine did not do as it was told");
        assert_eq!(stop.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(chain(&stop).contains("/secret"));
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let path = "/secret".into();
        let full = bhatti_engine::EngineError::File { action: "write", path, source };
        let full = ApiError::from(ServiceError::Full(WakeError::Engine(full)));
        assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(full.public().as_deref(), Some("no space left on the host's disk"));
    }

    #[test]
    fn what_is_not_here_is_no_failure_of_the_daemon() {
        let response = ApiError::Unsupported("volumes are not here".into()).into_response();
        assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED);
        assert!(response.extensions().get::<Internal>().is_none(), "it would be logged as ERROR");
        let response = ApiError::from(ServiceError::ShuttingDown).into_response();
        assert!(response.extensions().get::<Internal>().is_some());
    }

    #[test]
    fn internal_causes_stay_in_the_log() {
        let io = std::io::Error::other("secret path");
        let error = bhatti_engine::EngineError::Spawn { program: "qemu".into(), source: io };
        let create = ApiError::from(ServiceError::Create(WakeError::Engine(error)));
        let text = create.public().expect("public");
        assert!(text.contains("failed to start qemu") && !text.contains("secret"), "{text}");
        assert!(chain(&create).contains("secret path"));
        assert_eq!(
            ApiError::from(ServiceError::Denied(Denied::Unknown)).status(),
            StatusCode::CONFLICT
        );
    }
}
