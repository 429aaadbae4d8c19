//! Commands that outlive their stream.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bhatti_wire::message::{ErrorKind, Failure, Started};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::sync::OwnedSemaphorePermit;

use super::spawn_failure;
use crate::guest::Guest;
use crate::process::{Program, Streams, spawn};
use crate::random;

/// Where output goes when nobody says where.
const SESSIONS: &str = "/var/log/lohar/sessions";

/// How many names are tried for a new file there. The later ones are long: nobody tidies up, and
/// one day the short ones are all taken.
const NAME_TRIES: usize = 16;

/// There is no file for the output.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    #[error("output file {path:?} is not an absolute path")]
    Relative { path: String },
    #[error("output file {} is not a file", .path.display())]
    NotAFile { path: PathBuf },
    #[error("failed to open output file {}", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl OutputError {
    fn failure(&self) -> Failure {
        let kind = match self {
            Self::Relative { .. } | Self::NotAFile { .. } => ErrorKind::Invalid,
            Self::Open { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::NoSpace
            }
            Self::Open { .. } => ErrorKind::Other,
        };
        crate::serve::failure(kind, self)
    }
}

/// Starts `program` with its output in a file. It holds `permit` until it ends.
pub(super) fn detach(
    guest: &Arc<Guest>,
    program: &Program,
    output_file: &str,
    permit: OwnedSemaphorePermit,
) -> Result<Started, Failure> {
    let (path, file) = match output_file {
        "" => open_new(Path::new(SESSIONS)),
        path => open_output(path),
    }
    .map_err(|error| error.failure())?;
    let spawned = spawn(&guest.reaper, program, Streams::File(file))
        .map_err(|error| spawn_failure(&error))?;
    let pid = spawned.pid.unsigned_abs();
    let output_file = path.to_string_lossy().into_owned();
    let listed = guest.sessions.detached(pid, &program.argv, &output_file);
    // Ends with the command.
    drop(tokio::spawn(async move {
        spawned.exit.await.ok();
        drop((permit, listed));
    }));
    Ok(Started { pid, output_file })
}

fn open_output(path: &str) -> Result<(PathBuf, File), OutputError> {
    let target = PathBuf::from(path);
    if !target.is_absolute() {
        return Err(OutputError::Relative { path: path.to_owned() });
    }
    let failed = |source| OutputError::Open { path: target.clone(), source };
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        // Opening a FIFO that nobody reads would stop PID 1.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&target)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        return Err(OutputError::NotAFile { path: target });
    }
    // For us only: the command expects an ordinary stdout.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| failed(errno.into()))?;
    Ok((target, file))
}

/// A new `sess-<4 hex>.log` in `directory`; once those are rare, `sess-<16 hex>.log`.
fn open_new(directory: &Path) -> Result<(PathBuf, File), OutputError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OutputError::Open { path, source }
    };
    std::fs::create_dir_all(directory).map_err(failed(directory))?;
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for attempt in 0..NAME_TRIES {
        let random = match attempt {
            0..8 => random::hex::<2>(),
            _ => random::hex::<8>(),
        };
        let random = random.map_err(failed(directory))?;
        let path = directory.join(format!("sess-{random}.log"));
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(failed(&path)(error)),
        }
    }
    Err(failed(directory)(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_named_file_is_made_with_its_parents_and_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.log");
        open_output(path.to_str().unwrap()).unwrap();
        std::fs::write(&path, "old").unwrap();
        open_output(path.to_str().unwrap()).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 0);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo.to_str().unwrap(), dir.path().to_str().unwrap(), "relative.log"] {
            assert!(open_output(path).is_err(), "{path}");
        }
        assert!(open_output("/dev/null").is_ok());
    }

    #[test]
    fn chosen_names_are_new() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _file) = open_new(&dir.path().join("sessions")).unwrap();
        let (second, _file) = open_new(&dir.path().join("sessions")).unwrap();
        assert_ne!(first, second);
        let name = first.file_name().unwrap().to_str().unwrap();
        assert!(name.len() == "sess-0000.log".len() && name.starts_with("sess-"), "{name}");
        assert_eq!(first.metadata().unwrap().mode() & 0o044, 0o044);
    }

    #[test]
    fn there_is_a_name_when_all_short_ones_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("sess-0000.log");
        std::fs::write(&first, "").unwrap();
        for n in 1..=u16::MAX {
            // Names of one file: a thousandth of what as many files cost.
            let name = dir.path().join(format!("sess-{n:04x}.log"));
            if std::fs::hard_link(&first, &name).is_err() {
                std::fs::write(&name, "").unwrap();
            }
        }
        let (path, _file) = open_new(dir.path()).unwrap();
        assert_eq!(path.file_name().unwrap().len(), "sess-0123456789abcdef.log".len());
    }
}
