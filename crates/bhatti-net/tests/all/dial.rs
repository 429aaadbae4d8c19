//! Connections of the host to guests: with the machine they are for, or with nobody.

use std::sync::{Arc, Barrier};

use bhatti_net::{NetError, guest_mac};
use bhatti_types::NetPolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::guest::Guest;
use crate::host::{DEADLINE, Nets, disarm, gateway, networks, on_fresh_host, wait_for};

/// A guest of user 1, and who it is to the network.
async fn guest(nets: &Nets) -> (Guest, bhatti_types::EngineId) {
    let (id, address) = nets.people.add(1, NetPolicy::closed());
    let tap = nets.open_tap(1, &id).await.expect("a device");
    (Guest::new(tap, &guest_mac(&id), address, gateway(1)), id)
}

#[test]
fn a_connection_is_with_one_machine() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let (first, id) = guest(&nets).await;
        let address = first.address();
        let dialled = tokio::time::timeout(DEADLINE, nets.dial(1, &id, address, 80)).await;
        let mut stream = dialled.expect("in time").expect("a connection");
        stream.write_all(b"for the first").await.expect("taken");
        wait_for("it to arrive", || first.saw("for the first"));
        let request = first.was_asked().expect("one that was seen");

        // Another one gets its address.
        drop(first);
        nets.people.remove(1, address);
        let (second, other) = guest(&nets).await;
        assert_eq!(second.address(), address);
        let missing = nets.dial(1, &id, address, 80).await;
        assert!(matches!(missing, Err(NetError::NotThere { .. })), "{missing:?}");
        stream.write_all(b"for nobody else").await.expect("taken by the kernel");
        second.says_on(&request, "from somebody else");
        // Whoever asks for the second one has it, through the same rules.
        let dialled = tokio::time::timeout(DEADLINE, nets.dial(1, &other, address, 80)).await;
        let mut own = dialled.expect("in time").expect("a connection");
        own.write_all(b"for the second").await.expect("taken");
        wait_for("it to arrive", || second.saw("for the second"));
        second.fence(gateway(1));
        assert!(!second.saw("for the first") && !second.saw("for nobody else"));
        let mut heard = [0; 18];
        assert!(stream.try_read(&mut heard).is_err(), "nothing of the second one comes in");

        // It is the rules that keep them apart.
        disarm(&prefix, 1);
        second.says_on(&request, "from somebody else");
        stream.read_exact(&mut heard).await.expect("what was said");
        assert_eq!(&heard, b"from somebody else");
        // The kernel repeats what nobody has said to have.
        wait_for("what is repeated to arrive", || second.saw("for the first"));
    });
}

#[test]
fn who_dials_does_not_wait_for_a_change() {
    on_fresh_host(async || {
        let (nets, _) = networks().await;
        let (guest, id) = guest(&nets).await;
        // Somebody else may be the one who asks and waits: then there was nothing to be seen.
        let mut seen = false;
        while !seen {
            let gate = Arc::new(Barrier::new(2));
            *nets.people.gate.lock().expect("no test has panicked") = Some(gate.clone());
            let change = tokio::spawn({
                let nets = nets.clone();
                async move { nets.apply(1).await }
            });
            gate.wait();
            let dial = nets.dial(1, &id, guest.address(), 80);
            let dialled = tokio::time::timeout(DEADLINE, dial).await;
            seen = !change.is_finished();
            gate.wait();
            let _stream = dialled.expect("in time").expect("a connection");
            change.await.expect("it ends").expect("it is done");
        }
    });
}

#[test]
fn a_guest_cannot_begin_what_the_host_can() {
    on_fresh_host(async || {
        let (nets, _) = networks().await;
        let (guest, id) = guest(&nets).await;
        let dialled = tokio::time::timeout(DEADLINE, nets.dial(1, &id, guest.address(), 80)).await;
        let _stream = dialled.expect("in time").expect("a connection");
        assert!(guest.is_reset_by(gateway(1)), "no port of the gateway is open for it");
    });
}
