//! The command line of a machine: a pure function of what was probed and what was asked.
//!
//! No file is opened here and no clock read. Files are named as they are in the VMM's own root
//! ([`bhatti_vmm::jail`]), or by the number of an inherited descriptor; no path of the host is in here.
//!
//! What differs between architectures is in [`crate::arch`]. Choices that look odd, with the reason:
//! - `-no-shutdown`: a machine that ends stays until somebody has read its console.
//! - `memory-backend-file` on `/dev/zero`: anonymous memory, under a name by which [`bhatti_vmm::memory`]
//!   finds it in the process (ADR 0010).
//! - `merge=off`: QEMU would offer the memory to a host that merges equal pages (KSM); how long a
//!   write then takes tells one tenant what is in another's memory.
//! - `suppress-vmdesc`: a saved device state here has no description, and none is expected.
//! - the two `migration` properties: a saved device state names neither machine type nor run state;
//!   the fingerprint says the first, and a restored machine stands in any case (`-S`).

use std::ffi::OsString;

use bhatti_engine::{Accel, Shape};
use serde_json::json;

use crate::arch::Arch;
use crate::disk::TopName;
use bhatti_vmm::jail::{DESCRIPTORS, FIRMWARE, INITRAMFS, KERNEL};

/// Bytes of guest console QEMU keeps for us. A power of two, as QEMU demands.
pub(crate) const CONSOLE_BYTES: usize = 64 * 1024;

/// Name of the console's character device, asked for over QMP.
pub(crate) const CONSOLE: &str = "console";

/// Everything the command line depends on.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub arch: Arch,
    /// How instructions are executed.
    pub accel: Acceleration,
    pub shape: Shape,
    pub start: Start,
    pub memory: Memory,
    /// The disk's top layer, in the working directory.
    pub top: TopName,
    /// Descriptor numbers as the VMM sees them.
    pub fds: Fds,
    /// MAC address, if there is a network device.
    pub mac: Option<String>,
    /// Whether this QEMU was built with seccomp.
    pub seccomp: Seccomp,
}

/// How the machine comes to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// From its kernel, at once.
    Boot,
    /// It waits for a device state, and then for the order to go on.
    Restore,
}

/// What the guest's memory is made of. Always a private mapping: nothing the guest writes is seen
/// by anybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Zero until written.
    Zero,
    /// What the sealed file at this descriptor holds, until written.
    Template(i32),
    /// Zero until written, in pages of 2 MiB.
    Hugepages,
}

/// [`Accel`] with what only one of the two needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acceleration {
    Kvm,
    Tcg {
        /// Frequency of the host's time stamp counter, where it is the guest's too.
        tsc_khz: Option<u64>,
    },
}

impl Acceleration {
    /// The same without its detail.
    pub(crate) fn accel(self) -> Accel {
        match self {
            Self::Kvm => Accel::Kvm,
            Self::Tcg { .. } => Accel::Tcg,
        }
    }

    /// The frequency of the counter the guest has to be told.
    pub(crate) fn tsc_khz(self) -> Option<u64> {
        match self {
            Self::Kvm => None,
            Self::Tcg { tsc_khz } => tsc_khz,
        }
    }
}

/// Whether the VMM can install a system call filter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seccomp {
    On,
    NotBuiltIn,
}

/// Numbers of the inherited descriptors.
#[derive(Clone, Debug)]
pub(crate) struct Fds {
    /// Bound, not yet listening.
    pub qmp: i32,
    /// Bound, not yet listening.
    pub agent: i32,
    pub base: Option<i32>,
    /// Sealed layers over the base, the lowest first.
    pub layers: Vec<i32>,
    pub tap: Option<i32>,
}

impl Fds {
    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = i32> {
        let given = [self.qmp, self.agent].into_iter().chain(self.base).chain(self.tap);
        given.chain(self.layers.iter().copied())
    }
}

impl Machine {
    /// The arguments, without the program's name.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut line = Line::default();
        self.board(&mut line);
        self.memory(&mut line);
        self.control(&mut line);
        self.disk(&mut line);
        self.network(&mut line);
        self.start(&mut line);
        line.0
    }

    fn board(&self, line: &mut Line) {
        let vcpus = self.shape.vcpus();
        let accel = match self.accel {
            Acceleration::Kvm => "kvm".to_owned(),
            // One thread for one vCPU saves nothing but also costs nothing; more need their own.
            Acceleration::Tcg { .. } => {
                let threads = if vcpus == 1 { "single" } else { "multi" };
                format!("tcg,thread={threads},tb-size={TCG_BUFFER_MIB}")
            }
        };
        let machine = self.arch.machine(self.accel);
        line.option("-machine", format!("{machine},suppress-vmdesc=on,memory-backend={MEMORY}"));
        line.option("-accel", accel);
        line.option("-cpu", self.arch.cpu(self.accel));
        line.option("-smp", vcpus.to_string());
        line.option("-m", format!("{}M", self.shape.memory.0));
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot", "-no-shutdown"] {
            line.flag(flag);
        }
        line.option("-display", "none");
        if self.seccomp == Seccomp::On {
            line.option("-sandbox", SANDBOX);
        }
        if self.arch.has_firmware() {
            line.option("-bios", FIRMWARE);
        }
        for global in self.arch.globals() {
            line.option("-global", *global);
        }
        line.option("-device", "virtio-rng-device");
    }

    fn memory(&self, line: &mut Line) {
        let size = format!("id={MEMORY},size={}M,share=off,merge=off", self.shape.memory.0);
        let backend = match self.memory {
            Memory::Zero => format!("memory-backend-file,{size},mem-path=/dev/zero"),
            Memory::Template(fd) => {
                format!("memory-backend-file,{size},mem-path={DESCRIPTORS}/{fd}")
            }
            Memory::Hugepages => {
                format!("memory-backend-memfd,{size},hugetlb=on,hugetlbsize=2M")
            }
        };
        line.option("-object", backend);
    }

    fn start(&self, line: &mut Line) {
        for property in ["send-configuration", "store-global-state"] {
            line.option("-global", format!("migration.{property}=off"));
        }
        match self.start {
            Start::Boot => {
                line.option("-kernel", KERNEL);
                line.option("-initrd", INITRAMFS);
                line.option("-append", self.arch.kernel_line(self.accel));
            }
            Start::Restore => {
                line.option("-incoming", "defer");
                line.flag("-S");
            }
        }
    }

    fn control(&self, line: &mut Line) {
        let socket = |id: &str, fd: i32| format!("socket,id={id},fd={fd},server=on,wait=off");
        line.option("-chardev", socket("qmp", self.fds.qmp));
        line.option("-mon", "chardev=qmp,mode=control");
        line.option("-chardev", format!("ringbuf,id={CONSOLE},size={CONSOLE_BYTES}"));
        line.option("-serial", format!("chardev:{CONSOLE}"));
        line.option("-device", "virtio-serial-device,max_ports=2");
        line.option("-chardev", socket("agent", self.fds.agent));
        line.option("-device", "virtserialport,chardev=agent,name=agent");
    }

    fn disk(&self, line: &mut Line) {
        let mut below: Option<String> = None;
        if let Some(fd) = self.fds.base {
            line.option("-add-fd", format!("fd={fd},set=1,opaque=base"));
            line.json(
                "-blockdev",
                &json!({
                    "driver": "raw",
                    "node-name": IMAGE,
                    "read-only": true,
                    "file": shared_file(1),
                }),
            );
            below = Some(IMAGE.to_owned());
        }
        for (number, fd) in self.fds.layers.iter().enumerate() {
            let (set, node) = (layer_set(number), layer_node(number));
            line.option("-add-fd", format!("fd={fd},set={set},opaque={node}"));
            line.json(
                "-blockdev",
                &json!({
                    "driver": "qcow2",
                    "node-name": node,
                    "read-only": true,
                    "file": shared_file(set),
                    "backing": below,
                }),
            );
            below = Some(node);
        }
        let mut top = overlay(&self.top);
        top["backing"] = json!(below);
        line.json("-blockdev", &top);
        line.option("-device", format!("virtio-blk-device,drive={}", self.top.node()));
    }

    fn network(&self, line: &mut Line) {
        if let (Some(mac), Some(tap)) = (&self.mac, self.fds.tap) {
            line.option("-netdev", format!("tap,id=net,fd={tap}"));
            line.option("-device", format!("virtio-net-device,netdev=net,mac={mac}"));
        }
    }
}

/// The block node of the raw image.
pub(crate) const IMAGE: &str = "base";

/// The block node of a layer that was sealed before this VMM started.
pub(crate) fn layer_node(number: usize) -> String {
    format!("layer-{number}")
}

/// The number under which the VMM keeps that layer's descriptor. The image has the first.
pub(crate) fn layer_set(number: usize) -> usize {
    number + 2
}

/// A file that others have open too, by the number of its set. Without QEMU's locks: nobody writes
/// such a file, and a lock that one VMM takes on its read-only descriptor would keep all others
/// from starting.
fn shared_file(set: usize) -> serde_json::Value {
    json!({
        "driver": "file",
        "filename": format!("/dev/fdset/{set}"),
        "read-only": true,
        "locking": "off",
    })
}

/// The block node of a disk's top layer, over nothing. It is the file of that name in the working
/// directory.
pub(crate) fn overlay(top: &TopName) -> serde_json::Value {
    json!({
        "driver": "qcow2",
        "node-name": top.node(),
        "discard": "unmap",
        "file": { "driver": "file", "filename": top.file(), "discard": "unmap" },
        "backing": null,
    })
}

/// Name of the memory's object.
const MEMORY: &str = "ram";

/// The filter: no new processes, no new privileges, no scheduling tricks.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Cache of translated code. Below 32 it thrashes, above 64 nothing is gained.
const TCG_BUFFER_MIB: u32 = 64;

/// Arguments under construction.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn json(&mut self, name: &str, value: &serde_json::Value) {
        self.option(name, value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use bhatti_types::Mib;

    use super::*;

    fn machine(accel: Acceleration, milli_cpus: u32) -> Machine {
        Machine {
            arch: Arch::X86_64,
            accel,
            shape: Shape { milli_cpus, memory: Mib(256) },
            start: Start::Boot,
            memory: Memory::Zero,
            top: TopName::first(),
            fds: Fds { qmp: 13, agent: 14, base: Some(15), layers: Vec::new(), tap: None },
            mac: None,
            seccomp: Seccomp::On,
        }
    }

    /// One option a line, as a reader would break it.
    fn text(machine: &Machine) -> String {
        let mut out = String::new();
        for argument in machine.arguments() {
            let argument = argument.into_string().expect("plain text");
            let starts_option = argument.starts_with('-');
            if !out.is_empty() {
                out.push(if starts_option { '\n' } else { ' ' });
            }
            out.push_str(&argument);
        }
        out
    }

    #[test]
    fn tcg_one_vcpu_without_network() {
        insta::assert_snapshot!(text(&machine(
            Acceleration::Tcg { tsc_khz: Some(2_445_434) },
            500
        )));
    }

    #[test]
    fn tcg_two_vcpus_with_network() {
        let mut machine = machine(Acceleration::Tcg { tsc_khz: Some(2_445_434) }, 1500);
        machine.mac = Some("02:00:00:00:00:07".to_owned());
        machine.fds.tap = Some(16);
        insta::assert_snapshot!(text(&machine));
    }

    #[test]
    fn kvm_one_vcpu_complete_disk() {
        let mut machine = machine(Acceleration::Kvm, 1000);
        machine.fds.base = None;
        insta::assert_snapshot!(text(&machine));
    }

    #[test]
    fn kvm_two_vcpus_with_network_no_seccomp() {
        let mut machine = machine(Acceleration::Kvm, 2000);
        machine.mac = Some("02:00:00:00:00:07".to_owned());
        machine.fds.tap = Some(16);
        machine.seccomp = Seccomp::NotBuiltIn;
        insta::assert_snapshot!(text(&machine));
    }

    #[test]
    fn aarch64_tcg_one_vcpu() {
        let mut machine = machine(Acceleration::Tcg { tsc_khz: None }, 1000);
        machine.arch = Arch::Aarch64;
        insta::assert_snapshot!(text(&machine));
    }

    #[test]
    fn aarch64_kvm_two_vcpus() {
        let mut machine = machine(Acceleration::Kvm, 2000);
        machine.arch = Arch::Aarch64;
        insta::assert_snapshot!(text(&machine));
    }

    #[test]
    fn tcg_clone_over_two_layers() {
        let mut machine = machine(Acceleration::Tcg { tsc_khz: Some(2_445_434) }, 1000);
        machine.start = Start::Restore;
        machine.memory = Memory::Template(19);
        machine.top = TopName::first().next();
        machine.fds.layers = vec![17, 18];
        insta::assert_snapshot!(text(&machine));
    }

    #[test]
    fn kvm_restored_alone_on_hugepages() {
        let mut machine = machine(Acceleration::Kvm, 1000);
        machine.start = Start::Restore;
        machine.memory = Memory::Hugepages;
        insta::assert_snapshot!(text(&machine));
    }
}
