//! What a running VMM can and cannot do, read from the kernel.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use bhatti_engine::Engine;
use bhatti_engine::conformance::Harness;

use crate::harness::{FirecrackerHarness, OWNER};

fn status(path: &Path) -> HashMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn the_vmm_is_nobody_and_sees_its_own_files_only() {
    let harness = FirecrackerHarness::new();
    let spec = harness.spec().await;
    let dir = spec.dir.clone();
    let vm = harness.firecracker().await.boot(spec).await.unwrap();
    harness.booted();
    let pid = vm.record().pid;

    let (uid, gid) = (OWNER.uid, OWNER.gid);
    let mut threads = BTreeSet::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = status(&task.unwrap().path().join("status"));
        let name = &status["Name"];
        assert_eq!(status["Uid"], format!("{uid}\t{uid}\t{uid}\t{uid}"), "{name}");
        assert_eq!(status["Gid"], format!("{gid}\t{gid}\t{gid}\t{gid}"), "{name}");
        assert_eq!(status["Groups"], "", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{name}: {set}");
        }
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        assert_eq!(status["Seccomp"], "2", "{name}");
        threads.insert(name.clone());
    }
    for thread in ["firecracker", "fc_api", "fc_vcpu 0"] {
        assert!(threads.contains(thread), "{threads:?}");
    }

    let namespace =
        |of: &str, kind: &str| std::fs::metadata(format!("/proc/{of}/ns/{kind}")).unwrap().ino();
    for kind in ["net", "ipc", "mnt", "pid", "uts"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind}");
    }
    let root = format!("/proc/{pid}/root");
    let names = |path: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(format!("{root}{path}")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let devices = ["kvm", "null", "urandom", "zero"].map(str::to_owned);
    assert_eq!(names("/dev"), BTreeSet::from(devices), "no TAP device without a network");
    for absent in ["/proc", "/sys", "/tmp", "/home", "/root", "/var", "/run"] {
        assert!(!Path::new(&format!("{root}{absent}")).exists(), "{absent}");
    }
    let api = dir.join("api.sock").metadata().unwrap();
    assert!(api.file_type().is_socket() && api.mode() & 0o077 == 0, "{:o}", api.mode());
    vm.kill().await.unwrap();
}
