//! Picks kernel modules and puts them in the order they can be loaded in.
//!
//! The agent has no `modprobe`: it loads what lies in `/modules` by name. So each file is called
//! `NN-name.ko`, and whatever a module needs has a smaller number.
//!
//! Their signatures are left out: the kernel would check them at every boot, and who could change
//! the modules could change the agent that loads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::cpio::{Entry, Tree};
use crate::process;

/// Where modules lie and which: each directory holds, beside those, what they need and no directory
/// before it has. Each module costs every boot some milliseconds, so nothing is here in advance of
/// its use.
pub(crate) const WANTED: &[(&str, &[&str])] = &[
    // What a guest needs before it can reach its disk and its host, in this order.
    (
        "modules",
        &["virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng", "overlay"],
    ),
    // What only a machine with virtio's socket device loads, which is one of Firecracker's.
    ("modules/vsock", &["vmw_vsock_virtio_transport"]),
    // What such a machine loads when it has run for a while: this reports which memory is free.
    ("modules/later", &["virtio_balloon"]),
];

/// Reads, strips and numbers the wanted modules and all they depend on.
pub(crate) fn collect(release_dir: &Path, scratch: &Path) -> Result<Tree> {
    let files = find(release_dir)?;
    let builtin = fs::read_to_string(release_dir.join("modules.builtin"))
        .context("failed to read the kernel's list of built-in modules")?;
    let builtin: BTreeSet<String> =
        builtin.lines().map(|line| canonical(Path::new(line))).collect();

    let mut contents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let wanted: Vec<&str> = WANTED.iter().flat_map(|(_, names)| *names).copied().collect();
    let order = load_order(&wanted, |name| {
        if builtin.contains(name) {
            return Ok(Needs::Nothing);
        }
        let path = files.get(name).with_context(|| format!("this kernel has no module {name}"))?;
        let content = read(path, scratch)?;
        let needs = depends(&content);
        contents.insert(name.to_owned(), content);
        Ok(Needs::Load(needs))
    })?;

    let mut tree: Tree =
        WANTED.iter().map(|(dir, _)| ((*dir).to_owned(), Entry::Directory)).collect();
    for (number, name) in order.iter().enumerate() {
        let content = contents.remove(name).context("every module in the order was read")?;
        let entry = Entry::File { mode: 0o644, content: without_signature(content) };
        let comes_last = |names: &[&str]| order.iter().rposition(|n| names.contains(&n.as_str()));
        let (dir, _) = WANTED
            .iter()
            .find(|(_, names)| comes_last(names) >= Some(number))
            .context("each module in the order is wanted, or needed by one behind it")?;
        tree.insert(format!("{dir}/{number:02}-{name}.ko"), entry);
    }
    Ok(tree)
}

/// What loading a module takes.
enum Needs {
    /// It is part of the kernel.
    Nothing,
    /// It is a file, and these come first.
    Load(Vec<String>),
}

/// Depth first: a module follows all it depends on, and appears once.
fn load_order(
    wanted: &[&str],
    mut needs: impl FnMut(&str) -> Result<Needs>,
) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        needs: &mut impl FnMut(&str) -> Result<Needs>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        if let Needs::Load(dependencies) = needs(name)? {
            for dependency in dependencies {
                visit(&dependency, needs, seen, order)
                    .with_context(|| format!("{name} needs {dependency}"))?;
            }
            order.push(name.to_owned());
        }
        Ok(())
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in wanted {
        visit(name, &mut needs, &mut seen, &mut order)?;
    }
    Ok(order)
}

/// The `depends=` line of a module's `.modinfo` section. The line starts with the NUL that ends
/// the one before it, which keeps symbols that merely contain the word apart.
fn depends(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|window| window == MARK) else {
        return Vec::new();
    };
    let value = module[at + MARK.len()..].split(|&b| b == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// A module's name does not tell `-` from `_`, its file name does.
fn canonical(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn find(release_dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![release_dir.join("kernel")];
    while let Some(dir) = todo.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("failed to list {}", dir.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("failed to list {}", dir.display()))?.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.to_string_lossy().contains(".ko") {
                found.insert(canonical(&path), path);
            }
        }
    }
    Ok(found)
}

/// The module itself, whether the distribution packs it or not.
fn read(path: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let plain = match path.extension().and_then(|e| e.to_str()) {
        Some("ko") => path.to_path_buf(),
        Some("xz") => {
            let copy = scratch.join("module.ko");
            fs::copy(path, copy.with_extension("ko.xz"))
                .with_context(|| format!("failed to copy {}", path.display()))?;
            process::run_quiet(
                Command::new("xz").args(["-d", "-f"]).arg(copy.with_extension("ko.xz")),
            )?;
            copy
        }
        _ => bail!("{} is packed in a way we cannot open", path.display()),
    };
    fs::read(&plain).with_context(|| format!("failed to read {}", plain.display()))
}

/// The module without what the kernel's build appends: the signature, what describes it, a mark.
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    const MARK: &[u8] = b"~Module signature appended~\n";
    /// The length of the signature is the last of the description's fields.
    const DESCRIPTION: usize = 12;
    let Some(described) = module.strip_suffix(MARK) else { return module };
    let Some((_, length)) = described.split_last_chunk::<4>() else { return module };
    let signature = u32::from_be_bytes(*length) as usize;
    if let Some(end) = described.len().checked_sub(DESCRIPTION + signature) {
        module.truncate(end);
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(wanted: &[&str]) -> Result<Vec<String>> {
        load_order(wanted, |name| {
            let needs: &[&str] = match name {
                "net" => &["failover", "ring"],
                "blk" => &["ring", "core"],
                "ring" => &["core"],
                "core" | "failover" => &[],
                "ext4" => return Ok(Needs::Nothing),
                other => bail!("no module {other}"),
            };
            Ok(Needs::Load(needs.iter().map(|&n| n.to_owned()).collect()))
        })
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let order = order(&["net", "ext4", "blk"]).expect("all exist");
        assert_eq!(order, ["failover", "core", "ring", "net", "blk"]);
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = order(&["net", "gone"]).expect_err("gone does not exist");
        assert!(format!("{error:#}").contains("gone"));
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"junk\0license=GPL\0depends=virtio_ring,virtio-x\0name=y\0";
        assert_eq!(depends(module), ["virtio_ring", "virtio_x"]);
        assert!(depends(b"\0depends=\0name=y\0").is_empty());
        assert!(depends(b"__UNIQUE_ID_depends198").is_empty());
    }

    #[test]
    fn file_names_become_module_names() {
        assert_eq!(canonical(Path::new("kernel/x/virtio-rng.ko")), "virtio_rng");
        assert_eq!(canonical(Path::new("virtio_net.ko.xz")), "virtio_net");
    }

    #[test]
    fn a_signature_is_cut_off_and_nothing_else() {
        let signed = |length: u32| {
            let mut module = b"\x7fELFcodeSIGNATURE12345678".to_vec();
            module.extend_from_slice(&length.to_be_bytes());
            module.extend_from_slice(b"~Module signature appended~\n");
            module
        };
        assert_eq!(without_signature(signed(9)), b"\x7fELFcode");
        assert_eq!(without_signature(b"\x7fELFcode".to_vec()), b"\x7fELFcode");
        for wrong in [100, u32::MAX] {
            assert_eq!(without_signature(signed(wrong)), signed(wrong), "{wrong}");
        }
    }
}
