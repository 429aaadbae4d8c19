//! Whole trees of files, as tar: out of the machine and into it.
//!
//! ```text
//!   stream ─▶ task ─▶ channel ─▶ thread: unpack ─▶ disk
//!   stream ◀─ task ◀─ channel ◀─ thread: pack  ◀─ disk
//! ```
//!
//! A thread an archive, because reading and writing tar blocks. The channel holds one chunk, so
//! neither side gets ahead of the other; when the task goes the channel goes, and then the thread.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use bhatti_link::write_message;
use bhatti_tree::{Links, Problems, Source, Tally, Unpack, UnpackError, root_name};
use bhatti_wire::message::{
    ArchiveReply, ErrorKind, Failure, FileReply, ReadArchive, WriteArchive,
};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::file::{CHUNK, FileError, Turn, absolute, blocking, info, kind_of};
use crate::console::Chain;
use crate::guest::Guest;

/// Most archives at one time; more wait their turn.
pub const MAX_ARCHIVES: usize = 4;

/// Chunks between a task and its thread.
const AHEAD: usize = 1;

async fn turn(guest: &Guest) -> Result<Turn, FileError> {
    Arc::clone(&guest.archives).acquire_owned().await.map_err(|_| FileError::Ending)
}

/// Answers with what the path leads to, then with an archive of it.
pub async fn read<S>(guest: &Guest, request: ReadArchive, stream: &mut S)
where
    S: AsyncWrite + Unpin,
{
    let opening = async {
        let turn = turn(guest).await?;
        blocking(move || {
            let path = absolute(request.path)?;
            let source = Source::open(&path).map_err(FileError::io("open", &path))?;
            Ok((source, path, turn))
        })
        .await
    };
    match opening.await {
        Ok((source, path, turn)) => {
            let info = Some(info(String::new(), source.metadata()));
            let reply = FileReply { info, ..FileReply::default() };
            if write_message(&mut *stream, &reply).await.is_ok()
                && send(source, path, turn, stream).await
            {
                stream.shutdown().await.ok();
            }
        }
        Err(error) => {
            let reply = FileReply { failure: Some(error.failure()), ..FileReply::default() };
            super::send_last(stream, &reply).await;
        }
    }
}

/// Whether all of it was sent.
async fn send<S>(source: Source, path: PathBuf, turn: Turn, stream: &mut S) -> bool
where
    S: AsyncWrite + Unpin,
{
    let (chunks, mut ready) = mpsc::channel(AHEAD);
    let packing = tokio::task::spawn_blocking(move || {
        let mut out = ChunkWriter { chunks, chunk: BytesMut::with_capacity(CHUNK) };
        let packed = source.pack(root_name(&path), &mut out, &Tally::default());
        drop(turn);
        packed.and_then(|()| out.flush())
    });
    while let Some(chunk) = ready.recv().await {
        if stream.write_all(&chunk).await.is_err() {
            return false;
        }
    }
    matches!(packing.await, Ok(Ok(())))
}

/// Collects what is written into chunks for the task.
struct ChunkWriter {
    chunks: mpsc::Sender<Bytes>,
    chunk: BytesMut,
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        let n = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.chunk, BytesMut::with_capacity(CHUNK));
        self.chunks.blocking_send(full.freeze()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Unpacks what the stream brings, and says what became of it.
pub async fn write<S>(guest: &Guest, request: WriteArchive, stream: &mut S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let tally = Arc::new(Tally::default());
    let unpacked = receive(guest, request, stream, &tally).await;
    let (failure, problems) = match unpacked {
        Ok(problems) => (None, problems),
        Err(failure) => (Some(failure), Problems::default()),
    };
    let reply = ArchiveReply {
        failure,
        files: tally.files(),
        bytes: tally.bytes(),
        problems: problems.sentences,
        problem_count: problems.count,
    };
    super::send_last(stream, &reply).await;
}

async fn receive<S>(
    guest: &Guest,
    request: WriteArchive,
    stream: &mut S,
    tally: &Arc<Tally>,
) -> Result<Problems, Failure>
where
    S: AsyncRead + Unpin,
{
    let (owner, tally) = (guest.owner, Arc::clone(tally));
    let turn = turn(guest).await.map_err(|error| error.failure())?;
    let opening = blocking(move || directory(request.directory));
    let into = opening.await.map_err(|error| error.failure())?;
    let (chunks, arriving) = mpsc::channel(AHEAD);
    let unpacking = tokio::task::spawn_blocking(move || {
        let problems = unpack(into, owner, ChunkReader { arriving, chunk: Bytes::new() }, &tally);
        drop(turn);
        problems
    });
    forward(stream, chunks).await;
    match unpacking.await {
        Ok(outcome) => outcome.map_err(|error| failure(&error)),
        Err(error) => Err(FileError::Thread(error).failure()),
    }
}

/// Passes on what the stream brings, until that or the thread ends.
async fn forward<S>(stream: &mut S, chunks: mpsc::Sender<io::Result<Bytes>>)
where
    S: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let chunk = match stream.read_buf(&mut buffer).await {
            Ok(0) => return,
            Ok(_) => Ok(buffer.split().freeze()),
            Err(error) => Err(error),
        };
        let broken = chunk.is_err();
        if chunks.send(chunk).await.is_err() || broken {
            return;
        }
    }
}

fn directory(path: String) -> Result<OwnedFd, FileError> {
    let absolute = absolute(path.clone())?;
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK)
        .open(&absolute);
    match opened {
        Ok(directory) => Ok(directory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(FileError::NotDirectory { path })
        }
        Err(error) => Err(FileError::io("open", absolute)(error)),
    }
}

fn unpack(
    into: OwnedFd,
    owner: (u32, u32),
    archive: ChunkReader,
    tally: &Tally,
) -> Result<Problems, UnpackError> {
    let failed = |source: nix::Error| {
        let path = PathBuf::from("the archive's files to the disk");
        UnpackError::Disk { path, source: source.into() }
    };
    let disk = into.try_clone().map_err(UnpackError::Archive)?;
    let unpack = Unpack { into, renamed: None, owner: Some(owner), links: Links::Any };
    let problems = unpack.run(archive, tally)?;
    // What is answered for survives a power cut.
    nix::unistd::syncfs(disk).map_err(failed)?;
    Ok(problems)
}

fn failure(error: &UnpackError) -> Failure {
    let kind = match error {
        UnpackError::Archive(_) => ErrorKind::Other,
        UnpackError::Format(_) | UnpackError::Foreign(_) => ErrorKind::Invalid,
        UnpackError::Disk { source, .. } => kind_of(source),
    };
    Failure { kind: kind.into(), message: Chain(error).to_string() }
}

/// What the task passes on, to be read.
struct ChunkReader {
    arriving: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.arriving.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let n = into.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut into[..n]);
        Ok(n)
    }
}
