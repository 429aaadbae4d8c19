//! Small things every engine needs: work that is not left half done, errors about files, a file
//! without a name.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use bhatti_engine::{EngineError, Vm};
use camino::{Utf8Path, Utf8PathBuf};

/// For `map_err`, on an operation on `path`.
pub fn file_error(action: &'static str, path: &Utf8Path) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::File { action, path: path.to_owned(), source }
}

/// Runs what blocks for longer than a moment away from the event loop.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(EngineError::Gone), // the runtime is going down
        },
    }
}

/// Starts a machine in a task of its own, which ends what it started if nobody waits any more.
pub async fn start_to_its_end<M: Vm + 'static>(
    start: impl Future<Output = Result<Arc<M>, EngineError>> + Send + 'static,
) -> Result<Arc<dyn Vm>, EngineError> {
    let (reply, started) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        if let Err(Ok(unwanted)) = reply.send(start.await) {
            let id = unwanted.record().id;
            tracing::info!(%id, "nobody waits for this machine any more, ending it");
            if let Err(error) = unwanted.kill().await {
                tracing::error!(%id, %error, "cannot end it");
            }
        }
    });
    match started.await {
        Ok(result) => result.map(|vm| vm as Arc<dyn Vm>),
        Err(_) => Err(EngineError::Gone), // the runtime is going down
    }
}

/// Whether this is a file every machine may read. It is shown to the VMM under a name of its own
/// ([`crate::jail`]), which skips the directories above but not the permission of the file.
pub fn check_shared(path: &Utf8Path) -> Result<(), EngineError> {
    let metadata = std::fs::metadata(path).map_err(file_error("open", path))?;
    let refuse = |kind, why: &str| file_error("use", path)(io::Error::new(kind, why));
    if !metadata.is_file() {
        return Err(refuse(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.mode() & 0o004 == 0 {
        let why = "it is not readable by everyone, so not by the VMM's user";
        return Err(refuse(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// A file in memory with this content, read from its beginning. A VMM gets what was checked, and
/// not a file that could be another one by now.
pub fn nameless(content: &[u8]) -> Result<File, EngineError> {
    let make = || {
        // SAFETY: the name is a constant that ends with a zero byte.
        let fd = unsafe { libc::memfd_create(c"devices".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
        let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.write_all(content)?;
        file.rewind()?;
        Ok(file)
    };
    make().map_err(|source| EngineError::File {
        action: "copy into memory",
        path: "state".into(),
        source,
    })
}

/// The program of that name, if it is on `PATH`.
pub fn on_path(name: &str) -> Option<Utf8PathBuf> {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    // An empty or relative entry would let the working directory choose what root runs.
    let absolute = path.split(':').filter(|dir| dir.starts_with('/'));
    absolute.map(|dir| Utf8Path::new(dir).join(name)).find(|file| file.is_file())
}
