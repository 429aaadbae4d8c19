//! Every end-to-end test, in one binary. They need root and boot real machines.

#[path = "all/bulk.rs"]
mod bulk;
#[path = "all/cp.rs"]
mod cp;
#[path = "all/create.rs"]
mod create;
#[path = "all/domain.rs"]
mod domain;
#[path = "all/domain_clients.rs"]
mod domain_clients;
#[path = "all/engines.rs"]
mod engines;
#[path = "all/events.rs"]
mod events;
#[path = "all/exec.rs"]
mod exec;
#[path = "all/exec_load.rs"]
mod exec_load;
#[path = "all/files.rs"]
mod files;
#[path = "all/forward.rs"]
mod forward;
#[path = "all/golden.rs"]
mod golden;
#[path = "all/limits.rs"]
mod limits;
#[path = "all/network.rs"]
mod network;
#[path = "all/network_lies.rs"]
mod network_lies;
#[path = "all/network_matrix.rs"]
mod network_matrix;
#[path = "all/ports.rs"]
mod ports;
#[path = "all/proxy.rs"]
mod proxy;
#[path = "all/proxy_hostile.rs"]
mod proxy_hostile;
#[path = "all/publish.rs"]
mod publish;
#[path = "all/reach.rs"]
mod reach;
#[path = "all/recovery.rs"]
mod recovery;
#[path = "all/recovery_sleep.rs"]
mod recovery_sleep;
#[path = "all/refusals.rs"]
mod refusals;
#[path = "all/session.rs"]
mod session;
#[path = "all/session_sockets.rs"]
mod session_sockets;
#[path = "all/sessions.rs"]
mod sessions;
#[path = "all/shapes.rs"]
mod shapes;
#[path = "all/shell.rs"]
mod shell;
#[path = "all/shell_screen.rs"]
mod shell_screen;
#[path = "all/sleep.rs"]
mod sleep;
#[path = "all/snapshots.rs"]
mod snapshots;
#[path = "all/ssh.rs"]
mod ssh;
#[path = "all/start.rs"]
mod start;
#[path = "all/users.rs"]
mod users;
#[path = "all/web_shell.rs"]
mod web_shell;
#[path = "all/web_shell_browser.rs"]
mod web_shell_browser;
#[path = "all/workload.rs"]
mod workload;

/// A test file that is not listed above would never run.
#[test]
fn every_file_is_listed() {
    let here = include_str!("all.rs");
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all");
    for entry in std::fs::read_dir(dir).expect("it is there") {
        let name = entry.expect("readable").file_name().into_string().expect("UTF-8");
        assert!(here.contains(&format!("all/{name}")), "{name} is not listed in all.rs");
    }
}
