//! One suite that every engine passes, the simulator first. If the simulator and the real thing
//! disagree, this says which of the two lies.
//!
//! An engine's test binary implements [`Harness`] and calls [`conformance_tests!`] once, which
//! expands into one named test per case. A case makes its own machines and looks only at those,
//! so cases may run side by side; each waits for states with a deadline, never for a moment.
//!
//! [`conformance_tests!`]: crate::conformance_tests

mod cases;
mod sleep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;

use crate::{BootSpec, Carrier, Engine, EngineError, Exit, Vm, VmRecord};

pub use cases::{
    a_broken_image_leaves_nothing, a_machine_survives_the_daemon, a_missing_kernel_leaves_nothing,
    a_murdered_machine_is_seen_as_died, a_record_is_enough_to_end_a_machine,
    a_reused_pid_is_not_adopted, a_running_id_is_not_booted_twice,
    a_second_link_replaces_the_first, another_boot_of_the_host_is_not_adopted,
    another_engines_machine_is_left_alone, boots_and_answers,
    ending_by_record_is_seen_by_the_handle, everybody_learns_of_the_end,
    killing_twice_is_killing_once, sweeping_spares_the_known, the_console_outlives_the_machine,
    the_dead_are_not_adopted,
};
pub use sleep::{
    a_damaged_snapshot_is_unusable, a_machine_of_another_size_is_unusable,
    a_paused_machine_is_adopted_as_it_is, a_paused_machine_stands_still, a_sealed_disk_is_below,
    a_snapshot_brings_memory_back, clones_share_a_past_and_no_present,
    merged_layers_are_not_needed, only_a_paused_machine_is_saved, the_paused_can_be_killed,
};

/// The longest a case waits for one thing: emulation on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a case waits at most, and an engine's own tests beside the suite.
pub const fn patience() -> Duration {
    PATIENCE
}

/// What the suite needs of an engine's test set-up.
#[async_trait]
pub trait Harness: Send + Sync {
    /// An engine over the same host every time: what a restarted daemon would make. No other
    /// test may share that host's machines, because a case sweeps it.
    async fn engine(&self) -> Arc<dyn Engine>;

    /// A machine that has never been: fresh id, fresh directory with a root disk, small shape.
    async fn spec(&self) -> BootSpec;

    /// Proves that the guest answers through the carrier, and gives the carrier up.
    async fn ping(&self, carrier: Carrier) -> Result<(), String>;

    /// Ends the VMM as an outsider would, with the engine unaware.
    async fn murder(&self, record: &VmRecord);

    /// Everything outside its directory, and every socket inside, that still exists of a machine.
    async fn traces(&self, machine: &VmRecord) -> Vec<String>;

    /// Has the guest keep a short text in its memory; the machine runs.
    async fn remember(&self, vm: &dyn Vm, text: &str);

    /// What the guest was last told to remember, in this life or before it was saved.
    async fn recall(&self, vm: &dyn Vm) -> String;

    /// A fresh, empty directory that nobody else can enter, on the file system of the machines'.
    fn shelf(&self) -> Utf8PathBuf;

    /// Told of each successful boot, for a count.
    fn booted(&self);
}

/// Expands into one test per case; the expression makes the harness.
///
/// Where machines need what most hosts have not, `ignored "why";` before the expression makes each a
/// test that is counted as ignored unless it is asked for.
#[macro_export]
macro_rules! conformance_tests {
    (ignored $why:literal; $harness:expr) => {
        $crate::conformance_tests!(@all [ignore = $why]; $harness);
    };
    ($harness:expr) => {
        $crate::conformance_tests!(@all [cfg(all())]; $harness);
    };
    (@all [$mark:meta]; $harness:expr) => {
        $crate::conformance_tests!(@each [$mark]; $harness;
            boots_and_answers,
            a_second_link_replaces_the_first,
            killing_twice_is_killing_once,
            everybody_learns_of_the_end,
            a_machine_survives_the_daemon,
            the_dead_are_not_adopted,
            a_reused_pid_is_not_adopted,
            another_boot_of_the_host_is_not_adopted,
            another_engines_machine_is_left_alone,
            a_record_is_enough_to_end_a_machine,
            ending_by_record_is_seen_by_the_handle,
            sweeping_spares_the_known,
            a_running_id_is_not_booted_twice,
            a_missing_kernel_leaves_nothing,
            a_broken_image_leaves_nothing,
            a_murdered_machine_is_seen_as_died,
            the_console_outlives_the_machine,
            a_paused_machine_stands_still,
            only_a_paused_machine_is_saved,
            a_snapshot_brings_memory_back,
            clones_share_a_past_and_no_present,
            a_sealed_disk_is_below,
            merged_layers_are_not_needed,
            a_damaged_snapshot_is_unusable,
            a_machine_of_another_size_is_unusable,
            a_paused_machine_is_adopted_as_it_is,
            the_paused_can_be_killed,
        );
    };
    (@each [$mark:meta]; $harness:expr; $($case:ident),+ $(,)?) => {
        $crate::conformance_tests!(@tests $([$mark] $case)+; $harness);
    };
    (@tests $([$mark:meta] $case:ident)+; $harness:expr) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[$mark]
            async fn $case() {
                let harness = $harness;
                $crate::conformance::$case(&harness).await;
            }
        )+
    };
}

async fn boot(harness: &dyn Harness, engine: &dyn Engine) -> Arc<dyn Vm> {
    let spec = harness.spec().await;
    let id = spec.id.clone();
    let vm = within("boot", engine.boot(spec)).await.expect("a machine boots");
    assert_eq!(vm.record().id, id, "the record is of the machine that was asked for");
    harness.booted();
    vm
}

async fn ping(harness: &dyn Harness, vm: &dyn Vm) {
    let carrier = within("open the link", vm.open_link()).await.expect("the link opens");
    within("answer a ping", harness.ping(carrier)).await.expect("the guest answers");
}

async fn kill(vm: &dyn Vm) {
    within("kill", vm.kill()).await.expect("a kill succeeds");
}

async fn nothing_left(harness: &dyn Harness, record: &VmRecord) {
    let traces = harness.traces(record).await;
    assert!(traces.is_empty(), "left behind: {traces:?}");
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let patience = patience();
    match tokio::time::timeout(patience, future).await {
        Ok(value) => value,
        Err(_) => panic!("did not {what} within {} s", patience.as_secs()),
    }
}
