//! Out of a sandbox to here. What comes is a stranger's: see [`bhatti_tree::Unpack`].

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bhatti_client::{ByteStream, ClientError};
use bhatti_tree::pipe::Piece;
use bhatti_tree::{Links, Tally, Unpack, UnpackError, pipe};
use tokio::sync::mpsc;

use super::place::{Kind, Place, place};
use super::upload::look;
use super::{Copied, There, progress, unless_interrupted};
use crate::context::Context;
use crate::failure::Failure;

pub(super) fn run(
    context: &Context,
    from: &There,
    to: &Path,
    links: Links,
) -> Result<Copied, Failure> {
    let here = kind(to)?;
    let client = context.client()?;
    context.wait(unless_interrupted(async {
        let there = look(client, from).await?;
        let goes = match there {
            // The request itself says best what is missing: the file or the sandbox.
            Kind::Nothing => None,
            there => Some(place(Path::new(&from.path), there, to, here).map_err(Failure::text)?),
        };
        let name = goes.as_ref().map_or(".".into(), |goes| goes.name.to_string_lossy());
        let about =
            |error| Failure::about(&from.sandbox, super::super::file::named(&from.path, error));
        let archive = client.read_archive(&from.sandbox, &from.path, &name).await.map_err(about)?;
        let goes = goes.ok_or_else(|| Failure::text("it came into being only just now"))?;
        let unpack = prepare(&goes, links)?;
        let tally = Arc::new(Tally::default());
        let (pieces, reader) = pipe::to_thread();
        let unpacking = {
            let tally = tally.clone();
            tokio::task::spawn_blocking(move || unpack.run(reader, &tally))
        };
        let work = async {
            let received = receive(archive, pieces).await;
            (received, unpacking.await)
        };
        let (received, unpacked) = progress::shown(context, &tally, work).await;
        let problems = match (received, unpacked?) {
            (Ok(()), Ok(problems)) => problems,
            // The end of the transfer is why the archive has none.
            (Err(error), Ok(_) | Err(UnpackError::Archive(_))) => return Err(about(error)),
            (_, Err(error)) => return Err(error.into()),
        };
        Ok(Copied::new(tally.files(), tally.bytes(), problems))
    }))?
}

fn kind(path: &Path) -> Result<Kind, Failure> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(Kind::Directory),
        Ok(_) => Ok(Kind::File),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kind::Nothing),
        Err(error) => Err(Failure::caused(format!("look at {}", path.display()), &error)),
    }
}

fn prepare(goes: &Place, links: Links) -> Result<Unpack, Failure> {
    let failed = |error| Failure::caused(format!("open {}", goes.directory.display()), &error);
    if goes.make {
        std::fs::create_dir(&goes.directory).map_err(failed)?;
    }
    let into = File::open(&goes.directory).map_err(failed)?.into();
    let root = (goes.name != ".").then(|| goes.name.clone());
    Ok(Unpack { into, root, owner: None, links })
}

/// Passes on what comes, until it has all come, or nobody takes it any more.
async fn receive(
    mut archive: ByteStream<'_>,
    pieces: mpsc::Sender<Piece>,
) -> Result<(), ClientError> {
    loop {
        match archive.next().await {
            Ok(Some(piece)) => {
                if pieces.send(Ok(piece)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                let cause = io::Error::other("the transfer broke off");
                drop(pieces.send(Err(cause)).await);
                return Err(error);
            }
        }
    }
}
