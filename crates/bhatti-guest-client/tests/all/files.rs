//! Files, archives and ports against guests that lie, stall and break off.

use bhatti_guest_client::{FileContent, FileKind, GuestError};
use bhatti_link::{Stream, write_message};
use bhatti_wire::message::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::{Fake, failure, fake, half_close, soon};

fn info() -> Option<FileInfo> {
    Some(FileInfo { size: 5, mode: 0o644, kind: FileKind::Regular.into(), ..FileInfo::default() })
}

/// A guest that answers every request with `reply` and then these bytes, and half-closes or not.
async fn sends(length: Option<u64>, bytes: &'static [u8], closes: bool) -> Fake {
    fake(move |_, mut stream| async move {
        let reply = FileReply { info: info(), length, ..FileReply::default() };
        write_message(&stream, &reply).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        if closes {
            half_close(&stream).await;
        }
    })
    .await
}

async fn all_of(mut file: FileContent) -> Result<Vec<u8>, GuestError> {
    let mut content = Vec::new();
    while let Some(bytes) = soon(file.content.next()).await? {
        content.extend_from_slice(&bytes);
    }
    assert_eq!(soon(file.content.next()).await?, None, "an end stays one");
    Ok(content)
}

#[tokio::test]
async fn a_file_is_as_long_as_was_said_or_an_error() {
    let read = |length, bytes, closes| async move {
        let fake = sends(length, bytes, closes).await;
        // A reset overtakes what was sent before it, even the reply.
        all_of(soon(fake.guest.read_file("/a", None)).await?).await
    };
    assert_eq!(read(Some(5), b"hello", true).await.unwrap(), b"hello");
    assert_eq!(read(Some(0), b"", true).await.unwrap(), b"");
    assert_eq!(read(None, b"hello", true).await.unwrap(), b"hello");
    assert_eq!(read(Some(4), b"hello", true).await.unwrap(), b"hell", "no more than was said");
    for (length, closes) in [(Some(6), true), (Some(6), false), (None, false)] {
        let error = read(length, b"hello", closes).await.unwrap_err();
        assert!(matches!(error, GuestError::LinkLost(_)), "{length:?} {closes}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stops_sending_is_given_up() {
    let fake = fake(|_, stream| async move {
        let reply = FileReply { info: info(), ..FileReply::default() };
        write_message(&stream, &reply).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let error = all_of(soon(fake.guest.read_archive("/a", "")).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, GuestError::Deadline { .. }), "{error}");
    let silent = super::fake::fake(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let error = soon(silent.guest.read_file("/a", None)).await.unwrap_err();
    assert!(matches!(error, GuestError::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn what_is_refused_keeps_its_kind() {
    for (kind, wanted) in [
        (ErrorKind::NotFound, "not found: x"),
        (ErrorKind::Invalid, "invalid request: x"),
        (ErrorKind::TooLarge, "too large: x"),
        (ErrorKind::Denied, "not allowed in the guest: x"),
        (ErrorKind::Unsupported, "not supported by this guest's agent: x"),
    ] {
        let fake = fake(move |_, stream| async move {
            let failure = Some(failure(kind, "x"));
            write_message(&stream, &Reply { failure }).await.unwrap();
            half_close(&stream).await;
        })
        .await;
        // An old agent answers everything with a bare reply; every answer has it on the same tag.
        let errors = [
            soon(fake.guest.read_file("/a", None)).await.map(drop).unwrap_err(),
            soon(fake.guest.stat_file("/a")).await.map(drop).unwrap_err(),
            soon(fake.guest.list_directory("/a")).await.map(drop).unwrap_err(),
            soon(fake.guest.read_archive("/a", "")).await.map(drop).unwrap_err(),
            soon(fake.guest.begin_archive("/a")).await.unwrap().finish().await.unwrap_err(),
            soon(fake.guest.listening_ports()).await.map(drop).unwrap_err(),
        ];
        assert!(errors.iter().all(|error| error.to_string() == wanted), "{errors:?}");
    }
    let nothing = fake(|_, stream| async move {
        write_message(&stream, &FileReply::default()).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let error = soon(nothing.guest.stat_file("/a")).await.unwrap_err();
    assert!(matches!(error, GuestError::Protocol(_)), "{error}");
}

/// A guest that lists a directory in parts of `part` entries, `parts` of them.
async fn lists(part: usize, parts: usize, ends: bool) -> Fake {
    fake(move |_, stream: Stream| async move {
        let entry =
            FileInfo { name: "é".repeat(1000), mode: u32::MAX, kind: 99, ..FileInfo::default() };
        for _ in 0..parts {
            let entries = vec![entry.clone(); part];
            let part = DirectoryPart { entries, ..DirectoryPart::default() };
            if write_message(&stream, &part).await.is_err() {
                return;
            }
        }
        if ends {
            let last = DirectoryPart { total: Some(u64::MAX), ..DirectoryPart::default() };
            write_message(&stream, &last).await.unwrap();
        }
        half_close(&stream).await;
    })
    .await
}

#[tokio::test]
async fn a_list_is_bounded_whatever_is_said() {
    let fake = lists(2, 1, true).await;
    let directory = soon(fake.guest.list_directory("/a")).await.unwrap();
    assert_eq!((directory.entries.len(), directory.total), (2, u64::MAX));
    let entry = &directory.entries[0];
    assert!(entry.name.len() <= 765 && entry.name.chars().all(|c| c == 'é'), "{}", entry.name);
    assert_eq!((entry.mode, entry.kind), (0o7777, FileKind::Special));
    let endless = lists(100, 101, true).await;
    let error = soon(endless.guest.list_directory("/a")).await.unwrap_err();
    assert!(matches!(error, GuestError::Protocol(_)), "{error}");
    let cut = lists(2, 1, false).await;
    let error = soon(cut.guest.list_directory("/a")).await.unwrap_err();
    assert!(matches!(error, GuestError::LinkLost(_)), "{error}");
}

#[tokio::test]
async fn a_report_on_an_archive_is_bounded_and_fit_for_a_terminal() {
    let fake = fake(|operation, mut stream| async move {
        let Operation::WriteArchive(WriteArchive { directory }) = operation else {
            panic!("{operation:?}")
        };
        let mut archive = Vec::new();
        stream.read_to_end(&mut archive).await.unwrap();
        let reply = ArchiveReply {
            files: archive.len() as u64,
            problems: vec![format!("\u{1b}[2J{directory}"); 100],
            problem_count: 7,
            ..ArchiveReply::default()
        };
        write_message(&stream, &reply).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let mut upload = soon(fake.guest.begin_archive("/w")).await.unwrap();
    for _ in 0..100 {
        soon(upload.write(&[1; 10_000])).await.unwrap();
    }
    let unpacked = soon(upload.finish()).await.unwrap();
    assert_eq!((unpacked.files, unpacked.problem_count), (1_000_000, 7));
    assert_eq!(unpacked.problems, vec!["[2J/w"; MAX_PROBLEMS]);
}

#[tokio::test]
async fn ports_are_ports() {
    let fake = fake(|_, stream| async move {
        let ports = vec![8080, 22, 8080, 65_536, u32::MAX, 65_535];
        write_message(&stream, &PortsReply { failure: None, ports }).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let ports = soon(fake.guest.listening_ports()).await.unwrap();
    assert_eq!(ports.into_iter().collect::<Vec<_>>(), [22, 8080, 65_535]);
}

#[tokio::test]
async fn an_upload_that_is_dropped_is_reset_and_not_finished() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let fake = fake(move |_, mut stream| {
        let tell = tell.clone();
        async move {
            let mut half = [0; 10];
            tell.send(stream.read_exact(&mut half).await.map_err(|error| error.kind())).unwrap();
            let end = stream.read_to_end(&mut Vec::new()).await;
            tell.send(end.map_err(|error| error.kind())).unwrap();
        }
    })
    .await;
    let mut upload = soon(fake.guest.begin_archive("/w")).await.unwrap();
    soon(upload.write(b"half of it")).await.unwrap();
    assert_eq!(soon(told.recv()).await.unwrap(), Ok(10));
    drop(upload);
    let heard = soon(told.recv()).await.unwrap();
    assert_eq!(heard, Err(std::io::ErrorKind::ConnectionReset), "it looks like an end");
}
