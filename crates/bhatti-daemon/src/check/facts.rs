//! What there is to see of this host. Reads; makes nothing that stays.
//!
//! A file of the kernel that is not there is a fact too: [`None`]. Every file is read up to a bound.

use std::fs::File;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::{Command, Stdio};

use bhatti_config::{EngineChoice, ServerConfig};
use bhatti_engine_firecracker::Program;
use bhatti_engine_qemu::Found;
use bhatti_lifecycle::chain;
use bhatti_vmm::cgroup::Cgroups;
use bhatti_vmm::kvm;
use camino::{Utf8Path, Utf8PathBuf};
use nix::sched::CloneFlags;

use crate::app::VMM_UIDS;
use crate::engine::{firecracker_config, qemu_config};

/// No file of the kernel's that is read here is longer.
const MOST: u64 = 1 << 20;

/// All of it. Texts are as the kernel writes them, errors as people read them.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub uid: u32,
    pub architecture: &'static str,
    /// `6.1.0-44-amd64`.
    pub kernel: String,
    /// The kernel's command line.
    pub command_line: String,
    pub engine: EngineChoice,
    pub kvm: kvm::Facts,
    pub qemu: Result<Found, String>,
    /// `Ok(None)`: there is none, and nobody has named one.
    pub firecracker: Result<Option<Program>, String>,
    /// The configuration names a filter for it.
    pub own_filter: bool,
    pub cgroups: Result<ControlGroups, String>,
    pub mounts: String,
    pub namespaces: Result<(), String>,
    pub tun: Result<(), String>,
    pub ip: Result<(), String>,
    pub nft: Result<(), String>,
    pub data_dir: DataDir,
    /// Files that machines boot from, and that are missing.
    pub missing: Vec<(&'static str, Utf8PathBuf)>,
    /// How many images there are.
    pub images: usize,
    pub listen: Result<String, String>,
    /// The zone, or why it cannot be answered for; `None`: there is to be none.
    pub domain: Option<Result<String, String>>,
    pub vmm_uids: (u32, u32),
    /// `/etc/passwd` and `/etc/subuid`.
    pub accounts: String,
    pub subordinates: String,
    /// How many files a process may have open, at most.
    pub open_files: u64,
    /// What the daemon trusts and somebody else than root can change.
    pub writable: Vec<Utf8PathBuf>,
    pub seccomp: Option<String>,
    pub smt: Option<String>,
    pub ksm: Option<String>,
    pub swaps: String,
    pub thp: Option<String>,
    /// What the kernel says of each weakness of the CPU, by its name.
    pub vulnerabilities: Vec<(String, String)>,
    pub nx_huge_pages: Option<String>,
    pub min_timer_period_us: Option<String>,
    pub printk: String,
    pub consoles: String,
}

/// What bounds machines.
#[derive(Clone, Debug)]
pub(super) struct ControlGroups {
    pub unified: bool,
    /// A sentence for each bound that cannot be kept.
    pub lacks: Vec<String>,
}

/// Where everything is kept.
#[derive(Clone, Debug)]
pub(super) struct DataDir {
    pub path: Utf8PathBuf,
    /// The nearest directory there is, if that one is not.
    pub above: Option<Utf8PathBuf>,
    pub free_mib: u64,
    /// A daemon runs on it.
    pub in_use: bool,
    /// Files can share blocks. `None`: it cannot be tried.
    pub reflink: Option<bool>,
}

impl Facts {
    /// Looks at this host.
    pub(super) fn observe(config: &ServerConfig) -> Self {
        let data_dir = DataDir::observe(&config.data_dir);
        let qemu = bhatti_engine_qemu::find(&qemu_config(config)).map_err(|error| chain(&error));
        let firecracker = find_firecracker(config);
        let programs = [
            qemu.as_ref().ok().map(|found| found.program.clone()),
            firecracker.as_ref().ok().and_then(|found| Some(found.as_ref()?.path.clone())),
        ];
        let trusted = programs.into_iter().flatten().chain([
            config.kernel.clone(),
            config.initramfs.clone(),
            config.data_dir.clone(),
        ]);
        let trusted = trusted.chain(config.firecracker_seccomp_filter.clone());
        let missing = [("guest kernel", &config.kernel), ("guest initramfs", &config.initramfs)];
        let missing = missing.into_iter().filter(|(_, path)| !path.is_file());
        Self {
            uid: nix::unistd::geteuid().as_raw(),
            architecture: std::env::consts::ARCH,
            kernel: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            command_line: text("/proc/cmdline").unwrap_or_default(),
            engine: config.engine,
            kvm: kvm::Facts::observe(),
            writable: trusted.filter_map(|path| writable_by_others(&path)).collect(),
            qemu,
            firecracker,
            own_filter: config.firecracker_seccomp_filter.is_some(),
            cgroups: control_groups(),
            mounts: text("/proc/self/mounts").unwrap_or_default(),
            namespaces: namespaces(),
            tun: tun(),
            ip: runs("ip", &["-V"]),
            nft: runs("nft", &["list", "tables"]),
            domain: config.domain.as_ref().map(|domain| {
                let checked = crate::http::check_certificate(domain);
                checked.map(|()| domain.proxy_zone.clone()).map_err(|error| chain(&error))
            }),
            listen: listen(config),
            missing: missing.map(|(what, path)| (what, path.clone())).collect(),
            images: images(&config.data_dir.join("images")),
            data_dir,
            vmm_uids: (config.jail_uid_base, VMM_UIDS),
            accounts: text("/etc/passwd").unwrap_or_default(),
            subordinates: text("/etc/subuid").unwrap_or_default(),
            open_files: nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
                .map_or(0, |(_, hard)| hard),
            seccomp: text("/proc/sys/kernel/seccomp/actions_avail"),
            smt: text("/sys/devices/system/cpu/smt/control"),
            ksm: text("/sys/kernel/mm/ksm/run"),
            swaps: text("/proc/swaps").unwrap_or_default(),
            thp: text("/sys/kernel/mm/transparent_hugepage/enabled"),
            vulnerabilities: vulnerabilities(),
            nx_huge_pages: text("/sys/module/kvm/parameters/nx_huge_pages"),
            min_timer_period_us: text("/sys/module/kvm/parameters/min_timer_period_us"),
            printk: text("/proc/sys/kernel/printk").unwrap_or_default(),
            consoles: text("/proc/consoles").unwrap_or_default(),
        }
    }
}

impl DataDir {
    fn observe(path: &Utf8Path) -> Self {
        let there = path.ancestors().find(|place| place.is_dir()).unwrap_or(Utf8Path::new("/"));
        let free_mib = nix::sys::statvfs::statvfs(there.as_std_path())
            .map_or(0, |stat| stat.blocks_available().saturating_mul(stat.fragment_size()) >> 20);
        // Whoever runs holds it; looking takes it for a moment only.
        let in_use = File::open(path.join("lock"))
            .is_ok_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
        Self {
            path: path.to_owned(),
            above: (there != path).then(|| there.to_owned()),
            free_mib,
            in_use,
            reflink: files_share_blocks(there).ok(),
        }
    }
}

/// A file of the kernel's, without the end of its last line.
fn text(path: &str) -> Option<String> {
    let mut content = Vec::new();
    File::open(path).ok()?.take(MOST).read_to_end(&mut content).ok()?;
    Some(String::from_utf8_lossy(&content).trim_end().to_owned())
}

fn find_firecracker(config: &ServerConfig) -> Result<Option<Program>, String> {
    match bhatti_engine_firecracker::find(&firecracker_config(config)) {
        Ok(found) => Ok(Some(found)),
        Err(bhatti_engine::EngineError::MissingProgram { .. })
            if config.firecracker_bin.is_none() =>
        {
            Ok(None)
        }
        Err(error) => Err(chain(&error)),
    }
}

fn control_groups() -> Result<ControlGroups, String> {
    let groups = Cgroups::find("bhatti").map_err(|error| chain(&error))?;
    Ok(ControlGroups { unified: groups.is_unified(), lacks: groups.warnings().to_vec() })
}

/// Makes the namespaces a machine lives in, for a thread that ends with them.
fn namespaces() -> Result<(), String> {
    let of_a_machine = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let made = std::thread::spawn(move || nix::sched::unshare(of_a_machine)).join();
    match made {
        Ok(made) => made.map_err(|errno| errno.desc().to_owned()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn tun() -> Result<(), String> {
    let opened = File::options().read(true).write(true).open("/dev/net/tun");
    opened.map(drop).map_err(|error| error.to_string())
}

/// Whether a program is there and does something harmless.
fn runs(program: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "not installed".to_owned(),
        _ => error.to_string(),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next().unwrap_or("it fails without a word").chars().take(200).collect())
}

fn listen(config: &ServerConfig) -> Result<String, String> {
    let address = config.listen;
    TcpListener::bind(address)
        .map(|_| address.to_string())
        .map_err(|error| format!("{address}: {error}"))
}

fn images(dir: &Utf8Path) -> usize {
    let entries = dir.read_dir_utf8().into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().ends_with(".ext4")).count()
}

/// The nearest part of a path that somebody else than root could change, or put another file at: of the
/// path as it is written, and of the place it leads to by links.
fn writable_by_others(path: &Utf8Path) -> Option<Utf8PathBuf> {
    let leads_to = path.canonicalize_utf8().ok();
    [Some(path), leads_to.as_deref()].into_iter().flatten().find_map(open_part)
}

fn open_part(path: &Utf8Path) -> Option<Utf8PathBuf> {
    let open_to_others = |place: &&Utf8Path| {
        let Ok(found) = place.metadata() else { return false };
        // In a directory that is sticky nobody replaces what belongs to root.
        let sticky = found.is_dir() && found.mode() & 0o1000 != 0;
        found.uid() != 0 || (found.mode() & 0o022 != 0 && !sticky)
    };
    path.ancestors().find(open_to_others).map(Utf8Path::to_owned)
}

fn vulnerabilities() -> Vec<(String, String)> {
    let dir = "/sys/devices/system/cpu/vulnerabilities";
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<_> =
        names.filter_map(|name| Some((name.clone(), text(&format!("{dir}/{name}"))?))).collect();
    found.sort();
    found
}

/// Whether two files in there can share blocks, tried with two that have no name.
pub(crate) fn files_share_blocks(dir: &Utf8Path) -> io::Result<bool> {
    let nameless = || {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(nix::libc::O_TMPFILE).mode(0o600);
        options.open(dir)
    };
    let (from, to) = (nameless()?, nameless()?);
    from.set_len(4096)?;
    // SAFETY: a system call on integers.
    let shared = unsafe { nix::libc::ioctl(to.as_raw_fd(), nix::libc::FICLONE, from.as_raw_fd()) };
    Ok(shared == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Needs root.
    #[test]
    fn a_link_into_somebody_elses_directory_is_seen() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = Utf8Path::from_path(scratch.path()).expect("UTF-8");
        let (theirs, ours) = (path.join("theirs"), path.join("ours"));
        for dir in [&theirs, &ours] {
            std::fs::create_dir(dir).expect("a directory");
        }
        std::fs::write(theirs.join("vmm"), "").expect("a program");
        symlink(theirs.join("vmm"), ours.join("vmm")).expect("a link");
        assert_eq!(writable_by_others(&ours.join("vmm")), None, "all of it is root's");
        std::fs::set_permissions(&theirs, PermissionsExt::from_mode(0o777)).expect("open to all");
        assert_eq!(writable_by_others(&ours.join("vmm")), Some(theirs));
    }
}
