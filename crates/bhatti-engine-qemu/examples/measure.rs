//! Measures what the documentation quotes: `cargo run --release --example measure [ROUNDS]`.
//!
//! Per round one machine of 256 MiB and one vCPU under emulation: from `boot` to the control
//! socket's greeting, from `boot` to an agent that has answered the handshake, and the memory and
//! CPU time the VMM has then used. Medians. Needs what the tests need.

#![expect(clippy::unwrap_used, reason = "a tool for the developer may panic")]

#[path = "../tests/all/harness.rs"]
mod harness;

use std::time::Instant;

use bhatti_engine::Engine;
use bhatti_engine::conformance::Harness;

/// One field of `/proc/<pid>/status`, in MiB.
fn status_mib(pid: i32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

/// User and system time so far, in seconds.
fn cpu_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args().nth(1).map_or(7, |n| n.parse().unwrap());
    let names = ["greeting s", "agent s", "CPU s", "RSS MiB", "anonymous MiB", "kill s"];
    let mut columns = vec![Vec::new(); names.len()];
    for _ in 0..rounds {
        let harness = harness::QemuHarness::new();
        let engine = harness.qemu().await;
        let spec = harness.spec().await;
        let start = Instant::now();
        let vm = engine.boot(spec).await.unwrap();
        let greeting = start.elapsed();
        harness.ping(vm.open_link().await.unwrap()).await.unwrap();
        let agent = start.elapsed();
        let pid = vm.record().pid;
        let (cpu, rss) = (cpu_seconds(pid), status_mib(pid, "VmRSS:"));
        let anonymous = status_mib(pid, "RssAnon:");
        let start = Instant::now();
        vm.kill().await.unwrap();
        let kill = start.elapsed().as_secs_f64();
        let row = [greeting.as_secs_f64(), agent.as_secs_f64(), cpu, rss, anonymous, kill];
        for (column, value) in columns.iter_mut().zip(row) {
            column.push(value);
        }
    }
    for (name, column) in names.iter().zip(&mut columns) {
        let least = column.iter().copied().fold(f64::INFINITY, f64::min);
        println!("{name:14} median {:8.3}  least {least:8.3}", median(column));
    }
}
