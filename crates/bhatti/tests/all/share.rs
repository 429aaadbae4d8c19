//! `bhatti share`, from flags to request to output.

use super::world::World;

const PAGE: &str = "/_shell/0123456789abcdef#token=abc";

#[test]
fn a_link_works_from_where_it_was_asked_for() {
    let with_url = |url: &str| format!(r#"{{"token":"abc","url":"{url}"}}"#);
    let here = with_url(&format!("https://{PAGE}"));
    let named = with_url(&format!("https://api.example.org{PAGE}"));
    let world = World::with(&[
        ("200 OK", "", &here),
        ("200 OK", "", &here),
        ("200 OK", "", &named),
        ("200 OK", "", &with_url("")),
        (
            "200 OK",
            "",
            r#"{"id":"0123456789abcdef","name":"dev","status":"running","ip":"10.0.1.2",
                "created_at":"2026-04-01T10:00:00Z"}"#,
        ),
    ]);
    let url = format!("{}{PAGE}", world.url());
    world.run(&["share", "dev"]).check(0, &format!("Shell: {url}\n"), "");
    let json = format!("{{\n  \"token\": \"abc\",\n  \"url\": \"{url}\"\n}}\n");
    world.run(&["share", "dev", "--json"]).check(0, &json, "");
    let public = format!("Shell: https://api.example.org{PAGE}\n");
    world.run(&["share", "dev"]).check(0, &public, "");
    world.run(&["share", "dev"]).check(0, &format!("Shell: {url}\n"), "");
    let asked = "POST /sandboxes/dev/shell-token";
    assert_eq!(world.requests(), [asked, asked, asked, asked, "GET /sandboxes/dev"]);
}

#[test]
fn a_link_is_revoked() {
    let gone = r#"{"error":"sandbox \"dev\" not found"}"#;
    let world = World::with(&[
        ("204 No Content", "", ""),
        ("204 No Content", "", ""),
        ("404 Not Found", "", gone),
    ]);
    world.run(&["share", "dev", "--revoke"]).check(0, "Shell access revoked.\n", "");
    let json = "{\n  \"status\": \"revoked\"\n}\n";
    world.run(&["share", "dev", "--revoke", "--json"]).check(0, json, "");
    let ran = world.run(&["share", "dev", "--revoke"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("not found") && ran.stderr.contains("bhatti ls"), "{}", ran.stderr);
    let asked = "DELETE /sandboxes/dev/shell-token";
    assert_eq!(world.requests(), [asked; 3]);
}
