//! Lists a directory.

use bhatti_link::write_message;
use bhatti_wire::message::{DirectoryPart, FileInfo, FileKind, ListDirectory, MAX_ENTRIES};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{FileError, absolute, blocking, followed, info, kind, turn};
use crate::guest::Guest;

/// Entries in one message: names of 255 bytes, each of them replaced by three, still fit.
const PART: usize = 500;

/// Answers with the entries, by name. Beyond [`MAX_ENTRIES`] they are only counted.
pub async fn list<S>(guest: &Guest, request: ListDirectory, stream: &mut S)
where
    S: AsyncWrite + Unpin,
{
    let listing = async {
        let turn = turn(guest).await?;
        blocking(move || {
            let entries = entries(request.path);
            drop(turn);
            entries
        })
        .await
    };
    match listing.await {
        Ok((entries, total)) => send(&entries, total, stream).await,
        Err(error) => {
            let part = DirectoryPart { failure: Some(error.failure()), ..DirectoryPart::default() };
            super::super::send_last(stream, &part).await;
        }
    }
}

async fn send<S: AsyncWrite + Unpin>(entries: &[FileInfo], total: u64, stream: &mut S) {
    for part in entries.chunks(PART) {
        let part = DirectoryPart { entries: part.to_vec(), ..DirectoryPart::default() };
        if write_message(&mut *stream, &part).await.is_err() {
            return;
        }
    }
    let last = DirectoryPart { total: Some(total), ..DirectoryPart::default() };
    if write_message(&mut *stream, &last).await.is_ok() {
        stream.shutdown().await.ok();
    }
}

fn entries(path: String) -> Result<(Vec<FileInfo>, u64), FileError> {
    let absolute = absolute(path.clone())?;
    let failed = || FileError::io("list", absolute.clone());
    let directory = followed(&absolute, |path| std::fs::read_dir(path)).map_err(|source| {
        match source.kind() {
            std::io::ErrorKind::NotADirectory => FileError::NotDirectory { path },
            _ => failed()(source),
        }
    })?;
    let mut entries = Vec::new();
    let mut total = 0;
    for entry in directory {
        let entry = entry.map_err(failed())?;
        total += 1;
        if entries.len() == MAX_ENTRIES {
            continue;
        }
        match entry.metadata() {
            Ok(meta) => entries.push(info(entry.file_name().to_string_lossy().into_owned(), &meta)),
            // Removed since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => total -= 1,
            // There, and that is all: somebody's own file system keeps even root from looking.
            Err(_) => {
                let name = entry.file_name().to_string_lossy().into_owned();
                let kind = entry.file_type().map_or(FileKind::Special, kind).into();
                entries.push(FileInfo { name, kind, ..FileInfo::default() });
            }
        }
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok((entries, total))
}
