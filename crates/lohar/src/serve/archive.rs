//! Whole trees of files, as tar: out of the machine and into it.
//!
//! ```text
//!   stream ─▶ task ─▶ channel ─▶ thread: unpack ─▶ disk
//!   stream ◀─ task ◀─ channel ◀─ thread: pack  ◀─ disk
//! ```
//!
//! A thread an archive, because reading and writing tar blocks. When the task goes the channel
//! goes, and with it the thread.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bhatti_link::write_message;
use bhatti_tree::pipe::{self, CHUNK, Piece, PieceReader};
use bhatti_tree::{Links, Problems, Source, Tally, Unpack, UnpackError, root_name};
use bhatti_wire::message::{
    ArchiveReply, ErrorKind, Failure, FileReply, ReadArchive, WriteArchive,
};
use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::file::{FileError, Turn, absolute, blocking, followed, info, kind_of};
use crate::console::Chain;
use crate::guest::Guest;

/// Most archives at one time; more wait their turn.
pub const MAX_ARCHIVES: usize = 8;

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
            let source = followed(&path, Source::open).map_err(FileError::io("open", &path))?;
            Ok((source, name(request.name, &path)?, turn))
        })
        .await
    };
    match opening.await {
        Ok((source, name, turn)) => {
            let info = Some(info(String::new(), source.metadata()));
            let reply = FileReply { info, ..FileReply::default() };
            if write_message(&mut *stream, &reply).await.is_ok()
                && send(source, name, turn, stream).await
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

/// What the path is called in the archive: what the host says, or its own name.
fn name(wanted: String, path: &Path) -> Result<OsString, FileError> {
    match wanted.as_str() {
        "" => Ok(root_name(path).to_owned()),
        ".." => Err(FileError::NoName { path: wanted }),
        name if name.contains(['/', '\0']) => Err(FileError::NoName { path: wanted }),
        _ => Ok(wanted.into()),
    }
}

/// Whether all of it was sent.
async fn send<S>(source: Source, name: OsString, turn: Turn, stream: &mut S) -> bool
where
    S: AsyncWrite + Unpin,
{
    let (mut out, mut pieces) = pipe::from_thread();
    // Ends with the archive or with its listener; the outcome comes through the pipe.
    drop(tokio::task::spawn_blocking(move || {
        let packed = source.pack(&name, &mut out, &Tally::default());
        out.finish(packed);
        drop(turn);
    }));
    while let Some(piece) = pieces.recv().await {
        let Ok(piece) = piece else { return false };
        if stream.write_all(&piece).await.is_err() {
            return false;
        }
    }
    true
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
    let (pieces, archive) = pipe::to_thread();
    let unpacking = tokio::task::spawn_blocking(move || {
        let problems = unpack(into, owner, archive, &tally);
        drop(turn);
        problems
    });
    forward(stream, pieces).await;
    match unpacking.await {
        Ok(outcome) => outcome.map_err(|error| failure(&error)),
        Err(error) => Err(FileError::Thread(error).failure()),
    }
}

/// Passes on what the stream brings, until that or the thread ends. In large pieces: handing one to
/// a thread costs as much as many kilobytes of it.
async fn forward<S>(stream: &mut S, pieces: mpsc::Sender<Piece>)
where
    S: AsyncRead + Unpin,
{
    loop {
        let mut piece = BytesMut::with_capacity(CHUNK);
        let end = loop {
            let room = CHUNK - piece.len();
            match stream.read_buf(&mut (&mut piece).limit(room)).await {
                Ok(0) => break Some(Ok(())),
                Ok(_) if piece.len() == CHUNK => break None,
                Ok(_) => {}
                Err(error) => break Some(Err(error)),
            }
        };
        // An empty one says nothing: the channel's end is the end.
        if !piece.is_empty() && pieces.send(Ok(piece.freeze())).await.is_err() {
            return;
        }
        match end {
            None => {}
            Some(Ok(())) => return,
            // If the thread is gone it needs to know nothing.
            Some(Err(error)) => return drop(pieces.send(Err(error)).await),
        }
    }
}

fn directory(path: String) -> Result<OwnedFd, FileError> {
    let absolute = absolute(path.clone())?;
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK);
    let opened = followed(&absolute, |path| options.open(path));
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
    archive: PieceReader,
    tally: &Tally,
) -> Result<Problems, UnpackError> {
    let failed = |source: nix::Error| {
        let path = PathBuf::from("the archive's files to the disk");
        UnpackError::Disk { path, source: source.into() }
    };
    let disk = into.try_clone().map_err(UnpackError::Archive)?;
    let unpack = Unpack { into, root: None, owner: Some(owner), links: Links::Any };
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
