//! Files of the guest: read, written, looked at, listed.

use std::time::Duration;

use bhatti_link::{MessageReader, read_message};
use bhatti_wire::message::{
    DirectoryPart, FileReply, ListDirectory, MAX_ENTRIES, MAX_MESSAGE, Operation, ReadFile, Reply,
    StatFile, WriteFile,
};
use bytes::Bytes;

pub use bhatti_wire::message::{ByteRange, FileKind, FilePart, LineRange};

use crate::guest::{answer, within};
use crate::transfer::{Download, Upload};
use crate::{Guest, GuestError};

/// How long a guest may take to find a file, or to wait for its turn to look.
pub(crate) const LOOK: Duration = Duration::from_secs(60);

/// How long it may take to put a file on its disk: this, and a second for every so many bytes.
const SYNC: Duration = Duration::from_secs(60);
const SYNC_PACE: u64 = 1 << 20;

/// The longest name of a file that is believed, in bytes: 255 of which each became U+FFFD.
const MAX_FILE_NAME: usize = 3 * 255;

/// What a guest says of one of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// In a list; otherwise empty. Any characters but `/` and NUL: not fit for a terminal.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Permission bits, set-id and sticky included.
    pub mode: u32,
    pub kind: FileKind,
    /// Last change of the content, in seconds since the Unix epoch.
    pub mtime: i64,
}

impl From<bhatti_wire::message::FileInfo> for FileInfo {
    fn from(info: bhatti_wire::message::FileInfo) -> Self {
        let kind = info.kind();
        let mut name = info.name;
        name.truncate(name.floor_char_boundary(MAX_FILE_NAME));
        Self { name, size: info.size, mode: info.mode & 0o7777, kind, mtime: info.mtime }
    }
}

/// A file of the guest that is being read.
#[derive(Debug)]
pub struct FileContent {
    /// What it was when it was opened.
    pub info: FileInfo,
    /// Where in the file the content begins. Not for lines.
    pub offset: u64,
    /// How many bytes there are, if that is known.
    pub length: Option<u64>,
    /// The bytes.
    pub content: Download,
}

/// The entries of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// At most [`MAX_ENTRIES`].
    pub entries: Vec<FileInfo>,
    /// How many it has.
    pub total: u64,
}

/// A file that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Absolute path in the guest.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// `mode` is only for a file that is not there yet.
    pub keep_mode: bool,
    /// How long it will be, in bytes.
    pub size: u64,
}

impl Guest {
    /// Opens a regular file, or a part of one, to read it.
    pub async fn read_file(
        &self,
        path: &str,
        part: Option<FilePart>,
    ) -> Result<FileContent, GuestError> {
        self.open_content(Operation::ReadFile(ReadFile { path: path.to_owned(), part })).await
    }

    /// Opens what answers with a [`FileReply`] and bytes.
    pub(crate) async fn open_content(
        &self,
        operation: Operation,
    ) -> Result<FileContent, GuestError> {
        within(LOOK, "open the file", async {
            let stream = self.request(operation).await?;
            let reply = read_message(&stream).await.map_err(GuestError::reading)?;
            let reply: FileReply = reply.ok_or(GuestError::LinkLost(None))?;
            let (offset, length) = (reply.offset, reply.length);
            let info = looked(reply)?;
            Ok(FileContent { info, offset, length, content: Download::new(stream, length) })
        })
        .await
    }

    /// Says what a path leads to.
    pub async fn stat_file(&self, path: &str) -> Result<FileInfo, GuestError> {
        within(LOOK, "look at the file", async {
            let operation = Operation::StatFile(StatFile { path: path.to_owned() });
            let stream = self.request(operation).await?;
            looked(answer(&stream).await?)
        })
        .await
    }

    /// Lists a directory.
    pub async fn list_directory(&self, path: &str) -> Result<Directory, GuestError> {
        within(LOOK, "list the directory", async {
            let operation = Operation::ListDirectory(ListDirectory { path: path.to_owned() });
            let stream = self.request(operation).await?;
            let mut parts = MessageReader::new(&stream, MAX_MESSAGE);
            let mut entries = Vec::new();
            loop {
                let part = parts.next().await.map_err(GuestError::reading)?;
                let part: DirectoryPart = part.ok_or(GuestError::LinkLost(None))?;
                if let Some(failure) = part.failure {
                    return Err(failure.into());
                }
                if entries.len() + part.entries.len() > MAX_ENTRIES {
                    return Err(GuestError::Protocol("too many entries of a directory"));
                }
                entries.extend(part.entries.into_iter().map(FileInfo::from));
                if let Some(total) = part.total {
                    return Ok(Directory { entries, total });
                }
            }
        })
        .await
    }

    /// Begins to write a file. It gets its name when the returned upload is finished, or never.
    pub async fn begin_file(&self, file: NewFile) -> Result<FileUpload, GuestError> {
        let NewFile { path, mode, keep_mode, size } = file;
        within(LOOK, "take the file", async {
            let operation = Operation::WriteFile(WriteFile { path, mode, size, keep_mode });
            let upload = Upload::new(self.request(operation).await?);
            Ok(FileUpload { upload, size })
        })
        .await
    }

    /// Writes one file, atomically: if this fails or is dropped the old content is still there,
    /// or the new one, never a mixture.
    pub async fn write_file(
        &self,
        path: &str,
        mode: u32,
        content: Bytes,
    ) -> Result<(), GuestError> {
        let size = content.len() as u64;
        let file = NewFile { path: path.to_owned(), mode, keep_mode: false, size };
        let mut upload = self.begin_file(file).await?;
        upload.write(&content).await?;
        upload.finish().await
    }
}

fn looked(reply: FileReply) -> Result<FileInfo, GuestError> {
    match (reply.failure, reply.info) {
        (Some(failure), _) => Err(failure.into()),
        (None, Some(info)) => Ok(info.into()),
        (None, None) => Err(GuestError::Protocol("a file about which nothing is said")),
    }
}

/// A file on its way into the guest. Dropped before it is finished it leaves nothing.
#[derive(Debug)]
pub struct FileUpload {
    upload: Upload,
    size: u64,
}

impl FileUpload {
    /// Sends the next bytes, waiting while the guest does not take them. Of no use after an error.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), GuestError> {
        self.upload.write::<Reply>(bytes).await
    }

    /// Returns when the file has its name and is on the guest's disk.
    pub async fn finish(self) -> Result<(), GuestError> {
        let patience = SYNC + Duration::from_secs(self.size / SYNC_PACE);
        self.upload.finish::<Reply>(patience).await.map(drop)
    }
}
