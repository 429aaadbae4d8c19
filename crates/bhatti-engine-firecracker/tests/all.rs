//! Real machines. Needs root, KVM, a real Firecracker (`BHATTI_FIRECRACKER_BIN`) and the guest's files
//! (`cargo xtask guest`). Where there is no Firecracker every test is ignored, never passed: each is
//! marked so, and `--include-ignored` is how the test bed runs them.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "all/confinement.rs"]
mod confinement;
#[path = "all/conformance.rs"]
mod conformance;
#[path = "all/deaths.rs"]
mod deaths;
#[path = "all/endurance.rs"]
mod endurance;
#[path = "all/freed.rs"]
mod freed;
#[path = "all/golden.rs"]
mod golden;
#[path = "all/harness.rs"]
mod harness;
#[path = "all/network.rs"]
mod network;
#[path = "all/shapes.rs"]
mod shapes;

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
