//! The only part of the file system a VMM can name.
//!
//! ```text
//!  /            a tmpfs, read-only, no set-user-id, nothing executable
//!  ├─ machine   the machine's own directory: the one place it can write, and where it works
//!  ├─ kernel, initramfs, firmware                     one file each, read-only
//!  ├─ fd        in a clone: its own open descriptors, one of which is its memory's template
//!  ├─ dev       null, zero, urandom, and kvm if it is used; fresh nodes, not the host's
//!  ├─ etc/ld.so.cache                                 so that the loader finds libraries
//!  └─ usr/bin/qemu…, lib/…, usr/lib/…                 the program and its libraries' directories
//! ```
//!
//! There is no `/proc`, no `/sys` and no `/tmp`. Which libraries the program needs its loader is
//! asked once, at start; so it may be installed anywhere. The root is made in the child's own
//! mount namespace, in [`Jail::enter`], by classic mount calls that every supported kernel has
//! (ADR 0008 says why not Landlock); the host's mount table never changes.
//!
//! A start that fails in here says at which step on its standard error, the VMM's log.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use bhatti_engine::{Accel, Private};
use camino::{Utf8Path, Utf8PathBuf};

/// Names inside.
pub const KERNEL: &str = "/kernel";
pub const INITRAMFS: &str = "/initramfs";
pub const FIRMWARE: &str = "/firmware";
/// The VMM's own descriptors, by number.
pub const DESCRIPTORS: &str = "/fd";
const MACHINE: &CStr = c"/machine";

/// Where the new root is put together. Any directory would do that every host has and that
/// holds nothing of what goes into the root; only the child sees it covered.
const SITE: &CStr = c"/sys";
const SITE_MACHINE: &CStr = c"/sys/machine";
/// The root holds directories and mount points, no data.
const ROOT_OPTIONS: &CStr = c"size=256k,nr_inodes=2k,mode=755";
/// How the root shows in the VMM's table of mounts.
const ROOT_NAME: &CStr = c"bhatti-vmm";

const READ_ONLY: libc::c_ulong = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;

/// What every machine of an engine sees.
#[derive(Clone, Debug)]
pub struct Jail {
    steps: Vec<Step>,
    made: BTreeSet<Utf8PathBuf>,
}

/// One thing to make, with everything it takes: nothing may be allocated when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Directory(CString),
    /// Something to mount a file on.
    EmptyFile(CString),
    /// Shows `source` at `target`, which exists.
    Show {
        source: CString,
        target: CString,
        flags: libc::c_ulong,
    },
    Device {
        path: CString,
        number: libc::dev_t,
        /// `None`: root's, for everybody.
        owner: Option<Private>,
    },
}

impl Jail {
    /// The root for `program`. Asks the dynamic loader, so this blocks for as long as it takes
    /// to start the program.
    ///
    /// `shared` are more files that all machines see, each under a name of its own.
    pub fn of(program: &Utf8Path, shared: &[(&Utf8Path, &str)]) -> io::Result<Self> {
        let mut jail = Self { steps: Vec::new(), made: BTreeSet::new() };
        jail.directory("/machine".into());
        jail.directory("/dev".into());
        for (name, minor) in [("/dev/null", 3), ("/dev/zero", 5), ("/dev/urandom", 9)] {
            jail.device(name, libc::makedev(1, minor), None);
        }
        let libraries = library_directories(program)?;
        for directory in &libraries {
            jail.directory(directory.clone());
            jail.show(directory, directory, READ_ONLY);
        }
        let cache = Utf8Path::new("/etc/ld.so.cache");
        if cache.is_file() {
            jail.file(cache, cache, READ_ONLY | libc::MS_NOEXEC);
        }
        if !libraries.iter().any(|directory| program.starts_with(directory)) {
            jail.file(program, program, READ_ONLY);
        }
        for (source, target) in shared {
            let source = source.canonicalize_utf8()?;
            jail.file(&source, (*target).into(), READ_ONLY | libc::MS_NOEXEC);
        }
        Ok(jail)
    }

    /// The root of one machine.
    pub fn for_machine(&self, accel: Accel, owner: Private) -> Self {
        let mut jail = self.clone();
        if accel == Accel::Kvm {
            // A node of its own, so that it needs no group on the host.
            jail.device("/dev/kvm", libc::makedev(10, 232), Some(owner));
        }
        jail
    }

    /// With a node of its own of the device that TAPs are opened by.
    pub fn with_tun(mut self, owner: Private) -> Self {
        self.directory("/dev/net".into());
        self.device("/dev/net/tun", libc::makedev(10, 200), Some(owner));
        self
    }

    /// With a node of its own of the device by which a process asks to be asked for its pages.
    pub fn with_userfaultfd(mut self, number: libc::dev_t, owner: Private) -> Self {
        self.device("/dev/userfaultfd", number, Some(owner));
        self
    }

    /// With what a machine boots from.
    pub fn with_kernel(mut self, kernel: &Utf8Path, initramfs: &Utf8Path) -> io::Result<Self> {
        for (source, target) in [(kernel, KERNEL), (initramfs, INITRAMFS)] {
            let source = source.canonicalize_utf8()?;
            self.file(&source, target.into(), READ_ONLY | libc::MS_NOEXEC);
        }
        Ok(self)
    }

    /// With the process's own descriptors, by which QEMU opens a file that has no name. Nothing
    /// becomes reachable that it does not hold already.
    pub fn with_descriptors(mut self) -> Self {
        self.directory(DESCRIPTORS.into());
        // Taken in the child, so "self" is the VMM to be; an `exec` does not change that.
        self.show("/proc/self/fd".into(), DESCRIPTORS.into(), READ_ONLY | libc::MS_NOEXEC);
        self
    }

    /// Makes a directory and those above it, once.
    fn directory(&mut self, path: Utf8PathBuf) {
        let mut missing: Vec<_> = path
            .ancestors()
            .filter(|p| p.parent().is_some() && !self.made.contains(*p))
            .map(Utf8Path::to_owned)
            .collect();
        missing.reverse();
        for path in missing {
            self.steps.push(Step::Directory(at_site(&path)));
            self.made.insert(path);
        }
    }

    fn file(&mut self, source: &Utf8Path, target: &Utf8Path, flags: libc::c_ulong) {
        if let Some(above) = target.parent() {
            self.directory(above.to_owned());
        }
        self.steps.push(Step::EmptyFile(at_site(target)));
        self.show(source, target, flags);
    }

    fn show(&mut self, source: &Utf8Path, target: &Utf8Path, flags: libc::c_ulong) {
        self.steps.push(Step::Show { source: c_path(source), target: at_site(target), flags });
    }

    fn device(&mut self, name: &str, number: libc::dev_t, owner: Option<Private>) {
        self.steps.push(Step::Device { path: at_site(name.into()), number, owner });
    }

    /// Makes the root and moves into it. The caller is a child of one thread between `fork` and
    /// `exec`, privileged, in a mount namespace of its own, and its working directory is the
    /// machine's; afterwards it still is, under its new name. System calls only.
    pub fn enter(&self) -> io::Result<()> {
        // First: from here on nothing that is mounted is seen by anybody else.
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
        let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
        mount(Some(ROOT_NAME), SITE, Some(c"tmpfs"), flags, Some(ROOT_OPTIONS))?;
        // SAFETY: a system call on an integer.
        unsafe { libc::umask(0) };
        for step in &self.steps {
            step.take()?;
        }
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        show(c".", SITE_MACHINE, flags)?;
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NOEXEC;
        mount(None, SITE, None, libc::MS_REMOUNT | libc::MS_BIND | flags, None)?;
        chdir(SITE)?;
        // The old root ends up on top of the new one, and is then let go.
        // SAFETY: both are constants that end with a zero byte.
        let pivoted = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
        check(pivoted as isize, c"change the root at ", SITE)?;
        // SAFETY: the path is a constant that ends with a zero byte.
        let released = unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) };
        check(released as isize, c"let go of the host's root at ", SITE)?;
        chdir(MACHINE)
    }
}

impl Step {
    fn take(&self) -> io::Result<()> {
        match self {
            Self::Directory(path) => {
                // SAFETY: the path ends with a zero byte and lives as long as `self`.
                check(unsafe { libc::mkdir(path.as_ptr(), 0o755) } as isize, c"make ", path)
            }
            Self::EmptyFile(path) => {
                // SAFETY: as above. A plain file needs no device number.
                let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFREG | 0o444, 0) };
                check(made as isize, c"make ", path)
            }
            Self::Show { source, target, flags } => show(source, target, *flags),
            Self::Device { path, number, owner } => {
                let mode = libc::S_IFCHR | if owner.is_some() { 0o600 } else { 0o666 };
                // SAFETY: as above.
                let made = unsafe { libc::mknod(path.as_ptr(), mode, *number) };
                check(made as isize, c"make ", path)?;
                let Some(Private { uid, gid }) = *owner else { return Ok(()) };
                // SAFETY: as above.
                check(unsafe { libc::chown(path.as_ptr(), uid, gid) } as isize, c"give ", path)
            }
        }
    }
}

/// A bind mount takes its flags only when it is mounted again.
fn show(source: &CStr, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    mount(Some(source), target, None, libc::MS_BIND, None)?;
    mount(None, target, None, libc::MS_REMOUNT | libc::MS_BIND | flags, None)
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null where that is allowed, or a string that ends with a zero
    // byte and outlives the call.
    let result = unsafe {
        let (source, kind, options) = (pointer(source), pointer(kind), pointer(options));
        libc::mount(source, target.as_ptr(), kind, flags, options.cast())
    };
    check(result as isize, c"mount ", source.unwrap_or(target))
}

fn chdir(path: &CStr) -> io::Result<()> {
    // SAFETY: the path ends with a zero byte and outlives the call.
    check(unsafe { libc::chdir(path.as_ptr()) } as isize, c"enter ", path)
}

/// The error of a system call, if it failed; then what failed goes to standard error, because an
/// error number is all that can cross the `fork`.
fn check(result: isize, doing: &CStr, path: &CStr) -> io::Result<()> {
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    for text in [c"cannot ", doing, path, c"\n"] {
        // SAFETY: pointer and length are those of one string. Nobody can be told if it fails.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.count_bytes()) };
    }
    Err(error)
}

fn at_site(path: &Utf8Path) -> CString {
    let site = SITE.to_string_lossy();
    c_path(Utf8Path::new(&format!("{site}{path}")))
}

/// A path as the kernel takes it. One with a zero byte inside cannot name a file: it becomes one
/// that does not exist, and the mount says so.
fn c_path(path: &Utf8Path) -> CString {
    let bytes = path.as_os_str().as_bytes();
    CString::new(bytes).unwrap_or_else(|_| c"/zero byte in a path".to_owned())
}

/// The directories that hold what `program` loads, as its loader names them and as they are
/// really called, without those that lie in another of them.
fn library_directories(program: &Utf8Path) -> io::Result<BTreeSet<Utf8PathBuf>> {
    // A static program ignores the variable, so it is asked for something harmless.
    let output = Command::new(program)
        .arg("--version")
        .env_clear()
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .stdin(Stdio::null())
        .output()?;
    let mut found = BTreeSet::new();
    for file in loaded(&String::from_utf8_lossy(&output.stdout)) {
        for name in [file.canonicalize_utf8()?, file] {
            found.extend(name.parent().map(Utf8Path::to_owned));
        }
    }
    Ok(outermost(found))
}

/// The files in the loader's list: `name => /path (address)`, or for itself `/path (address)`.
fn loaded(trace: &str) -> Vec<Utf8PathBuf> {
    let path = |line: &str| {
        let named = line.split_once(" => ").map_or(line, |(_, path)| path);
        let (path, _) = named.trim().rsplit_once(" (0x")?;
        path.starts_with('/').then(|| Utf8PathBuf::from(path))
    };
    trace.lines().filter_map(path).collect()
}

fn outermost(found: BTreeSet<Utf8PathBuf>) -> BTreeSet<Utf8PathBuf> {
    // A path that goes up again is reached by its real name, which is in the set too.
    let plain = |path: &Utf8PathBuf| !path.as_str().contains("/..");
    let found: BTreeSet<_> = found.into_iter().filter(plain).collect();
    let inner = |path: &Utf8Path| path.ancestors().skip(1).any(|above| found.contains(above));
    found.iter().filter(|path| !inner(path)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_understood() {
        let trace = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                     \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f08)\n\
                     \tlibgone.so => not found\n\
                     \tlibodd.so => /opt/with space/libodd.so (0x01)\n\
                     \t/lib64/ld-linux-x86-64.so.2 (0x00007f08)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libz.so.1",
            "/opt/with space/libodd.so",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(loaded(trace), expected.map(Utf8PathBuf::from));
        assert!(loaded("QEMU emulator version 7.2.22\n").is_empty(), "a static program");
    }

    #[test]
    fn a_directory_inside_another_is_not_shown_twice() {
        let found = ["/usr/lib/a", "/usr/lib/a/b", "/usr/lib/ab", "/opt/q/bin/../lib"];
        let kept = outermost(found.map(Utf8PathBuf::from).into());
        assert_eq!(kept, ["/usr/lib/a", "/usr/lib/ab"].map(Utf8PathBuf::from).into());
    }

    #[test]
    fn directories_are_made_from_the_top_and_once() {
        let mut jail = Jail { steps: Vec::new(), made: BTreeSet::new() };
        jail.directory("/a/b".into());
        jail.directory("/a/c".into());
        let expected = [c"/sys/a", c"/sys/a/b", c"/sys/a/c"].map(|p| Step::Directory(p.to_owned()));
        assert_eq!(jail.steps, expected);
    }
}
