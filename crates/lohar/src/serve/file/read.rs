//! Reads a file, or a part of it, while the host takes it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use bhatti_link::write_message;
use bhatti_wire::message::{ByteRange, FileInfo, FilePart, FileReply, ReadFile};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::lines::{Lines, Progress};
use super::{CHUNK, FileError, Turn, absolute, blocking, info, open_regular, turn};
use crate::guest::Guest;

/// Answers with what the file is, then with its content.
///
/// A file that becomes shorter meanwhile, or a disk that fails, resets the stream: the host has
/// been told how much there is, and sees that it is not all.
pub async fn read<S>(guest: &Guest, request: ReadFile, stream: &mut S)
where
    S: AsyncWrite + Unpin,
{
    let opening = async {
        let turn = turn(guest).await?;
        blocking(move || Source::open(request, turn)).await
    };
    match opening.await {
        Ok((source, reply)) => {
            if write_message(&mut *stream, &reply).await.is_ok() && send(source, stream).await {
                stream.shutdown().await.ok();
            }
        }
        Err(error) => {
            let reply = FileReply { failure: Some(error.failure()), ..FileReply::default() };
            super::super::send_last(stream, &reply).await;
        }
    }
}

/// Whether all of it was sent. The next chunk is read while one is on its way.
async fn send<S: AsyncWrite + Unpin>(mut source: Source, stream: &mut S) -> bool {
    let (mut sending, mut spare) = (Vec::new(), Vec::new());
    loop {
        let reading = tokio::task::spawn_blocking(move || source.next(spare));
        let sent = match sending.is_empty() {
            // Somebody may have long gone from a file in whose gigabytes a line is looked for.
            true => stream.write(&[]).await.map(drop),
            false => stream.write_all(&sending).await,
        };
        if sent.is_err() {
            return false;
        }
        match reading.await {
            Ok(Ok((_, None))) => return true,
            Ok(Ok((back, Some(chunk)))) => {
                source = back;
                spare = std::mem::replace(&mut sending, chunk);
            }
            Ok(Err(_)) | Err(_) => return false,
        }
    }
}

/// What is left to be read.
struct Source {
    file: File,
    part: Part,
    /// Read already, to find out whether there is anything.
    begun: Vec<u8>,
    _turn: Turn,
}

enum Part {
    /// Exactly so many bytes.
    Exact(u64),
    /// Whatever comes: the kernel's own files do not know their size.
    ToEnd,
    Lines(Lines),
    Nothing,
}

impl Source {
    fn open(request: ReadFile, turn: Turn) -> Result<(Self, FileReply), FileError> {
        let path = absolute(request.path)?;
        let (mut file, meta) = open_regular(path.clone())?;
        let failed = |action| FileError::io(action, path.clone());
        let info = info(String::new(), &meta);
        let (offset, length) = span(request.part, &info);
        let mut begun = Vec::new();
        let (part, length) = match request.part {
            Some(FilePart::Lines(range)) => (Part::Lines(Lines::new(range)), None),
            None if info.size == 0 => {
                begun.resize(CHUNK, 0);
                let n = file.read(&mut begun).map_err(failed("read"))?;
                begun.truncate(n);
                if n == 0 { (Part::Nothing, Some(0)) } else { (Part::ToEnd, None) }
            }
            Some(FilePart::Bytes(_) | FilePart::Tail(_)) | None => {
                file.seek(SeekFrom::Start(offset)).map_err(failed("read"))?;
                (Part::Exact(length), Some(length))
            }
        };
        let reply = FileReply { info: Some(info), offset, length, failure: None };
        Ok((Self { file, part, begun, _turn: turn }, reply))
    }

    /// The next chunk, in the memory of `chunk`; `None` at the end. One before the end may be
    /// empty.
    fn next(mut self, mut chunk: Vec<u8>) -> io::Result<(Self, Option<Vec<u8>>)> {
        if !self.begun.is_empty() {
            let begun = std::mem::take(&mut self.begun);
            return Ok((self, Some(begun)));
        }
        match &mut self.part {
            Part::Nothing | Part::Exact(0) => return Ok((self, None)),
            Part::Exact(left) => {
                let want = usize::try_from(*left).map_or(CHUNK, |left| left.min(CHUNK));
                chunk.resize(want, 0);
                self.file.read_exact(&mut chunk)?;
                *left -= want as u64;
            }
            Part::ToEnd => {
                chunk.resize(CHUNK, 0);
                let n = self.file.read(&mut chunk)?;
                chunk.truncate(n);
                if n == 0 {
                    return Ok((self, None));
                }
            }
            Part::Lines(lines) => {
                chunk.clear();
                let mut piece = vec![0; CHUNK];
                let n = self.file.read(&mut piece)?;
                let progress = lines.push(&piece[..n], &mut chunk);
                if n == 0 && progress == Progress::More {
                    lines.finish(&mut chunk);
                }
                if n == 0 || progress == Progress::Done {
                    self.part = Part::Nothing;
                }
            }
        }
        Ok((self, Some(chunk)))
    }
}

/// Offset and length of what is asked for, within what there is.
fn span(part: Option<FilePart>, info: &FileInfo) -> (u64, u64) {
    match part {
        Some(FilePart::Bytes(ByteRange { offset, length })) => {
            let left = info.size.saturating_sub(offset);
            (offset.min(info.size), if length == 0 { left } else { left.min(length) })
        }
        Some(FilePart::Tail(length)) => {
            let length = length.min(info.size);
            (info.size - length, length)
        }
        Some(FilePart::Lines(_)) | None => (0, info.size),
    }
}
