//! Commands: what they print, how they end, what is left of them.

use std::time::{Duration, Instant};

use bhatti_wire::message::{
    ErrorKind, Exec, ExecInputEvent, ExecOutputEvent, KillExec, MAX_CHUNK, Nothing, Operation,
};
use bhatti_wire::mux::WINDOW;
use bytes::Bytes;
use lohar::guest::MAX_COMMANDS;
use tokio::io::AsyncWriteExt;

use crate::support::{PATIENCE, group_lives, guest, open, run, sh, wait_for};

#[tokio::test]
async fn output_and_code_come_back() {
    let outcome = run(sh("echo out; echo err >&2; exit 3")).await;
    assert_eq!(
        (outcome.text().as_str(), outcome.stderr.as_slice(), outcome.code()),
        ("out\n", &b"err\n"[..], 3)
    );
    assert!(outcome.started.unwrap().pid > 1);
}

#[tokio::test]
async fn a_command_sees_its_environment_directory_and_session() {
    let guest = guest();
    guest.settings().env =
        [("LAYER", "sandbox"), ("BOX", "yes")].map(|(k, v)| (k.into(), v.into())).into();
    let mut exec = sh(
        "echo $LAYER $BOX $TERM $PWD; ps -o pid=,pgid=,sid= -p $$ | awk '{print ($1==$2 && $2==$3)}'; umask",
    );
    exec.env = [("LAYER".into(), "request".into())].into();
    exec.cwd = "/proc".into();
    let outcome = open(&guest, Some(Operation::Exec(exec))).await.finish().await;
    assert_eq!(outcome.text(), "request yes xterm-256color /proc\n1\n0022\n");
}

#[tokio::test]
async fn what_cannot_run_says_why() {
    let argv = |words: &[&str]| Exec {
        argv: words.iter().map(|&word| word.to_owned()).collect(),
        ..Exec::default()
    };
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(script.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let (_, script) = script.keep().unwrap();
    let cases = [
        (argv(&[]), ErrorKind::Invalid, "empty argv"),
        (
            argv(&["no-such-command"]),
            ErrorKind::NotFound,
            "exec: \"no-such-command\": not found in PATH",
        ),
        (argv(&["/no/such"]), ErrorKind::NotFound, "exec: \"/no/such\": no such file"),
        (
            argv(&["/etc/passwd"]),
            ErrorKind::NotExecutable,
            "exec: \"/etc/passwd\": permission denied",
        ),
        (argv(&[script.to_str().unwrap()]), ErrorKind::NotExecutable, "No such file"),
        (argv(&["/bin/echo", "a\0b"]), ErrorKind::Invalid, "nul byte"),
        (argv(&["/bin/echo", &"x".repeat(200_000)]), ErrorKind::Invalid, "Argument list too long"),
        (
            Exec { cwd: "/no/such".into(), ..sh("true") },
            ErrorKind::Invalid,
            "cannot enter /no/such: No such file",
        ),
        (Exec { cwd: "relative".into(), ..sh("true") }, ErrorKind::Invalid, "is not absolute"),
        (
            Exec { env: [("A=".into(), "".into())].into(), ..sh("true") },
            ErrorKind::Invalid,
            "cannot exist",
        ),
    ];
    for (exec, kind, text) in cases {
        let failure = run(exec).await.failed.expect(text);
        assert_eq!(failure.kind, i32::from(kind), "{}", failure.message);
        assert!(failure.message.contains(text), "{:?} does not say {text:?}", failure.message);
    }
    std::fs::remove_file(script).unwrap();
}

#[tokio::test]
async fn input_reaches_the_command_and_ends() {
    for end in ["eof", "half-close"] {
        let exec = Exec { stdin: true, ..sh("cat; echo done") };
        let mut host = open(&guest(), Some(Operation::Exec(exec))).await;
        host.send(ExecInputEvent::Data(Bytes::from_static(b"one "))).await;
        host.send(ExecInputEvent::Data(Bytes::from_static(b"two "))).await;
        match end {
            "eof" => host.send(ExecInputEvent::Eof(Nothing {})).await,
            _ => host.to.shutdown().await.unwrap(),
        }
        assert_eq!(host.finish().await.text(), "one two done\n", "{end}");
    }
}

#[tokio::test]
async fn a_command_that_reads_nothing_is_not_stuck_on_its_input() {
    let dir = tempfile::tempdir().unwrap();
    let sent = dir.path().join("sent");
    let script = format!("exec <&-; until [ -e {} ]; do sleep 0.02; done; echo ok", sent.display());
    let exec = Exec { stdin: true, ..sh(&script) };
    let mut host = open(&guest(), Some(Operation::Exec(exec))).await;
    // Far more than the pipe and the queue hold.
    for _ in 0..20 {
        host.send(ExecInputEvent::Data(Bytes::from(vec![0; MAX_CHUNK]))).await;
    }
    std::fs::write(&sent, "").unwrap();
    assert_eq!(host.finish().await.text(), "ok\n");
}

#[tokio::test]
async fn a_kill_overtakes_input_that_the_command_does_not_take() {
    // One window: what a host may have written ahead.
    let exec = Exec { stdin: true, ..sh("exec sleep 1000") };
    let mut host = open(&guest(), Some(Operation::Exec(exec))).await;
    for _ in 0..WINDOW / MAX_CHUNK {
        host.send(ExecInputEvent::Data(Bytes::from(vec![0; MAX_CHUNK]))).await;
    }
    host.kill().await;
    assert_eq!(host.finish().await.code(), 137);
}

#[tokio::test]
async fn a_kill_from_another_stream_waits_for_no_input() {
    let guest = guest();
    let exec = Exec { stdin: true, id: 7, ..sh("exec sleep 1000") };
    let mut host = open(&guest, Some(Operation::Exec(exec))).await;
    assert!(matches!(host.next().await, Some(ExecOutputEvent::Started(_))));
    // More than the guest takes: the rest stays in the stream, and a kill behind it would.
    let chunk = Bytes::from(vec![0; MAX_CHUNK]);
    let full = async { while host.try_send(ExecInputEvent::Data(chunk.clone())).await {} };
    tokio::time::timeout(PATIENCE, full).await.expect("it stops taking input");
    let kill = |id| open(&guest, Some(Operation::KillExec(KillExec { id })));
    assert_eq!(kill(8).await.reply().await.failure.unwrap().kind, i32::from(ErrorKind::NotFound));
    assert_eq!(kill(7).await.reply().await.failure, None);
    assert_eq!(host.finish().await.code(), 137);
    assert!(kill(7).await.reply().await.failure.is_some(), "it is over");
}

#[tokio::test]
async fn a_slow_reader_gets_all_its_input() {
    let exec = Exec { stdin: true, ..sh("sleep 0.2; wc -c; exec 0<&-") };
    let mut host = open(&guest(), Some(Operation::Exec(exec))).await;
    for _ in 0..20 {
        host.send(ExecInputEvent::Data(Bytes::from(vec![0; MAX_CHUNK]))).await;
    }
    host.send(ExecInputEvent::Eof(Nothing {})).await;
    assert_eq!(host.finish().await.text().trim(), (20 * MAX_CHUNK).to_string());
}

#[tokio::test]
async fn large_output_arrives_whole_in_bounded_chunks() {
    let mut host = open(&guest(), Some(Operation::Exec(sh("head -c 3000000 /dev/zero")))).await;
    let mut total = 0;
    while let Some(event) = host.next().await {
        if let ExecOutputEvent::Stdout(bytes) = event {
            assert!((1..=MAX_CHUNK).contains(&bytes.len()));
            total += bytes.len();
        }
    }
    assert_eq!(total, 3_000_000);
}

#[tokio::test]
async fn output_of_a_background_child_is_waited_for() {
    let outcome = run(sh("(sleep 0.1; echo late) & echo early; exit 7")).await;
    assert_eq!((outcome.text().as_str(), outcome.code()), ("early\nlate\n", 7));
}

#[tokio::test]
async fn a_timeout_leaves_nobody() {
    let start = Instant::now();
    let outcome =
        run(Exec { timeout_ms: 300, ..sh("sleep 1000 & sleep 1000 & echo up; wait") }).await;
    let exit = outcome.exit.clone().unwrap();
    assert_eq!((exit.code, exit.timed_out, outcome.text().as_str()), (137, true, "up\n"));
    assert!(start.elapsed() >= Duration::from_millis(300));
    let pid = outcome.started.unwrap().pid;
    wait_for("the group is gone", || !group_lives(pid)).await;
}

#[tokio::test]
async fn a_timeout_reaches_those_who_outlived_the_leader() {
    let outcome = run(Exec { timeout_ms: 500, ..sh("sleep 1000 & exit 0") }).await;
    let exit = outcome.exit.clone().unwrap();
    assert_eq!((exit.code, exit.timed_out), (137, true));
    let pid = outcome.started.unwrap().pid;
    wait_for("the group is gone", || !group_lives(pid)).await;
}

#[tokio::test]
async fn a_timeout_does_not_wait_for_those_who_left_the_group() {
    // This one keeps the pipe and cannot be reached by a kill of the group.
    let exec =
        Exec { timeout_ms: 300, ..sh("setsid sh -c 'echo $$; exec sleep 1000' & exec sleep 1000") };
    let outcome = run(exec).await;
    assert!(outcome.exit.clone().unwrap().timed_out);
    let escaped: i32 = outcome.text().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(escaped), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
}

#[tokio::test]
async fn a_kill_ends_the_whole_group_at_once() {
    let mut host = open(&guest(), Some(Operation::Exec(sh("sleep 1000 & echo up; wait")))).await;
    let Some(ExecOutputEvent::Started(started)) = host.next().await else {
        panic!("first comes the start")
    };
    assert_eq!(host.next().await, Some(ExecOutputEvent::Stdout(Bytes::from_static(b"up\n"))));
    host.kill().await;
    let outcome = host.finish().await;
    let exit = outcome.exit.unwrap();
    assert_eq!((exit.code, exit.timed_out), (137, false));
    wait_for("the group is gone", || !group_lives(started.pid)).await;
}

#[tokio::test]
async fn a_lost_host_kills_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    // Writes far more than all buffers hold, so it would block or get SIGPIPE if nobody read.
    let script = format!("read x; head -c 2000000 /dev/zero && echo fine >{}", done.display());
    let guest = guest();
    let mut host = open(&guest, Some(Operation::Exec(Exec { stdin: true, ..sh(&script) }))).await;
    assert!(matches!(host.next().await, Some(ExecOutputEvent::Started(_))));
    drop(host);
    wait_for("the command ends well", || done.exists()).await;
    wait_for("it is forgotten", || guest.commands.available_permits() == MAX_COMMANDS).await;
}

#[tokio::test]
async fn a_slow_host_slows_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let script = format!("head -c 2000000 /dev/zero; echo fine >{}", done.display());
    let mut host = open(&guest(), Some(Operation::Exec(sh(&script)))).await;
    assert!(matches!(host.next().await, Some(ExecOutputEvent::Started(_))));
    // Nobody reads: other commands work, this one cannot have ended.
    assert_eq!(run(sh("echo other")).await.text(), "other\n");
    assert!(!done.exists());
    assert_eq!(host.finish().await.stdout.len(), 2_000_000);
    assert!(done.exists());
}

#[tokio::test]
async fn a_detached_command_outlives_its_stream() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("logs/out.log");
    let guest = guest();
    let exec = Exec {
        detach: true,
        timeout_ms: 1,
        output_file: log.to_str().unwrap().to_owned(),
        ..sh("sleep 0.2; echo out; echo err >&2")
    };
    let outcome = open(&guest, Some(Operation::Exec(exec))).await.finish().await;
    let started = outcome.started.unwrap();
    assert_eq!(started.output_file, log.to_str().unwrap());
    assert!(outcome.exit.is_none() && outcome.failed.is_none());
    wait_for("it writes", || std::fs::read_to_string(&log).is_ok_and(|text| text == "out\nerr\n"))
        .await;
    wait_for("its place is free", || guest.commands.available_permits() == MAX_COMMANDS).await;
}

#[tokio::test]
async fn too_many_commands_are_refused() {
    let guest = guest();
    let all = guest.commands.clone().acquire_many_owned(MAX_COMMANDS as u32).await.unwrap();
    let refused = open(&guest, Some(Operation::Exec(sh("true")))).await.finish().await;
    assert_eq!(refused.failed.unwrap().message, "too many running commands");
    drop(all);
    let outcome = tokio::time::timeout(PATIENCE, async {
        open(&guest, Some(Operation::Exec(sh("true")))).await.finish().await
    });
    assert_eq!(outcome.await.unwrap().code(), 0);
}
