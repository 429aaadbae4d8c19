//! Making sandboxes by booting, and undoing what failed.

use bhatti_engine_sim::{Call, Fault};
use bhatti_types::Cpus;

use super::*;

#[tokio::test]
async fn a_create_gives_the_guest_its_identity() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    let file = FileContent { path: "/etc/x".into(), mode: 0o644, content: "x".into() };
    let spec = CreateSpec {
        env: [("A".to_owned(), "1".to_owned())].into(),
        files: vec![file],
        ..named("dev")
    };
    let Created::New(row) = daemon.sandboxes.create(&alice, spec.clone()).await.unwrap() else {
        panic!("it is new")
    };
    assert_eq!((row.phase, row.ip.to_string().as_str()), (Phase::Hot, "10.0.1.2"));
    let told = house.agents.configured.lock().unwrap().clone();
    assert_eq!((told.len(), told[0].hostname.as_str(), told[0].env["A"].as_str()), (1, "dev", "1"));
    let network = told[0].network.clone().unwrap();
    assert_eq!((network.address.as_str(), network.gateway.as_str()), ("10.0.1.2", "10.0.1.1"));
    assert_eq!(*house.agents.files.lock().unwrap(), ["/etc/x"]);
    // Again: the same, or less, finds it. Something else is a conflict.
    for same in [spec.clone(), named("dev")] {
        let again = daemon.sandboxes.create(&alice, same).await.unwrap();
        assert!(matches!(again, Created::Existing(found) if found.id == row.id));
    }
    let other = CreateSpec { memory: Some(Mib(2048)), ..named("dev") };
    let refused = daemon.sandboxes.create(&alice, other).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, ServiceError::Exists { .. }), "{refused:?}");
    assert_eq!(
        refused.to_string(),
        "sandbox \"dev\" already exists with a different configuration: its memory is 1024 MB, not \
         2048 MB"
    );
    let env = [("A".to_owned(), "secret".to_owned())].into();
    let other = CreateSpec { env, cpus: Some(Cpus::try_from(0.5).unwrap()), ..named("dev") };
    let refused = daemon.sandboxes.create(&alice, other).await.unwrap_err().to_string();
    assert!(
        refused.ends_with("its number of CPUs is 1, not 0.5; its environment differs"),
        "{refused}"
    );
    assert_eq!(house.host.started(), 1);
    daemon.sandboxes.destroy(&alice, "dev").await.unwrap();
    house.assert_nothing_left(&daemon).await;
    assert_eq!(house.network.released.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_failed_boot_leaves_nothing() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    let with_file = || CreateSpec {
        files: vec![FileContent { path: "/x".into(), mode: 0o644, content: "x".into() }],
        ..named("dev")
    };
    for call in [Call::CreateRoot, Call::Boot, Call::OpenLink] {
        house.host.inject(call, Fault::Fail("no".to_owned()));
        let failed = daemon.sandboxes.create(&alice, with_file()).await;
        assert!(matches!(failed, Err(ServiceError::Create(_))), "{call:?}: {failed:?}");
        house.assert_nothing_left(&daemon).await;
    }
    house.host.inject(Call::Boot, Fault::Die("kernel panic".to_owned()));
    let died = daemon.sandboxes.create(&alice, with_file()).await.unwrap_err();
    assert!(crate::chain(&died).contains("kernel panic"), "{}", crate::chain(&died));
    house.assert_nothing_left(&daemon).await;
    *house.agents.refuse_files.lock().unwrap() = true;
    let refused = daemon.sandboxes.create(&alice, with_file()).await.unwrap_err();
    assert!(crate::chain(&refused).contains("disk full"), "{}", crate::chain(&refused));
    house.assert_nothing_left(&daemon).await;
    *house.network.broken.lock().unwrap() = true;
    let cut = daemon.sandboxes.create(&alice, named("dev")).await.unwrap_err();
    assert!(crate::chain(&cut).contains("no bridge"), "{}", crate::chain(&cut));
    house.assert_nothing_left(&daemon).await;
    *house.network.broken.lock().unwrap() = false;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    assert_eq!(house.host.faults_left(), 0);
}

#[tokio::test]
async fn two_creates_of_one_name_make_one() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.set_latency(Call::Boot, Duration::from_millis(50));
    let create = || daemon.sandboxes.create(&alice, named("dev"));
    let (a, b, c) = tokio::join!(create(), create(), create());
    let new = [a, b, c].map(|created| matches!(created.unwrap(), Created::New(_)));
    assert_eq!(new.iter().filter(|new| **new).count(), 1);
    assert_eq!(house.host.started(), 1);
}

#[tokio::test]
async fn a_create_after_a_failed_twin_tries_itself() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.set_latency(Call::Boot, Duration::from_millis(50));
    house.host.inject(Call::Boot, Fault::Fail("no".to_owned()));
    let create = || daemon.sandboxes.create(&alice, named("dev"));
    let (a, b) = tokio::join!(create(), create());
    assert_eq!((a.is_err(), b.is_ok()), (true, true));
    assert_eq!(house.host.running().len(), 1);
}

#[tokio::test]
async fn twenty_creates_at_once_respect_the_quota() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    let creates = (0..20).map(|i| {
        let (sandboxes, alice) = (daemon.sandboxes.clone(), alice.clone());
        tokio::spawn(async move { sandboxes.create(&alice, named(&format!("c{i}"))).await })
    });
    let creates: Vec<_> = creates.collect();
    let mut made = 0;
    for create in creates {
        match create.await.unwrap() {
            Ok(_) => made += 1,
            Err(ServiceError::Quota { used: 5, max: 5 }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((made, house.host.running().len()), (5, 5));
}

/// The caller goes away: the sandbox is made all the same.
#[tokio::test]
async fn a_create_nobody_waits_for_is_finished() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.set_latency(Call::Boot, Duration::from_millis(50));
    let create = daemon.sandboxes.create(&alice, named("dev"));
    let reserved = async {
        while daemon.db.call(|store| store.all_sandboxes()).await.unwrap().0.is_empty() {}
    };
    tokio::select! {
        biased;
        _ = create => panic!("it is still booting"),
        () = reserved => {}
    }
    // An identical create waits for the one under way.
    let found = daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    assert!(matches!(found, Created::Existing(row) if row.phase == Phase::Hot));
    assert_eq!(house.host.started(), 1);
}

#[tokio::test]
async fn others_see_nothing() {
    let house = House::new();
    let daemon = house.daemon().await;
    let (alice, bob) = (daemon.user("alice", 5).await, daemon.user("bob", 5).await);
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    let patch = PatchSpec { keep_hot: Some(true), ..PatchSpec::default() };
    let gone = |result: Result<(), ServiceError>| matches!(result, Err(ServiceError::NoSandbox(_)));
    assert!(gone(daemon.sandboxes.get(&bob, "dev").await.map(drop)));
    assert!(gone(daemon.sandboxes.patch(&bob, "dev", patch).await.map(drop)));
    assert!(gone(daemon.sandboxes.lease(&bob, "dev").await.map(drop)));
    assert!(gone(daemon.sandboxes.destroy(&bob, "dev").await));
    assert!(daemon.sandboxes.list(&bob).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_rename_changes_neither_host_name_nor_machine_id() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("my_box")).await.unwrap();
    let patch = PatchSpec { name: Some("other".parse().unwrap()), ..PatchSpec::default() };
    daemon.sandboxes.patch(&alice, "my_box", patch).await.unwrap();
    daemon.sandboxes.power_off_all(LONG).await;
    daemon.sandboxes.lease(&alice, "other").await.unwrap();
    let told = house.agents.configured.lock().unwrap().clone();
    assert_eq!((told[0].hostname.as_str(), told.len()), ("my-box", 2));
    assert_eq!((&told[0].hostname, &told[0].machine_id), (&told[1].hostname, &told[1].machine_id));
    assert_eq!(told[0].machine_id.len(), 32);
}

#[tokio::test]
async fn a_policy_that_could_not_be_applied_is_applied_when_it_is_asked_for_again() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    let closed = bhatti_types::NetPolicy::closed();
    let patch = PatchSpec { net_policy: Some(closed.clone()), ..PatchSpec::default() };
    house.network.stumbles.store(1, Ordering::Relaxed);
    let failed = daemon.sandboxes.patch(&alice, "dev", patch.clone()).await;
    assert!(matches!(failed, Err(ServiceError::Failed { .. })), "{failed:?}");
    assert_eq!(house.network.applied.load(Ordering::Relaxed), 0);
    let row = daemon.sandboxes.patch(&alice, "dev", patch).await.unwrap();
    assert_eq!((row.net_policy, house.network.applied.load(Ordering::Relaxed)), (closed, 1));
}
