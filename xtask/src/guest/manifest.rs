//! Says what lies in the directory: for the daemon's log, for people, and for bug reports.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::agent::Agent;
use super::arch::Arch;
use super::kernel::{Kernel, VMLINUX};
use super::stamp::{self, Stamp};
use super::{image, initramfs};

/// The file's name.
const MANIFEST: &str = "manifest.json";

#[derive(Serialize)]
struct Manifest<'a> {
    format: u32,
    files: BTreeMap<&'a str, FileEntry<'a>>,
    kernel: KernelEntry<'a>,
    agent: AgentEntry<'a>,
    /// In load order, as they are called in the initramfs.
    modules: Vec<&'a str>,
    /// What the image holds; absent if it was not built.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_packages: Option<&'a [String]>,
}

#[derive(Serialize)]
struct FileEntry<'a> {
    sha256: &'a str,
    bytes: u64,
}

#[derive(Serialize)]
struct KernelEntry<'a> {
    package: &'a str,
    version: &'a str,
}

#[derive(Serialize)]
struct AgentEntry<'a> {
    target: &'a str,
    sha256: &'a str,
    bytes: u64,
}

/// Writes `manifest.json` for what was just built or found finished.
pub(crate) fn write(
    arch: Arch,
    dir: &Path,
    kernel: &Kernel,
    agent: &Agent,
    initramfs: &Stamp,
    image: Option<&Stamp>,
) -> Result<()> {
    let image_name = image::name(arch);
    let mut files = BTreeMap::new();
    for (name, stamp) in [
        (VMLINUX, Some(&kernel.vmlinux)),
        (initramfs::INITRAMFS, Some(initramfs)),
        (image_name.as_str(), image),
    ] {
        if let Some(stamp) = stamp {
            files.insert(name, FileEntry { sha256: &stamp.sha256, bytes: stamp.bytes });
        }
    }
    let modules = kernel.modules.packages.iter();
    let manifest = Manifest {
        format: 1,
        files,
        kernel: KernelEntry { package: &kernel.package.name, version: &kernel.package.version },
        agent: AgentEntry { target: &agent.target, sha256: &agent.sha256, bytes: agent.bytes },
        modules: modules.filter_map(|name| name.strip_prefix("modules/")).collect(),
        image_packages: image.map(|stamp| stamp.packages.as_slice()),
    };
    stamp::replace(&dir.join(MANIFEST), serde_json::to_string_pretty(&manifest)?.as_bytes())
}
