//! The cases. Each is one promise of the traits, named as a sentence.

use camino::Utf8PathBuf;
use tokio::io::AsyncReadExt;

use crate::EngineName;

use super::{
    Carrier, EngineError, Exit, Harness, VmRecord, boot, kill, nothing_left, ping, within,
};

/// A machine boots, its guest answers, and its end leaves nothing.
pub async fn boots_and_answers(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    assert!(!harness.traces(&vm.record()).await.is_empty(), "traces() sees a living machine");
    ping(harness, &*vm).await;
    kill(&*vm).await;
    nothing_left(harness, &vm.record()).await;
}

/// Opening the link again ends the former carrier, and the new one works.
pub async fn a_second_link_replaces_the_first(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    let Carrier::Single(mut former) =
        within("open the link", vm.open_link()).await.expect("the first link opens");
    ping(harness, &*vm).await;
    let drain = async {
        let mut block = [0; 4096];
        // What the guest had sent may still be there; after it comes the end or an error.
        while matches!(former.read(&mut block).await, Ok(1..)) {}
    };
    within("close the former link", drain).await;
    ping(harness, &*vm).await;
    kill(&*vm).await;
    assert!(matches!(vm.open_link().await, Err(EngineError::Gone)), "no link to the dead");
}

/// `kill` is idempotent, also from two sides at once.
pub async fn killing_twice_is_killing_once(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    let both = async { tokio::join!(vm.kill(), vm.kill()) };
    let (first, second) = within("kill twice", both).await;
    first.expect("the first kill succeeds");
    second.expect("the second kill succeeds");
    kill(&*vm).await;
    assert_eq!(within("exit", vm.exited()).await, Exit::Killed);
    nothing_left(harness, &vm.record()).await;
}

/// `exited` resolves for several waiters, before and after the end, with the same answer.
pub async fn everybody_learns_of_the_end(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    // Cancelling a wait takes the answer from nobody.
    let cancelled = tokio::time::timeout(std::time::Duration::ZERO, vm.exited()).await;
    assert!(cancelled.is_err(), "the machine runs");
    let all = async { tokio::join!(vm.exited(), vm.exited(), vm.kill()) };
    let (first, second, killed) = within("learn of the end", all).await;
    killed.expect("a kill succeeds");
    assert_eq!((first, second), (Exit::Killed, Exit::Killed));
    assert_eq!(within("learn of it later", vm.exited()).await, Exit::Killed);
}

/// A new engine adopts a machine whose handle is gone, and it is whole.
pub async fn a_machine_survives_the_daemon(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    ping(harness, &*vm).await;
    let record = vm.record();
    drop((vm, engine));

    let engine = harness.engine().await;
    let adopted = within("adopt", engine.adopt(&record)).await.expect("adoption works");
    let vm = adopted.expect("the machine is still there");
    assert_eq!(vm.record(), record);
    ping(harness, &*vm).await;
    kill(&*vm).await;
    assert_eq!(within("exit", vm.exited()).await, Exit::Killed);
    nothing_left(harness, &record).await;
}

/// A record whose machine has ended gives nothing, and its traces go.
pub async fn the_dead_are_not_adopted(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    let record = vm.record();
    // No handle watches when it dies, so nobody has cleaned up.
    drop(vm);
    harness.murder(&record).await;
    for _ in 0..2 {
        let adopted = within("adopt", engine.adopt(&record)).await.expect("asking works");
        assert!(adopted.is_none(), "nobody is there");
        nothing_left(harness, &record).await;
    }
}

/// A living process that merely has the recorded pid is not taken for the machine.
pub async fn a_reused_pid_is_not_adopted(harness: &dyn Harness) {
    refused(harness, |record| record.start_ticks += 1).await;
}

/// Nor is one from before the host was restarted.
pub async fn another_boot_of_the_host_is_not_adopted(harness: &dyn Harness) {
    refused(harness, |record| record.host_boot_id.push('x')).await;
}

async fn refused(harness: &dyn Harness, forge: impl Fn(&mut VmRecord)) {
    let engine = harness.engine().await;
    // The bystander plays the process that has got the dead machine's pid.
    let bystander = boot(harness, &*engine).await;
    let mut record = bystander.record();
    record.id = bhatti_types::EngineId::random();
    record.dir.push("gone");
    forge(&mut record);
    let adopted = within("adopt", engine.adopt(&record)).await.expect("asking works");
    assert!(adopted.is_none(), "the record does not match the process");
    within("end nothing", engine.end(&record)).await.expect("nothing to do is done");
    // It was neither harmed nor cut off.
    ping(harness, &*bystander).await;
    kill(&*bystander).await;
    assert_eq!(within("exit", bystander.exited()).await, Exit::Killed);
}

/// What another engine started is neither spoken to nor taken for gone, and can be ended.
pub async fn another_engines_machine_is_left_alone(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    let mut record = vm.record();
    record.engine = match record.engine {
        EngineName::Qemu => EngineName::Firecracker,
        EngineName::Firecracker | EngineName::Sim => EngineName::Qemu,
    };
    match within("adopt", engine.adopt(&record)).await {
        Err(EngineError::Foreign { why }) => {
            assert!(why.contains(&format!("engine: {}", record.engine)), "{why}");
        }
        Err(other) => panic!("not foreign, but {other}"),
        Ok(found) => panic!("adopted: {}", found.is_some()),
    }
    ping(harness, &*vm).await;
    within("end", engine.end(&record)).await.expect("ending works");
    nothing_left(harness, &vm.record()).await;
    let adopted = within("adopt", engine.adopt(&record)).await.expect("asking works");
    assert!(adopted.is_none(), "nobody is there");
}

/// A machine whose handle is gone can be ended by its record alone, again and again.
pub async fn a_record_is_enough_to_end_a_machine(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    let record = vm.record();
    drop((vm, engine));

    let engine = harness.engine().await;
    for _ in 0..2 {
        within("end", engine.end(&record)).await.expect("ending works");
        nothing_left(harness, &record).await;
    }
    let adopted = within("adopt", engine.adopt(&record)).await.expect("asking works");
    assert!(adopted.is_none(), "nobody is there");
}

/// Who holds a handle sees that the machine was ended by its record.
pub async fn ending_by_record_is_seen_by_the_handle(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    within("end", engine.end(&vm.record())).await.expect("ending works");
    let exit = within("exit", vm.exited()).await;
    assert!(matches!(exit, Exit::Killed | Exit::Died { .. }), "{exit:?}");
    kill(&*vm).await;
    nothing_left(harness, &vm.record()).await;
}

/// `sweep` ends what nobody knows, and only that.
pub async fn sweeping_spares_the_known(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let known = boot(harness, &*engine).await;
    let stray = boot(harness, &*engine).await;
    let (kept, swept) = (known.record(), stray.record());
    drop(stray);

    let keep = [kept.id.clone()];
    let ended = within("sweep", engine.sweep(&keep)).await.expect("a sweep succeeds");
    assert_eq!(ended, std::slice::from_ref(&swept.id));
    let ended = within("sweep again", engine.sweep(&keep)).await.expect("a sweep succeeds");
    assert!(ended.is_empty(), "nothing is left to sweep");
    let adopted = within("adopt", engine.adopt(&swept)).await.expect("asking works");
    assert!(adopted.is_none(), "the stray is gone");
    nothing_left(harness, &swept).await;
    ping(harness, &*known).await;
    kill(&*known).await;
}

/// An id that runs cannot be booted again, and the attempt does the first no harm.
pub async fn a_running_id_is_not_booted_twice(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    let mut again = harness.spec().await;
    again.id = vm.record().id;
    assert!(within("refuse", engine.boot(again)).await.is_err());
    ping(harness, &*vm).await;
    kill(&*vm).await;
    assert_eq!(within("exit", vm.exited()).await, Exit::Killed);
}

/// A boot that fails before it starts anything leaves nothing.
pub async fn a_missing_kernel_leaves_nothing(harness: &dyn Harness) {
    let mut spec = harness.spec().await;
    spec.kernel = Utf8PathBuf::from("/nonexistent/vmlinux");
    fails_without_trace(harness, spec).await;
}

/// So does one whose disk the engine cannot use.
pub async fn a_broken_image_leaves_nothing(harness: &dyn Harness) {
    let mut spec = harness.spec().await;
    std::fs::write(&spec.root.file, "this is no disk image").expect("the disk can be written");
    spec.root.base = None;
    fails_without_trace(harness, spec).await;
}

async fn fails_without_trace(harness: &dyn Harness, spec: crate::BootSpec) {
    let engine = harness.engine().await;
    let record = VmRecord {
        id: spec.id.clone(),
        engine: engine.info().name,
        dir: spec.dir.clone(),
        pid: 0,
        start_ticks: 0,
        host_boot_id: String::new(),
        cgroups: Vec::new(),
        memory: None,
        memory_at: Vec::new(),
    };
    let before = listing(&spec.dir);
    let result = within("fail", engine.boot(spec)).await;
    let error = result.err().expect("this cannot boot");
    assert!(!error.to_string().contains('\n') || error.to_string().len() < 4096, "{error}");
    nothing_left(harness, &record).await;
    assert_eq!(listing(&record.dir), before, "the directory is as it was");
}

fn listing(dir: &camino::Utf8Path) -> Vec<String> {
    let entries = dir.read_dir_utf8().expect("the directory is there");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_owned()).collect();
    names.sort();
    names
}

/// A VMM ended by somebody else is reported as died, with a reason, and cleaned up; whoever asks it for
/// something while it dies is told that it is gone.
pub async fn a_murdered_machine_is_seen_as_died(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    harness.murder(&vm.record()).await;
    let asked = async {
        loop {
            match vm.pause().await {
                Ok(()) => {}
                Err(EngineError::Gone) => return,
                Err(other) => panic!("it dies, which is not {other}"),
            }
        }
    };
    within("be told", asked).await;
    match within("notice", vm.exited()).await {
        Exit::Died { detail } => assert!(detail.contains("SIGKILL"), "{detail}"),
        other => panic!("a murder is not {other:?}"),
    }
    kill(&*vm).await;
    nothing_left(harness, &vm.record()).await;
}

/// What the guest printed can be read while it runs, and after the end, and is bounded.
pub async fn the_console_outlives_the_machine(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    ping(harness, &*vm).await;
    let alive = within("read the console", vm.console()).await;
    assert!(!alive.is_empty(), "a guest that answers has printed something");
    kill(&*vm).await;
    let after = within("read the console", vm.console()).await;
    assert!(after.starts_with(&alive), "reading takes nothing away");
    assert!(after.len() <= 64 * 1024);
}
