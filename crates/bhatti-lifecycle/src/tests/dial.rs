//! Connections to programs, by a pretended network and by the link.

use tokio::net::TcpListener;

use super::*;
use crate::{Connection, Lease};

/// A sandbox whose network leads to `listener`.
async fn with_dev(house: &House) -> (Daemon, UserRow, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    *house.network.leads.lock().unwrap() = Leads::To(port);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    house.host.set_memory(&house.machine(), b"work".to_vec());
    (daemon, alice, listener)
}

async fn dial(lease: &Lease) -> Connection {
    tokio::time::timeout(LONG, lease.dialer().dial(80)).await.unwrap().unwrap()
}

/// Whether what is said comes back.
async fn echoes(connection: &mut Connection) -> bool {
    let mut heard = [0; 5];
    connection.write_all(b"hello").await.unwrap();
    connection.read_exact(&mut heard).await.unwrap();
    heard == *b"hello"
}

#[tokio::test]
async fn what_goes_by_the_network_ends_with_the_machine() {
    for dies in [false, true] {
        let house = House::new();
        let (daemon, alice, listener) = with_dev(&house).await;
        let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
        let mut connection = dial(&lease).await;
        assert!(matches!(connection, Connection::Network(_)));
        let (mut program, _) = listener.accept().await.unwrap();
        connection.write_all(b"x").await.unwrap();
        assert_eq!(program.read_u8().await.unwrap(), b'x');
        let mut heard = Vec::new();
        let read = connection.read_to_end(&mut heard);
        let end = async {
            if dies {
                house.host.power_off(&house.machine());
            } else {
                daemon.sandboxes.stop(&alice, "dev").await.unwrap();
            }
        };
        let (read, ()) =
            tokio::time::timeout(LONG, async { tokio::join!(read, end) }).await.unwrap();
        let error = read.expect_err("no good end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        if !dies {
            // It was told, and the connection is still there.
            assert_eq!(program.read(&mut [0; 8]).await.unwrap(), 0);
        }
        drop((connection, lease));
        let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
        let again = dial(&lease).await;
        assert!(matches!(again, Connection::Network(_)), "the next time it is up");
    }
}

/// Connections go by the link, and the network is tried for the first alone.
async fn is_by_link_and_remembered(house: &House, daemon: &Daemon, alice: &UserRow) {
    let lease = daemon.sandboxes.lease(alice, "dev").await.unwrap();
    for _ in 0..3 {
        let mut connection = dial(&lease).await;
        assert!(matches!(connection, Connection::Link(_)));
        assert!(echoes(&mut connection).await);
    }
    assert_eq!(house.network.dialled.load(Ordering::Relaxed), 1, "it is remembered");
}

#[tokio::test]
async fn what_the_network_does_not_reach_the_link_does_for_a_while() {
    let house = House::new();
    let (daemon, alice, listener) = with_dev(&house).await;
    drop(listener);
    is_by_link_and_remembered(&house, &daemon, &alice).await;
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_reached_by_the_link() {
    let house = House::new();
    let (daemon, alice, _listener) = with_dev(&house).await;
    *house.network.leads.lock().unwrap() = Leads::Nowhere;
    is_by_link_and_remembered(&house, &daemon, &alice).await;
}

#[tokio::test]
async fn what_nobody_listens_on_is_not_remembered() {
    let house = House::new();
    let (daemon, alice, listener) = with_dev(&house).await;
    drop(listener);
    *house.agents.refuse_dials.lock().unwrap() = true;
    let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    for dialled in 1..=2 {
        let error = lease.dialer().dial(80).await.map(drop).unwrap_err();
        assert!(matches!(error, bhatti_guest_client::GuestError::Refused(_)), "{error:?}");
        assert_eq!(house.network.dialled.load(Ordering::Relaxed), dialled);
    }
}

/// The network says no when the link has long been asked.
#[tokio::test]
async fn a_network_that_refuses_late_changes_nothing() {
    let house = House::new();
    let (daemon, alice, _listener) = with_dev(&house).await;
    *house.network.leads.lock().unwrap() = Leads::Late(Duration::from_millis(800));
    *house.agents.refuse_dials.lock().unwrap() = true;
    let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    let dialled = tokio::time::timeout(LONG, lease.dialer().dial(80)).await.unwrap();
    let error = dialled.map(drop).unwrap_err();
    assert!(matches!(error, bhatti_guest_client::GuestError::Refused(_)), "{error:?}");
}

/// Of many requests at once one may be lost on the way: that says nothing of the next.
#[tokio::test]
async fn what_is_reached_by_the_network_is_not_taken_for_silent() {
    let house = House::new();
    let (daemon, alice, listener) = with_dev(&house).await;
    let port = listener.local_addr().unwrap().port();
    let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    let first = dial(&lease).await;
    *house.network.leads.lock().unwrap() = Leads::Nowhere;
    assert!(matches!(dial(&lease).await, Connection::Link(_)));
    *house.network.leads.lock().unwrap() = Leads::To(port);
    assert!(matches!(dial(&lease).await, Connection::Network(_)));
    drop(first);
}
