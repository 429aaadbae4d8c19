//! Messages over a byte stream that breaks them up.

use std::io::ErrorKind;

use bhatti_link::{MessageReader, read_message, write_message};
use bhatti_wire::message::{MAX_MESSAGE, WriteFile};
use tokio::io::{AsyncWriteExt, duplex};

use super::support::soon;

fn message(path_len: usize) -> WriteFile {
    WriteFile { path: "p".repeat(path_len), mode: 0o600, size: 9, keep_mode: false }
}

#[tokio::test]
async fn messages_of_all_lengths_pass_a_narrow_pipe() {
    let lengths = [0, 1, 100, 70_000, MAX_MESSAGE - 16];
    let (mut writer, mut reader) = duplex(7);
    let writing = tokio::spawn(async move {
        for len in lengths {
            write_message(&mut writer, &message(len)).await.unwrap();
        }
    });
    for len in lengths {
        let got = soon(read_message::<WriteFile>(&mut reader)).await.unwrap();
        assert!(got == Some(message(len)), "length {len}");
    }
    writing.await.unwrap();
    assert_eq!(soon(read_message::<WriteFile>(&mut reader)).await.unwrap(), None);
}

#[tokio::test]
async fn an_end_inside_a_message_is_not_a_clean_end() {
    for cut in [&[0][..], &[0, 0, 0, 9], &[0, 0, 0, 9, 8, 1]] {
        let (mut writer, mut reader) = duplex(64);
        writer.write_all(cut).await.unwrap();
        drop(writer);
        let error = soon(read_message::<WriteFile>(&mut reader)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{cut:?}");
    }
}

#[tokio::test]
async fn an_announced_length_above_the_limit_is_refused_without_waiting() {
    let (mut writer, mut reader) = duplex(64);
    writer.write_all(&(MAX_MESSAGE as u32 + 1).to_be_bytes()).await.unwrap();
    let error = soon(read_message::<WriteFile>(&mut reader)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let (mut writer, reader) = duplex(64);
    writer.write_all(&101u32.to_be_bytes()).await.unwrap();
    let mut reader = MessageReader::new(reader, 100);
    let error = soon(reader.next::<WriteFile>()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[tokio::test]
async fn an_interrupted_reader_goes_on_where_it_was() {
    let (mut writer, reader) = duplex(64);
    let mut reader = MessageReader::new(reader, MAX_MESSAGE);
    let mut bytes = bytes::BytesMut::new();
    bhatti_wire::codec::encode(&message(10), &mut bytes).unwrap();
    for byte in &bytes[..] {
        tokio::select! {
            biased;
            got = reader.next::<WriteFile>() => panic!("too early: {got:?}"),
            () = std::future::ready(()) => {}
        }
        writer.write_u8(*byte).await.unwrap();
    }
    assert_eq!(soon(reader.next::<WriteFile>()).await.unwrap(), Some(message(10)));
}
