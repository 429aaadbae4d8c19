//! Why the data directory could not be used, in the words an operator needs.

use std::io::ErrorKind;

use camino::{Utf8Path, Utf8PathBuf};

/// The data directory cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("failed to {action} {path}")]
    File {
        action: &'static str,
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no space left on the file system of {path}")]
    Full {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the file system allows no further link like {path} to its file")]
    TooManyLinks {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not on the file system of the file it is to be a link to")]
    OtherFileSystem {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a plain file")]
    NotAFile { path: Utf8PathBuf },
    #[error(
        "data directory {path} belongs to uid {uid}, not to root: chown it, or set another data_dir"
    )]
    Foreign { path: Utf8PathBuf, uid: u32 },
    #[error("data directory {path} is not a directory")]
    NotADirectory { path: Utf8PathBuf },
    #[error("another bhatti daemon uses {path} already")]
    Locked { path: Utf8PathBuf },
}

/// What an operation on `path` failed with.
pub(crate) fn file(
    action: &'static str,
    path: &Utf8Path,
) -> impl FnOnce(std::io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => DiskError::Full { path, source },
        ErrorKind::TooManyLinks => DiskError::TooManyLinks { path, source },
        ErrorKind::CrossesDevices => DiskError::OtherFileSystem { path, source },
        _ => DiskError::File { action, path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn each_error_is_one_sentence_and_its_cause_another() {
        for (errno, text) in [
            (28, "no space left on the file system of /d/x"),
            (122, "no space left on the file system of /d/x"),
            (31, "the file system allows no further link like /d/x to its file"),
            (18, "/d/x is not on the file system of the file it is to be a link to"),
            (13, "failed to make a link at /d/x"),
        ] {
            let cause = std::io::Error::from_raw_os_error(errno);
            let cause_text = cause.to_string();
            let error = file("make a link at", Utf8Path::new("/d/x"))(cause);
            assert_eq!(error.to_string(), text);
            assert_eq!(error.source().unwrap().to_string(), cause_text);
        }
    }
}
