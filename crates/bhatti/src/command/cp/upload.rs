//! From here into a sandbox.

use std::path::Path;
use std::sync::Arc;

use bhatti_client::{Client, ClientError, StatusCode};
use bhatti_tree::{Problems, Source, Tally, pipe};

use super::place::{Kind, place};
use super::{Copied, There, progress, unless_interrupted};
use crate::context::Context;
use crate::failure::Failure;

pub(super) fn run(context: &Context, from: &Path, to: &There) -> Result<Copied, Failure> {
    let source = Source::open(from)
        .map_err(|error| Failure::caused(format!("open {}", from.display()), &error))?;
    let kind = if source.metadata().is_dir() { Kind::Directory } else { Kind::File };
    let client = context.client()?;
    context.wait(unless_interrupted(async {
        let there = look(client, to).await?;
        let goes = place(from, kind, Path::new(&to.path), there).map_err(Failure::text)?;
        let mut directory = goes.directory.as_path();
        let mut name = goes.name;
        if goes.make {
            // A tree of that name, in the directory above.
            name = directory.file_name().unwrap_or_default().to_owned();
            directory = directory.parent().unwrap_or(Path::new("/"));
        }
        let tally = Arc::new(Tally::default());
        let (mut out, pieces) = pipe::from_thread();
        let packing = {
            let tally = tally.clone();
            move || {
                let packed = source.pack(&name, &mut out, &tally);
                out.finish(packed);
            }
        };
        // Ends with the archive, or with its listener.
        drop(tokio::task::spawn_blocking(packing));
        // Made of text, so it is some.
        let directory = directory.to_string_lossy();
        let sending = client.write_archive(&to.sandbox, &directory, pieces);
        let sent = progress::shown(context, &tally, sending).await;
        let sent = sent.map_err(|error| not_sent(to, &directory, error))?;
        let problems = Problems { sentences: sent.problems, count: sent.problem_count };
        Ok(Copied::new(sent.files, sent.bytes, problems))
    }))?
}

/// Where `directory` is missing, the server says only that a file is.
fn not_sent(to: &There, directory: &str, error: ClientError) -> Failure {
    let sandbox = &to.sandbox;
    match error {
        ClientError::Api { status: StatusCode::NOT_FOUND, message, .. }
            if message.starts_with("file not found") =>
        {
            Failure::text(format!(
                "there is no directory {directory} in {sandbox}; make it first: \
                 bhatti exec {sandbox} -- mkdir -p {directory}"
            ))
        }
        error => Failure::about(sandbox, error),
    }
}

/// What is at a path of a sandbox.
pub(super) async fn look(client: &Client, at: &There) -> Result<Kind, Failure> {
    let stat = client.stat_file(&at.sandbox, &at.path).await;
    match stat.map_err(|error| Failure::about(&at.sandbox, error))? {
        None => Ok(Kind::Nothing),
        Some(stat) if stat.is_dir => Ok(Kind::Directory),
        Some(_) => Ok(Kind::File),
    }
}
