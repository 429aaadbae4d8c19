//! The box itself: an emulated machine whose CPU can run machines.
//!
//! Why its command line is what it is stands in the engine's `cmdline.rs`; this is the same machine
//! with a large cache of translated code and three disks.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Run;
use super::payload::{BOX, INITRAMFS, PAYLOAD};
use crate::guest::kernel;
use crate::process;

const MACHINE: &str = "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,x-option-roms=off,\
    auto-kernel-cmdline=off";
const KERNEL_LINE: &str = "console=ttyS0 loglevel=4 panic=-1 reboot=t cryptomgr.notests=1 \
    8250.nr_uarts=1 audit=0 no_timer_check nowatchdog oops=panic \
    rcupdate.rcu_cpu_stall_timeout=60 mitigations=off nokaslr init_on_alloc=0 \
    tsc=reliable norandmaps";
/// With two, which QEMU emulates side by side, the box's kernel went on with a guest's state for its
/// own now and then, and panicked. With one that has not been seen.
const CPUS: &str = "1";
/// Two VMMs with a guest each, and what the tests keep in memory.
const MEMORY_MIB: u32 = 6144;
/// Kernel, agent, libraries and QEMU are all translated once, if there is room.
const TRANSLATED_MIB: u32 = 512;
/// The box's kernel log, in the directory of the results.
pub(super) const CONSOLE_LOG: &str = "console.log";
/// How many times as long a second is in the box. There everything takes about that many times as
/// long as on hardware; by its own clock it does not, and a deadline in there, ours or the
/// product's, means what it means elsewhere.
const SLOWNESS: u64 = 8;
/// A box without a pulse for this long is dead; it has one every two seconds of its own.
const PULSE_DEADLINE: Duration = Duration::from_secs(240);

/// What came out of a box.
#[derive(Debug)]
pub(super) struct Ran {
    /// What the tests printed.
    pub(super) output: String,
    /// What the box says of each suite.
    pub(super) results: String,
    /// If it broke down, what its kernel said of that.
    pub(super) end: String,
}

/// Boots the box, shows what it prints, and waits for its end.
pub(super) fn run(run: &Run, results: &Path, deadline: Instant) -> Result<Ran> {
    let result_file = run.scratch.path().join("result");
    let mut command = command(run)?;
    // Files are always open. A terminal would be closed at once, for want of somebody who types.
    channel(&mut command, "output", "/dev/stdout".as_ref());
    channel(&mut command, "result", &result_file);
    let pulse = run.scratch.path().join("pulse");
    channel(&mut command, "pulse", &pulse);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("failed to start the box's QEMU")?;
    let files = Files { log: results.join("output.log"), pulse, disk: scratch_disk(run) };
    let watched = watch(&mut child, &files, deadline);
    // Killed if it still runs; either way it is collected.
    let ended = child.kill().and_then(|()| child.wait()).context("failed to end the box")?;
    let console = results.join(CONSOLE_LOG);
    let kept = fs::copy(run.scratch.path().join(CONSOLE_LOG), &console);
    kept.with_context(|| format!("failed to write {}", console.display()))?;
    let output = watched.with_context(|| {
        format!("the box did not get to its end ({ended}); its console is in {}", console.display())
    })?;
    let results = fs::read_to_string(&result_file).unwrap_or_default();
    let console = fs::read(&console).context("failed to read the console")?;
    Ok(Ran { output, results, end: last_words(&String::from_utf8_lossy(&console)) })
}

/// Why the kernel panicked, or that it did not.
fn last_words(console: &str) -> String {
    let panic = console.lines().find_map(|line| line.find("Kernel panic").map(|at| &line[at..]));
    panic.unwrap_or("no panic on its console").trim_end().to_owned()
}

/// Boots the box with its console on this terminal.
pub(super) fn shell(run: &Run) -> Result<()> {
    let mut command = command(run)?;
    command.args(["-chardev", "stdio,id=terminal,signal=off"]);
    command.args(["-device", "virtconsole,chardev=terminal"]);
    process::run(&mut command)
}

fn channel(command: &mut Command, name: &str, file: &Path) {
    command.arg("-chardev").arg(format!("file,id={name},path={}", file.display()));
    command.arg("-device").arg(format!("virtserialport,chardev={name},name={name}"));
}

/// What is looked after while a box runs.
struct Files {
    /// What it prints is kept there.
    log: PathBuf,
    /// Grows as long as it lives.
    pulse: PathBuf,
    /// Its disk.
    disk: PathBuf,
}

/// Passes on what the box prints until it has powered off or broken down.
fn watch(child: &mut Child, files: &Files, deadline: Instant) -> Result<String> {
    let Files { log, pulse, disk } = files;
    let mut log =
        fs::File::create(log).with_context(|| format!("failed to open {}", log.display()))?;
    let lines = lines(child.stdout.take().context("its output is piped")?);
    let started = Instant::now();
    let (mut beats, mut felt) = (0, started);
    let mut output = String::new();
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                eprint!("{line}");
                log.write_all(line.as_bytes()).context("failed to keep what the box says")?;
                output.push_str(&line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(output),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = fs::metadata(pulse).map_or(0, |pulse| pulse.len());
        if now > beats {
            if beats == 0 {
                // The box has it open. Without a name it goes with the box, however that ends: the tests
                // fill it with gigabytes, and nobody may start another box here to sweep them.
                fs::remove_file(disk).context("failed to take the box's disk its name")?;
            }
            (beats, felt) = (now, Instant::now());
        }
        if felt.elapsed() > PULSE_DEADLINE {
            ensure!(beats > 0, "it did not boot within {} s", PULSE_DEADLINE.as_secs());
            eprintln!("kvm-box: no pulse for {} s", PULSE_DEADLINE.as_secs());
            return Ok(output);
        }
        let minutes = started.elapsed().as_secs() / 60;
        ensure!(Instant::now() < deadline, "it was not done after {minutes} minutes");
    }
}

/// What comes out of a pipe, line by line, from a thread that ends with the pipe.
fn lines(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (lines, received) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            if lines.send(text).is_err() {
                break;
            }
        }
    });
    received
}

/// The disk the tests write to.
fn scratch_disk(run: &Run) -> PathBuf {
    run.scratch.path().join(BOX)
}

/// QEMU with everything but its channels.
fn command(run: &Run) -> Result<Command> {
    let scratch = run.scratch.path();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("failed to read /proc/cpuinfo")?;
    let khz = tsc_khz(&cpuinfo).context("/proc/cpuinfo names no bogomips")?;
    // If we are killed, so is the box; and others have work to do on this machine.
    let mut command = run.emulator.command(&["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10"]);
    command.args(["-machine", MACHINE, "-cpu", "max", "-smp", CPUS]);
    command.arg("-accel").arg(format!("tcg,thread=multi,tb-size={TRANSLATED_MIB}"));
    command.arg("-m").arg(format!("{MEMORY_MIB}M"));
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.arg("-bios").arg(&run.emulator.firmware);
    command.arg("-kernel").arg(run.guest.join(kernel::VMLINUX));
    command.arg("-initrd").arg(scratch.join(INITRAMFS));
    command.arg("-append").arg(format!("{KERNEL_LINE} tsc_early_khz={}", khz * SLOWNESS));
    command.arg("-chardev");
    command.arg(format!("file,id=console,path={}", scratch.join(CONSOLE_LOG).display()));
    command.args(["-serial", "chardev:console"]);
    for (name, file, how) in [
        ("root", run.root.clone(), "readonly=on"),
        ("payload", scratch.join(PAYLOAD), "readonly=on"),
        ("box", scratch_disk(run), "cache=unsafe,discard=unmap"),
    ] {
        command.arg("-drive");
        command.arg(format!("if=none,id={name},format=raw,file={},{how}", file.display()));
        command.arg("-device").arg(format!("virtio-blk-device,drive={name},serial={name}"));
    }
    command.args(["-device", "virtio-rng-device"]);
    command.args(["-device", "virtio-serial-device,max_ports=4"]);
    Ok(command)
}

/// The frequency of the host's time stamp counter, which under emulation is the box's too. It takes
/// all time from that counter, and the word for it. A bogomips is two of these by definition.
fn tsc_khz(cpuinfo: &str) -> Option<u64> {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("bogomips"))?;
    let value = line.trim_start().strip_prefix(':')?.trim();
    let (whole, hundredths) = value.split_once('.')?;
    let hundredths = (hundredths.len() == 2).then(|| hundredths.parse::<u64>().ok())??;
    Some((whole.parse::<u64>().ok()? * 100 + hundredths) * 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told() {
        let console = "[    1.0] x\r\n[   73.215] Kernel panic - not syncing: stack\r\n[   74] y";
        assert_eq!(last_words(console), "Kernel panic - not syncing: stack");
        assert!(last_words("[    1.0] reboot: Power down").contains("no panic"));
    }

    #[test]
    fn the_counters_frequency_is_half_the_bogomips() {
        assert_eq!(tsc_khz("cpu MHz\t: 1.0\nbogomips\t: 4890.86\n"), Some(2_445_430));
        assert_eq!(tsc_khz("bogomips\t: 4890\n"), None);
        assert_eq!(tsc_khz(""), None);
    }
}
