//! Pause and resume, over and over: every time the guest does something new afterwards.

use bhatti_engine::Engine;
use bhatti_engine::conformance::Harness;

use crate::harness::{FirecrackerHarness, Talk, ask};

const CYCLES: u32 = 200;

/// Over a link that was there before, and every tenth time over a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn two_hundred_pauses_and_an_exec_after_each() {
    let harness = FirecrackerHarness::new();
    let vm = harness.firecracker().await.boot(harness.spec().await).await.unwrap();
    harness.booted();
    let mut talk = Talk::with(&*vm).await;
    for cycle in 0..CYCLES {
        vm.pause().await.unwrap();
        vm.resume().await.unwrap();
        if cycle % 10 == 9 {
            talk.end().await;
            assert_eq!(ask(&*vm, &format!("echo new {cycle}")).await, format!("new {cycle}"));
            talk = Talk::with(&*vm).await;
        }
        assert_eq!(talk.run(&format!("echo {cycle}")).await, cycle.to_string());
    }
    talk.end().await;
    vm.kill().await.unwrap();
}
