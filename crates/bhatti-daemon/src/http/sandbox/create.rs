//! `POST /sandboxes`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use bhatti_api::{CreateSandbox, FileSpec, route};
use bhatti_lifecycle::{CreateSpec, Created, FileContent, ServiceError};
use bhatti_types::{Cpus, Mib, Name};

use super::{net_policy, view};
use crate::http::body::{Read, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Answers when the guest's agent does. Running it again with the same or less finds the same
/// sandbox; with something different it is a conflict.
pub(in crate::http) async fn create(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Read(body): Read<CreateSandbox, { route::MAX_CREATE }>,
) -> Result<Response, ApiError> {
    let spec = parse(body, caller.max_memory)?;
    Ok(match api.sandboxes.create(&caller, spec).await? {
        Created::New(row) => Written(StatusCode::CREATED, view(row)).into_response(),
        Created::Existing(row) => {
            ([(route::EXISTING_HEADER, "true")], Written(StatusCode::OK, view(row))).into_response()
        }
    })
}

/// Text becomes types here, with the contract's words for what is wrong.
fn parse(body: CreateSandbox, max_memory: Mib) -> Result<CreateSpec, ApiError> {
    let bad = |text: String| ApiError::BadRequest(text);
    refuse_what_is_not_here(&body)?;
    let cpus = match body.cpus {
        None | Some(0.0) => None,
        Some(value) => Some(Cpus::try_from(value).map_err(|error| bad(error.to_string()))?),
    };
    Ok(CreateSpec {
        name: if body.name.is_empty() { None } else { Some(sandbox_name(&body.name)?) },
        image: Some(body.image).filter(|image| !image.is_empty()),
        cpus,
        memory: memory(body.memory_mb, max_memory)?,
        disk_size: size("disk_size_mb", body.disk_size_mb)?,
        keep_hot: body.keep_hot,
        hugepages: body.hugepages,
        env: body.env,
        init: body.init,
        files: body.files.into_iter().map(file).collect::<Result<_, _>>()?,
        labels: body.labels,
        net_policy: net_policy(body.net_policy)?,
    })
}

/// Silence would be worse than a refusal: the client believes it got what it asked for.
fn refuse_what_is_not_here(body: &CreateSandbox) -> Result<(), ApiError> {
    if !body.template_id.is_empty() {
        return Err(ApiError::NotFound("template not found".to_owned()));
    }
    if let Some(secret) = body.secrets.first() {
        return Err(ApiError::BadRequest(format!("secret {secret:?} not found")));
    }
    let asked = [
        (!body.persistent_volumes.is_empty(), "volumes"),
        (!body.new_volumes.is_empty(), "volumes"),
    ];
    match asked.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => {
            Err(ApiError::Unsupported(format!("{what} are not supported by this version")))
        }
        None => Ok(()),
    }
}

/// The name rule with the contract's sentence.
pub(in crate::http) fn sandbox_name(text: &str) -> Result<Name, ApiError> {
    text.parse().map_err(|rule| ApiError::BadRequest(format!("invalid sandbox name: {rule}")))
}

/// What is no size at all is refused in the words for one that is too small or too large.
fn memory(value: Option<i64>, most: Mib) -> Result<Option<Mib>, ApiError> {
    match value {
        Some(value) if value < 0 => Err(ServiceError::little_memory(value).into()),
        Some(value) if value > i64::from(most.0) => {
            Err(ServiceError::much_memory(value, most).into())
        }
        value => size("memory_mb", value),
    }
}

/// 0 and absent mean the default.
fn size(field: &str, value: Option<i64>) -> Result<Option<Mib>, ApiError> {
    match value {
        None | Some(0) => Ok(None),
        Some(value) => match u32::try_from(value) {
            // More than 16 TiB is a typo, and would overflow byte counts further down.
            Ok(value) if value <= 16 << 20 => Ok(Some(Mib(value))),
            _ => Err(ApiError::BadRequest(format!("{field} must be from 1 to {}", 16 << 20))),
        },
    }
}

fn file(spec: FileSpec) -> Result<FileContent, ApiError> {
    let bad = |text: String| Err(ApiError::BadRequest(text));
    let path = spec.guest_path;
    if path.is_empty() {
        return bad("file guest_path required".to_owned());
    }
    let absolute = path.starts_with('/') && !path.ends_with('/');
    if !absolute || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return bad(format!("file {path:?}: must be an absolute path of a file, without '..'"));
    }
    let Ok(content) = base64::engine::general_purpose::STANDARD.decode(&spec.content) else {
        return bad(format!("file {path:?}: invalid base64 content"));
    };
    let mode = match spec.mode.as_str() {
        "" => 0o644,
        text => match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o7777 => mode,
            _ => return bad(format!("file {path:?}: invalid mode {text:?}")),
        },
    };
    Ok(FileContent { path, mode, content: content.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: CreateSandbox) -> String {
        parse(body, Mib(4096)).expect_err("refused").to_string()
    }

    #[test]
    fn bad_requests_get_one_clear_sentence() {
        let rule = "invalid sandbox name: must match [a-zA-Z0-9][a-zA-Z0-9._-]{0,62}";
        assert_eq!(refused(CreateSandbox { name: "-x".into(), ..Default::default() }), rule);
        let negative = CreateSandbox { cpus: Some(-1.0), ..Default::default() };
        assert_eq!(refused(negative), "cpus must be a number from 0.1 to 256, got -1");
        let memory = CreateSandbox { memory_mb: Some(-5), ..Default::default() };
        assert_eq!(refused(memory), "min 128 MB memory per sandbox, asked for -5");
        let memory = CreateSandbox { memory_mb: Some(i64::MAX), ..Default::default() };
        assert_eq!(
            refused(memory),
            format!("max 4096 MB memory per sandbox, asked for {}", i64::MAX)
        );
        let disk = CreateSandbox { disk_size_mb: Some(-5), ..Default::default() };
        assert!(refused(disk).starts_with("disk_size_mb must be from 1 to"));
        let files = |guest_path: &str, content: &str, mode: &str| CreateSandbox {
            files: vec![FileSpec {
                guest_path: guest_path.into(),
                content: content.into(),
                mode: mode.into(),
            }],
            ..Default::default()
        };
        assert_eq!(refused(files("", "", "")), "file guest_path required");
        assert_eq!(refused(files("/a", "%", "")), "file \"/a\": invalid base64 content");
        for path in ["a", "/a/../b", "/a/", "/a\0"] {
            assert!(refused(files(path, "", "")).contains("absolute path"), "{path}");
        }
        assert_eq!(refused(files("/a", "", "9")), "file \"/a\": invalid mode \"9\"");
        let policy = bhatti_api::NetPolicy { default: "none".into(), ..Default::default() };
        let policy = CreateSandbox { net_policy: Some(policy), ..Default::default() };
        let sentence = "invalid net_policy: default must be \"public\" or \"deny\", not \"none\"";
        assert_eq!(refused(policy), sentence);
        let volume = serde_json::json!({"name": "v"});
        let volumes = CreateSandbox { new_volumes: vec![volume], ..Default::default() };
        assert_eq!(refused(volumes), "volumes are not supported by this version");
    }

    #[test]
    fn zero_means_the_default() {
        let zeros = CreateSandbox {
            cpus: Some(0.0),
            memory_mb: Some(0),
            disk_size_mb: Some(0),
            ..Default::default()
        };
        assert_eq!(parse(zeros, Mib(4096)).expect("parses"), CreateSpec::default());
    }
}
