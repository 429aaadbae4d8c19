//! Real machines. Needs root, QEMU and the guest's files (`cargo xtask guest`); no network and no
//! KVM: everything runs under emulation.
//!
//! `BHATTI_TEST_ARCH=arm64` makes them aarch64 machines on any host (`make test-arm64`), and
//! `BHATTI_TEST_ACCEL=kvm` wants KVM (`make kvm-box`).

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "all/arch.rs"]
mod arch;
#[path = "all/confinement.rs"]
mod confinement;
#[path = "all/conformance.rs"]
mod conformance;
#[path = "all/ending.rs"]
mod ending;
#[path = "all/foreign.rs"]
mod foreign;
#[path = "all/harness.rs"]
mod harness;
#[path = "all/merging.rs"]
mod merging;
#[path = "all/recovery.rs"]
mod recovery;
#[path = "all/snapshot.rs"]
mod snapshot;

/// A file that is not in the list above would never run.
#[test]
fn every_file_is_listed() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let list = std::fs::read_to_string(here.join("all.rs")).unwrap();
    for entry in std::fs::read_dir(here.join("all")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(list.contains(&format!("all/{name}")), "{name} is not in tests/all.rs");
    }
}
