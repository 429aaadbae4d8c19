//! `GET /sandboxes`, with `label=<k>=<v>` filters

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use bhatti_api::Sandbox;
use bhatti_lifecycle::ServiceError;
use bhatti_store::SandboxRow;
use bhatti_types::SandboxId;

use super::view;
use crate::http::body::Written;
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Newest first; wakes nothing.
pub(in crate::http) async fn list(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Written<Vec<Sandbox>>, ApiError> {
    let wanted = filters(&query)?;
    let rows = api.sandboxes.list(&caller).await?;
    let rules = api.db.call(move |store| store.publish_rules_of(&caller.id));
    let mut urls: BTreeMap<SandboxId, Vec<String>> = BTreeMap::new();
    for rule in rules.await.map_err(ServiceError::from)? {
        if let Some(site) = &api.public.site {
            urls.entry(rule.sandbox).or_default().push(site.url(&rule.alias));
        }
    }
    let mut listed = |row: SandboxRow| {
        let urls = urls.remove(&row.id).unwrap_or_default();
        Sandbox { urls, ..listed(row) }
    };
    let listed = rows.into_iter().filter(|row| matches(row, &wanted)).map(&mut listed).collect();
    Ok(Written(StatusCode::OK, listed))
}

fn listed(row: SandboxRow) -> Sandbox {
    let thermal = row.phase.wire().and_then(|(_, thermal)| thermal);
    // How it came to that is for who asks about one.
    Sandbox { thermal, last_transition: None, ..view(row) }
}

/// Repeating a key keeps the last value.
fn filters(query: &[(String, String)]) -> Result<BTreeMap<&str, &str>, ApiError> {
    let mut wanted = BTreeMap::new();
    for (_, raw) in query.iter().filter(|(name, _)| name == "label") {
        let bad =
            |what: &str| Err(ApiError::BadRequest(format!("invalid label filter {raw:?}: {what}")));
        match raw.split_once('=') {
            None => return bad("must be key=value"),
            Some(("", _)) => return bad("empty key"),
            Some((key, _)) if key.starts_with("bhatti.sh/") => {
                let text = format!("label key {key:?} uses reserved prefix \"bhatti.sh/\"");
                return Err(ApiError::BadRequest(text));
            }
            Some((key, value)) => wanted.insert(key, value),
        };
    }
    Ok(wanted)
}

/// An empty value also matches a sandbox that does not have the key.
fn matches(row: &SandboxRow, wanted: &BTreeMap<&str, &str>) -> bool {
    wanted.iter().all(|(key, value)| row.labels.get(*key).map_or("", String::as_str) == *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_has_the_second_word_for_what_runs() {
        let shown = |phase| {
            let row = crate::http::sandbox::tests::row(phase, "because");
            bhatti_api::to_json(&listed(row))
        };
        use bhatti_types::Phase;
        assert!(shown(Phase::Warm).contains(r#""status":"running""#));
        assert!(shown(Phase::Warm).contains(r#""thermal":"warm""#));
        for phase in [Phase::Cold, Phase::Stopped, Phase::Unknown] {
            assert!(!shown(phase).contains("thermal"), "{phase}");
        }
        assert!(!shown(Phase::Hot).contains("last_transition"));
    }

    #[test]
    fn filters_are_checked() {
        let query = |raw: &str| vec![("label".to_owned(), raw.to_owned())];
        let text = |raw: &str| filters(&query(raw)).map_err(|e| e.to_string()).map(|f| f.len());
        assert_eq!(text("a=b=c"), Ok(1));
        assert_eq!(text("a"), Err("invalid label filter \"a\": must be key=value".to_owned()));
        assert_eq!(text("=b"), Err("invalid label filter \"=b\": empty key".to_owned()));
        assert!(text("bhatti.sh/x=1").is_err());
        let twice =
            vec![("label".to_owned(), "a=1".to_owned()), ("label".to_owned(), "a=2".to_owned())];
        assert_eq!(filters(&twice).map(|f| f["a"].to_owned()).ok(), Some("2".to_owned()));
    }
}
