//! What the child does between `fork` and `exec` to become a process that can harm nobody.
//!
//! The daemon has many threads, so in the child only async-signal-safe calls are allowed: no
//! allocation, no lock, no logging. Everything that needs memory is prepared in
//! [`Confinement`] before the fork; [`Confinement::apply`] makes system calls only.
//!
//! Order matters: the cgroup first, so that nothing runs unaccounted; namespaces and the private
//! root ([`crate::jail`]) while there is still privilege; capabilities out of the bounding set
//! before the identity changes (the change itself then clears the other sets); `no_new_privs`
//! last.
//!
//! A control group of version 2 and the PID namespace are what it is born into ([`crate::fork`]); to
//! the host the VMM keeps an ordinary pid.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::Command;

use bhatti_engine::{EngineError, Private};
use camino::Utf8Path;
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cgroup::Joins;
use crate::fork::{self, Program, StartError};
use crate::jail::Jail;
use crate::vmm_log::VmmLog;

/// Descriptors a VMM may hold at once; it needs about 30.
const MAX_OPEN_FILES: libc::rlim_t = 128;

/// Everything the child needs, made before the fork.
pub struct Confinement {
    /// The ways into its control group.
    pub cgroups: Joins,
    /// What stays open across `exec`; everything else is closed.
    pub inherit: Vec<RawFd>,
    /// The machine's directory.
    pub working_dir: OwnedFd,
    /// The network it is put into; `None` gives it an empty one of its own.
    pub network: Option<OwnedFd>,
    /// Where its standard output goes; `None` means with everything else into the log.
    pub output: Option<File>,
    /// The root it will see.
    pub jail: Jail,
    /// The most bytes one file of it may have.
    pub file_size: u64,
    pub owner: Private,
}

/// Starts `command` confined, as the first process of a PID namespace of its own: it can name no
/// process but itself. Its environment is what the command sets, and all it prints goes to `log`.
/// The answer is its pid; it is a child of ours, and the caller's to collect.
pub fn spawn(
    command: &Command,
    mut confinement: Confinement,
    log: &VmmLog,
) -> Result<i32, EngineError> {
    let name = || command.get_program().to_string_lossy().into_owned();
    let failed = |source| EngineError::Spawn { program: name(), source };
    let stdout = match confinement.output.take() {
        Some(output) => output,
        None => log.for_child().map_err(failed)?,
    };
    let stderr = log.for_child().map_err(failed)?;
    let stdin = fork::nothing().map_err(failed)?;
    let stdio = [stdin, stdout.into(), stderr.into()];
    let program = Program::of(command, stdio).map_err(failed)?;
    let group = confinement.cgroups.born.as_ref().map(AsFd::as_fd);
    let grouped = group.is_some();
    match fork::start(&program, group, || confinement.apply()) {
        Ok(pid) => Ok(pid),
        Err(StartError::Clone(source)) => {
            let of = if grouped { "a process in its control group" } else { "a process" };
            let what =
                format!("cannot make {of} with clone3, which a system call filter may forbid");
            Err(EngineError::Confine { what, source })
        }
        // Only an error number crosses from the child; the jail says more in the log.
        Err(StartError::Child(source)) if log.is_empty() => Err(failed(source)),
        Err(StartError::Child(source)) => Err(EngineError::Confine { what: log.tail(), source }),
    }
}

/// Has the program say its version, confined: what this host does not let us do, and what the
/// program misses in there, is found out once, at start, and not with each machine.
pub fn rehearse(program: &Utf8Path, jail: &Jail) -> Result<(), EngineError> {
    let failed = |what: &str, source| EngineError::Confine { what: what.to_owned(), source };
    // Some directory that is the same for everybody.
    let working_dir = File::open("/dev").map_err(|e| failed("cannot open /dev", e))?;
    let confinement = Confinement {
        cgroups: Joins::default(),
        inherit: Vec::new(),
        working_dir: working_dir.into(),
        network: None,
        output: None,
        jail: jail.clone(),
        file_size: 1 << 20,
        owner: Private { uid: NOBODY, gid: NOBODY },
    };
    let log = VmmLog::create().map_err(|e| failed("cannot make a log", e))?;
    let mut command = Command::new(program);
    command.arg("--version");
    let child = Pid::from_raw(spawn(&command, confinement, &log)?);
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(_) => return Err(EngineError::DiedEarly { log: log.tail() }),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed("cannot wait for a rehearsal", errno.into())),
        }
    }
}

/// The identity nothing belongs to, for a process that is to do nothing.
const NOBODY: u32 = 65534;

/// Namespaces the child moves into by itself.
const NAMESPACES: libc::c_int = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNS;

impl Confinement {
    /// Confines the calling process. Called in the child only, after `fork`.
    ///
    /// Any failure stops the start: a VMM runs confined or not at all.
    pub fn apply(&self) -> io::Result<()> {
        for cgroup in &self.cgroups.procs {
            // "0" is the writer itself.
            // SAFETY: the pointer and the length are those of a constant.
            check(unsafe { libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) })?;
        }
        // SAFETY: plain system calls on integers, async-signal-safe.
        unsafe {
            check(libc::setsid() as isize)?;
            // Before the new mount namespace, which takes the working directory along.
            check(libc::fchdir(self.working_dir.as_raw_fd()) as isize)?;
            check(libc::unshare(NAMESPACES) as isize)?;
            check(match &self.network {
                Some(network) => libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET),
                None => libc::unshare(libc::CLONE_NEWNET),
            } as isize)?;
        }
        self.jail.enter()?;
        // SAFETY: a system call on an integer.
        unsafe { libc::umask(0o077) };
        limit(libc::RLIMIT_FSIZE, self.file_size)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root, as all of this does.
    #[test]
    fn a_rehearsal_finds_what_is_missing() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = Utf8Path::from_path(scratch.path()).unwrap();
        let firmware = scratch.join("rom");
        std::fs::write(&firmware, "").unwrap();
        let program = Utf8Path::new("/bin/cat");
        let whole = Jail::of(program, &[(firmware.as_path(), "/firmware")]).unwrap();
        rehearse(program, &whole).unwrap();

        let absent = rehearse(Utf8Path::new("/bin/ls"), &whole).unwrap_err();
        assert!(matches!(absent, EngineError::Spawn { .. }), "{absent}: only cat is in there");

        std::fs::remove_file(&firmware).unwrap();
        match rehearse(program, &whole).unwrap_err() {
            EngineError::Confine { what, .. } => {
                assert!(what.starts_with("cannot mount /") && what.ends_with("/rom"), "{what}");
            }
            other => panic!("{other}"),
        }
    }
}
