//! Stopping a VMM at the moment it opens its disk.
//!
//! Firecracker loads a snapshot in one go: it maps the memory it is given, then makes the devices, the
//! disk first, and at last gives the machine a new generation id and listens to its network. What a
//! snapshot has over its template must be in place before the first device looks at it, and nothing
//! must come in before that. So the kernel is asked to hold whoever opens the disk (fanotify's
//! permission events) until we have put the memory in. If we die meanwhile, it lets go.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use bhatti_engine::EngineError;
use bhatti_vmm::file_error;
use camino::Utf8Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The kernel lets a user have 128 of these at once, where nobody has set another number. Who wants one
/// more waits: each is held for as long as memory is put in.
static PLACES: Semaphore = Semaphore::const_new(64);

/// A wish to be asked about every opening of one file.
#[derive(Debug)]
pub(crate) struct Hold {
    group: AsyncFd<OwnedFd>,
    /// Given back after the group is closed.
    _place: Option<SemaphorePermit<'static>>,
}

/// Somebody who is being held. Dropping it lets him go on.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    hold: &'a Hold,
    /// The kernel's name for the question; also a descriptor of the file.
    file: OwnedFd,
}

/// Finds out whether this kernel can hold anybody, on some file of ours that is always there.
pub(crate) fn rehearse(path: &Utf8Path) -> Result<(), EngineError> {
    let file = File::open(path).map_err(file_error("open", path))?;
    match Hold::now(&file) {
        Ok(_) => Ok(()),
        Err(source) => Err(EngineError::Confine {
            what: "cannot ask this kernel to hold who opens a file (fanotify permission events), \
                   which waking a machine needs"
                .to_owned(),
            source,
        }),
    }
}

impl Hold {
    /// Takes effect when it is returned, also for ourselves: nobody here may open that file any more.
    pub(crate) async fn on(file: &File) -> io::Result<Self> {
        let place = PLACES.acquire().await.map_err(io::Error::other)?;
        Ok(Self { _place: Some(place), ..Self::now(file)? })
    }

    fn now(file: &File) -> io::Result<Self> {
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        let files = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: a system call on integers.
        let fd = unsafe { libc::fanotify_init(flags, files.unsigned_abs()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
        let group = unsafe { OwnedFd::from_raw_fd(fd) };
        let path = std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        // SAFETY: the path ends with a zero byte and outlives the call.
        let marked = unsafe {
            let (add, mask) = (libc::FAN_MARK_ADD, libc::FAN_OPEN_PERM);
            libc::fanotify_mark(group.as_raw_fd(), add, mask, libc::AT_FDCWD, path.as_ptr())
        };
        if marked < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped, and `AsyncFd`
        // deregisters it before that.
        let group = unsafe { AsyncFd::register_with_interest(group, Interest::READABLE) }?;
        Ok(Self { group, _place: None })
    }

    /// Waits until that process opens the file; everybody else may do so. Cancel-safe.
    pub(crate) async fn held(&self, pid: i32) -> io::Result<Held<'_>> {
        loop {
            let mut ready = self.group.readable().await?;
            match ready.try_io(|group| read_event(group.get_ref())) {
                Ok(event) => {
                    let (file, by) = event?;
                    let held = Held { hold: self, file };
                    if by == pid {
                        return Ok(held);
                    }
                }
                Err(_would_block) => {}
            }
        }
    }
}

/// One question: a descriptor of the file, and who opens it.
fn read_event(group: &OwnedFd) -> io::Result<(OwnedFd, i32)> {
    const SIZE: usize = size_of::<libc::fanotify_event_metadata>();
    // SAFETY: all zero is a valid value of this plain structure.
    let mut event: libc::fanotify_event_metadata = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is valid for writing that many bytes for the time of the call. With room for
    // one event the kernel gives one.
    let read = unsafe { libc::read(group.as_raw_fd(), (&raw mut event).cast(), SIZE) };
    if read < 0 {
        return Err(io::Error::last_os_error());
    }
    if read.unsigned_abs() != SIZE || event.vers != libc::FANOTIFY_METADATA_VERSION || event.fd < 0
    {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
    Ok((unsafe { OwnedFd::from_raw_fd(event.fd) }, event.pid))
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let answer =
            libc::fanotify_response { fd: self.file.as_raw_fd(), response: libc::FAN_ALLOW };
        let size = size_of::<libc::fanotify_response>();
        let group = self.hold.group.get_ref().as_raw_fd();
        // SAFETY: pointer and length are those of one valid structure. If it fails, closing the group
        // lets everybody go.
        unsafe { libc::write(group, (&raw const answer).cast(), size) };
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Needs root.
    #[tokio::test]
    async fn more_than_the_kernel_allows_at_once_wait_for_each_other() {
        let holds = (0..300).map(|_| {
            tokio::spawn(async {
                let scratch = tempfile::tempfile().unwrap();
                let hold = Hold::on(&scratch).await?;
                tokio::task::yield_now().await;
                drop(hold);
                Ok::<_, io::Error>(())
            })
        });
        for hold in holds.collect::<Vec<_>>() {
            hold.await.unwrap().unwrap();
        }
    }

    /// Needs root.
    #[tokio::test]
    async fn who_opens_the_file_waits_until_he_is_let_go() {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let hold = Hold::on(scratch.as_file()).await.unwrap();
        let cat = |path: &std::path::Path| {
            let mut cat = Command::new("cat");
            cat.arg(path).stdout(Stdio::null()).spawn().unwrap()
        };
        let mut child = cat(scratch.path());
        let pid = i32::try_from(child.id()).unwrap();
        let held = timeout(Duration::from_secs(20), hold.held(pid)).await.unwrap().unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it is held");
        drop(held);
        assert!(child.wait().unwrap().success());

        // Somebody else is not, as soon as we look.
        let mut other = cat(scratch.path());
        assert!(timeout(Duration::from_secs(2), hold.held(pid)).await.is_err());
        assert!(other.wait().unwrap().success());

        // Nor is anybody once nobody would answer.
        let mut last = cat(scratch.path());
        drop(hold);
        assert!(last.wait().unwrap().success());
    }
}
