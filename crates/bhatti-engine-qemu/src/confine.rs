//! What the child does between `fork` and `exec` to become a process that can harm nobody.
//!
//! The daemon has many threads, so in the child only async-signal-safe calls are allowed: no
//! allocation, no lock, no logging. Everything that needs memory is prepared in
//! [`Confinement`] before the fork; [`Confinement::apply`] makes system calls only.
//!
//! Order matters: the cgroup first, so that nothing runs unaccounted; the network namespace while
//! there is still privilege; capabilities out of the bounding set before the identity changes
//! (the change itself then clears the other sets); `no_new_privs` last.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use bhatti_engine::Private;

/// Descriptors a VMM may hold at once; it needs about 30.
const MAX_OPEN_FILES: libc::rlim_t = 128;

/// Everything the child needs, made before the fork.
pub(crate) struct Confinement {
    /// `cgroup.procs` of every hierarchy, open for writing.
    pub cgroups: Vec<OwnedFd>,
    /// What stays open across `exec`; everything else is closed.
    pub inherit: Vec<RawFd>,
    /// The machine's directory.
    pub working_dir: OwnedFd,
    pub owner: Private,
}

impl Confinement {
    /// Confines the calling process. Called in the child only, after `fork`.
    ///
    /// Any failure stops the start: a VMM runs confined or not at all.
    pub(crate) fn apply(&self) -> io::Result<()> {
        for cgroup in &self.cgroups {
            // "0" is the writer itself, in version 1 and in version 2.
            // SAFETY: the pointer and the length are those of a constant.
            check(unsafe { libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) })?;
        }
        // SAFETY: plain system calls on integers, async-signal-safe.
        unsafe {
            check(libc::setsid() as isize)?;
            check(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC) as isize)?;
            check(libc::fchdir(self.working_dir.as_raw_fd()) as isize)?;
            libc::umask(0o077);
        }
        limit(libc::RLIMIT_CORE, 0)?;
        limit(libc::RLIMIT_NOFILE, MAX_OPEN_FILES)?;
        self.close_others()?;
        self.drop_privileges()
    }

    fn close_others(&self) -> io::Result<()> {
        // Marked, not closed: the pipe on which a failure here is reported must live until exec.
        // SAFETY: a system call on integers; it changes descriptor flags of this process only.
        check(unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        } as isize)?;
        for &fd in &self.inherit {
            // SAFETY: a system call on integers.
            check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } as isize)?;
        }
        Ok(())
    }

    fn drop_privileges(&self) -> io::Result<()> {
        // Until the kernel says there is no such capability; newer kernels have more of them.
        for capability in 0..=63 {
            // SAFETY: a system call on integers.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
                let error = io::Error::last_os_error();
                if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
                    break;
                }
                return Err(error);
            }
        }
        let Private { uid, gid } = self.owner;
        // The raw calls act on this thread only, which is all there is after fork; the library's
        // wrappers would try to tell threads that do not exist here.
        // SAFETY: system calls on integers and a null pointer with length 0.
        unsafe {
            check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) as isize)?;
            check(libc::syscall(libc::SYS_setresgid, gid, gid, gid) as isize)?;
            check(libc::syscall(libc::SYS_setresuid, uid, uid, uid) as isize)?;
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) as isize)?;
        }
        Ok(())
    }
}

fn limit(resource: libc::__rlimit_resource_t, value: libc::rlim_t) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `limit` outlives the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) } as isize)
}

fn check(result: isize) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
