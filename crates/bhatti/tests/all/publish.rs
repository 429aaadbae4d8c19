//! `bhatti publish` and `unpublish`, from flags to request to output.

use super::world::World;

fn published(url: &str) -> String {
    format!(
        r#"{{"alias":"web","created_at":"2026-04-01T10:00:00Z","id":"pub_0123456789abcdef",
            "port":8000,"sandbox_id":"0123456789abcdef","url":"{url}"}}"#
    )
}

#[test]
fn a_url_is_one_that_works_from_here() {
    let (here, open) = (published("http://web.localhost:8090/"), published("http://:8443/web/"));
    let shell = r#"{"token":"abc","url":"https:///_shell/0123456789abcdef#token=abc"}"#;
    let broken = r#"{"error":"failed to set shell token"}"#;
    let world = World::with(&[
        ("201 Created", "", &here),
        ("200 OK", "x-bhatti-existing: true\r\n", &open),
        ("201 Created", "", &here),
        ("200 OK", "", shell),
        ("201 Created", "", &here),
        ("500 Internal Server Error", "", broken),
    ]);
    let text = "Published: http://web.localhost:8090/\n";
    world.run(&["publish", "dev", "-p", "8000"]).check(0, text, "");
    let text = "Published: http://127.0.0.1:8443/web/\n";
    world.run(&["publish", "dev", "--port", "8000", "-a", "web"]).check(0, text, "");
    let ran = world.run(&["publish", "dev", "-p", "8000", "--shell", "--json"]);
    let shell = format!("{}/_shell/0123456789abcdef#token=abc", world.url());
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&json["url"], &json["shell_url"]),
        (&"http://web.localhost:8090/".into(), &shell.into())
    );
    let ran = world.run(&["publish", "dev", "-p", "8000", "--shell"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "Published: http://web.localhost:8090/\n")
    );
    let why = "Warning: failed to generate shell token: 500 Internal Server Error: failed to set shell token\n";
    assert_eq!(ran.stderr, why);
    let asked = world.requests();
    assert_eq!(asked[0], r#"POST /sandboxes/dev/publish {"port":8000}"#);
    assert_eq!(asked[1], r#"POST /sandboxes/dev/publish {"port":8000,"alias":"web"}"#);
    assert_eq!(asked[3], "POST /sandboxes/0123456789abcdef/shell-token");
}

#[test]
fn an_alias_that_was_not_taken_is_said() {
    let other = published("http://web.localhost:8090/");
    let world = World::with(&[("200 OK", "x-bhatti-existing: true\r\n", &other)]);
    let why = "Warning: port 8000 is published as web already, and stays it; for another alias, \
               bhatti unpublish dev -p 8000 first\n";
    let ran = world.run(&["publish", "dev", "-p", "8000", "-a", "shop"]);
    ran.check(0, "Published: http://web.localhost:8090/\n", why);
}

#[test]
fn a_server_without_a_public_side_is_told_apart() {
    let nowhere = published("(no public proxy configured) alias: web");
    let world = World::with(&[("201 Created", "", &nowhere), ("201 Created", "", &nowhere)]);
    let ran = world.run(&["publish", "dev", "-p", "8000"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""));
    let direct = format!("\n  {}/sandboxes/0123456789abcdef/proxy/8000/\n", world.url());
    assert!(ran.stderr.ends_with(&direct), "{}", ran.stderr);
    let ran = world.run(&["publish", "dev", "-p", "8000", "--json"]);
    assert!(ran.stdout.contains("no public proxy configured"), "{}", ran.stdout);
}

#[test]
fn unpublishing_says_so() {
    let world = World::with(&[
        ("204 No Content", "", ""),
        ("204 No Content", "", ""),
        ("404 Not Found", "", r#"{"error":"no publish rule for port 8000 on this sandbox"}"#),
    ]);
    world.run(&["unpublish", "dev", "-p", "8000"]).check(0, "Unpublished port 8000\n", "");
    let json = "{\n  \"status\": \"unpublished\"\n}\n";
    world.run(&["unpublish", "dev", "-p", "8000", "--json"]).check(0, json, "");
    let error = "Error: 404 Not Found: no publish rule for port 8000 on this sandbox\n";
    world.run(&["unpublish", "dev", "-p", "8000"]).check(1, "", error);
    assert_eq!(world.requests(), ["DELETE /sandboxes/dev/publish/8000"; 3]);
}

#[test]
fn a_port_has_to_be_said() {
    let world = World::new();
    let error = "Error: required flag(s) \"port\" not set\n";
    world.run(&["publish", "dev"]).check(1, "", error);
    world.run(&["unpublish", "dev"]).check(1, "", error);
    world.run(&["unpublish", "dev", "-p", "65536"]).check(1, "", "Error: port must be 1-65535\n");
    world.run(&["forward", "dev", "0"]).check(1, "", "Error: port must be 1-65535\n");
}

#[test]
fn a_token_is_shown_once_and_never_missing() {
    let open = published("http://web.localhost:8090/");
    let protected = open.replace(r#""port""#, r#""auth":true,"port""#);
    let new = protected.replace(
        r#""port""#,
        r#""token":"bhp_1","link":"http://web.localhost:8090/?bhatti_token=bhp_1","port""#,
    );
    let world = World::with(&[
        ("201 Created", "", &new),
        ("200 OK", "x-bhatti-existing: true\r\n", &protected),
        ("201 Created", "", &open),
    ]);
    let ran = world.run(&["publish", "dev", "-p", "8000", "--auth"]);
    let link = "Link:      http://web.localhost:8090/?bhatti_token=bhp_1\nToken:     bhp_1\n";
    assert!(ran.code == Some(0) && ran.stdout.contains(link), "{}", ran.stdout);
    let ran = world.run(&["publish", "dev", "-p", "8000"]);
    assert!(ran.stdout.contains("It asks for a token"), "{}", ran.stdout);
    let ran = world.run(&["publish", "dev", "-p", "8000", "--auth"]);
    assert!(ran.code == Some(1) && ran.stdout.is_empty(), "{}", ran.stdout);
    assert!(ran.stderr.contains("this server cannot ask for a token"), "{}", ran.stderr);
    assert_eq!(world.requests()[0], r#"POST /sandboxes/dev/publish {"port":8000,"auth":true}"#);
}
