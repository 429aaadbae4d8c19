//! The web shell through the whole router, up to the point where a machine would be needed.

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request};
use bhatti_api::ShellToken;
use bhatti_types::SandboxId;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{World, world};
use crate::http::connection::Peer;

/// Asks without a key, as a browser does; the status, the headers and the body.
async fn visit(
    world: &World,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let peer = Peer("192.0.2.7".parse().expect("an address"));
    let request = request.extension(peer).body(Body::empty()).expect("a request");
    let Ok(response) = world.router.clone().oneshot(request).await;
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&body).into_owned())
}

/// The page without what is new each time.
fn timeless(page: &str, headers: &HeaderMap) -> String {
    let policy = headers["content-security-policy"].to_str().expect("text");
    let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next());
    let nonce = nonce.expect("a nonce");
    assert_eq!(nonce.len(), 24, "16 bytes in base64: {nonce}");
    assert!(page.contains(nonce) && !page.contains("{{"));
    page.replace(nonce, "")
}

#[tokio::test]
async fn the_page_is_the_same_for_everybody_and_safe() {
    let world = world().await;
    let mut pages = Vec::new();
    for id in [world.sandbox.as_str(), SandboxId::random().as_str(), "dev", "%00", "%ff"] {
        let (status, headers, page) =
            visit(&world, Method::GET, &format!("/_shell/{id}"), &[]).await;
        assert_eq!(status, 200, "{id}");
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("cache-control", "no-store"),
            ("x-bhatti-version", crate::VERSION),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        let policy = headers["content-security-policy"].to_str().expect("text");
        for directive in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.split("; ").any(|found| found == directive), "{directive}: {policy}");
        }
        assert!(!policy.contains("http") && !policy.contains("script-src 'unsafe"), "{policy}");
        assert!(!headers.contains_key("set-cookie"));
        pages.push((timeless(&page, &headers), page));
    }
    assert!(pages.iter().all(|page| page.0 == pages[0].0), "the same whatever the id");
    assert_ne!(pages[0].1, pages[1].1, "with another nonce each time");
}

#[tokio::test]
async fn the_files_of_the_page_may_be_kept_for_ever() {
    let world = world().await;
    let (_, _, page) = visit(&world, Method::GET, "/_shell/x", &[]).await;
    let names: Vec<&str> =
        page.split("\"assets/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    for name in names {
        let path = format!("/_shell/assets/{name}");
        let (status, headers, plain) = visit(&world, Method::GET, &path, &[]).await;
        assert_eq!(status, 200, "{path}");
        assert!(headers["cache-control"].to_str().expect("text").contains("immutable"));
        assert!(!headers.contains_key("content-encoding"));
        let gzip = [("accept-encoding", "gzip, br")];
        let (_, headers, packed) = visit(&world, Method::GET, &path, &gzip).await;
        assert_eq!(headers["content-encoding"], "gzip");
        assert_ne!(packed, plain);
    }
    let missing = visit(&world, Method::GET, "/_shell/assets/shell.js", &[]).await;
    assert_eq!((missing.0, missing.2.as_str()), (404, "{\"error\":\"not found\"}\n"));
}

#[tokio::test]
async fn nothing_else_is_there() {
    let world = world().await;
    for path in
        ["/_shell", "/_shell/", "/_shell/x/", "/_shell/x/y", "/_shell/x/ws/", "/_shell/x/ws/y"]
    {
        let (status, _, body) = visit(&world, Method::GET, path, &[]).await;
        assert_eq!((status, body.as_str()), (404, "{\"error\":\"not found\"}\n"), "{path}");
    }
    for path in ["/_shell/x", "/_shell/x/ws"] {
        let (status, _, body) = visit(&world, Method::POST, path, &[]).await;
        assert_eq!((status, body.as_str()), (405, "{\"error\":\"method not allowed\"}\n"));
    }
    let (status, headers, _) = visit(&world, Method::GET, "//_shell//x?y", &[]).await;
    assert_eq!((status, headers["location"].to_str().expect("text")), (301, "/_shell/x?y"));
    for path in ["/_shellx", "/%5Fshell/x", "/_shell/../sandboxes", "/sandboxes/_shell"] {
        let (status, _, _) = visit(&world, Method::GET, path, &[]).await;
        assert_eq!(status, 401, "{path}");
    }
}

#[tokio::test]
async fn knocking_is_limited_before_anything_else() {
    let world = world().await;
    let id = SandboxId::random();
    for path in [format!("/_shell/{}/ws", world.sandbox), format!("/_shell/{id}/ws")] {
        let (status, _, body) = visit(&world, Method::GET, &path, &[]).await;
        assert_eq!((status, body.as_str()), (400, "Bad Request\n"), "no upgrade");
    }
    let mut last = (0, HeaderMap::new(), String::new());
    for _ in 0..20 {
        last = visit(&world, Method::GET, "/_shell/x/ws", &[]).await;
    }
    assert_eq!((last.0, last.2.as_str()), (429, "{\"error\":\"too many requests\"}\n"));
    assert_eq!(visit(&world, Method::GET, "/_shell/x", &[]).await.0, 200, "the page is not");
}

#[tokio::test]
async fn tokens_are_made_and_taken_back() {
    let world = world().await;
    let share = "/sandboxes/dev/shell-token";
    let mut tokens = Vec::new();
    for key in ["dev", world.sandbox.as_str()] {
        let path = format!("/sandboxes/{key}/shell-token");
        let (status, body) = world.ask(Method::POST, &path, "").await;
        let shared: ShellToken = serde_json::from_value(body).expect("a token");
        assert_eq!(status, 200);
        assert!(shared.token.len() == 64 && shared.token.bytes().all(|b| b.is_ascii_hexdigit()));
        let page = format!("https:///_shell/{}#token={}", world.sandbox, shared.token);
        assert_eq!(shared.url, page);
        tokens.push(shared.token);
    }
    assert_ne!(tokens[0], tokens[1]);
    for _ in 0..2 {
        let gone = (204, Value::String(String::new()));
        assert_eq!(world.ask(Method::DELETE, share, "").await, gone, "also what is not there");
    }
    let nobody = "sandbox \"x\" not found";
    let missing = "/sandboxes/x/shell-token";
    world.refused(Method::POST, missing, "", 404, nobody).await;
    world.refused(Method::DELETE, missing, "", 404, nobody).await;
    world.refused(Method::GET, share, "", 405, "method not allowed").await;
    let (status, _, body) = visit(&world, Method::POST, share, &[]).await;
    let wanted = json!({ "error": "authorization required" });
    assert_eq!((status, serde_json::from_str(&body).ok()), (401, Some(wanted)));
}
