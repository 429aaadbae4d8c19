//! Operations with one answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bhatti_guest_client::GuestError;
use bhatti_link::write_message;
use bhatti_wire::message::{Configure, ErrorKind, HelloReply, Operation, Reply};
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
