//! Something to lose: a guest at work, and what tells one guest from another.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bhatti_testkit::{TestDaemon, wait_for};

/// Counts into `/tmp/n`, once a second, as long as a TCP connection between two processes of the
/// guest answers.
const COUNT: &str = r#"
use Socket;
socket(D, PF_INET, SOCK_STREAM, 0) && bind(D, pack_sockaddr_in(7008, INADDR_LOOPBACK)) && listen(D, 1) or die;
if (!fork) {
    socket(S, PF_INET, SOCK_STREAM, 0) && connect(S, pack_sockaddr_in(7008, INADDR_LOOPBACK)) or die;
    while (sysread(S, $b, 1)) { syswrite(S, $b) }
    exit;
}
accept(P, D) or die;
while (syswrite(P, "x") && sysread(P, $b, 1)) {
    open(F, ">", "/tmp/n.new") && print(F ++$n, "\n") && close(F) && rename("/tmp/n.new", "/tmp/n") or die;
    select(undef, undef, undef, 1);
}
"#;

/// Starts processes with a connection between them, and writes a file to tmpfs.
#[track_caller]
pub(crate) fn start(daemon: &TestDaemon, sandbox: &str) {
    daemon.sh(sandbox, "echo kept > /tmp/kept; echo synced > ~/synced; sync");
    daemon.cli(&["exec", sandbox, "--detach", "--", "perl", "-e", COUNT]).ok();
    wait_for("it counts", || {
        let counted = daemon.cli(&["exec", sandbox, "--", "cat", "/tmp/n"]).stdout;
        (!counted.is_empty()).then_some(())
    });
}

/// Writes down what it sees of its machine, a line each millisecond: host name, machine id, a
/// random UUID, the time. Without a `fork`, which takes longer than what is looked for here.
const WITNESS: &str = r#"
sub of { open(F, "<", $_[0]) or die; my $line = <F>; close(F); chomp $line; $line }
open(OUT, ">", "/tmp/seen") or die;
while (1) {
    my $time = "\0" x 16;
    my @seen = map { of($_) }
        "/proc/sys/kernel/hostname", "/etc/machine-id", "/proc/sys/kernel/random/uuid";
    syscall(228, 0, $time) == 0 or die;
    my ($seconds, $nanos) = unpack("q q", $time);
    syswrite(OUT, sprintf("%s %d.%09d\n", join(" ", @seen), $seconds, $nanos));
    select(undef, undef, undef, 0.001);
}
"#;

/// One look of the witness.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Look {
    pub(crate) hostname: String,
    pub(crate) machine_id: String,
    pub(crate) uuid: String,
    pub(crate) time: f64,
}

/// Has a process look at its machine from now on.
#[track_caller]
pub(crate) fn witness(daemon: &TestDaemon, sandbox: &str) {
    daemon.cli(&["exec", sandbox, "--detach", "--", "perl", "-e", WITNESS]).ok();
    wait_for("it looks", || (witnessed(daemon, sandbox).len() > 20).then_some(()));
}

/// What it has seen, the former life of a clone included.
#[track_caller]
pub(crate) fn witnessed(daemon: &TestDaemon, sandbox: &str) -> Vec<Look> {
    let text = daemon.cli(&["exec", sandbox, "--", "cat", "/tmp/seen"]).stdout;
    // The last line may be being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let look = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [hostname, machine_id, uuid, time] = words[..] else { panic!("{line:?}") };
        let [hostname, machine_id, uuid] = [hostname, machine_id, uuid].map(str::to_owned);
        Look { hostname, machine_id, uuid, time: time.parse().expect("seconds") }
    };
    whole.lines().map(look).collect()
}

/// How far it counted.
#[track_caller]
pub(crate) fn counted(daemon: &TestDaemon, sandbox: &str) -> u64 {
    let text = daemon.sh(sandbox, "cat /tmp/n");
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// Fails unless the work that had counted to `before` is still there and goes on.
#[track_caller]
pub(crate) fn goes_on(daemon: &TestDaemon, sandbox: &str, before: u64) {
    assert_eq!(daemon.sh(sandbox, "cat /tmp/kept ~/synced"), "kept\nsynced\n");
    let now = counted(daemon, sandbox);
    assert!(now >= before, "{sandbox} counted to {before}, and now {now}");
    wait_for("it still counts", || (counted(daemon, sandbox) > now).then_some(()));
}

/// The host's time.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("past 1970")
}

/// How far the guest's clock is from the host's, beyond what the call itself takes. It wakes.
#[track_caller]
pub(crate) fn clock_off(daemon: &TestDaemon, sandbox: &str) -> Duration {
    let before = now();
    let text = daemon.cli(&["exec", sandbox, "--", "date", "+%s.%N"]).ok();
    let after = now();
    let guest = Duration::from_secs_f64(text.trim().parse().expect("seconds"));
    before.saturating_sub(guest).max(guest.saturating_sub(after))
}

/// Fails if the guest's clock is not right after a wake.
#[track_caller]
pub(crate) fn clock_is_right(daemon: &TestDaemon, sandbox: &str) {
    let off = clock_off(daemon, sandbox);
    assert!(off <= Duration::from_millis(100), "the clock of {sandbox} is {off:?} off");
}

/// Fails if two of these sandboxes have anything in common that has to be one's own.
#[track_caller]
pub(crate) fn all_differ(daemon: &TestDaemon, sandboxes: &[&str]) {
    let script = "cat /etc/machine-id; hostname; head -c16 /dev/urandom | od -An -tx1; \
                  ip -4 -o addr show eth0 | awk '{print $4}'; cat /sys/class/net/eth0/address; \
                  cat /proc/sys/kernel/random/boot_id; cat /proc/sys/kernel/random/uuid";
    let identities: Vec<String> = sandboxes.iter().map(|name| daemon.sh(name, script)).collect();
    for (identity, name) in identities.iter().zip(sandboxes) {
        let lines: Vec<&str> = identity.lines().collect();
        assert_eq!(lines.len(), 7, "{name}: {identity}");
        assert_eq!(lines[1], *name, "the hostname");
        let listed = daemon.json(&["inspect", name])["ip"].clone();
        assert_eq!(lines[3].split('/').next(), listed.as_str(), "the address of {name}");
    }
    for line in 0..7 {
        let values: BTreeSet<&str> =
            identities.iter().filter_map(|identity| identity.lines().nth(line)).collect();
        assert_eq!(values.len(), sandboxes.len(), "not all different: {values:?}");
    }
}
