//! A process whose memory is mapped as a VMM maps its guest's, and which changes pages on demand.
//!
//! A forked child that does nothing but system calls and writes to its own mapping: the parent
//! never maps the same thing, so that no other child inherits it.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::super::mapping::Mapping;
use super::super::pages::{PAGE, Run};

/// One command: page, what to do, and the byte to do it with.
const COMMAND: usize = 6;
const READ: u8 = 0;
const FILL: u8 = 1;
const GIVE_BACK: u8 = 2;

/// Ends its process when dropped.
pub(in super::super) struct Machine {
    pub(in super::super) pid: i32,
    pages: u32,
    commands: UnixStream,
}

impl Machine {
    /// With a memory of zeros.
    pub(in super::super) fn zero(pages: u32) -> Self {
        let zero = std::fs::OpenOptions::new().read(true).write(true).open("/dev/zero");
        Self::start(zero.expect("every Linux has it").as_raw_fd(), pages, pages, false)
    }

    /// With a memory in two parts, the first of `first` pages, that lie the other way round: of
    /// nothing, or of a template.
    pub(in super::super) fn parted(
        template: Option<BorrowedFd<'_>>,
        pages: u32,
        first: u32,
    ) -> Self {
        Self::start(template.map_or(-1, |template| template.as_raw_fd()), pages, first, false)
    }

    /// With a memory that it never gives to anybody who wants to read it.
    pub(in super::super) fn stalling(pages: u32) -> Self {
        let zero = std::fs::OpenOptions::new().read(true).write(true).open("/dev/zero");
        Self::start(zero.expect("every Linux has it").as_raw_fd(), pages, pages, true)
    }

    /// With the memory of a template, opened as QEMU opens it.
    pub(in super::super) fn over(template: BorrowedFd<'_>, pages: u32) -> Self {
        let path = format!("/proc/self/fd/{}", template.as_raw_fd());
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path);
        Self::start(
            file.expect("a sealed memfd can be opened for writing").as_raw_fd(),
            pages,
            pages,
            false,
        )
    }

    fn start(file: RawFd, pages: u32, first: u32, stalling: bool) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (bytes, first) = (pages as usize * PAGE, first as usize * PAGE);
        // SAFETY: the child calls nothing but system calls until it ends (`live`).
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork failed");
        if pid == 0 {
            live(file, bytes, first, stalling, theirs.as_raw_fd());
        }
        let mut machine = Self { pid, pages, commands: ours };
        machine.answer();
        machine
    }

    /// Makes the whole page that byte.
    pub(in super::super) fn fill(&mut self, page: u32, byte: u8) {
        self.command(page, FILL, byte);
    }

    /// Puts memory of nothing in the place of a page, as Firecracker does with what its guest has freed.
    pub(in super::super) fn give_back(&mut self, page: u32) {
        self.command(page, GIVE_BACK, 0);
    }

    /// Reads a page, as a guest does that only looks.
    pub(in super::super) fn look(&mut self, page: u32) {
        self.command(page, READ, 0);
    }

    pub(in super::super) fn mapping(&self) -> Mapping {
        Mapping::find(self.pid, u64::from(self.pages) * PAGE as u64, crate::memory::Anonymous::Not)
            .unwrap()
    }

    /// All of its memory.
    pub(in super::super) fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; self.pages as usize * PAGE];
        self.mapping().read(Run { first: 0, count: self.pages }, &mut memory).unwrap();
        memory
    }

    /// The first byte of a page.
    pub(in super::super) fn byte(&self, page: u32) -> u8 {
        let mut content = [0; PAGE];
        self.mapping().read(Run { first: page, count: 1 }, &mut content).unwrap();
        content[0]
    }

    fn command(&mut self, page: u32, what: u8, byte: u8) {
        assert!(page < self.pages);
        let [a, b, c, d] = page.to_ne_bytes();
        self.commands.write_all(&[a, b, c, d, what, byte]).unwrap();
        self.answer();
    }

    fn answer(&mut self) {
        self.commands.read_exact(&mut [0]).expect("the child lives");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet collected, so the pid is its own.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// The child: maps, answers, obeys.
fn live(file: RawFd, bytes: usize, first: usize, stalling: bool, commands: RawFd) -> ! {
    // SAFETY: after a fork of a process with threads only system calls are sound, and these are
    // all there is: no allocation, no lock. The mapping is `bytes` long and checked before use,
    // and a page is checked by the parent to lie within it.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let memory = map(file, bytes, first);
        if memory == libc::MAP_FAILED {
            libc::_exit(1);
        }
        if stalling && !keeps_its_pages(memory, bytes) {
            libc::_exit(1);
        }
        loop {
            if libc::write(commands, [0u8].as_ptr().cast(), 1) != 1 {
                libc::_exit(1);
            }
            let mut command = [0u8; COMMAND];
            if libc::read(commands, command.as_mut_ptr().cast(), COMMAND) != COMMAND as isize {
                libc::_exit(0);
            }
            let [a, b, c, d, what, byte] = command;
            let at = u32::from_ne_bytes([a, b, c, d]) as usize * PAGE;
            let place = if at < first { bytes - first + at } else { at - first };
            let page = memory.cast::<u8>().add(place);
            match what {
                FILL => page.write_bytes(byte, PAGE),
                GIVE_BACK => {
                    let access = libc::PROT_READ | libc::PROT_WRITE;
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                    if libc::mmap(page.cast(), PAGE, access, flags, -1, 0) == libc::MAP_FAILED {
                        libc::_exit(1);
                    }
                }
                _ => {
                    page.read_volatile();
                }
            }
        }
    }
}

/// Memory whose first part lies behind its second. System calls only.
fn map(file: RawFd, bytes: usize, first: usize) -> *mut libc::c_void {
    let nameless = if file < 0 { libc::MAP_ANONYMOUS } else { 0 };
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | nameless;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the first mapping is where the kernel likes it; the other replaces a part of it, which
    // nobody has used.
    unsafe {
        // First as it would lie in one piece, which all of it does if there is but one.
        let behind = bytes - first;
        let memory = libc::mmap(std::ptr::null_mut(), bytes, access, flags, file, 0);
        if memory == libc::MAP_FAILED || behind == 0 {
            return memory;
        }
        let flags = flags | libc::MAP_FIXED;
        let at = |from: usize, bytes, offset: usize| {
            let place = memory.cast::<u8>().add(from).cast();
            libc::mmap(place, bytes, access, flags, file, offset as libc::off_t)
        };
        let (one, two) = (at(behind, first, 0), at(0, behind, first));
        if one == libc::MAP_FAILED || two == libc::MAP_FAILED { libc::MAP_FAILED } else { memory }
    }
}

/// Asks the kernel to ask this process for each page that is missing, and never answers.
///
/// # Safety
///
/// `memory` is a mapping of `bytes`. System calls only.
unsafe fn keeps_its_pages(memory: *mut libc::c_void, bytes: usize) -> bool {
    // From the kernel's `userfaultfd.h`: the numbers of two calls, the interface's version, and
    // "pages that are missing".
    const API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
    const REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
    const VERSION: u64 = 0xaa;
    const MISSING: u64 = 1;
    let mut api = [VERSION, 0, 0];
    let mut register = [memory as u64, bytes as u64, MISSING, 0];
    // SAFETY: both structures are as long as the numbers of the calls say, 24 and 32 bytes.
    unsafe {
        let asked = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as libc::c_int;
        asked >= 0
            && libc::ioctl(asked, API, api.as_mut_ptr()) == 0
            && libc::ioctl(asked, REGISTER, register.as_mut_ptr()) == 0
    }
}
