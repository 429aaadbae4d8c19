//! A daemon that cannot start says why in one sentence and leaves nothing.

use std::process::Command;

use bhatti_testkit::{TestDaemon, on_fresh_host};

/// Runs `bhatti serve` that has to fail; gives everything it printed.
fn refusal(daemon: &TestDaemon) -> String {
    let output = daemon.prepare(None, &["serve"]).output().expect("bhatti runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    text.into_owned()
}

#[test]
fn a_bad_configuration_is_pointed_at() {
    on_fresh_host(|| {
        let daemon = TestDaemon::prepared("lisen: 127.0.0.1:1");
        let text = refusal(&daemon);
        assert!(
            text.contains("config.yaml:4") && text.contains("did you mean \"listen\""),
            "{text}"
        );
        let daemon = TestDaemon::prepared("engine: qemu\nqemu_bin: /nonexistent/qemu");
        let text = refusal(&daemon);
        assert!(text.contains("/nonexistent/qemu is not installed"), "{text}");
        // Nothing takes its place if somebody asked for it.
        let absent = "engine: firecracker\nfirecracker_bin: /nonexistent/firecracker";
        let text = refusal(&TestDaemon::prepared(absent));
        assert!(
            text.contains("needs KVM")
                || text.contains("/nonexistent/firecracker is not installed"),
            "{text}"
        );
        let daemon = TestDaemon::prepared("kernel: /nonexistent/vmlinux");
        assert!(refusal(&daemon).contains("guest kernel /nonexistent/vmlinux is missing"));
    });
}

#[test]
fn a_taken_port_or_a_foreign_data_directory_is_said() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        let text = refusal(&daemon);
        assert!(text.contains("another bhatti daemon uses"), "{text}");
        let taken = daemon.url().trim_start_matches("http://").to_owned();
        let other = TestDaemon::prepared("");
        let config = format!("listen: {taken}\ndata_dir: {}\n", other.data_dir());
        std::fs::write(other.config(), config).expect("a file");
        let text = refusal(&other);
        assert!(text.contains("failed to listen") && text.contains("another program"), "{text}");
        // Another data directory does not help where the machines would be the same.
        let prefix = std::fs::read_to_string(daemon.config()).expect("a file");
        let prefix = prefix.lines().find(|line| line.starts_with("network_prefix")).expect("a key");
        let config = format!("listen: 127.0.0.1:0\ndata_dir: {}\n{prefix}\n", other.data_dir());
        std::fs::write(other.config(), config).expect("a file");
        let text = refusal(&other);
        assert!(text.contains("give each its own network_prefix"), "{text}");
        daemon.terminate();
        let chown = Command::new("chown").args(["12345", daemon.data_dir().as_str()]).status();
        assert!(chown.expect("chown runs").success());
        let text = refusal(&daemon);
        assert!(text.contains("belongs to uid 12345"), "{text}");
    });
}
