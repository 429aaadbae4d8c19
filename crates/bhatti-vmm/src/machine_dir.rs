//! The directory of one machine: the only place the VMM can write, hence the one place where the
//! daemon, being root, must not trust a name.
//!
//! Everything is reached from one open descriptor of the directory. Files are opened without
//! following links, checked to be what they should be, and read up to a bound. Sockets are
//! reached through `/proc/self/fd`, so that a long path does not meet the 108 bytes a socket
//! address has.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use bhatti_engine::{EngineError, Private};
use bhatti_types::EngineId;
use camino::{Utf8Path, Utf8PathBuf};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// The guest's console, saved by us.
pub const CONSOLE_LOG: &str = "console.log";

/// A machine's directory, held open.
#[derive(Debug)]
pub struct MachineDir {
    path: Utf8PathBuf,
    handle: File,
}

impl MachineDir {
    /// Opens it. The parents are ours, so only the last component could be a link.
    pub fn open(path: &Utf8Path) -> io::Result<Self> {
        let handle = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)?;
        Ok(Self { path: path.to_owned(), handle })
    }

    /// As it was given.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Whose machine lives here.
    pub fn owner(&self) -> io::Result<Private> {
        let metadata = self.handle.metadata()?;
        Ok(Private { uid: metadata.uid(), gid: metadata.gid() })
    }

    /// The directory itself, for a child to work in.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.handle.try_clone()?.into())
    }

    /// An error about one of its files.
    pub fn error(&self, action: &'static str, name: &str, source: io::Error) -> EngineError {
        EngineError::File { action, path: self.path.join(name), source }
    }

    /// A short path of a file in it, valid in this process while `self` lives.
    fn short(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd()))
    }

    /// Makes a stream socket, bound but not listening, that `owner` may use. Takes the place of
    /// whatever bears the name.
    ///
    /// The VMM itself calls `listen`, which makes it, and not us, the peer that
    /// [`Self::connect`] sees.
    pub fn bind(&self, name: &str, owner: Private) -> io::Result<OwnedFd> {
        // SAFETY: no pointers are involved; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // A former VMM may have left one: nobody ran when it ended, or it was swept.
        self.remove(name)?;
        let path = self.short(name);
        let address = nix::sys::socket::UnixAddr::new(&path)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
        std::os::unix::fs::lchown(&path, Some(owner.uid), Some(owner.gid))?;
        Ok(socket)
    }

    /// Makes a pipe with a name that `owner` may use, in the place of whatever bears the name; the
    /// answer is its reading end, not blocking.
    pub fn make_pipe(&self, name: &str, owner: Private) -> io::Result<File> {
        self.remove(name)?;
        let path = self.short(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
        std::os::unix::fs::lchown(&path, Some(owner.uid), Some(owner.gid))?;
        self.open_pipe(name)
    }

    /// The reading end of a pipe that is there, not blocking.
    pub fn open_pipe(&self, name: &str) -> io::Result<File> {
        let pipe = self.open_file(name)?;
        if !pipe.metadata()?.file_type().is_fifo() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a pipe"));
        }
        Ok(pipe)
    }

    /// Connects to a socket in it, which must be one and must be served by `owner`.
    pub async fn connect(&self, name: &str, owner: Private) -> io::Result<tokio::net::UnixStream> {
        // Pinning the node first: between a check by name and a connect by name the VMM could
        // put a link to somebody else's socket there.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let node = File::from(open(&self.short(name), flags, Mode::empty())?);
        if !node.metadata()?.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a socket"));
        }
        let path = format!("/proc/self/fd/{}", node.as_raw_fd());
        let stream = tokio::net::UnixStream::connect(path).await?;
        if stream.peer_cred()?.uid() != owner.uid {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "served by another user"));
        }
        Ok(stream)
    }

    /// Opens a file for reading.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.short(name))
    }

    /// Makes an empty file in the place of whatever bears the name.
    fn create(&self, name: &str) -> io::Result<File> {
        self.remove(name)?;
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(self.short(name))
    }

    /// Replaces a file of ours in one step.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        let mut file = self.create(&temporary)?;
        file.write_all(content)?;
        let replace = || std::fs::rename(self.short(&temporary), self.short(name));
        match replace() {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                self.remove(name)?;
                replace()
            }
            replaced => replaced,
        }
    }

    /// The last `limit` bytes of a regular file.
    pub fn tail(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        let mut file = self.open_file(name)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        let limit = limit as u64;
        file.seek(SeekFrom::Start(metadata.len().saturating_sub(limit)))?;
        let mut content = Vec::new();
        file.take(limit).read_to_end(&mut content)?;
        Ok(content)
    }

    /// All of a regular file of at most `most` bytes, which is removed.
    pub fn take(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let file = self.open_file(name)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        let mut content = Vec::new();
        file.take(most + 1).read_to_end(&mut content)?;
        self.remove(name)?;
        if content.len() as u64 > most {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than it can be"));
        }
        Ok(content)
    }

    /// Frees a name: removes the file that bears it, if one does. A directory, of which we make none,
    /// is only set aside: one that a VMM has made can be nested deeper than whoever is in a hurry
    /// has time for, and goes with everything else of the machine.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.short(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                let aside = format!("aside-{}", EngineId::random());
                std::fs::rename(self.short(name), self.short(&aside))
            }
            removed => removed,
        }
    }

    /// Removes what means nothing once the VMM has ended: its sockets and pipes.
    pub fn remove_traces(&self) {
        if let Err(error) = self.remove_sockets() {
            tracing::warn!(%error, dir = %self.path, "cannot remove what a VMM has made");
        }
    }

    fn remove_sockets(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.short(""))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_socket() || kind.is_fifo() {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Private = Private { uid: 64123, gid: 64123 };

    fn open(path: &std::path::Path) -> MachineDir {
        MachineDir::open(Utf8Path::from_path(path).unwrap()).unwrap()
    }

    #[test]
    fn tail_is_bounded_and_follows_no_link() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = open(scratch.path());
        std::fs::write(scratch.path().join("long"), vec![b'x'; 5000]).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("link")).unwrap();
        nix::unistd::mkfifo(&scratch.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();

        assert_eq!(dir.tail("long", 100).unwrap().len(), 100);
        assert!(dir.tail("link", 100).is_err());
        assert!(dir.tail("pipe", 100).is_err(), "a pipe must neither block nor be read");
        assert!(dir.tail("/etc/passwd", 100).is_err());

        for name in ["link", "pipe", "/etc/passwd"] {
            assert!(dir.take(name, 100_000).is_err(), "{name}");
        }
        assert!(dir.take("long", 4999).is_err());
        std::fs::write(scratch.path().join("long"), vec![b'x'; 5000]).unwrap();
        assert_eq!(dir.take("long", 5000).unwrap().len(), 5000);
        assert!(dir.take("long", 5000).is_err(), "it is gone");
    }

    #[test]
    fn a_directory_in_the_place_of_a_file_is_not_in_the_way() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = open(scratch.path());
        for name in ["qmp.sock", CONSOLE_LOG, "console.log.new"] {
            std::fs::create_dir_all(scratch.path().join(name).join("full")).unwrap();
        }
        dir.bind("qmp.sock", NOBODY).unwrap();
        dir.write(CONSOLE_LOG, b"new").unwrap();
        assert_eq!(dir.tail(CONSOLE_LOG, 100).unwrap(), b"new");
        let aside = std::fs::read_dir(scratch.path()).unwrap().map(Result::unwrap);
        assert_eq!(aside.filter(|entry| entry.path().join("full").is_dir()).count(), 3);
    }

    #[test]
    fn write_replaces_a_link_instead_of_following_it() {
        let scratch = tempfile::tempdir().unwrap();
        let victim = scratch.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        std::fs::create_dir(scratch.path().join("m")).unwrap();
        let dir = open(&scratch.path().join("m"));
        for name in ["console.log", "console.log.new"] {
            std::os::unix::fs::symlink(&victim, scratch.path().join("m").join(name)).unwrap();
        }

        dir.write("console.log", b"new").unwrap();

        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(dir.tail("console.log", 100).unwrap(), b"new");
    }

    #[test]
    fn binding_replaces_what_a_former_machine_left() {
        let scratch = tempfile::tempdir().unwrap();
        let (inside, victim) = (scratch.path().join("m"), scratch.path().join("victim"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, inside.join("agent.sock")).unwrap();
        let dir = open(&inside);
        for name in ["qmp.sock", "qmp.sock", "agent.sock"] {
            dir.bind(name, NOBODY).unwrap();
            let metadata = inside.join(name).symlink_metadata().unwrap();
            assert!(metadata.file_type().is_socket(), "{name}");
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    }

    #[tokio::test]
    async fn connect_refuses_what_is_not_served_by_the_owner() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = open(scratch.path());
        let _ours = std::os::unix::net::UnixListener::bind(scratch.path().join("s")).unwrap();
        std::os::unix::fs::symlink("s", scratch.path().join("link")).unwrap();
        std::fs::write(scratch.path().join("file"), "").unwrap();

        let me = Private { uid: nix::unistd::getuid().as_raw(), gid: 0 };
        assert!(dir.connect("s", me).await.is_ok());
        let kind = |r: io::Result<tokio::net::UnixStream>| r.unwrap_err().kind();
        assert_eq!(kind(dir.connect("s", NOBODY).await), io::ErrorKind::PermissionDenied);
        assert!(dir.connect("link", me).await.is_err());
        assert!(dir.connect("file", me).await.is_err());
    }

    #[test]
    fn sockets_work_in_a_directory_with_a_long_name() {
        let scratch = tempfile::tempdir().unwrap();
        let deep = scratch.path().join("d".repeat(150)).join("e".repeat(150));
        std::fs::create_dir_all(&deep).unwrap();
        let dir = open(&deep);
        let me =
            Private { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() };
        dir.bind("qmp.sock", me).unwrap();
        assert!(deep.join("qmp.sock").exists());
        dir.remove_traces();
        assert!(!deep.join("qmp.sock").exists());
    }
}
