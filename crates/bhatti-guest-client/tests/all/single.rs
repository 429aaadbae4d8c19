//! Operations with one answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use std::time::Duration;

use bhatti_guest_client::{Activity, GuestError};
use bhatti_link::write_message;
use bhatti_wire::message::{
    ActivityReply, Configure, ErrorKind, Hello, HelloReply, Operation, PROTOCOL_VERSION, Reply,
};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::{failure, fake, half_close, soon};

#[tokio::test]
async fn hello_sends_time_and_randomness_and_believes_little() {
    let fake = fake(|operation, stream| async move {
        let Operation::Hello(hello) = operation else { panic!("{operation:?}") };
        assert_eq!(hello.entropy.len(), 64);
        assert_ne!(hello.entropy, Bytes::from_static(&[0; 64]));
        assert!(hello.unix_nanos > 1_700_000_000_000_000_000);
        let reply = HelloReply {
            protocol: 1,
            agent_version: format!("1.0\u{1b}]0;evil\u{7}{}", "x".repeat(5000)),
            features: vec!["f".repeat(200); 1000],
            configured: true,
            kernel_release: "6.1".to_owned(),
            applied: None,
            unix_nanos: 0,
        };
        // Longer than any honest answer would be refused as a whole.
        let reply = HelloReply { features: reply.features[..100].to_vec(), ..reply };
        write_message(&stream, &reply).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let info = soon(fake.guest.hello("test")).await.unwrap();
    assert!(info.agent_version.starts_with("1.0]0;evil"), "{}", info.agent_version);
    assert!(info.agent_version.len() <= 128 && info.features.len() == 64);
    assert!(info.features.iter().all(|name| name.len() == 128));
    assert!(info.configured);
}

/// Answers like an agent that knows of identities in a greeting, or like one from before.
#[tokio::test]
async fn an_identity_is_applied_once_whatever_the_agent_knows() {
    for (knows, failure) in [(true, None), (true, Some("no device")), (false, None)] {
        let (heard, mut hearing) = tokio::sync::mpsc::unbounded_channel();
        let fake = fake(move |operation, stream| {
            let heard = heard.clone();
            async move {
                let reply = Reply {
                    failure: failure.map(|text| super::fake::failure(ErrorKind::Other, text)),
                };
                match operation {
                    Operation::Hello(hello) => {
                        assert_eq!(hello.entropy.len(), 64);
                        let applied = knows.then(|| {
                            heard.send(hello.identity.unwrap().hostname).unwrap();
                            reply
                        });
                        let hello = HelloReply { protocol: 1, applied, ..HelloReply::default() };
                        write_message(&stream, &hello).await.unwrap();
                    }
                    Operation::Configure(configure) => {
                        heard.send(configure.hostname).unwrap();
                        write_message(&stream, &reply).await.unwrap();
                    }
                    other => panic!("{other:?}"),
                }
                half_close(&stream).await;
            }
        })
        .await;
        let identity = Configure { hostname: "clone".to_owned(), ..Configure::default() };
        let outcome = soon(fake.guest.hello_and_configure("test", identity)).await;
        assert_eq!(
            outcome.err().map(|error| error.to_string()),
            failure.map(|text| format!("the guest failed: {text}"))
        );
        assert_eq!(hearing.try_recv().unwrap(), "clone");
        assert!(hearing.try_recv().is_err(), "once");
    }
}

#[tokio::test]
async fn another_protocol_generation_is_refused() {
    let fake = fake(|_, stream| async move {
        let reply = HelloReply { protocol: 2, ..HelloReply::default() };
        write_message(&stream, &reply).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let error = soon(fake.guest.hello("test")).await.unwrap_err();
    assert!(matches!(error, GuestError::Incompatible { guest: 2, host: 1 }), "{error}");
}

#[tokio::test]
async fn failures_keep_their_kind_and_lose_their_control_characters() {
    let fake = fake(|_, stream| async move {
        let failure = Some(failure(ErrorKind::Invalid, "bad\r\n\u{1b}[31maddress"));
        write_message(&stream, &Reply { failure }).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let error = soon(fake.guest.configure(Configure::default())).await.unwrap_err();
    assert_eq!(error.to_string(), "invalid request: bad[31maddress");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_meets_a_deadline() {
    let fake = fake(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let error = soon(fake.guest.configure(Configure::default())).await.unwrap_err();
    assert!(matches!(error, GuestError::Deadline { seconds: 60, .. }), "{error}");
}

#[tokio::test]
async fn an_end_without_an_answer_is_a_lost_link() {
    let fake = fake(|_, stream| async move { half_close(&stream).await }).await;
    let error = soon(fake.guest.configure(Configure::default())).await.unwrap_err();
    assert!(matches!(error, GuestError::LinkLost(None)), "{error}");
}

#[tokio::test]
async fn nonsense_and_oversize_are_violations() {
    for bytes in [&b"\0\0\0\x02\xff\xff"[..], b"\0\x01\0\x01"] {
        let fake = fake(move |_, mut stream| async move {
            stream.write_all(bytes).await.unwrap();
            half_close(&stream).await;
        })
        .await;
        let error = soon(fake.guest.configure(Configure::default())).await.unwrap_err();
        assert!(matches!(error, GuestError::Protocol(_)), "{error}");
    }
}

#[tokio::test]
async fn a_file_arrives_whole() {
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let expected = content.clone();
    let was_right = Arc::new(AtomicBool::new(false));
    let tell = was_right.clone();
    let fake = fake(move |operation, mut stream| {
        let (expected, tell) = (expected.clone(), tell.clone());
        async move {
            let Operation::WriteFile(file) = operation else { panic!("{operation:?}") };
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            let right = (file.path.as_str(), file.mode, file.size) == ("/a", 0o640, 3_000_000);
            tell.store(right && got == expected, Ordering::SeqCst);
            write_message(&stream, &Reply { failure: None }).await.unwrap();
            half_close(&stream).await;
        }
    })
    .await;
    soon(fake.guest.write_file("/a", 0o640, content.into())).await.unwrap();
    assert!(was_right.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_full_disk_is_reported_before_everything_was_sent() {
    let fake = fake(|_, mut stream| async move {
        let mut some = vec![0; 1000];
        stream.read_exact(&mut some).await.unwrap();
        let failure = Some(failure(ErrorKind::NoSpace, "disk full"));
        write_message(&stream, &Reply { failure }).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let content = Bytes::from(vec![1; 8 << 20]);
    let error = soon(fake.guest.write_file("/a", 0o640, content)).await.unwrap_err();
    assert!(matches!(error, GuestError::NoSpace(_)), "{error}");
}

#[tokio::test]
async fn success_before_the_content_is_a_violation() {
    let fake = fake(|_, stream| async move {
        write_message(&stream, &Reply { failure: None }).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let content = Bytes::from(vec![1; 8 << 20]);
    let error = soon(fake.guest.write_file("/a", 0o640, content)).await.unwrap_err();
    assert!(matches!(error, GuestError::Protocol(_)), "{error}");
}

#[tokio::test]
async fn a_machine_that_vanishes_agreed_to_power_off() {
    let fake = fake(|_, stream| async move { drop(stream) }).await;
    soon(fake.guest.power_off()).await.unwrap();
    fake.link.close();
    let error = soon(fake.guest.power_off()).await.unwrap_err();
    assert!(matches!(error, GuestError::LinkLost(None)), "{error}");
}

/// Every hello a guest hears; its first answer takes this long.
async fn hellos(
    delay: Duration,
) -> (super::fake::Fake, tokio::sync::mpsc::UnboundedReceiver<Hello>) {
    let (heard, hearing) = tokio::sync::mpsc::unbounded_channel();
    let first = Arc::new(AtomicBool::new(true));
    let fake = fake(move |operation, stream| {
        let (heard, first) = (heard.clone(), first.clone());
        async move {
            let Operation::Hello(hello) = operation else { panic!("{operation:?}") };
            heard.send(hello).unwrap();
            if first.swap(false, Ordering::SeqCst) {
                tokio::time::sleep(delay).await;
            }
            let reply = HelloReply { protocol: PROTOCOL_VERSION, ..HelloReply::default() };
            write_message(&stream, &reply).await.unwrap();
            half_close(&stream).await;
        }
    })
    .await;
    (fake, hearing)
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_late_is_set_again() {
    let (fake, mut hearing) = hellos(Duration::from_millis(21)).await;
    soon(fake.guest.hello("test")).await.unwrap();
    let (first, second) = (hearing.recv().await.unwrap(), hearing.recv().await.unwrap());
    assert_eq!((first.entropy.len(), second.entropy.len()), (64, 0));
    assert!(second.unix_nanos > first.unix_nanos);
    assert!(hearing.try_recv().is_err(), "twice is enough");

    let (fake, mut hearing) = hellos(Duration::from_millis(19)).await;
    soon(fake.guest.hello("test")).await.unwrap();
    assert_eq!(hearing.recv().await.unwrap().entropy.len(), 64);
    assert!(hearing.try_recv().is_err(), "once is enough");
    soon(fake.guest.set_clock()).await.unwrap();
    assert!(hearing.recv().await.unwrap().entropy.is_empty());
}

#[tokio::test]
async fn a_clock_that_is_right_is_not_set_again_however_long_the_answer_took() {
    for (behind, times) in [(0, 1), (2_000_000_000, 2)] {
        let (heard, mut hearing) = tokio::sync::mpsc::unbounded_channel();
        let fake = fake(move |operation, stream| {
            let heard = heard.clone();
            async move {
                let Operation::Hello(hello) = operation else { panic!("{operation:?}") };
                heard.send(()).unwrap();
                if !hello.entropy.is_empty() {
                    tokio::time::sleep(Duration::from_millis(60)).await;
                }
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let unix_nanos = u64::try_from(now.unwrap().as_nanos()).unwrap() - behind;
                let reply = HelloReply { protocol: 1, unix_nanos, ..HelloReply::default() };
                write_message(&stream, &reply).await.unwrap();
                half_close(&stream).await;
            }
        })
        .await;
        soon(fake.guest.hello("test")).await.unwrap();
        let count = std::iter::from_fn(|| hearing.try_recv().ok()).count();
        assert_eq!(count, times);
    }
}

#[tokio::test]
async fn a_report_is_passed_on() {
    let fake = fake(|operation, stream| async move {
        assert!(matches!(operation, Operation::Activity(_)), "{operation:?}");
        let reply = ActivityReply {
            failure: None,
            runnable: 1,
            busy_millis: 2,
            since_millis: 3,
            connections: 4,
            moved_bytes: 5,
            commands: 6,
        };
        write_message(&stream, &reply).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let expected = Activity {
        runnable: 1,
        busy: Duration::from_millis(2),
        since: Duration::from_millis(3),
        connections: 4,
        moved_bytes: 5,
        commands: 6,
    };
    assert_eq!(soon(fake.guest.activity()).await.unwrap(), expected);
}

#[tokio::test]
async fn an_agent_from_before_an_operation_says_so() {
    let fake = fake(|_, stream| async move {
        let failure = Some(failure(ErrorKind::Unsupported, "agent 0.1.0"));
        write_message(&stream, &Reply { failure }).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let error = soon(fake.guest.activity()).await.unwrap_err();
    assert!(matches!(error, GuestError::Unsupported(_)), "{error}");
    let error = soon(fake.guest.quiesce(Duration::from_secs(1))).await.unwrap_err();
    assert!(matches!(error, GuestError::Unsupported(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_stuck_guest_is_not_waited_for() {
    let fake = fake(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let before = tokio::time::Instant::now();
    let error = soon(fake.guest.activity()).await.unwrap_err();
    assert!(matches!(error, GuestError::Deadline { seconds: 2, .. }), "{error}");
    let error = soon(fake.guest.quiesce(Duration::from_secs(7))).await.unwrap_err();
    assert!(matches!(error, GuestError::Deadline { seconds: 7, .. }), "{error}");
    assert_eq!(before.elapsed().as_secs(), 9);
}
