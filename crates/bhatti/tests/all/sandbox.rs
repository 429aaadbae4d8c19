//! Commands about sandboxes, from flags to request to output.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::world::{Ending, World, read};

const DEV: &str = r#"{"id":"0123456789abcdef","name":"dev","status":"stopped","ip":"10.0.1.2",
    "created_at":"2026-04-01T10:00:00Z","cpus":2,"memory_mb":2048,"image":"minimal"}"#;

#[test]
fn create_sends_and_shows() {
    let world = World::with(&[
        ("201 Created", "", DEV),
        ("200 OK", "x-bhatti-existing: true\r\n", DEV),
        ("201 Created", "", DEV),
    ]);
    world.run(&["create", "--name", "dev", "--cpus", "2"]).check(
        0,
        "sandbox/dev created (2 vCPU, 2048 MB)\n  IP:    10.0.1.2\n  Shell: bhatti shell dev\n",
        "",
    );
    world.run(&["create"]).check(0, "sandbox/dev unchanged (already exists)\n", "");
    let json = world.run(&["create", "--json"]).stdout;
    assert!(json.starts_with("{\n  \"id\": \"0123456789abcdef\",\n  \"name\": \"dev\","), "{json}");
    assert_eq!(
        world.requests(),
        [
            "POST /sandboxes {\"name\":\"dev\",\"cpus\":2.0}",
            "POST /sandboxes {\"name\":\"\"}",
            "POST /sandboxes {\"name\":\"\"}"
        ]
    );
    assert_eq!(world.cached(), "dev");
}

#[test]
fn list_filters_shows_and_remembers() {
    let two = format!("[{DEV},{}]", DEV.replace("dev", "api"));
    let world = World::with(&[
        ("200 OK", "", &two),
        ("200 OK", "", &format!("[{DEV}]")),
        ("200 OK", "", "[]"),
        ("200 OK", "", "[]"),
        ("200 OK", "", "[]"),
    ]);
    let ran = world.run(&["ls", "-o", "wide"]);
    assert_eq!(ran.stdout.lines().count(), 3, "{ran:?}");
    assert!(ran.stdout.contains(" 2      2048 "), "{ran:?}");
    let ran = world.run(&["list", "--label", "a=b,c=", "--json"]);
    assert!(ran.stdout.starts_with("[\n  {\n    \"id\": "), "{ran:?}");
    assert_eq!(world.requests()[1], "GET /sandboxes?label=a%3Db&label=c%3D");
    assert_eq!(world.cached(), "dev\napi", "a filter forgets nothing");
    let header = "NAME                 STATUS     THERMAL  IP              \n";
    world.run(&["list"]).check(0, header, "");
    assert_eq!(world.cached(), "");
    let why = "Warning: -o \"json\" is ignored: it takes wide; for JSON use --json\n";
    world.run(&["list", "-o", "json"]).check(0, header, why);
    world.run(&["list", "-o", "json", "--json"]).check(0, "[]\n", "");
}

#[test]
fn edit_and_destroy_keep_completion_right() {
    let renamed = DEV.replace("\"dev\"", "\"new\"");
    let world = World::with(&[
        ("201 Created", "", DEV),
        ("200 OK", "", &renamed),
        ("200 OK", "", "{\"status\":\"destroyed\"}"),
    ]);
    world.run(&["create"]);
    let ran = world.run(&["edit", "dev", "--name", "new", "--label-delete", "a,b"]);
    assert!(ran.stdout.starts_with("Updated dev\n  name:     new\n"), "{ran:?}");
    assert_eq!(world.cached(), "new");
    world.run(&["rm", "-y", "--json", "new"]).check(0, "{\n  \"status\": \"destroyed\"\n}\n", "");
    assert_eq!(world.cached(), "");
    assert_eq!(
        world.requests()[1..],
        [
            "PATCH /sandboxes/dev {\"name\":\"new\",\"labels_remove\":[\"a\",\"b\"]}",
            "DELETE /sandboxes/new"
        ]
    );
}

#[test]
fn inspect_asks_a_running_guest_for_its_disk() {
    let running = DEV.replace("stopped", "running");
    let df = r#"{"exit_code":0,"stdout":"x\n/dev/vda 984 310 657 33% /\n","stderr":""}"#;
    let rules = r#"[{"id":"pub_0123456789abcdef","sandbox_id":"0123456789abcdef",
        "user_id":"usr_1a2b3c4d","port":80,"alias":"web","url":"http://web.localhost:8090/",
        "created_at":"2026-04-01T10:00:00Z"}]"#;
    let world = World::with(&[
        ("200 OK", "", &running),
        ("200 OK", "", df),
        ("200 OK", "", rules),
        ("200 OK", "", DEV),
        ("404 Not Found", "", r#"{"error":"not found"}"#),
    ]);
    let ran = world.run(&["inspect", "dev"]);
    assert!(ran.stdout.contains("  Disk:     984 MB (310 MB used, 657 MB free)\n"), "{ran:?}");
    assert!(ran.stdout.contains("  Published: port 80 at http://web.localhost:8090/\n"), "{ran:?}");
    let ran = world.run(&["info", "dev"]);
    assert!(ran.stdout.contains("  Disk:     — (stopped)\n"), "{ran:?}");
    assert!(!ran.stdout.contains("Published"), "what cannot be had is left out: {ran:?}");
    assert_eq!(world.requests().len(), 5, "a stopped guest is not woken");
    let world = World::with(&[("200 OK", "", &running)]);
    assert_eq!(world.run(&["inspect", "--json", "dev"]).code, Some(0));
    assert_eq!(world.requests(), ["GET /sandboxes/dev"], "nor a warm one, for a program");
}

#[test]
fn stop_and_start_say_what_they_did() {
    let world = World::with(&[
        ("200 OK", "", DEV),
        ("200 OK", "", DEV),
        ("200 OK", "", DEV),
        ("404 Not Found", "", "{\"error\":\"not found\"}"),
    ]);
    world.run(&["stop", "dev"]).check(0, "sandbox/dev stopped\n", "");
    world.run(&["start", "dev", "--force"]).check(0, "sandbox/dev started\n", "");
    let json = world.run(&["start", "--json", "dev"]).stdout;
    assert!(json.starts_with("{\n  \"id\": \"0123456789abcdef\","), "{json}");
    let text =
        "Error: 404 Not Found: sandbox \"x\" not found\n\n  Check sandbox name:\n    bhatti ls\n";
    world.run(&["stop", "x"]).check(1, "", text);
    assert_eq!(
        world.requests(),
        [
            "POST /sandboxes/dev/stop",
            "POST /sandboxes/dev/start {\"force\":true}",
            "POST /sandboxes/dev/start",
            "POST /sandboxes/x/stop",
        ]
    );
}

#[test]
fn a_start_says_what_was_lost() {
    let started = |reason: &str| {
        let at = "2026-04-01T10:00:00Z";
        let more = format!(
            r#""status":"running","last_transition":{{"to":"hot","reason":"{reason}","at":"{at}"}}"#
        );
        DEV.replace(r#""status":"stopped""#, &more)
    };
    let loss = "booted from its disk: memory and running processes are lost, files are kept";
    let world = World::with(&[("200 OK", "", &started("woken")), ("200 OK", "", &started(loss))]);
    world.run(&["start", "dev"]).check(0, "sandbox/dev started\n", "");
    let warning = format!("Warning: {loss}\n");
    world.run(&["start", "dev"]).check(0, "sandbox/dev started\n", &warning);
}

#[test]
fn timing_comes_last() {
    let world = World::with(&[("200 OK", "", "[]")]);
    let stderr = world.run(&["ls", "--timing"]).stderr;
    let labels: Vec<&str> = stderr.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(labels, ["---", "connect:", "server:", "transfer:", "total:"], "{stderr}");
}

#[test]
fn flags_beat_files_and_files_beat_the_environment() {
    let world = World::with(&[("200 OK", "", "[]"), ("200 OK", "", "[]")]);
    let dir = world.path(".bhatti");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("config.yaml"), format!("api_url: {}\n", world.url())).unwrap();
    let nowhere = "http://127.0.0.1:1";
    let mut command = world.command(&["ls"]);
    assert_eq!(super::world::ran(command.env("BHATTI_URL", nowhere)).code, Some(0));
    assert_eq!(world.run(&["ls", "--url", nowhere]).code, Some(1));
    assert!(read(&dir.join("config.yaml")).contains(world.url()));
}

#[test]
fn a_reader_that_left_is_no_error() {
    let many = vec![DEV; 2000].join(",");
    let world = World::with(&[("200 OK", "", &format!("[{many}]"))]);
    let mut command = world.command(&["ls"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn a_full_disk_is_an_error() {
    let world = World::with(&[("200 OK", "", "[]")]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = super::world::ran(world.command(&["ls"]).stdout(full));
    ran.check(1, "", "Error: write output: No space left on device (os error 28)\n");
}

/// The API takes the request and never answers.
#[test]
fn ctrl_c_says_what_goes_on() {
    for (args, shows, undoes) in [
        (&["create", "--name", "dev"][..], "bhatti inspect dev", "bhatti destroy dev"),
        (&["create"], "bhatti ls", "bhatti destroy <sandbox>"),
        (&["snapshot", "resume", "s", "--name", "b"], "bhatti inspect b", "bhatti destroy b"),
        (
            &["snapshot", "create", "dev", "--name", "s"],
            "bhatti snapshot list",
            "bhatti snapshot delete s",
        ),
    ] {
        let world = World::with_bytes([Vec::new()].into(), Ending::Hold);
        let mut command = world.command(args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while world.requests().is_empty() {
            assert!(Instant::now() < deadline, "{args:?} asks nothing");
            std::thread::yield_now();
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let wanted = format!(
            "Interrupted. What the server has begun goes on: {shows} shows it, {undoes} undoes it.\n"
        );
        assert_eq!((output.status.code(), said), (Some(130), wanted), "{args:?}");
    }
}

#[test]
fn version_works_with_and_without_a_server() {
    let health = "{\"status\":\"ok\",\"uptime\":\"1s\"}";
    let ours = "{\"status\":\"ok\",\"uptime\":\"1s\",\"engine\":\"qemu (tcg)\"}";
    let world = World::with(&[
        ("200 OK", "x-bhatti-version: v9.9.9\r\n", ours),
        ("200 OK", "x-bhatti-version: v9.9.9\r\n", health),
        ("404 Not Found", "x-bhatti-version: 9.9.9\r\n", "{}"),
    ]);
    let own = env!("CARGO_PKG_VERSION");
    let text = format!("bhatti v{own}\napi: {}\nserver: v9.9.9\n", world.url());
    world.run(&["version"]).check(0, &format!("{text}engine: qemu (tcg)\n"), "");
    world.run(&["version"]).check(0, &text, "");
    world.run(&["version"]).check(0, &text, "");
    let lonely = World::new();
    lonely.run(&["version", "--json", "--url", "http://127.0.0.1:1"]).check(
        0,
        &format!("{{\n  \"api\": \"http://127.0.0.1:1\",\n  \"version\": \"{own}\"\n}}\n"),
        "",
    );
}
