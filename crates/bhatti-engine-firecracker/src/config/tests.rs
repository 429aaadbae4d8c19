//! Every request against an extract of the published description of the API (release 1.15): names,
//! kinds, what is required, what a word may be.

use serde_json::{Value, json};

use super::*;
use crate::limits::{self, Limits};

/// `name: kind` of every property we may send; `!` marks what is required, `a|b` lists the words.
const DESCRIPTION: &[(&str, &[(&str, &str)])] = &[
    (
        "MachineConfiguration",
        &[
            ("vcpu_count!", "integer"),
            ("mem_size_mib!", "integer"),
            ("smt", "boolean"),
            ("huge_pages", "string"),
        ],
    ),
    (
        "BootSource",
        &[("kernel_image_path!", "string"), ("initrd_path", "string"), ("boot_args", "string")],
    ),
    (
        "Drive",
        &[
            ("drive_id!", "string"),
            ("is_root_device!", "boolean"),
            ("is_read_only", "boolean"),
            ("path_on_host", "string"),
            ("rate_limiter", "object"),
        ],
    ),
    (
        "PartialDrive",
        &[("drive_id!", "string"), ("path_on_host", "string"), ("rate_limiter", "object")],
    ),
    (
        "NetworkInterface",
        &[
            ("iface_id!", "string"),
            ("host_dev_name!", "string"),
            ("guest_mac", "string"),
            ("rx_rate_limiter", "object"),
            ("tx_rate_limiter", "object"),
        ],
    ),
    (
        "PartialNetworkInterface",
        &[("iface_id!", "string"), ("rx_rate_limiter", "object"), ("tx_rate_limiter", "object")],
    ),
    ("RateLimiter", &[("bandwidth", "object"), ("ops", "object")]),
    (
        "TokenBucket",
        &[("size!", "integer"), ("refill_time!", "integer"), ("one_time_burst", "integer")],
    ),
    ("Vsock", &[("guest_cid!", "integer"), ("uds_path!", "string")]),
    ("EntropyDevice", &[("rate_limiter", "object")]),
    (
        "Balloon",
        &[
            ("amount_mib!", "integer"),
            ("deflate_on_oom!", "boolean"),
            ("stats_polling_interval_s", "integer"),
            ("free_page_hinting", "boolean"),
            ("free_page_reporting", "boolean"),
        ],
    ),
    ("InstanceActionInfo", &[("action_type!", "FlushMetrics|InstanceStart|SendCtrlAltDel")]),
    ("Vm", &[("state!", "Paused|Resumed")]),
    (
        "SnapshotCreateParams",
        &[
            ("snapshot_path!", "string"),
            ("mem_file_path!", "string"),
            ("snapshot_type", "Full|Diff"),
        ],
    ),
    (
        "SnapshotLoadParams",
        &[
            ("snapshot_path!", "string"),
            ("mem_backend", "object"),
            ("resume_vm", "boolean"),
            ("network_overrides", "array"),
        ],
    ),
    ("MemoryBackend", &[("backend_type!", "File|Uffd"), ("backend_path!", "string")]),
    ("NetworkOverride", &[("iface_id!", "string"), ("host_dev_name!", "string")]),
];

fn fits(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        words => value.as_str().is_some_and(|word| words.split('|').any(|known| known == word)),
    }
}

/// What is wrong with a request, if something is.
fn fault(name: &str, request: &Value) -> Option<String> {
    let (_, properties) = DESCRIPTION.iter().find(|(known, _)| *known == name)?;
    let request = request.as_object()?;
    for (property, kind) in *properties {
        match request.get(property.trim_end_matches('!')) {
            Some(value) if fits(value, kind) => {}
            Some(value) => return Some(format!("{property} is {value}, not {kind}")),
            None if property.ends_with('!') => return Some(format!("{property} is missing")),
            None => {}
        }
    }
    let known = |name: &&String| {
        properties.iter().any(|(property, _)| property.trim_end_matches('!') == name.as_str())
    };
    request.keys().find(|name| !known(name)).map(|name| format!("{name} is not in the description"))
}

fn check(name: &str, request: impl Serialize, expected: Value) {
    let request = serde_json::to_value(request).unwrap();
    assert_eq!(request, expected);
    assert_eq!(fault(name, &request), None, "{name}");
    assert!(DESCRIPTION.iter().any(|(known, _)| *known == name), "{name} is described");
}

#[test]
fn requests_to_boot_are_as_described() {
    check(
        "MachineConfiguration",
        MachineConfig { vcpu_count: 2, mem_size_mib: 512, huge_pages: None },
        json!({"vcpu_count": 2, "mem_size_mib": 512}),
    );
    check(
        "MachineConfiguration",
        MachineConfig { vcpu_count: 2, mem_size_mib: 512, huge_pages: Some(HugePages::TwoMib) },
        json!({"vcpu_count": 2, "mem_size_mib": 512, "huge_pages": "2M"}),
    );
    let source =
        BootSource { kernel_image_path: "/kernel", initrd_path: "/initramfs", boot_args: "quiet" };
    check(
        "BootSource",
        source,
        json!({"kernel_image_path": "/kernel", "initrd_path": "/initramfs", "boot_args": "quiet"}),
    );
    check(
        "Drive",
        Drive::root(None),
        json!({
            "drive_id": "root", "path_on_host": "root.raw",
            "is_root_device": false, "is_read_only": false,
        }),
    );
    let interface = NetworkInterface {
        iface_id: INTERFACE,
        guest_mac: "02:00:00:00:00:01".to_owned(),
        host_dev_name: "tap1".to_owned(),
        rx_rate_limiter: None,
        tx_rate_limiter: None,
    };
    check(
        "NetworkInterface",
        interface,
        json!({
            "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "host_dev_name": "tap1",
        }),
    );
    let vsock = Vsock { guest_cid: GUEST_CID, uds_path: VSOCK };
    check("Vsock", vsock, json!({"guest_cid": 3, "uds_path": "vsock.sock"}));
    let bucket = json!({"size": 1024, "one_time_burst": 8192, "refill_time": 100});
    let limiter = json!({"bandwidth": bucket});
    check(
        "EntropyDevice",
        Entropy { rate_limiter: limits::entropy() },
        json!({"rate_limiter": limiter}),
    );
    check("RateLimiter", limits::entropy(), limiter);
    check("TokenBucket", &bucket, bucket.clone());
    check(
        "Balloon",
        Balloon::REPORTING,
        json!({"amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true}),
    );
    let start = Action { action_type: ActionType::InstanceStart };
    check("InstanceActionInfo", start, json!({"action_type": "InstanceStart"}));
    let count = Action { action_type: ActionType::FlushMetrics };
    check("InstanceActionInfo", count, json!({"action_type": "FlushMetrics"}));
}

#[test]
fn requests_to_sleep_and_wake_are_as_described() {
    check("Vm", Vm { state: VmState::Paused }, json!({"state": "Paused"}));
    check("Vm", Vm { state: VmState::Resumed }, json!({"state": "Resumed"}));
    let create = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: STATE_PIPE,
        mem_file_path: NO_MEMORY_FILE,
    };
    check(
        "SnapshotCreateParams",
        create,
        json!({
            "snapshot_type": "Full", "snapshot_path": "state.pipe", "mem_file_path": "none",
        }),
    );
    let network = NetworkOverride { iface_id: INTERFACE, host_dev_name: "tap2".to_owned() };
    let load = |network_overrides| SnapshotLoad {
        snapshot_path: "/fd/7".to_owned(),
        mem_backend: MemoryBackend {
            backend_path: "/fd/8".to_owned(),
            backend_type: BackendType::File,
        },
        resume_vm: false,
        network_overrides,
    };
    let expected = json!({
        "snapshot_path": "/fd/7", "resume_vm": false,
        "mem_backend": {"backend_path": "/fd/8", "backend_type": "File"},
    });
    check("SnapshotLoadParams", load(Vec::new()), expected.clone());
    let mut with_network = expected;
    with_network["network_overrides"] = json!([{"iface_id": "eth0", "host_dev_name": "tap2"}]);
    check("SnapshotLoadParams", load(vec![network]), with_network.clone());
    check(
        "NetworkOverride",
        &with_network["network_overrides"][0],
        json!({
            "iface_id": "eth0", "host_dev_name": "tap2",
        }),
    );
    check(
        "MemoryBackend",
        &with_network["mem_backend"],
        json!({
            "backend_path": "/fd/8", "backend_type": "File",
        }),
    );
}

#[test]
fn limits_are_said_as_described() {
    let bucket = json!({"size": 100 << 10, "refill_time": 100});
    let limiter = json!({"bandwidth": bucket, "ops": {"size": 50, "refill_time": 100}});
    let limits = Limits {
        disk_bytes: Some(1000 << 10),
        disk_operations: Some(500),
        network_bytes: Some(1000 << 10),
    };
    check(
        "Drive",
        Drive::root(limits.disk()),
        json!({
            "drive_id": "root", "path_on_host": "root.raw",
            "is_root_device": false, "is_read_only": false, "rate_limiter": limiter,
        }),
    );
    let interface = NetworkInterface {
        iface_id: INTERFACE,
        guest_mac: "02:00:00:00:00:01".to_owned(),
        host_dev_name: "tap1".to_owned(),
        rx_rate_limiter: limits.network(),
        tx_rate_limiter: limits.network(),
    };
    check(
        "NetworkInterface",
        interface,
        json!({
            "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "host_dev_name": "tap1",
            "rx_rate_limiter": {"bandwidth": bucket}, "tx_rate_limiter": {"bandwidth": bucket},
        }),
    );
    let (disk, network) = limits.again();
    check(
        "PartialDrive",
        PartialDrive { drive_id: DRIVE, path_on_host: Some(ROOT_DISK), rate_limiter: disk },
        json!({"drive_id": "root", "path_on_host": "root.raw", "rate_limiter": limiter}),
    );
    let interface = PartialNetworkInterface {
        iface_id: INTERFACE,
        rx_rate_limiter: network,
        tx_rate_limiter: network,
    };
    check(
        "PartialNetworkInterface",
        interface,
        json!({
            "iface_id": "eth0",
            "rx_rate_limiter": {"bandwidth": bucket}, "tx_rate_limiter": {"bandwidth": bucket},
        }),
    );
    // No limit any more.
    let (disk, _) = Limits::default().again();
    let none = json!({"size": 0, "refill_time": 0});
    check(
        "PartialDrive",
        PartialDrive { drive_id: DRIVE, path_on_host: None, rate_limiter: disk },
        json!({"drive_id": "root", "rate_limiter": {"bandwidth": none, "ops": none}}),
    );
}

#[test]
fn the_check_finds_what_is_wrong() {
    for (request, word) in [
        (json!({"guest_cid": 3}), "uds_path! is missing"),
        (json!({"guest_cid": "3", "uds_path": "x"}), "not integer"),
        (json!({"guest_cid": 3, "uds_path": "x", "other": 1}), "other is not"),
    ] {
        assert!(fault("Vsock", &request).unwrap().contains(word), "{request}");
    }
    assert!(fault("Vm", &json!({"state": "paused"})).unwrap().contains("not Paused|Resumed"));
}

#[test]
fn answers_are_understood() {
    for (state, expected) in [
        ("Not started", InstanceState::NotStarted),
        ("Running", InstanceState::Running),
        ("Paused", InstanceState::Paused),
    ] {
        let answer = json!({"app_name": "Firecracker", "id": "x", "state": state,
            "vmm_version": "1.15.1"});
        let info: InstanceInfo = serde_json::from_value(answer).unwrap();
        assert_eq!(info.state, expected);
    }
    let answer = json!({"vcpu_count": 1, "mem_size_mib": 256, "smt": false, "huge_pages": "None"});
    let config: MachineConfig = serde_json::from_value(answer).unwrap();
    assert_eq!(config, MachineConfig { vcpu_count: 1, mem_size_mib: 256, huge_pages: None });
    let fault: Fault = serde_json::from_value(json!({"fault_message": "no"})).unwrap();
    assert_eq!(fault.fault_message, "no");
}
