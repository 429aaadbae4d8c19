//! A daemon that dies at any step of anything it does, and the next one on the same host.
//!
//! For each operation: let it take 0 steps, 1 step, 2 steps and so on, end the daemon, start
//! another, and look. What was acknowledged is there, with its memory and its files; the record,
//! the machines and the files agree; what is there can be used, slept and destroyed; and then
//! nothing is left.

use super::*;

/// An operation, cut short.
struct Trial<'a> {
    house: &'a House,
    daemon: Daemon,
    alice: UserRow,
    /// The operation ended before the daemon did, and said that it worked.
    acknowledged: bool,
}

/// What is to be tried.
struct Case<P, O, C> {
    house: fn() -> House,
    /// The host is restarted as well.
    power_cut: bool,
    prepare: P,
    operation: O,
    /// Looks at what the next daemon makes of it, before anything else is done.
    check: C,
}

impl<P, O, C> Case<P, O, C>
where
    P: AsyncFn(&House, &Daemon, &UserRow),
    O: AsyncFn(&Daemon, &UserRow) -> bool,
    C: AsyncFn(&Trial<'_>),
{
    async fn at_every_step(&self) {
        for steps in 0.. {
            let (acknowledged, complete) = self.with_steps(steps).await;
            if complete {
                assert!(acknowledged, "with all the time there is it works");
                assert!(steps > 1, "so few steps: nothing was cut short");
                return;
            }
            assert!(steps < 2000, "it never comes to an end");
        }
    }

    /// Whether it was acknowledged, and whether the daemon had steps left when it was idle again.
    async fn with_steps(&self, steps: usize) -> (bool, bool) {
        let house = (self.house)();
        let daemon = house.daemon().await;
        let alice = daemon.user("alice", 5).await;
        (self.prepare)(&house, &daemon, &alice).await;
        let life = daemon.tasks.life.clone();
        life.limit(steps);
        let acknowledged = tokio::select! {
            biased; // a dead daemon says nothing
            () = life.over() => false,
            acknowledged = (self.operation)(&daemon, &alice) => acknowledged,
        };
        settle(&daemon).await;
        let complete = !life.is_over();
        daemon.die().await;
        if self.power_cut {
            house.host.reboot();
        }
        let daemon = house.daemon().await;
        let alice = daemon.known(&alice).await;
        let trial = Trial { house: &house, daemon, alice, acknowledged };
        trial.agree(&format!("after {steps} steps")).await;
        (self.check)(&trial).await;
        trial.everything_works().await;
        (acknowledged, complete)
    }
}

/// Lets the tasks of a daemon do what they do behind an answer.
async fn settle(daemon: &Daemon) {
    for _ in 0..20 {
        daemon.db.call(|_| Ok(())).await.unwrap();
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        tokio::task::yield_now().await;
    }
}

impl Trial<'_> {
    /// The record, the machines and the files agree, at once or in a moment.
    async fn agree(&self, when: &str) {
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        loop {
            match self.disagreement().await {
                None => return,
                Some(what) if std::time::Instant::now() > deadline => panic!("{when}: {what}"),
                Some(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    async fn disagreement(&self) -> Option<String> {
        let (rows, unreadable) = self.daemon.db.call(|store| store.all_sandboxes()).await.unwrap();
        assert!(unreadable.is_empty());
        let differ = |what: &str, is: &dyn std::fmt::Debug, should: &dyn std::fmt::Debug| {
            Some(format!("{what}: {is:?}, should be {should:?}; rows: {rows:#?}"))
        };
        let set = |ids: Vec<String>| ids.into_iter().collect::<BTreeSet<_>>();
        let up = rows.iter().filter(|row| matches!(row.phase, Phase::Hot | Phase::Warm));
        let up: BTreeSet<_> = up.map(|row| row.engine_id.clone()).collect();
        if self.house.host.running() != up {
            return differ("machines", &self.house.host.running(), &up);
        }
        let all = set(rows.iter().map(|row| row.engine_id.to_string()).collect());
        for part in ["sandboxes", "bases"] {
            if self.house.names(part) != all {
                return differ(part, &self.house.names(part), &all);
            }
        }
        for row in &rows {
            let settled = [Phase::Hot, Phase::Warm, Phase::Cold, Phase::Stopped];
            if !settled.contains(&row.phase) {
                return differ("phase", &row.phase, &settled);
            }
            let frozen = self.house.names(&format!("frozen/{}", row.engine_id));
            let numbers = row.generations.iter().map(|made| made.number.to_string());
            let numbers = set(numbers.collect());
            if frozen != numbers {
                return differ("frozen", &frozen, &numbers);
            }
            let disks = row.generations.iter().map(|made| &made.disk).chain(&row.root_disk);
            let disks = disks.map(|disk| serde_json::from_value::<RootDisk>(disk.clone()).unwrap());
            let files =
                disks.flat_map(|disk| crate::disk::layers_of(&disk).into_iter().chain(disk.base));
            let mine = format!("/layers/{}/", row.engine_id);
            let needed = files.filter(|file| file.as_str().contains(&mine));
            let needed = set(needed.map(|file| file.file_name().unwrap().to_owned()).collect());
            let layers = self.house.names(&format!("layers/{}", row.engine_id));
            if layers != needed {
                return differ("layers", &layers, &needed);
            }
        }
        let snapshots = self.daemon.db.call(|store| store.snapshot_ids()).await.unwrap();
        let snapshots = set(snapshots.iter().map(ToString::to_string).collect());
        if self.house.names("snapshots") != snapshots {
            return differ("snapshots", &self.house.names("snapshots"), &snapshots);
        }
        let goldens = self.daemon.db.call(|store| store.golden_ids()).await.unwrap();
        let goldens = set(goldens.iter().map(ToString::to_string).collect());
        if self.house.names("goldens") != goldens {
            return differ("goldens", &self.house.names("goldens"), &goldens);
        }
        None
    }

    /// Uses, sleeps, wakes and destroys whatever is there, and makes it anew.
    async fn everything_works(&self) {
        let (daemon, alice) = (&self.daemon, &self.alice);
        for row in daemon.sandboxes.list(alice).await.unwrap() {
            let name = row.name.as_str();
            daemon.sandboxes.lease(alice, name).await.unwrap().guest().set_clock().await.unwrap();
            self.house.host.set_memory(&row.engine_id, b"later".to_vec());
            daemon.write(alice, name, "later,").await;
            let before = Daemon::disk(&daemon.row(alice, name).await);
            daemon.sandboxes.stop(alice, name).await.unwrap();
            self.agree("asleep").await;
            daemon.sandboxes.lease(alice, name).await.unwrap();
            let row = daemon.row(alice, name).await;
            assert_eq!(row.reason, "woken");
            assert_eq!(self.house.host.memory(&row.engine_id).as_deref(), Some(&b"later"[..]));
            assert!(Daemon::disk(&row).starts_with(&before));
            self.agree("awake").await;
        }
        for snapshot in daemon.sandboxes.snapshots(alice).await.unwrap() {
            let name = snapshot.name.as_str();
            daemon.sandboxes.resume_snapshot(alice, name, None, None).await.unwrap();
            daemon.sandboxes.delete_snapshot(alice, name).await.unwrap();
        }
        for row in daemon.sandboxes.list(alice).await.unwrap() {
            daemon.sandboxes.destroy(alice, row.name.as_str()).await.unwrap();
        }
        self.house.assert_nothing_left(daemon).await;
        assert_eq!(self.house.names("snapshots"), BTreeSet::new());
        for name in ["dev", "copy"] {
            daemon.sandboxes.create(alice, named(name)).await.unwrap();
        }
        self.agree("made anew").await;
    }

    /// `dev` has lost nothing: neither files, nor memory unless its machine was lost with the
    /// host, which is said.
    async fn dev_is_whole(&self) {
        let row = self.daemon.row(&self.alice, "dev").await;
        self.daemon.sandboxes.lease(&self.alice, "dev").await.unwrap();
        let awake = self.daemon.row(&self.alice, "dev").await;
        let memory = self.house.host.memory(&row.engine_id).unwrap();
        if row.phase == Phase::Stopped {
            assert_eq!(row.reason, crate::recover::LOST);
        } else {
            assert_eq!(memory, b"work", "{row:?}");
        }
        let disk = Daemon::disk(&awake);
        assert!(disk.contains("files,"), "{disk:?} of {awake:?}");
    }
}

/// Makes `dev`, with something in its memory and on its disk.
async fn make_dev(house: &House, daemon: &Daemon, alice: &UserRow) {
    daemon.sandboxes.create(alice, named("dev")).await.unwrap();
    house.host.set_memory(&house.machine(), b"work".to_vec());
    daemon.write(alice, "dev", "files,").await;
}

/// The same, after it has slept once.
async fn make_rested_dev(house: &House, daemon: &Daemon, alice: &UserRow) {
    make_dev(house, daemon, alice).await;
    daemon.sandboxes.stop(alice, "dev").await.unwrap();
    daemon.sandboxes.start(alice, "dev", false).await.unwrap();
    house.host.set_memory(&house.machine(), b"work".to_vec());
}

async fn make_cold_dev(house: &House, daemon: &Daemon, alice: &UserRow) {
    make_dev(house, daemon, alice).await;
    daemon.sandboxes.stop(alice, "dev").await.unwrap();
}

async fn nothing(_: &House, _: &Daemon, _: &UserRow) {}

fn golden() -> House {
    House::with_goldens(2)
}

/// The same with an engine whose disks are whole files.
fn whole() -> House {
    let house = golden();
    house.host.set_disk_format(DiskFormat::Raw);
    house
}

async fn create(daemon: &Daemon, alice: &UserRow) -> bool {
    daemon.sandboxes.create(alice, named("dev")).await.is_ok()
}

/// What was acknowledged is there, and nothing else.
async fn dev_is_there_if_said(trial: &Trial<'_>) {
    let there = trial.daemon.sandboxes.get(&trial.alice, "dev").await.is_ok();
    assert!(there || !trial.acknowledged);
}

#[tokio::test]
async fn a_create_by_booting() {
    for power_cut in [false, true] {
        let (prepare, operation, check) = (nothing, create, dev_is_there_if_said);
        Case { house: House::new, power_cut, prepare, operation, check }.at_every_step().await;
    }
}

#[tokio::test]
async fn a_create_that_makes_a_golden() {
    let (prepare, operation, check) = (nothing, create, dev_is_there_if_said);
    Case { house: golden, power_cut: false, prepare, operation, check }.at_every_step().await;
}

#[tokio::test]
async fn a_create_from_a_golden() {
    let prepare = async |_: &House, daemon: &Daemon, alice: &UserRow| {
        daemon.sandboxes.create(alice, named("first")).await.unwrap();
    };
    let (operation, check) = (create, dev_is_there_if_said);
    Case { house: golden, power_cut: false, prepare, operation, check }.at_every_step().await;
}

async fn stop(daemon: &Daemon, alice: &UserRow) -> bool {
    daemon.sandboxes.stop(alice, "dev").await.is_ok()
}

async fn dev_sleeps_if_said(trial: &Trial<'_>) {
    let phase = trial.daemon.phase(&trial.alice, "dev").await;
    assert!(phase == Phase::Cold || !trial.acknowledged, "{phase}");
    trial.dev_is_whole().await;
}

#[tokio::test]
async fn a_freeze() {
    for power_cut in [false, true] {
        for house in [House::new, golden, whole] {
            let (prepare, operation, check) = (make_dev, stop, dev_sleeps_if_said);
            Case { house, power_cut, prepare, operation, check }.at_every_step().await;
        }
    }
}

#[tokio::test]
async fn a_second_freeze() {
    for power_cut in [false, true] {
        let (prepare, operation, check) = (make_rested_dev, stop, dev_sleeps_if_said);
        Case { house: golden, power_cut, prepare, operation, check }.at_every_step().await;
    }
}

#[tokio::test]
async fn a_wake() {
    for (power_cut, house) in [(false, golden as fn() -> House), (true, golden), (false, whole)] {
        let operation = async |daemon: &Daemon, alice: &UserRow| {
            daemon.sandboxes.lease(alice, "dev").await.is_ok()
        };
        let check = async |trial: &Trial<'_>| trial.dev_is_whole().await;
        let prepare = make_cold_dev;
        Case { house, power_cut, prepare, operation, check }.at_every_step().await;
    }
}

/// The disk of a stopped sandbox is taken over from another engine, and again from that one.
#[tokio::test]
async fn a_move_to_another_engine() {
    let moved = |to: DiskFormat| {
        async move |house: &House, daemon: &Daemon, alice: &UserRow| {
            let from = match to {
                DiskFormat::Raw => DiskFormat::Qcow2,
                DiskFormat::Qcow2 => DiskFormat::Raw,
            };
            house.host.set_disk_format(from);
            make_rested_dev(house, daemon, alice).await;
            house.host.power_off(&house.machine());
            daemon.comes_to(alice, "dev", Phase::Stopped).await;
            house.host.set_disk_format(to);
        }
    };
    let operation =
        async |daemon: &Daemon, alice: &UserRow| daemon.sandboxes.lease(alice, "dev").await.is_ok();
    let check = async |trial: &Trial<'_>| {
        trial.daemon.sandboxes.lease(&trial.alice, "dev").await.unwrap();
        let row = trial.daemon.row(&trial.alice, "dev").await;
        assert_eq!(Daemon::disk(&row).matches("files,").count(), 1, "{row:?}");
    };
    for to in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let prepare = moved(to);
        Case { house: House::new, power_cut: false, prepare, operation, check }
            .at_every_step()
            .await;
    }
}

async fn checkpoint(daemon: &Daemon, alice: &UserRow) -> bool {
    daemon.sandboxes.checkpoint(alice, "dev", "base".parse().unwrap()).await.is_ok()
}

/// The sandbox is whole, and the snapshot is all there or not at all.
async fn base_is_there_if_said(trial: &Trial<'_>) {
    trial.dev_is_whole().await;
    match trial.daemon.sandboxes.resume_snapshot(&trial.alice, "base", None, None).await {
        Ok(row) => {
            assert_eq!(trial.house.host.memory(&row.engine_id).as_deref(), Some(&b"work"[..]));
            assert!(Daemon::disk(&row).contains("files,"));
        }
        Err(ServiceError::NoSnapshot(_)) => assert!(!trial.acknowledged),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_checkpoint_of_a_running_one() {
    for (power_cut, house) in [(false, golden as fn() -> House), (true, golden), (true, whole)] {
        let (prepare, operation, check) = (make_rested_dev, checkpoint, base_is_there_if_said);
        Case { house, power_cut, prepare, operation, check }.at_every_step().await;
    }
}

#[tokio::test]
async fn a_checkpoint_of_a_cold_one() {
    let (prepare, operation, check) = (make_cold_dev, checkpoint, base_is_there_if_said);
    Case { house: golden, power_cut: true, prepare, operation, check }.at_every_step().await;
}

#[tokio::test]
async fn a_resume_of_a_snapshot() {
    for power_cut in [false, true] {
        let prepare = async |house: &House, daemon: &Daemon, alice: &UserRow| {
            make_rested_dev(house, daemon, alice).await;
            assert!(checkpoint(daemon, alice).await);
        };
        let operation = async |daemon: &Daemon, alice: &UserRow| {
            let name = "copy".parse().unwrap();
            daemon.sandboxes.resume_snapshot(alice, "base", Some(name), None).await.is_ok()
        };
        let check = async |trial: &Trial<'_>| {
            let copy = trial.daemon.sandboxes.get(&trial.alice, "copy").await;
            assert!(copy.is_ok() || !trial.acknowledged);
            if let Ok(row) = copy {
                assert!(Daemon::disk(&row).contains("files,"));
                trial.daemon.sandboxes.destroy(&trial.alice, "copy").await.unwrap();
            }
            trial.dev_is_whole().await;
            trial.daemon.sandboxes.snapshot(&trial.alice, "base").await.unwrap();
        };
        Case { house: golden, power_cut, prepare, operation, check }.at_every_step().await;
    }
}

#[tokio::test]
async fn a_destroy() {
    for prepare in [0, 1] {
        let prepare = async |house: &House, daemon: &Daemon, alice: &UserRow| {
            make_rested_dev(house, daemon, alice).await;
            if prepare == 1 {
                daemon.sandboxes.stop(alice, "dev").await.unwrap();
            }
        };
        let operation = async |daemon: &Daemon, alice: &UserRow| {
            daemon.sandboxes.destroy(alice, "dev").await.is_ok()
        };
        let check = async |trial: &Trial<'_>| {
            let there = trial.daemon.sandboxes.get(&trial.alice, "dev").await.is_ok();
            assert!(!there || !trial.acknowledged);
        };
        Case { house: golden, power_cut: false, prepare, operation, check }.at_every_step().await;
    }
}

#[tokio::test]
async fn deleting_a_snapshot() {
    let prepare = async |house: &House, daemon: &Daemon, alice: &UserRow| {
        make_dev(house, daemon, alice).await;
        assert!(checkpoint(daemon, alice).await);
    };
    let operation = async |daemon: &Daemon, alice: &UserRow| {
        daemon.sandboxes.delete_snapshot(alice, "base").await.is_ok()
    };
    let check = async |trial: &Trial<'_>| {
        let there = trial.daemon.sandboxes.snapshot(&trial.alice, "base").await.is_ok();
        assert!(!there || !trial.acknowledged);
        trial.dev_is_whole().await;
    };
    Case { house: golden, power_cut: false, prepare, operation, check }.at_every_step().await;
}

/// What the dead daemon of before left in the middle of a freeze, a wake or a checkpoint is put
/// right by a daemon that dies in the middle of that, and by the one after it.
#[tokio::test]
async fn a_recovery() {
    /// Every so many steps of the operation one is cut short: all of them would take minutes.
    const STRIDE: usize = 5;
    for operation in 0..3 {
        for cut_at in (STRIDE..200).step_by(STRIDE) {
            let mut complete = false;
            let mut recovered = false;
            for steps in (0..).step_by(2) {
                let house = golden();
                let daemon = house.daemon().await;
                let alice = daemon.user("alice", 5).await;
                make_rested_dev(&house, &daemon, &alice).await;
                if operation == 1 {
                    assert!(stop(&daemon, &alice).await);
                }
                let life = daemon.tasks.life.clone();
                life.limit(cut_at);
                let work = async {
                    match operation {
                        0 => stop(&daemon, &alice).await,
                        1 => daemon.sandboxes.lease(&alice, "dev").await.is_ok(),
                        _ => checkpoint(&daemon, &alice).await,
                    }
                };
                tokio::select! {
                    biased;
                    () = life.over() => {}
                    _ = work => {}
                }
                settle(&daemon).await;
                complete = !life.is_over();
                daemon.die().await;

                let life = Life::default();
                life.limit(steps);
                if let Some(daemon) = house.daemon_of(life.clone()).await {
                    settle(&daemon).await;
                    recovered = !life.is_over();
                    daemon.die().await;
                }
                let daemon = house.daemon().await;
                let alice = daemon.known(&alice).await;
                let trial = Trial { house: &house, daemon, alice, acknowledged: false };
                trial.agree(&format!("{operation} cut at {cut_at}, recovery at {steps}")).await;
                trial.dev_is_whole().await;
                if recovered {
                    break;
                }
            }
            assert!(recovered);
            if complete {
                break;
            }
        }
    }
}

async fn files_are_there(trial: &Trial<'_>) {
    trial.daemon.sandboxes.lease(&trial.alice, "dev").await.unwrap();
    let disk = Daemon::disk(&trial.daemon.row(&trial.alice, "dev").await);
    assert!(disk.contains("files,"), "{disk}");
}

async fn use_dev(daemon: &Daemon, alice: &UserRow) -> bool {
    daemon.sandboxes.lease(alice, "dev").await.is_ok()
}

/// Its memory is of no use: a wake boots.
#[tokio::test]
async fn a_wake_that_loses_memory() {
    let prepare = async |house: &House, daemon: &Daemon, alice: &UserRow| {
        make_cold_dev(house, daemon, alice).await;
        let row = daemon.row(alice, "dev").await;
        let state = format!("data/frozen/{}/{}/state.sim", row.engine_id, row.serial);
        std::fs::write(house.path(&state), "rubbish").unwrap();
    };
    for power_cut in [false, true] {
        let (operation, check) = (use_dev, files_are_there);
        Case { house: golden, power_cut, prepare, operation, check }.at_every_step().await;
    }
}

#[tokio::test]
async fn a_boot_of_a_stopped_one() {
    let prepare = async |house: &House, daemon: &Daemon, alice: &UserRow| {
        make_rested_dev(house, daemon, alice).await;
        house.host.crash(&house.machine(), "oom");
        daemon.comes_to(alice, "dev", Phase::Stopped).await;
    };
    for power_cut in [false, true] {
        let (operation, check) = (use_dev, files_are_there);
        Case { house: golden, power_cut, prepare, operation, check }.at_every_step().await;
    }
}
