//! Starting a program whose first steps are ours: a child that is born into its PID namespace and its
//! control group, does what it is told, and becomes the program.
//!
//! The standard library's `Command` has a way to neither. A process that moves into a control group
//! waits until all of the host's processors have passed a quiet state, 5 to 16 ms measured on an idle
//! host, which was as much as all else of a start; one that is born into it does not wait, and has
//! never been anywhere else.
//!
//! Promises:
//! - An error means that there is no process, and none to collect.
//! - The child never comes back into the caller's code: it becomes the program, or ends.

use std::ffi::{CString, OsStr, c_char};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

/// `CLONE_INTO_CGROUP`, which does not fit into the C library's type of flags.
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// What the child exits with when it does not become the program. Nobody sees it: the pipe says why.
const NOT_STARTED: libc::c_int = 127;
/// Of an error that has no number.
const SOME_ERROR: i32 = libc::EIO;

/// Why there is no process.
#[derive(Debug)]
pub(crate) enum StartError {
    /// None was made: the host does not allow it, or its group does not.
    Clone(io::Error),
    /// What the child met on its way to be the program.
    Child(io::Error),
}

/// A program to become, with everything that takes memory made before there is a child.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// Standard input, output and error.
    stdio: [OwnedFd; 3],
}

impl Program {
    /// What `command` names: the program by its path, its arguments, and no environment but the
    /// variables it sets.
    pub(crate) fn of(command: &Command, stdio: [OwnedFd; 3]) -> io::Result<Self> {
        let path = c_string(command.get_program())?;
        let arguments = command.get_args().map(c_string);
        let arguments = std::iter::once(Ok(path.clone())).chain(arguments);
        let environment = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let environment = environment.map(|(name, value)| {
            c_string(OsStr::from_bytes(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
        });
        Ok(Self {
            path,
            arguments: arguments.collect::<io::Result<_>>()?,
            environment: environment.collect::<io::Result<_>>()?,
            stdio,
        })
    }
}

/// Has a child do `first` and then become `program`: the first process of a PID namespace of its own,
/// and in the control group of version 2 whose directory `group` is. Answers with its pid once it is
/// the program.
///
/// `first` makes system calls only, as after a `fork`: the caller has other threads, and what they
/// had locked stays locked in the child.
pub(crate) fn start(
    program: &Program,
    group: Option<BorrowedFd<'_>>,
    first: impl FnOnce() -> io::Result<()>,
) -> Result<i32, StartError> {
    let (mut failure, report) = io::pipe().map_err(StartError::Clone)?;
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&program.arguments), pointers(&program.environment));
    // SAFETY: the child makes system calls only, on memory that was made before, and does not leave its
    // block.
    let pid = unsafe { clone(group) }.map_err(StartError::Clone)?;
    let Some(pid) = pid else {
        let _guard = Guard;
        let ready = prepare(program).and_then(|()| first());
        // SAFETY: strings that end with a zero byte, and lists of them that end with a null pointer.
        let begin = || unsafe { libc::execve(program.path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        let error = ready.and_then(|()| check(begin())).err();
        let number = error.and_then(|error| error.raw_os_error()).unwrap_or(SOME_ERROR);
        // Nothing can be done about a failure: then the parent sees an end without a word.
        (&report).write_all(&number.to_ne_bytes()).ok();
        // SAFETY: a system call on an integer; it does not return.
        unsafe { libc::_exit(NOT_STARTED) }
    };
    drop(report);
    let mut said = Vec::new();
    // A child that became the program has closed its end without a word. One that was killed before
    // has, too: it ends early, which is seen by whoever waits for the program.
    let read = (&mut failure).take(4).read_to_end(&mut said);
    let error = match (read, said.first_chunk()) {
        (Ok(0), _) => return Ok(pid),
        (Ok(_), Some(number)) => io::Error::from_raw_os_error(i32::from_ne_bytes(*number)),
        (Ok(_), None) => io::ErrorKind::UnexpectedEof.into(),
        (Err(error), _) => error,
    };
    end(pid);
    Err(StartError::Child(error))
}

/// Ends a child of ours that is of no use, and collects it.
fn end(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    // It may have ended by itself, and nobody else collects it.
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    while let Err(nix::errno::Errno::EINTR) = nix::sys::wait::waitpid(pid, None) {}
}

/// Ends the child should it ever leave its block in another way, with a panic for one.
struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: a system call on an integer; it does not return.
        unsafe { libc::_exit(NOT_STARTED) }
    }
}

/// Makes a child with a copy of the caller's memory. `None` is the child.
///
/// # Safety
///
/// As after `fork`: the child makes async-signal-safe calls only.
unsafe fn clone(group: Option<BorrowedFd<'_>>) -> io::Result<Option<i32>> {
    // SAFETY: a structure of integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_NEWPID as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = group {
        args.flags |= INTO_CGROUP;
        // A descriptor is not negative.
        args.cgroup = group.as_raw_fd().unsigned_abs().into();
    }
    // SAFETY: the structure is whole and outlives the call; no memory is shared with the child.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => Ok(Some(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What every program starts with: its standard input, output and error, where `first` prints too, and
/// signals as the system has them. Rust programs ignore one, and a thread may block others.
fn prepare(program: &Program) -> io::Result<()> {
    for (place, file) in (0..).zip(&program.stdio) {
        // SAFETY: a system call on integers.
        check(unsafe { libc::dup2(file.as_raw_fd(), place) })?;
    }
    // SAFETY: the first call makes the set; disposition and mask are this process's.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// `/dev/null`, to read from.
pub(crate) fn nothing() -> io::Result<OwnedFd> {
    Ok(File::open("/dev/null")?.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// A program whose output can be read.
    fn program(command: &Command) -> (Program, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let error = writer.try_clone().unwrap();
        let stdio = [nothing().unwrap(), writer.into(), error.into()];
        (Program::of(command, stdio).unwrap(), reader)
    }

    fn wait(pid: i32) -> nix::Result<nix::sys::wait::WaitStatus> {
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)
    }

    fn said(program: Program, mut output: io::PipeReader) -> String {
        drop(program);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn it_is_the_first_of_its_kind_and_has_what_it_is_given() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo $$ $A $HOME; read x; grep SigBlk /proc/self/status; exit 3"]);
        command.env("A", "b");
        let (program, output) = program(&command);
        let mut done = false;
        let pid = start(&program, None, || {
            // In the child's memory, not in ours.
            done = true;
            Ok(())
        });
        let pid = pid.unwrap();
        assert!(!done);
        assert_eq!(said(program, output), "1 b\nSigBlk:\t0000000000000000\n");
        let status = wait(pid).unwrap();
        assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 3)), "{status:?}");
    }

    #[test]
    fn what_fails_in_the_child_is_the_callers_error_and_leaves_nobody() {
        let failing = |first: fn() -> io::Result<()>, path| {
            let (program, _output) = program(&Command::new(path));
            match start(&program, None, first).unwrap_err() {
                StartError::Child(error) => error,
                other => panic!("{other:?}"),
            }
        };
        let error = failing(|| Ok(()), "/bin/no-such-program");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let error = failing(|| Err(io::Error::from_raw_os_error(libc::EXDEV)), "/bin/true");
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
        let error = failing(|| Err(io::ErrorKind::Other.into()), "/bin/true");
        assert_eq!(error.raw_os_error(), Some(SOME_ERROR));
    }

    #[test]
    fn it_is_born_into_its_group() {
        // Where version 2 is, whatever else is there; a host may have version 1 alone.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let two = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let Some(mount) = two.and_then(|line| line.split(' ').nth(1)) else { return };
        let name = format!("bhatti-born-{}", std::process::id());
        let place = std::path::Path::new(mount).join(&name);
        std::fs::create_dir(&place).unwrap();
        let group = File::open(&place).unwrap();

        let (cat, output) = program(Command::new("/bin/cat").arg("/proc/self/cgroup"));
        let pid = start(&cat, Some(group.as_fd()), || Ok(())).unwrap();
        let groups = said(cat, output);
        wait(pid).unwrap();
        std::fs::remove_dir(&place).unwrap();
        let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
        assert!(own.is_some_and(|own| own.ends_with(&name)), "{groups}");

        let (true_, _output) = program(&Command::new("/bin/true"));
        let refused = start(&true_, Some(group.as_fd()), || Ok(()));
        assert!(matches!(refused, Err(StartError::Clone(_))), "its group is gone: {refused:?}");
    }
}
