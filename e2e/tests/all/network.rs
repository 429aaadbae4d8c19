//! Who reaches whom, seen from inside guests.

use bhatti_testkit::{TestDaemon, WORLD, on_fresh_host};

#[test]
fn siblings_meet_strangers_do_not_and_the_world_is_out_there_vm() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let bob = daemon.create_user("bob", 5);
        daemon.cli(&["create", "--name", "a", "--memory", "192"]).ok();
        daemon.cli(&["create", "--name", "b", "--memory", "192"]).ok();
        daemon.cli_as(&bob, &["create", "--name", "c", "--memory", "192"]).ok();
        let reaches = |user: &bhatti_testkit::User, from: &str, to: &str| {
            daemon.cli_as(user, &["exec", from, "--", "sudo", "ping", "-c1", "-W3", to]).code == 0
        };
        let admin = daemon.admin();
        assert!(reaches(admin, "b", "10.0.1.2"), "siblings");
        assert!(reaches(admin, "a", "10.0.1.3"), "siblings, the other way");
        let world = WORLD.to_string();
        assert!(reaches(admin, "a", &world), "the world beyond the host, by NAT");
        assert!(reaches(&bob, "c", &world));
        assert!(!reaches(&bob, "c", "10.0.1.2"), "another user's sandbox");
        let host = daemon.url().rsplit(':').next().expect("a port").to_owned();
        let connect = format!("exec 3<>/dev/tcp/192.0.2.1/{host}");
        let refused = daemon.cli(&["exec", "a", "--timeout", "5", "--", "bash", "-c", &connect]);
        assert_ne!(refused.code, 0, "the host's own API from a guest");
        let resolv = daemon.cli(&["exec", "a", "--", "cat", "/etc/resolv.conf"]).ok();
        assert!(resolv.contains("nameserver "), "{resolv}");
        // The link is not the network: breaking eth0 from inside does not lock anybody out.
        daemon.cli(&["exec", "a", "--", "sudo", "ip", "link", "set", "eth0", "down"]).ok();
        assert_eq!(daemon.cli(&["exec", "a", "--", "echo", "still here"]).ok(), "still here\n");
        for name in ["a", "b"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        daemon.cli_as(&bob, &["destroy", "c", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}
