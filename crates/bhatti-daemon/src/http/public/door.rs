//! What opens a published port that is not for anybody.
//!
//! ```text
//!  X-Bhatti-Token, Authorization: Bearer ─┐
//!  cookie ────────────────────────────────┼─▶ is one of them the token? ─▶ in, or 401
//!  ?bhatti_token= ────────────────────────┘        a browser by its link ─▶ cookie, the URL without it
//! ```
//!
//! Promises:
//! - Whatever is said to us is taken out of the request, right or wrong, so that no program sees it.
//! - Nothing is woken for who has no token.
//! - A link leads nowhere but to the place it was opened at.

use axum::extract::Request;
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::{TOKEN_HEADER, TOKEN_NAME};
use bhatti_store::PublishRow;

/// How long a browser that came by a link need not come by it again, in seconds.
const REMEMBERED: u32 = 30 * 24 * 3600;

/// The most that is looked at of one request; each costs a hash.
const MAX_OFFERED: usize = 8;

/// What the cookie's name begins with where there is TLS: browsers take one of that name for nothing
/// but this very host from nobody but itself, so that no program of a sibling can put another there.
const HOST_ONLY: &str = "__Host-";

/// What a token begins with.
const PREFIX: &str = "bhp_";

/// Who may ask.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    In,
    /// In, after the link has become a cookie; the token.
    ByLink(String),
    Refused {
        /// What was offered for a token is not the one.
        wrong: bool,
    },
}

/// Takes what is ours out of a request, and says whether it is answered.
pub(super) fn admit(request: &mut Request, rule: &PublishRow) -> Admission {
    let in_link = take_from_query(request);
    let asked_by_link = in_link.is_some();
    let offered = take_from_headers(request.headers_mut());
    if !rule.is_protected() {
        return Admission::In;
    }
    if let Some(token) = in_link.filter(|token| rule.opens(token)) {
        return if is_navigation(request) { Admission::ByLink(token) } else { Admission::In };
    }
    let opens = offered.iter().take(MAX_OFFERED).any(|token| rule.opens(token));
    let wrong = asked_by_link || !offered.is_empty();
    if opens { Admission::In } else { Admission::Refused { wrong } }
}

/// Sends a browser to the URL it asked for, now without the token, and has it remember that.
/// `below` is the part of the URL's path that stands for the alias.
pub(super) fn remember(request: &Request, token: &str, below: &str, secure: bool) -> Response {
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    // What begins with two slashes would be another host.
    let elsewhere = path.as_bytes().get(1).is_some_and(|second| matches!(second, b'/' | b'\\'));
    let to = format!("{}{path}", if elsewhere { "/." } else { "" });
    let (prefix, secure) = if secure { (HOST_ONLY, "; Secure") } else { ("", "") };
    let cookie = format!(
        "{prefix}{TOKEN_NAME}={token}; Path={below}; Max-Age={REMEMBERED}; HttpOnly; SameSite=Lax{secure}"
    );
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    for (name, value) in [(header::LOCATION, to), (header::SET_COOKIE, cookie)] {
        match HeaderValue::try_from(value) {
            Ok(value) => drop(headers.insert(name, value)),
            // A token that is right and a path that was in a request are fit to be in one.
            Err(_) => return StatusCode::BAD_REQUEST.into_response(),
        }
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// A person opens a page: what else asks by a link is answered at once.
fn is_navigation(request: &Request) -> bool {
    let accepts = request.headers().get_all(header::ACCEPT).iter();
    let html = accepts.filter_map(|value| value.to_str().ok()).any(|a| a.contains("text/html"));
    html && matches!(*request.method(), Method::GET | Method::HEAD)
        && !request.headers().contains_key(header::UPGRADE)
}

/// The first token of the query, which is left without any.
fn take_from_query(request: &mut Request) -> Option<String> {
    let query = request.uri().query()?;
    let ours = |pair: &&str| pair.split('=').next() == Some(TOKEN_NAME);
    let found = query.split('&').find(ours)?;
    let token = found.split_once('=').map_or("", |(_, token)| token).to_owned();
    let rest: Vec<&str> = query.split('&').filter(|pair| !ours(pair)).collect();
    let path = request.uri().path();
    let target = match rest.as_slice() {
        [] => path.to_owned(),
        rest => format!("{path}?{}", rest.join("&")),
    };
    let mut parts = request.uri().clone().into_parts();
    // What was part of a URI is fit to be in one.
    parts.path_and_query = PathAndQuery::try_from(target).ok();
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    Some(token)
}

/// Every token of the headers, which are left without any.
fn take_from_headers(headers: &mut HeaderMap) -> Vec<String> {
    let mut found = Vec::new();
    for value in headers.get_all(TOKEN_HEADER) {
        found.extend(value.to_str().ok().map(|token| token.trim().to_owned()));
    }
    headers.remove(TOKEN_HEADER);
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.split_once(' ')).filter(|(scheme, token)| {
        scheme.eq_ignore_ascii_case("bearer") && token.trim_start().starts_with(PREFIX)
    });
    if let Some((_, token)) = bearer {
        found.push(token.trim().to_owned());
        headers.remove(header::AUTHORIZATION);
    }
    take_cookies(headers, &mut found);
    found
}

/// Browsers send all cookies in one line, and a program's own may be any bytes.
fn take_cookies(headers: &mut HeaderMap, found: &mut Vec<String>) {
    let pairs = |value: &HeaderValue| -> Vec<Vec<u8>> {
        value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::to_vec).collect()
    };
    // Whether no other host can have put it there, and what it says.
    let ours = |pair: &[u8]| {
        let pair = pair.trim_ascii();
        let bare = pair.strip_prefix(HOST_ONLY.as_bytes());
        let (name, token) = bare.unwrap_or(pair).split_at_checked(TOKEN_NAME.len())?;
        let is_ours = name == TOKEN_NAME.as_bytes();
        let token = match token.first() {
            Some(b'=') if is_ours => String::from_utf8_lossy(&token[1..]).trim().to_owned(),
            None if is_ours => String::new(),
            _ => return None,
        };
        Some((bare.is_some(), token))
    };
    if !headers.get_all(header::COOKIE).iter().flat_map(pairs).any(|pair| ours(&pair).is_some()) {
        return;
    }
    let mut kept = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        let mut rest = Vec::new();
        for pair in pairs(value) {
            match ours(&pair) {
                // First, whatever others there are.
                Some((true, token)) => found.insert(0, token),
                Some((false, token)) => found.push(token),
                None => rest.push(pair),
            }
        }
        let rest = rest.join(&b';');
        // A part of a header's value is one.
        let rest = HeaderValue::from_bytes(rest.trim_ascii()).ok();
        kept.extend(rest.filter(|rest| !rest.is_empty()));
    }
    headers.remove(header::COOKIE);
    for value in kept {
        headers.append(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn request(path: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).expect("a request")
    }

    /// What is offered, and what is left of it.
    fn taken(path: &str, headers: &[(&str, &str)]) -> (Vec<String>, String, Vec<String>) {
        let mut request = request(path, headers);
        let mut offered: Vec<String> = take_from_query(&mut request).into_iter().collect();
        offered.extend(take_from_headers(request.headers_mut()));
        let left = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")));
        (offered, request.uri().to_string(), left.collect())
    }

    #[test]
    fn whatever_is_ours_is_taken_out_and_nothing_else() {
        for (path, headers, offered, left_path, left) in [
            ("/a?bhatti_token=t", &[][..], &["t"][..], "/a", &[][..]),
            ("/a?x=%26&bhatti_token=t&y&bhatti_token=u", &[], &["t"], "/a?x=%26&y", &[]),
            ("/a?my_bhatti_token=t", &[], &[], "/a?my_bhatti_token=t", &[]),
            ("/a?bhatti_token", &[], &[""], "/a", &[]),
            ("/", &[("x-bhatti-token", " t ")], &["t"], "/", &[]),
            ("/", &[("authorization", "bearer bhp_t")], &["bhp_t"], "/", &[]),
            (
                "/",
                &[("authorization", "Bearer theirs"), ("cookie", "token=theirs")],
                &[],
                "/",
                &["authorization: Bearer theirs", "cookie: token=theirs"],
            ),
            (
                "/",
                &[("cookie", "a=1; bhatti_token=t; b=2"), ("cookie", "bhatti_token=u")],
                &["t", "u"],
                "/",
                &["cookie: a=1; b=2"],
            ),
            (
                "/",
                // What a sibling below the same domain may have put there comes after.
                &[("cookie", "bhatti_token=x; bhatti_token=y; __Host-bhatti_token=t; a=1")],
                &["t", "x", "y"],
                "/",
                &["cookie: a=1"],
            ),
            ("/", &[("cookie", "__Host-a=1")], &[], "/", &["cookie: __Host-a=1"]),
        ] {
            let (found, uri, rest) = taken(path, headers);
            assert_eq!(found, offered, "{path} {headers:?}");
            assert_eq!(
                (uri.as_str(), rest),
                (left_path, left.iter().map(|l| (*l).to_owned()).collect())
            );
        }
    }

    #[test]
    fn a_token_is_found_beside_cookies_that_are_no_ascii() {
        let mut request = request("/", &[]);
        let cookies = "name=Zoë; bhatti_token=t;b=2".as_bytes();
        let cookies = HeaderValue::from_bytes(cookies).expect("browsers send it");
        request.headers_mut().insert(header::COOKIE, cookies);
        assert_eq!(take_from_headers(request.headers_mut()), ["t"]);
        assert_eq!(request.headers()[header::COOKIE].as_bytes(), "name=Zoë;b=2".as_bytes());
    }

    #[test]
    fn a_link_becomes_a_cookie_and_leads_nowhere_else() {
        for (path, wanted) in [
            ("/a/b?x=1&bhatti_token=t", "/a/b?x=1"),
            ("//evil.example/?bhatti_token=t", "/.//evil.example/"),
        ] {
            let mut request = request(path, &[("accept", "text/html,*/*")]);
            assert_eq!(take_from_query(&mut request).as_deref(), Some("t"));
            assert!(is_navigation(&request));
            let response = remember(&request, "t", "/", true);
            assert_eq!(response.status(), StatusCode::SEE_OTHER);
            assert_eq!(response.headers()[header::LOCATION], wanted);
            let cookie = response.headers()[header::SET_COOKIE].to_str().expect("text");
            assert!(cookie.starts_with("__Host-bhatti_token=t; Path=/; "), "{cookie}");
            assert!(cookie.ends_with("HttpOnly; SameSite=Lax; Secure"), "{cookie}");
            let response = remember(&request, "t", "/dev", false);
            let cookie = response.headers()[header::SET_COOKIE].to_str().expect("text");
            assert!(cookie.starts_with("bhatti_token=t; Path=/dev; "), "{cookie}");
            assert!(cookie.ends_with("HttpOnly; SameSite=Lax"), "{cookie}");
        }
        let upgrade = [("accept", "text/html"), ("upgrade", "websocket")];
        assert!(!is_navigation(&request("/", &upgrade)) && !is_navigation(&request("/", &[])));
    }
}
