//! `bhatti exec`: output in every mode, exit codes, broken streams, Ctrl-C.

use std::io::Read;
use std::process::Stdio;

use super::world::{Ending, World, ran};

/// A stream of these lines; `whole` adds the end of the body.
fn stream(lines: &[&str], whole: bool) -> Vec<u8> {
    let mut out =
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_owned();
    for line in lines {
        out.push_str(&format!("{:x}\r\n{line}\n\r\n", line.len() + 1));
    }
    if whole {
        out.push_str("0\r\n\r\n");
    }
    out.into_bytes()
}

const OUT: &str = r#"{"type":"stdout","data":"out\n"}"#;
const ERR: &str = r#"{"type":"stderr","data":"err\n"}"#;

/// What a server answers that does not know the stream with stdin; then comes the older way.
const OLD: (&str, &str, &str) = ("404 Not Found", "", r#"{"error":"not found"}"#);
const ASKED: &str = "GET /sandboxes/dev/exec/stream";

/// An older server that gives these bytes.
fn old_world(answer: Vec<u8>, ending: Ending) -> World {
    let unknown = r#"{"error":"not found"}"#;
    let unknown =
        format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{unknown}", unknown.len());
    World::with_bytes([unknown.into_bytes(), answer].into(), ending)
}

fn streamed(world: &World, args: &[&str]) -> super::world::Ran {
    ran(world.command(args).env("BHATTI_FORCE_STREAM", "1"))
}

#[test]
fn buffered_output_is_raw_and_the_code_is_forwarded() {
    let answer = r#"{"exit_code":7,"stdout":"out\n","stderr":"err"}"#;
    let world = World::with(&[OLD, ("200 OK", "", answer), ("200 OK", "", answer)]);
    world.run(&["exec", "dev", "--timeout", "5", "--", "ls", "-la"]).check(7, "out\n", "err");
    world.run(&["exec", "--json", "dev", "ls"]).check(
        7,
        "{\n  \"exit_code\": 7,\n  \"stdout\": \"out\\n\",\n  \"stderr\": \"err\"\n}\n",
        "",
    );
    assert_eq!(
        world.requests(),
        [
            ASKED,
            r#"POST /sandboxes/dev/exec {"cmd":["ls","-la"],"timeout_sec":5,"detach":false,"output_file":""}"#,
            r#"POST /sandboxes/dev/exec {"cmd":["ls"],"timeout_sec":0,"detach":false,"output_file":""}"#
        ]
    );
}

#[test]
fn what_a_wake_has_lost_is_said_in_every_mode() {
    const HEADER: &str = "x-bhatti-warning: memory is lost\r\n";
    const WARNING: &str = "Warning: memory is lost\n";
    let result = r#"{"exit_code":0,"stdout":"out\n","stderr":"err\n"}"#;
    let detached = r#"{"detached":true,"output_file":"/o","pid":42}"#;
    let refused = r#"{"error":"no such file"}"#;
    let answers = [
        OLD,
        ("200 OK", HEADER, result),
        ("200 OK", HEADER, result),
        ("200 OK", HEADER, detached),
        ("400 Bad Request", HEADER, refused),
        OLD,
        ("200 OK", "", result),
    ];
    let world = World::with(&answers);
    world.run(&["exec", "dev", "x"]).check(0, "out\n", &format!("{WARNING}err\n"));
    assert_eq!(world.run(&["exec", "--json", "dev", "x"]).stderr, WARNING);
    assert_eq!(world.run(&["exec", "--detach", "dev", "x"]).stderr, WARNING);
    let refused = world.run(&["exec", "--detach", "dev", "x"]);
    refused.check(1, "", &format!("{WARNING}Error: 400 Bad Request: no such file\n"));
    world.run(&["exec", "dev", "x"]).check(0, "out\n", "err\n");

    let head = "HTTP/1.1 200 OK\r\n";
    let whole = stream(&[OUT, ERR, r#"{"type":"exit","exit_code":0}"#], true);
    let rest = whole.strip_prefix(head.as_bytes()).unwrap();
    let bytes = [head.as_bytes(), HEADER.as_bytes(), rest].concat();
    let world = old_world(bytes, Ending::KeepAlive);
    streamed(&world, &["exec", "dev", "x"]).check(0, "out\n", &format!("{WARNING}err\n"));
}

#[test]
fn detached_commands_leave_their_traces() {
    let answer = r#"{"detached":true,"output_file":"/o","pid":42}"#;
    let world = World::with(&[("200 OK", "", answer), ("200 OK", "", answer)]);
    world.run(&["exec", "dev", "--detach", "./w"]).check(0, "pid: 42\noutput: /o\n", "");
    let json = world.run(&["exec", "dev", "--detach", "--json", "./w"]).stdout;
    assert_eq!(json, "{\n  \"detached\": true,\n  \"output_file\": \"/o\",\n  \"pid\": 42\n}\n");
    assert!(world.requests().iter().all(|request| request.contains("\"detach\":true")));
}

#[test]
fn streams_are_raw_and_forward_the_code() {
    let whole = stream(&[OUT, ERR, r#"{"type":"exit","exit_code":137}"#], true);
    let world = old_world(whole, Ending::KeepAlive);
    streamed(&world, &["exec", "dev", "x"]).check(137, "out\n", "err\n");
}

#[test]
fn a_stream_that_ends_badly_is_a_failure() {
    for (bytes, stderr) in [
        (
            stream(&[OUT, r#"{"type":"error","data":"start: no such file"}"#], true),
            "exec error: start: no such file\n",
        ),
        (stream(&[OUT], true), "Error: the stream ended before the command did\n"),
        (
            stream(&[OUT, "{"], true),
            "Error: the stream has a line that is no event: EOF while parsing an object at line 2 column 0\n",
        ),
    ] {
        let world = old_world(bytes, Ending::Close);
        streamed(&world, &["exec", "dev", "x"]).check(1, "out\n", stderr);
    }
    let world = old_world(stream(&[OUT], false), Ending::Close);
    let ran = streamed(&world, &["exec", "dev", "x"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), "out\n"));
    assert!(
        ran.stderr.starts_with("Error: the stream broke off before the command ended: "),
        "{ran:?}"
    );
}

/// Starts a streamed exec whose command never ends, and waits for its first output.
fn endless(world: &World) -> (std::process::Child, std::process::ChildStdout) {
    let mut command = world.command(&["exec", "dev", "x"]);
    command.env("BHATTI_FORCE_STREAM", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 4];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"out\n", "output comes before the command ends");
    (child, stdout)
}

#[test]
fn ctrl_c_ends_it_with_130() {
    let world = old_world(stream(&[OUT], false), Ending::Hold);
    let (child, _stdout) = endless(&world);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
}

#[test]
fn a_reader_that_left_ends_it() {
    // More than a pipe holds, so that a write fails whenever the reader leaves.
    let flood: Vec<&str> = std::iter::repeat_n(OUT, 100_000).collect();
    let world = old_world(stream(&flood, false), Ending::Hold);
    let (child, stdout) = endless(&world);
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

/// Whoever shares our stdout may have made it non-blocking.
#[test]
fn a_reader_that_is_slow_gets_all_of_it() {
    // More than a pipe holds.
    let mut lines: Vec<&str> = std::iter::repeat_n(OUT, 50_000).collect();
    lines.push(r#"{"type":"exit","exit_code":0}"#);
    let world = old_world(stream(&lines, true), Ending::KeepAlive);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let capacity = rustix::pipe::fcntl_getpipe_size(&reader).unwrap();
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&writer, flags).unwrap();
    let mut command = world.command(&["exec", "dev", "x"]);
    command.env("BHATTI_FORCE_STREAM", "1").stdout(writer).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut running = || child.try_wait().unwrap().is_none();
    while rustix::io::ioctl_fionread(&reader).unwrap() < capacity as u64 && running() {
        std::thread::yield_now();
    }
    // The next write finds no room. This is only time for a mistake to show.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let mut out = Vec::new();
    reader.read_to_end(&mut out).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), out.len()), (Some(0), 200_000), "{output:?}");
}
