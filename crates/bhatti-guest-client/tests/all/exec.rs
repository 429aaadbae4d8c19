//! Commands.

use std::time::Duration;

use bhatti_guest_client::{ExecEvent, ExecSpec, GuestError, Stdin};
use bhatti_link::{read_message, write_message};
use bhatti_wire::message::{
    ErrorKind, ExecInput, ExecInputEvent, ExecOutputEvent, ExitStatus, Nothing, Operation, Reply,
    Started,
};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::fake::{failure, fake, half_close, say, soon, started};

fn spec() -> ExecSpec {
    ExecSpec { argv: vec!["true".to_owned()], ..ExecSpec::default() }
}

fn exit(code: i32) -> ExecOutputEvent {
    ExecOutputEvent::Exit(ExitStatus { code, timed_out: false })
}

#[tokio::test]
async fn output_then_exit_then_nothing() {
    let fake = fake(|_, stream| async move {
        started(&stream).await;
        say(&stream, ExecOutputEvent::Stdout(Bytes::from_static(b"out"))).await;
        say(&stream, ExecOutputEvent::Stderr(Bytes::from_static(b"err"))).await;
        say(&stream, exit(3)).await;
        half_close(&stream).await;
    })
    .await;
    let mut running = soon(fake.guest.exec(spec())).await.unwrap();
    assert_eq!(running.pid(), 42);
    let mut events = Vec::new();
    while let Some(event) = soon(running.next()).await.unwrap() {
        events.push(event);
    }
    let expected = [
        ExecEvent::Stdout(Bytes::from_static(b"out")),
        ExecEvent::Stderr(Bytes::from_static(b"err")),
        ExecEvent::Exit { code: 3, timed_out: false },
    ];
    assert_eq!(events, expected);
    assert_eq!(soon(running.next()).await.unwrap(), None);
}

#[tokio::test]
async fn why_a_command_does_not_start_is_told_apart() {
    let fake = fake(|operation, stream| async move {
        let Operation::Exec(exec) = operation else { panic!("{operation:?}") };
        let kind = match exec.argv[0].as_str() {
            "missing" => ErrorKind::NotFound,
            "data" => ErrorKind::NotExecutable,
            _ => ErrorKind::Other,
        };
        say(&stream, ExecOutputEvent::Failed(failure(kind, "no"))).await;
        half_close(&stream).await;
    })
    .await;
    let run = async |name: &str| {
        let spec = ExecSpec { argv: vec![name.to_owned()], ..ExecSpec::default() };
        soon(fake.guest.exec(spec)).await.unwrap_err()
    };
    assert!(matches!(run("missing").await, GuestError::NotFound(_)));
    assert!(matches!(run("data").await, GuestError::NotExecutable(_)));
    assert!(matches!(run("other").await, GuestError::Failed(_)));
}

#[tokio::test]
async fn an_end_without_an_exit_is_never_success() {
    let fake = fake(|_, stream| async move {
        started(&stream).await;
        half_close(&stream).await;
    })
    .await;
    let mut running = soon(fake.guest.exec(spec())).await.unwrap();
    assert!(matches!(soon(running.next()).await, Err(GuestError::LinkLost(None))));
    assert_eq!(soon(running.next()).await.unwrap(), None);
}

#[tokio::test]
async fn losing_the_carrier_is_never_success() {
    let fake = fake(|_, stream| async move {
        started(&stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut running = soon(fake.guest.exec(spec())).await.unwrap();
    fake.driver.abort();
    assert!(matches!(soon(running.next()).await, Err(GuestError::LinkLost(Some(_)))));
}

#[tokio::test]
async fn an_oversized_chunk_is_a_violation() {
    let fake = fake(|_, stream| async move {
        started(&stream).await;
        say(&stream, ExecOutputEvent::Stdout(Bytes::from(vec![0; 64 * 1024 + 1]))).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut running = soon(fake.guest.exec(spec())).await.unwrap();
    assert!(matches!(soon(running.next()).await, Err(GuestError::Protocol(_))));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_forgets_the_timeout_is_not_waited_for() {
    let fake = fake(|operation, stream| async move {
        let Operation::Exec(exec) = operation else { panic!("{operation:?}") };
        assert_eq!(exec.timeout_ms, 2000);
        started(&stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let spec = ExecSpec { timeout: Some(Duration::from_secs(2)), ..spec() };
    let before = tokio::time::Instant::now();
    let mut running = soon(fake.guest.exec(spec)).await.unwrap();
    let event = soon(running.next()).await.unwrap();
    assert_eq!(event, Some(ExecEvent::Exit { code: 137, timed_out: true }));
    assert_eq!(before.elapsed().as_secs(), 7);
}

/// A fake that reports everything it is told; `None` is the end.
async fn listening() -> (super::fake::Fake, mpsc::UnboundedReceiver<Option<ExecInputEvent>>) {
    let (heard, hearing) = mpsc::unbounded_channel();
    let fake = fake(move |_, mut stream| {
        let heard = heard.clone();
        async move {
            started(&stream).await;
            while let Some(input) = read_message::<ExecInput>(&mut stream).await.unwrap() {
                heard.send(input.event).unwrap();
            }
            heard.send(None).unwrap();
            std::future::pending::<()>().await;
        }
    })
    .await;
    (fake, hearing)
}

#[tokio::test]
async fn dropping_a_command_kills_it() {
    let (fake, mut hearing) = listening().await;
    drop(soon(fake.guest.exec(spec())).await.unwrap());
    assert_eq!(soon(hearing.recv()).await, Some(Some(ExecInputEvent::Kill(Nothing {}))));
    assert_eq!(soon(hearing.recv()).await, Some(None));
}

#[tokio::test]
async fn giving_up_a_start_kills_what_may_have_started() {
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let fake = fake(move |_, mut stream| {
        let heard = heard.clone();
        async move {
            heard.send(None).unwrap();
            let input = read_message::<ExecInput>(&mut stream).await.unwrap().unwrap();
            heard.send(input.event).unwrap();
        }
    })
    .await;
    tokio::select! {
        biased;
        result = fake.guest.exec(spec()) => panic!("started: {:?}", result.is_ok()),
        began = hearing.recv() => assert_eq!(began, Some(None)),
    }
    assert_eq!(soon(hearing.recv()).await, Some(Some(ExecInputEvent::Kill(Nothing {}))));
}

#[tokio::test]
async fn a_detached_command_is_not_killed() {
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let fake = fake(move |operation, mut stream| {
        let heard = heard.clone();
        async move {
            let Operation::Exec(exec) = operation else { panic!("{operation:?}") };
            assert!(exec.detach);
            let started = Started { pid: 7, output_file: exec.output_file };
            say(&stream, ExecOutputEvent::Started(started)).await;
            heard.send(read_message::<ExecInput>(&mut stream).await.unwrap()).unwrap();
        }
    })
    .await;
    let detached = soon(fake.guest.exec_detached(spec(), "/var/log/x")).await.unwrap();
    assert_eq!((detached.pid, detached.output_file.as_str()), (7, "/var/log/x"));
    assert_eq!(soon(hearing.recv()).await, Some(None), "nothing but the end was said");
}

#[tokio::test]
async fn stdin_arrives_in_order_and_ends() {
    let (fake, mut hearing) = listening().await;
    let spec = ExecSpec { stdin: Stdin::Pipe, ..spec() };
    let mut running = soon(fake.guest.exec(spec)).await.unwrap();
    let mut stdin = running.take_stdin().unwrap();
    assert!(running.take_stdin().is_none());
    let sent: Bytes = (0..1_000_000u32).map(|i| (i % 253) as u8).collect();
    let to_send = sent.clone();
    let writing = tokio::spawn(async move {
        stdin.write(to_send).await.unwrap();
        stdin.finish().await.unwrap();
    });
    let mut got = Vec::new();
    loop {
        match soon(hearing.recv()).await.unwrap().unwrap() {
            ExecInputEvent::Data(bytes) => got.extend_from_slice(&bytes),
            ExecInputEvent::Eof(_) => break,
            ExecInputEvent::Kill(_) => panic!("nobody said so"),
        }
    }
    assert!(got == sent);
    soon(writing).await.unwrap();
}

#[tokio::test]
async fn a_kill_reaches_a_command_whose_stdin_was_full() {
    let (go, going) = tokio::sync::watch::channel(false);
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let fake = fake(move |operation, mut stream| {
        let (heard, mut going) = (heard.clone(), going.clone());
        async move {
            // An agent from before there was another way to kill.
            if let Operation::KillExec(_) = operation {
                let failure = Some(failure(ErrorKind::Unsupported, "no"));
                return write_message(&stream, &Reply { failure }).await.unwrap();
            }
            started(&stream).await;
            going.wait_for(|go| *go).await.unwrap();
            let mut data = 0;
            loop {
                let input = read_message::<ExecInput>(&mut stream).await.unwrap().unwrap();
                match input.event.unwrap() {
                    ExecInputEvent::Data(bytes) => data += bytes.len(),
                    ExecInputEvent::Kill(_) => break,
                    ExecInputEvent::Eof(_) => panic!("nobody said so"),
                }
            }
            heard.send(data).unwrap();
            say(&stream, exit(137)).await;
            half_close(&stream).await;
        }
    })
    .await;
    let spec = ExecSpec { stdin: Stdin::Pipe, ..spec() };
    let mut running = soon(fake.guest.exec(spec)).await.unwrap();
    let mut stdin = running.take_stdin().unwrap();
    let writing = tokio::spawn(async move { stdin.write(Bytes::from(vec![1; 4 << 20])).await });
    // The writer is stuck once the window is full; let it get there.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!writing.is_finished());
    let killer = running.killer();
    let killing = tokio::spawn(async move { killer.kill().await });
    assert!(soon(writing).await.unwrap().is_err(), "a killed command takes no more stdin");
    go.send(true).unwrap();
    let event = soon(running.next()).await.unwrap();
    assert_eq!(event, Some(ExecEvent::Exit { code: 137, timed_out: false }));
    let data = soon(hearing.recv()).await.unwrap();
    assert_eq!(data % (64 * 1024), 0, "a chunk was torn");
    soon(killing).await.unwrap();
}

#[tokio::test]
async fn a_kill_waits_for_no_stdin() {
    let (killed, killing) = tokio::sync::watch::channel(0);
    let fake = fake(move |operation, stream| {
        let (killed, mut killing) = (killed.clone(), killing.clone());
        async move {
            match operation {
                Operation::KillExec(order) => {
                    killed.send(order.id).unwrap();
                    write_message(&stream, &Reply { failure: None }).await.unwrap();
                }
                Operation::Exec(exec) => {
                    // Reads none of its stdin.
                    started(&stream).await;
                    assert_ne!(exec.id, 0);
                    killing.wait_for(|id| *id == exec.id).await.unwrap();
                    say(&stream, exit(137)).await;
                    half_close(&stream).await;
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    let spec = ExecSpec { stdin: Stdin::Pipe, ..spec() };
    let mut running = soon(fake.guest.exec(spec)).await.unwrap();
    let (mut stdin, killer) = (running.take_stdin().unwrap(), running.killer());
    let writing = tokio::spawn(async move { stdin.write(Bytes::from(vec![1; 4 << 20])).await });
    soon(killer.kill()).await;
    assert!(soon(writing).await.unwrap().is_err());
    let event = soon(running.next()).await.unwrap();
    assert_eq!(event, Some(ExecEvent::Exit { code: 137, timed_out: false }));
}
