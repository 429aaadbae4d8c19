//! Golden snapshots: made once, shared, bounded, and done without when they cannot be had.

use bhatti_engine_sim::{Call, Fault};

use super::*;

fn fail() -> Fault {
    Fault::Fail("no luck".to_owned())
}

fn sized(name: &str, memory: u32) -> CreateSpec {
    CreateSpec { memory: Some(Mib(memory)), ..named(name) }
}

fn count(house: &House, call: Call) -> usize {
    house.host.calls().into_iter().filter(|made| *made == call).count()
}

impl Daemon {
    async fn goldens(&self) -> Vec<bhatti_store::GoldenRow> {
        let goldens = self.db.call(|store| store.goldens()).await.unwrap();
        goldens.into_iter().map(|(row, _)| row).collect()
    }

    async fn reason(&self, alice: &UserRow, spec: CreateSpec) -> String {
        match self.sandboxes.create(alice, spec).await.unwrap() {
            Created::New(row) | Created::Existing(row) => row.reason,
        }
    }
}

#[tokio::test]
async fn ten_creates_at_once_make_one_golden_and_ten_clones() {
    let house = House::with_goldens(3);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 20).await;
    house.host.set_latency(Call::Boot, Duration::from_millis(20));
    let names: Vec<_> = (0..10).map(|i| format!("c{i}")).collect();
    let creates = names.iter().map(|name| daemon.sandboxes.create(&alice, named(name)));
    for created in futures_util::future::join_all(creates).await {
        let Created::New(row) = created.unwrap() else { panic!("it is new") };
        assert_eq!(row.reason, "created from a golden snapshot");
        assert!(row.golden.is_some());
    }
    assert_eq!((count(&house, Call::Boot), count(&house, Call::Restore)), (1, 10));
    assert_eq!(house.host.running().len(), 10, "the machine it was made with has ended");
    assert_eq!(daemon.goldens().await.len(), 1);
}

/// The guest lives, so a link that broke is no reason to fail; and one that always breaks is.
#[tokio::test]
async fn a_link_that_breaks_is_opened_again() {
    let house = House::with_goldens(3);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 9).await;
    daemon.sandboxes.create(&alice, named("first")).await.unwrap();
    house.agents.stumbles.store(3, Ordering::Relaxed);
    let reason = daemon.reason(&alice, named("second")).await;
    assert_eq!(reason, "created from a golden snapshot");
    house.agents.stumbles.store(usize::MAX, Ordering::Relaxed);
    let links = count(&house, Call::OpenLink);
    daemon.sandboxes.create(&alice, named("third")).await.unwrap_err();
    assert_eq!(count(&house, Call::OpenLink) - links, 4, "four tries of a clone, and no more");
}

#[tokio::test]
async fn a_clone_has_its_own_identity_before_the_create_returns() {
    let house = House::with_goldens(3);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    for name in ["one", "two"] {
        let env = [("WHO".to_owned(), name.to_owned())].into();
        let spec = CreateSpec { env, disk_size: Some(Mib(7)), ..named(name) };
        daemon.sandboxes.create(&alice, spec).await.unwrap();
        let told = house.agents.configured.lock().unwrap().last().cloned().unwrap();
        assert_eq!((told.hostname.as_str(), told.env["WHO"].as_str()), (name, name));
        assert_eq!(told.root_bytes, 7 << 20, "its disk may have become larger");
    }
    let mut told = house.agents.configured.lock().unwrap().clone();
    // Which has had a name of nobody's.
    told.retain(|told| told.hostname != "golden");
    assert_eq!(told.len(), 2);
    assert_ne!(told[0].machine_id, told[1].machine_id);
    let networks = told.iter().map(|told| told.network.clone().unwrap()).collect::<Vec<_>>();
    assert_ne!(networks[0].address, networks[1].address);
    assert_ne!(networks[0].mac, networks[1].mac);
}

#[tokio::test]
async fn a_clone_that_cannot_be_told_who_it_is_is_not_handed_out() {
    let agents_are = |house: &House, mute: bool, refuse: bool| {
        *house.agents.mute.lock().unwrap() = mute;
        *house.agents.refuse_identity.lock().unwrap() = refuse;
    };
    for (what, mute, refuse) in [("hello", true, false), ("configure", false, true)] {
        let house = House::with_goldens(3);
        let daemon = house.daemon().await;
        let alice = daemon.user("alice", 5).await;
        daemon.sandboxes.create(&alice, named("first")).await.unwrap();
        agents_are(&house, mute, refuse);
        daemon.sandboxes.create(&alice, named("dev")).await.unwrap_err();
        agents_are(&house, false, false);
        assert_eq!(house.host.running().len(), 1, "{what}");
        assert_eq!(daemon.sandboxes.list(&alice).await.unwrap().len(), 1, "{what}");
        // It may have been the golden's fault.
        let reason = daemon.reason(&alice, named("dev")).await;
        assert_eq!(reason, "created from a golden snapshot", "{what}");
        assert_eq!(count(&house, Call::Boot), 2, "{what}: from another one");
    }
}

#[tokio::test]
async fn a_clone_that_fails_leaves_nothing_and_costs_no_golden() {
    let house = House::with_goldens(3);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("first")).await.unwrap();
    for call in [Call::CreateRoot, Call::Restore, Call::Resume, Call::OpenLink] {
        house.host.inject(call, fail());
        daemon.sandboxes.create(&alice, named("dev")).await.unwrap_err();
        assert_eq!(house.host.running().len(), 1, "{call:?}");
        assert_eq!(house.names("sandboxes").len(), 1, "{call:?}");
    }
    assert_eq!(daemon.sandboxes.list(&alice).await.unwrap().len(), 1);
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    assert_eq!((count(&house, Call::Boot), house.host.faults_left()), (1, 0));
}

/// By a VMM that could use it yesterday, for one on another kernel: no create fails for that.
#[tokio::test]
async fn a_golden_that_is_refused_costs_a_boot_and_is_made_anew() {
    let house = House::with_goldens(3);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("first")).await.unwrap();
    house.host.inject(Call::Restore, Fault::Refuse("another kernel".to_owned()));
    assert_eq!(daemon.reason(&alice, named("second")).await, "created by booting");
    assert_eq!(daemon.reason(&alice, named("third")).await, "created from a golden snapshot");
    assert_eq!(
        count(&house, Call::Boot),
        3,
        "the first golden, the second sandbox, another golden"
    );
}

/// Each step of making one may fail: then the create boots, and nobody tries again at once.
#[tokio::test]
async fn what_cannot_be_made_is_done_without() {
    for call in [Call::CreateRoot, Call::Boot, Call::OpenLink, Call::Pause, Call::Save] {
        let house = House::with_goldens(3);
        let daemon = house.daemon().await;
        let alice = daemon.user("alice", 5).await;
        house.host.inject(call, fail());
        for name in ["one", "two"] {
            let reason = daemon.reason(&alice, named(name)).await;
            assert_eq!(reason, "created by booting", "{call:?}");
        }
        assert_eq!(house.host.running().len(), 2, "{call:?}");
        let left = house.names("goldens").len() + house.names("sandboxes").len();
        assert_eq!(left, 2, "{call:?}: what it came to was removed");
    }
}

#[tokio::test]
async fn one_that_is_of_no_use_is_replaced_and_kept_for_those_on_it() {
    let house = House::with_goldens(3);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("first")).await.unwrap();
    let first = daemon.goldens().await[0].id.clone();
    let state = house.path(&format!("data/goldens/{first}/state.sim"));
    let good = std::fs::read(&state).unwrap();
    std::fs::write(&state, "rubbish").unwrap();
    assert_eq!(daemon.reason(&alice, named("second")).await, "created by booting");
    let reason = daemon.reason(&alice, named("third")).await;
    assert_eq!(reason, "created from a golden snapshot");
    assert!(house.names("goldens").contains(first.as_str()), "the first sandbox stands on it");
    std::fs::write(&state, good).unwrap();
    daemon.sandboxes.stop(&alice, "first").await.unwrap();
    daemon.sandboxes.start(&alice, "first", false).await.unwrap();
    daemon.sandboxes.destroy(&alice, "first").await.unwrap();
    let gone = async || !house.names("goldens").contains(first.as_str());
    eventually("the last one that stood on it takes it along", gone).await;
    assert_eq!(daemon.goldens().await.len(), 1);
}

#[tokio::test]
async fn the_one_used_least_recently_goes_and_those_in_use_stay() {
    let house = House::with_goldens(2);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 9).await;
    let golden = "created from a golden snapshot";
    for (name, memory) in [("a", 256), ("b", 512)] {
        assert_eq!(daemon.reason(&alice, sized(name, memory)).await, golden);
    }
    // Both are in use: there is no room for a third kind.
    let reason = daemon.reason(&alice, sized("c", 1024)).await;
    assert_eq!(reason, "created by booting");
    daemon.sandboxes.destroy(&alice, "a").await.unwrap();
    assert_eq!(daemon.reason(&alice, sized("d", 1024)).await, golden);
    let kinds = daemon.goldens().await.iter().map(|row| row.memory.0).collect::<BTreeSet<_>>();
    assert_eq!(kinds, [512, 1024].into());
    assert_eq!(house.names("goldens").len(), 2);
}

/// What stands on it need not run.
#[tokio::test]
async fn a_cold_sandbox_and_a_snapshot_keep_their_golden() {
    let house = House::with_goldens(1);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 9).await;
    daemon.sandboxes.create(&alice, sized("a", 256)).await.unwrap();
    daemon.sandboxes.checkpoint(&alice, "a", "base".parse().unwrap()).await.unwrap();
    daemon.sandboxes.stop(&alice, "a").await.unwrap();
    assert_eq!(daemon.reason(&alice, sized("b", 512)).await, "created by booting");
    daemon.sandboxes.destroy(&alice, "a").await.unwrap();
    assert_eq!(daemon.reason(&alice, sized("c", 512)).await, "created by booting");
    daemon.sandboxes.resume_snapshot(&alice, "base", None, None).await.unwrap();
    daemon.sandboxes.delete_snapshot(&alice, "base").await.unwrap();
    assert_eq!(daemon.reason(&alice, sized("d", 512)).await, "created by booting");
}

/// A clone that is not ready is in no record, and its golden stays all the same.
#[tokio::test]
async fn a_golden_does_not_go_from_under_a_clone_that_is_being_made() {
    let house = House::with_goldens(1);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 9).await;
    daemon.sandboxes.create(&alice, sized("a", 256)).await.unwrap();
    daemon.sandboxes.destroy(&alice, "a").await.unwrap();
    let told = Arc::new(tokio::sync::Notify::new());
    *house.agents.slow_files.lock().unwrap() = Some(told.clone());
    let file = FileContent { path: "/etc/x".into(), mode: 0o644, content: "x".into() };
    let spec = CreateSpec { files: vec![file], ..sized("b", 256) };
    let clone = daemon.sandboxes.create(&alice, spec);
    let other = async {
        let nearly = async || !house.agents.files.lock().unwrap().is_empty();
        eventually("it is being furnished", nearly).await;
        let reason = daemon.reason(&alice, sized("c", 512)).await;
        told.notify_one();
        reason
    };
    let (clone, other) = tokio::join!(clone, other);
    let Created::New(row) = clone.unwrap() else { panic!("it is new") };
    assert_eq!(row.reason, "created from a golden snapshot");
    assert_eq!(other, "created by booting", "and nobody waited for the clone");
}

#[tokio::test]
async fn another_engine_or_image_makes_another() {
    let mut house = House::with_goldens(5);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 9).await;
    daemon.sandboxes.create(&alice, named("a")).await.unwrap();
    daemon.stop().await;
    house.fingerprint = "another CPU";
    let daemon = house.daemon().await;
    daemon.sandboxes.create(&alice, named("b")).await.unwrap();
    assert_eq!(daemon.goldens().await.len(), 2);
    let image = daemon.layout.images().join("rootfs-minimal-amd64.ext4");
    let content = std::fs::read(&image).unwrap();
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&image, content).unwrap();
    daemon.sandboxes.create(&alice, named("c")).await.unwrap();
    assert_eq!(daemon.goldens().await.len(), 3);
    assert_eq!(count(&house, Call::Restore), 3);
}

#[tokio::test]
async fn goldens_are_bounded_in_bytes_too() {
    let goldens = GoldenLimits { count: 9, bytes: 1 };
    let house = House { goldens, ..House::new() };
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 9).await;
    let reason = daemon.reason(&alice, sized("a", 256)).await;
    assert_eq!(reason, "created from a golden snapshot", "one is always allowed");
    assert_eq!(daemon.reason(&alice, sized("b", 512)).await, "created by booting");
    daemon.sandboxes.destroy(&alice, "a").await.unwrap();
    let empty = async || house.names("goldens").is_empty();
    eventually("one that is too large goes with its last user", empty).await;
}

/// What is made for one kind holds up no create for longer than a boot may take.
#[tokio::test]
async fn who_waited_as_long_as_a_boot_takes_boots() {
    let boot_timeout = Duration::from_secs(1);
    let house = House { boot_timeout, ..House::with_goldens(3) };
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.inject(Call::Boot, Fault::Hang);
    let others = daemon.sandboxes.create(&alice, sized("a", 512));
    let own = daemon.sandboxes.create(&alice, sized("b", 1024));
    for created in [others.await, own.await] {
        let Created::New(row) = created.unwrap() else { panic!("it is new") };
        assert_eq!(row.reason, "created by booting");
    }
    assert!(daemon.goldens().await.is_empty());
}

/// One whose files somebody removed is made again, under another name.
#[tokio::test]
async fn a_golden_without_files_is_made_again() {
    let house = House::with_goldens(3);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.reason(&alice, named("one")).await;
    let [old] = daemon.goldens().await.try_into().unwrap();
    std::fs::remove_dir_all(daemon.layout.golden(&old.id)).unwrap();
    assert_eq!(daemon.reason(&alice, named("two")).await, "created from a golden snapshot");
    let found = daemon.goldens().await.into_iter().find(|row| !row.is_retired());
    let new = found.expect("another").id;
    assert_ne!(new, old.id);
    assert_eq!(house.names("goldens"), [new.to_string()].into());
}
