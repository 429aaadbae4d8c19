//! The operations but exec, through a stream.

use bhatti_link::read_message;
use bhatti_wire::message::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{PATIENCE, guest, open};

async fn reply(mut host: crate::support::Host) -> Reply {
    let reply = tokio::time::timeout(PATIENCE, read_message::<Reply>(&mut host.from)).await;
    let reply = reply.expect("in time").unwrap().expect("a reply");
    assert_eq!(host.from.read(&mut [0]).await.unwrap(), 0, "the reply is the last message");
    reply
}

#[tokio::test]
async fn an_operation_of_the_future_is_refused_politely() {
    let reply = reply(open(&guest(), None).await).await;
    assert_eq!(reply.failure.unwrap().kind, i32::from(ErrorKind::Unsupported));
}

#[tokio::test]
async fn a_file_is_written_from_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/file");
    let request = WriteFile {
        path: path.to_str().unwrap().into(),
        mode: 0o600,
        size: 300_000,
        keep_mode: false,
    };
    let mut host = open(&guest(), Some(Operation::WriteFile(request))).await;
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8).collect();
    host.to.write_all(&content).await.unwrap();
    host.to.shutdown().await.unwrap();
    assert_eq!(reply(host).await.failure, None);
    assert_eq!(std::fs::read(path).unwrap(), content);
}

#[tokio::test]
async fn a_cut_stream_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let request =
        WriteFile { path: path.to_str().unwrap().into(), mode: 0o600, size: 10, keep_mode: false };
    let mut host = open(&guest(), Some(Operation::WriteFile(request))).await;
    host.to.write_all(b"1234").await.unwrap();
    host.to.shutdown().await.unwrap();
    assert_eq!(reply(host).await.failure.unwrap().message, "connection lost after 4/10 bytes");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn bad_settings_change_nothing() {
    let guest = guest();
    let named = |hostname: &str| Configure { hostname: hostname.into(), ..Configure::default() };
    for request in [
        named(&"x".repeat(65)),
        Configure { machine_id: "no id".into(), ..named("a") },
        Configure { env: [("".into(), "x".into())].into(), ..named("a") },
        Configure { network: Some(Network::default()), ..named("a") },
    ] {
        let before = nix::unistd::gethostname().unwrap();
        let reply = reply(open(&guest, Some(Operation::Configure(request))).await).await;
        assert_eq!(reply.failure.unwrap().kind, i32::from(ErrorKind::Invalid));
        assert_eq!(nix::unistd::gethostname().unwrap(), before);
        assert!(!guest.settings().configured);
    }
}

#[tokio::test]
async fn power_off_answers_first() {
    let guest = guest();
    let host = open(&guest, Some(Operation::PowerOff(PowerOff {}))).await;
    assert_eq!(reply(host).await.failure, None);
    tokio::time::timeout(PATIENCE, guest.power_off.notified())
        .await
        .expect("the main loop is told");
}

#[tokio::test]
async fn garbage_instead_of_a_request_ends_the_stream() {
    let (mut ours, theirs) = tokio::io::duplex(1024);
    ours.write_all(&[0xff; 64]).await.unwrap();
    tokio::time::timeout(PATIENCE, lohar::serve::answer(&guest(), theirs))
        .await
        .expect("it gives up");
    assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
}
