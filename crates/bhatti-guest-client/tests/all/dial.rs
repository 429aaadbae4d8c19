//! Connections to ports of the guest.

use bhatti_guest_client::GuestError;
use bhatti_link::write_message;
use bhatti_wire::message::{ErrorKind, Operation, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::{failure, fake, half_close, soon};

#[tokio::test]
async fn what_follows_the_answer_is_the_programs() {
    let fake = fake(|operation, mut stream| async move {
        let Operation::Dial(dial) = operation else { panic!("{operation:?}") };
        assert_eq!(dial.port, 8000);
        write_message(&stream, &Reply { failure: None }).await.unwrap();
        // Right behind it: a greeting of the program.
        stream.write_all(b"220 ready").await.unwrap();
        let mut asked = String::new();
        stream.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "quit");
        half_close(&stream).await;
    })
    .await;
    let mut stream = soon(fake.guest.dial(8000)).await.unwrap();
    let mut greeting = [0; 9];
    soon(stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready");
    stream.write_all(b"quit").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn each_refusal_has_its_kind() {
    for (kind, wanted) in [
        (ErrorKind::Refused, "nothing listens"),
        (ErrorKind::Unsupported, "not supported by this guest's agent: nothing listens"),
        (ErrorKind::Other, "the guest failed: nothing listens"),
    ] {
        let fake = fake(move |_, stream| async move {
            let failure = Some(failure(kind, "nothing\r\n listens"));
            write_message(&stream, &Reply { failure }).await.unwrap();
            half_close(&stream).await;
        })
        .await;
        let error = soon(fake.guest.dial(1)).await.unwrap_err();
        assert_eq!(error.to_string(), wanted);
        assert_eq!(matches!(error, GuestError::Refused(_)), kind == ErrorKind::Refused);
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_meets_a_deadline() {
    let fake = fake(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let error = soon(fake.guest.dial(80)).await.unwrap_err();
    assert!(matches!(error, GuestError::Deadline { seconds: 15, .. }), "{error}");
}
