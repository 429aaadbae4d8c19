//! What runs in a guest is held while its machine stands, and let go by the greeting after that.

use bhatti_engine_sim::{Call, Fault};

use super::Step::{Engine, Hello, Hold};
use super::*;

const PAUSE: Step = Engine(Call::Pause);
const SAVE: Step = Engine(Call::Save);
const RESUME: Step = Engine(Call::Resume);
const RESTORE: Step = Engine(Call::Restore);

async fn with_dev(house: &House) -> (Daemon, UserRow) {
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    (daemon, alice)
}

/// The steps since the sandbox was made: it is greeted once then.
fn since_create(house: &House) -> Vec<Step> {
    let steps = house.steps();
    assert_eq!(steps.first(), Some(&Hello));
    steps[1..].to_vec()
}

/// It wakes into the same machine, so only its clock is wrong, and a word less is quicker.
#[tokio::test]
async fn not_for_a_pause() {
    let house = House::sleepy(Some(5), None);
    let (daemon, alice) = with_dev(&house).await;
    daemon.comes_to(&alice, "dev", Phase::Warm).await;
    assert_eq!(since_create(&house), [PAUSE]);
    let _hot = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(since_create(&house), [PAUSE, RESUME, Hello]);
}

#[tokio::test]
async fn before_it_is_frozen_and_until_it_is_woken() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
    assert_eq!(since_create(&house), [Hold, PAUSE, SAVE, RESTORE, RESUME, Hello]);
}

/// It goes on for a moment: while it stands nobody can be asked to hold anything.
#[tokio::test]
async fn what_is_warm_is_held_before_it_is_frozen() {
    let house = House::sleepy(Some(5), Some(60));
    let (daemon, alice) = with_dev(&house).await;
    daemon.comes_to(&alice, "dev", Phase::Cold).await;
    assert_eq!(since_create(&house), [PAUSE, RESUME, Hello, Hold, PAUSE, SAVE]);
}

#[tokio::test]
async fn what_is_warm_is_held_before_it_is_saved_and_stays_warm() {
    let house = House::sleepy(Some(5), None);
    let (daemon, alice) = with_dev(&house).await;
    daemon.comes_to(&alice, "dev", Phase::Warm).await;
    daemon.sandboxes.checkpoint(&alice, "dev", "base".parse().unwrap()).await.unwrap();
    assert_eq!(since_create(&house), [PAUSE, RESUME, Hello, Hold, PAUSE, SAVE]);
    daemon.comes_to(&alice, "dev", Phase::Warm).await;
}

#[tokio::test]
async fn while_it_is_saved_and_in_every_clone() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.checkpoint(&alice, "dev", "base".parse().unwrap()).await.unwrap();
    let saved = [Hold, PAUSE, SAVE, RESUME, Hello];
    assert_eq!(since_create(&house), saved);
    daemon.sandboxes.resume_snapshot(&alice, "base", None, None).await.unwrap();
    assert_eq!(since_create(&house), [&saved[..], &[RESTORE, RESUME, Hello]].concat());
}

/// The former daemon may have died when they were held; and a link is how to hold them again.
#[tokio::test]
async fn what_runs_when_a_daemon_starts_is_greeted() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.die().await;
    let before = house.steps().len();
    let daemon = house.daemon().await;
    let alice = daemon.known(&alice).await;
    let greeted = async {
        while house.steps().len() < before + 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, greeted).await.expect("it is greeted, and nobody has asked for it");
    daemon.sandboxes.checkpoint(&alice, "dev", "base".parse().unwrap()).await.unwrap();
    assert_eq!(house.steps()[before..], [RESUME, Hello, Hold, PAUSE, SAVE, RESUME, Hello]);
}

/// Whatever fails, it goes on, and with it what was held.
#[tokio::test]
async fn what_does_not_come_to_sleep_is_greeted_too() {
    for call in [Call::Pause, Call::Save] {
        for checkpoint in [false, true] {
            let house = House::new();
            let (daemon, alice) = with_dev(&house).await;
            house.host.inject(call, Fault::Fail("no luck".to_owned()));
            if checkpoint {
                let name = "base".parse().unwrap();
                daemon.sandboxes.checkpoint(&alice, "dev", name).await.unwrap_err();
            } else {
                daemon.sandboxes.stop(&alice, "dev").await.unwrap_err();
            }
            let steps = since_create(&house);
            assert_eq!(steps[..2], [Hold, PAUSE], "{call:?}");
            // One that never stood hears both at once.
            let end = &steps[steps.len() - 2..];
            assert!(end.contains(&RESUME) && end.contains(&Hello), "{call:?}: {steps:?}");
        }
    }
}

#[tokio::test]
async fn a_warm_machine_that_does_not_stand_is_greeted_too() {
    let house = House::sleepy(Some(5), None);
    house.host.inject(Call::Pause, Fault::Fail("no luck".to_owned()));
    let (daemon, alice) = with_dev(&house).await;
    daemon.comes_to(&alice, "dev", Phase::Warm).await;
    let steps = since_create(&house);
    assert_eq!((steps[0], steps[3], steps.len()), (PAUSE, PAUSE, 4), "{steps:?}");
    assert!(steps[1..3].contains(&RESUME) && steps[1..3].contains(&Hello), "{steps:?}");
}

/// Whoever cannot be held sleeps all the same.
#[tokio::test]
async fn nothing_is_kept_from_sleeping() {
    for holds in [Holds::Unknown, Holds::NotAll, Holds::Never] {
        let house = House::sleepy(Some(5), None);
        *house.agents.holds.lock().unwrap() = holds;
        let (daemon, alice) = with_dev(&house).await;
        daemon.comes_to(&alice, "dev", Phase::Warm).await;
        drop(daemon.sandboxes.lease(&alice, "dev").await.unwrap());
        daemon.sandboxes.checkpoint(&alice, "dev", "base".parse().unwrap()).await.unwrap();
        daemon.sandboxes.stop(&alice, "dev").await.unwrap();
        daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
        let steps = since_create(&house);
        let pauses = steps.windows(2).filter(|pair| pair[1] == PAUSE);
        assert!(pauses.clone().count() >= 2, "{holds:?}: {steps:?}");
        assert!(pauses.clone().any(|pair| pair[0] == Hold), "{holds:?}: {steps:?}");
    }
}
