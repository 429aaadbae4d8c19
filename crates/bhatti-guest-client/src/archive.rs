//! Whole trees of the guest, as tar.

use std::time::Duration;

use bhatti_wire::message::{ArchiveReply, MAX_PROBLEMS, Operation, ReadArchive, WriteArchive};

use crate::error::{MAX_TEXT, printable};
use crate::file::{FileContent, LOOK};
use crate::guest::within;
use crate::transfer::Upload;
use crate::{Guest, GuestError};

/// How long a guest may take to put on its disk what it was sent.
const SYNC: Duration = Duration::from_secs(600);

/// What a guest made of an archive. All of it is its word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Regular files that were written.
    pub files: u64,
    /// What is in them, in bytes.
    pub bytes: u64,
    /// What was left out, the first few.
    pub problems: Vec<String>,
    /// How much was left out.
    pub problem_count: u64,
}

impl Guest {
    /// Begins to read a file or a tree as an archive. `name`: what it is called in there; empty:
    /// as in the guest. The info is that of the path itself.
    pub async fn read_archive(&self, path: &str, name: &str) -> Result<FileContent, GuestError> {
        let (path, name) = (path.to_owned(), name.to_owned());
        self.open_content(Operation::ReadArchive(ReadArchive { path, name })).await
    }

    /// Begins to unpack an archive beneath a directory that is there.
    pub async fn begin_archive(&self, directory: &str) -> Result<ArchiveUpload, GuestError> {
        within(LOOK, "take the archive", async {
            let directory = directory.to_owned();
            let operation = Operation::WriteArchive(WriteArchive { directory });
            Ok(ArchiveUpload { upload: Upload::new(self.request(operation).await?) })
        })
        .await
    }
}

/// An archive on its way into the guest. What has arrived whole stays, whatever becomes of the
/// rest.
#[derive(Debug)]
pub struct ArchiveUpload {
    upload: Upload,
}

impl ArchiveUpload {
    /// Sends the next bytes, waiting while the guest does not take them. Of no use after an error.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), GuestError> {
        self.upload.write::<ArchiveReply>(bytes).await
    }

    /// Returns when everything is on the guest's disk.
    pub async fn finish(self) -> Result<Unpacked, GuestError> {
        let reply: ArchiveReply = self.upload.finish(SYNC).await?;
        let problems = reply.problems.iter().take(MAX_PROBLEMS);
        Ok(Unpacked {
            files: reply.files,
            bytes: reply.bytes,
            problems: problems.map(|problem| printable(problem, MAX_TEXT)).collect(),
            problem_count: reply.problem_count,
        })
    }
}
