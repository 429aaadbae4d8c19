//! `bhatti setup`, without a terminal.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::world::{World, read};

#[test]
fn both_flags_ask_nothing() {
    let world = World::with(&[("200 OK", "", "[]"), ("200 OK", "", "[]")]);
    let file = world.path(".bhatti/config.yaml");
    let url = format!("{}/", world.url());
    let ran = world.run(&["setup", "--url", &url, "--token", "bht_k"]);
    let text = format!(
        "Saved to {}\nTesting connection... ✓ authenticated (0 sandboxes)\n",
        file.display()
    );
    ran.check(0, &text, "");
    assert_eq!(read(&file), format!("api_url: {}\nauth_token: bht_k\n", world.url()));
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    let ran = super::world::ran(world.command(&["ls"]).env("BHATTI_URL", "http://127.0.0.1:1"));
    assert_eq!(ran.code, Some(0), "the file is used: {ran:?}");
}

#[test]
fn a_refused_key_is_an_error_but_stays_saved() {
    let refused = ("401 Unauthorized", "", "{\"error\":\"invalid api key\"}");
    let world = World::with(&[refused]);
    let ran = world.run(&["setup", "--url", world.url(), "--token", "bht_k"]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.stderr, "Error: authentication failed: 401 Unauthorized: invalid api key\n");
    assert!(world.path(".bhatti/config.yaml").exists());
}

#[test]
fn what_is_missing_is_asked_for() {
    let world = World::with(&[("200 OK", "", "[]")]);
    let mut command = world.command(&["setup"]);
    command.env("SHELL", "/bin/bash");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let host = world.url().strip_prefix("http://").unwrap();
    child.stdin.take().unwrap().write_all(format!("{host}\nbht_typed\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, format!("API endpoint [{}]: API key: ", world.url()));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.ends_with("bhatti completion bash)' >> ~/.bashrc\n"), "{stdout}");
    let saved = read(&world.path(".bhatti/config.yaml"));
    assert_eq!(saved, format!("api_url: {}\nauth_token: bht_typed\n", world.url()));
}

#[test]
fn nothing_is_saved_without_a_key_or_with_a_wrong_address() {
    let world = World::new();
    world.run(&["setup", "--url", "http://x", "--token", ""]).check(
        1,
        "",
        "Error: API key is required (pass --token or enter at the prompt)\n",
    );
    assert_eq!(world.run(&["setup", "--url", "ftp://x", "--token", "k"]).code, Some(1));
    assert!(!world.path(".bhatti").exists());
}
