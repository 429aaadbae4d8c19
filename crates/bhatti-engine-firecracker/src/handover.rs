//! Memory on huge pages, taken back from a Firecracker that wants to be served it page by page.
//!
//! Firecracker restores such memory in one way only: it has the kernel ask somebody for each page at
//! its first touch (`userfaultfd`), and hands the means to answer over a socket. Whoever serves pages so
//! must live as long as the guest; a daemon that is restarted does not. So all that is taken from what
//! is handed over is where the memory is, and the kernel is told to ask nobody any more:
//!
//! ```text
//!  Firecracker   memory made, asked for ─▶ handed over ─▶ …opens its disk, is held ─▶ …goes on
//!  we                                      ask nobody ─▶ put the pages in, let it go
//! ```
//!
//! From then on it is memory like any other, and nothing of ours has to stay.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use bhatti_engine::{Piece, Private};
use bhatti_vmm::machine_dir::MachineDir;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use crate::config::HANDOVER;

/// It says some hundred bytes.
const MOST_WORDS: usize = 16 << 10;

/// The number of the device a VMM without privileges asks through, if this kernel has it (6.1).
pub(crate) fn device() -> Option<libc::dev_t> {
    let text = std::fs::read_to_string("/sys/class/misc/userfaultfd/dev").ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// A place where a VMM that is about to be restored can hand its memory over.
#[derive(Debug)]
pub(crate) struct Handover {
    listener: UnixListener,
    dir: Arc<MachineDir>,
    owner: Private,
}

/// A part of memory, in Firecracker's words. In its offsets the guest's memory has no gap.
#[derive(Debug, Deserialize)]
struct Region {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
}

impl Handover {
    /// Makes the socket.
    pub(crate) fn offer(dir: &Arc<MachineDir>, owner: Private) -> io::Result<Self> {
        let socket = dir.bind(HANDOVER, owner)?;
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(1)?)?;
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, dir: Arc::clone(dir), owner })
    }

    /// Waits until it is handed over, has the kernel ask nobody for its pages, and says where they
    /// are, in the guest's order.
    pub(crate) async fn taken(&self) -> io::Result<Vec<Piece>> {
        let (stream, _) = self.listener.accept().await?;
        if stream.peer_cred()?.uid() != self.owner.uid {
            let why = "memory was handed over by another user";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let (words, asker) = receive(&stream).await?;
        let pieces = pieces(&words)?;
        let asker = asker.ok_or_else(|| broken("nothing was handed over"))?;
        for piece in &pieces {
            ask_nobody(&asker, *piece)?;
        }
        self.dir.remove(HANDOVER)?;
        Ok(pieces)
    }
}

/// One message and the descriptor with it.
async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    stream
        .async_io(Interest::READABLE, || {
            let mut words = vec![0; MOST_WORDS];
            let mut room = nix::cmsg_space!([i32; 1]);
            let (count, descriptors) = {
                let mut parts = [IoSliceMut::new(&mut words)];
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                let message =
                    recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
                let mut descriptors = Vec::new();
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(given) = control {
                        // SAFETY: the kernel has just made them for us and nothing else owns them.
                        descriptors
                            .extend(given.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
                    }
                }
                (message.bytes, descriptors)
            };
            words.truncate(count);
            Ok((words, descriptors.into_iter().next()))
        })
        .await
}

/// Where memory is, in the guest's order.
fn pieces(words: &[u8]) -> io::Result<Vec<Piece>> {
    let mut regions: Vec<Region> = serde_json::from_slice(words).map_err(io::Error::from)?;
    regions.sort_unstable_by_key(|region| region.offset);
    let end = regions.iter().try_fold(0, |end: u64, region| {
        (region.offset == end).then(|| end.checked_add(region.size)).flatten()
    });
    if end.is_none() {
        return Err(broken("what was handed over has gaps"));
    }
    let piece = |region: Region| Piece { start: region.base_host_virt_addr, bytes: region.size };
    Ok(regions.into_iter().map(piece).collect())
}

/// Ends the kernel's asking about this memory; who waits for an answer goes on.
fn ask_nobody(asker: &OwnedFd, piece: Piece) -> io::Result<()> {
    // From the kernel's `userfaultfd.h`.
    const UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
    // The same number may mean anything to another kind of file.
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", asker.as_raw_fd()))?;
    if kind.as_os_str() != "anon_inode:[userfaultfd]" {
        return Err(broken("what was handed over answers for no pages"));
    }
    let range = [piece.start, piece.bytes];
    // SAFETY: the structure is as long as the call's number says, 16 bytes, and outlives the call. It
    // changes nothing but who is asked about another process's memory.
    let ended = unsafe { libc::ioctl(asker.as_raw_fd(), UNREGISTER, range.as_ptr()) };
    if ended < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::time::Duration;

    use camino::Utf8Path;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use tokio::time::timeout;

    use super::*;

    /// What comes of a handover by somebody who says and gives this.
    async fn handed(says: &[u8], gives: Option<&OwnedFd>) -> io::Result<Vec<Piece>> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(HANDOVER);
        let dir = Arc::new(MachineDir::open(Utf8Path::from_path(scratch.path()).unwrap()).unwrap());
        let offer = Handover::offer(&dir, dir.owner().unwrap()).unwrap();
        let peer = std::os::unix::net::UnixStream::connect(&path).unwrap();
        match gives {
            None => (&peer).write_all(says).unwrap(),
            Some(given) => {
                let fds = [given.as_raw_fd()];
                let control = [ControlMessage::ScmRights(&fds)];
                let parts = [io::IoSlice::new(says)];
                let none = MsgFlags::empty();
                sendmsg::<()>(peer.as_raw_fd(), &parts, &control, none, None).unwrap();
            }
        }
        let taken = timeout(Duration::from_secs(20), offer.taken()).await.unwrap();
        assert_eq!(path.exists(), taken.is_err(), "it is of use once");
        taken
    }

    #[test]
    fn memory_is_in_the_guests_order_and_whole() {
        let said = br#"[{"base_host_virt_addr":8192,"size":4096,"offset":12288,"page_size":2097152},
                        {"base_host_virt_addr":65536,"size":12288,"offset":0,"page_size":2097152}]"#;
        let expected = [Piece { start: 65536, bytes: 12288 }, Piece { start: 8192, bytes: 4096 }];
        assert_eq!(pieces(said).unwrap(), expected);
        for broken in [
            &b"[{\"base_host_virt_addr\":0,\"size\":4096,\"offset\":4096}]"[..],
            b"[{\"base_host_virt_addr\":0,\"size\":1,\"offset\":0},\
               {\"base_host_virt_addr\":0,\"size\":1,\"offset\":0}]",
            b"[{\"base_host_virt_addr\":-1,\"size\":1,\"offset\":0}]",
            b"{}",
            b"",
        ] {
            assert!(pieces(broken).is_err(), "{}", String::from_utf8_lossy(broken));
        }
    }

    /// From the kernel's `userfaultfd.h`: the numbers of two calls, the interface's version, and
    /// "pages that are missing". Needs root.
    fn asked_for(memory: usize, bytes: usize) -> OwnedFd {
        const API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
        const REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
        let mut api = [0xaa_u64, 0, 0];
        let mut register = [memory as u64, bytes as u64, 1, 0];
        // SAFETY: both structures are as long as the numbers of the calls say.
        unsafe {
            let asker = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as libc::c_int;
            assert!(asker >= 0 && libc::ioctl(asker, API, api.as_mut_ptr()) == 0);
            assert_eq!(libc::ioctl(asker, REGISTER, register.as_mut_ptr()), 0);
            OwnedFd::from_raw_fd(asker)
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_page_goes_on_once_nobody_is_asked() {
        let bytes = 16 << 12;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel likes it, which stays until the process ends.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) } as usize;
        let asker = asked_for(memory, bytes);
        let (told, tells) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: within the mapping, which nobody else uses.
            told.send(unsafe { (memory as *const u8).read_volatile() })
        });
        assert!(tells.recv_timeout(Duration::from_millis(200)).is_err(), "it waits");
        let said = format!("[{{\"base_host_virt_addr\":{memory},\"size\":{bytes},\"offset\":0}}]");
        let taken = handed(said.as_bytes(), Some(&asker)).await.unwrap();
        assert_eq!(taken, [Piece { start: memory as u64, bytes: bytes as u64 }]);
        assert_eq!(tells.recv_timeout(Duration::from_secs(20)), Ok(0));
    }

    #[tokio::test]
    async fn what_else_is_handed_over_is_refused() {
        let said = b"[{\"base_host_virt_addr\":0,\"size\":4096,\"offset\":0}]";
        let other = OwnedFd::from(File::open("/dev/null").unwrap());
        let why = handed(said, Some(&other)).await.unwrap_err().to_string();
        assert_eq!(why, "what was handed over answers for no pages");
        let why = handed(said, None).await.unwrap_err().to_string();
        assert_eq!(why, "nothing was handed over");
        assert!(handed(&vec![b' '; 2 * MOST_WORDS], Some(&other)).await.is_err());
    }
}
