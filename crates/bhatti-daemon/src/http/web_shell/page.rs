//! The page of the web shell and the files it is made of, all of them in this program.
//!
//! Promises: the page is the same whatever the id, so it does not tell which sandboxes there are;
//! nothing of it comes from elsewhere, and the browser is told to take nothing from elsewhere.

use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::http::ApiError;

/// A file that belongs to the page. Its name has a hash of its content in it.
struct Asset {
    name: &'static str,
    plain: &'static [u8],
    gzip: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/web.rs"));

/// What stands for the nonce in the page.
const NONCE: &str = "{{nonce}}";

/// `GET /_shell/:id`
pub(in crate::http) async fn page() -> Response {
    let mut random = [0; 16];
    getrandom::fill(&mut random).expect("the kernel gives random bytes");
    let nonce = BASE64_STANDARD.encode(random);
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy(&nonce)),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::X_FRAME_OPTIONS, "DENY".to_owned()),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (StatusCode::OK, headers, PAGE.replace(NONCE, &nonce)).into_response()
}

/// What the browser may load and do for the page. The terminal colours text by attributes, which
/// have no nonce; they can load nothing but pictures of ours.
fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src-elem 'nonce-{nonce}'; \
         style-src-attr 'unsafe-inline'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
}

/// `GET /_shell/assets/:name`
pub(in crate::http) async fn asset(
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asset = ASSETS.iter().find(|asset| asset.name == name).ok_or(ApiError::UnknownPath)?;
    let headers_of_all = [
        (header::CONTENT_TYPE, content_type(asset.name)),
        // Another content has another name.
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::VARY, "accept-encoding"),
    ];
    Ok(if takes_gzip(&headers) {
        let encoding = [(header::CONTENT_ENCODING, "gzip")];
        (headers_of_all, encoding, Bytes::from_static(asset.gzip)).into_response()
    } else {
        (headers_of_all, Bytes::from_static(asset.plain)).into_response()
    })
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|item| {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_only_files_that_are_here() {
        let named: Vec<&str> =
            PAGE.split("\"assets/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(named.len() >= 3, "{PAGE}");
        for name in named {
            assert!(ASSETS.iter().any(|asset| asset.name == name), "{name}");
        }
        for elsewhere in ["http:", "https:", "\"//", "src=\"/", "href=\"/"] {
            assert!(!PAGE.contains(elsewhere), "{elsewhere}");
        }
        // Each that would be refused without one.
        let needy = PAGE.matches("<script").count() + PAGE.matches("rel=\"stylesheet\"").count();
        assert_eq!(PAGE.matches(NONCE).count(), needy);
    }

    #[test]
    fn every_file_has_a_type_and_is_smaller_packed() {
        for asset in ASSETS {
            assert_ne!(content_type(asset.name), "application/octet-stream", "{}", asset.name);
            assert!(asset.gzip.len() < asset.plain.len(), "{}", asset.name);
            assert!(asset.gzip.starts_with(&[0x1f, 0x8b]), "{}", asset.name);
        }
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        let takes = |value: &'static str| {
            let headers = HeaderMap::from_iter([(
                header::ACCEPT_ENCODING,
                axum::http::HeaderValue::from_static(value),
            )]);
            takes_gzip(&headers)
        };
        for yes in ["gzip", "br, GZIP", "gzip;q=0.5, *", "deflate , gzip"] {
            assert!(takes(yes), "{yes}");
        }
        for no in ["", "br", "gzip;q=0", "gzip; q=0.0", "x-gzip"] {
            assert!(!takes(no), "{no}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
