//! Starts a program as the sandbox's user, in a session of its own.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::{Exit, FindError, Reaper, find_program};
use crate::guest::{DEFAULT_PATH, Identity};

/// What to run, and as whom.
#[derive(Debug)]
pub struct Program {
    /// Not empty.
    pub argv: Vec<String>,
    pub env: HashMap<String, String>,
    /// Absolute.
    pub cwd: PathBuf,
    pub identity: Identity,
}

/// Where a program's standard streams go.
#[derive(Debug)]
pub enum Streams {
    /// To us, through pipes.
    Piped(Stdin),
    /// stdout and stderr to a file, stdin from nothing.
    File(File),
    /// All three are this terminal, which becomes the program's own.
    Terminal(OwnedFd),
    /// stdout and stderr to one pipe, stdin from another.
    Merged { stdin: OwnedFd, output: OwnedFd },
}

/// Where stdin comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    Null,
    Piped,
}

/// A program that was started.
#[derive(Debug)]
pub struct Spawned {
    /// Also its process group and its session.
    pub pid: i32,
    pub exit: oneshot::Receiver<Exit>,
    pub stdin: Option<pipe::Sender>,
    /// Set when the streams are [`Streams::Piped`].
    pub output: Option<(pipe::Receiver, pipe::Receiver)>,
}

/// The program did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("empty argv")]
    EmptyArgv,
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("cannot enter {}", .cwd.display())]
    Directory {
        cwd: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("exec: {name:?} cannot be executed")]
    NotExecutable {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("failed to start {name:?}")]
    Start {
        name: String,
        #[source]
        source: io::Error,
    },
}

/// Added to the errno that a failed `chdir` in the child reports. The standard library carries
/// one integer from the child to us; this says which call it is about.
const IN_CHDIR: i32 = 0x1000;

/// Starts `program`. Needs a tokio runtime when the streams are piped.
pub fn spawn(reaper: &Reaper, program: &Program, streams: Streams) -> Result<Spawned, SpawnError> {
    let name = program.argv.first().ok_or(SpawnError::EmptyArgv)?;
    let path = program.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let file = find_program(name, path, &program.cwd)?;
    let failed = |source: io::Error| SpawnError::Start { name: name.clone(), source };

    let mut command = Command::new(file);
    command.arg0(name).args(&program.argv[1..]).env_clear().envs(&program.env);
    let terminal = matches!(streams, Streams::Terminal(_));
    become_user(&mut command, program, terminal).map_err(failed)?;
    let ours = connect(&mut command, streams).map_err(failed)?;
    let (pid, exit) =
        reaper.spawn(&mut command).map_err(|source| explain(program, name, source))?;
    // Drops our copies of the child's ends; while one is open, the pipes never end.
    drop(command);
    let (stdin, output) = ours;
    Ok(Spawned { pid, exit, stdin, output })
}

type OurEnds = (Option<pipe::Sender>, Option<(pipe::Receiver, pipe::Receiver)>);

fn connect(command: &mut Command, streams: Streams) -> io::Result<OurEnds> {
    let stdin = match streams {
        Streams::File(file) => {
            command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
            return Ok((None, None));
        }
        Streams::Terminal(tty) => {
            command.stdin(tty.try_clone()?).stdout(tty.try_clone()?).stderr(tty);
            return Ok((None, None));
        }
        Streams::Merged { stdin, output } => {
            command.stdin(stdin).stdout(output.try_clone()?).stderr(output);
            return Ok((None, None));
        }
        Streams::Piped(stdin) => stdin,
    };
    let to_child = match stdin {
        Stdin::Null => {
            command.stdin(Stdio::null());
            None
        }
        Stdin::Piped => {
            let (theirs, ours) = new_pipe()?;
            command.stdin(theirs);
            Some(pipe::Sender::from_owned_fd(ours)?)
        }
    };
    let (out, out_theirs) = new_pipe()?;
    let (err, err_theirs) = new_pipe()?;
    command.stdout(out_theirs).stderr(err_theirs);
    Ok((to_child, Some((pipe::Receiver::from_owned_fd(out)?, pipe::Receiver::from_owned_fd(err)?))))
}

/// Reading end, writing end.
fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// What the child does between fork and exec. The standard library has by then reset SIGPIPE and
/// the signal mask; handlers are reset by exec. `terminal`: stdin is one, and becomes the
/// controlling terminal.
fn become_user(command: &mut Command, program: &Program, terminal: bool) -> io::Result<()> {
    let Identity { uid, gid, groups } = program.identity.clone();
    let cwd = CString::new(program.cwd.as_os_str().as_encoded_bytes())?;
    let child = move || {
        // SAFETY: all of these are async-signal-safe system calls on values this closure owns;
        // nothing is allocated.
        unsafe {
            check(libc::setsid())?;
            if terminal {
                check(libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0))?;
            }
            // An unprivileged test runs as the one user it can be.
            if libc::geteuid() == 0 {
                check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                check(libc::setresgid(gid, gid, gid))?;
                check(libc::setresuid(uid, uid, uid))?;
            }
            libc::umask(0o022);
            // As the user, whose permissions decide.
            check(libc::chdir(cwd.as_ptr())).map_err(|error| {
                io::Error::from_raw_os_error(
                    IN_CHDIR | error.raw_os_error().unwrap_or(libc::EINVAL),
                )
            })
        }
    };
    // SAFETY: `child` only makes async-signal-safe calls.
    unsafe { command.pre_exec(child) };
    Ok(())
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn explain(program: &Program, name: &str, source: io::Error) -> SpawnError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(code) if code & IN_CHDIR != 0 => SpawnError::Directory {
            cwd: program.cwd.clone(),
            source: io::Error::from_raw_os_error(code & !IN_CHDIR),
        },
        // ENOENT after we found the file: the interpreter in its first line is missing.
        Some(libc::ENOENT | libc::EACCES | libc::ENOEXEC | libc::EPERM | libc::ELIBBAD) => {
            SpawnError::NotExecutable { name, source }
        }
        _ => SpawnError::Start { name, source },
    }
}
