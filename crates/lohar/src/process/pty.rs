//! A terminal that is no device: the program has one end, the agent the other.
//!
//! The agent keeps the program's end open too. So ours never hangs up while a session lives, even
//! if its program closes the terminal for a while, and what it printed last is all there when it
//! ends: the kernel hands it over before it says that there is no more.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bhatti_wire::message::WindowSize;
use nix::fcntl::OFlag;
use nix::pty::{posix_openpt, unlockpt};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, tcgetpgrp};

/// What `/etc/group` calls `tty`, everywhere.
const TTY_GROUP: u32 = 5;

/// Where nobody says otherwise.
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, cols: 80 };

mod ioctl {
    use nix::libc::{TIOCGWINSZ, TIOCSWINSZ, winsize};
    nix::ioctl_read_bad!(get_size, TIOCGWINSZ, winsize);
    nix::ioctl_write_ptr_bad!(set_size, TIOCSWINSZ, winsize);
}

/// A pair of ends. Dropping it hangs the program up.
#[derive(Debug)]
pub struct Pty {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Pty {
    /// A new one that belongs to `owner` (uid, gid).
    pub fn open(owner: (u32, u32), size: Option<WindowSize>) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let ours = posix_openpt(flags)?;
        unlockpt(&ours)?;
        // Without a path: whatever is mounted at /dev/pts, it is this one.
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: an ioctl that takes an integer.
        let theirs = unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        if theirs == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let theirs = unsafe { OwnedFd::from_raw_fd(theirs) };
        // So that programs may open it by its name. An unprivileged test owns it already.
        if Uid::effective().is_root() {
            fchown(&theirs, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(TTY_GROUP)))?;
            fchmod(&theirs, Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IWGRP)?;
        }
        let pty = Self { ours: ours.into(), theirs };
        pty.resize(size.unwrap_or(DEFAULT_SIZE))?;
        Ok(pty)
    }

    /// The program's end, for one program.
    pub fn theirs(&self) -> io::Result<OwnedFd> {
        self.theirs.try_clone()
    }

    /// Sets the size; the kernel tells the program if it is another one. A size of 0 is not set.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        let Some(wanted) = cells(size) else { return Ok(()) };
        // SAFETY: reads one `winsize` that outlives the call.
        unsafe { ioctl::set_size(self.ours.as_raw_fd(), &raw const wanted) }?;
        Ok(())
    }

    /// Makes a full-screen program paint itself anew, for somebody whose terminal has this size
    /// and does not show it yet.
    pub fn repaint(&self, size: WindowSize) -> io::Result<()> {
        let Some(wanted) = cells(size) else { return Ok(()) };
        let mut now = wanted;
        // SAFETY: writes one `winsize` that outlives the call.
        unsafe { ioctl::get_size(self.ours.as_raw_fd(), &raw mut now) }?;
        if (now.ws_row, now.ws_col) != (wanted.ws_row, wanted.ws_col) {
            return self.resize(size);
        }
        // The kernel says nothing of a size that is the same. 0: nobody is in the foreground.
        if let Ok(group) = tcgetpgrp(&self.ours)
            && group.as_raw() > 1
        {
            killpg(group, Signal::SIGWINCH).ok();
        }
        Ok(())
    }
}

/// Our end, which never blocks.
impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }
}

impl AsRawFd for Pty {
    fn as_raw_fd(&self) -> RawFd {
        self.ours.as_raw_fd()
    }
}

/// `None` for a size that is none.
fn cells(size: WindowSize) -> Option<libc::winsize> {
    let count = |number: u32| u16::try_from(number).ok().filter(|number| *number > 0);
    let (ws_row, ws_col) = (count(size.rows)?, count(size.cols)?);
    Some(libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })
}
