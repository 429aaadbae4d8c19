//! Chains that QEMU has made, read beside QEMU itself, and layers that lie.

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};

use super::*;

const MIB: u64 = 1 << 20;

fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(dir.path()).unwrap().to_owned();
    (dir, path)
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program} (Debian: qemu-utils): {e}"));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An overlay as the other engine makes it: its header names nothing below it.
fn overlay(file: &Utf8Path, bytes: u64) {
    run("qemu-img", &["create", "-q", "-f", "qcow2", file.as_str(), &bytes.to_string()]);
}

/// A chain as QEMU takes it. Nested by hand: the headers name nobody.
fn chain(base: &Utf8Path, layers: &[Utf8PathBuf]) -> String {
    let file = |filename: &Utf8Path| serde_json::json!({"driver": "file", "filename": filename});
    let base = serde_json::json!({"driver": "raw", "file": file(base)});
    let chain = layers.iter().fold(base, |below, layer| {
        serde_json::json!({"driver": "qcow2", "file": file(layer), "backing": below})
    });
    format!("json:{chain}")
}

/// Writes into the topmost of a chain, as QEMU does it.
fn write(base: &Utf8Path, layers: &[Utf8PathBuf], commands: &[&str]) {
    let chain = chain(base, layers);
    let mut args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    args.push(&chain);
    run("qemu-io", &args);
}

fn layers_of(files: &[Utf8PathBuf]) -> io::Result<Vec<Layer>> {
    files.iter().map(|file| Layer::open(File::open(file)?)).collect()
}

/// What a machine would see of a chain, by our reading.
fn flat(base: &Utf8Path, layers: &[Utf8PathBuf], dir: &Utf8Path) -> io::Result<Vec<u8>> {
    let whole = dir.join("whole");
    std::fs::copy(base, &whole).unwrap();
    let file = File::options().read(true).write(true).open(&whole).unwrap();
    let layers = layers_of(layers)?;
    file.set_len(layers.last().unwrap().bytes()).unwrap();
    flatten(&layers, &file)?;
    Ok(std::fs::read(&whole).unwrap())
}

#[test]
fn a_chain_reads_as_qemu_reads_it() {
    let (_keep, dir) = scratch();
    let base = dir.join("base");
    std::fs::write(&base, [b'b'].repeat(3 * MIB as usize + 512)).unwrap();
    let layers = ["0", "1", "2"].map(|name| dir.join(name));
    // It grew once, and ends in the middle of a cluster.
    for (layer, bytes) in layers.iter().zip([3 * MIB + 512, 4 * MIB + 1536, 4 * MIB + 1536]) {
        overlay(layer, bytes);
    }
    write(&base, &layers[..1], &["write -P 0x30 0 200k", "write -z 1M 128k", "discard 2M 64k"]);
    write(&base, &layers[..2], &["write -P 0x31 100k 300k", "write -P 0x31 4M 1536"]);
    write(&base, &layers, &["write -P 0x32 65536 1", "write -z 3M 64k"]);
    let ours = flat(&base, &layers, &dir).unwrap();

    // QEMU's own word for it.
    let whole = dir.join("qemu");
    run("qemu-img", &["convert", "-O", "raw", &chain(&base, &layers), whole.as_str()]);
    let theirs = std::fs::read(&whole).unwrap();
    assert_eq!(ours.len(), theirs.len());
    let differ = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert_eq!(differ, None, "they differ at that byte");
    // The test itself says something.
    for (at, byte) in [(0, 0x30), (150 << 10, 0x31), (65536, 0x32), (65537, 0x30), (4 << 20, 0x31)]
    {
        assert_eq!(ours[at], byte, "{at}");
    }
    assert_eq!((ours[1 << 20], ours[2 << 20], ours[3 << 20], ours[2_500_000]), (0, 0, 0, b'b'));
}

#[test]
fn zeros_take_no_room() {
    let (_keep, dir) = scratch();
    let base = dir.join("base");
    std::fs::write(&base, [b'b'].repeat(4 * MIB as usize)).unwrap();
    let layers = [dir.join("0")];
    overlay(&layers[0], 4 * MIB);
    write(&base, &layers, &["write -z 0 4M"]);
    assert!(flat(&base, &layers, &dir).unwrap().iter().all(|byte| *byte == 0));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&dir.join("whole").metadata().unwrap());
    assert!(blocks * 512 < MIB, "{blocks}");
}

/// Each lie is refused or costs its teller only: nothing is read but the file, and not much.
#[test]
fn lies_are_refused() {
    let (_keep, dir) = scratch();
    let base = dir.join("base");
    std::fs::write(&base, [b'b'].repeat(4 * MIB as usize)).unwrap();
    let layers = [dir.join("0")];
    overlay(&layers[0], 4 * MIB);
    write(&base, &layers, &["write -P 0x30 0 64k"]);
    let whole = std::fs::read(&layers[0]).unwrap();
    let long = |at: usize| u64::from_be_bytes(whole[at..at + 8].try_into().unwrap());
    let l1 = usize::try_from(long(40)).unwrap();
    let l2 = usize::try_from(long(l1) & OFFSET).unwrap();
    flat(&base, &layers, &dir).unwrap();
    // Where, what is put there, and what is said of it.
    let lies: [(usize, &[u8], &str); 13] = [
        (0, b"X", "version 3"),
        (7, &[2], "version 3"),
        (19, &[1], "backing file"),
        (23, &[9], "clusters"),
        (23, &[255], "clusters"),
        (35, &[1], "encrypted"),
        (79, &[4], "unusual"),
        (24, &[0x7f], "first table"),
        (36, &[0xff; 4], "first table"),
        (40, &[0xff; 8], "outside"),
        (l1, &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0], "outside"),
        (l2, &[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0], "outside"),
        (l2, &[0x40, 0, 0, 0, 0, 5, 0, 0], "compressed"),
    ];
    for (at, lie, word) in lies {
        let mut lying = whole.clone();
        lying[at..at + lie.len()].copy_from_slice(lie);
        std::fs::write(&layers[0], &lying).unwrap();
        let error = flat(&base, &layers, &dir).unwrap_err().to_string();
        assert!(error.contains(word), "{at}: {error}");
    }
    for length in [0, 50, 103, 104, 4096] {
        std::fs::write(&layers[0], &whole[..length]).unwrap();
        flat(&base, &layers, &dir).unwrap_err();
    }
}
