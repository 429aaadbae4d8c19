//! A TAP in a namespace of somebody else's: handed over by name, gone with its machine.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use bhatti_engine::conformance::Harness;
use bhatti_engine::{Engine, Nic};
use nix::sched::{CloneFlags, setns, unshare};

use crate::golden::Golden;
use crate::harness::{FirecrackerHarness, ask};

const MAC: &str = "02:00:00:00:00:07";
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// A network of its own.
pub(crate) struct Network(File);

impl Network {
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(std::thread::spawn(make).join().unwrap())
    }

    /// Does something in there.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
    }

    /// As the daemon makes them.
    pub(crate) fn tap(&self, name: &str) -> Nic {
        let tap = self.inside(|| {
            let device = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
            // SAFETY: all zero is a valid value of this plain structure.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *place = byte as libc::c_char;
            }
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            // SAFETY: the request is a valid structure for the time of the call.
            let made = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) };
            assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from(device)
        });
        Nic { mac: MAC.to_owned(), tap }
    }

    /// The interfaces in there, but for `lo`.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        let text = self.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
        names.map(|(name, _)| name.trim().to_owned()).filter(|name| name != "lo").collect()
    }

    /// Waits until nothing is in there: a device goes a moment after its last descriptor.
    pub(crate) fn empty(&self) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !self.interfaces().is_empty() {
            assert!(std::time::Instant::now() < deadline, "{:?} is left", self.interfaces());
            std::thread::yield_now();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn a_tap_is_handed_over_and_goes_with_its_machine() {
    let harness = FirecrackerHarness::new();
    let engine = harness.firecracker().await;
    let (first, second) = (Network::new(), Network::new());
    let mut spec = harness.spec().await;
    spec.nic = Some(first.tap("tap7"));
    let vm = engine.boot(spec).await.unwrap();
    harness.booted();
    assert_eq!(first.interfaces(), ["tap7"]);
    assert_eq!(ask(&*vm, "cat /sys/class/net/eth0/address").await, MAC);
    vm.kill().await.unwrap();
    first.empty();

    // A clone has another, of another name, in another network.
    let mut spec = harness.spec().await;
    spec.nic = Some(first.tap("tap8"));
    let golden = Golden::of(&harness, &engine, spec).await;
    first.empty();
    let mut machine = golden.machine(&harness, &engine).await;
    machine.nic = Some(second.tap("other"));
    let clone = golden.restore(&harness, &engine, machine).await;
    assert_eq!(second.interfaces(), ["other"]);
    clone.resume().await.unwrap();
    assert_eq!(ask(&*clone, "cat /sys/class/net/eth0/address").await, MAC);
    // What the guest sends arrives.
    let sent = "ip link set eth0 up || ifconfig eth0 up; cat /sys/class/net/eth0/operstate";
    ask(&*clone, sent).await;
    clone.kill().await.unwrap();
    second.empty();

    // A start that fails leaves none.
    let mut spec = harness.spec().await;
    spec.nic = Some(first.tap("tap9"));
    spec.initramfs = "/nonexistent/initramfs".into();
    engine.boot(spec).await.err().expect("it cannot boot");
    first.empty();
}
