//! What the daemon runs on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use crate::domain::Domain;
use crate::file::FileSettings;

/// Which engine runs the machines. The simulator is for tests and cannot be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// Probe the host once at start and take the best that works.
    #[default]
    Auto,
    /// QEMU, with KVM where it works and emulation elsewhere.
    Qemu,
    /// Firecracker, which needs KVM.
    Firecracker,
}

/// When an idle sandbox goes to sleep. Both are counted from its last use; `None` is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thermal {
    /// `thermal.warm_after`: then its virtual CPUs stop.
    pub warm_after: Option<Duration>,
    /// `thermal.cold_after`: then its memory goes to disk. Not below `warm_after`.
    pub cold_after: Option<Duration>,
}

impl Default for Thermal {
    fn default() -> Self {
        Self {
            warm_after: Some(Duration::from_secs(30)),
            cold_after: Some(Duration::from_secs(30 * 60)),
        }
    }
}

/// How many golden snapshots are kept: machines frozen right after boot, which a create continues
/// instead of booting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goldens {
    /// `goldens.max_count`; at least 1.
    pub max_count: u32,
    /// `goldens.max_mb`: all of them together. 0: none are made, every create boots.
    pub max_mb: u32,
}

impl Default for Goldens {
    fn default() -> Self {
        Self { max_count: 8, max_mb: 4096 }
    }
}

/// What each machine may use in a second; `None`: as much as there is. Kept by Firecracker only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `limits.disk_mb_per_sec`: read and written together.
    pub disk_mb_per_sec: Option<u32>,
    /// `limits.disk_ops_per_sec`
    pub disk_ops_per_sec: Option<u32>,
    /// `limits.network_mb_per_sec`: in each direction.
    pub network_mb_per_sec: Option<u32>,
}

/// How often published ports may be asked; each in a minute, a third to all of it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicLimits {
    /// `public_limits.requests_per_min`: all together.
    pub requests_per_min: u32,
    /// `public_limits.client_per_min`: one address. Clients on this host are not counted, a web
    /// server in front of the daemon being one.
    pub client_per_min: u32,
    /// `public_limits.alias_per_min`: one alias.
    pub alias_per_min: u32,
}

impl Default for PublicLimits {
    fn default() -> Self {
        Self { requests_per_min: 10_000, client_per_min: 1500, alias_per_min: 5000 }
    }
}

/// What becomes of running machines when the daemon is told to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnShutdown {
    /// They run on; the next daemon adopts them.
    #[default]
    Keep,
    /// Each goes to disk; the next use continues it. For a host that is about to go down.
    Freeze,
}

/// Where published ports are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicProxy {
    pub address: SocketAddr,
    /// Whether somebody asked for this address: the usual one may be taken without harm.
    pub asked_for: bool,
}

impl Default for PublicProxy {
    /// This host only, where nothing else is usually found.
    fn default() -> Self {
        Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8090)), asked_for: false }
    }
}

/// How many user ids from [`ServerConfig::jail_uid_base`] on belong to the daemon.
pub(crate) const JAIL_UID_COUNT: u32 = 65_536;

/// Where `jail_uid_base` may lie. Below are accounts of the host; from 2^31 on, ids that some
/// file systems and tools take for negative numbers.
pub const JAIL_UIDS: Range<u32> = 65_536..1 << 31;

/// A validated server configuration: it exists only if the file made sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// `engine`
    pub engine: EngineChoice,
    /// `listen`; the API's address, `:8080` by default.
    pub listen: SocketAddr,
    /// `public_proxy_listen`; `None`: published ports are not answered. Where there is a
    /// [`Self::domain`] it decides, and this is not used.
    pub public_proxy: Option<PublicProxy>,
    /// `data_dir`, absolute; `~/.bhatti` by default.
    pub data_dir: Utf8PathBuf,
    /// `kernel`; `<data_dir>/kernel/vmlinux` by default.
    pub kernel: Utf8PathBuf,
    /// `initramfs`; `<data_dir>/kernel/initramfs.cpio` by default.
    pub initramfs: Utf8PathBuf,
    /// `qemu_bin`; `None`: looked up in the usual places.
    pub qemu_bin: Option<Utf8PathBuf>,
    /// `firecracker_bin`; `None`: looked up on `PATH`.
    pub firecracker_bin: Option<Utf8PathBuf>,
    /// `firecracker_seccomp_filter`: a compiled system call filter in place of the one that is
    /// built into Firecracker; a build without one needs it.
    pub firecracker_seccomp_filter: Option<Utf8PathBuf>,
    /// `default_image`: what a create without an image gets.
    pub default_image: String,
    /// `dns_upstreams`; empty: the host's.
    pub dns_upstreams: Vec<IpAddr>,
    /// `network_prefix`: begins the name of every network object, so that several daemons can
    /// share a host.
    pub network_prefix: String,
    /// `jail_uid_base`: the first of 65536 user ids, one per machine.
    ///
    /// The default, 0x7B000000 (2063597568), lies in the part that systemd's map of user ids
    /// leaves unassigned: above its container range (ends at 0x6FFFFFFF), below the foreign ids
    /// (start at 0x7FFE0000), far from subordinate ids (start at 100000). Another
    /// `network_prefix` has another default, so that two daemons do not share user ids.
    pub jail_uid_base: u32,
    /// `boot_timeout_sec`: how long a guest may take until its agent answers.
    pub boot_timeout_sec: u32,
    /// `thermal`
    pub thermal: Thermal,
    /// `goldens`
    pub goldens: Goldens,
    /// `limits`
    pub limits: Limits,
    /// `domain`; then the public side is there, and [`Self::public_proxy`] is not used.
    pub domain: Option<Domain>,
    /// `public_limits`
    pub public_limits: PublicLimits,
    /// `on_shutdown`
    pub on_shutdown: OnShutdown,
    /// The file all this came from, if there was one.
    pub source: Option<Utf8PathBuf>,
}

impl ServerConfig {
    /// Fills the gaps of `file`. `data_dir` comes from the command line and wins.
    pub(crate) fn complete(
        file: &FileSettings,
        data_dir: Option<&Utf8Path>,
        home: &Utf8Path,
        source: Option<Utf8PathBuf>,
    ) -> Self {
        let data_dir = data_dir
            .map(Utf8Path::to_owned)
            .or_else(|| file.data_dir.clone())
            .unwrap_or_else(|| home.join(".bhatti"));
        let below = |own: &Option<Utf8PathBuf>, name: &str| {
            own.clone().unwrap_or_else(|| data_dir.join("kernel").join(name))
        };
        let (thermal, goldens) = (Thermal::default(), Goldens::default());
        let network_prefix = file.network_prefix.clone().unwrap_or_else(|| "bhatti-".to_owned());
        Self {
            engine: file.engine.unwrap_or_default(),
            listen: file.listen.unwrap_or(match file.domain {
                None => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
                // Plain only for who is here: the rest of the world has TLS.
                Some(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            }),
            public_proxy: match file.public_proxy_listen {
                None => Some(PublicProxy::default()),
                Some(asked) => asked.map(|address| PublicProxy { address, asked_for: true }),
            },
            kernel: below(&file.kernel, "vmlinux"),
            initramfs: below(&file.initramfs, "initramfs.cpio"),
            qemu_bin: file.qemu_bin.clone(),
            firecracker_bin: file.firecracker_bin.clone(),
            firecracker_seccomp_filter: file.firecracker_seccomp_filter.clone(),
            default_image: file.default_image.clone().unwrap_or_else(|| "minimal".to_owned()),
            dns_upstreams: file.dns_upstreams.clone().unwrap_or_default(),
            jail_uid_base: file.jail_uid_base.unwrap_or_else(|| uid_base(&network_prefix)),
            network_prefix,
            boot_timeout_sec: file.boot_timeout_sec.unwrap_or(60),
            thermal: Thermal {
                warm_after: file.warm_after.unwrap_or(thermal.warm_after),
                cold_after: file.cold_after.unwrap_or(thermal.cold_after),
            },
            goldens: Goldens {
                max_count: file.goldens_max_count.unwrap_or(goldens.max_count),
                max_mb: file.goldens_max_mb.unwrap_or(goldens.max_mb),
            },
            limits: file.limits,
            domain: file.domain.clone(),
            public_limits: file.public_limits,
            on_shutdown: file.on_shutdown.unwrap_or_default(),
            source,
            data_dir,
        }
    }
}

/// The first user id of a daemon's machines. The usual prefix has the first block of 65536; any
/// other one has one of the 62 after it, by its hash.
fn uid_base(network_prefix: &str) -> u32 {
    const FIRST: u32 = 0x7B00_0000;
    if network_prefix == "bhatti-" {
        return FIRST;
    }
    // FNV-1a: the same for ever, since ids of a stopped machine's files depend on it.
    let hash = network_prefix
        .bytes()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    FIRST + (1 + hash % 62) * 65_536
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_do_not_share_user_ids() {
        assert_eq!(uid_base("bhatti-"), 0x7B00_0000);
        for prefix in ["a-", "b-", "two-"] {
            let base = uid_base(prefix);
            assert!(
                (0x7B01_0000..=0x7B3E_0000).contains(&base) && base.is_multiple_of(65_536),
                "{base:#x}"
            );
        }
    }
}
