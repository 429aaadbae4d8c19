//! Namespaces with a name: made as `ip netns` makes them, entered, looked at.
//!
//! Promises:
//! - A thread that has entered a namespace never runs anything else: it is made for one call and
//!   ends with it ([`in_namespace`]).
//! - Who dies while making one leaves nothing, or a file that is no namespace ([`Seen::Stale`]), or a
//!   whole one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};

use crate::NetError;
use crate::plan::Seen;

/// Where `ip netns` keeps named namespaces.
const NETNS: &str = "/run/netns";
/// The namespace of the thread that looks.
const THIS: &str = "/proc/thread-self/ns/net";
/// `f_type` of a namespace file, from `linux/magic.h`.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// A namespace without a name. It goes with this.
pub(crate) struct Prepared(File);

/// Makes a namespace without a name, for later, and does `work` inside it.
pub(super) async fn prepare(
    work: impl FnOnce() -> Result<(), NetError> + Send + 'static,
) -> Result<Prepared, NetError> {
    on_a_thread(move || {
        let failed = |source| NetError::File { action: "prepare", path: THIS.into(), source };
        let file = isolate().and_then(|()| File::open(THIS)).map_err(failed)?;
        work()?;
        Ok(Prepared(file))
    })
    .await
}

/// Makes `namespace`, which is not there, or gives that name to what is prepared.
pub(super) async fn make(namespace: &str, prepared: Option<Prepared>) -> Result<(), NetError> {
    let path = path(namespace);
    on_a_thread(move || {
        let failed = |action| {
            let path = path.clone();
            move |source| NetError::File { action, path, source }
        };
        let this = match &prepared {
            Some(Prepared(file)) => format!("/proc/thread-self/fd/{}", file.as_raw_fd()),
            None => {
                isolate().map_err(failed("make a namespace for"))?;
                THIS.to_owned()
            }
        };
        share_directory().map_err(|source| NetError::File {
            action: "share",
            path: NETNS.into(),
            source,
        })?;
        // Something to mount it on; nobody reads it.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o0).open(&path);
        drop(file.map_err(failed("create"))?);
        let none = None::<&str>;
        if let Err(errno) = mount(Some(this.as_str()), &path, none, MsFlags::MS_BIND, none) {
            std::fs::remove_file(&path).map_err(failed("remove"))?;
            return Err(failed("mount a namespace on")(errno.into()));
        }
        Ok(())
    })
    .await
}

/// Puts the thread into a namespace of its own.
fn isolate() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWNET)?)
}

/// Sees to it that what is mounted on the directory of namespaces, and taken away again, is so in other
/// mount namespaces too: one that keeps a namespace mounted keeps it alive.
fn share_directory() -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(NETNS) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // `ip netns` holds this too: two at once would mount it over itself twice.
    let directory = File::open(NETNS)?;
    directory.lock()?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, NETNS, None::<&str>, flags, None::<&str>)
    };
    match share() {
        // Not a mount point yet.
        Err(Errno::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NETNS), NETNS, None::<&str>, flags, None::<&str>)?;
            Ok(share()?)
        }
        shared => Ok(shared?),
    }
}

/// Runs `work` on a thread of its own inside `namespace`.
pub(crate) async fn in_namespace<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    let namespace = namespace.to_owned();
    on_a_thread(move || enter(namespace).and_then(|()| work())).await
}

/// Runs `work` on a thread that ends with it.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    // The asker may be gone; dropping the result undoes what needs undoing (a TAP).
    let run = move || drop(reply.send(work()));
    std::thread::Builder::new()
        .name("bhatti-netns".to_owned())
        .stack_size(128 * 1024)
        .spawn(run)
        .map_err(|source| NetError::Run { program: "a thread", source })?;
    answer.await.map_err(|_| NetError::TaskDied)?
}

fn enter(namespace: String) -> Result<(), NetError> {
    let entered = File::open(path(&namespace))
        .and_then(|file| setns(file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
    entered.map_err(|source| NetError::Namespace { namespace, source })
}

/// The file of a namespace, for the kernel.
pub(super) fn open(namespace: &str) -> io::Result<File> {
    File::open(path(namespace))
}

fn path(namespace: &str) -> PathBuf {
    Path::new(NETNS).join(namespace)
}

/// What is at the place of a namespace.
pub(super) fn see(namespace: &str) -> Result<Seen, NetError> {
    let path = path(namespace);
    match statfs(&path) {
        Ok(stat) if stat.filesystem_type() == NSFS_MAGIC => Ok(Seen::Present),
        Ok(_) => Ok(Seen::Stale),
        Err(Errno::ENOENT) => Ok(Seen::Absent),
        Err(errno) => Err(NetError::File { action: "inspect", path, source: errno.into() }),
    }
}

/// Removes what is at the place of a namespace and is none.
pub(super) fn remove_stale(namespace: &str) -> Result<(), NetError> {
    let path = path(namespace);
    std::fs::remove_file(&path).map_err(|source| NetError::File { action: "remove", path, source })
}

/// The names of all namespaces, ours or not.
pub(super) fn names() -> Result<Vec<String>, NetError> {
    let file = |source| NetError::File { action: "read", path: NETNS.into(), source };
    match std::fs::read_dir(NETNS) {
        Ok(entries) => entries
            .map(|entry| Ok(entry.map_err(file)?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(file(error)),
    }
}
