//! One VMM process: who it is, whether it is that one, and how it ended.
//!
//! A pid alone proves nothing; it may have been given to somebody else. The pid with the time the
//! process started is an identity within one boot of the host, and a pidfd, once checked against
//! it, cannot come to mean another process.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// Set once a task takes its way out, in field 9 of its `stat`.
const PF_EXITING: u64 = 4;
/// Set there for threads of the kernel's own.
const PF_KTHREAD: u64 = 0x0020_0000;

/// A process we may watch and end, child or not.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    start_ticks: u64,
    pidfd: AsyncFd<OwnedFd>,
}

/// How a process ended, as far as it can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Code(i32),
    Signal(i32),
    /// It was not our child, so only its parent was told.
    Unknown,
}

impl Process {
    /// Holds on to a process that is certainly alive or our own unreaped child.
    pub fn child(pid: i32) -> io::Result<Self> {
        let pidfd = open_pidfd(pid)?;
        Ok(Self { pid, start_ticks: start_ticks(pid)?, pidfd: watched(pidfd)? })
    }

    /// Holds on to the process with this identity; `None` if it is gone. One that has died but
    /// has not been collected is still there: [`Self::ended`] resolves at once and collects it.
    pub fn find(pid: i32, expected_ticks: u64) -> io::Result<Option<Self>> {
        if pid <= 0 {
            return Ok(None);
        }
        let pidfd = match open_pidfd(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            other => other?,
        };
        // Checked after the pidfd was taken: what is read now belongs to what is held.
        match start_ticks(pid) {
            Ok(ticks) if ticks == expected_ticks => {}
            _ => return Ok(None),
        }
        let pidfd = watched(pidfd)?;
        Ok(Some(Self { pid, start_ticks: expected_ticks, pidfd }))
    }

    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Sends SIGKILL. A process that has ended already is fine.
    pub fn kill(&self) {
        // SAFETY: a system call on integers and a null pointer, which means "no details".
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ESRCH) {
                tracing::error!(%error, pid = self.pid, "cannot end a VMM");
            }
        }
    }

    /// Whether it has ended by now.
    pub fn has_ended(&self) -> bool {
        let mut poll =
            libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid element for the time of the call, which does not wait.
        unsafe { libc::poll(&raw mut poll, 1, 0) != 0 }
    }

    /// Waits for the end and collects the child, if it was one. Cancel-safe.
    pub async fn ended(&self) -> io::Result<Status> {
        self.wait_readable().await?;
        self.reap()
    }

    /// Waits for an end that seems to come: for `patience` in any case, for `most` more once the
    /// kernel takes the process apart. With a machine's memory that takes a while, in which it still
    /// has its pid and its sockets. True if it has ended; a child of ours is collected. Cancel-safe.
    pub async fn ends_within(&self, patience: Duration, most: Duration) -> bool {
        timeout(patience, self.ended()).await.is_ok()
            || self.is_ending() && timeout(most, self.ended()).await.is_ok()
    }

    /// Whether it was killed or exits: it will never run again, whatever it still holds. Of one whose
    /// connections broke because it dies, this is true by then.
    pub fn is_ending(&self) -> bool {
        // What is read belongs to somebody else only if this one has ended.
        self.has_ended() || stat(self.pid).is_ok_and(|stat| has_flag(&stat, PF_EXITING))
    }

    /// Waits for the end without collecting. Cancel-safe.
    pub async fn wait_readable(&self) -> io::Result<()> {
        // A pidfd becomes readable when the process ends and stays so.
        drop(self.pidfd.readable().await?);
        Ok(())
    }

    fn reap(&self) -> io::Result<Status> {
        // SAFETY: all zero is a valid siginfo_t.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = self.pidfd.as_raw_fd().unsigned_abs();
        // SAFETY: `info` is valid for writing for the time of the call.
        let result = unsafe {
            libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::WNOHANG)
        };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ECHILD) => Ok(Status::Unknown),
                _ => Err(error),
            };
        }
        // SAFETY: waitid has filled in the fields of a SIGCHLD.
        let status = unsafe { info.si_status() };
        Ok(match info.si_code {
            libc::CLD_EXITED => Status::Code(status),
            libc::CLD_KILLED | libc::CLD_DUMPED => Status::Signal(status),
            _ => Status::Unknown,
        })
    }
}

impl Status {
    /// Half a sentence for people.
    pub fn describe(self) -> String {
        match self {
            Self::Code(code) => format!("it exited with code {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => format!("it was ended by {signal}"),
                Err(_) => format!("it was ended by signal {number}"),
            },
            Self::Unknown => {
                "it ended; how, only the daemon that started it would have been told".to_owned()
            }
        }
    }
}

/// Collects a child that has been killed, so that no zombie stays. Blocks until it has ended, but for
/// no longer than that: what the kernel cannot end must not hold up who has killed it.
pub fn collect(pid: i32, patience: Duration) {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let end = Instant::now() + patience;
    let child = nix::unistd::Pid::from_raw(pid);
    // ECHILD: it was collected already.
    while let Ok(WaitStatus::StillAlive) = waitpid(child, Some(WaitPidFlag::WNOHANG)) {
        if Instant::now() > end {
            tracing::error!(pid, "a VMM that was killed does not end");
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether this is a thread of the kernel's own, which nobody can end. Not told by its parent: what
/// has number 2 to us is in a container somebody else.
pub fn is_the_kernels(pid: i32) -> bool {
    stat(pid).is_ok_and(|stat| has_flag(&stat, PF_KTHREAD))
}

fn has_flag(stat: &str, flag: u64) -> bool {
    field(stat, 9).is_some_and(|flags| flags & flag != 0)
}

/// Which boot of the host this is.
pub fn host_boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: a system call on integers. A pidfd is close-on-exec by itself. Non-blocking: the
    // flag has the value of O_NONBLOCK.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped, and `AsyncFd`
    // deregisters it before that.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

fn start_ticks(pid: i32) -> io::Result<u64> {
    field(&stat(pid)?, 22).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn stat(pid: i32) -> io::Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
}

/// A field of `/proc/<pid>/stat` behind the name, counted as its description does.
fn field(stat: &str, number: usize) -> Option<u64> {
    // The name, field 2, may hold spaces and brackets; the last bracket ends it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// A child that lives until it is ended or its input closes.
    #[expect(clippy::zombie_processes, reason = "collecting it is what is tested")]
    fn cat() -> (i32, std::process::ChildStdin) {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        (i32::try_from(child.id()).unwrap(), child.stdin.take().unwrap())
    }

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!((field(stat, 22), field(stat, 9)), (Some(4242), Some(4_194_560)));
        assert_eq!((field("7 (x", 22), field(stat, 2), field(stat, 99)), (None, None, None));
    }

    #[test]
    fn the_kernels_threads_are_told_by_their_flag_and_not_by_their_parent() {
        // Of a real one, and of a process whose parent has number 2.
        let thread = "62 (kworker/0:1) I 2 0 0 0 -1 69238880 0 0 0 0 0 0 0 0 20 0 1 0 9 0 0";
        let child = "62 (qemu) S 2 62 62 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 9 1 1";
        assert!(has_flag(thread, PF_KTHREAD) && !has_flag(child, PF_KTHREAD));
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!is_the_kernels(me) && !is_the_kernels(i32::MAX));
    }

    #[tokio::test]
    async fn a_killed_child_is_seen_and_collected() {
        let (pid, _input) = cat();
        let process = Process::child(pid).unwrap();
        process.kill();
        assert_eq!(process.ended().await.unwrap(), Status::Signal(libc::SIGKILL));
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        process.kill(); // harmless on the dead
        assert_eq!(process.ended().await.unwrap(), Status::Unknown);
    }

    #[test]
    fn who_does_not_end_is_not_collected_for_ever() {
        let (pid, input) = cat();
        collect(pid, Duration::from_millis(5));
        let there = || std::path::Path::new(&format!("/proc/{pid}")).exists();
        assert!(there(), "nobody has killed it");
        drop(input);
        collect(pid, Duration::from_secs(20));
        assert!(!there());
        collect(pid, Duration::from_secs(20)); // harmless
    }

    #[tokio::test]
    async fn only_an_end_that_comes_is_waited_for() {
        let (pid, _input) = cat();
        let process = Process::child(pid).unwrap();
        let soon = Duration::from_millis(1);
        assert!(!process.ends_within(soon, Duration::from_secs(600)).await, "it lives");
        process.kill();
        assert!(process.ends_within(Duration::from_secs(20), soon).await);
        assert!(process.is_ending());
    }

    #[tokio::test]
    async fn identity_is_pid_and_start_time() {
        let (pid, _input) = cat();
        let process = Process::child(pid).unwrap();
        let ticks = process.start_ticks();
        assert!(Process::find(pid, ticks).unwrap().is_some());
        assert!(Process::find(pid, ticks + 1).unwrap().is_none());
        assert!(Process::find(0, ticks).unwrap().is_none());
        assert!(Process::find(-1, ticks).unwrap().is_none());
        process.kill();
        process.ended().await.unwrap();
        assert!(Process::find(pid, ticks).unwrap().is_none());
    }
}
