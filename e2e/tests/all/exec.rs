//! `bhatti exec` as people pipe it: any bytes, any size, both ways, and an end that nobody misses.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How much goes through a guest and back, in MiB. 1 GiB of it is `BHATTI_TEST_STREAM_MB=1024`.
const STREAM_MB: usize = 24;

fn daemon_with_dev() -> TestDaemon {
    let daemon = TestDaemon::start();
    daemon.cli(&["create", "--name", "dev", "--cpus", "2", "--memory", "512"]).ok();
    daemon
}

#[test]
fn stdin_reaches_the_command_and_ends() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        a_pipe_a_file_and_nothing(&daemon);
        a_tree_of_files_is_piped_in(&daemon);
        every_byte_comes_back(&daemon);
        a_command_need_not_read(&daemon);
        a_command_that_cannot_run_reads_nothing(&daemon);
        a_timeout_is_not_held_up_by_stdin(&daemon);
        a_buffered_answer_is_capped(&daemon);
    });
}

/// `bhatti exec dev -- <args>` with pipes on all sides.
fn piped(daemon: &TestDaemon, args: &[&str]) -> Child {
    let args = [&["exec", "dev", "--"], args].concat();
    daemon
        .prepare(Some(daemon.admin()), &args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bhatti starts")
}

/// The same, fed with `input`; what it printed, and its exit code.
fn fed(daemon: &TestDaemon, args: &[&str], input: &[u8]) -> (Vec<u8>, i32) {
    let mut child = piped(daemon, args);
    let mut stdin = child.stdin.take().expect("piped");
    let output = std::thread::scope(|scope| {
        // A command that ends before it has read everything breaks the pipe; that is its right.
        scope.spawn(move || stdin.write_all(input).unwrap_or_default());
        child.wait_with_output().expect("it ends")
    });
    (output.stdout, output.status.code().unwrap_or(-1))
}

fn a_pipe_a_file_and_nothing(daemon: &TestDaemon) {
    let (out, code) = fed(daemon, &["sh", "-c", "wc -c; exit 3"], b"three\0\xff\n");
    assert_eq!((out.as_slice(), code), (&b"8\n"[..], 3));
    let file = daemon.scratch_path().join("input");
    std::fs::write(&file, "from a file\n").expect("a file");
    let read_file = std::fs::File::open(&file).expect("the file");
    let output = daemon
        .prepare(Some(daemon.admin()), &["exec", "dev", "--", "cat"])
        .stdin(read_file)
        .output()
        .expect("it runs");
    assert_eq!(output.stdout, b"from a file\n");
    // `</dev/null` and an empty pipe are an end at once.
    assert_eq!(daemon.cli(&["exec", "dev", "--", "cat"]).ok(), "");
    assert_eq!(fed(daemon, &["cat"], b""), (Vec::new(), 0));
    // Not with --json, whose answer has no room for it.
    assert_eq!(daemon.json(&["exec", "dev", "--", "cat"])["exit_code"], 0);
}

/// `tar c . | bhatti exec dev -- tar x -C /workspace`
fn a_tree_of_files_is_piped_in(daemon: &TestDaemon) {
    let tree = daemon.scratch_path().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).expect("directories");
    std::fs::write(tree.join("a/b/c"), b"content\n").expect("a file");
    let tar = std::process::Command::new("tar")
        .args(["c", "-C", tree.as_str(), "."])
        .output()
        .expect("tar runs");
    assert_eq!(fed(daemon, &["tar", "x", "-C", "/workspace"], &tar.stdout), (Vec::new(), 0));
    assert_eq!(daemon.sh("dev", "cat /workspace/a/b/c"), "content\n");
}

/// A byte stream without a period that fits any buffer.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Through a guest and back, while somebody else works in it too.
fn every_byte_comes_back(daemon: &TestDaemon) {
    let mb = std::env::var("BHATTI_TEST_STREAM_MB").ok();
    let mb = mb.map_or(STREAM_MB, |mb| mb.parse().expect("BHATTI_TEST_STREAM_MB is a number"));
    let block = noise(1 << 20);
    let started = Instant::now();
    let mut child = piped(daemon, &["cat"]);
    let (mut to, mut from) =
        (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    std::thread::scope(|scope| {
        let block = &block;
        scope.spawn(move || {
            for _ in 0..mb {
                to.write_all(block).expect("it takes everything");
            }
        });
        let reader = scope.spawn(move || {
            let mut got = vec![0; block.len()];
            for nth in 0..mb {
                from.read_exact(&mut got).expect("as much as went in");
                assert!(got == *block, "MiB {nth} came back changed");
            }
            assert_eq!(from.read(&mut got).expect("the end"), 0, "more than went in");
        });
        let mut slowest = Duration::ZERO;
        while !reader.is_finished() {
            let before = Instant::now();
            daemon.cli(&["exec", "dev", "--", "true"]).ok();
            slowest = slowest.max(before.elapsed());
            // There may be ten a second.
            std::thread::sleep(Duration::from_millis(100));
        }
        reader.join().expect("equal");
        println!(
            "{mb} MiB there and back in {:?}; slowest exec beside it {slowest:?}",
            started.elapsed()
        );
        assert!(slowest < Duration::from_secs(10), "an exec beside it took {slowest:?}");
    });
    assert!(child.wait().expect("it ends").success());
}

fn a_command_need_not_read(daemon: &TestDaemon) {
    let input = noise(8 << 20);
    assert_eq!(fed(daemon, &["true"], &input), (Vec::new(), 0));
    assert_eq!(fed(daemon, &["head", "-c", "5"], &input), (input[..5].to_vec(), 0));
    assert_eq!(
        fed(daemon, &["sh", "-c", "exec <&-; sleep 1; echo ok"], &input),
        (b"ok\n".to_vec(), 0)
    );
}

fn a_command_that_cannot_run_reads_nothing(daemon: &TestDaemon) {
    for (command, code) in [("no-such-command", 127), ("/etc/passwd", 126)] {
        let mut child = piped(daemon, &[command]);
        let mut error = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut error).expect("UTF-8");
        assert_eq!(child.wait().expect("it ends").code(), Some(code), "{error}");
        assert!(error.contains(command), "{error}");
    }
}

fn a_timeout_is_not_held_up_by_stdin(daemon: &TestDaemon) {
    let started = Instant::now();
    let mut child = daemon
        .prepare(Some(daemon.admin()), &["exec", "dev", "--timeout", "2", "--", "sleep", "63"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bhatti starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = noise(8 << 20);
    stdin.write_all(&input).expect_err("nobody takes that much");
    let ended = child.wait_with_output().expect("it ends");
    assert_eq!(ended.status.code(), Some(137));
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.starts_with("killed: it ran longer than 2 s (--timeout"), "{said}");
    let took = started.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(20)).contains(&took), "{took:?}");
    assert_gone(daemon, "sleep 63");
    let ran = daemon.cli(&["exec", "dev", "--timeout", "1", "--json", "--", "sleep", "63"]);
    let said: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let wanted = (&serde_json::json!(137), &serde_json::json!(true));
    assert_eq!((&said["exit_code"], &said["timed_out"]), wanted);
    assert_eq!(ran.code, 137);
}

/// The cap is of `--json`, which is one object at the end; raw output has none.
fn a_buffered_answer_is_capped(daemon: &TestDaemon) {
    let answer = daemon.json(&["exec", "dev", "--", "sh", "-c", "yes 1234567 | head -c 11000000"]);
    assert_eq!(answer["stdout"].as_str().map(str::len), Some(10 << 20));
    assert_eq!(answer["stderr"], "\n[output truncated at 10MB]");
    assert_eq!(answer["exit_code"], 0);
}

/// Fails unless nothing in the guest runs that has `words` in its command line.
#[track_caller]
fn assert_gone(daemon: &TestDaemon, words: &str) {
    wait_for(&format!("{words} is killed"), || {
        (daemon.cli(&["exec", "dev", "--", "pgrep", "-f", words]).code == 1).then_some(())
    });
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, signal).expect("ours to signal");
}

/// However full every buffer on the way is.
#[test]
fn a_client_that_goes_takes_its_command_along() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        let silent = "echo up; sleep 64 & exec sleep 64";
        let chatty = "echo up; sleep 64 & exec yes";
        for (script, how) in [
            (silent, Signal::SIGINT),
            (silent, Signal::SIGKILL),
            (chatty, Signal::SIGINT),
            (chatty, Signal::SIGKILL),
        ] {
            let mut child = piped(&daemon, &["sh", "-c", script]);
            let mut first = [0; 3];
            child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("a line");
            assert_eq!(&first, b"up\n");
            // Nobody reads stdin there, and nobody reads the output here.
            let mut stdin = child.stdin.take().expect("piped");
            let pump = std::thread::spawn(move || {
                let block = [0; 1 << 16];
                while stdin.write_all(&block).is_ok() {}
            });
            daemon.cli(&["exec", "dev", "--", "pgrep", "-f", "sleep 64"]).ok();
            let before = Instant::now();
            signal(&child, how);
            let status = child.wait().expect("it ends");
            if how == Signal::SIGINT {
                assert_eq!(status.code(), Some(130), "{script}");
            }
            pump.join().expect("the pipe breaks");
            assert_gone(&daemon, "sleep 64");
            println!("{how} of `{script}`: gone after {:?}", before.elapsed());
        }
    });
}
